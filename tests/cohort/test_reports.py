"""Report tables and their sections: text goes into the text files and the network, and nowhere else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.cli import main
from embedprior.cohort.reports import report_sections
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam

from ..encoders.test_text import bert  # noqa: F401

REPORT = """CT OF THE CHEST
INDICATION: cough.
Technique : contrast.

FINDINGS:
Large effusion. Comparison: none needed in a line.
IMPRESSIONS: Not given.
Findings: zebra.
CONCLUSION: no acute embolism."""


def test_sections_are_found_at_the_beginning_of_lines() -> None:
    assert report_sections(REPORT) == {
        "clinical": "cough.",
        "technique": "contrast.",
        "findings": "Large effusion. Comparison: none needed in a line.\nzebra.",
        "impression": "no acute embolism.",
    }
    assert report_sections("no heading at all") == {}


def test_an_encoder_reads_the_sections_asked_for(bert: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "r.txt").write_text(REPORT)
    (tmp_path / "only.txt").write_text("no acute embolism.")
    (tmp_path / "bare.txt").write_text("FINDINGS: zebra")
    whole, part = (create_encoder(f"hf-text:{bert}", **options) for options in ({}, {"sections": "impression"}))
    np.testing.assert_array_equal(part.read(tmp_path, "r.txt"), whole.read(tmp_path, "only.txt"))
    assert part.spec.profile["sections"] == ["impression"]
    assert "sections" not in whole.spec.profile  # caches of whole reports keep their key
    with pytest.raises(UnreadableExam, match=r"bare\.txt: no section impression in it"):
        part.read(tmp_path, "bare.txt")
    with pytest.raises(BadInput, match="Did you mean 'impression'"):
        create_encoder(f"hf-text:{bert}", sections="impresion")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    ids = ["train_1_a_1", "train_2_a_1", "train_3_a_1"]
    exams = pd.DataFrame(
        {"exam_id": ids, "patient_id": ["p1", "p2", "p3"], "modality": "CT", "path": "volumes/v.nii.gz"}
    )
    drrs = exams.assign(exam_id=exams["exam_id"] + "-drr", modality="DRR", path="d.png")
    pd.concat([exams, drrs]).to_csv(tmp_path / "exams.csv", index=False)
    pd.DataFrame(
        {"pair_id": ids, "patient_id": exams["patient_id"], "cxr_exam_id": drrs["exam_id"], "ct_exam_id": ids,
         "offset_days": 0, "label_agree": 1}
    ).to_csv(tmp_path / "pairs.csv", index=False)  # fmt: skip
    pd.DataFrame(
        {"VolumeName": [f"{i}.nii.gz" for i in ids] + ["valid_9_a_1.nii.gz"],
         "Findings_EN": ["zebra effusion", "Not given.", "", "zebra"],
         "Impressions_EN": ["zebra large", "zebra acute", "Not given.", "zebra"]}
    ).to_csv(tmp_path / "reports.csv", index=False)  # fmt: skip
    return tmp_path


def command(cohort: Path, *more: str) -> list[str]:
    words = ["cohort", "reports", "--table", str(cohort / "reports.csv"), "--key", "VolumeName"]
    words += ["--exams", str(cohort / "exams.csv"), "--pairs", str(cohort / "pairs.csv"), "--out", str(cohort / "new")]
    return [*words, "--section", "findings=Findings_EN", *more]


def test_a_table_of_reports_becomes_exams_of_the_cohort(cohort: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(command(cohort, "--section", "impression=Impressions_EN")) == 0
    out = cohort / "new"
    exams, pairs = (pd.read_csv(out / name, keep_default_na=False) for name in ("exams.csv", "pairs.csv"))
    reports = exams[exams["modality"] == "REPORT"]
    assert list(reports["exam_id"]) == ["train_1_a_1-report", "train_2_a_1-report"]
    assert list(reports["patient_id"]) == ["p1", "p2"]
    assert list(pairs["report_exam_id"]) == ["train_1_a_1-report", "train_2_a_1-report", ""]
    assert (out / exams["path"][0]).resolve() == (cohort / "volumes/v.nii.gz").resolve()
    text = out / reports["path"].iloc[0]
    assert report_sections(text.read_text()) == {"findings": "zebra effusion", "impression": "zebra large"}
    assert text.stat().st_mode & 0o077 == 0
    said = capfd.readouterr()
    assert "2 reports of 2 patients; 1 of 3 CTs have none" in said.out
    assert reports["sha256"].iloc[0] == hashlib.sha256(text.read_bytes()).hexdigest()  # embed compares it
    assert main(["verify", str(out)]) == 0
    whole = text.read_bytes()
    text.write_bytes(whole[:-2])
    assert main(["verify", str(out)]) == 3
    text.write_bytes(whole)
    others = [file for file in out.rglob("*") if file.is_file() and file.parent.name != "reports"]
    assert len(others) >= 4
    assert b"zebra" not in b"".join(file.read_bytes() for file in others) + (said.out + said.err).encode()


def test_tables_that_do_not_fit_are_refused_without_their_text(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(cohort, "--section", "impression=Impression_EN")) == 2
    assert "Did you mean 'Impressions_EN'" in capsys.readouterr().err
    assert main(command(cohort, "--section", "summary=Impressions_EN")) == 2
    assert "report section 'summary'. Allowed: findings" in capsys.readouterr().err
    rows = pd.read_csv(cohort / "reports.csv")
    pd.concat([rows, rows.iloc[:1].assign(Findings_EN="zebra other")]).to_csv(cohort / "reports.csv", index=False)
    assert main(command(cohort)) == 2
    said = capsys.readouterr().err
    assert "'train_1_a_1' has two rows of different text" in said
    assert "zebra" not in said
    assert not (cohort / "new").exists()
