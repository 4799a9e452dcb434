from __future__ import annotations

import math

import pytest

from embedprior.report import formatting as words


@pytest.mark.parametrize(
    "p, text",
    [
        (0.013, "p = .013"),
        (0.0004, "p < .001"),
        (0.5, "p = .500"),
        (1.0, "p > .999"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_p_values_have_three_digits_and_no_leading_zero(p: float | None, text: str) -> None:
    assert words.p_value(p) == text


def test_rounding_never_hides_on_which_side_of_alpha_a_p_value_lies() -> None:
    assert words.p_value(0.04996) == "p = .04996"
    assert words.p_value(0.0502) == "p = .0502"


def test_signs_are_shown_and_zero_has_none() -> None:
    assert [words.signed(v) for v in (0.041, -0.041, 0.0, -0.0001, None)] == ["+0.041", "−0.041", "0.000", "0.000", "–"]


def test_a_verdict_stands_first_with_the_figures_it_rests_on_and_what_the_size_could_show(comparison) -> None:
    c = comparison(
        "prior", "direct_head", delta=-0.004, ci_low=-0.02, ci_high=0.012, p=0.62, p_holm=0.8, verdict="inconclusive"
    )
    assert words.comparison_sentence(c, cases="253 patients, 101 pos / 152 neg") == (
        "prior better than direct_head: inconclusive: ΔAUC −0.004 (95 % CI −0.020 to +0.012), Holm p = .800; "
        "these sizes could detect Δ ≥ 0.044; 253 patients, 101 pos / 152 neg."
    )


def test_a_study_that_could_detect_nothing_says_so(comparison) -> None:
    c = comparison("a", "b", p=0.62, p_holm=0.8, min_detectable_delta=1.4, verdict="not testable at this size")
    assert "these sizes could detect no difference" in words.comparison_sentence(c)


def test_the_adjusted_p_stands_and_the_raw_one_beside_it_where_they_disagree(comparison) -> None:
    c = comparison("prior", "cxr_only", p=0.03, p_holm=0.09, verdict="inconclusive")
    assert "Holm p = .090 (p = .030 before adjustment)" in words.comparison_sentence(c)


def test_a_comparison_outside_the_family_has_no_verdict_and_says_that_its_p_is_not_adjusted(comparison) -> None:
    c = comparison("ct_only", "cxr_only", p=0.0001, p_holm=None, verdict="exploratory")
    text = words.comparison_sentence(c)
    assert text.startswith("ct_only against cxr_only: ΔAUC +0.041")
    assert "p < .001 (not adjusted: outside the declared family)" in text


def test_an_undefined_comparison_gives_its_reason_and_no_dash_or_none(comparison) -> None:
    c = comparison("a", "b", delta=None, ci_low=None, ci_high=None, p=None, p_holm=None, reason="one class only",
                   verdict="not testable at this size")  # fmt: skip
    assert words.comparison_sentence(c) == (
        "a better than b: not testable at this size: no difference can be computed: one class only."
    )


@pytest.mark.parametrize(
    "fields, text",
    [
        ({}, "a better than b"),
        ({"kind": "non-inferior", "margin": 0.03}, "a not worse than b by 0.03"),
        ({"kind": "equivalent", "margin": 0.05}, "a within ±0.05 of b"),
    ],
)
def test_every_kind_of_claim_has_its_words(fields: dict, text: str) -> None:
    assert words.claim_words({"a": "a", "b": "b", **fields}) == text


@pytest.mark.parametrize("verdict", ["supported", "excluded", "inconclusive", "not testable at this size"])
def test_no_sentence_says_significant_beside_a_verdict(comparison, verdict: str) -> None:
    text = words.comparison_sentence(comparison("a", "b", verdict=verdict))
    assert verdict in text
    assert "significant" not in text


def test_the_confidence_level_follows_alpha(comparison) -> None:
    c = comparison("a", "b", p=0.02, p_holm=0.02)
    assert "99 % CI" in words.comparison_sentence(c, alpha=0.01)


def test_a_terminal_table_has_columns_as_wide_as_their_longest_cell() -> None:
    said = words.aligned([("method", "AUC", "source"), ("prior", "0.81", "a"), ("cxr-only", "12.345", "")], right=[1])
    assert said.splitlines() == ["method       AUC  source", "prior       0.81  a", "cxr-only  12.345"]


def test_a_markdown_table_escapes_what_would_end_a_cell() -> None:
    said = words.markdown_table(["a", "b"], [["x|y", "1"]], [False, True])
    assert said.splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y | 1 |"]
