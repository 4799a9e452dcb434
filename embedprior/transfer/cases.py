"""The cases that probes are trained and scored on: embeddings of several systems, several labels, parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from embedprior.cache import EmbeddingCache
from embedprior.cache.reader import drop_unembedded
from embedprior.cache.verify import open_verified
from embedprior.cohort.base import Cohort
from embedprior.cohort.duplicates import first_of_each
from embedprior.cohort.label_sets import read_labels
from embedprior.encoders.base import differing_field, refuse_seen_patients
from embedprior.errors import BadInput
from embedprior.study.inputs import Caches, External
from embedprior.study.leakage import Leakage, near_copies_outside, refuse_shared_files
from embedprior.tables import (
    EXAM_REQUIRED,
    PAIR_REQUIRED,
    SPLIT_REQUIRED,
    check_exams,
    check_pairs,
    check_splits,
    fold_parts,
    read_table,
)


@dataclass(frozen=True)
class Tables:
    """Where the tables of a cohort are, and which part of the split table counts.

    Attributes:
        exams: exam table with labels.
        splits: split table; None = all exams are of part ``test``.
        pairs: pair table, for what is read from the paired CT.
        design, resample, fold: of the split table.
    """

    exams: Path
    splits: Path | None = None
    pairs: Path | None = None
    design: str | None = None
    resample: int = 0
    fold: int = 0


@dataclass(frozen=True)
class MultiCases:
    """Radiographs with several labels, as several systems embed them.

    Attributes:
        exam_ids, patient_ids, parts: one a case; parts are ``train``, ``val`` or ``test``.
        labels: (cases, labels): 1, 0 or NaN.
        names: of the labels.
        systems: name → (cases, dim).
        ct: embeddings of the paired CTs, for methods that learn from CT; None without.
    """

    exam_ids: Sequence[str]
    patient_ids: Sequence[str]
    parts: Sequence[str]
    labels: Float[np.ndarray, "cases labels"]
    names: Sequence[str]
    systems: Mapping[str, Float[np.ndarray, "cases dim"]]
    ct: Float[np.ndarray, "cases ct_dim"] | None = None

    def __len__(self) -> int:
        return len(self.exam_ids)

    def rows(self, part: str) -> np.ndarray:
        """Return the row numbers of a part."""
        return np.flatnonzero(np.asarray(self.parts, dtype=object) == part)

    def take(self, rows: Sequence[int] | np.ndarray) -> MultiCases:
        """Return some of the cases."""
        index = np.asarray(rows, dtype=int)
        lists = {name: [getattr(self, name)[i] for i in index] for name in ("exam_ids", "patient_ids", "parts")}
        systems = {name: values[index] for name, values in self.systems.items()}
        ct = None if self.ct is None else self.ct[index]
        return replace(self, labels=self.labels[index], systems=systems, ct=ct, **lists)


def read_cases(
    systems: Mapping[str, str], tables: Tables, labels: str, *, oracles: Mapping[str, str] | None = None,
    ct_cache: str | None = None, dropped: list[dict[str, str]] | None = None,
) -> MultiCases:  # fmt: skip
    """Read caches and tables: the exams that every system embeds.

    Args:
        systems: name → folder of a cache of the radiographs.
        tables: of the cohort.
        labels: see ``cohort.label_sets.read_labels``.
        oracles: name → folder of a cache of the CTs, read at the CT that a pair sets beside the radiograph: a system
            that needs CT at inference.
        ct_cache: cache of the paired CTs, for methods that learn from CT.
        dropped: takes a record (``exam_id, stage, reason``) of each exam that a system lacks.

    Raises:
        BadInput: broken tables, unknown labels, no exam left, CTs without a pair table, or held-out patients whom an
            encoder was trained on.
    """
    exams = check_exams(read_table(tables.exams, EXAM_REQUIRED), str(tables.exams))
    where = str(tables.exams)
    opened = {name: _embeddings(folder) for name, folder in systems.items()}
    first = next(iter(opened.values()))
    kinds = set(exams.loc[exams["exam_id"].isin(first.ids), "modality"])
    rows = exams[exams["modality"].isin(kinds)]
    if rows.empty:
        raise BadInput(
            f"{where}: not one of its exams is in {first.path.name}. Next: check that both use the same ids."
        )
    rows, lost = drop_unembedded(rows, [("exam_id", cache) for cache in opened.values()], where)
    by_ct = {name: _embeddings(folder) for name, folder in (oracles or {}).items()}
    ct = None if ct_cache is None else _embeddings(ct_cache)
    beside = [cache for cache in (*by_ct.values(), ct) if cache is not None]
    if beside:
        if tables.pairs is None:
            raise BadInput(
                "a cache of CTs is read beside the radiographs. Next: --pairs FILE, which sets them together"
            )
        pairs = check_pairs(read_table(tables.pairs, PAIR_REQUIRED), exams, str(tables.pairs))
        of_exam = pairs.drop_duplicates("cxr_exam_id").set_index("cxr_exam_id")["ct_exam_id"]
        rows = rows.assign(ct_exam_id=rows["exam_id"].map(of_exam))
        unpaired = rows["ct_exam_id"].isna()
        lost += [{"exam_id": str(i), "stage": "pairing", "reason": "no CT"} for i in rows.loc[unpaired, "exam_id"]]
        if unpaired.all():
            raise BadInput(f"{tables.pairs}: not one of the radiographs has a CT.")
        rows, more = drop_unembedded(rows[~unpaired], [("ct_exam_id", cache) for cache in beside], where)
        lost += more
    parts = _parts(rows, tables)
    rows = rows[parts.notna().to_numpy()]
    parts = parts.dropna()
    if rows.empty:
        raise BadInput(f"{where}: not one of the embedded exams has a patient in {tables.splits}.")
    held_out = sorted(set(rows.loc[(parts == "test").to_numpy(), "patient_id"]))
    for cache in (*opened.values(), *beside):
        refuse_seen_patients(f"the encoder of {cache.path.name}", cache.patients_seen, held_out, "test")
    if dropped is not None:
        dropped += lost
    values = read_labels(rows, labels, where)
    ids = [str(i) for i in rows["exam_id"]]
    made = {name: cache.take(ids) for name, cache in opened.items()}
    ct_ids = [str(i) for i in rows["ct_exam_id"]] if beside else []
    made |= {name: cache.take(ct_ids) for name, cache in by_ct.items()}
    return MultiCases(
        ids, [str(p) for p in rows["patient_id"]], list(parts), values.to_numpy(dtype=np.float64), list(values.columns),
        made, None if ct is None else ct.take(ct_ids),
    )  # fmt: skip


def refuse_other_encoders(first: Mapping[str, str], second: Mapping[str, str]) -> None:
    """Check that the caches of two cohorts come from the same encoders, system by system.

    Raises:
        BadInput: other names, or caches whose keys differ; the field is named.
    """
    if list(first) != list(second):
        raise BadInput(f"the other cohort has systems {', '.join(second)}. Allowed: {', '.join(first)}, in this order.")
    for name in first:
        keys = [_embeddings(folders[name]).key for folders in (first, second)]
        differs = differing_field(*keys)
        if differs is not None:
            raise BadInput(
                f"system '{name}': {differs[0]} is {differs[1]} in one cohort and {differs[2]} in the other. "
                "Embeddings of different origin are never mixed. Next: embed both cohorts with one encoder"
            )


def near_copies_between(
    systems: Mapping[str, str], exams: Path, trained: Sequence[str], others: Mapping[str, str], to_exams: Path,
    scored: Sequence[str], pixels: tuple[str, str] | None = None, near_too: bool = True,
) -> Leakage:  # fmt: skip
    """Compare two cohorts as a study compares its own with an external one: files, embeddings, pictures.

    Args:
        systems, others: name → cache of the first and of the second cohort.
        exams, to_exams: their exam tables.
        trained: exams of the first cohort that train or choose.
        scored: exams of the second.
        pixels: their ``pixels-128`` caches, where there are any.
        near_too: refuse near-copies; else they are listed.

    Returns:
        Pairs that look alike, and what was compared.

    Raises:
        BadInput: an exam id of both cohorts, one file in both, or near-copies that are to be refused.
    """
    both = sorted(set(trained) & set(scored))
    if both:
        raise BadInput(
            f"{len(both)} exam ids stand in both cohorts (such as '{both[0]}'). Next: rename them in one of the two"
        )
    own, outside = _compared(exams, trained), _compared(to_exams, scored)
    pictures = [None, None] if pixels is None else [open_verified(folder) for folder in pixels]
    tables, compared = [], list[str]()
    for name, folder in systems.items():
        folders = (folder, others[name])
        mine, theirs = (Caches(_embeddings(f), pixels=p) for f, p in zip(folders, pictures, strict=True))
        external = External(to_exams.resolve().parent.name, outside, theirs, pd.DataFrame(), paired=False)
        refuse_shared_files(own, mine, external)
        found = near_copies_outside(own, mine, external, near_too)
        tables.append(found.duplicates)
        compared += [f"{name}: {text}" if len(systems) > 1 else text for text in found.compared]
    return Leakage(first_of_each(tables), tuple(compared))


def _compared(table: Path, exam_ids: Sequence[str]) -> Cohort:
    """Return the radiographs (or DRRs) of an exam table that are compared."""
    exams = check_exams(read_table(table, EXAM_REQUIRED), str(table))
    rows = exams[exams["exam_id"].astype(str).isin(set(exam_ids))].assign(modality="CXR")
    return Cohort(table.parent, rows.reset_index(drop=True), pd.DataFrame(columns=list(PAIR_REQUIRED)), ())


def _embeddings(folder: str) -> EmbeddingCache:
    cache = open_verified(folder)
    if cache.has_tokens:
        raise BadInput(f"{cache.path.name} holds tokens. Allowed: one embedding an exam.")
    return cache


def _parts(rows: pd.DataFrame, tables: Tables) -> pd.Series:
    if tables.splits is None:
        return pd.Series("test", index=rows.index)
    splits = check_splits(read_table(tables.splits, SPLIT_REQUIRED), str(tables.splits))
    parts = fold_parts(splits, tables.design, tables.resample, tables.fold, str(tables.splits))
    return rows["patient_id"].map(parts)
