from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from embedprior.errors import BadInput
from embedprior.runs import (
    Run,
    artifact,
    artifacts_root,
    hash_array,
    hash_of,
    read_json,
    seed_for,
    write_file,
    write_json,
)


def test_artifact_is_built_once_and_reused(tmp_path: Path) -> None:
    calls = []

    def build(work: Path) -> None:
        calls.append(work)
        (work / "x.txt").write_text("made")

    first = artifact("thing", {"in": "a"}, {"k": 1}, "thing-1", build, tmp_path)
    again = artifact("thing", {"in": "a"}, {"k": 1}, "thing-1", build, tmp_path)
    assert (first.reused, again.reused, len(calls)) == (False, True, 1)
    assert (again.path / "x.txt").read_text() == "made"


@pytest.mark.parametrize(
    "change", [{"inputs": {"in": "b"}}, {"config": {"k": 2}}, {"code_tag": "thing-2"}, {"kind": "other"}]
)
def test_artifact_of_anything_else_gets_its_own_folder(tmp_path: Path, change: dict[str, object]) -> None:
    given: dict[str, object] = {"kind": "thing", "inputs": {"in": "a"}, "config": {"k": 1}, "code_tag": "thing-1"}
    make = lambda **kw: artifact(**kw, build=lambda work: None, root=tmp_path)  # noqa: E731
    assert make(**given).path != make(**(given | change)).path


def test_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def build(work: Path) -> None:
        (work / "half.txt").write_text("half")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        artifact("thing", {}, {}, "thing-1", build, tmp_path)
    assert list((tmp_path / "thing").iterdir()) == []


def test_artifacts_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDPRIOR_HOME", raising=False)
    assert artifacts_root(tmp_path) == tmp_path / "artifacts"
    monkeypatch.setenv("EMBEDPRIOR_HOME", str(tmp_path / "home"))
    assert artifacts_root(tmp_path) == tmp_path / "home" / "artifacts"


def test_hash_does_not_depend_on_key_order_and_refuses_nan() -> None:
    assert hash_of({"a": 1, "b": (2, 3)}) == hash_of({"b": [2, 3], "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        hash_of({"a": float("nan")})


def test_hash_array_is_sha256_of_the_numbers_in_c_order() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert hash_array(np.asfortranarray(array)) == hashlib.sha256(array.tobytes()).hexdigest()


def test_streams_are_reproducible_and_differ_by_purpose() -> None:
    assert seed_for(1, "a", 2) == seed_for(1, "a", 2)
    assert len({seed_for(1, "a"), seed_for(1, "b"), seed_for(2, "a"), seed_for(1, "a", 0)}) == 4
    assert 0 <= seed_for(0, "x") < 2**63


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    assert read_json(path) == {"x": 1}
    with pytest.raises(BadInput, match="does not exist"):
        read_json(tmp_path / "b.json")


def test_run_writes_its_record_and_the_failures(tmp_path: Path) -> None:
    run = Run(tmp_path, "demo", {"k": 1}, 3, {"data": "abc"})
    run.stage("first", n=2)
    run.finish("# done\n", [{"exam_id": "e1", "stage": "embed", "reason": "cut short"}])
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["seed"], record["failures"]) == ("done", 3, 1)
    assert "torch" in record["versions"]
    assert "cut short" in (tmp_path / "failures.csv").read_text()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["stage"] == "first"


def test_a_file_that_is_being_written_keeps_its_old_contents(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def half(handle: BinaryIO) -> None:
        handle.write(b"ne")
        handle.flush()
        assert path.read_bytes() == b"old"

    def broken(handle: BinaryIO) -> None:
        half(handle)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_file(path, broken)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x": b"old"}
    write_file(path, half)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x": b"ne"}


def test_a_run_records_what_the_last_digits_depend_on(tmp_path: Path) -> None:
    program = (
        "import sys, torch; from embedprior.runs import Run; from pathlib import Path\n"
        "Run(Path(sys.argv[1]), 'demo', {}, 0, {}).finish('', [])"
    )
    found = {}
    for chosen in ("default", "avx2"):
        out = tmp_path / chosen
        environment = os.environ | {"ATEN_CPU_CAPABILITY": chosen, "ONEDNN_MAX_CPU_ISA": "SSE41"}
        subprocess.run([sys.executable, "-c", program, str(out)], env=environment, check=True)
        record = json.loads((out / "run.json").read_text())
        found[chosen] = record["kernels"]
        assert str(Path(sys.prefix)) not in json.dumps(record)
        assert {"torch", "numpy", "pillow", "pydicom", "SimpleITK"} <= record["versions"].keys()
    assert found["default"]["torch"]["instructions"] in ("DEFAULT", "NO AVX")  # the latter from torch 2.6
    expected = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    assert {k: v for k, v in found["default"]["environment"].items() if k in expected} == expected
    if "avx2" in found["avx2"]["vector_units"]:
        assert found["avx2"]["torch"]["instructions"] == "AVX2"
    assert all(one["version"] for one in found["default"]["blas"])


def test_libraries_that_were_not_loaded_are_not_recorded() -> None:
    program = (
        "import sys; from embedprior.runs import kernels\nsys.exit('torch' in kernels() or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
