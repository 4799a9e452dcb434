"""Every file that pydicom and pydicom-data test themselves with: read, refused with a reason, or skipped by name."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from embedprior.cli import main
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam, is_dicom
from embedprior.imaging.radiographs import read_radiograph
from embedprior.imaging.readers import discover, read_volume


def shipped() -> list[Path]:
    """The DICOM files of both packages, by content or by name."""
    import data_store
    import pydicom

    folders = [Path(str(pydicom.__file__)).parent / "data", Path(str(data_store.__file__)).parent]
    files = [f for folder in folders for f in sorted(folder.rglob("*")) if f.is_file() and not f.name.startswith(".")]
    return [f for f in files if f.suffix.lower() == ".dcm" or is_dicom(f)]


@pytest.mark.slow
def test_no_crash_and_no_file_without_an_outcome(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = shipped()
    if len(files) < 150:
        pytest.skip(f"{len(files)} files: pydicom-data is not installed whole")
    outcomes: Counter[str] = Counter()
    reasons: list[str] = []
    for number, file in enumerate(files):
        place = tmp_path / f"{number:03d}"
        place.mkdir()
        shutil.copy(file, place / file.name)
        for kind, reason in outcome(place):
            outcomes[kind] += 1
            reasons += [reason] if reason else []
    assert sum(outcomes.values()) >= len(files)
    assert outcomes["read radiograph"] > 5
    assert all(reason.strip() and str(tmp_path) not in reason.replace(f"{tmp_path}/", "", 1) for reason in reasons)
    # and all of them in one tree: no exam ends the run, and every file is in the table or under one that is
    assert main(["images", "check", "--keep-names", str(tmp_path), "--out", str(tmp_path / "found.csv")]) == 3
    listed = set(pd.read_csv(tmp_path / "found.csv")["exam"].astype(str))
    places = {name.split("/")[0] for name in listed}
    assert {f.name for f in tmp_path.iterdir() if f.is_dir()} <= places
    assert "Traceback" not in capfd.readouterr().err


def outcome(place: Path) -> list[tuple[str, str]]:
    """What came of a folder of one file: "read", "refused" or "skipped", with the reason."""
    try:
        found = discover(place)
    except BadInput as error:
        return [("skipped", str(error))] if "no image" in str(error) else []
    results = []
    for exam in found.exams:
        try:
            read_volume(exam.path) if exam.kind == "volume" else read_radiograph(exam.path)
            results.append((f"read {exam.kind}", ""))
        except UnreadableExam as error:
            results.append(("refused", str(error)))
    return results
