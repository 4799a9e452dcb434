"""Somebody else's package, built and installed: its encoder, methods, renderer and cohort source in the commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from embedprior.imaging.image_files import write_npz
from embedprior.imaging.volume import Volume
from embedprior.phantom import PhantomConfig, virtual_patient

ROOT = Path(__file__).parents[1]
PACKAGE = Path(__file__).parent / "third_party"
CHECKS = """
import sys
from embedprior.testing import check_encoder, check_method, check_renderer, check_source
for name in ("class-means", "logit-distance"):
    print(len(check_method(name)))
print(len(check_encoder("edge-cells", random_init=True)), len(check_encoder("slab-means")))
print(len(check_encoder("edge-cells", random_init=True, reader="slices", profile="merlin", every=40)))
print(len(check_renderer("ray-sampling")), len(check_source("hospital", sys.argv[1])))
"""


@pytest.mark.parametrize("name", ["encoder", "ct_encoder", "method", "renderer", "source"])
def test_each_part_is_short_and_none_is_known_to_us(name: str) -> None:
    lines = (PACKAGE / "hospital" / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.strip()]) <= (25 if "encoder" in name else 40)
    ours = [p.read_text(encoding="utf-8") for p in (ROOT / "embedprior").rglob("*.py")]
    for word in ("edge-cells", "slab-means", "class-means", "ray-sampling", "read_hospital"):
        assert not any(word in text for text in ours)


@pytest.mark.parametrize("name", ["encoder", "ct_encoder"])
def test_the_documentation_shows_these_very_classes(name: str) -> None:
    text = (PACKAGE / "hospital" / f"{name}.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
    shown = "class " + text.partition("\nclass ")[2].replace("  # fmt: skip", "")
    assert shown.strip() in page


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Build the package, install it into a folder, and return an environment that sees it."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(PACKAGE, folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(folder / "site"), str(folder / "source")], check=True)
    shutil.rmtree(folder / "source")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder / "site"), str(ROOT)]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 36 radiographs in the hospital's layout: an effusion whitens the lower right."""
    folder, rng = tmp_path_factory.mktemp("hospital"), np.random.default_rng(0)
    for n in range(36):
        grey = rng.normal(0.4, 0.1, size=(80, 80))
        grey[50:, 50:] += 0.4 * (n % 2)
        Image.fromarray((255 * np.clip(grey, 0, 1)).astype(np.uint8)).save(folder / f"x{n:02d}.png")
    table = pd.DataFrame({"img": [f"x{n:02d}.png" for n in range(36)], "pid": [f"p{n}" for n in range(36)]})
    table["effusion"] = [n % 2 for n in range(36)]
    table.to_csv(folder / "list.tsv", sep="\t", index=False)
    return folder


def run(environment: dict[str, str], *words: object) -> str:
    command = [sys.executable, "-m", "embedprior", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_its_names_are_listed_and_its_classes_keep_every_promise(installed: dict[str, str], hospital: Path) -> None:
    assert {"edge-cells", "slab-means"} <= set(run(installed, "encoders").split())
    assert "class-means" in run(installed, "methods")
    assert "source: hospital-tools" in run(installed, "methods", "class-means")
    checks = [sys.executable, "-c", CHECKS, str(hospital)]
    done = subprocess.run(checks, capture_output=True, text=True, env=installed, check=False)
    assert done.returncode == 0, done.stderr
    assert min(int(count) for count in done.stdout.split()) >= 12


@pytest.mark.slow
def test_its_encoder_fills_a_cache(installed: dict[str, str], hospital: Path, tmp_path: Path) -> None:
    exams = pd.read_csv(hospital / "list.tsv", sep="\t").rename(columns={"img": "exam_id", "pid": "patient_id"})
    paths = [str(hospital / name) for name in exams["exam_id"]]
    exams = exams.drop(columns="effusion").assign(modality="CXR", path=paths)
    exams.to_csv(tmp_path / "exams.csv", index=False)
    words = (
        "--cohort",
        tmp_path / "exams.csv",
        "--encoder",
        "edge-cells",
        "--random-init",
        "--out",
        tmp_path / "cache",
    )
    run(installed, "embed", *words)
    run(installed, "cache", "export", tmp_path / "cache", "--out", tmp_path / "rows.npy")
    rows = np.load(tmp_path / "rows.npy")
    assert rows.shape == (36, 128)
    # the last cell of a channel lies in the lower right, which an effusion whitens
    lower = rows.reshape(36, 8, 16)[:, :, 15]
    assert np.abs(lower[1::2].mean(0) - lower[::2].mean(0)).max() > 3 * lower.std(0).min()


@pytest.mark.slow
def test_its_renderer_renders(installed: dict[str, str], tmp_path: Path) -> None:
    patient = virtual_patient(PhantomConfig(noise_hu=0), 3, 0)
    x, y, z = (float(v) for v in patient.affine[:3, 3])
    write_npz(Volume(patient.volume, (5.25, 5.25, 5.5), (x, y, z)), tmp_path / "ct.npz")
    pictures = {}
    for name in ("ray-sampling", "planesweep"):
        out = tmp_path / name
        words = ("--ct", tmp_path / "ct.npz", "--renderer", name, "--size", "64", "--out", out)
        run(installed, "drr", *words)
        (image,) = (out / "images").glob("*.png")
        pictures[name] = np.asarray(Image.open(image), dtype=float).ravel()
        assert f"{name}-1" in json.loads(image.with_suffix(".json").read_text())["code"]
    assert np.corrcoef(*pictures.values())[0, 1] > 0.999


@pytest.mark.slow
def test_its_source_encoder_and_method_make_a_study(installed: dict[str, str], hospital: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "title: effusion\nsource: hospital\nlabel: effusion\nseeds: [1]\n"
        "encoder: {name: edge-cells, options: {random_init: true}}\n"
        "as_published: a test\nfit: {hidden: 8, steps: 20, validate_every: 10}\nduplicates: report\n"
        "designs: [{name: kfold, cases: cxr, split: kfold, folds: 3, methods: [constant, class-means],"
        " reference: constant}]\n"
    )
    words = ("--config", tmp_path / "study.yaml", "--data", hospital, "--out", tmp_path / "out")
    run(installed, "study", "run", *words)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    own = table[(table["method"] == "class-means") & (table["split"] == "test")]
    assert len(own) == 36
    positive = own["label"] == 1
    assert own.loc[positive, "score"].min() > own.loc[~positive, "score"].max()
