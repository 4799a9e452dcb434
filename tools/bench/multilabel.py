"""18 labels × 100,000 exams through the whole evaluation on one core: AUCs, intervals, paired tests, macro, Holm.

Two methods, continuous scores, a twentieth of every label unknown, no bootstrap (closed forms). The bar: 60 seconds of
CPU. The floor of the same run is one argsort of every column of scores, what any rank statistic must pay.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.evidence import evaluate_predictions

LABELS, METHODS, BAR_S = 18, ("aligned", "unaligned"), 60.0


def table(exams: int) -> pd.DataFrame:
    """Return a long predictions table, one row an exam, label and method."""
    rng = np.random.default_rng(0)
    patients = np.arange(exams)
    repeats = rng.choice(exams, exams // 20, replace=False)
    patients[repeats] = patients[(repeats + 1) % exams]
    ids, people = (np.array([f"{kind}{i}" for i in numbers], dtype=object) for kind, numbers in
                   (("x", range(exams)), ("p", patients)))  # fmt: skip
    parts = []
    for number in range(LABELS):
        truth = (rng.random(exams) < rng.uniform(0.03, 0.4)).astype(float)
        truth[rng.random(exams) < 0.05] = np.nan
        for strength, method in zip((0.9, 0.8), METHODS, strict=True):
            score = rng.normal(size=exams) + strength * np.nan_to_num(truth)
            parts.append(
                pd.DataFrame({"exam_id": ids, "patient_id": people, "label": truth, "method": method, "score": score,
                              "label_name": f"label {number}"})
            )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def main() -> int:
    """Measure and print; return 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10,000 exams; the bar is scaled")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    exams = 10_000 if args.quick else 100_000
    frame, bar = table(exams), BAR_S * exams / 100_000
    scores = frame["score"].to_numpy().reshape(-1, exams)
    started = time.process_time()
    for column in scores:
        np.argsort(column)
    floor = time.process_time() - started
    started = time.process_time()
    evidence = evaluate_predictions(frame, METHODS[1], patient_label="max")
    seconds = time.process_time() - started
    family = [row for row in evidence["comparisons"] if row["in_family"]]
    met = seconds <= bar
    print(
        f"{LABELS} labels x {exams:,} exams x {len(METHODS)} methods ({len(frame):,} rows): {seconds:.1f} s of CPU, "
        f"bar <= {bar:g} s {'met' if met else 'MISSED'}; "
        f"{seconds / floor:.0f} times the sorting alone ({floor:.2f} s); {len(family)} tests in one Holm family"
    )
    if args.json:
        figures = {"exams": exams, "seconds": seconds, "bar": bar, "floor": floor, "tests": len(family), "met": met}
        args.json.write_text(json.dumps(figures, indent=2))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
