"""From caches and tables to what a method may learn from, and the cases it is scored on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from embedprior.cache import EmbeddingCache
from embedprior.cache.reader import drop_unembedded
from embedprior.cache.verify import open_verified
from embedprior.encoders.base import refuse_seen_patients
from embedprior.errors import BadInput
from embedprior.runs import hash_file, hash_of, seed_for
from embedprior.students.base import Cases, FitData, Fitted, Head, Stage
from embedprior.students.config import TrainStudentConfig
from embedprior.tables import (
    EXAM_REQUIRED,
    PAIR_REQUIRED,
    SPLIT_REQUIRED,
    check_exams,
    check_pairs,
    check_splits,
    fold_parts,
    label_column,
    read_table,
)
from embedprior.teachers.teacher import OneClass, load_head, refuse_seen_by_head, train_head

MODALITIES = {"drr": "DRR", "cxr": "CXR"}


@dataclass(frozen=True)
class Loaded:
    """One fold, in memory.

    Attributes:
        data: training stages (DRR–CT pairs first, where there are any) and the teacher.
        scored: labelled radiographs of the parts ``val`` and ``test``, CT included.
        inputs: hash of every input by name.
        encoder: key of the radiographs' cache (see ``encoders.encoder_key``).
        dropped: a record (``exam_id, stage, reason``) of each exam that was left out.
    """

    data: FitData
    scored: dict[str, Cases]
    inputs: dict[str, str]
    encoder: dict[str, Any]
    dropped: tuple[dict[str, str], ...] = ()


def load(config: TrainStudentConfig, needs_teacher: bool) -> Loaded:
    """Read caches and tables.

    Args:
        config: where they are.
        needs_teacher: load, or train, the CT head.

    Raises:
        BadInput: a missing file (the command that makes it is named), a broken table, an unknown label, an exam
            without an embedding of any exam, an empty part, or a teacher or encoder that saw a held-out one.
    """
    named = {
        name: getattr(config, name)
        for name in ("cxr_cache", "ct_cache", "pixels", "tokens", "exams", "pairs", "splits")
        if getattr(config, name) is not None
    }
    for path in named.values():
        if not Path(path).exists():
            raise BadInput(f"{path} does not exist. Next: {config.made_by}")
    exams = check_exams(read_table(Path(config.exams), EXAM_REQUIRED), config.exams)
    column = label_column(exams, config.label, config.exams)
    caches = {n: open_verified(p) for n, p in named.items() if n in ("cxr_cache", "ct_cache", "pixels", "tokens")}
    rows, dropped = _radiographs(config, exams)
    rows, unembedded = drop_unembedded(rows, _needed(caches, rows), config.pairs or config.exams)
    rows = rows.reset_index(drop=True)
    splits = check_splits(read_table(Path(config.splits), SPLIT_REQUIRED), config.splits)
    rows["part"] = rows["patient_id"].map(
        fold_parts(splits, config.design, config.resample, config.fold, config.splits)
    )
    held_out = set(rows.loc[rows["part"] == "test", "patient_id"])
    for cache in caches.values():
        refuse_seen_patients(f"the encoder of {cache.path.name}", cache.patients_seen, held_out, "test")
    labels = exams.set_index("exam_id")[column]

    def of(source: str, part: str) -> Cases:
        own = rows[(rows["modality"] == MODALITIES[source]) & (rows["part"] == part)]
        return _cases(own, labels, caches, source)

    stages = [Stage(of(s, "train"), of(s, "val")) for s in MODALITIES]
    kept = (*(s for s in stages[:-1] if len(s.train)), stages[-1])
    if not len(stages[-1].train):
        where = config.pairs or config.exams
        raise BadInput(f"{where}: no radiograph (CXR) of a patient whose part is 'train' in {config.splits}.")
    scored = {part: _known(of("cxr", part)) for part in ("val", "test")}
    inputs = {n: hash_of(caches[n].key) if n in caches else hash_file(Path(p)) for n, p in named.items()}
    head, reason = (None, "this method uses none")
    if needs_teacher:
        head, reason = _teacher(config, kept, held_out)
    scored = {p: c for p, c in scored.items() if len(c)}
    return Loaded(FitData(kept, head, reason), scored, inputs, caches["cxr_cache"].key, (*dropped, *unembedded))


def predictions_of(config: TrainStudentConfig, fitted: Fitted, scored: Mapping[str, Cases]) -> pd.DataFrame:
    """Return the scores of the labelled cases as a predictions table (see ``docs/formats.md``); empty without cases.

    Args:
        config: method, fold and seed.
        fitted: the method.
        scored: part → its cases.
    """
    frames = [
        pd.DataFrame(
            {
                "exam_id": list(cases.exam_ids), "patient_id": list(cases.patient_ids),
                "label": cases.label.astype(int), "method": config.method, "score": fitted.scores(cases),
                "fold": config.fold, "seed": config.seed, "split": part,
            }
        )
        for part, cases in scored.items()
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def pixels_of(cache: EmbeddingCache, exam_ids: list[str]) -> UInt8[np.ndarray, "cases height width"]:
    """Return square pictures of a ``pixels-128`` cache."""
    rows = cache.take(exam_ids)
    side = round(rows.shape[1] ** 0.5)
    return np.asarray(rows, dtype=np.uint8).reshape(len(rows), side, side)


def pixels_if_all(cache: EmbeddingCache, exam_ids: list[str]) -> UInt8[np.ndarray, "cases height width"] | None:
    """Return the pictures where the cache holds every one of them: CT volumes have none."""
    return pixels_of(cache, exam_ids) if set(exam_ids) <= set(cache.ids) else None


def tokens_of(cache: EmbeddingCache, exam_ids: list[str]) -> Float[np.ndarray, "cases tokens dim"]:
    """Return the tokens of a token cache; shorter sequences are filled up with NaN.

    Raises:
        BadInput: the cache holds no tokens.
    """
    if not cache.has_tokens:
        raise BadInput(f"{cache.path.name} holds one embedding an exam, no tokens. Next: embedprior embed --tokens")
    each = [np.asarray(cache.tokens(i), dtype=np.float32) for i in exam_ids]
    longest = max((len(t) for t in each), default=0)
    found = np.full((len(each), longest, each[0].shape[1] if each else 0), np.nan, dtype=np.float32)
    for row, tokens in zip(found, each, strict=True):
        row[: len(tokens)] = tokens
    return found


def _needed(caches: Mapping[str, EmbeddingCache], rows: pd.DataFrame) -> list[tuple[str, EmbeddingCache]]:
    needed = [("exam_id", caches["cxr_cache"])]
    if "ct_cache" in caches:
        needed.append(("ct_exam_id", caches["ct_cache"]))
    rows["of_cxr"] = rows["exam_id"].where(rows["modality"] == "CXR", "")
    return [*needed, *(("of_cxr", caches[name]) for name in ("pixels", "tokens") if name in caches)]


def _radiographs(config: TrainStudentConfig, exams: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Radiographs and DRRs with the CT of each, and what of the pair table is not in the exam table."""
    if config.pairs is None:
        rows = exams[exams["modality"] == "CXR"][["exam_id", "patient_id", "modality"]]
        return rows.assign(ct_exam_id="").reset_index(drop=True), []
    pairs = read_table(Path(config.pairs), PAIR_REQUIRED)
    absent = {c: ~pairs[c].isin(exams["exam_id"]) for c in ("cxr_exam_id", "ct_exam_id")}
    gone = absent["cxr_exam_id"] | absent["ct_exam_id"]
    if gone.all():
        check_pairs(pairs, exams, config.pairs)
    names = [str(name) for column, rows in absent.items() for name in pairs.loc[rows, column]]
    dropped = [{"exam_id": n, "stage": "pairs", "reason": f"not in {Path(config.exams).name}"} for n in names]
    pairs = check_pairs(pairs[~gone].reset_index(drop=True), exams, config.pairs)
    modality = exams.set_index("exam_id")["modality"]
    rows = pd.DataFrame(
        {
            "exam_id": pairs["cxr_exam_id"],
            "patient_id": pairs["patient_id"],
            "modality": pairs["cxr_exam_id"].map(modality),
            "ct_exam_id": pairs["ct_exam_id"],
        }
    )
    return rows, dropped


def _cases(rows: pd.DataFrame, labels: pd.Series, caches: dict[str, EmbeddingCache], source: str) -> Cases:
    ids, scans = rows["exam_id"].tolist(), rows["ct_exam_id"].tolist()
    paired = "ct_cache" in caches and (not scans or scans[0] != "")
    return Cases(
        exam_ids=ids,
        patient_ids=rows["patient_id"].tolist(),
        label=labels.loc[ids].to_numpy(dtype=np.float64, copy=True),
        cxr=caches["cxr_cache"].take(ids),
        ct=caches["ct_cache"].take(scans) if paired else None,
        ct_label=labels.loc[scans].to_numpy(dtype=np.float64, copy=True) if paired else np.full(len(ids), np.nan),
        source=source,
        tokens=tokens_of(caches["tokens"], ids) if "tokens" in caches and source == "cxr" else None,
        pixels=pixels_of(caches["pixels"], ids) if "pixels" in caches and source == "cxr" else None,
        ct_pixels=pixels_if_all(caches["pixels"], scans) if "pixels" in caches and paired else None,
    )


def _known(cases: Cases) -> Cases:
    return cases.take(np.flatnonzero(cases.known))


def _teacher(config: TrainStudentConfig, stages: tuple[Stage, ...], held_out: set[str]) -> tuple[Head | None, str]:
    if config.teacher is not None:
        folder = Path(config.teacher)
        refuse_seen_by_head(folder, sorted(held_out), "test")
        return load_head(folder), ""
    parts = [[s.train for s in stages], [s.val for s in stages]]
    if any(c.ct is None for p in parts for c in p):
        raise BadInput("this method needs a CT teacher, and no CT is given. Next: --ct-cache and --pairs, or --teacher")
    (train, train_y), (val, val_y) = (
        (np.concatenate([c.paired_ct() for c in p]), np.concatenate([c.ct_label for c in p])) for p in parts
    )
    try:
        seed, balance = seed_for(config.seed, "teacher"), config.budget.balance
        return train_head(train, train_y, val, val_y, config.teacher_fit, seed, balance=balance), ""
    except OneClass as error:
        return None, str(error)
