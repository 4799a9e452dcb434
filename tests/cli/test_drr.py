"""``embedprior drr`` as a user runs it."""

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

from embedprior.cli import main
from embedprior.cohort.sources import read_cohort
from embedprior.imaging.image_files import write_npz
from embedprior.imaging.volume import Volume
from embedprior.phantom import PhantomConfig, virtual_patient

SETTINGS = ["--size", "48", "--poses", "2", "--seed", "7", "--keep-names"]


def _chest(index: int) -> Volume:
    patient = virtual_patient(PhantomConfig(), 3, index)
    x, y, z = (float(v) for v in patient.affine[:3, 3])
    return Volume(patient.volume, (5.25, 5.25, 5.5), (x, y, z))


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two whole chests, one without its apex, a copy of the first, and a file that is no volume."""
    folder = tmp_path_factory.mktemp("ct")
    for index in range(2):
        write_npz(_chest(index), folder / f"p{index}.npz")
    write_npz(_chest(2).crop((slice(0, 30), slice(None), slice(None))), folder / "p2.npz")
    shutil.copy(folder / "p0.npz", folder / "q0.npz")
    (folder / "r.npz").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def done(chests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drr") / "out"
    assert main(["drr", "--ct", str(chests), "--out", str(out), *SETTINGS]) == 3
    return out


def outputs(out: Path) -> dict[str, bytes]:
    """Everything a later stage reads."""
    files = [out / "exams.csv", out / "pairs.csv", out / "contact_sheet.png", *sorted((out / "images").iterdir())]
    return {f.relative_to(out).as_posix(): f.read_bytes() for f in files}


def test_output_is_a_cohort_of_drrs_paired_with_their_ct(done: Path, chests: Path) -> None:
    cohort = read_cohort("tables", done)
    assert set(cohort.of("CT")["exam_id"]) == {"p0", "p1", "p2"}
    assert set(cohort.of("DRR")["exam_id"]) == {f"p{i}_PA00{k}" for i in range(3) for k in range(2)}
    ct = cohort.exams.set_index("exam_id").loc["p0", "path"]
    assert (done / ct).samefile(chests / "p0.npz")
    assert set(cohort.pairs["cxr_exam_id"]) == {f"p{i}_PA00{k}" for i in range(2) for k in range(2)}
    assert (cohort.pairs["patient_id"] == cohort.pairs["ct_exam_id"]).all()
    with Image.open(done / "images" / "p0_PA001.png") as image:
        assert image.size == (48, 48)
        assert image.mode.startswith("I")


def test_incomplete_lungs_are_rendered_marked_and_left_without_a_pair(done: Path, chests: Path, tmp_path: Path) -> None:
    exams = pd.read_csv(done / "exams.csv").set_index("exam_id")
    assert not exams.loc[["p2", "p2_PA000"], "complete"].any()
    assert exams.loc[["p0", "p1", "p1_PA001"], "complete"].all()
    assert set(pd.read_csv(done / "pairs.csv")["ct_exam_id"]) == {"p0", "p1"}
    words = ["drr", "--ct", str(chests / "p2.npz"), "--out", str(tmp_path / "o"), *SETTINGS]
    assert main([*words, "--include-incomplete"]) == 0
    assert len(pd.read_csv(tmp_path / "o" / "pairs.csv")) == 2


def test_failures_and_repeated_series_are_named(done: Path) -> None:
    failures = pd.read_csv(done / "failures.csv")
    assert list(failures["exam_id"]) == ["q0", "r"]
    summary = (done / "summary.md").read_text()
    assert "The same scan twice, rendered once: q0 = p0" in summary
    assert "Lungs not complete in 1: p2" in summary
    assert len(list((done / "artifacts" / "drr").iterdir())) == 3


def test_nothing_names_the_folder_the_data_lie_in(done: Path, chests: Path) -> None:
    for file in ("failures.csv", "summary.md", "images/p0_PA000.json", "run.json"):
        assert str(chests) not in (done / file).read_text()


def test_second_run_reuses_every_image_and_workers_change_nothing(done: Path, chests: Path, tmp_path: Path) -> None:
    before = outputs(done)
    stamps = {f: f.stat().st_mtime_ns for f in (done / "artifacts").rglob("*.png")}
    assert main(["drr", "--ct", str(chests), "--out", str(done), *SETTINGS]) == 3
    assert outputs(done) == before
    assert {f: f.stat().st_mtime_ns for f in (done / "artifacts").rglob("*.png")} == stamps
    assert "3 were there already" in (done / "summary.md").read_text()
    other = tmp_path / "out"
    assert main(["drr", "--ct", str(chests), "--out", str(other), *SETTINGS, "--workers", "2"]) == 3
    pictures = {name: data for name, data in outputs(other).items() if name.startswith("images/")}
    assert pictures == {name: data for name, data in before.items() if name.startswith("images/")}


def test_cohort_table_keeps_patients_and_labels(chests: Path, tmp_path: Path) -> None:
    pd.DataFrame(
        {"exam_id": ["ct-a", "ct-b"], "patient_id": ["ann", "bob"], "modality": "CT",
         "path": [str(chests / "p0.npz"), str(chests / "p1.npz")], "label:mass": [1, 0]}
    ).to_csv(tmp_path / "exams.csv", index=False)  # fmt: skip
    words = ["drr", "--cohort", str(tmp_path / "exams.csv"), "--out", str(tmp_path / "o"), "--size", "32"]
    assert main([*words, "--view", "LATERAL"]) == 0
    exams = pd.read_csv(tmp_path / "o" / "exams.csv").set_index("exam_id")
    assert exams.loc["ct-b_LATERAL000", "label:mass"] == 0
    assert exams.loc["ct-a_LATERAL000", "patient_id"] == "ann"
    assert (pd.read_csv(tmp_path / "o" / "pairs.csv")["label_agree"] == 1).all()


def test_match_style_changes_the_tone_and_says_by_how_much(chests: Path, tmp_path: Path) -> None:
    references = tmp_path / "xrays"
    references.mkdir()
    grey = np.random.default_rng(0).beta(2, 3, (6, 64, 64))
    for k in range(6):
        Image.fromarray((grey[k] * 200).astype(np.uint8)).save(references / f"{k}.png")
    words = ["drr", "--ct", str(chests / "p0.npz"), "--keep-names", "--out", str(tmp_path / "o"), "--size", "48"]
    assert main([*words, "--match-style", str(references)]) == 0
    assert "Tone fitted to 6 radiographs" in (tmp_path / "o" / "summary.md").read_text()
    said = json.loads((tmp_path / "o" / "images" / "p0_PA000.json").read_text())["appearance"]
    assert said["window"] is None
    assert said["levels"][1] < 0.95
    with Image.open(tmp_path / "o" / "images" / "p0_PA000.png") as image:
        shown = np.asarray(image)[8:40, 8:40] / 65535
    assert float(np.median(shown)) == pytest.approx(float(np.median(np.floor(grey * 200) / 255)), abs=0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --ct PATH or --cohort FILE"),
        (["--ct", "absent"], "no CT at absent"),
        (["--ct", ".", "--workers", "0"], "'--workers': 0. Allowed: 1 or more"),
        (["--ct", ".", "--renderer", "planesweap"], "Did you mean 'planesweep'"),
        (["--ct", "{ct}", "--match-style", "nowhere"], "no folder nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    words: list[str], message: str, chests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["drr", *(word.format(ct=chests) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_dry_run_counts_and_writes_nothing(chests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drr", "--ct", str(chests), "--out", str(tmp_path / "o"), "--poses", "8", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "5 CTs, 40 PA images" in printed
    assert "Memory: about 0.9 GB for each of 1 worker." in printed
    assert not (tmp_path / "o").exists()


def _command(chests: Path, out: Path) -> list[str]:
    return ["-m", "embedprior", "drr", "--ct", str(chests), "--out", str(out), *SETTINGS]


@pytest.mark.slow
def test_killed_runs_then_one_more_give_the_same_outputs(done: Path, chests: Path, tmp_path: Path) -> None:
    out, kills = tmp_path / "out", 0
    for polls in (1, 2, 3):
        process = subprocess.Popen([sys.executable, *_command(chests, out)], stderr=subprocess.DEVNULL)
        seen = 0
        while process.poll() is None and seen < polls:
            # the temporary folder of an artifact in the making: the worst moment
            seen += bool(list((out / "artifacts" / "drr").glob(".tmp-*"))) if out.exists() else 0
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    assert kills > 0
    assert subprocess.run([sys.executable, *_command(chests, out)], stderr=subprocess.DEVNULL).returncode == 3
    ours, theirs = outputs(out), outputs(done)
    # the CT's path in the table is relative to the output folder
    for found in (ours, theirs):
        found.pop("exams.csv")
    assert ours == theirs
    assert not [p for p in out.rglob("*") if p.name.startswith(".tmp")]


@pytest.mark.slow
def test_two_processes_share_the_cts_and_agree_with_one(done: Path, chests: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ran = subprocess.run(
        [*launch, *_command(chests, out)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    # rank 0 reports exit code 3, which the launcher turns into its own
    assert (out / "summary.md").is_file(), ran.stderr[-2000:]
    ours, theirs = outputs(out), outputs(done)
    for found in (ours, theirs):
        found.pop("exams.csv")
    assert ours == theirs
    assert "drr 1/2" in ran.stderr
    assert "drr 2/2" in ran.stderr


def test_one_scan_in_two_resolutions_is_one_group(chests: Path, tmp_path: Path) -> None:
    from embedprior.imaging.resampling import resample

    write_npz(_chest(0), tmp_path / "fine.npz")
    write_npz(resample(_chest(0), (6.5, 6.5, 6.5)), tmp_path / "coarse.npz")
    write_npz(_chest(1), tmp_path / "other.npz")
    assert main(["drr", "--keep-names", "--ct", str(tmp_path), "--out", str(tmp_path / "o"), "--size", "96"]) == 0
    exams = pd.read_csv(tmp_path / "o" / "exams.csv").set_index("exam_id")
    group = exams["group_id"]
    assert group["fine"] == group["coarse_PA000"]
    assert group["other"] == "other"
    assert "coarse = fine" in (tmp_path / "o" / "summary.md").read_text()
