from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedprior.cache import build_cache, open_cache
from embedprior.cache.provenance import changed_sources, listing, trace
from embedprior.errors import BadInput
from embedprior.runs import Run, artifact, read_json

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
    shutil.rmtree(tmp_path / "elsewhere")
    assert not any(item.users for item in listing(home))
