"""Confidence intervals against closed forms, other libraries and their own promises at small sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from embedprior.evidence.delong import Variance, delong
from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.intervals import (
    agreeing_with,
    auc_interval,
    clopper_pearson,
    paired_proportions,
    square_and_add,
    wilson,
    with_chance_case,
)


def variance(se: float, units: int = 20) -> Variance:
    """Half of the variance from either class."""
    return Variance(se**2 / 2, se**2 / 2, units - 1, units - 1)


def test_logit_interval_is_the_back_transformed_one_and_stays_inside() -> None:
    low, high = (
        1 / (1 + math.exp(-(math.log(0.9 / 0.1) + s * 1.959963984540054 * 0.06 / (0.9 * 0.1)))) for s in (-1, 1)
    )
    found = auc_interval(0.9, variance(0.06), 20, method="logit")
    assert found.low == pytest.approx(low, abs=1e-12)
    assert found.high == pytest.approx(high, abs=1e-12)
    wald = auc_interval(0.97, variance(0.06), 20, method="wald")
    assert (wald.low, wald.high) == (pytest.approx(0.97 - 1.959963984540054 * 0.06), 1.0)
    with pytest.raises(EvidenceError, match="Did you mean 'logit'"):
        auc_interval(0.9, variance(0.06), 20, method="loggit")  # type: ignore[arg-type]


def test_default_interval_adds_a_quarter_case_at_chance_and_takes_students_t() -> None:
    """The same by explicit sums: placements of either class with a 13th (21st) one of weight 1/4 at 0.5."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(1.3, 1, 12), rng.normal(0, 1, 20)
    psi = (x[:, None] > y[None, :]).astype(float)
    auc = psi.mean()

    def share(placements: np.ndarray) -> float:
        u = placements.size
        return (((placements - auc) ** 2).sum() + 0.25 * (0.5 - auc) ** 2) / ((u - 1 + 0.25) * (u + 0.25))

    positive, negative = share(psi.mean(axis=1)), share(psi.mean(axis=0))
    total = positive + negative
    df = total**2 / (positive**2 / 11 + negative**2 / 19)
    half = stats.t.ppf(0.975, df) * math.sqrt(total) / (auc * (1 - auc))
    result = delong(np.repeat([1, 0], [12, 20]), np.concatenate([x, y]))
    found = auc_interval(float(result.auc[0]), result.variance(np.ones(1)), result.independent_pairs)
    assert (found.low, found.high) == pytest.approx(
        tuple(special.expit(special.logit(auc) + s * half) for s in (-1, 1))
    )
    assert found.method == "logit-t"


def test_with_many_cases_the_default_is_the_plain_logit_interval() -> None:
    small, large = variance(0.06, units=8), variance(0.01, units=5000)
    assert with_chance_case(0.9, small).total > 1.3 * small.total
    default, plain = (auc_interval(0.9, large, 5000, method=m) for m in ("logit-t", "logit"))
    assert (default.low, default.high) == pytest.approx((plain.low, plain.high), abs=2e-5)


def test_fewer_cases_than_were_simulated_are_said() -> None:
    assert "fewer than 5" in str(auc_interval(0.8, variance(0.1, units=4), 4).note)
    assert auc_interval(0.8, variance(0.1, units=5), 5).note is None


@pytest.mark.parametrize(("m", "n"), [(5, 9), (23, 63)])
def test_perfect_auc_gets_a_one_sided_bound_and_a_flag(m: int, n: int) -> None:
    labels = np.repeat([1, 0], [m, n])
    result = delong(labels, labels * 1.0)
    found = auc_interval(float(result.auc[0]), result.variance(np.ones(1)), result.independent_pairs)
    assert found.low == pytest.approx(0.05 ** (1 / m))
    assert found.high == 1.0
    assert math.isnan(found.se)
    assert "exactly 1" in str(found.reason)
    worst = auc_interval(0.0, variance(0.0), m)
    assert (worst.low, worst.high) == (0.0, pytest.approx(1 - 0.05 ** (1 / m)))


def test_every_perfect_fold_stratified_auc_is_exactly_one() -> None:
    """AUC 1 in each of five folds of any sizes: 6 % of such tables once came out as 1 - 1e-16 and had no interval."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        sizes = list(zip(rng.integers(2, 8, 5), rng.integers(3, 30, 5), strict=True))
        labels = np.concatenate([np.repeat([1, 0], pair) for pair in sizes])
        folds = np.repeat(np.arange(5), [m + n for m, n in sizes])
        result = delong(labels, labels * 1.0, strata=folds)
        assert result.auc[0] == 1.0
        found = auc_interval(float(result.auc[0]), result.variance(np.ones(1)), result.independent_pairs)
        disjoint = sum(min(m, n) for m, n in sizes)
        assert (found.low, found.high) == (pytest.approx(0.05 ** (1 / disjoint)), 1.0)


def test_bound_of_a_perfect_clustered_auc_counts_patients_not_exams() -> None:
    patients = np.repeat(np.arange(10), 4)
    labels = (patients < 4).astype(int)
    result = delong(labels, labels * 1.0, clusters=patients)
    found = auc_interval(1.0, result.variance(np.ones(1)), result.independent_pairs)
    assert found.low == pytest.approx(0.05 ** (1 / 4))


def test_square_and_add_of_symmetric_intervals_is_the_wald_interval() -> None:
    """With half widths 1.96 se the distances combine to 1.96 sqrt(se_a^2 + se_b^2 - 2 r se_a se_b)."""
    z, r = 1.959963984540054, 0.6
    low, high = square_and_add(0.8, (0.8 - z * 0.05, 0.8 + z * 0.05), 0.7, (0.7 - z * 0.04, 0.7 + z * 0.04), r)
    se = math.sqrt(0.05**2 + 0.04**2 - 2 * r * 0.05 * 0.04)
    assert (low, high) == (pytest.approx(0.1 - z * se), pytest.approx(0.1 + z * se))


@pytest.mark.parametrize(
    ("p", "delta", "limits", "holds_zero"),
    [
        (0.03, 0.1, (-0.02, 0.3), False),
        (0.03, -0.1, (-0.3, 0.02), False),
        (0.08, 0.1, (0.01, 0.3), True),
        (0.08, -0.1, (-0.3, -0.01), True),
        (0.03, 0.1, (0.02, 0.3), False),
    ],
)
def test_interval_and_test_never_disagree(
    p: float, delta: float, limits: tuple[float, float], holds_zero: bool
) -> None:
    low, high = agreeing_with(p, delta, limits, 0.05)
    assert (low < 0 < high) == holds_zero
    assert low <= delta <= high


@pytest.mark.parametrize(("k", "n"), [(0, 7), (3, 7), (7, 7), (45, 60)])
def test_intervals_of_proportions_equal_scipys(k: int, n: int) -> None:
    found = stats.binomtest(k, n)
    assert wilson(k, n) == pytest.approx(tuple(found.proportion_ci(method="wilson")), abs=1e-12)
    assert clopper_pearson(k, n) == pytest.approx(tuple(found.proportion_ci(method="exact")), abs=1e-9)
    assert all(map(math.isnan, clopper_pearson(0, 0)))


def test_interval_of_paired_proportions_covers_where_wald_fails() -> None:
    """20 pairs, chances .1 and .05 of being discordant either way: Wald's covers far less than 95 %."""
    rng = np.random.default_rng(1)
    truth, hits, wald = 0.05, 0, 0
    for _ in range(4000):
        only_a, only_b, _ = rng.multinomial(20, [0.10, 0.05, 0.85])
        low, high = paired_proportions(only_a, only_b, 20)
        hits += low <= truth <= high
        d = (only_a - only_b) / 20
        half = 1.96 * math.sqrt(((only_a + only_b) / 20 - d * d) / 20)
        wald += d - half <= truth <= d + half
    assert hits / 4000 >= 0.935
    assert wald < hits


def test_undefined_auc_has_no_interval() -> None:
    assert math.isnan(auc_interval(math.nan, variance(math.nan), 0).low)
