"""What lies in an artifact is what was written: damage is noticed on reuse, named, put aside and built anew."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from embedprior.cache.audit import SEALED, verify_folder
from embedprior.errors import BadInput
from embedprior.runs import Run, artifact, integrity
from embedprior.runs.integrity import (
    changed_files,
    file_records,
    forget_results,
    has_own_checksum,
    note_results,
    refuse_changed_result,
    with_checksum,
)

SCORES = "exam_id,score\ne1,0.25\n"


def make(root: Path, number: int = 1) -> tuple[Path, bool]:
    """Make or reuse one artifact of two files; return its folder and whether it was there."""

    def build(work: Path) -> None:
        (work / "scores.csv").write_text(SCORES)
        (work / "inner").mkdir()
        (work / "inner" / "weights").write_bytes(bytes(range(64)) * number)

    made = artifact("fit", {"number": str(number)}, {}, "fit-1", build, root)
    return made.path, made.reused


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "one bit flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "emptied": lambda path: path.write_bytes(b""),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"score": 1.0})),
    "gone": lambda path: path.unlink(),
    "a list": lambda path: path.write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
@pytest.mark.parametrize("name", ["scores.csv", "inner/weights", "artifact.json"])
def test_damage_is_named_put_aside_and_built_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], object]
) -> None:
    folder, _ = make(tmp_path)
    whole = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert make(tmp_path) == (folder, True)
    damage(folder / name)
    capsys.readouterr()
    assert make(tmp_path) == (folder, False)
    error = capsys.readouterr().err
    assert f"fit/{folder.name}: {name}" in error
    assert f"put aside as .damaged-{folder.name}-1 and made again" in error
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == whole
    assert (folder.parent / f".damaged-{folder.name}-1").is_dir()
    assert make(tmp_path) == (folder, True)


def test_an_artifact_swapped_with_another_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make(tmp_path, 1)[0], make(tmp_path, 2)[0]
    shutil.rmtree(first)
    shutil.copytree(second, first)
    assert make(tmp_path, 1) == (first, False)
    assert "describes another artifact" in capsys.readouterr().err
    assert len((first / "inner" / "weights").read_bytes()) == 64


def test_an_artifact_without_checksums_is_built_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = make(tmp_path)
    record = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(
        json.dumps({k: v for k, v in record.items() if k not in ("files", "checksum")})
    )
    assert make(tmp_path) == (folder, False)
    assert "lists no checksums (it is damaged, or of an earlier version)" in capsys.readouterr().err


def test_a_large_artifact_is_read_again_only_when_a_stamp_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "ALWAYS_READ", 10)
    folder, _ = make(tmp_path)
    assert make(tmp_path)[1]
    read: list[Path] = []
    hashed = integrity.hash_file
    monkeypatch.setattr(integrity, "hash_file", lambda path: (read.append(path), hashed(path))[1])
    assert make(tmp_path)[1]
    assert read == []
    times = (folder / "scores.csv").stat()
    (folder / "scores.csv").write_text(SCORES.replace("0.25", "0.75"))
    os.utime(folder / "scores.csv", ns=(times.st_atime_ns, times.st_mtime_ns))  # as a careful liar would
    assert not make(tmp_path)[1]


def test_records_and_files_are_checked_against_hashes_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    records = file_records(tmp_path)
    # sha256 of "abc", from FIPS 180-2, appendix B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert records == {"a": {"bytes": 3, "sha256": known}}
    assert list(changed_files(tmp_path, records)) == []
    sealed = with_checksum({"x": [1, 2.5, None]})
    assert has_own_checksum(json.loads(json.dumps(sealed)))
    assert not has_own_checksum(sealed | {"x": [1, 2.5, 0]})
    assert not has_own_checksum({"x": [1, 2.5, None]})


def test_a_sealed_folder_is_read_only_when_every_byte_and_its_record_are_as_written(tmp_path: Path) -> None:
    def fill(work: Path) -> None:
        (work / "inner").mkdir()
        (work / "inner" / "w.bin").write_bytes(bytes(range(64)))

    def read() -> dict[str, object]:
        return integrity.read_sealed(tmp_path, "thing.json", "thing", 3, "make it again")

    integrity.write_sealed(tmp_path, "thing.json", {"format": 3, "patients": ["p1"]}, fill)
    (tmp_path / "run.json").write_text("{}")  # the command's own file is none of the thing's
    assert read()["patients"] == ["p1"]
    whole = (tmp_path / "thing.json").read_text()
    for said, changed in (
        ("no longer has the contents", whole.replace("p1", "p2")),
        (r"of format 2, of an earlier version of embedprior\. Allowed: 3", whole.replace('"format": 3', '"format": 2')),
        ("holds a list", "[1]"),
        ("not valid JSON", whole[:-20]),
    ):
        (tmp_path / "thing.json").write_text(changed)
        with pytest.raises(BadInput, match=said):
            read()
    (tmp_path / "thing.json").write_text(whole)
    for damage in DAMAGES.values():
        damage(tmp_path / "inner" / "w.bin")
        with pytest.raises(BadInput, match=r"the thing in .* is damaged: inner/w\.bin .*Next: make it again"):
            read()
        integrity.write_sealed(tmp_path, "thing.json", {"format": 3, "patients": ["p1"]}, fill)


def test_verify_reads_whatever_is_sealed_and_names_what_changed(tmp_path: Path) -> None:
    for name, what in SEALED.items():
        folder = tmp_path / what.replace(" ", "_")
        integrity.write_sealed(folder, name, {"format": 1}, lambda work: (work / "w.bin").write_bytes(bytes(64)))
    assert [(one.kind, one.problems) for one in verify_folder(tmp_path)] == [
        (what, ()) for what in sorted(SEALED.values(), key=lambda w: w.replace(" ", "_"))
    ]
    for name, what in SEALED.items():
        folder = tmp_path / what.replace(" ", "_")
        for file in ("w.bin", name):
            whole = (folder / file).read_bytes()
            flip(folder / file)
            (found,) = [one for one in verify_folder(tmp_path) if one.problems]
            assert (found.kind, found.path) == (what, folder)
            assert file in found.problems[0]
            (folder / file).write_bytes(whole)


def test_results_of_no_run_are_noted_beside_them_and_checked(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("scores.csv", "figures/a.png", "figures/b.png"):
        (tmp_path / name).write_text(SCORES)
    note_results(tmp_path, ["scores.csv", "figures"])
    noted = json.loads((tmp_path / ".checksums.json").read_text())["files"]
    assert noted["scores.csv"]["sha256"] == hashlib.sha256(SCORES.encode()).hexdigest()
    assert sorted(noted) == ["figures/a.png", "figures/b.png", "scores.csv"]
    refuse_changed_result(tmp_path / "scores.csv")
    assert [one.problems for one in verify_folder(tmp_path)] == [()]
    flip(tmp_path / "scores.csv")
    with pytest.raises(BadInput, match=r"scores\.csv no longer has the contents"):
        refuse_changed_result(tmp_path / "scores.csv")
    (found,) = verify_folder(tmp_path)
    assert found.problems == ("scores.csv no longer has the contents it was written with",)
    (tmp_path / "figures" / "b.png").unlink()
    note_results(tmp_path, ["scores.csv"])  # written again; what is gone since is no longer listed
    assert sorted(json.loads((tmp_path / ".checksums.json").read_text())["files"]) == ["figures/a.png", "scores.csv"]
    forget_results(tmp_path, ["scores.csv"])
    flip(tmp_path / "scores.csv")
    refuse_changed_result(tmp_path / "scores.csv")
    flip(tmp_path / ".checksums.json")
    with pytest.raises(BadInput, match=r"\.checksums\.json"):
        note_results(tmp_path, ["scores.csv"])


def test_commands_that_end_at_the_same_instant_in_one_folder_lose_no_entry(tmp_path: Path) -> None:
    """Four processes note results of their own, five times at the same instant; half of them forget the one before."""
    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(4)

    def work(number: int) -> None:
        for turn in range(5):
            name = f"{number}-{turn}.csv"
            (tmp_path / name).write_text(SCORES)
            together.wait(60)
            note_results(tmp_path, [name])
            if number % 2 and turn:
                forget_results(tmp_path, [f"{number}-{turn - 1}.csv"])

    processes = [fork.Process(target=work, args=(number,)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    kept = [f"{number}-{turn}.csv" for number in range(4) for turn in range(5) if not number % 2 or turn == 4]
    assert sorted(json.loads((tmp_path / ".checksums.json").read_text())["files"]) == kept
    assert [one.problems for one in verify_folder(tmp_path)] == [()]
    assert not [path.name for path in tmp_path.iterdir() if "lock" in path.name]


def test_results_in_the_folder_of_a_run_go_into_its_record(tmp_path: Path) -> None:
    run = Run(tmp_path, "cohort build", {}, 0, {})
    (tmp_path / "exams.csv").write_text(SCORES)
    run.finish("", [])
    (tmp_path / "splits.csv").write_text(SCORES)
    note_results(tmp_path, ["splits.csv"])
    assert not (tmp_path / ".checksums.json").exists()
    assert [one.problems for one in verify_folder(tmp_path)] == [()]
    flip(tmp_path / "splits.csv")
    with pytest.raises(BadInput, match="splits"):
        refuse_changed_result(tmp_path / "splits.csv")
    forget_results(tmp_path, ["splits.csv"])
    assert [one.problems for one in verify_folder(tmp_path)] == [()]
    record = json.loads((tmp_path / "run.json").read_text())
    del record["checksum"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert any("no checksum" in problem for one in verify_folder(tmp_path) for problem in one.problems)
