"""A run's CTs in, a cohort of DRRs out: which volumes to render, the exam and pair tables, and a contact sheet."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from embedprior.errors import BadInput
from embedprior.imaging.contact_sheet import Tile, contact_sheet, picture_tile
from embedprior.imaging.dicom_header import DicomFiles, read_headers
from embedprior.imaging.drr.config import DrrConfig
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import Finding
from embedprior.imaging.readers import IMAGE_SUFFIXES
from embedprior.runs.files import temporary_beside
from embedprior.tables import LABEL_PREFIX, PAIR_REQUIRED, check_exams, check_pairs, write_table

VOLUME_SUFFIXES = (*IMAGE_SUFFIXES, ".npz", ".zip")
DICOM_SUFFIXES = (".dcm", ".ima", "")
COPIED = ("group_id", "site", "sex", "age", "source", "offset_days", "acquired_at")
"""Columns of the exam table that a DRR shares with its CT, beside the labels."""


@dataclass(frozen=True)
class CtExam:
    """One CT to render.

    Attributes:
        exam_id: of the table, or the path without its ending.
        patient_id: of the table, or the exam id: a header's id is never taken over.
        path: file or folder.
        columns: of the exam table, as far as its DRRs share them.
    """

    exam_id: str
    patient_id: str
    path: Path
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scanned:
    """A CT whose bytes have been hashed.

    Attributes:
        exam: the CT.
        digest: sha256 of its contents, the same for a zip and the folder it was packed from.
        same_as: exam id of an earlier CT that is the same series; empty for the first.
    """

    exam: CtExam
    digest: str
    same_as: str = ""


@dataclass(frozen=True)
class Rendered:
    """What came of one CT.

    Attributes:
        exam_id: of the CT.
        folder: of its images; None when it failed.
        complete: whether the scan holds both lungs.
        findings: of the CT's audit.
        reused: the images were there already.
        reason: why it failed; empty when it did not.
    """

    exam_id: str
    folder: Path | None
    complete: bool = False
    findings: tuple[Finding, ...] = ()
    reused: bool = False
    reason: str = ""


def image_name(pose: int) -> str:
    """Return the file name of one pose's image, without its ending."""
    return f"pose-{pose:03d}"


def find_ct(path: Path) -> list[CtExam]:
    """Return the CTs at a path: a volume file or zip, a folder of DICOM files, or a folder that holds such things.

    In a tree, a folder with DICOM files directly in it is one CT.

    Raises:
        BadInput: nothing there, nothing that is a volume by its name, or two files that would share one exam id.
    """
    if not path.exists():
        raise BadInput(f"no CT at {path}. Allowed: a volume file, a DICOM folder or zip, or a folder of them.")
    if path.is_file():
        if not path.name.lower().endswith((*VOLUME_SUFFIXES, ".dcm")):
            raise BadInput(f"{path.name} is no volume by its name. Allowed: {', '.join(VOLUME_SUFFIXES)}, or a folder.")
        return [_exam(path, path.parent)]
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    volumes = [p for p in files if p.name.lower().endswith(VOLUME_SUFFIXES)]
    folders = sorted({p.parent for p in files if p.suffix.lower() in DICOM_SUFFIXES and _is_dicom(p)})
    found = [_exam(p, path) for p in sorted([*volumes, *folders])]
    if not found:
        raise BadInput(f"no volume under {path}. Allowed: {', '.join(VOLUME_SUFFIXES)}, or folders of DICOM files.")
    _refuse_repeated(found, str(path))
    return found


def ct_of_table(table: Path) -> list[CtExam]:
    """Return the CT rows of an exam table, paths resolved against its folder.

    Raises:
        BadInput: a broken table, or one without CT.
    """
    from embedprior.tables import EXAM_REQUIRED, LABEL_PREFIX, check_exams, read_table

    exams = check_exams(read_table(table, EXAM_REQUIRED), str(table))
    rows = exams[exams["modality"] == "CT"]
    if rows.empty:
        raise BadInput(f"{table} has no exam of modality CT.")
    kept = [c for c in rows.columns if c in COPIED or c.startswith(LABEL_PREFIX)]
    return [
        CtExam(str(r["exam_id"]), str(r["patient_id"]), table.parent / str(r["path"]), {c: r[c] for c in kept})
        for r in rows.to_dict("records")
    ]


def scan(exams: Iterable[CtExam]) -> tuple[list[Scanned], list[dict[str, str]]]:
    """Hash every CT and find the series that is there twice: equal contents, or one DICOM series.

    Returns:
        The CTs in their order, and one record (``exam_id, stage, reason``) for each that can't be opened.
    """
    first: dict[str, str] = {}
    found, failures = [], []
    for exam in exams:
        try:
            names = identities(exam.path)
        except (UnreadableExam, OSError) as error:
            failures.append({"exam_id": exam.exam_id, "stage": "scan", "reason": reason_of(error, exam)})
            continue
        same = next((first[n] for n in names if n in first), "")
        for name in names:
            first.setdefault(name, same or exam.exam_id)
        found.append(Scanned(exam, names[0], same))
    return found, failures


def identities(path: Path) -> list[str]:
    """Return what a CT is known by: the sha256 of its contents and, for DICOM, of its one SeriesInstanceUID.

    Raises:
        UnreadableExam: not there, or a damaged zip.
    """
    if not path.exists():
        raise UnreadableExam(f"{path.name}: no such file or folder")
    if path.is_file() and not path.name.lower().endswith((".zip", ".dcm")):
        with path.open("rb") as handle:
            return [hashlib.file_digest(handle, "sha256").hexdigest()]
    total = hashlib.sha256()
    series: set[str] = set()
    with DicomFiles(path) as files:
        digests = []
        for name in files.names:
            with files.open(name) as handle:
                digests.append(hashlib.file_digest(handle, "sha256").digest())  # type: ignore[arg-type]
            series.update(header.series_uid for header in read_headers(files, name) if header.series_uid)
        for digest in sorted(digests):
            total.update(digest)
    # several series in one folder are told apart by the series rule, not here
    uid = [hashlib.sha256(next(iter(series)).encode()).hexdigest()] if len(series) == 1 else []
    return [total.hexdigest(), *uid]


def reason_of(error: Exception, exam: CtExam) -> str:
    """Return why a CT could not be used, without the folder it lies in."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
    return text.replace(str(exam.path.parent) + "/", "")


def _exam(path: Path, root: Path) -> CtExam:
    relative = path.relative_to(root).as_posix() if path != root else path.resolve().name
    lower = relative.lower()
    ending = next((s for s in sorted((*VOLUME_SUFFIXES, ".dcm"), key=len, reverse=True) if lower.endswith(s)), "")
    name = (relative[: len(relative) - len(ending)] if path.is_file() else relative).replace("/", "_")
    return CtExam(name, name, path)


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as handle:
        return handle.read(132)[128:] == b"DICM"


def _refuse_repeated(exams: Sequence[CtExam], where: str) -> None:
    seen: dict[str, Path] = {}
    for exam in exams:
        if exam.exam_id in seen:
            raise BadInput(
                f"{where}: {seen[exam.exam_id].name} and {exam.path.name} would both be exam '{exam.exam_id}'. "
                "Next: rename one, or give an exam table with --cohort."
            )
        seen[exam.exam_id] = exam.path


IMAGES = "images"


def drr_id(exam_id: str, view: str, pose: int) -> str:
    """Return the exam id of one image."""
    return f"{exam_id}_{view}{pose:03d}"


def publish(out: Path, exams: Sequence[CtExam], rendered: Sequence[Rendered], config: DrrConfig) -> int:
    """Put every image and its sidecar under ``out/images`` by exam id; returns how many images there are.

    Images are linked to the artifacts, or copied where the file system can't link.

    Raises:
        BadInput: two exam ids differ only in characters that a file name can't hold.
    """
    folder = out / IMAGES
    folder.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, str] = {}
    for exam, result in zip(exams, rendered, strict=True):
        if result.folder is None:
            continue
        for pose in range(config.poses):
            for ending in (".png", ".json"):
                name = _file_name(drr_id(exam.exam_id, config.view, pose)) + ending
                if wanted.setdefault(name, exam.exam_id) != exam.exam_id:
                    raise BadInput(f"exams '{wanted[name]}' and '{exam.exam_id}' would share the file {name}.")
                _place(result.folder / (image_name(pose) + ending), folder / name)
    for left in folder.iterdir():
        if left.suffix in (".png", ".json", ".tmp") and left.name not in wanted:
            left.unlink()
    return len(wanted) // 2


def write_tables(
    out: Path, exams: Sequence[CtExam], rendered: Sequence[Rendered], config: DrrConfig, incomplete: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write ``exams.csv`` and ``pairs.csv``, checked, and return them.

    Args:
        out: their folder; paths are relative to it.
        exams: the CTs.
        rendered: what came of each.
        config: the settings.
        incomplete: pair the images of scans without both whole lungs too. By default they are exams
            (``complete`` False) without a pair, so pretraining leaves them out.
    """
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for exam, result in zip(exams, rendered, strict=True):
        if result.folder is None:
            continue
        who = {"patient_id": exam.patient_id, **exam.columns, "complete": result.complete}
        path = Path(os.path.relpath(exam.path.resolve(), out.resolve())).as_posix()
        rows.append({"exam_id": exam.exam_id, **who, "modality": "CT", "path": path, "view": ""})
        for pose in range(config.poses):
            own = drr_id(exam.exam_id, config.view, pose)
            rows.append(
                {"exam_id": own, **who, "modality": "DRR", "path": f"{IMAGES}/{_file_name(own)}.png",
                 "view": config.view}
            )  # fmt: skip
            if result.complete or incomplete:
                labels = [v for c, v in exam.columns.items() if c.startswith(LABEL_PREFIX)]
                known = bool(labels) and not any(pd.isna(v) for v in labels)
                pairs.append(
                    {"pair_id": f"{own}|{exam.exam_id}", "patient_id": exam.patient_id, "cxr_exam_id": own,
                     "ct_exam_id": exam.exam_id, "offset_days": 0, "label_agree": 1 if known else float("nan")}
                )  # fmt: skip
    first = ["exam_id", "patient_id", "modality", "path", "view", "complete"]
    table = pd.DataFrame(rows)
    table = table[[*first, *(c for c in table.columns if c not in first)]] if rows else pd.DataFrame(columns=first)
    table = check_exams(table, "exams.csv")
    paired = check_pairs(pd.DataFrame(pairs, columns=list(PAIR_REQUIRED)), table, "pairs.csv")
    write_table(table, out / "exams.csv")
    write_table(paired, out / "pairs.csv")
    return table, paired


def _file_name(exam_id: str) -> str:
    """Exam ids are the user's own and may hold what a file name can't."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in exam_id)


def _place(source: Path, target: Path) -> None:
    if target.exists() and os.path.samefile(source, target):
        return
    temporary = temporary_beside(target)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


COLUMNS, MOST = 6, 240


def drr_sheet(rendered: Sequence[Rendered], config: DrrConfig, path: Path) -> int:
    """Write the images with what the audit of their CTs found, at most 240; returns how many are on the sheet."""
    tiles: list[Tile] = []
    for result in rendered:
        for pose in range(config.poses):
            if result.folder is None or len(tiles) == MOST:
                break
            with Image.open(result.folder / f"{image_name(pose)}.png") as image:
                grey = np.asarray(image, dtype=np.float32) / 65535
            detail = "lungs complete" if result.complete else "lungs not complete"
            tiles.append(picture_tile(drr_id(result.exam_id, config.view, pose), grey, result.findings, detail))
    if tiles:
        contact_sheet(tiles, path, COLUMNS)
    return len(tiles)
