from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from embedprior.cli import main
from embedprior.phantom import PhantomConfig, virtual_patient
from embedprior.runs import read_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One virtual CT, whole and cut, a radiograph without a view, and a damaged file."""
    folder = tmp_path_factory.mktemp("exams")
    patient = virtual_patient(PhantomConfig(), 0, 0)
    spacing = np.linalg.norm(patient.affine[:3, :3], axis=0)
    half = len(patient.volume) // 2
    for name, hu in (("whole", patient.volume), ("cut", patient.volume[:half])):
        np.savez(folder / f"{name}.npz", hu=hu.astype(np.int16), spacing_mm=spacing)
    grey = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    Image.fromarray(grey).save(folder / "x.png")
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8b no")
    return folder


def test_names_every_exam_with_its_findings(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet, table = tmp_path / "sheet.png", tmp_path / "findings.csv"
    assert (
        main(["images", "check", "--keep-names", str(folder), "--contact-sheet", str(sheet), "--out", str(table)]) == 3
    )
    said = capsys.readouterr().out
    assert "FAIL  broken.nii.gz  unreadable" in said
    assert "WARN  cut.npz" in said
    assert "ok    whole.npz" in said
    assert "1 FAIL" in said
    assert "(4 exams)" in said, "the one that failed is on the sheet too"
    assert str(folder) not in said
    findings = pd.read_csv(table).set_index("exam")
    assert "apex-cut" in set(findings.loc[["cut.npz"], "code"])
    assert "view-unknown" in set(findings.loc[["x.png"], "code"])
    assert Image.open(sheet).size[0] > 300
    assert set(read_json(tmp_path / ".checksums.json")["files"]) == {"sheet.png", "findings.csv"}


def test_profile_is_applied_and_good_exams_give_exit_code_0(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--profile", "slices_128", "--contact-sheet", str(tmp_path / "p.png")]
    assert main(["images", "check", "--keep-names", str(folder / "whole.npz"), *words]) == 0
    assert (tmp_path / "p.png").is_file()


@pytest.mark.parametrize(
    "words, reason",
    [
        (["gone"], "does not exist"),
        (["{folder}", "--profile", "pe_papr"], "Did you mean 'pe_paper'"),
        (["{folder}", "--contact-sheet", "x.jpg"], "writes a PNG"),
        (["{empty}"], "nothing to read"),
    ],
)
def test_bad_input_is_exit_code_2(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    (tmp_path / "empty").mkdir()
    filled = [w.format(folder=folder, empty=tmp_path / "empty") for w in words]
    assert main(["images", "check", *filled]) == 2
    assert reason in capsys.readouterr().err
