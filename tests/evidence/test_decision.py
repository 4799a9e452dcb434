"""Claims in words and their verdicts: declared sizes and margins and the interval decide, nothing observed beside."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from embedprior.evidence import Claim, EvidenceError, delong_test, evaluate_predictions, parse_claim
from embedprior.evidence.decision import Rules, status, verdict

RULES = Rules(relevant_delta=0.05)
MORE = Claim("a", "b")


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("prior > cxr-only", Claim("prior", "cxr-only")),
        ("prior >= direct-head - .03", Claim("prior", "direct-head", "non-inferior", 0.03)),
        ("a (seed ensemble) ≥ b − 0.1", Claim("a (seed ensemble)", "b", "non-inferior", 0.1)),
        ("a = b ± .03", Claim("a", "b", "equivalent", 0.03)),
        ("a = b +- .03", Claim("a", "b", "equivalent", 0.03)),
    ],
)
def test_claims_are_read_from_text_and_written_back(text: str, claim: Claim) -> None:
    assert parse_claim(text) == claim
    assert parse_claim(claim.text) == claim


@pytest.mark.parametrize(
    "text", ["a", "a >= b", "a = b", "a > b - .03", "a >= b ± .03", "a > a", "a >= b - 0.9", "a < b"]
)
def test_what_is_no_claim_is_refused(text: str) -> None:
    with pytest.raises(EvidenceError):
        parse_claim(text)


@pytest.mark.parametrize(
    ("p", "delta", "limits", "detectable", "expected"),
    [
        # a size that could detect the relevant difference of .05
        (0.01, 0.10, (0.02, 0.18), 0.04, "supported"),
        (0.01, 0.03, (0.01, 0.05), 0.04, "supported, below the relevant difference"),
        (0.01, 0.003, (0.001, 0.005), 0.01, "supported, below the relevant difference"),
        (0.01, -0.1, (-0.15, -0.05), 0.04, "excluded"),
        (0.30, 0.01, (-0.02, 0.04), 0.04, "excluded"),
        (0.24, 0.025, (-0.01, 0.0605), 0.04, "inconclusive"),
        # one that could not: whatever came out, unless the whole interval lies beyond the relevant difference
        (0.04, 0.22, (0.01, 0.43), 0.16, "not testable at this size"),
        (0.06, 0.22, (-0.01, 0.45), 0.16, "not testable at this size"),
        (0.30, -0.02, (-0.08, 0.04), 0.16, "not testable at this size"),
        (0.001, 0.30, (0.12, 0.48), 0.16, "supported"),
        (0.001, -0.30, (-0.48, -0.12), 0.16, "excluded"),
        (0.04, 0.22, (0.01, 0.43), None, "not testable at this size"),
        (None, None, None, 0.01, "not testable at this size"),
    ],
)
def test_verdicts_of_superiority(
    p: float | None, delta: float | None, limits: tuple[float, float] | None, detectable: float | None, expected: str
) -> None:
    assert verdict(MORE, {"p_holm": p, "delta": delta}, limits, detectable, RULES) == expected


@pytest.mark.parametrize(
    ("kind", "limits", "detectable", "expected"),
    [
        ("non-inferior", (-0.02, 0.30), 0.2, "supported"),
        ("non-inferior", (-0.09, -0.04), 0.2, "excluded"),
        ("non-inferior", (-0.05, 0.02), 0.02, "inconclusive"),
        ("non-inferior", (-0.05, 0.02), 0.2, "not testable at this size"),
        ("equivalent", (-0.02, 0.02), 0.02, "supported"),
        ("equivalent", (-0.02, 0.04), 0.02, "inconclusive"),
        ("equivalent", (0.04, 0.09), 0.02, "excluded"),
    ],
)
def test_verdicts_within_a_margin(kind: str, limits: tuple[float, float], detectable: float, expected: str) -> None:
    claim = Claim("a", "b", kind, 0.03)  # type: ignore[arg-type]
    assert verdict(claim, {"p_holm": 0.01, "delta": 0.0}, limits, detectable, RULES) == expected


def test_support_on_the_fixed_split_alone_is_tentative() -> None:
    assert status("supported", "inconclusive") == "tentative on fixed split only"
    assert status("inconclusive", "supported") == "supported"
    assert status("supported", None) == "supported"
    assert status(None, None) == "not testable at this size"


def frame(m: int, n: int, gains: dict[str, float], *, noise: float = 0.6, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = np.repeat([1, 0], [m, n])
    common = rng.normal(size=m + n)
    ids = [f"p{i}" for i in range(m + n)]
    parts = [
        pd.DataFrame(
            {"exam_id": ids, "patient_id": ids, "label": labels, "method": name,
             "score": common + noise * rng.normal(size=m + n) + gain * labels}
        )
        for name, gain in gains.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def test_detectable_difference_comes_from_sizes_and_assumptions_not_from_scores() -> None:
    """The same 34 + 26 patients with quiet and with noisy scores: one detectable difference."""
    found = []
    for noise in (0.05, 0.6, 3.0):
        evidence = evaluate_predictions(frame(34, 26, {"ref": 1.0, "a": 1.1}, noise=noise), "ref")
        found.append(evidence["comparisons"][0]["min_detectable_delta"])
    assert len(set(found)) == 1
    other = evaluate_predictions(frame(34, 26, {"ref": 1.0, "a": 1.1}), "ref", assumed_correlation=0.9)
    assert other["comparisons"][0]["min_detectable_delta"] < 0.6 * found[0]


def test_a_plans_detectable_difference_is_the_one_that_counts() -> None:
    table = frame(200, 300, {"ref": 1.0, "a": 1.0})
    for planned, expected in (
        ((0.04, 0.04), {"excluded", "inconclusive"}),
        ((0.3, 0.3), {"not testable at this size"}),
    ):
        (row,) = evaluate_predictions(table, "ref", planned=planned)["comparisons"]
        assert row["min_detectable_delta"] == planned[0]
        assert row["verdict"] in expected
    (row,) = evaluate_predictions(table, "ref", planned=(None, None))["comparisons"]
    assert (row["min_detectable_delta"], row["verdict"]) == (None, "not testable at this size")


def test_a_lucky_small_study_is_judged_by_its_size_like_an_unlucky_one() -> None:
    """15 + 25 patients: p just under and just over .05 get one verdict."""
    seen = {}
    for seed in range(90):
        (row,) = evaluate_predictions(frame(15, 25, {"ref": 0.6, "a": 1.2}, noise=1.0, seed=seed), "ref")["comparisons"]
        seen.setdefault((row["p"] <= 0.05), []).append((abs(row["p"] - 0.05), row["verdict"]))
    assert min(seen[True])[1] == min(seen[False])[1] == "not testable at this size"


def test_a_tiny_gain_in_many_cases_is_labelled_below_the_relevant_difference() -> None:
    table = frame(20_000, 40_000, {"ref": 1.0, "prior": 1.02}, noise=0.28, seed=8)
    (row,) = evaluate_predictions(table, "ref")["comparisons"]
    assert row["p"] < 1e-6
    assert row["delta"] < 0.02
    assert row["verdict"] == "supported, below the relevant difference"


def test_one_of_nine_claims_that_misses_holms_level_is_inconclusive() -> None:
    """Its interval holds the relevant difference: "not supported" was said for it."""
    gains = {"ref": 1.1, **{f"m{k}": 1.1 for k in range(8)}, "prior": 1.2}
    found = []
    for seed in range(4):
        table = frame(900, 2200, gains, noise=0.9, seed=seed)
        rows = evaluate_predictions(table, "ref", relevant_delta=0.03)["comparisons"]
        row = next(r for r in rows if r["a"] == "prior")
        assert row["min_detectable_delta_holm"] > row["min_detectable_delta"]
        if row["ci_low_holm"] < 0 < row["ci_high_holm"] and row["ci_high_holm"] > 0.03:
            found.append(row["verdict"])
    assert set(found) <= {"inconclusive", "not testable at this size"}
    assert found


def test_the_verdict_reads_the_interval_at_holms_level() -> None:
    """Three claims: each has the interval of its own level, as wide as delong_test gives it there."""
    table = frame(20, 30, {"ref": 0.6, "x": 0.7, "y": 0.8, "z": 1.9}, noise=0.8)
    scores = {m: part["score"].to_numpy() for m, part in table.groupby("method")}
    labels = np.repeat([1, 0], [20, 30])
    rows = evaluate_predictions(table, "ref")["comparisons"]
    assert min(r["holm_level"] for r in rows) == pytest.approx(0.05 / 3)
    for row in rows:
        expected = delong_test(labels, scores[row["a"]], scores["ref"], alpha=row["holm_level"])
        assert (row["ci_low_holm"], row["ci_high_holm"]) == pytest.approx(expected.ci)
        assert row["ci_high_holm"] > row["ci_high"]


def test_non_inferiority_is_a_claim_with_p_and_verdict_and_delta_zero_passes() -> None:
    table = frame(60, 120, {"direct-head": 1.0, "prior": 1.0}, noise=0.1)
    (row,) = evaluate_predictions(table, "direct-head", ["prior >= direct-head - .03"])["comparisons"]
    assert (row["kind"], row["margin"]) == ("non-inferior", 0.03)
    assert (row["ci_low_holm"] > -0.03) == (row["p_holm"] <= 0.05) == (row["verdict"] == "supported")
    same = table.assign(score=table.groupby("patient_id")["score"].transform("first"))
    (row,) = evaluate_predictions(same, "direct-head", ["prior >= direct-head - .03"])["comparisons"]
    assert (row["delta"], row["verdict"]) == (0.0, "supported")
    assert row["p"] < 1e-6
    margin = evaluate_predictions(table, "direct-head", margin=0.03)
    assert margin["claims"] == ["prior > direct-head", "prior >= direct-head - 0.03"]
    assert len(margin["comparisons"]) == 2


def test_two_claims_of_one_pair_may_stand_together_but_not_twice() -> None:
    table = frame(30, 50, {"b": 1.0, "a": 1.2})
    both = evaluate_predictions(table, "b", ["a > b", "a >= b - .05"])
    assert [r["p_holm"] is not None for r in both["comparisons"]] == [True, True]
    for twice in (["a > b", "a > b"], ["a > b", "b > a"], ["a = b ± .03", "b = a ± .03"]):
        with pytest.raises(EvidenceError, match="twice"):
            evaluate_predictions(table, "b", twice)
