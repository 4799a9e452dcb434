"""Which difference of AUCs a design could detect, before anything is fitted.

Hanley and McNeil's standard error with an assumed AUC and correlation, applied to the held-out patients of each round:
fold by fold where pairs are formed within folds, and with Nadeau and Bengio's factor over Monte-Carlo resamples. A
patient counts once, however many X-rays there are (their repeated X-rays are taken to add nothing: cautious).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from embedprior.cohort.splits import Round
from embedprior.evidence.power import detectable, hanley_mcneil_se
from embedprior.study.config import Assumed, Decision, Design


@dataclass(frozen=True)
class Detectable:
    """What a comparison in one design could show.

    Attributes:
        n_pos, n_neg: held-out patients (mean over resamples where there are several).
        delta: smallest true difference found with 80 % power; None with the ``reason``.
        delta_holm: the same at Holm's first step over the design's claims.
        reason: why there is none.
    """

    n_pos: float
    n_neg: float
    delta: float | None
    delta_holm: float | None
    reason: str


def held_out_counts(targets: pd.DataFrame, rounds: Sequence[Round]) -> pd.DataFrame:
    """Return held-out and training patients with a known label by round: ``resample, fold, pos, neg, train``."""
    highest = targets.groupby("patient_id")["label"].max()
    rows = []
    for r in rounds:
        held = highest[highest.index.isin(r.patients("test"))]
        train = highest.index.isin(r.patients("train"))
        rows.append((r.resample, r.fold, int((held == 1).sum()), int((held == 0).sum()), int(train.sum())))
    return pd.DataFrame(rows, columns=["resample", "fold", "pos", "neg", "train"])


def detectable_difference(
    counts: pd.DataFrame, design: Design, family: int, assumed: Assumed, decision: Decision
) -> Detectable:
    """Return the smallest difference a claim of this design could show.

    Args:
        counts: see ``held_out_counts``.
        design: its settings; the repeats of a k-fold hold out the same patients and count once.
        family: number of claims Holm adjusts over.
        assumed: AUC and correlation.
        decision: error rate.
    """
    monte_carlo = design.split == "resamples"
    resamples = [part for _, part in counts.groupby("resample")]
    used = resamples if monte_carlo else resamples[:1]
    n_pos, n_neg = (float(np.mean([part[c].sum() for part in used])) for c in ("pos", "neg"))
    errors = [_standard_error(part, assumed) for part in used]
    if any(e is None for e in errors):
        which = "resample" if monte_carlo else "fold"
        least = ", ".join(f"{int(counts[c].min())} {word}" for c, word in (("pos", "positive"), ("neg", "negative")))
        return Detectable(n_pos, n_neg, None, None, f"a {which} holds out too few patients (fewest: {least})")
    se, df = float(np.mean([e for e in errors if e is not None])), np.inf
    if len(used) > 1:
        ratio = float(np.mean([part["pos"].sum() + part["neg"].sum() for part in used])) / counts["train"].mean()
        se *= float(np.sqrt(1 / len(used) + ratio))
        df = len(used) - 1
    alpha = decision.alpha
    delta, first = (detectable(se, alpha=level, df=df) for level in (alpha, alpha / max(family, 1)))
    if delta >= 1:
        why = f"the interval is so wide that even a difference of 1 would not show (detectable: {delta:.2f})"
        return Detectable(n_pos, n_neg, None, None, why)
    return Detectable(n_pos, n_neg, delta, first, "")


def _standard_error(folds: pd.DataFrame, assumed: Assumed) -> float | None:
    """Standard error of a paired difference, pairs formed within folds; None where a fold has 1 of a class."""
    paired = folds[(folds["pos"] > 0) & (folds["neg"] > 0)]
    if paired.empty or bool((paired[["pos", "neg"]] < 2).to_numpy().any()):
        return None
    weights = (paired["pos"] * paired["neg"]).to_numpy(dtype=float)
    weights /= weights.sum()
    each = [
        hanley_mcneil_se(assumed.auc, float(p), float(n)) for p, n in zip(paired["pos"], paired["neg"], strict=True)
    ]
    return float(np.sqrt((weights**2 * np.square(each)).sum() * 2 * (1 - assumed.correlation)))
