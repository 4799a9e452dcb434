from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.cache import build, build_cache, open_cache
from embedprior.cache.build import clear_findings, fill_cache
from embedprior.cache.format import shard_files
from embedprior.cache.verify import find_corruption
from embedprior.errors import BadInput
from embedprior.imaging.findings import Finding, report_findings

from .conftest import MeanEncoder, make_exams, tree
from .test_shards import Payload

BATCH = 2


def built(root: Path) -> tuple[pd.DataFrame, Path]:
    """Twelve exams in three shards."""
    exams = make_exams(root, 12)
    filled = fill_cache(exams, root, MeanEncoder(), root / "cache", BATCH, shard_exams=4)
    return exams, filled.location.folder


def truncate(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-3])


def flip(shard: Path) -> None:
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))


def flip_in_an_exam_id(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes().replace(b"e4", b"e5", 1))


def pickled(shard: Path) -> None:
    shard.write_bytes(pickle.dumps(Payload(str(shard.parent.parent / "executed"))))


@pytest.mark.parametrize("harm", [truncate, flip, flip_in_an_exam_id, pickled, Path.unlink])
def test_a_harmed_shard_is_found_and_only_it_is_computed_again(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    exams, folder = built(tmp_path)
    before = tree(folder)
    victim = shard_files(folder)[1]
    others = {p.name: p.stat().st_ino for p in shard_files(folder) if p != victim}
    harm(victim)
    assert [d.file for d in find_corruption(folder)] == [victim.name]
    if harm not in (flip,):  # a flipped number is found by verify, not on every open
        with pytest.raises(BadInput):
            open_cache(tmp_path / "cache")
    again = MeanEncoder()
    filled = fill_cache(exams, tmp_path, again, tmp_path / "cache", BATCH, shard_exams=4)
    assert again.seen == 4
    assert [d.file for d in filled.repaired] == [victim.name]
    assert tree(folder) == before
    assert {p.name: p.stat().st_ino for p in shard_files(folder) if p != victim} == others
    assert find_corruption(folder) == []
    assert not (tmp_path / "cache" / "executed").exists()


def test_foreign_files_are_found_and_put_aside_unread(tmp_path: Path) -> None:
    exams, folder = built(tmp_path)
    before = tree(folder)
    other = fill_cache(exams, tmp_path, MeanEncoder(weights_sha256="x"), tmp_path / "cache", BATCH, shard_exams=4)
    stranger = shard_files(other.location.folder)[0]
    (folder / "weights.pkl").write_bytes(pickle.dumps(Payload(str(tmp_path / "executed"))))
    (folder / f"shard-000009-{'0' * 12}.safetensors").write_bytes(stranger.read_bytes())
    found = find_corruption(folder)
    assert {d.kind for d in found} == {"foreign"}
    assert sorted(d.file for d in found) == [f"shard-000009-{'0' * 12}.safetensors", "weights.pkl"]
    again = MeanEncoder()
    fill_cache(exams, tmp_path, again, tmp_path / "cache", BATCH, shard_exams=4)
    assert again.seen == 0
    left = tree(folder)
    assert {k: v for k, v in left.items() if not k.startswith("quarantine/")} == before
    assert sorted(k for k in left if k.startswith("quarantine/")) == [
        f"quarantine/shard-000009-{'0' * 12}.safetensors", "quarantine/weights.pkl",
    ]  # fmt: skip
    assert find_corruption(folder) == []
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("file", ["manifest.json", "index.csv"])
def test_damaged_tables_are_written_again(tmp_path: Path, file: str) -> None:
    exams, folder = built(tmp_path)
    before = tree(folder)
    (folder / file).write_text("{")
    assert [d.file for d in find_corruption(folder)] == [file]
    again = MeanEncoder()
    fill_cache(exams, tmp_path, again, tmp_path / "cache", BATCH, shard_exams=4)
    assert again.seen == 0
    assert tree(folder) == before


def test_view_that_was_cut_is_found_and_written_again(tmp_path: Path) -> None:
    exams, folder = built(tmp_path)
    before = tree(folder)
    view = next((folder / "views").glob("*.csv"))
    view.write_text(view.read_text()[:-70])
    assert [d.file for d in find_corruption(folder)] == [f"views/{view.name}"]
    build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache", BATCH)
    assert tree(folder) == before


def test_what_the_audit_warned_of_before_a_kill_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exams of a block that was finished are not read again, so their warnings must be on the disk before its shard."""

    class Warned(MeanEncoder):
        def read(self, root: Path, path: str) -> np.ndarray:
            report_findings([Finding("lateral", f"of {path}")])
            return super().read(root, path)

    exams = make_exams(tmp_path, 8)
    whole = fill_cache(exams, tmp_path, Warned(), tmp_path / "whole", 2, shard_exams=2, keep_findings=True)
    ours = [one["exam_id"] for one in whole.findings if one["message"].startswith("of ")]
    assert ours == [f"e{i}" for i in range(8)]
    write, calls = build.write_shard, []

    def killed(*args: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(build, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        fill_cache(exams, tmp_path, Warned(), tmp_path / "out", 2, shard_exams=2, keep_findings=True)
    monkeypatch.undo()
    again = fill_cache(exams, tmp_path, Warned(), tmp_path / "out", 2, shard_exams=2, keep_findings=True)
    assert again.embedded == 4
    assert again.findings == whole.findings
    clear_findings(again.location.folder)
    assert fill_cache(exams, tmp_path, Warned(), tmp_path / "out", 2, shard_exams=2, keep_findings=True).findings == []
