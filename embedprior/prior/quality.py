"""How good generated CT embeddings are: near their own CT, spread like real ones, able to find their CT again.

Every distance between clouds is measured between generated embeddings of one half of the patients and the real ones of
the other half, and beside it stands the same between two halves of real ones: the floor that nothing can beat at this
number of patients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from embedprior.errors import BadInput
from embedprior.prior.distances import (
    Floats,
    cosine,
    energy_distance,
    frechet,
    median_bandwidth,
    mmd,
    principal_axes,
    ranks,
)

OUTPUTS = ("sample", "mean", "one_step")
FEWEST_PATIENTS = 20
"""Below this, half of the patients say nothing about a distribution."""
TOP = (1, 5, 10)


@dataclass(frozen=True)
class Matched:
    """Generated embeddings and the real CT embeddings of the same pairs, row by row.

    Attributes:
        generated: output (``sample``, ``mean``, ``one_step``) → (N, D) float64, standardised by the training CTs.
        real: (N, D) float64, standardised likewise.
        patients: N patient ids.
        exams: N CT exam ids; pairs of one CT share it.
    """

    generated: Mapping[str, Floats]
    real: Floats
    patients: Sequence[str]
    exams: Sequence[str]


def quality(matched: Matched, seed: int, splits: int = 20, replicates: int = 1000) -> dict[str, Any]:
    """Return every figure by output, JSON types; a figure that is not defined is None, with the reason.

    Args:
        matched: the embeddings.
        seed: of the halves and of the bootstrap.
        splits: random halvings of the patients.
        replicates: of the patient bootstrap.

    Raises:
        BadInput: fewer than ``FEWEST_PATIENTS`` patients.
    """
    patients = np.unique(np.asarray(matched.patients, dtype=str))
    if len(patients) < FEWEST_PATIENTS:
        raise BadInput(
            f"{len(patients)} patients with generated and real embeddings. Allowed: at least {FEWEST_PATIENTS}. "
            "Next: give --pairs of more patients, or leave --reference out"
        )
    found: dict[str, Any] = {"patients": len(patients), "pairs": len(matched.real), "dim": matched.real.shape[1]}
    found["distances"] = _distances(matched, seed, splits)
    found["cosine"] = {
        name: mean_by_patient(cosine(rows, matched.real), matched.patients, seed, replicates)
        for name, rows in matched.generated.items()
    }
    found["retrieval"] = _retrieval(matched, seed, replicates)
    return found


def _distances(matched: Matched, seed: int, splits: int) -> dict[str, Any]:
    """Return mean and standard deviation over halvings of every distance, for each output and for real ones.

    One pair a patient is used, the first.
    """
    rng = np.random.default_rng(seed)
    # One pair a patient: a CT that stands in several pairs would be at distance 0 from itself.
    _, first_pair = np.unique(np.asarray(matched.patients, dtype=str), return_index=True)
    real = matched.real[first_pair]
    half = len(real) // 2
    dims = max(1, min(real.shape[1], half // 5))
    mean, axes = principal_axes(real, dims)
    bandwidth = median_bandwidth(real)
    measures: dict[str, Callable[[Floats, Floats], float]] = {
        "frechet": lambda a, b: frechet((a - mean) @ axes, (b - mean) @ axes),
        "energy": energy_distance,
        "mmd": lambda a, b: mmd(a, b, bandwidth),
    }
    clouds = {"real": real, **{name: rows[first_pair] for name, rows in matched.generated.items()}}
    values: dict[str, dict[str, list[float]]] = {m: {c: [] for c in clouds} for m in measures}
    for _ in range(splits):
        first = np.zeros(len(real), dtype=bool)
        first[rng.permutation(len(real))[:half]] = True
        for measure, distance in measures.items():
            for cloud, rows in clouds.items():
                values[measure][cloud].append(distance(rows[first], real[~first]))
    summary = {
        measure: {cloud: {"mean": float(np.mean(v)), "sd": float(np.std(v, ddof=1))} for cloud, v in by_cloud.items()}
        for measure, by_cloud in values.items()
    }
    variance = {name: float(rows.var(axis=0).sum() / real.var(axis=0).sum()) for name, rows in clouds.items()}
    return {
        **summary, "variance_share": variance, "halves": splits, "patients_per_half": half, "frechet_dims": dims,
        "mmd_bandwidth": bandwidth,
    }  # fmt: skip


def _retrieval(matched: Matched, seed: int, replicates: int) -> dict[str, Any]:
    """Return recall@k of the own CT among all distinct CTs, with interval and chance."""
    exams, first, wanted = np.unique(np.asarray(matched.exams, dtype=str), return_index=True, return_inverse=True)
    gallery = matched.real[first]
    top = [k for k in TOP if k < len(exams)]
    found: dict[str, Any] = {"gallery": len(exams), "chance": {str(k): k / len(exams) for k in top}}
    for name, rows in matched.generated.items():
        rank = ranks(rows, gallery, wanted.astype(np.intp))
        found[name] = {str(k): hit_rate(rank <= k, matched.patients, seed, replicates) for k in top}
        found[name]["median_rank"] = float(np.median(rank))
    return found


def mean_by_patient(values: Floats, patients: Sequence[str], seed: int, replicates: int) -> dict[str, Any]:
    """Return mean and 95 % percentile interval, patients drawn with replacement.

    ``value`` is None, with the reason, when a row has no value.
    """
    if not np.isfinite(values).all():
        return {"value": None, "low": None, "high": None, "reason": "an embedding of length 0 has no direction"}
    names, member = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    total, count = (np.bincount(member, weights, len(names)) for weights in (values, None))
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), replicates)
    means = (drawn @ total) / (drawn @ count)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high), "reason": None}


def hit_rate(hit: NDArray[np.bool_], patients: Sequence[str], seed: int, replicates: int) -> dict[str, Any]:
    """Return the share of hits with a 95 % interval: Wilson when every patient has one pair, else by bootstrap.

    A share of 0 or 1 has no bootstrap interval; Wilson's over patients then stands in.
    """
    count = len(set(patients))
    if count == len(hit) or hit.all() or not hit.any():
        ends = binomtest(round(float(hit.mean()) * count), count).proportion_ci(method="wilson")
        return {"value": float(hit.mean()), "low": float(ends.low), "high": float(ends.high), "method": "Wilson"}
    boot = mean_by_patient(hit.astype(np.float64), patients, seed, replicates)
    return {"value": boot["value"], "low": boot["low"], "high": boot["high"], "method": "patient bootstrap"}
