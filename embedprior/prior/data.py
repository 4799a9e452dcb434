"""Paired embeddings: from caches and tables to arrays of one fold, checked before anything is learned from them."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from embedprior.cache import EmbeddingCache
from embedprior.cache.reader import drop_unembedded
from embedprior.cache.verify import open_verified
from embedprior.encoders.base import key8, refuse_seen_patients
from embedprior.errors import BadInput, nearest
from embedprior.prior.config import Source, TrainPriorConfig
from embedprior.runs import hash_file, hash_of
from embedprior.runs.files import read_record
from embedprior.runs.integrity import has_own_checksum
from embedprior.tables import (
    EXAM_REQUIRED,
    LABEL_PREFIX,
    PAIR_REQUIRED,
    SPLIT_REQUIRED,
    check_splits,
    fold_parts,
    label_columns,
    read_table,
)
from embedprior.teachers.teacher import refuse_seen_by_head

Array = NDArray[np.float32]
RUN = "run.json"
SEEN = "patients_seen"


@dataclass(frozen=True)
class PairArrays:
    """Embeddings of the same pairs, row by row.

    Attributes:
        condition: (N, Dc) radiograph embeddings, or (N, C, Dc) for C condition tokens (views, slices, patches).
        target: (N, D) CT embeddings.
        ids: N pair ids.
        source: which radiograph the condition is: "drr" or "cxr".
        condition_mask: (N, C) bool, True where a condition token is real; None when all are.
        labels: (N,) 1 / 0 / NaN for hard-label losses and the teacher's AUC; None when there are none.
        patients: N patient ids; None when every pair has its own patient.
        encoders: encoder keys of condition and target; empty when unknown.

    Example:
        >>> pairs = PairArrays(np.zeros((2, 6), np.float32), np.zeros((2, 8), np.float32), ["a", "b"], source="cxr")
        >>> len(pairs), pairs.tokens.shape
        (2, (2, 1, 6))
    """

    condition: Array
    target: Array
    ids: Sequence[str]
    source: Source
    condition_mask: NDArray[np.bool_] | None = None
    labels: NDArray[np.float64] | None = None
    encoders: tuple[str, str] = ("", "")
    patients: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> Array:
        """(N, C, Dc) condition tokens."""
        return self.condition if self.condition.ndim == 3 else self.condition[:, None]

    def check(self, name: str) -> None:
        """Refuse arrays that can't be trained on.

        Raises:
            BadInput: no rows, unequal lengths, wrong number of axes, a number that is not finite, or a label that
                is not 1, 0 or NaN.
        """
        rows = len(self.ids)
        if rows == 0:
            raise BadInput(f"{name} pairs: none given. Allowed: at least one.")
        if self.condition.ndim not in (2, 3) or self.target.ndim != 2:
            raise BadInput(
                f"{name} pairs: condition has shape {self.condition.shape}, target {self.target.shape}. "
                "Allowed: (N, Dc) or (N, C, Dc), and (N, D)."
            )
        for what, column in self._per_row().items():
            if len(column) != rows:
                raise BadInput(f"{name} pairs: {rows} ids, but {what} has {len(column)} rows. They must be equal.")
        if self.condition_mask is not None:
            if self.condition_mask.shape != self.tokens.shape[:2]:
                raise BadInput(
                    f"{name} pairs: condition_mask has shape {self.condition_mask.shape}, "
                    f"condition tokens {self.tokens.shape[:2]}. They must be equal."
                )
            empty = np.flatnonzero(~self.condition_mask.any(axis=1))
            if len(empty):
                raise BadInput(f"{name} pair '{self.ids[empty[0]]}' has no real condition token.")
        for what, array in (("condition", self.condition), ("target", self.target)):
            bad = np.flatnonzero(~np.isfinite(array.reshape(rows, -1)).all(axis=1))
            if len(bad):
                raise BadInput(
                    f"{name} pair '{self.ids[bad[0]]}': its {what} embedding holds a number that is not finite "
                    f"({len(bad)} such rows). Next: embed these exams again"
                )

        if self.labels is not None:
            odd = self.labels[~np.isin(self.labels, (0.0, 1.0)) & ~np.isnan(self.labels)]
            if len(odd):
                raise BadInput(f"{name} pairs: label {odd[0]:g} ({len(odd)} such). Allowed: 1, 0, NaN = unknown.")

    def patient_numbers(self) -> NDArray[np.int64]:
        """Return (N,) numbers that are equal where the patient is."""
        names = self.ids if self.patients is None else self.patients
        return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].astype(np.int64)

    def _per_row(self) -> dict[str, Sized]:
        columns: dict[str, Sized | None] = {
            "condition": self.condition,
            "target": self.target,
            "condition_mask": self.condition_mask,
            "labels": self.labels,
            "patients": self.patients,
        }
        return {name: column for name, column in columns.items() if column is not None}


Condition = tuple[Array, NDArray[np.bool_] | None]
"""(N, Dc) and None, or (N, C, Dc) padded with zeros and the (N, C) mask of what is real."""


def encoder_name(cache: EmbeddingCache) -> str:
    """Return what a prior calls the encoder of a cache: ``name@key``, as its folder does."""
    return f"{cache.key['encoder']}@{key8(cache.key)}"


def read_pairs(
    config: TrainPriorConfig, dropped: list[dict[str, str]] | None = None
) -> tuple[PairArrays, PairArrays, dict[str, str]]:
    """Return the training and validation pairs of the chosen fold, and a hash of every input by name.

    Held-out patients are not read. A pair with an exam that has no embedding, an unreadable one say, is left out.

    Args:
        config: where caches and tables are.
        dropped: takes a record (``exam_id, stage, reason``) of each exam without embedding.

    Raises:
        BadInput: a missing file (the command that makes it is named), a broken table, an empty part, no pair whose
            exams have embeddings, a column or label that is not there, or held-out patients whom an encoder, the
            teacher or the prior to start from learned from.
    """
    tables = {"pairs": config.pairs, "splits": config.splits}
    if config.exams is not None:
        tables["exams"] = config.exams
    for name in (config.condition_cache, config.target_cache, *tables.values()):
        if not Path(name).exists():
            raise BadInput(f"{name} does not exist. Next: {config.made_by}")
    pairs = read_table(Path(config.pairs), (*PAIR_REQUIRED, *config.views))
    exams = None if config.exams is None else read_table(Path(config.exams), EXAM_REQUIRED).set_index("exam_id")
    if exams is not None:
        pairs = _of_source(pairs, exams, config)
    splits = check_splits(read_table(Path(config.splits), SPLIT_REQUIRED), config.splits)
    parts = fold_parts(splits, config.design, config.resample, config.fold, config.splits)
    if config.init_from is not None:
        refuse_pretraining_on(Path(config.init_from), parts)
    condition, target = open_verified(config.condition_cache), open_verified(config.target_cache)
    held_out = [str(patient) for patient in parts[parts == "test"].index]
    if config.teacher is not None:
        refuse_seen_by_head(Path(config.teacher), held_out, "test")
    for cache in (condition, target):
        refuse_seen_patients(f"the encoder of {cache.path.name}", cache.patients_seen, held_out, "test")
    part_of = pairs["patient_id"].map(parts)
    needed = [*((view, condition) for view in config.views), ("ct_exam_id", target)]
    pairs, failures = drop_unembedded(pairs[part_of.isin(["train", "val"])], needed, config.pairs)
    if dropped is not None:
        dropped += failures
    part_of = part_of[pairs.index]
    rows = {part: pairs[part_of == part] for part in ("train", "val")}
    for part, chosen in rows.items():
        if chosen.empty:
            raise BadInput(f"{config.pairs}: no pair of a patient whose part is '{part}' in {config.splits}.")
    # Padded to one width: validation may hold the longest exam.
    views = pd.concat(rows.values())[list(config.views)]
    tokens, mask = conditions(condition, views, config.pairs)
    labels = None if exams is None or config.label is None else _labels(exams, config.label, str(config.exams))
    made = []
    start = 0
    for chosen in rows.values():
        here = slice(start, start + len(chosen))
        start = here.stop
        made.append(
            PairArrays(
                condition=tokens[here],
                target=np.asarray(target.take(list(chosen["ct_exam_id"])), dtype=np.float32),
                ids=list(chosen["pair_id"]),
                source=config.source,
                condition_mask=None if mask is None else mask[here],
                labels=None if labels is None else chosen[f"{config.label_of}_exam_id"].map(labels).to_numpy(float),
                encoders=(encoder_name(condition), encoder_name(target)),
                patients=list(chosen["patient_id"]),
            )
        )
    inputs = {"condition_cache": hash_of(condition.key), "target_cache": hash_of(target.key)}
    return made[0], made[1], inputs | {name: hash_file(Path(path)) for name, path in tables.items()}


def patients_seen(folder: Path) -> dict[str, list[str]] | None:
    """Return ``train`` and ``val`` → the patients whose pairs trained a prior, or chose its settings and its step.

    Those of the priors that it started from are among them.

    Args:
        folder: of the training.

    Returns:
        None where they are not recorded: in the prior of a study's fit, or one of an earlier version.

    Raises:
        BadInput: the record was changed since it was written.
    """
    file = folder / RUN
    if not file.is_file():
        return None
    record = read_record(file)
    if SEEN not in record:
        return None
    if not has_own_checksum(record):
        raise BadInput(f"{file} was changed since it was written. Next: train that prior again.")
    seen: dict[str, list[str]] = record[SEEN]
    return seen


def patients_of(train: PairArrays, val: PairArrays, init_from: Path | None) -> dict[str, list[str]]:
    """Return what ``patients_seen`` will read of a training on these pairs, from the prior in ``init_from`` on."""
    before = (patients_seen(init_from) if init_from is not None else None) or {}
    own = {"train": train.patients or (), "val": val.patients or ()}
    return {part: sorted({*map(str, ids), *before.get(part, ())}) for part, ids in own.items()}


def refuse_pretraining_on(folder: Path, parts: pd.Series) -> None:
    """Check that a prior to start from learned from nobody who is held out, nor from whom its weight is chosen on.

    Args:
        folder: of the prior.
        parts: part of every patient in the fold that is trained now.

    Raises:
        BadInput: it did; the patients are counted, and the first is named.
    """
    seen = patients_seen(folder)
    if seen is None:
        return
    for part, ids in (("test", {*seen["train"], *seen["val"]}), ("val", set(seen["train"]))):
        both = sorted(ids & set(parts[parts == part].index))
        if both:
            raise BadInput(
                f"the prior to start from, {folder}, learned from {len(both)} patients of part '{part}' (such as "
                f"'{both[0]}'). Next: train it without them, by this split table for instance; where they are other "
                "people under the same ids, rename them."
            )


def conditions(cache: EmbeddingCache, views: pd.DataFrame, where: str = "the pair table") -> Condition:
    """Return the condition of every row: one embedding, or the tokens of its views in the order of the columns.

    Args:
        cache: of embeddings (one token an exam) or of tokens (as many as the exam has).
        views: one column of exam ids per view; only the first must be filled.
        where: the table, for messages.

    Raises:
        BadInput: a row without its first view, or an exam without embedding.
    """
    columns = [views[name].astype(object).where(views[name].notna() & (views[name] != ""), None) for name in views]
    lacking = columns[0].isna()
    if lacking.any():
        raise BadInput(f"{where}: {int(lacking.sum())} pairs have no '{views.columns[0]}'. Every pair needs one.")
    if len(columns) == 1 and not cache.has_tokens:
        return np.asarray(cache.take(list(columns[0])), dtype=np.float32), None
    exams = [[str(exam) for exam in row if exam is not None] for row in zip(*columns, strict=True)]
    if cache.has_tokens:
        cache.rows([exam for row in exams for exam in row])
        return padded([np.concatenate([cache.tokens(exam) for exam in row]) for row in exams])
    return padded([np.asarray(cache.take(row)) for row in exams])


def padded(tokens: Sequence[NDArray[np.generic]]) -> tuple[Array, NDArray[np.bool_]]:
    """Return (N, C, D) float32 with zeros behind the rows of each (n_i, D) array, and the (N, C) mask of real rows.

    Example:
        >>> out, real = padded([np.ones((1, 2)), np.ones((3, 2))])
        >>> out.shape, real.tolist()
        ((2, 3, 2), [[True, False, False], [True, True, True]])
    """
    longest = max(len(rows) for rows in tokens)
    out = np.zeros((len(tokens), longest, tokens[0].shape[1]), dtype=np.float32)
    real = np.zeros(out.shape[:2], dtype=bool)
    for number, rows in enumerate(tokens):
        out[number, : len(rows)], real[number, : len(rows)] = rows, True
    return out, real


def _of_source(pairs: pd.DataFrame, exams: pd.DataFrame, config: TrainPriorConfig) -> pd.DataFrame:
    """Return the pairs whose radiograph is of the source: a pair table may hold DRRs beside radiographs."""
    modality = pairs[config.views[0]].map(exams["modality"])
    kept = pairs[modality == config.source.upper()]
    if kept.empty:
        have = ", ".join(f"{count} {name}" for name, count in modality.fillna("unknown").value_counts().items())
        raise BadInput(
            f"{config.pairs}: no pair whose '{config.views[0]}' is a {config.source.upper()} in {config.exams}; "
            f"it has {have}. Next: --source drr or --source cxr"
        )
    return kept


def _labels(exams: pd.DataFrame, label: str, where: str) -> pd.Series:
    names = label_columns(exams)
    if label not in names:
        allowed = ", ".join(names) or "(the table has none)"
        raise BadInput(f"{where}: label '{label}'. Allowed: {allowed}.{nearest(label, names)}")
    return exams[LABEL_PREFIX + label]
