"""The commands of each recipe's README, one after the other, on a small folder of the published layout."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.ndimage import zoom

from embedprior.cli import main
from embedprior.prior.model import Prior
from tests.cohort.test_ct_sets import write_ct_rate, write_rspect
from tests.imaging.conftest import SPACING, STEP, chest

RECIPES = Path(__file__).parents[2] / "pretrain"
FENCE = re.compile(r"^```\n(.*?)^```", re.DOTALL | re.MULTILINE)
TINY = "--prior.network.preset tiny --prior.training.steps 4 --prior.training.batch 2"
SMALL = {
    r"embedprior drr ": "--size 64 --workers 1",
    r"embedprior embed .*reader=slices": "--option every=16",
    r"embedprior cohort split ": "--folds 2 --validation 0.4",
    r"accelerate launch train_prior\.py ": TINY,
    r"embedprior demo ": "--config quick --cohort.pretrain-train 24 --cohort.pretrain-val 8 --cohort.train 24 "
    "--cohort.val 12 --cohort.test 24 --student.steps 10 --prior.samples 2",
    r"python train_prior\.py ": "--prior.settings given --prior.network.preset tiny --prior.training.steps 10",
    r"embedprior generate ": "--samples 2 --steps 4",
}
"""What makes each command small; options given twice count as last given."""


def commands(recipe: str) -> list[str]:
    """Return the command lines of a README, in order, without their comments."""
    text = (RECIPES / recipe / "README.md").read_text(encoding="utf-8")
    joined = re.sub(r"\\\n\s*", " ", "".join(FENCE.findall(text)))
    return [re.sub(r"\s+#\s.*", "", line) for line in joined.splitlines() if line.strip()]


def run(line: str, places: Mapping[str, Path]) -> None:
    """Run one command line with its small settings; folders of the README stand for those of the test."""
    small = " ".join(more for pattern, more in SMALL.items() if re.match(pattern, line))
    words = [word.replace("pretrain/", f"{RECIPES}/") if word.endswith((".yaml", ".py")) else word
             for word in shlex.split(f"{line} {small}")]  # fmt: skip
    words = [str(places.get(word, word)) for word in words]
    if words[0] == "embedprior":
        code = main(words[1:])
    elif "train_prior.py" in words[:3]:
        code = main(["train", "prior", *words[words.index("train_prior.py") + 1 :]])
    else:
        assert words[0] == "python"
        sys.argv = words[1:]
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(words[1], run_name="__main__")
        code = ended.value.code
    # 3: exams that need attention, such as pictures that do not look like chests
    assert code in (0, 3), line


def write_export(root: Path, patients: int = 8) -> Path:
    """A hospital's export: a CT and a radiograph of each patient on one day, and a label table."""
    rows = []
    for index in range(patients):
        name, body = f"H{index:02d}", np.random.default_rng([9, index])
        coarse = zoom(body.normal(0, 250, (5, 6, 6)), np.array((40, 64, 64)) / (5, 6, 6), order=1)
        hu = chest()
        hu = np.where(hu > -300, np.clip(hu + coarse, -250, 1500), hu).astype(np.int16)
        image = sitk.GetImageFromArray(hu)
        image.SetSpacing((*SPACING, STEP))
        (root / "CT").mkdir(parents=True, exist_ok=True)
        (root / "CXR").mkdir(exist_ok=True)
        sitk.WriteImage(image, str(root / "CT" / f"{name}.nii.gz"))
        # pictures of one chest would count as copies of one another
        seen = zoom(body.normal(0, 1, (7, 7)), 256 / 7, order=1)
        grey = np.rint(255 * (seen - seen.min()) / np.ptp(seen)).astype(np.uint8)
        Image.fromarray(grey).save(root / "CXR" / f"{name}.png")
        for file in (f"CT/{name}.nii.gz", f"CXR/{name}.png"):
            rows.append((name, file, f"2021-03-{index + 1:02d}", index % 2))
    columns = ["PatientID", "File", "StudyDate", "effusion"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "labels.csv", index=False)
    return root


def build_cohort(root: Path) -> None:
    """From the export to COHORT, as a user would: built, and split."""
    export = write_export(root / "EXPORT")
    words = ["--ct", str(export / "CT"), "--cxr", str(export / "CXR"), "--labels", str(export / "labels.csv")]
    assert main(["cohort", "build", *words, "--label", "effusion=effusion", "--out", "COHORT"]) == 0
    split = ["--label", "effusion", "--design", "kfold", "--folds", "2", "--validation", "0.4"]
    assert main(["cohort", "split", "COHORT", *split]) == 0


def seen(folder: str) -> set[str]:
    record = json.loads((Path(folder) / "run.json").read_text())["patients_seen"]
    return {*record["train"], *record["val"]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    return tmp_path


def test_rspect_from_the_files_of_the_challenge_to_a_fine_tuned_prior(here: Path) -> None:
    places = {"RSPECT": write_rspect(here / "set", distinct=True)}
    build_cohort(here)
    lines = commands("rspect")
    assert sum("train_prior.py" in line for line in lines) == 2
    for line in lines:
        run(line, places)
    assert len(pd.read_csv("runs/rspect/drr/pairs.csv")) == 7  # of eight studies one is indeterminate
    first, last = Prior.load("runs/rspect/prior"), Prior.load("runs/rspect/finetuned")
    assert set(last.condition_scalers) == {"drr", "cxr"}
    np.testing.assert_array_equal(first.target_scaler.mean, last.target_scaler.mean)
    assert seen("runs/rspect/prior") < seen("runs/rspect/finetuned")
    own = pd.read_csv("COHORT/splits.csv")
    held_out = set(own.loc[(own["fold"] == 0) & (own["part"] == "test"), "patient_id"])
    assert held_out
    assert not held_out & seen("runs/rspect/finetuned")


def test_ct_rate_from_its_folders_to_a_fine_tuned_prior(here: Path) -> None:
    places = {"CT-RATE": write_ct_rate(here / "set", (40, 64, 64), patients=8)}
    build_cohort(here)
    lines = commands("ct_rate")
    assert sum("train_prior.py" in line for line in lines) == 3
    for line in lines:
        run(line, places)
    pairs = pd.read_csv("runs/ct_rate/drr/pairs.csv")
    # of eight patients in training the first has two scans, one of them twice, and the last no chest
    assert sorted(pairs["patient_id"]) == sorted(["train_1", *(f"train_{i}" for i in range(1, 8)), "valid_1"])
    splits = pd.read_csv("runs/ct_rate/drr/splits.csv")
    assert splits.groupby(["fold", "patient_id"])["part"].nunique().max() == 1
    drawn = pd.read_csv("runs/ct_rate/cohort/pairs.csv")
    assert sorted(drawn["patient_id"]) == sorted(pairs["patient_id"])
    assert set(Prior.load("runs/ct_rate/finetuned").condition_scalers) == {"drr", "cxr"}
    assert seen("runs/ct_rate/prior") < seen("runs/ct_rate/finetuned")


def test_a_held_out_patient_of_ones_own_is_kept_out_of_pretraining(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DRRs of one's own CTs may pretrain as well; but not those of patients whom the second stage holds out."""
    build_cohort(here)
    for line in (
        "embedprior drr --cohort COHORT/exams.csv --out runs/drr",
        "embedprior embed --cohort runs/drr/exams.csv --modality DRR --encoder efficientnet-lite0 "
        "--out COHORT/caches/drr",
        "embedprior embed --cohort COHORT/exams.csv --modality CXR --encoder efficientnet-lite0 "
        "--out COHORT/caches/cxr",
        "embedprior embed --cohort COHORT/exams.csv --modality CT --encoder efficientnet-lite0 --option reader=slices "
        "--out COHORT/caches/ct",
    ):
        run(line, {})
    config = (RECIPES / "rspect" / "finetune.yaml").read_text()
    for before, after in (
        ("init_from: runs/rspect/prior\n", ""), ("source: cxr", "source: drr"), ("caches/cxr", "caches/drr"),
        ("COHORT/exams.csv", "runs/drr/exams.csv"), ("COHORT/pairs.csv", "runs/drr/pairs.csv"),
    ):  # fmt: skip
        assert before in config
        config = config.replace(before, after)
    Path("drr.yaml").write_text(config)
    run("accelerate launch train_prior.py --config drr.yaml --out runs/by_fold_1 --fold 1", {})
    run("accelerate launch train_prior.py --config drr.yaml --out runs/by_fold_0 --fold 0", {})
    second = ["train", "prior", "--config", str(RECIPES / "rspect" / "finetune.yaml"), *TINY.split()]
    second += ["--out", "runs/second"]
    capsys.readouterr()
    assert main([*second, "--init-from", "runs/by_fold_1"]) == 2
    own = pd.read_csv("COHORT/splits.csv")
    held_out = set(own.loc[(own["fold"] == 0) & (own["part"] == "test"), "patient_id"])
    both = sorted(held_out & seen("runs/by_fold_1"))
    said = capsys.readouterr().err
    assert f"learned from {len(both)} patients of part 'test' (such as '{both[0]}')" in said
    assert not Path("runs/second").exists()
    assert main([*second, "--init-from", "runs/by_fold_0"]) == 0


def test_phantom_from_virtual_patients_to_generated_embeddings(here: Path) -> None:
    lines = commands("phantom")
    assert [line.split()[0] for line in lines] == ["embedprior", *["python"] * 3, *["embedprior"] * 2]
    for line in lines:
        run(line, {})
    assert Prior.load("runs/phantom-prior/finetune").encoders == Prior.load("runs/phantom-prior/pretrain").encoders
    assert (here / "runs/phantom-prior/generated/quality.json").is_file()
    assert seen("runs/phantom-prior/pretrain") < seen("runs/phantom-prior/finetune")
