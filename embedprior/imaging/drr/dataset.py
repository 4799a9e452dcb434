"""A cohort of DRRs: the images by exam id, the exam and pair tables, and a contact sheet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from embedprior.errors import BadInput
from embedprior.imaging.contact_sheet import Tile, contact_sheet, picture_tile
from embedprior.imaging.drr.config import DrrConfig
from embedprior.imaging.drr.render import Rendered, image_name
from embedprior.imaging.files import DICOM_SUFFIXES, printable
from embedprior.imaging.readers import VOLUMES, CtExam
from embedprior.runs.artifacts import MANIFEST
from embedprior.runs.files import read_record, temporary_beside
from embedprior.tables import LABEL_PREFIX, PAIR_REQUIRED, check_exams, check_pairs, write_table

IMAGES, PRIVATE = "images", "private"


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
        written = read_record(result.folder / MANIFEST, "files")["files"]
        path = _path_of(exam, out)
        rows.append({"exam_id": exam.exam_id, **who, "modality": "CT", "path": path, "view": ""})
        for pose in range(config.poses):
            own = drr_id(exam.exam_id, config.view, pose)
            rows.append(
                {"exam_id": own, **who, "modality": "DRR", "path": f"{IMAGES}/{_file_name(own)}.png",
                 "view": config.view, "sha256": written[f"{image_name(pose)}.png"]["sha256"]}
            )  # fmt: skip
            if result.complete or incomplete:
                labels = [v for c, v in exam.columns.items() if c.startswith(LABEL_PREFIX)]
                known = bool(labels) and not any(pd.isna(v) for v in labels)
                pairs.append(
                    {"pair_id": f"{own}|{exam.exam_id}", "patient_id": exam.patient_id, "cxr_exam_id": own,
                     "ct_exam_id": exam.exam_id, "offset_days": 0, "label_agree": 1 if known else float("nan")}
                )  # fmt: skip
    first = ["exam_id", "patient_id", "modality", "path", "view", "complete", "sha256"]
    table = pd.DataFrame(rows)
    table = table[[*first, *(c for c in table.columns if c not in first)]] if rows else pd.DataFrame(columns=first)
    table = check_exams(table, "exams.csv")
    paired = check_pairs(pd.DataFrame(pairs, columns=list(PAIR_REQUIRED)), table, "pairs.csv")
    write_table(table, out / "exams.csv")
    write_table(paired, out / "pairs.csv")
    return table, paired


def _path_of(exam: CtExam, out: Path) -> str:
    """Return where a CT is from ``out``: through a link by its id, where its own path may hold a patient's name.

    The links lie in a folder that only its owner can open. Where the system makes none, the path is left empty.
    """
    target = os.path.relpath(exam.path.resolve(), out.resolve())
    if exam.named:
        return printable(Path(target).as_posix())
    folder = out / PRIVATE
    folder.mkdir(mode=0o700, exist_ok=True)
    ending = "".join(exam.path.suffixes[-2:]) if exam.path.is_file() else ""
    kept = next((e for e in (*VOLUMES, *DICOM_SUFFIXES) if ending.lower().endswith(e)), "")
    link = folder / f"{exam.exam_id}{kept}"
    temporary = temporary_beside(link)
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(Path("..") / target)
    except OSError:
        return ""
    temporary.replace(link)
    return link.relative_to(out).as_posix()


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
