from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import sqrtm

from embedprior.errors import BadInput
from embedprior.prior.metrics import (
    Matched,
    cosine,
    energy_distance,
    frechet,
    hit_rate,
    mean_by_patient,
    median_bandwidth,
    mmd,
    principal_axes,
    quality,
    ranks,
)


def exactly(mean: np.ndarray, covariance: np.ndarray, count: int = 40, seed: int = 0) -> np.ndarray:
    """Rows whose sample mean and covariance are exactly these."""
    rows = np.random.default_rng(seed).standard_normal((count, len(mean)))
    rows -= rows.mean(0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T
    return rows @ np.linalg.cholesky(covariance).T + mean


def covariance(seed: int, dim: int) -> np.ndarray:
    root = np.random.default_rng(seed).standard_normal((dim, dim))
    return root @ root.T + 0.1 * np.eye(dim)


def test_frechet_of_isotropic_gaussians_is_the_closed_form() -> None:
    """|m_a - m_b|² + D (s_a - s_b)²."""
    a, b = exactly(np.zeros(3), 4.0 * np.eye(3)), exactly(np.array([1.0, 2.0, 2.0]), 0.25 * np.eye(3), 55, 1)
    assert frechet(a, b) == pytest.approx(9.0 + 3 * (2.0 - 0.5) ** 2, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_frechet_agrees_with_the_matrix_square_root_of_the_product(seed: int) -> None:
    """The textbook form takes the root of a product that is not symmetric; scipy's general root is independent."""
    left, right = covariance(seed, 5), covariance(seed + 10, 5)
    means = np.random.default_rng(seed).standard_normal((2, 5))
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(left + right - 2 * np.real(sqrtm(left @ right)))
    assert frechet(exactly(means[0], left), exactly(means[1], right, 50, 7)) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_a_sample_with_itself_is_zero_and_too_few_rows_are_refused() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 4))
    assert frechet(rows, rows) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="too few"):
        frechet(rows[:4], rows)


def test_energy_and_mmd_agree_with_loops_over_all_pairs() -> None:
    rng = np.random.default_rng(1)
    a, b, width = rng.standard_normal((7, 3)), rng.standard_normal((9, 3)) + 0.5, 1.3

    def over(x: np.ndarray, y: np.ndarray, of: object, same: bool) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (same and i == j)]
        return float(np.mean([of(np.sqrt(((x[i] - y[j]) ** 2).sum())) for i, j in pairs]))  # type: ignore[operator]

    def itself(distance: float) -> float:
        return distance

    def kernel(distance: float) -> float:
        return float(np.exp(-(distance**2) / (2 * width**2)))

    expected = 2 * over(a, b, itself, False) - over(a, a, itself, True) - over(b, b, itself, True)
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-12)
    expected = over(a, a, kernel, True) + over(b, b, kernel, True) - 2 * over(a, b, kernel, False)
    assert mmd(a, b, width) == pytest.approx(expected, rel=1e-12)


def test_energy_distance_in_one_dimension_is_scipys_without_the_self_pairs() -> None:
    """scipy's is the root of half the V-statistic; taking the pairs with oneself out gives ours."""
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal(50), rng.standard_normal(60) + 1
    biased = stats.energy_distance(a, b) ** 2

    def self_pairs(x: np.ndarray) -> float:
        within = np.abs(x[:, None] - x).mean()
        return float(within * len(x) / (len(x) - 1) - within)

    ours = energy_distance(a[:, None], b[:, None])
    assert ours == pytest.approx(biased - self_pairs(a) - self_pairs(b), rel=1e-9)


def test_two_samples_of_one_distribution_are_at_zero_on_average() -> None:
    rng = np.random.default_rng(3)
    found = [
        [energy_distance(*pair), mmd(*pair, 1.5)] for pair in (rng.standard_normal((2, 20, 3)) for _ in range(300))
    ]
    for values in np.transpose(found):
        assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
        assert values.std() > 0


def test_median_bandwidth_is_the_middle_distance() -> None:
    assert median_bandwidth(np.array([[0.0], [1.0], [3.0]])) == 2.0


def test_cosine_is_by_row_and_undefined_for_nothing() -> None:
    a, b = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [3.0, 3.0], [1.0, 0.0]])
    np.testing.assert_allclose(cosine(a, b), [0.0, 1.0, np.nan])


def test_rank_counts_those_above_and_half_of_the_level_ones() -> None:
    gallery = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
    queries = np.array([[1.0, 0.1], [0.0, 1.0]])
    # Query 0 has rows 0 and 3 level at the top; query 1 ranks 1, 2, then 0 and 3 level.
    np.testing.assert_array_equal(ranks(queries, gallery, np.array([0, 1])), [1.5, 1.0])
    np.testing.assert_array_equal(ranks(queries, gallery, np.array([2, 3])), [3.0, 3.5])


def test_principal_axes_hold_the_most_variance() -> None:
    rows = exactly(np.array([5.0, 0.0, 0.0]), np.diag([1.0, 9.0, 0.01]))
    mean, axes = principal_axes(rows, 2)
    np.testing.assert_allclose(mean, [5, 0, 0], atol=1e-9)
    np.testing.assert_allclose(np.abs(axes.T), [[0, 1, 0], [1, 0, 0]], atol=1e-6)


def matched(count: int = 200, dim: int = 6, noise: float = 0.3) -> Matched:
    """Samples: own CT plus noise, shrunk to keep the spread. One step: shrunk. Mean: someone else's CT."""
    rng = np.random.default_rng(4)
    real = rng.standard_normal((count, dim))
    near = (real + noise * rng.standard_normal(real.shape)) / np.sqrt(1 + noise**2)
    ids = [f"p{i}" for i in range(count)]
    generated = {"sample": near, "one_step": 0.3 * real, "mean": np.roll(real, 1, axis=0)}
    return Matched(generated, real, ids, [f"ct{i}" for i in range(count)])


def test_quality_tells_samples_shrunken_means_and_strangers_apart() -> None:
    found = quality(matched(), 0)
    distances, retrieval = found["distances"], found["retrieval"]
    for measure in ("frechet", "energy", "mmd"):
        floor = distances[measure]["real"]
        # Same distribution as real ones: at the floor. Shrunk: far above. Strangers' real CTs: at the floor.
        for cloud in ("sample", "mean"):
            assert abs(distances[measure][cloud]["mean"] - floor["mean"]) < 4 * floor["sd"]
        assert distances[measure]["one_step"]["mean"] > floor["mean"] + 10 * floor["sd"]
    assert distances["variance_share"]["one_step"] == pytest.approx(0.09, rel=1e-6)
    assert retrieval["chance"] == {"1": 1 / 200, "5": 5 / 200, "10": 10 / 200}
    assert retrieval["sample"]["1"]["low"] > 0.5
    assert retrieval["mean"]["1"]["value"] == 0.0
    assert retrieval["one_step"]["1"]["value"] == 1.0
    assert found["cosine"]["one_step"]["value"] == pytest.approx(1.0)
    assert found["cosine"]["mean"]["high"] < 0.2


def test_frechet_uses_at_most_a_fifth_as_many_dimensions_as_rows() -> None:
    found = quality(matched(60, 40), 0)["distances"]
    assert found["patients_per_half"] == 30
    assert found["frechet_dims"] == 6


def test_several_pairs_of_a_patient_count_once_in_distances_and_share_their_ct() -> None:
    data = matched(100)
    twice = Matched(
        {name: np.repeat(rows, 2, axis=0) for name, rows in data.generated.items()}, np.repeat(data.real, 2, axis=0),
        list(np.repeat(data.patients, 2)), list(np.repeat(data.exams, 2)),
    )  # fmt: skip
    once, found = quality(data, 0), quality(twice, 0)
    assert found["pairs"] == 200
    assert found["distances"] == once["distances"]
    assert found["retrieval"]["gallery"] == 100
    assert found["retrieval"]["sample"]["1"]["value"] == once["retrieval"]["sample"]["1"]["value"]


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(BadInput, match="19 patients"):
        quality(matched(19), 0)


def test_hit_rate_is_wilsons_interval() -> None:
    found = hit_rate(np.array([True] * 3 + [False] * 7), [str(i) for i in range(10)], 0, 100)
    z, n, p = 1.959963984540054, 10, 0.3
    centre, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n) * np.sqrt(p * 0.7 / n + z**2 / (4 * n**2))
    assert (found["low"], found["high"]) == pytest.approx((centre - half, centre + half))
    clustered = hit_rate(np.array([True] * 3 + [False] * 7), [str(i // 2) for i in range(10)], 0, 100)
    assert clustered["method"] == "patient bootstrap"


def test_the_bootstrap_draws_patients_not_pairs() -> None:
    """Pairs of one patient alike: the interval is that of the patients, wider than that of as many strangers."""
    values = np.random.default_rng(5).standard_normal(40)
    alone = mean_by_patient(values, [str(i) for i in range(40)], 0, 4000)
    repeated = mean_by_patient(np.repeat(values, 5), [str(i // 5) for i in range(200)], 0, 4000)
    assert repeated["high"] - repeated["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.05)
    half = stats.norm.ppf(0.975) * values.std() / np.sqrt(40)
    assert alone["high"] - alone["low"] == pytest.approx(2 * half, rel=0.1)
    assert mean_by_patient(np.array([1.0, np.nan]), ["a", "b"], 0, 10)["value"] is None


def test_the_same_seed_gives_the_same_figures() -> None:
    data = matched(60)
    assert quality(data, 1) == quality(data, 1)
    assert quality(data, 1)["distances"] != quality(data, 2)["distances"]
