"""How far two clouds of embeddings lie apart: Fréchet, MMD and energy distance, and retrieval ranks. Pure functions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist

Floats = NDArray[np.float64]


def frechet(a: Floats, b: Floats) -> float:
    """Return the squared Fréchet distance of the Gaussians fitted to two samples, at least 0.

    |m_a - m_b|² + tr(S_a + S_b - 2 (S_a^½ S_b S_a^½)^½), S with divisor n - 1 (Dowson and Landau 1982).

    Args:
        a, b: (n, D) and (m, D), both with more rows than columns: a covariance of fewer has no rank to compare.

    Raises:
        ValueError: too few rows.
    """
    if min(len(a), len(b)) <= a.shape[1]:
        raise ValueError(f"{min(len(a), len(b))} rows of {a.shape[1]} dimensions: too few for a covariance")
    left, right = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    root = _root(left)
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(root @ right @ root), 0.0, None)).sum()
    shift = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    return max(0.0, shift + float(np.trace(left) + np.trace(right) - 2.0 * overlap))


def _root(symmetric: Floats) -> Floats:
    values, vectors = np.linalg.eigh(symmetric)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T)


def energy_distance(a: Floats, b: Floats) -> float:
    """Return the unbiased energy distance 2 E|x - y| - E|x - x'| - E|y - y'| (Székely and Rizzo 2004).

    Pairs of a point with itself are left out, so that two samples of one distribution give 0 on average, and less
    than 0 half of the time.

    Args:
        a, b: (n, D) and (m, D), at least two rows each.
    """
    return float(2.0 * cdist(a, b).mean() - pdist(a).mean() - pdist(b).mean())


def median_bandwidth(reference: Floats) -> float:
    """Return the median distance between the rows of (n, D) ``reference`` (the usual choice for a Gaussian kernel)."""
    middle = float(np.median(pdist(reference)))
    return middle if middle > 0 else 1.0


def mmd(a: Floats, b: Floats, bandwidth: float) -> float:
    """Return the unbiased squared maximum mean discrepancy, kernel exp(-|x - y|² / (2 bandwidth²)).

    Gretton et al. 2012, lemma 6; can be below 0, as ``energy_distance``.

    Args:
        a, b: (n, D) and (m, D), at least two rows each.
        bandwidth: see ``median_bandwidth``.
    """
    within = [float(_kernel(pdist(x, "sqeuclidean"), bandwidth).mean()) for x in (a, b)]
    return float(sum(within) - 2.0 * _kernel(cdist(a, b, "sqeuclidean"), bandwidth).mean())


def _kernel(squared: Floats, bandwidth: float) -> Floats:
    return np.asarray(np.exp(squared / (-2.0 * bandwidth**2)))


def cosine(a: Floats, b: Floats) -> Floats:
    """Return (n,) the cosine of each row of ``a`` with the same row of ``b``; NaN where one of them is 0."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=1) / lengths)


def ranks(queries: Floats, gallery: Floats, wanted: NDArray[np.intp]) -> Floats:
    """Return (n,) the rank of the wanted gallery row among all of them, by cosine with the query; 1 is best.

    Ties count half, so that a generator that gives everyone the same embedding gains nothing.

    Args:
        queries: (n, D).
        gallery: (g, D).
        wanted: (n,) rows of the gallery.
    """
    similarity = _unit(queries) @ _unit(gallery).T
    own = similarity[np.arange(len(queries)), wanted][:, None]
    above = (similarity > own).sum(axis=1)
    level = (similarity == own).sum(axis=1) - 1
    return np.asarray(1.0 + above + 0.5 * level)


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0))


def principal_axes(reference: Floats, dims: int) -> tuple[Floats, Floats]:
    """Return the mean (D,) and the first ``dims`` principal axes (D, dims) of (n, D) ``reference``."""
    mean = reference.mean(axis=0)
    _, _, right = np.linalg.svd(reference - mean, full_matrices=False)
    return mean, np.asarray(right[:dims].T)
