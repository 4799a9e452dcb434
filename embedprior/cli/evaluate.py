"""``embedprior evaluate`` and ``embedprior power``: what predictions show, and what a test of some size could."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from click import argument, option

from embedprior.cli.options import PATH, command, recorded

BOOTSTRAP = 2000


@command(epilog="Fields of evidence.json: docs/evidence.md", renamed={"--wide": "--method-columns"})
@argument("predictions", type=PATH, help="CSV: exam_id, patient_id, label, method, score (+ fold, resample, seed, "
        "split, label_name)")  # fmt: skip
@option("--method-columns", is_flag=True, help="the table has patient_id, label and one column per method")
@option("--method", "methods", multiple=True, metavar="COLUMN", help="a column of scores, where the table has one "
        "column per method; may be repeated [default: all, if they look like scores]")  # fmt: skip
@option("--positive", metavar="WORD", help="the label that means 1, where labels are words")
@option("--reference", metavar="METHOD", help="compare every method with this one [default: the first in the table]")
@option("--family", type=PATH, metavar="FILE", help="declared claims for Holm: CSV a,b (kind,margin) or JSON "
        "[default: every method against the reference]")  # fmt: skip
@option("--claim", "claims", multiple=True, metavar="TEXT", help="a declared claim: 'a > b', 'a >= b - .03' (not "
        "worse) or 'a = b +- .03' (equivalent); may be repeated")  # fmt: skip
@option("--oracle", "oracles", multiple=True, metavar="METHOD", help="needs CT at inference: shown, not ranked; may "
        "be repeated")  # fmt: skip
@option("--unit", type=click.Choice(["patient", "exam"]), default="patient", help="patient averages a patient's "
        "scores; exam clusters the variance by patient")  # fmt: skip
@option("--patient-label", type=click.Choice(["max", "index"]), help="label of a patient whose exams disagree: any "
        "positive, or the first exam")  # fmt: skip
@option("--threshold", type=float, help="declared operating point [default: chosen on rows with split val]")
@option("--margin", type=float, help="also claim that every method is not worse than the reference by this AUC margin")
@option("--relevant-delta", type=float, default=0.05, help="smallest AUC difference worth claiming")
@option("--alpha", type=float, default=0.05, help="two-sided error rate of the family; intervals cover 1 - alpha")
@option("--assumed-auc", type=float, default=0.8, help="of the weaker method, for the detectable difference")
@option(
    "--assumed-correlation", type=float, default=0.5, help="of the two AUC estimates, for the detectable difference"
)
@option("--ci", type=click.Choice(["logit-t", "logit", "wald"]), default="logit-t", help="interval of an AUC")
@option("--proportion-ci", type=click.Choice(["wilson", "clopper-pearson"]), default="wilson", help="interval of "
        "sensitivity, specificity, ...")  # fmt: skip
@option("--max-fpr", type=float, default=0.1, help="false positive rate up to which the partial AUC goes")
@option("--prevalence", type=float, help="also give PPV and NPV where this share of patients is positive")
@option("--train-size", type=float, help="training cases per resample, for the Nadeau-Bengio test")
@option("--subgroup", "subgroups", multiple=True, metavar="COLUMN", help="also report AUCs and differences within "
        "view, sex, age, site, ..., and their interaction; may be repeated")  # fmt: skip
@option("--seed-ensemble", is_flag=True, help="also score each method's mean over seeds, as a row of its own")
@option("--micro", is_flag=True, help="several labels: also pool them into one AUC (with a warning)")
@option("--bootstrap", type=int, default=BOOTSTRAP, metavar="N", help="patient bootstrap replicates")
@option("--no-bootstrap", is_flag=True, help="closed forms only")
@option("--seed", type=int, default=0, help="seed of the bootstrap")
@option("--no-figures", is_flag=True, help="write no figures")
@option("--report", is_flag=True, help="also write report.html, the page a study writes")
@option("--out", type=PATH, default=Path("runs/evaluate"), metavar="DIR", help="folder of the results")
def evaluate(**given: Any) -> int:
    """Evaluate a predictions table and write the results; return 0.

    Raises:
        EvidenceError: the table can't be used; nothing was written.
        BadInput: ``--out`` is a file.
    """
    from embedprior.errors import BadInput
    from embedprior.evidence.evaluate import evaluate_predictions
    from embedprior.evidence.predictions import held_out_blocks
    from embedprior.evidence.reading import read_family, read_predictions
    from embedprior.runs.integrity import refuse_changed_result
    from embedprior.runs.provenance import RECORD

    out, unit, patient_label = given["out"], given["unit"], given["patient_label"]
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is a file; give a folder.")
    # Hashing, and importing the drawing library, run beside the sorting: neither needs the other.
    pool = ThreadPoolExecutor(2)
    refuse_changed_result(given["predictions"], RECORD)
    digest = pool.submit(_digest, given["predictions"])
    frame = read_predictions(
        given["predictions"], wide=given["method_columns"] or bool(given["methods"]), not_methods=given["subgroups"],
        methods=given["methods"], positive=given["positive"],
    )  # fmt: skip
    if not given["no_figures"]:
        pool.submit(importlib.import_module, "embedprior.report.curves")
    blocks = held_out_blocks(frame, unit, patient_label)
    family = [*(read_family(given["family"]) if given["family"] else ()), *given["claims"]]
    known = _registered_oracles(blocks[0].methods, given["oracles"])
    oracles = [*given["oracles"], *known]
    reference = given["reference"] or _first_method(blocks[0].methods, oracles)
    evidence = evaluate_predictions(
        frame,
        reference,
        family or None,
        unit,
        oracles,
        0 if given["no_bootstrap"] else given["bootstrap"],
        patient_label=patient_label,
        ci=given["ci"],
        alpha=given["alpha"],
        relevant_delta=given["relevant_delta"],
        assumed_auc=given["assumed_auc"],
        assumed_correlation=given["assumed_correlation"],
        proportions=given["proportion_ci"],
        max_fpr=given["max_fpr"],
        prevalence=given["prevalence"],
        margin=given["margin"],
        threshold=given["threshold"],
        train_size=given["train_size"],
        subgroups=given["subgroups"],
        micro=given["micro"],
        seed_ensemble=given["seed_ensemble"],
        bootstrap_seed=given["seed"],
        blocks=blocks,
    )
    if given["reference"] is None:
        evidence["warnings"].append(f"no --reference was given: {reference}, the first method of the table, was taken")
    if known:
        evidence["warnings"].append(f"{', '.join(known)} needs CT at inference (method registry): shown, not ranked")
    read_as = frame.attrs.get("read_as", {})
    if read_as:
        said = ", ".join(f"{theirs} as {ours}" for theirs, ours in read_as.items())
        evidence["warnings"].append(f"columns were read by another name: {said}")
    _write(given, blocks, evidence, digest.result(), frame)
    return 0


@command(renamed={"--corr": "--correlation"})
@option("--pos", type=int, required=True, metavar="N", help="positive patients")
@option("--neg", type=int, required=True, metavar="N", help="negative patients")
@option("--auc", type=float, required=True, help="AUC that both methods are assumed to have")
@option("--correlation", type=float, default=0.5, help="of the two AUC estimates; 0 for different patients")
@option("--exams-per-patient", type=float, default=1.0, metavar="E", help="exams of each patient")
@option("--icc", type=float, default=1.0, help="intraclass correlation of a patient's exams; 1: exams add nothing")
@option("--comparisons", type=int, default=1, metavar="K", help="size of the Holm family")
@option("--delta", type=float, help="a difference of AUCs: also print the patients needed to detect it")
@option("--alpha", type=float, default=0.05, help="two-sided error rate")
@option("--power", "target", type=float, default=0.8, help="probability of detecting a true difference")
@option("--json", "as_json", is_flag=True, help="print JSON instead of text")
def power(
    pos: int, neg: int, auc: float, correlation: float, exams_per_patient: float, icc: float, comparisons: int,
    delta: float | None, alpha: float, target: float, as_json: bool,
) -> int:  # fmt: skip
    """Print the minimum detectable difference (and the patients a given one needs); return 0.

    Raises:
        EvidenceError: a value out of range.
    """
    from embedprior.evidence.power import Design, patients_needed

    design = Design(pos, neg, auc, correlation, exams_per_patient, icc, alpha, target, comparisons)
    smallest = design.minimum_detectable()
    first_step = design.minimum_detectable(first_holm_step=True)
    needed = None if delta is None else patients_needed(design, delta)
    if as_json:
        import json

        found = {
            "se_auc": design.se(), "se_difference": design.se_difference(), "min_detectable_delta": smallest,
            "min_detectable_delta_holm": first_step, "reachable": auc + first_step <= 1,
            "patients_needed": None if needed is None else {"pos": needed[0], "neg": needed[1]},
        }  # fmt: skip
        print(json.dumps(found, indent=2))
        return 0
    print(f"{pos} positive and {neg} negative patients, AUC {auc:g}, correlation {correlation:g}:")
    print(f"  standard error of one AUC         {design.se():.4f}")
    print(f"  standard error of the difference  {design.se_difference():.4f}")
    print(f"  smallest detectable difference    {smallest:.3f}  ({target:.0%} power, two-sided {alpha:g})")
    if comparisons > 1:
        print(f"  at Holm's first step of {comparisons:<10}{first_step:.3f}")
    if auc + first_step > 1:
        print(f"  no AUC above {auc:g} is that far away: this comparison is not testable at this size")
    if needed is not None:
        print(f"  a difference of {delta:g} needs {needed[0]} positive and {needed[1]} negative patients")
    return 0


def _first_method(methods: Sequence[str], oracles: Sequence[str]) -> str:
    from embedprior.evidence.errors import EvidenceError

    for method in methods:
        if method not in oracles:
            return method
    raise EvidenceError("every method is an oracle: name one as --reference.")


def _registered_oracles(methods: Sequence[str], given: Sequence[str]) -> list[str]:
    """Return the methods of the table that the registry knows to need CT at inference and that were not named."""
    from embedprior.students.registry import describe, method_names

    known = set(method_names())
    return [m for m in methods if m in known and m not in given and describe(m).needs_ct]


def _digest(path: Path) -> str:
    from embedprior.runs import hash_file

    return hash_file(path) if path.is_file() else ""


def _write(given: dict[str, Any], blocks: Any, evidence: dict[str, Any], digest: str, frame: Any) -> None:
    from embedprior.evidence.tables import latex, markdown
    from embedprior.runs import Run, write_json, write_text

    out, figures = given["out"], {}
    if not given["no_figures"]:
        from embedprior.report.curves import draw_curves

        figures = draw_curves(blocks, evidence)
    run = Run(out, "evaluate", recorded(given), given["seed"], {"predictions": digest})
    write_json(out / "evidence.json", evidence)
    write_text(out / "table.tex", latex(evidence))
    text = markdown(evidence)
    write_text(out / "table.md", text)
    for name, data in figures.items():
        (out / name).write_bytes(data)
    run.finish(text, [])
    written = ["evidence.json", "table.md", "table.tex", *figures]
    if given["report"]:
        from embedprior.report.evaluation_report import write_evaluation_report

        written.append(write_evaluation_report(out, given["predictions"].name, evidence, frame).name)
        run.seal()
    print(text)
    print(f"written to {out}: {', '.join(written)}")
