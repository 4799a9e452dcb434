"""Recall@k and label overlap@k against enumeration, hypergeometric chance, and a count that doubles the targets."""

from __future__ import annotations

from itertools import permutations
from math import comb

import numpy as np
import pytest
from scipy import stats
from scipy.stats import hypergeom

from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.retrieval import difference, label_overlap, patient_mean, rank_targets

KS = (1, 2, 3, 5, 7)


def by_enumeration(similarity: np.ndarray, target: np.ndarray, k: int) -> float:
    """Share of all orders that respect the similarities in which a target is among the first k."""
    orders = [o for o in permutations(range(len(similarity))) if (np.diff(similarity[list(o)]) <= 0).all()]
    return float(np.mean([target[list(o[:k])].any() for o in orders]))


def test_recall_is_the_share_of_all_orders_that_ties_allow() -> None:
    rng = np.random.default_rng(0)
    gallery = rng.choice([-1.0, 1.0], size=(7, 2))  # directions repeat: ties
    queries = rng.choice([-1.0, 1.0], size=(6, 2))
    keys = np.array(list("aabbccd"))  # two exams of most patients
    asked = np.array(list("aabcdb"))
    found = rank_targets(queries, gallery, asked, keys)
    similarity = queries @ gallery.T  # all rows have one length
    for k in KS:
        expected = [by_enumeration(s, keys == key, k) for s, key in zip(similarity, asked, strict=True)]
        assert found.hits(k) == pytest.approx(expected, abs=1e-12)
    assert len({round(float(value), 6) for k in KS for value in found.hits(k)} - {0.0, 1.0}) > 3  # fractions occurred


def test_without_information_recall_is_its_exact_chance() -> None:
    keys = np.array(["a"] * 3 + ["b"] * 2 + ["c"] * 5)
    asked = np.array(["a", "b", "c", "c"])
    found = rank_targets(np.ones((4, 3)), np.ones((10, 3)), asked, keys)
    for k in KS:
        expected = [hypergeom(10, t, k).sf(0) for t in (3, 2, 5, 5)]
        assert found.hits(k) == pytest.approx(expected, abs=1e-12)
        assert found.chance(k) == pytest.approx(expected, abs=1e-12)
    assert found.expected == pytest.approx([11 / 4, 11 / 3, 11 / 6, 11 / 6])


def test_recall_of_random_embeddings_is_chance_on_average() -> None:
    rng, n = np.random.default_rng(3), 24
    keys = np.repeat(np.arange(12), 2)
    draws = []
    for _ in range(300):
        found = rank_targets(rng.normal(size=(n, 6)), rng.normal(size=(n, 6)), keys, keys)
        draws.append([found.hits(k).mean() for k in (1, 5)])
    mean, se = np.mean(draws, axis=0), np.std(draws, axis=0, ddof=1) / np.sqrt(300)
    expected = [1 - comb(22, k) / comb(24, k) for k in (1, 5)]
    assert (np.abs(mean - expected) < 4 * se).all()


def test_every_target_counts_once() -> None:
    """A list with every exam of the gallery twice, as in a released evaluation, gives recall@(k/2) for recall@k."""
    rng, n = np.random.default_rng(1), 40
    queries = rng.normal(size=(n, 8))
    gallery = queries + 1.2 * rng.normal(size=(n, 8))
    order = np.argsort(-(_unit(queries) @ _unit(gallery).T), axis=1)
    place = np.array([int(np.flatnonzero(row == i)[0]) for i, row in enumerate(order)])
    doubled = np.repeat(order, 2, axis=1)
    found = rank_targets(queries, gallery, range(n), range(n))
    for k in (2, 4, 10):
        assert found.hits(k).mean() == (place < k).mean()
        wrong = np.mean([i in row[:k] for i, row in enumerate(doubled)])
        assert wrong == found.hits(k // 2).mean() < found.hits(k).mean()


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_query_without_target_has_no_value() -> None:
    found = rank_targets(np.eye(2), np.eye(2), ["a", "lost"], ["a", "b"])
    assert np.isnan(found.hits(1)).tolist() == [False, True]
    assert patient_mean(found.hits(1), ["a", "lost"]).value == 1.0
    with pytest.raises(EvidenceError, match="no query has a target"):
        patient_mean(np.array([np.nan]), ["lost"])


def test_a_patient_counts_once_whatever_the_number_of_exams() -> None:
    found = patient_mean(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"])
    assert found.value == 0.5
    once = patient_mean(np.array([1.0, 0.0]), ["a", "b"])
    assert (found.low, found.high) == (once.low, once.high)


def test_interval_of_a_recall_is_exact_where_every_patient_has_one_exam_or_all_are_found() -> None:
    names = [f"p{i}" for i in range(40)]
    for hits in (0, 3, 27, 40):
        found = patient_mean(np.repeat([1.0, 0.0], [hits, 40 - hits]), names)
        exact = stats.binomtest(hits, 40).proportion_ci(method="exact")
        if hits in (0, 40):
            assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
        else:  # the variance is estimated: Student's quantile makes the interval a little wider
            assert found.low < exact.low < found.value < exact.high < found.high
            assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.02)


def test_interval_is_narrower_where_a_patients_exams_agree_less() -> None:
    names = [f"p{i // 2}" for i in range(80)]
    alike = patient_mean(np.repeat([1.0, 0.0] * 20, 2), names)
    apart = patient_mean(np.array([1.0, 0.0, 0.0, 1.0] * 10 + [1.0, 1.0, 0.0, 0.0] * 10), names)
    assert alike.value == apart.value == 0.5
    assert apart.high - apart.low < 0.8 * (alike.high - alike.low)


def test_differences_pair_the_patients() -> None:
    rng = np.random.default_rng(2)
    shared, names = (rng.random(200) < 0.6).astype(float), [f"p{i}" for i in range(200)]
    first, second = shared.copy(), shared.copy()
    first[:20], second[:20] = 1.0, 0.0  # the systems differ on these patients alone
    found = difference(patient_mean(first, names), patient_mean(second, names))
    assert found[0] == pytest.approx(0.1)
    paired = stats.t.ppf(0.975, 199) * np.std(first - second, ddof=1) / np.sqrt(200)
    assert (found[0] - found[1], found[2] - found[0]) == pytest.approx((paired, paired), rel=0.25)
    alone = difference(patient_mean(first, names), patient_mean(rng.permutation(second), names))
    assert alone[2] - alone[1] > 1.5 * (found[2] - found[1])
    with pytest.raises(EvidenceError, match="over different patients"):
        difference(patient_mean(first, names), patient_mean(second, [*names[:-1], "other"]))


def test_label_overlap_counts_ties_and_unknown_labels() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [np.nan, 1, 1]])
    query = np.array([[1, 0, 0]], dtype=float)
    # overlap with the four: 1/2, 1, 0, and (of the labels known in both: none and one positive) 0
    gallery = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found, chance = label_overlap(np.array([[1.0, 0.0]]), gallery, query, labels, (1, 2, 3, 4))
    assert [float(found[k][0]) for k in (1, 2, 3, 4)] == pytest.approx([0.5, 0.5, 0.5, 0.375])
    assert chance == pytest.approx([0.375])
    # the query's second finding is unknown in the only exam: of the others one of two is shared
    unknown, _ = label_overlap(gallery[:1], gallery[:1], np.array([[1, 1, 0]]), np.array([[1, np.nan, 1]]), (1,))
    assert unknown[1] == pytest.approx([0.5])
    # an exam without any label is left out: the first two are one place of two, shared among exams with 1/2 and nothing
    nothing = np.array([[1, 1, 0], [np.nan] * 3])
    half, by_chance = label_overlap(gallery[:1], gallery[:2], query, nothing, (1, 2))
    assert (half[1][0], half[2][0], by_chance[0]) == (0.5, 0.5, 0.5)
    assert np.isnan(label_overlap(gallery[:1], gallery[:1], query, nothing[1:], (1,))[0][1]).all()
    both_normal, _ = label_overlap(np.array([[1.0, 0.0]]), gallery[2:3], np.zeros((1, 3)), labels[2:3], (1,))
    assert both_normal[1] == pytest.approx([1.0])


def test_embeddings_that_have_no_direction_or_another_space_are_refused() -> None:
    with pytest.raises(EvidenceError, match=r"zero \(row 1\)"):
        rank_targets(np.array([[1.0], [0.0]]), np.ones((1, 1)), ["a", "b"], ["a"])
    with pytest.raises(EvidenceError, match="different spaces"):
        rank_targets(np.ones((1, 2)), np.ones((1, 3)), ["a"], ["a"])
    with pytest.raises(EvidenceError, match="NaN"):
        rank_targets(np.array([[np.nan]]), np.ones((1, 1)), ["a"], ["a"])
