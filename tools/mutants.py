"""Apply the named faults of ``mutants.toml`` one by one; each must fail a test.

A fault that no test notices is a hole in the tests. Each is applied to a copy of the checkout, and only the
tests named with it are run. Prints a table; exits 1 when a fault survives or no longer applies.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAULTS = Path(__file__).with_suffix(".toml")
COPIED = (
    "embedprior", "configs", "tests", "docs", "pretrain", "notebooks", "pyproject.toml", "train_prior.py", "README.md",
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One fault: ``before`` becomes ``after`` in ``file``; ``tests`` must then fail."""

    name: str
    file: str
    before: str
    after: str
    tests: str


def read_mutants(file: Path = FAULTS) -> list[Mutant]:
    """Return the faults of the data file, in its order."""
    return [
        Mutant(one["what"], one["where"], one["from"], one["to"], one["tests"])
        for one in tomllib.loads(file.read_text())["fault"]
    ]


def survives(mutant: Mutant) -> tuple[bool, str]:
    """Return whether the tests still pass with the fault in place, and what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        copy.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy(source, copy / name)
        target = copy / mutant.file
        text = target.read_text()
        if text.count(mutant.before) != 1:
            return True, f"does not apply: found {text.count(mutant.before)} times"
        target.write_text(text.replace(mutant.before, mutant.after))
        (Path(folder) / "shared").symlink_to(ROOT.parent / "shared")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.tests.split()]
        environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, cwd=copy, capture_output=True, text=True, env=environment, check=False)
        failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        seen = failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else ran.stdout.strip().splitlines()[-1]
        # Exit code 1 is "a test failed"; anything else (collection error, nothing run) proves nothing.
        return ran.returncode != 1, seen


def main() -> int:
    """Apply every fault and print what caught it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="run the faults whose name contains this")
    options = parser.parse_args()
    chosen = [m for m in read_mutants() if not options.only or options.only in m.name]
    alive = 0
    for mutant in chosen:
        lives, seen = survives(mutant)
        alive += lives
        print(f"{'SURVIVED' if lives else 'caught  '}  {mutant.name:<48} {seen}", flush=True)
    print(f"{len(chosen) - alive} of {len(chosen)} faults caught")
    return 1 if alive or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
