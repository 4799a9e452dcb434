"""Damages every kind of file that embed, train prior and study leave, and looks whether the next command notices.

Each file is damaged in five ways: one bit flipped, cut, emptied, replaced by a pickle, swapped with another file. The
command that reads it is then run again. Right is: refused with the file's name, or put aside and made again with the
same results, or, where the command does not read it, found by ``embedprior verify``. Exits 1 when a fault passed
silently. ``--quick`` tries two of the five.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from embedprior.cache import write_cache
from embedprior.cli import main as embedprior
from embedprior.encoders.base import EncoderSpec

STUDY = {
    "title": "faults",
    "label": "lesion",
    "caches": {"cxr": "caches/cxr", "ct": "caches/ct"},
    "seeds": [1],
    "as_published": "a check of files",
    "fit": {"hidden": 8, "steps": 20, "validate_every": 10},
    "prior": {
        "samples": 2,
        "steps": 4,
        "training": {
            "network": {"preset": "tiny", "depth": 1, "dim": 16, "inner": 16},
            "training": {"steps": 5, "batch": 8, "variance_nodes": 4, "variance_draws": 1, "validation_bins": 2},
        },
    },
    "designs": [{"name": "kfold", "split": "kfold", "folds": 3, "methods": ["cxr-only", "hinton-kd", "prior"]}],
}
KINDS = (
    "cohort/caches/cxr/*/shard-*", "cohort/caches/cxr/*/manifest.json", "cohort/caches/cxr/*/index.csv",
    "cohort/caches/cxr/*/views/*.csv", "cohort/caches/cxr/*/views/*.sha256", "cohort/exams.csv", "cohort/pairs.csv",
    "run/artifacts/fit/*/artifact.json", "run/artifacts/fit/*/predictions.csv", "run/artifacts/fit/*/fit.json",
    "run/artifacts/teacher/*/artifact.json", "run/artifacts/teacher/*/*.safetensors",
    "run/artifacts/teacher/*/fit.json", "run/artifacts/prior/*/artifact.json", "run/artifacts/prior/*/*.safetensors",
    "run/artifacts/prior/*/prior.json", "run/plan.json", "run/run.json", "run/predictions.csv", "run/evidence.json",
    "run/summary.md", "run/report.html", "run/support.csv", "run/cohort/exams.csv", "run/cohort/splits.csv",
)  # fmt: skip
"""One file of each kind; ``metrics.jsonl`` is a log that nothing reads."""


def write_cohort(folder: Path, patients: int = 30) -> None:
    """Write tables and two caches of virtual embeddings."""
    rng = np.random.default_rng(0)
    exams, pairs = [], []
    for i in range(patients):
        exams += [(f"c{i:02d}", f"p{i:02d}", "CT", i % 2), (f"x{i:02d}", f"p{i:02d}", "CXR", i % 2)]
        pairs.append((f"q{i:02d}", f"p{i:02d}", f"x{i:02d}", f"c{i:02d}", 0, 1))
    folder.mkdir(parents=True)
    columns = ["exam_id", "patient_id", "modality", "label:lesion"]
    pd.DataFrame(exams, columns=columns).to_csv(folder / "exams.csv", index=False)
    columns = ["pair_id", "patient_id", "cxr_exam_id", "ct_exam_id", "offset_days", "label_agree"]
    pd.DataFrame(pairs, columns=columns).to_csv(folder / "pairs.csv", index=False)
    ct = rng.normal(size=(patients, 6)) + np.arange(patients)[:, None] % 2
    for name, letter, rows in (("ct", "c", ct), ("cxr", "x", ct[:, :4] + rng.normal(size=(patients, 4)))):
        spec = EncoderSpec(
            name=f"{name}-net", modality=name.upper(), dim=rows.shape[1], source="made", weights_sha256="none",
            licence="none", profile={}, pooling="none",
        )  # fmt: skip
        ids = [f"{letter}{i:02d}" for i in range(patients)]
        write_cache(folder / "caches" / name, spec, ids, ["0" * 64] * patients, rows.astype(np.float32))
    (folder.parent / "study.yaml").write_text(yaml.safe_dump(STUDY))


def command(*words: str | Path) -> tuple[int, str]:
    """Run one command in this process; return its exit code and all it wrote."""
    written = io.StringIO()
    with contextlib.redirect_stderr(written), contextlib.redirect_stdout(written):
        try:
            code = embedprior([str(word) for word in words])
        except Exception as error:
            return 1, f"{written.getvalue()}\nTraceback: {type(error).__name__}: {error}"
    return code, written.getvalue()


def flip(path: Path, other: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "flipped": flip,
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[: -max(1, path.stat().st_size // 3)]),
    "emptied": lambda path, other: path.write_bytes(b""),
    "pickle": lambda path, other: path.write_bytes(pickle.dumps({"scores": [1.0]})),
    "swapped": lambda path, other: path.write_bytes(other.read_bytes()),
}


@dataclass(frozen=True)
class Case:
    """One damage and what came of it: ``refused``, ``made again``, ``found by verify``, or ``SILENT``."""

    kind: str
    damage: str
    outcome: str
    detail: str


def attempt(whole: Path, kind: str, damage: str, reference: bytes) -> Case:
    """Damage one file of a copy, run the study again, and say what came of it."""
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        root = Path(scratch) / "w"
        shutil.copytree(whole, root)
        path = sorted(root.glob(kind))[0]
        original = path.read_bytes()
        others = [p for p in sorted(root.glob(kind)) if p.read_bytes() != original]
        strange = root / "cohort" / "pairs.csv" if path.name != "pairs.csv" else root / "cohort" / "exams.csv"
        DAMAGES[damage](path, others[0] if others else strange)
        if "artifacts/prior" in kind or "artifacts/teacher" in kind:  # else the fits, which are whole, are reused
            shutil.rmtree(root / "run" / "artifacts" / "fit")
        reads_results = kind == "run/predictions.csv"
        if reads_results:
            code, said = command("evaluate", path, "--reference", "cxr-only", "--no-bootstrap", "--no-figures",
                                 "--out", root / "evaluated")  # fmt: skip
        else:
            code, said = study(root)
        last = said.strip().splitlines()[-1] if said.strip() else ""
        names = (path.name, path.parent.name, kind.split("/")[2] if "/caches/" in kind else path.name)
        if "Traceback" in said:
            return Case(kind, damage, "SILENT", f"traceback: {last}")
        if code == 2:
            named = any(name in said for name in (*names, "cxr", "exams", "pairs", "splits", "plan"))
            return Case(kind, damage, "refused" if named else "SILENT", last)
        same = (root / "run" / "predictions.csv").read_bytes() == reference
        if reads_results or not same:
            return Case(
                kind, damage, "SILENT", f"exit {code}, {'other' if not same else 'the same'} predictions: {last}"
            )
        checked, found = command("verify", root)
        if "made again" in said and checked == 0:
            return Case(kind, damage, "made again", "")
        if checked == 3 and path.name in found:
            return Case(kind, damage, "found by verify", "")
        rewritten = path.read_bytes() == original or (kind.startswith("run/") and checked == 0)
        return Case(kind, damage, "made again" if rewritten else "SILENT", f"verify: exit {checked}")


def study(root: Path) -> tuple[int, str]:
    """Run the small study under a folder."""
    return command("study", "run", "--config", root / "study.yaml", "--data", root / "cohort", "--out", root / "run")


def main(argv: Sequence[str]) -> int:
    """Try every fault and print the table; return 1 when one passed silently."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two damages of each kind of file")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    options = parser.parse_args(argv)
    os.environ.pop("EMBEDPRIOR_HOME", None)
    os.environ["EMBEDPRIOR_QUIET"] = "1"
    damages = ("flipped", "swapped") if options.quick else tuple(DAMAGES)
    cases = []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        whole = Path(scratch) / "whole"
        write_cohort(whole / "cohort")
        code, said = study(whole)
        assert code == 0, said
        reference = (whole / "run" / "predictions.csv").read_bytes()
        for kind in KINDS:
            for damage in damages:
                case = attempt(whole, kind, damage, reference)
                cases.append(case)
                print(f"{case.outcome:<16} {damage:<8} {kind}  {case.detail[:150]}", flush=True)
    counts = Counter(case.outcome for case in cases)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    if options.json:
        options.json.write_text(json.dumps([vars(case) for case in cases], indent=1) + "\n")
    return 1 if counts["SILENT"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
