"""``embedprior power``: what a comparison of this size could show."""

from __future__ import annotations

import argparse

HELP = "the AUC difference a test of this size could detect"


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = argparse.ArgumentParser(prog="embedprior power", description=HELP + ".", allow_abbrev=False)
    p.add_argument("--pos", type=int, required=True, metavar="N", help="positive patients")
    p.add_argument("--neg", type=int, required=True, metavar="N", help="negative patients")
    p.add_argument("--auc", type=float, required=True, help="AUC both methods are thought to have")
    p.add_argument(
        "--corr",
        type=float,
        default=0.5,
        help="correlation of the two AUC estimates, 0 for different patients (default: 0.5)",
    )
    p.add_argument(
        "--exams-per-patient", type=float, default=1.0, metavar="E", help="exams of each patient (default: 1)"
    )
    p.add_argument(
        "--icc",
        type=float,
        default=1.0,
        help="intraclass correlation of a patient's exams (default: 1, exams add nothing)",
    )
    p.add_argument("--comparisons", type=int, default=1, metavar="K", help="size of the Holm family (default: 1)")
    p.add_argument("--delta", type=float, help="wished difference: also print the patients needed")
    p.add_argument("--alpha", type=float, default=0.05, help="two-sided error rate (default: 0.05)")
    p.add_argument("--power", type=float, default=0.8, help="wished power (default: 0.8)")
    p.add_argument("--json", action="store_true", help="print JSON instead of text")
    return p  # fmt: skip


def main(argv: list[str]) -> int:
    """Print the minimum detectable difference (and the patients a wished one needs); return 0.

    Raises:
        EvidenceError: a value out of range.
        SystemExit: ``--help`` (0) or a bad option (2).
    """
    o = parser().parse_args(argv)
    from embedprior.evidence.power import Design, patients_needed

    design = Design(o.pos, o.neg, o.auc, o.corr, o.exams_per_patient, o.icc, o.alpha, o.power, o.comparisons)
    smallest = design.minimum_detectable()
    first_step = design.minimum_detectable(first_holm_step=True)
    needed = None if o.delta is None else patients_needed(design, o.delta)
    if o.json:
        import json

        found = {
            "se_auc": design.se(), "se_difference": design.se_difference(), "min_detectable_delta": smallest,
            "min_detectable_delta_holm": first_step, "reachable": o.auc + first_step <= 1,
            "patients_needed": None if needed is None else {"pos": needed[0], "neg": needed[1]},
        }  # fmt: skip
        print(json.dumps(found, indent=2))
        return 0
    print(f"{o.pos} positive and {o.neg} negative patients, AUC {o.auc:g}, correlation {o.corr:g}:")
    print(f"  standard error of one AUC         {design.se():.4f}")
    print(f"  standard error of the difference  {design.se_difference():.4f}")
    print(f"  smallest detectable difference    {smallest:.3f}  ({o.power:.0%} power, two-sided {o.alpha:g})")
    if o.comparisons > 1:
        print(f"  at Holm's first step of {o.comparisons:<10}{first_step:.3f}")
    if o.auc + first_step > 1:
        print(f"  no AUC above {o.auc:g} is that far away: this comparison is not testable at this size")
    if needed is not None:
        print(f"  a difference of {o.delta:g} needs {needed[0]} positive and {needed[1]} negative patients")
    return 0
