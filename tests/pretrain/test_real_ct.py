"""The real-CT recipes: the CT is the unit, and the whole way runs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from embedprior.errors import BadInput
from embedprior.imaging.image_files import write_npz
from embedprior.imaging.volume import Volume
from embedprior.phantom import PhantomConfig, virtual_patient

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "pretrain" / "real_ct"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"real_ct_{name}", RECIPE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _chest(index: int) -> Volume:
    patient = virtual_patient(PhantomConfig(), 3, index)
    x, y, z = (float(v) for v in patient.affine[:3, 3])
    return Volume(patient.volume, (5.25, 5.25, 5.5), (x, y, z))


def _predictions(shift: dict[str, float], cts: int = 10) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = []
    for ct in range(cts):
        labels = np.repeat([1, 0], 6)
        for method, gap in shift.items():
            for seed in (0, 1):
                for k, score in enumerate(generator.normal(size=12) + gap * labels):
                    rows.append((f"{ct}x{k}", f"ct{ct}", labels[k], method, score, ct, seed, "test"))
    columns = ["exam_id", "patient_id", "label", "method", "score", "fold", "seed", "split"]
    return pd.DataFrame(rows, columns=columns)


def test_one_auc_a_ct_compared_over_cts() -> None:
    by_ct = _load("by_ct")
    table = by_ct.auc_by_ct(_predictions({"good": 3.0, "bad": 0.0}))
    assert table.shape == (10, 2)
    methods, claims = by_ct.compare(table, [("good", "bad")])
    difference = (table["good"] - table["bad"]).to_numpy()
    expected = stats.ttest_1samp(difference, 0.0).confidence_interval(0.95)
    (row,) = claims.to_dict("records")
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    # all ten better: 2 of the 1024 sign assignments are as extreme
    assert row["p"] == pytest.approx(2 / 1024)
    assert row["cts"] == 10
    assert list(methods["method"]) == ["good", "bad"]


def test_sign_flip_test_agrees_with_scipys_exact_permutation() -> None:
    by_ct = _load("by_ct")
    values = np.random.default_rng(1).normal(0.3, 1.0, 9)
    exact = stats.permutation_test(
        (values,), lambda v: abs(v.mean()), permutation_type="samples", n_resamples=np.inf, alternative="greater"
    )
    assert by_ct.sign_flip_p(values) == pytest.approx(exact.pvalue)


def test_a_ct_with_one_label_and_an_unknown_method_are_refused() -> None:
    by_ct = _load("by_ct")
    frame = _predictions({"good": 1.0})
    with pytest.raises(BadInput, match="Did you mean 'good'"):
        by_ct.compare(by_ct.auc_by_ct(frame), [("goods", "good")])
    frame.loc[frame["patient_id"] == "ct3", "label"] = 1
    with pytest.raises(BadInput, match="ct3"):
        by_ct.auc_by_ct(frame)


def test_slabs_run_from_base_to_apex_and_show_a_lesion() -> None:
    from embedprior.phantom.implant import ImplantConfig, implant

    slabs = _load("slabs")
    clean = slabs.slabs_of(_chest(0))
    assert clean.shape == (24, 160, 160)
    planted, where = implant(_chest(0), 3, ImplantConfig(radius_mm=(15.0, 16.0)))
    changed = np.abs(slabs.slabs_of(planted).astype(int) - clean).sum(axis=(1, 2))
    hit = np.flatnonzero(changed > 0.2 * changed.max())
    z = _chest(0).origin_mm[2] + 5.5 * np.arange(56)
    lungs = _chest(0).hu < -500
    inside = z[lungs[:, 20:45, 10:55].any(axis=(1, 2))]
    share = (where.centre_mm[2] - inside.min()) / (inside.max() - inside.min())
    assert hit.mean() / 23 == pytest.approx(share, abs=0.15)


def _run(*words: str, cwd: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("ct")
    for index in range(3):
        write_npz(_chest(index), folder / f"p{index}.npz")
    return folder


@pytest.mark.slow
def test_planted_cohort_goes_through_the_study_and_is_read_by_ct(chests: Path, tmp_path: Path) -> None:
    said = _run(
        str(RECIPE / "planted.py"), "--ct", str(chests), "--out", "cohort", "--lesions", "2", "--random-init",
        cwd=tmp_path,
    )  # fmt: skip
    assert "3 CTs with complete lungs" in said
    exams = pd.read_csv(tmp_path / "cohort" / "exams.csv")
    assert (exams[exams["modality"] == "CXR"].groupby("patient_id")["label:lesion"].sum() == 2).all()
    settings = (ROOT / "configs" / "study" / "real_ct_planted.yaml").read_text()
    short = settings.replace("folds: 14", "folds: 3").replace("steps: 200", "steps: 20")
    short = short.replace("seeds: [0, 1, 2]", "seeds: [0]\nas_published: a test of the way, not of the result")
    (tmp_path / "study.yaml").write_text(short)
    _run("-m", "embedprior", "study", "run", "--config", "study.yaml", "--data", "cohort", "--out", "out", cwd=tmp_path)
    table = _run(str(RECIPE / "by_ct.py"), "--predictions", "out/predictions.csv", cwd=tmp_path)
    assert "The unit is the CT: n = 3." in table


@pytest.mark.slow
def test_drrs_of_cts_pretrain_a_prior(chests: Path, tmp_path: Path) -> None:
    _run(
        "-m", "embedprior", "drr", "--ct", str(chests), "--config", "augmented", "--poses", "3", "--size", "64",
        "--out", "runs/real_ct", cwd=tmp_path,
    )  # fmt: skip
    said = _run(str(RECIPE / "prepare.py"), "--drr", "runs/real_ct", "--hold", "3", "--random-init", cwd=tmp_path)
    assert "9 pairs; CTs: 2 train, 1 val" in said
    trained = _run(
        str(ROOT / "train_prior.py"), "--config", str(RECIPE / "pretrain.yaml"), "--prior.training.steps", "10",
        cwd=tmp_path,
    )  # fmt: skip
    assert "from 6 pairs" in trained
