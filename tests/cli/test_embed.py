from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from embedprior.cache import open_cache
from embedprior.cli import main
from embedprior.errors import BadInput
from embedprior.runs.distributed import process_group

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Twelve radiographs, one of them damaged, and a CT that no encoder of pictures can read."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "cohort"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (30, 40), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "5.png").write_bytes(b"\x89PNG cut")
    exams = pd.DataFrame(
        {"exam_id": [f"00{i}" for i in range(12)], "patient_id": [f"p{i}" for i in range(12)], "modality": "CXR",
         "path": [f"{i}.png" for i in range(12)]}
    )  # fmt: skip
    exams.loc[11, "modality"] = "REPORT"
    exams.to_csv(folder / "exams.csv", index=False)
    return folder / "exams.csv"


def embed(cohort: Path, out: Path, *more: str) -> int:
    return main(["embed", "--cohort", str(cohort), "--encoder", "pixels-128", "--out", str(out), *more])


def test_embed_fills_a_cache_and_names_what_it_left_out(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert embed(cohort, out, "--batch-size", "4", "--workers", "1") == 3
    cache = open_cache(out)
    assert cache.ids == [f"00{i}" for i in range(11) if i != 5]
    assert cache.matrix.dtype == np.uint8
    failures = pd.read_csv(out / "failures.csv", dtype=str)
    assert failures["exam_id"].tolist() == ["005"]
    assert "10 of 11 exams" in capsys.readouterr().out
    record = json.loads((out / "run.json").read_text())
    assert record["uses"][0]["key"] == cache.path.name
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40).astype(np.uint8)).save(cohort.parent / "5.png")
    assert embed(cohort, out) == 0
    assert "1 were embedded now" in (out / "summary.md").read_text()
    assert not (out / "failures.csv").exists()


def test_table_is_checked_as_a_whole_and_read_in_pieces(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are counted, repeated exams found and the limit kept across the borders of pieces."""
    embed(cohort, tmp_path / "whole", "--limit", "8")
    monkeypatch.setattr("embedprior.cache.loading.PIECE", 3)
    assert embed(cohort, tmp_path / "pieces", "--limit", "8") == 3
    assert open_cache(tmp_path / "pieces").ids == [f"00{i}" for i in range(8) if i != 5]
    assert (tmp_path / "pieces" / "current").read_text() == (tmp_path / "whole" / "current").read_text()
    text = cohort.read_text()
    for before, after, message in (
        ("007,p7", "002,p7", "repeated 'exam_id' in line 9 ('002')"),
        ("009,p9", ",p9", "empty 'exam_id' in line 11"),
        ("CXR,10.png", "MR,10.png", "modality not one of CT, CXR, DRR, REPORT in line 12"),
    ):
        assert before in text
        cohort.write_text(text.replace(before, after))
        assert embed(cohort, tmp_path / "bad") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_dry_run_writes_nothing_and_counts(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed(cohort, tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "11 exams, 11 of them to embed" in said
    assert "0.2 MB to write" in said
    assert "in one process (measured on the first 8)" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--option", "geometry=crop"], "another profile.geometry: 'letterbox', not 'crop'"),
        (["--option", "geometry"], "Allowed: NAME=VALUE"),
        (["--weights", "x"], "has no option 'weights'"),
        (["--dtype", "float16"], "Allowed: uint8"),
        (["--tokens"], "gives no tokens"),
        (["--modality", "CT"], "no exam of modality CT; the table has CXR, REPORT"),
        (["--batch-size", "0"], "Allowed: 1 or more"),
        (["--workers", "-1"], "Allowed: 0 or more"),
        (["--processes", "2"], "2 processes were asked for, 1 started"),
        (["--encoder", "pixel-128"], "Did you mean 'pixels-128'"),
    ],
)
def test_what_can_be_refused_is_refused_before_anything_is_written(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    out = tmp_path / "out"
    embed(cohort, out)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert embed(cohort, out, *more) == 2
    assert message in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_reduced_precision_reports_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cohort: Path) -> None:
    pytest.importorskip("timm")
    from embedprior.encoders.pictures import VitB16

    monkeypatch.setattr(VitB16, "architecture", "vit_tiny_patch16_224")
    words = ["embed", "--cohort", str(cohort), "--encoder", "vit-b16", "--out", str(tmp_path / "out"), "--limit", "3"]
    assert main([*words, "--random-init", "--precision", "bf16", "--dtype", "float16"]) == 0
    error = json.loads((tmp_path / "out" / "run.json").read_text())["quantization_error"]
    assert error["what"] == "bf16 arithmetic and float16 storage"
    assert 0 < error["one_minus_cos_max"] < 1e-3
    assert "largest 1 − cos" in (tmp_path / "out" / "summary.md").read_text()


def test_cache_commands_tell_a_whole_cache_from_a_damaged_one(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    embed(cohort, out)
    shard = next(out.glob("*/shard-*"))
    assert main(["cache", "verify", str(out)]) == 0
    assert main(["cache", "diff", str(out), str(shard.parent)]) == 0
    assert main(["cache", "trace", str(out), "--cohort", str(cohort)]) == 0
    assert "10 source files are what they were, 0 are not" in capsys.readouterr().out
    assert main(["cache", "ls", str(tmp_path), "--unused"]) == 0
    assert "0 items" in capsys.readouterr().out
    (out / "run.json").unlink()
    main(["cache", "ls", str(tmp_path), "--unused"])
    assert "pixels-128@" in capsys.readouterr().out
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
    assert main(["cache", "verify", str(out)]) == 3
    assert shard.name in capsys.readouterr().out
    assert main(["cache", "verify", str(tmp_path)]) == 2


def test_caches_that_share_a_folder_are_all_in_use(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder's run.json tells of its last run; what earlier ones filled there must not be taken for garbage."""
    out = tmp_path / "out"
    embed(cohort, out)
    np.save(tmp_path / "a.npy", np.ones(3, np.float32))
    (tmp_path / "table.csv").write_text("exam_id\na\n")
    assert main(["cache", "import", str(tmp_path), "--table", str(tmp_path / "table.csv"), "--name", "theirs",
                 "--modality", "CXR", "--out", str(out), "--origin", "mine"]) == 0  # fmt: skip
    capsys.readouterr()
    shutil.move(out, tmp_path / "moved")
    main(["cache", "ls", str(tmp_path), "--unused"])
    assert "0 items" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_folder_that_cannot_be_is_refused(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / place
    assert embed(cohort, out) == 2
    assert f"error: {out}" in capsys.readouterr().err
    embed(cohort, tmp_path / "good")
    assert main(["cache", "export", str(tmp_path / "good"), "--out", str(out / "x.npy")]) == 2
    assert "Next: give a folder" in capsys.readouterr().err


def test_interrupt_is_one_line_and_what_was_finished_is_kept(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = (
        "import time; from embedprior.encoders.pixels import Pixels128 as P; from embedprior.cli import entry\n"
        "embed = P.embed; P.embed = lambda self, batch: time.sleep(0.3) or embed(self, batch); entry()"
    )
    words = ["embed", "--cohort", str(cohort), "--encoder", "pixels-128", "--out", str(out), "--batch-size", "1",
             "--shard-exams", "1", "--workers", "1"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    while len(list(out.glob("*/shard-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert said.rstrip().endswith("stopped. What was finished is kept. Next: run the same command again.")
    assert "Traceback" not in said
    kept = {path.name: path.stat().st_ino for path in out.glob("*/shard-*")}
    assert main(["cache", "verify", str(next(out.glob("pixels-128@*")))]) == 0
    # an interrupt may come between any two instructions: what it leaves, the next run clears
    assert main(words) == 3  # one picture is damaged
    assert not list(out.glob("*/.*"))
    assert {path.name: path.stat().st_ino for path in out.glob("*/shard-*") if path.name in kept} == kept


def test_export_and_import_go_round(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embed(cohort, tmp_path / "out")
    assert main(["cache", "export", str(tmp_path / "out"), "--out", str(tmp_path / "all.npy")]) == 0
    table, matrix = pd.read_csv(tmp_path / "all.csv", dtype={"exam_id": str}), np.load(tmp_path / "all.npy")
    assert main(["verify", str(tmp_path)]) == 0
    (tmp_path / "all.npy").write_bytes((tmp_path / "all.npy").read_bytes()[:-1])
    assert main(["verify", str(tmp_path)]) == 3
    assert "all.npy has" in capsys.readouterr().out
    (tmp_path / "each").mkdir()
    for row in table.itertuples():
        np.save(tmp_path / "each" / f"{row.exam_id}.npy", matrix[row.row].astype(np.float32))
    words = ["cache", "import", str(tmp_path / "each"), "--table", str(tmp_path / "all.csv"), "--name", "theirs",
             "--modality", "CXR", "--out", str(tmp_path / "in")]  # fmt: skip
    assert main([*words, "--origin", "grey values"]) == 0
    imported = open_cache(tmp_path / "in")
    np.testing.assert_array_equal(imported.take(table["exam_id"].tolist()), matrix)
    assert main([*words, "--origin", "something else"]) == 2
    assert "profile.origin" in capsys.readouterr().err
    assert main(["cache", "export", str(tmp_path / "out"), "--out", str(tmp_path / "all.h5")]) == 2


def test_encoders_are_listed_with_their_licences(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    assert main(["encoders"]) == 0
    said = capsys.readouterr().out
    assert "pixels-128" in said
    assert "Apache-2.0" in said


def test_fewer_processes_than_accelerate_was_told_is_an_error(tmp_path: Path) -> None:
    """On a CPU accelerate launch starts one process whatever it is told; only its command line shows the number."""
    program = "from embedprior.runs.distributed import process_group; process_group()"
    launcher = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', sys.argv[-1]]).returncode)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = tmp_path / "accelerate"
    script.write_text(launcher)
    command = [sys.executable, str(script), "--num_processes", "2", program]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "2 processes were asked for, 1 started" in ran.stderr
    with pytest.raises(BadInput, match="torchrun --nproc_per_node 3"):
        process_group(3)


@pytest.mark.slow
def test_two_processes_fill_the_cache_that_one_fills(cohort: Path, tmp_path: Path) -> None:
    from ..cache.conftest import tree

    words = ["-m", "embedprior", "embed", "--cohort", str(cohort), "--encoder", "efficientnet-lite0", "--random-init",
             "--batch-size", "2", "--shard-exams", "2"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, launcher in (("one", [sys.executable]), ("two", two)):
        command = [*launcher, *words, "--out", str(tmp_path / name), *(["--processes", "2"] if name == "two" else [])]
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        # torchrun turns every exit code into 1; one exam is damaged, so both leave failures.csv
        assert ran.returncode in (1, 3), ran.stderr
    one, both = (next((tmp_path / name).glob("efficientnet-lite0@*")) for name in ("one", "two"))
    assert len(list(both.glob("shard-*"))) == 6
    assert tree(one) == tree(both)
    left_out = [(tmp_path / name / "failures.csv").read_text() for name in ("one", "two")]
    assert left_out[0] == left_out[1]


@pytest.mark.slow
def test_two_processes_fill_a_token_cache_of_volumes_as_one_does(tmp_path: Path) -> None:
    """Six CTs of unlike length; the second run decodes none of them again, and both caches are the same to the byte."""
    import SimpleITK as sitk

    from embedprior.testing.encoders import made_up_exams

    from ..cache.conftest import tree

    pytest.importorskip("timm")
    whole = sitk.ReadImage(str(made_up_exams("CT", tmp_path)[0]))
    names = [f"{count}.nii.gz" for count in (40, 36, 32, 38, 34, 30)]
    for name in names:
        sitk.WriteImage(whole[:, :, : int(name[:2])], str(tmp_path / name))
    table = pd.DataFrame({"exam_id": names, "patient_id": names, "modality": "CT", "path": names})
    table.to_csv(tmp_path / "exams.csv", index=False)
    (tmp_path / "p.yaml").write_text("{spacing_mm: null, crop: none, windows: [wide], side: 32, fit: stretch}")
    words = ["-m", "embedprior", "embed", "--cohort", str(tmp_path / "exams.csv"), "--encoder", "efficientnet-lite0",
             "--random-init", "--option", "reader=slices", "--option", f"profile={tmp_path / 'p.yaml'}", "--tokens",
             "--batch-size", "2", "--shard-exams", "2", "--workers", "1",
             "--keep-volumes", str(tmp_path / "kept")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    kept = []
    for name, launcher in (("two", two), ("one", [sys.executable])):
        command = [*launcher, *words, "--out", str(tmp_path / name), *(["--processes", "2"] if name == "two" else [])]
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        kept.append({file.name: file.stat().st_mtime_ns for file in (tmp_path / "kept").rglob("*.safetensors")})
    assert len(kept[0]) == 6
    assert kept[0] == kept[1]
    one, both = (next((tmp_path / name).glob("efficientnet-lite0@*")) for name in ("one", "two"))
    assert len(list(both.glob("shard-*"))) == 3
    assert tree(one) == tree(both)


def _radiograph(path: Path, view: str, inverted: bool = False, **changes: Any) -> None:
    from ..imaging.test_radiographs import frontal, write

    stored = 4095 - frontal() if inverted else frontal()
    write(path, stored, ViewPosition=view, WindowCenter="2048", WindowWidth="4096", **changes)


def test_warnings_are_named_and_errors_left_out_as_the_audit_has_them(tmp_path: Path) -> None:
    _radiograph(tmp_path / "good.dcm", "PA")
    _radiograph(tmp_path / "dark.dcm", "PA", inverted=True)
    _radiograph(tmp_path / "frames.dcm", "PA", NumberOfFrames=2)
    table = pd.DataFrame({"exam_id": ["good", "dark", "frames"], "patient_id": "p", "modality": "CXR"})
    table["path"] = table["exam_id"] + ".dcm"
    table.to_csv(tmp_path / "exams.csv", index=False)
    words = ["embed", "--cohort", str(tmp_path / "exams.csv"), "--encoder", "pixels-128", "--out", str(tmp_path / "o")]
    assert main(words) == 3
    findings = pd.read_csv(tmp_path / "o" / "findings.csv")
    assert findings[["exam_id", "code"]].to_numpy().tolist() == [["dark", "inverted"]]
    failures = pd.read_csv(tmp_path / "o" / "failures.csv")
    assert failures["exam_id"].tolist() == ["frames"]
    assert "several-frames" in failures["reason"][0]
    assert main(words) == 3
    assert len(pd.read_csv(tmp_path / "o" / "findings.csv")) == 1, "what was embedded before keeps its warning"


def test_views_leave_out_the_others_by_table_and_header(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, view in (("pa", "PA"), ("ll", "LL"), ("none", "")):
        _radiograph(tmp_path / f"{name}.dcm", view)
    table = pd.DataFrame({"exam_id": ["pa", "ll", "none", "said"], "patient_id": "p", "modality": "CXR"})
    table["path"] = ["pa.dcm", "ll.dcm", "none.dcm", "pa.dcm"]
    table["view"] = ["", "", "", "AP supine"]
    table.to_csv(tmp_path / "exams.csv", index=False)
    words = ["embed", "--cohort", str(tmp_path / "exams.csv"), "--encoder", "pixels-128", "--out", str(tmp_path / "o")]
    assert main([*words, "--views", "PA"]) == 0
    assert "2 exams of other views are left out (1 AP, 1 LATERAL, 1 of unknown view)" in capsys.readouterr().err
    summary = (tmp_path / "o" / "summary.md").read_text()
    assert "2 of 2 exams are in the cache" in summary
    assert main([*words, "--views", "XX"]) == 2


def test_no_reason_or_summary_names_a_file_or_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "SURNAME_JANE_19610203"
    folder.mkdir()
    (folder / "SURNAME_broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    (folder / "SURNAME_cut.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).save(folder / "SURNAME.png")
    names = ["SURNAME_broken.png", "SURNAME_cut.dcm", "SURNAME_absent.png", "SURNAME.png"]
    table = pd.DataFrame({"exam_id": list("abcd"), "patient_id": list("pqrs"), "modality": "CXR",
                          "path": [f"{folder.name}/{name}" for name in names]})  # fmt: skip
    table.to_csv(tmp_path / "exams.csv", index=False)
    out = tmp_path / "out"
    words = ["embed", "--cohort", str(tmp_path / "exams.csv"), "--encoder", "pixels-128", "--out", str(out)]
    assert main(words) == 3
    failures = pd.read_csv(out / "failures.csv")
    assert sorted(failures["exam_id"]) == ["a", "b", "c"]
    assert failures["reason"].str.len().gt(5).all()
    named = [path.name for path in out.rglob("*") if path.is_file() and b"SURNAME" in path.read_bytes()]
    assert named == []
