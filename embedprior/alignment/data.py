"""Triples for the alignment: the pairs of a cohort with the report of each CT, from caches and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from embedprior.alignment.config import MODALITIES, Side, TrainAlignmentConfig
from embedprior.alignment.model import Inputs
from embedprior.cache import EmbeddingCache
from embedprior.cache.reader import drop_unembedded
from embedprior.cache.verify import open_verified
from embedprior.encoders.base import refuse_seen_patients
from embedprior.errors import BadInput
from embedprior.runs import hash_file, hash_of
from embedprior.tables import (
    EXAM_REQUIRED,
    PAIR_REQUIRED,
    PARTS,
    SPLIT_REQUIRED,
    check_exams,
    check_pairs,
    check_splits,
    fold_parts,
    read_table,
)

REPORT_COLUMN = "report_exam_id"


@dataclass(frozen=True)
class Triples:
    """Radiograph, CT and, where there is one, report of the same cases, row by row.

    Attributes:
        patients: ids.
        groups: number of each case's group: patients that belong together, with all their exams.
        cxr: embeddings (cases, dim), pixels as bytes (cases, pixels), or a list of patch tokens.
        ct: embeddings (cases, dim).
        report: embeddings (cases, dim), zeros where there is none; None without reports.
        has_report: cases with a report.
    """

    patients: Sequence[str]
    groups: Int[np.ndarray, " cases"]
    cxr: Inputs
    ct: Float[np.ndarray, "cases ct_dim"]
    report: Float[np.ndarray, "cases report_dim"] | None
    has_report: Bool[np.ndarray, " cases"]

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def sides(self) -> dict[Side, Inputs]:
        """What there is of each side."""
        found: dict[Side, Inputs] = {"cxr": self.cxr, "ct": self.ct}
        return found if self.report is None else found | {"report": self.report}


@dataclass(frozen=True)
class Loaded:
    """What an alignment is trained on.

    Attributes:
        train, val: cases of different patients.
        caches: side → hash of its cache's key.
        inputs: hash of every input by name.
        dropped: a record (``exam_id, stage, reason``) of each exam that was left out.
        notes: sentences about the data, for the summary.
    """

    train: Triples
    val: Triples
    caches: dict[str, str]
    inputs: dict[str, str]
    dropped: tuple[dict[str, str], ...]
    notes: tuple[str, ...]


def load(config: TrainAlignmentConfig) -> Loaded:
    """Read caches and tables.

    Pairs are those of the table; a pair without report, or whose report has no embedding, stays and is masked.

    Raises:
        BadInput: a missing file, a broken table, a report of another patient, no pair of part ``train`` with
            embeddings, or held-out patients whom one of the encoders was trained on.
    """
    paths = [config.cxr_cache, config.ct_cache, config.exams, config.pairs, config.splits]
    for name in [*paths, *([config.report_cache] if config.report_cache else [])]:
        if not Path(name).exists():
            raise BadInput(f"{name} does not exist. Next: embedprior embed (caches), embedprior cohort (tables)")
    exams = check_exams(read_table(Path(config.exams), EXAM_REQUIRED), config.exams)
    pairs = check_pairs(read_table(Path(config.pairs), PAIR_REQUIRED), exams, config.pairs)
    splits = check_splits(read_table(Path(config.splits), SPLIT_REQUIRED), config.splits)
    parts = fold_parts(splits, config.design, config.resample, config.fold, config.splits)
    group_of = splits.drop_duplicates("patient_id").set_index("patient_id")["group_id"].astype(str)
    opened: dict[Side, EmbeddingCache] = {"cxr": open_verified(config.cxr_cache), "ct": open_verified(config.ct_cache)}
    if config.alignment.reads_reports and config.report_cache is not None:
        opened["report"] = open_verified(config.report_cache)
    pairs = pairs[pairs["patient_id"].isin(parts.index)]
    reports = _reports(pairs, exams, config.pairs) if "report" in opened else pd.Series("", index=pairs.index)
    pairs, failures = drop_unembedded(
        pairs, [("cxr_exam_id", opened["cxr"]), ("ct_exam_id", opened["ct"])], config.pairs
    )
    reports = reports.loc[pairs.index]
    if "report" in opened:
        _, lost = drop_unembedded(
            pd.DataFrame({REPORT_COLUMN: reports[reports != ""]}), [(REPORT_COLUMN, opened["report"])], config.pairs
        )
        failures += lost
        reports = reports.where(reports.isin(set(opened["report"].ids)), "")
    part_of = pairs["patient_id"].map(parts)
    held_out = sorted(set(pairs.loc[part_of == "test", "patient_id"]))
    for cache in opened.values():
        refuse_seen_patients(f"the encoder of {cache.path.name}", cache.patients_seen, held_out, "test")
    made = {
        part: _triples(pairs[part_of == part], reports[part_of == part], group_of, opened)
        for part in PARTS if part != "test"
    }  # fmt: skip
    if not len(made["train"]):
        raise BadInput(f"{config.pairs}: no pair of a patient whose part is 'train' in {config.splits}.")
    named = {"exams": config.exams, "pairs": config.pairs, "splits": config.splits}
    caches = {str(side): hash_of(cache.key) for side, cache in opened.items()}
    inputs = {f"{side}_cache": value for side, value in caches.items()}
    inputs |= {name: hash_file(Path(path)) for name, path in named.items()}
    return Loaded(made["train"], made["val"], caches, inputs, tuple(failures), tuple(_notes(made)))


def _reports(pairs: pd.DataFrame, exams: pd.DataFrame, where: str) -> pd.Series:
    """Return the report of every pair, an empty string where there is none.

    Raises:
        BadInput: no such column, no such exam, one that is no report, or one of another patient.
    """
    if REPORT_COLUMN not in pairs.columns:
        raise BadInput(
            f"{where}: no column '{REPORT_COLUMN}', which names the report of each pair. Next: embedprior cohort "
            "reports, or --alignment.alpha 0 --alignment.beta 0"
        )
    named = pairs[REPORT_COLUMN].fillna("").astype(str)
    by_id = exams.set_index("exam_id")
    for exam_id, patient in zip(named, pairs["patient_id"], strict=True):
        if not exam_id:
            continue
        if exam_id not in by_id.index or by_id.at[exam_id, "modality"] not in MODALITIES["report"]:
            raise BadInput(f"{where}: '{exam_id}' in {REPORT_COLUMN} is no exam of modality REPORT.")
        if by_id.at[exam_id, "patient_id"] != patient:
            raise BadInput(f"{where}: report '{exam_id}' belongs to another patient than its pair.")
    return named


def _triples(
    pairs: pd.DataFrame, reports: pd.Series, group_of: pd.Series, caches: dict[Side, EmbeddingCache]
) -> Triples:
    patients = [str(patient) for patient in pairs["patient_id"]]
    names = {"cxr": [str(i) for i in pairs["cxr_exam_id"]], "ct": [str(i) for i in pairs["ct_exam_id"]]}
    groups = np.unique([str(group_of[p]) for p in patients], return_inverse=True)[1].astype(np.int64)
    cxr = caches["cxr"]
    radiographs: Inputs = (
        [np.asarray(cxr.tokens(i)) for i in names["cxr"]] if cxr.has_tokens else cxr.take(names["cxr"])
    )
    has_report = (reports != "").to_numpy(dtype=bool)
    report = None
    if "report" in caches:
        report = np.zeros((len(pairs), int(caches["report"].key["dim"])), np.float32)
        report[has_report] = caches["report"].take(list(reports[has_report]))
    return Triples(patients, groups, radiographs, caches["ct"].take(names["ct"]), report, has_report)


def _notes(made: dict[str, Triples]) -> list[str]:
    notes = []
    for part, cases in made.items():
        groups = len(np.unique(cases.groups))
        notes.append(
            f"{part}: {len(cases)} pairs of {len(set(cases.patients))} patients in {groups} groups, "
            f"{int(cases.has_report.sum())} with a report"
        )
    return notes
