"""``embedprior evaluate``: a predictions table in, ``evidence.json``, tables and figures out."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HELP = "AUCs, paired DeLong tests and intervals of any predictions table"
BOOTSTRAP = 2000


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = argparse.ArgumentParser(
        prog="embedprior evaluate",
        description=HELP + ".",
        epilog="exit codes: 0 done, 2 bad input (nothing written). Fields of evidence.json: docs/evidence.md",
        allow_abbrev=False,
    )
    p.add_argument(
        "predictions",
        type=Path,
        help="CSV: exam_id, patient_id, label, method, score (+ fold, resample, seed, split, label_name)",
    )
    p.add_argument("--wide", action="store_true", help="the CSV has patient_id, label and one column per method")
    p.add_argument(
        "--reference", metavar="METHOD", help="compare every method with this one (default: the first in the table)"
    )
    p.add_argument(
        "--family",
        type=Path,
        metavar="FILE",
        help="declared comparisons for Holm: CSV a,b or JSON pairs (default: every method against the reference)",
    )
    p.add_argument(
        "--oracle",
        action="append",
        default=[],
        metavar="METHOD",
        help="needs CT at inference: shown, not ranked; may be repeated",
    )
    p.add_argument(
        "--unit",
        choices=("patient", "exam"),
        default="patient",
        help="patient averages a patient's scores; exam clusters the variance by patient",
    )
    p.add_argument(
        "--patient-label",
        choices=("max", "index"),
        help="label of a patient whose exams disagree: any positive, or the first exam",
    )
    p.add_argument("--threshold", type=float, help="declared operating point (default: chosen on rows with split val)")
    p.add_argument("--margin", type=float, help="also test non-inferiority against this AUC margin")
    p.add_argument(
        "--relevant-delta", type=float, default=0.05, help="smallest AUC difference worth claiming (default: 0.05)"
    )
    p.add_argument("--ci", choices=("logit", "wald"), default="logit", help="interval of an AUC (default: logit)")
    p.add_argument("--train-size", type=float, help="training cases per resample, for the Nadeau-Bengio test")
    p.add_argument(
        "--subgroup",
        action="append",
        default=[],
        metavar="COLUMN",
        help="also report the AUC within view, sex, age, site, ...; may be repeated",
    )
    p.add_argument(
        "--seed-ensemble", action="store_true", help="also score each method's mean over seeds, as a row of its own"
    )
    p.add_argument("--micro", action="store_true", help="several labels: also pool them into one AUC (with a warning)")
    p.add_argument(
        "--bootstrap",
        type=int,
        default=BOOTSTRAP,
        metavar="N",
        help=f"patient bootstrap replicates (default: {BOOTSTRAP})",
    )
    p.add_argument("--no-bootstrap", action="store_true", help="closed forms only")
    p.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    p.add_argument("--no-figures", action="store_true", help="write no figures")
    p.add_argument(
        "--out",
        type=Path,
        default=Path("runs/evaluate"),
        metavar="DIR",
        help="folder of the results (default: runs/evaluate)",
    )
    return p  # fmt: skip


def main(argv: list[str]) -> int:
    """Evaluate and write the results; return 0.

    Raises:
        EvidenceError: the table can't be used; nothing was written.
        SystemExit: ``--help`` (0) or a bad option (2).
    """
    options = parser().parse_args(argv)
    from embedprior.errors import BadInput
    from embedprior.evidence.evaluate import evaluate_predictions
    from embedprior.evidence.predictions import held_out_blocks, read_family, read_predictions

    if options.out.exists() and not options.out.is_dir():
        raise BadInput(f"--out {options.out} is a file; give a folder.")
    # Hashing, and importing the drawing library, run beside the sorting: neither needs the other.
    pool = ThreadPoolExecutor(2)
    digest = pool.submit(_digest, options.predictions)
    frame = read_predictions(options.predictions, wide=options.wide, not_methods=tuple(options.subgroup))
    if not options.no_figures:
        pool.submit(importlib.import_module, "embedprior.report.figures")
    blocks = held_out_blocks(frame, options.unit, options.patient_label)
    family = None if options.family is None else read_family(options.family)
    reference = options.reference or _first_method(blocks[0].methods, options.oracle)
    evidence = evaluate_predictions(
        frame,
        reference,
        family,
        options.unit,
        options.oracle,
        0 if options.no_bootstrap else options.bootstrap,
        patient_label=options.patient_label,
        ci=options.ci,
        relevant_delta=options.relevant_delta,
        margin=options.margin,
        threshold=options.threshold,
        train_size=options.train_size,
        subgroups=options.subgroup,
        micro=options.micro,
        seed_ensemble=options.seed_ensemble,
        bootstrap_seed=options.seed,
        blocks=blocks,
    )
    if options.reference is None:
        evidence["warnings"].append(f"no --reference was given: {reference}, the first method of the table, was taken")
    _write(options, blocks, evidence, digest.result())
    return 0


def _first_method(methods: Sequence[str], oracles: Sequence[str]) -> str:
    from embedprior.evidence.errors import EvidenceError

    for method in methods:
        if method not in oracles:
            return method
    raise EvidenceError("every method is an oracle: name one as --reference.")


def _digest(path: Path) -> str:
    from embedprior.runs import hash_file

    return hash_file(path) if path.is_file() else ""


def _write(options: argparse.Namespace, blocks: Any, evidence: dict[str, Any], digest: str) -> None:
    from embedprior.evidence.tables import latex, markdown
    from embedprior.runs import Run, write_json, write_text

    figures = {}
    if not options.no_figures:
        from embedprior.report.figures import draw_curves

        figures = draw_curves(blocks, evidence)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    run = Run(options.out, "evaluate", config, options.seed, {"predictions": digest})
    write_json(options.out / "evidence.json", evidence)
    write_text(options.out / "table.tex", latex(evidence))
    text = markdown(evidence)
    write_text(options.out / "table.md", text)
    for name, data in figures.items():
        (options.out / name).write_bytes(data)
    run.finish(text, [])
    print(text)
    print(f"written to {options.out}: evidence.json, table.md, table.tex" + "".join(f", {f}" for f in figures))
