"""Retrieval of CTs by radiographs and back, on embedding caches: recall@k and label overlap@k of several systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from embedprior.cache import EmbeddingCache
from embedprior.cache.reader import drop_unembedded
from embedprior.cache.verify import open_verified
from embedprior.encoders.base import refuse_seen_patients
from embedprior.errors import BadInput
from embedprior.evidence.retrieval import Mean, difference, label_overlap, patient_mean, rank_targets
from embedprior.tables import (
    EXAM_REQUIRED,
    LABEL_PREFIX,
    PAIR_REQUIRED,
    SPLIT_REQUIRED,
    check_exams,
    check_pairs,
    check_splits,
    fold_parts,
    label_columns,
    read_table,
)

Match = Literal["patient", "scan"]
DIRECTIONS = ("cxr to ct", "ct to cxr")
KS = (1, 5, 10, 50, 100)
OVERLAP = "label overlap"


@dataclass(frozen=True)
class Embeddings:
    """One way to embed radiographs and CTs in one space: two caches.

    Attributes:
        name: of the row.
        cxr: of the radiographs; CT embeddings generated from them, for a prior.
        ct: of the CTs.
    """

    name: str
    cxr: EmbeddingCache
    ct: EmbeddingCache


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval of every system on the same exams.

    Attributes:
        rows: one a system, direction, metric and k: ``system, direction, metric, k, value, ci_low, ci_high, chance,
            reason``.
        differences: the same metrics, every system less the first: ``value, ci_low, ci_high``.
        ranks: one a system, direction and query: ``exam_id, patient_id, above, tied, targets, gallery``.
        dropped: exams without an embedding in some system.
        counts: exams and patients of each side, and queries without a target.
    """

    rows: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    ranks: pd.DataFrame
    dropped: list[dict[str, str]]
    counts: dict[str, int]


def read_systems(cxr: Mapping[str, str], ct: Mapping[str, str]) -> list[Embeddings]:
    """Open the caches of every system; one CT cache serves all, unless each has its own.

    Args:
        cxr: name → folder of the radiographs' cache.
        ct: name → folder of the CTs' cache; one alone under any name serves every system.

    Raises:
        BadInput: names that do not match, token caches, or (see ``open_verified``) a cache that can't be read.
    """
    if len(ct) > 1 and set(ct) != set(cxr):
        raise BadInput(
            f"--cxr names {', '.join(cxr)} and --ct names {', '.join(ct)}. Allowed: one --ct for all, or one of each "
            "name."
        )
    found = []
    for name, folder in cxr.items():
        sides = [open_verified(folder), open_verified(ct[name] if len(ct) > 1 else next(iter(ct.values())))]
        for cache in sides:
            if cache.has_tokens:
                raise BadInput(f"{cache.path.name} holds tokens. Allowed: one embedding an exam.")
        if sides[0].key["dim"] != sides[1].key["dim"]:
            raise BadInput(
                f"system '{name}': radiographs have {sides[0].key['dim']} numbers and CTs {sides[1].key['dim']}, so "
                "they lie in different spaces. Next: embedprior train alignment, then embedprior align"
            )
        found.append(Embeddings(name, *sides))
    return found


def evaluate_retrieval(
    systems: Sequence[Embeddings], exams: Path, pairs: Path, splits: Path | None = None, part: str = "test",
    design: str | None = None, resample: int = 0, fold: int = 0, *, match: Match = "patient",
    ks: Sequence[int] = KS,
) -> RetrievalResult:  # fmt: skip
    """Measure retrieval both ways among the exams of the pair table.

    Args:
        systems: the first is what the others are compared with.
        exams, pairs: tables. Every radiograph and every CT that stands in a pair takes part, once.
        splits: with it only patients of ``part`` take part.
        part, design, resample, fold: rows of the split table.
        match: what is found: any exam of the patient, or a CT of the pair table's own pairs (a scan).
        ks: how many are retrieved; those above the size of the gallery are left out.

    Raises:
        BadInput: broken tables, no exam left, or patients of the part whom an encoder was trained on.
    """
    table = check_exams(read_table(exams, EXAM_REQUIRED), str(exams))
    joined = check_pairs(read_table(pairs, PAIR_REQUIRED), table, str(pairs))
    if splits is not None:
        checked = check_splits(read_table(splits, SPLIT_REQUIRED), str(splits))
        parts = fold_parts(checked, design, resample, fold, str(splits))
        joined = joined[joined["patient_id"].map(parts) == part]
        if joined.empty:
            raise BadInput(f"{pairs}: no pair of a patient whose part is '{part}' in {splits}.")
        for cache in (side for system in systems for side in (system.cxr, system.ct)):
            refuse_seen_patients(f"the encoder of {cache.path.name}", cache.patients_seen, joined["patient_id"], part)
    dropped: dict[str, dict[str, str]] = {}
    for system in systems:
        sides = [("cxr_exam_id", system.cxr), ("ct_exam_id", system.ct)]
        joined, lost = drop_unembedded(joined, sides, str(pairs))
        dropped |= {record["exam_id"]: record for record in lost}
    by_id = table.set_index("exam_id")
    left, right = (_Side(joined, column, by_id) for column in ("cxr_exam_id", "ct_exam_id"))
    _set_keys(left, right, joined, match)
    names = [LABEL_PREFIX + name for name in label_columns(table)]
    rows: list[dict[str, Any]] = []
    means: dict[tuple[str, str, str, int], Mean] = {}
    ranked: list[pd.DataFrame] = []
    for system in systems:
        vectors = {"cxr": system.cxr.take(left.ids), "ct": system.ct.take(right.ids)}
        for direction in DIRECTIONS:
            (asked, queries), (have, gallery) = (left, vectors["cxr"]), (right, vectors["ct"])
            if direction == DIRECTIONS[1]:
                (asked, queries), (have, gallery) = (have, gallery), (asked, queries)
            ranks = rank_targets(queries, gallery, asked.keys, have.keys)
            ranked.append(
                pd.DataFrame(
                    {"system": system.name, "direction": direction, "exam_id": asked.ids, "patient_id": asked.patients,
                     "above": ranks.above, "tied": ranks.tied, "targets": ranks.targets, "gallery": ranks.gallery}
                )
            )  # fmt: skip
            usable = [k for k in ks if k <= len(have.ids)]
            measured = {("recall", k): (ranks.hits(k), ranks.chance(k)) for k in usable}
            if names:
                of_query, of_gallery = (by_id.loc[s.ids, names].to_numpy(dtype=np.float64) for s in (asked, have))
                overlap, chance = label_overlap(queries, gallery, of_query, of_gallery, usable)
                measured |= {(OVERLAP, k): (overlap[k], chance) for k in usable}
            for (metric, k), (values, by_chance) in measured.items():
                if metric == OVERLAP and not np.isfinite(values).any():  # one side has no labels
                    continue
                found = patient_mean(values, asked.patients)
                means[system.name, direction, metric, k] = found
                rows.append(
                    {"system": system.name, "direction": direction, "metric": metric, "k": k, "value": found.value,
                     "ci_low": found.low, "ci_high": found.high,
                     "chance": patient_mean(by_chance, asked.patients).value,
                     "reason": None if np.isfinite(found.low) else "fewer than 2 patients: no interval"}
                )  # fmt: skip
    counts = {
        "radiographs": len(left.ids), "cts": len(right.ids), "patients": len(set(left.patients) | set(right.patients)),
        "queries_without_target": int((ranked[0]["targets"] == 0).sum() + (ranked[1]["targets"] == 0).sum()),
    }  # fmt: skip
    return RetrievalResult(rows, _differences(systems, means), pd.concat(ranked), list(dropped.values()), counts)


class _Side:
    """The exams of one side, each once, with what makes two exams belong together."""

    def __init__(self, joined: pd.DataFrame, column: str, by_id: pd.DataFrame) -> None:
        self.ids = list(dict.fromkeys(joined[column].astype(str)))
        self.patients = [str(patient) for patient in by_id.loc[self.ids, "patient_id"]]
        self.keys = self.patients


def _set_keys(left: _Side, right: _Side, joined: pd.DataFrame, match: Match) -> None:
    """Let exams that pairs connect, directly or through others, share a key (match ``scan``)."""
    if match == "patient":
        return
    parent = {name: name for name in (*(f"x {i}" for i in left.ids), *(f"c {i}" for i in right.ids))}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for cxr, ct in zip(joined["cxr_exam_id"], joined["ct_exam_id"], strict=True):
        parent[root(f"x {cxr}")] = root(f"c {ct}")
    left.keys = [root(f"x {exam}") for exam in left.ids]
    right.keys = [root(f"c {exam}") for exam in right.ids]


def _differences(
    systems: Sequence[Embeddings], means: Mapping[tuple[str, str, str, int], Mean]
) -> list[dict[str, Any]]:
    found = []
    for (name, direction, metric, k), mean in means.items():
        if name == systems[0].name:
            continue
        reference = means.get((systems[0].name, direction, metric, k))
        if reference is None or not np.array_equal(mean.patients, reference.patients):
            continue  # overlap of labels that are known for other exams
        value, low, high = difference(mean, reference)
        found.append(
            {"system": name, "reference": systems[0].name, "direction": direction, "metric": metric, "k": k,
             "value": value, "ci_low": low, "ci_high": high}
        )  # fmt: skip
    return found
