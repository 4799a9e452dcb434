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


def test_a_difference_that_is_not_significant_is_said_so_with_what_could_be_detected(comparison) -> None:
    c = comparison("prior", "direct_head", delta=-0.004, ci_low=-0.02, ci_high=0.012, p=0.62, p_holm=0.8)
    assert words.comparison_sentence(c, cases="253 patients, 101 pos / 152 neg") == (
        "prior against direct_head: not significant: Δ = −0.004, 95 % CI −0.020 to +0.012, Holm p = .800; "
        "these sizes could detect Δ ≥ 0.044; 253 patients, 101 pos / 152 neg."
    )


def test_a_study_that_could_detect_nothing_says_so(comparison) -> None:
    c = comparison("a", "b", p=0.62, p_holm=0.8, min_detectable_delta=1.4)
    assert "these sizes could detect no difference" in words.comparison_sentence(c)


def test_the_adjusted_p_decides_and_the_raw_one_is_shown_where_they_disagree(comparison) -> None:
    c = comparison("prior", "cxr_only", p=0.03, p_holm=0.09)
    assert words.state_of(c) == "not significant"
    assert "Holm p = .090 (p = .030 before adjustment)" in words.comparison_sentence(c)


@pytest.mark.parametrize("delta, state", [(0.04, "higher"), (-0.04, "lower")])
def test_a_significant_difference_names_its_direction(comparison, delta: float, state: str) -> None:
    sentence = words.comparison_sentence(comparison("prior", "cxr_only", delta=delta))
    assert sentence.startswith(f"prior is {state} than cxr_only: ")
    assert "not significant" not in sentence


def test_a_comparison_outside_the_family_says_that_its_p_is_not_adjusted(comparison) -> None:
    sentence = words.comparison_sentence(comparison("ct_only", "cxr_only", p_holm=None))
    assert "p = .010 (not adjusted: outside the declared family)" in sentence
    assert "Holm" not in sentence


def test_an_undefined_test_gives_its_reason_and_no_verdict(comparison) -> None:
    c = comparison("a", "b", p=math.nan, p_holm=math.nan, ci_low=None, reason="one negative case")
    assert words.comparison_sentence(c) == "a against b: not testable: Δ = +0.041, one negative case."


def test_the_confidence_level_follows_alpha(comparison) -> None:
    c = comparison("a", "b", p=0.02, p_holm=0.02)
    assert "99 % CI" in words.comparison_sentence(c, alpha=0.01)
    assert words.state_of(c, alpha=0.01) == "not significant"


def test_a_terminal_table_has_columns_as_wide_as_their_longest_cell() -> None:
    said = words.aligned([("method", "AUC", "source"), ("prior", "0.81", "a"), ("cxr-only", "12.345", "")], right=[1])
    assert said.splitlines() == ["method       AUC  source", "prior       0.81  a", "cxr-only  12.345"]


def test_a_markdown_table_escapes_what_would_end_a_cell() -> None:
    said = words.markdown_table(["a", "b"], [["x|y", "1"]], [False, True])
    assert said.splitlines() == ["| a | b |", "| --- | ---: |", "| x\\|y | 1 |"]
