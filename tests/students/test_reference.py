from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedprior.errors import BadInput
from embedprior.students.reference import Reference

MIXING = np.random.default_rng(3).normal(size=(10, 200))


def like(count: int, seed: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return scale * (rng.normal(size=(count, 10)) @ MIXING) + 0.3 * rng.normal(size=(count, 200))


def test_in_full_rank_the_distance_is_mahalanobis() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3))
    reference = Reference.fit(rows, rows[:0])
    new = rng.normal(size=(5, 3))
    centred = new - rows.mean(axis=0)
    squared = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(np.cov(rows.T)), centred)
    np.testing.assert_allclose(reference.distance(new), np.sqrt(squared / 4))


@pytest.mark.parametrize("held_out", [0, 60])
def test_new_embeddings_like_the_old_are_spread_over_the_percentiles(held_out: int) -> None:
    reference = Reference.fit(like(150, 0), like(held_out, 1))
    share = reference.percentile(like(400, 2))
    assert 25 < np.median(share) < 75
    assert (share > 99).mean() < 0.05
    assert (reference.percentile(like(100, 4, scale=3)) > 99).mean() > 0.9
    assert (reference.percentile(np.random.default_rng(5).normal(size=(50, 200)) * like(150, 0).std()) > 99).all()


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    reference = Reference.fit(like(40, 0), like(30, 1))
    reference.save(str(tmp_path))
    again = Reference.load(str(tmp_path))
    np.testing.assert_array_equal(again.percentile(like(9, 2)), reference.percentile(like(9, 2)))
    with pytest.raises(BadInput, match=r"shape \(2, 7\). Allowed: \(N, 200\)"):
        again.distance(np.zeros((2, 7)))
    assert np.isnan(Reference.fit(like(2, 0), like(0, 1)).percentile(like(3, 2))).all()
