"""A cohort of embeddings with a planted signal: exams, pairs and ready caches, no picture anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from embedprior.cache import open_cache, write_cache
from embedprior.encoders.base import EncoderSpec

SITES = ("A", "B", "C")
TINY = {
    "network": {"preset": "tiny", "depth": 1, "dim": 16, "inner": 16},
    "training": {"steps": 5, "batch": 8, "variance_nodes": 4, "variance_draws": 1, "validation_bins": 2},
}
BASE: dict[str, Any] = {
    "title": "study of embeddings",
    "label": "nodule",
    "caches": {"cxr": "caches/cxr", "ct": "caches/ct"},
    "seeds": [1],
    "as_published": "a test",
    "fit": {"hidden": 8, "steps": 20, "validate_every": 10},
    "prior": {"samples": 2, "steps": 4, "training": TINY},
    "designs": [
        {"name": "kfold", "split": "kfold", "folds": 3, "validation": True, "methods": ["cxr-only", "ridge-head"]}
    ],
    "hypotheses": [{"name": "H1", "claim": "CT helps", "design": "kfold", "a": "ridge-head", "b": "cxr-only"}],
}


def spec(name: str, modality: str, dim: int, seen: tuple[str, ...] | None) -> EncoderSpec:
    return EncoderSpec(
        name=name, modality=modality, dim=dim, source="test", weights_sha256="none", licence="none", profile={},
        pooling="none", patients_seen=seen,
    )  # fmt: skip


def write_cohort(
    folder: Path, patients: int = 36, pretraining: int = 6, ct_only: int = 4, seen: tuple[str, ...] | None = None,
    seed: int = 0,
) -> Path:  # fmt: skip
    """Write exams, pairs and caches: ``patients`` with X-ray and CT, some with DRR and CT, some with CT only."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    exams, pairs, rows = [], [], {"cxr": {}, "ct": {}}
    for p in range(patients + pretraining + ct_only):
        label, patient = p % 2, f"p{p:02d}"
        ct = rng.normal(size=4) + 1.5 * label
        xray = ct[:3] + rng.normal(size=3)
        kind = "CXR" if p < patients else "DRR" if p < patients + pretraining else None
        exams.append((f"ct-{p}", patient, "CT", label, SITES[p % 3]))
        rows["ct"][f"ct-{p}"] = ct
        if kind:
            exams.append((f"x-{p}", patient, kind, label, SITES[p % 3]))
            rows["cxr"][f"x-{p}"] = xray
            pairs.append((f"pair-{p}", patient, f"x-{p}", f"ct-{p}", 0, 1))
    frame = pd.DataFrame(exams, columns=["exam_id", "patient_id", "modality", "label:nodule", "site"])
    frame.to_csv(folder / "exams.csv", index=False)
    columns = ["pair_id", "patient_id", "cxr_exam_id", "ct_exam_id", "offset_days", "label_agree"]
    pd.DataFrame(pairs, columns=columns).to_csv(folder / "pairs.csv", index=False)
    for name, modality, dim in (("cxr", "CXR", 3), ("ct", "CT", 4)):
        ids = list(rows[name])
        matrix = np.stack([rows[name][i] for i in ids]).astype(np.float32)
        encoder = spec(f"{name}-net", modality, dim, seen)
        write_cache(folder / "caches" / name, encoder, ids, ["0" * 64] * len(ids), matrix)
    return folder


def write_other(folder: Path, patients: int = 20, seen: tuple[str, ...] | None = None, ct: bool = True) -> Path:
    """A cohort like the study's, under other ids; without CT it has neither pairs nor a CT cache."""
    write_cohort(folder / "plain", patients, 0, 0, seen, seed=9)
    exams = pd.read_csv(folder / "plain" / "exams.csv")
    pairs = pd.read_csv(folder / "plain" / "pairs.csv")
    for frame, columns in ((exams, ["exam_id", "patient_id"]), (pairs, ["patient_id", "cxr_exam_id", "ct_exam_id"])):
        for column in columns:
            frame[column] = "b-" + frame[column]
    for name, modality, dim in (("cxr", "CXR", 3), ("ct", "CT", 4)):
        cache = open_cache(folder / "plain" / "caches" / name)
        if ct or name == "cxr":
            ids = ["b-" + i for i in cache.ids]
            write_cache(
                folder / "caches" / name, spec(f"{name}-net", modality, dim, seen), ids, ["0" * 64] * len(ids),
                cache.take(list(cache.ids)),
            )  # fmt: skip
    exams = exams if ct else exams[exams["modality"] == "CXR"]
    exams.to_csv(folder / "exams.csv", index=False)
    if ct:
        pairs.to_csv(folder / "pairs.csv", index=False)
    return folder


def change(folder: Path, **columns: Callable[[pd.DataFrame], Any]) -> None:
    """Change columns of the exam table."""
    frame = pd.read_csv(folder / "exams.csv")
    frame.assign(**columns).to_csv(folder / "exams.csv", index=False)


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("EMBEDPRIOR_HOME", raising=False)
    return write_cohort(tmp_path / "cohort")


@pytest.fixture
def run(tmp_path: Path, cohort: Path) -> Callable[..., tuple[int, Path]]:
    """Run ``study run`` (or another command) on the cohort with changed settings; returns the exit code and folder."""
    from embedprior.cli import main

    def call(
        *more: str, command: str = "run", out: str = "out", data: Path = cohort, **changes: Any
    ) -> tuple[int, Path]:
        config = tmp_path / "study.yaml"
        config.write_text(yaml.safe_dump({**BASE, **changes}))
        folder = tmp_path / out
        words = ["study", command, "--config", str(config), "--data", str(data), "--out", str(folder), *more]
        return main(words), folder

    return call


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Return the last line on standard error of a command that was refused."""
    assert code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error
