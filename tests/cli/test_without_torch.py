"""Commands where torch is missing or broken: those that only list and check work, the others say so in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from embedprior.cli import main

from ..study.conftest import write_cohort

PROGRAM = """
import contextlib, io, json, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "accelerate"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Hidden())
from embedprior.cli import main

for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
    print(json.dumps([code, said.getvalue()]))
"""


def without_torch(folder: Path, *commands: list[str]) -> list[tuple[int, str]]:
    """Run commands one after the other in a process that can import no torch."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(commands), capture_output=True, text=True, cwd=folder,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_what_only_lists_and_checks_needs_no_torch_and_the_rest_says_so(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort")
    caches = str(cohort / "caches" / "cxr")
    shard = next((cohort / "caches" / "ct").rglob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1] + bytes([shard.read_bytes()[-1] ^ 1]))
    plan = ["study", "plan", "--config", "demo_kfold", "--data", str(cohort), "--out", str(tmp_path / "plan")]
    listed, unused, whole, damaged, alone, *others = without_torch(
        tmp_path, ["cache", "ls", str(tmp_path)], ["cache", "ls", str(tmp_path), "--unused"], ["verify", caches],
        ["verify", str(shard.parent)], ["cache", "verify", caches], ["methods"], ["encoders"], plan,
    )  # fmt: skip
    assert listed[0] == unused[0] == 0
    assert "cxr-net" in listed[1] or "2 items" in listed[1]
    assert whole[0] == alone[0] == 0
    assert damaged[0] == 3
    assert shard.name in damaged[1]
    for code, said in others:
        assert code == 1
        assert said == (
            "error: 'torch' can't be imported: this command needs it. Next: pip install torch; embedprior doctor\n"
        )
    assert not (tmp_path / "plan").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("raise OSError('libcudart.so.13: cannot open shared object file')",
         "error: libcudart.so.13: cannot open shared object file. What was finished is kept. Next: embedprior doctor"),
        ("raise ImportError('undefined symbol: iJIT_NotifyEvent', name='torch._C')",
         "error: 'torch' is installed, but can't be imported (undefined symbol: iJIT_NotifyEvent). Next: pip install"),
    ],
)  # fmt: skip
def test_a_broken_torch_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: str, said: str
) -> None:
    (tmp_path / "torch.py").write_text(error + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "embedprior")]:
        if name == "torch" or name.startswith(("torch.", "embedprior.students", "embedprior.nn")):
            monkeypatch.delitem(sys.modules, name)
    assert main(["methods"]) == 1
    assert capsys.readouterr().err.startswith(said)
