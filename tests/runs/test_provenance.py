from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedprior.cache import build_cache, open_cache
from embedprior.cache.provenance import changed_sources, listing, missing_runs, trace
from embedprior.errors import BadInput
from embedprior.runs import Run, artifact, read_json, write_json

from ..cache.conftest import MeanEncoder, make_exams


def study(out: Path, root: Path, exams: object, artifacts: Path) -> None:
    """A run that fills a cache, makes one artifact from it and a second one from the first."""
    run = Run(out, "study run", {}, 0, {"data": "d" * 64})
    build_cache(exams, root, MeanEncoder(), artifacts / "caches")  # type: ignore[arg-type]

    def teacher(work: Path) -> None:
        open_cache(artifacts / "caches")
        (work / "head").write_text("x")

    def prior(work: Path) -> None:
        artifact("teacher", {"k": "1"}, {}, "teacher-1", teacher, artifacts)

    artifact("prior", {"k": "2"}, {}, "prior-1", prior, artifacts)
    run.finish("done", [])


def test_a_run_is_followed_back_to_its_source_files(tmp_path: Path) -> None:
    exams = make_exams(tmp_path / "data", 4)
    study(tmp_path / "run", tmp_path / "data", exams, tmp_path / "run" / "artifacts")
    text = "\n".join(trace(tmp_path / "run"))
    for words in ("embedprior study run", "cache means@", "4 exams, each with the sha256", "prior ", "teacher "):
        assert words in text
    assert changed_sources(tmp_path / "run", exams, tmp_path / "data") == (4, [])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "data" / "2.png")
    (tmp_path / "data" / "3.png").unlink()
    same, other = changed_sources(tmp_path / "run", exams, tmp_path / "data")
    assert same == 2
    assert ["has another file" in line for line in other] == [True, False]
    with pytest.raises(BadInput, match=r"run\.json does not exist"):
        trace(tmp_path / "data")


def test_a_reused_artifact_still_leads_back(tmp_path: Path) -> None:
    """The second run reuses the prior, and so never opens teacher or cache itself: the artifacts' own notes lead on."""
    exams, home = make_exams(tmp_path / "data", 4), tmp_path / "home" / "artifacts"
    study(tmp_path / "first", tmp_path / "data", exams, home)
    run = Run(tmp_path / "second", "evaluate", {}, 0, {})
    artifact("prior", {"k": "2"}, {}, "prior-1", lambda work: None, home)
    run.finish("done", [])
    assert [use["kind"] for use in read_json(tmp_path / "second" / "run.json")["uses"]] == ["prior"]
    text = "\n".join(trace(tmp_path / "second"))
    assert "teacher " in text
    assert "cache means@" in text
    shutil.move(tmp_path / "home", tmp_path / "elsewhere")
    assert "no longer there" in "\n".join(trace(tmp_path / "second"))


def test_unused_is_what_no_living_run_needs(tmp_path: Path) -> None:
    exams, home = make_exams(tmp_path / "data", 4), tmp_path / "home" / "artifacts"
    study(tmp_path / "elsewhere", tmp_path / "data", exams, home)
    artifact("teacher", {"k": "old"}, {}, "teacher-0", lambda work: None, home)
    (home / "teacher" / ".tmp-0123-99").mkdir()
    unused = {(item.kind, item.path.name) for item in listing(home) if not item.users}
    assert {kind for kind, _ in unused} == {"teacher", "leftover"}
    assert len([item for item in listing(home) if item.users]) == 3


def test_what_a_run_that_is_gone_used_is_kept_until_its_note_is_deleted(tmp_path: Path) -> None:
    """Whoever finds no run there can't tell a deleted one from one that was moved: nothing it used is listed."""
    exams, home = make_exams(tmp_path / "data", 4), tmp_path / "home" / "artifacts"
    study(tmp_path / "elsewhere", tmp_path / "data", exams, home)
    assert missing_runs(home) == []
    shutil.move(tmp_path / "elsewhere", tmp_path / "moved")
    assert len([item for item in listing(home) if item.users]) == 3
    (line,) = missing_runs(home)
    note = next((home / ".runs").glob("*.json"))
    assert line.startswith("run ../../elsewhere is no longer there")
    assert note.name in line
    shutil.move(tmp_path / "moved", tmp_path / "home" / "moved")
    assert missing_runs(tmp_path / "home") == []  # found again under the folder that is asked about
    assert len([item for item in listing(tmp_path / "home") if item.users]) == 3
    shutil.rmtree(tmp_path / "home" / "moved")
    note.unlink()
    assert not any(item.users for item in listing(home))


@pytest.mark.parametrize("move", ["moved", "copied", "copied deeper"])
def test_a_run_folder_is_moved_or_copied_with_its_artifacts(tmp_path: Path, move: str) -> None:
    exams, old, new = make_exams(tmp_path / "data", 4), tmp_path / "old", tmp_path / "new"
    study(old, tmp_path / "data", exams, old / "artifacts")
    before, text = len(listing(old)), trace(old)
    if move == "moved":
        old.rename(new)
    else:
        new = tmp_path / "a" / "b" / "new" if move == "copied deeper" else new
        shutil.copytree(old, new)
        shutil.rmtree(old)
    assert len([item for item in listing(new) if item.users]) == before == 3
    assert trace(new)[1:] == text[1:]
    assert changed_sources(new, exams, tmp_path / "data") == (4, [])


def test_a_run_moved_alone_still_holds_what_it_used_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exams, home = make_exams(tmp_path / "data", 4), tmp_path / "home" / "artifacts"
    monkeypatch.setenv("EMBEDPRIOR_HOME", str(tmp_path / "home"))
    study(tmp_path / "run", tmp_path / "data", exams, home)
    (tmp_path / "far" / "away").mkdir(parents=True)
    shutil.move(tmp_path / "run", tmp_path / "far" / "away" / "run")
    assert "no longer there" not in "\n".join(trace(tmp_path / "far" / "away" / "run"))
    shutil.move(tmp_path / "far" / "away" / "run", home / "run")
    assert len([item for item in listing(home) if item.users]) == 3


@pytest.mark.parametrize("record", ["run.json", "artifact.json", "unfinished"])
def test_what_can_not_be_resolved_counts_as_used(tmp_path: Path, record: str) -> None:
    exams, out = make_exams(tmp_path / "data", 4), tmp_path / "run"
    study(out, tmp_path / "data", exams, out / "artifacts")
    if record == "unfinished":
        content = {k: v for k, v in read_json(out / "run.json").items() if k not in ("uses", "keeps")}
        write_json(out / "run.json", content)
    else:
        path = out / record if record == "run.json" else next((out / "artifacts" / "prior").glob("*/artifact.json"))
        path.write_text("{")
    assert all(item.users for item in listing(out))


def test_no_absolute_path_is_in_the_records_of_a_run(tmp_path: Path) -> None:
    exams, home = make_exams(tmp_path / "data", 4), tmp_path / "home" / "artifacts"
    study(tmp_path / "run", tmp_path / "data", exams, home)
    records = [*tmp_path.rglob("run.json"), *home.rglob("artifact.json"), *home.glob(".runs/*.json")]
    assert len(records) == 4
    assert not [path for path in records if str(tmp_path) in path.read_text()]
