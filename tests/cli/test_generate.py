from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from embedprior.cache import open_cache, write_cache
from embedprior.cli import main
from embedprior.encoders.base import EncoderSpec
from embedprior.nn.config import FitConfig
from embedprior.prior.config import NetworkConfig, PriorConfig, ProcessConfig, TrainingConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.trainer import train_prior
from embedprior.runs.integrity import with_checksum
from embedprior.teachers.teacher import Teacher, TeacherHead, train_head

COUNT, TRAIN = 90, 50


def spec(name: str, modality: str, dim: int) -> EncoderSpec:
    return EncoderSpec(
        name=name, modality=modality, dim=dim, source="test", weights_sha256="none", licence="none", profile={},
        pooling="none",
    )  # fmt: skip


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 patients with radiograph and CT, caches, tables, a small prior and a head."""
    root, rng = tmp_path_factory.mktemp("cohort"), np.random.default_rng(0)
    condition = rng.standard_normal((COUNT, 4)).astype(np.float32)
    target = (condition[:, :3] + 0.5 * rng.standard_normal((COUNT, 3))).astype(np.float32)
    cxr, ct, people = ([f"{kind}{i}" for i in range(COUNT)] for kind in ("x", "c", "p"))
    write_cache(root / "cxr", spec("cxr", "CXR", 4), cxr, cxr, condition)
    write_cache(root / "ct", spec("ct", "CT", 3), ct, ct, target)
    pd.DataFrame(
        {"exam_id": [*cxr, *ct], "patient_id": people * 2, "modality": ["CXR"] * COUNT + ["CT"] * COUNT, "path": "x"}
    ).to_csv(root / "exams.csv", index=False)
    pd.DataFrame(
        {"pair_id": people, "patient_id": people, "cxr_exam_id": cxr, "ct_exam_id": ct, "offset_days": 0,
         "label_agree": True}
    ).to_csv(root / "pairs.csv", index=False)  # fmt: skip
    part = ["train"] * TRAIN + ["test"] * (COUNT - TRAIN)
    pd.DataFrame(
        {"patient_id": people, "group_id": people, "design": "fixed", "resample": 0, "fold": 0, "part": part}
    ).to_csv(root / "splits.csv", index=False)
    config = PriorConfig(
        network=NetworkConfig(preset="tiny", dim=16, depth=2, heads=2, head_dim=8, inner=16),
        process=ProcessConfig(timesteps=50),
        training=TrainingConfig(
            steps=150, batch=16, lr=5e-3, ema=0.9, validate_every=50, validation_bins=4, variance_nodes=8
        ),
    )
    slices = (slice(0, 40), slice(40, TRAIN))
    train, val = (PairArrays(condition[s], target[s], people[s], "cxr") for s in slices)
    train_prior(train, val, config, root / "prior", show_progress=False)
    head = train_head(
        target[:40], (target[:40, 0] > 0).astype(float), target[:0], np.empty(0), FitConfig(steps=20, hidden=4), 0
    )
    (root / "head").mkdir()
    head.save(root / "head")
    return root


def run(cohort: Path, out: Path, *more: str, reference: bool = True) -> int:
    words = ["--prior", str(cohort / "prior"), "--cache", str(cohort / "cxr"), "--out", str(out)]
    words += ["--steps", "4", "--samples", "5", "--halves", "4"]
    if reference:
        words += ["--reference", str(cohort / "ct"), "--pairs", str(cohort / "pairs.csv")]
    return main(["generate", *words, *more])


def test_it_writes_caches_scores_and_a_report_of_held_out_patients(cohort: Path, tmp_path: Path) -> None:
    code = run(cohort, tmp_path, "--splits", str(cohort / "splits.csv"), "--head", str(cohort / "head"))
    assert code == 0
    for name in ("sample", "mean", "one_step"):
        assert open_cache(tmp_path / name).matrix.shape == (COUNT, 3)
    assert len(pd.read_csv(tmp_path / "scores.csv")) == COUNT
    found = json.loads((tmp_path / "quality.json").read_text())
    assert found["patients"] == COUNT - TRAIN
    assert found["in_sample"] is False
    assert found["distances"]["halves"] == 4
    summary = (tmp_path / "summary.md").read_text()
    floor = found["distances"]["frechet"]["real"]
    assert f"| real (floor) | {floor['mean']:.3f} ± {floor['sd']:.3f} |" in summary
    assert "In-sample" not in summary
    assert "| chance | 0 |" in summary
    width, height = Image.open(tmp_path / "sampling.png").size
    assert width > 2 * height
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["status"] == "done"
    assert set(record["inputs"]) == {"prior", "cache", "head", "reference"}


def test_without_a_split_the_report_says_in_sample(cohort: Path, tmp_path: Path) -> None:
    assert run(cohort, tmp_path) == 0
    assert "**In-sample**" in (tmp_path / "summary.md").read_text()


def test_without_a_reference_there_is_no_report(cohort: Path, tmp_path: Path) -> None:
    assert run(cohort, tmp_path, "--exams", str(cohort / "exams.csv"), reference=False) == 0
    assert not (tmp_path / "quality.json").exists()
    assert not (tmp_path / "scores.csv").exists()


def test_a_head_that_saw_the_patients_of_the_report_is_refused(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = TeacherHead.load(cohort / "head")
    for seen, code in (["p3"], 0), (["p3", "p60"], 2):
        Teacher(head, "lesion", "key", {"train": seen}).save(tmp_path / "teacher")
        words = ["--splits", str(cohort / "splits.csv"), "--head", str(tmp_path / "teacher")]
        assert run(cohort, tmp_path / f"out{code}", *words) == code
    assert "trained on 1 patients of part 'test' (such as 'p60')" in capsys.readouterr().err


def test_a_prior_that_saw_the_patients_of_the_report_is_refused(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(cohort / "prior", tmp_path / "prior")
    words = ["--prior", str(tmp_path / "prior"), "--splits", str(cohort / "splits.csv")]
    for seen, code in (["p3"], 0), (["p3", "p60"], 2):
        record = with_checksum({"patients_seen": {"train": ["p1"], "val": seen}})
        (tmp_path / "prior" / "run.json").write_text(json.dumps(record))
        assert run(cohort, tmp_path / f"out{code}", *words) == code
    assert "was trained on 1 patients of part 'test' (such as 'p60')" in capsys.readouterr().err
    assert not (tmp_path / "out2").exists()


def test_a_dry_run_counts_and_writes_nothing(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cohort, tmp_path / "out", "--dry-run", "--limit", "30", reference=False) == 0
    text = capsys.readouterr().out
    assert text.startswith("30 exams, 5 samples of 4 steps each: about ")
    assert not (tmp_path / "out").exists()


def test_the_summary_says_when_the_encoders_knew_the_patients(cohort: Path, tmp_path: Path) -> None:
    flat = open_cache(cohort / "ct")
    known = spec("ct", "CT", 3).model_copy(update={"patients_seen": ("p60", "p61", "p2")})
    write_cache(tmp_path / "ct", known, flat.ids, flat.sources, flat.matrix)
    words = ["--reference", str(tmp_path / "ct"), "--pairs", str(cohort / "pairs.csv")]
    assert run(cohort, tmp_path / "out", *words, "--splits", str(cohort / "splits.csv"), reference=False) == 0
    assert "trained on 2 of these patients" in (tmp_path / "out" / "summary.md").read_text()


def test_a_second_run_draws_nothing(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cohort, tmp_path, reference=False) == 0
    capsys.readouterr()
    assert run(cohort, tmp_path, reference=False) == 0
    assert "90 exams, 0 of them drawn now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prior", "nowhere"], "holds no trained prior"),
        (["--pairs", "pairs.csv"], "needs both --reference and --pairs"),
        (["--source", "drr"], "unknown condition source 'drr'. Allowed: cxr"),
        (["--head", "nowhere"], "embedprior train teacher"),
        (["--guidance", "2"], "voids the variance table"),
        (["--steps", "51"], "Allowed: 1 to 50"),
        (["--exams", "{root}/exams.csv", "--source", "drr"], "no DRR exam"),
        (["--reference", "{root}/cxr", "--pairs", "{root}/pairs.csv"], "0 patients with a drawn radiograph"),
        (["--reference", "{root}/ct", "--pairs", "{root}/pairs.csv", "--limit", "19"], "Allowed: at least 20"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    words: list[str], message: str, cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(cohort, out, *(w.format(root=cohort) for w in words), reference=False) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
