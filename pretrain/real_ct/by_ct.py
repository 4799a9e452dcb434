"""Leave-one-CT-out, read with the CT as the unit: one AUC for each CT and method, compared over the CTs.

``python pretrain/real_ct/by_ct.py --predictions runs/real_ct_planted_study/predictions.csv --claims hinton-kd:cxr-only
prior:cxr-only prior:direct-head`` writes ``by_ct.csv`` (mean AUC with a t interval) and ``by_ct_claims.csv`` (mean
difference with a t interval, exact sign-flip test, Holm over the claims) beside the predictions.

A fold that holds out one CT has no DeLong variance by CT; the CTs themselves are the sample (n = 14 for the real ones),
so what varies between them is the error. The fits share their training CTs, which makes the intervals too narrow if
anything (Nadeau and Bengio, Machine Learning 52, 2003).
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from embedprior.errors import BadInput, EmbedpriorError, nearest
from embedprior.evidence.delong import delong
from embedprior.evidence.tests import holm
from embedprior.tables import PREDICTION_REQUIRED, read_table, write_table

EXACT_UP_TO = 16


def auc_by_ct(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return one row a CT and one column a method: the AUC over the CT's images, the mean over seeds.

    Raises:
        BadInput: a CT whose images bear one label only.
    """
    rows = []
    for (method, ct, seed), part in predictions.groupby(["method", "patient_id", "seed"], sort=False):
        if part["label"].nunique() < 2:
            raise BadInput(f"CT '{ct}' has images of one label only; its AUC is not defined.")
        auc = delong(part["label"].to_numpy(), part["score"].to_numpy()).auc[0]
        rows.append((method, ct, seed, float(auc)))
    table = pd.DataFrame(rows, columns=["method", "patient_id", "seed", "auc"])
    wide = table.groupby(["patient_id", "method"])["auc"].mean().unstack("method")
    if wide.isna().any(axis=None):
        raise BadInput("not every method scored every CT; compare methods on the same cases only.")
    return wide


def interval(values: Float[np.ndarray, " cts"]) -> tuple[float, float, float]:
    """Return the mean and its 95 % t interval over CTs."""
    mean, half = float(values.mean()), float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))
    return mean, mean - half, mean + half


def sign_flip_p(differences: Float[np.ndarray, " cts"]) -> float:
    """Return the two-sided p of the mean difference under exchangeable signs: every one of the 2ⁿ assignments."""
    if len(differences) > EXACT_UP_TO:
        raise BadInput(f"{len(differences)} CTs; the exact test is meant for at most {EXACT_UP_TO}.")
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(differences))))
    sums = np.abs(signs @ differences)
    return float(np.mean(sums >= abs(differences.sum()) - 1e-12))


def compare(table: pd.DataFrame, claims: Sequence[tuple[str, str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the methods' mean AUCs and the claims' differences (see the module).

    Raises:
        BadInput: a claim names a method that is not there.
    """
    for name in itertools.chain(*claims):
        if name not in table.columns:
            allowed = [str(c) for c in table.columns]
            raise BadInput(f"no method '{name}'. Allowed: {', '.join(allowed)}.{nearest(name, allowed)}")
    rows = [(name, len(table), *np.clip(interval(table[name].to_numpy()), 0, 1)) for name in table.columns]
    methods = pd.DataFrame(rows, columns=["method", "cts", "auc", "low", "high"])
    found = []
    for a, b in claims:
        difference = (table[a] - table[b]).to_numpy()
        better, worse = int((difference > 0).sum()), int((difference < 0).sum())
        found.append((a, b, len(table), *interval(difference), better, worse, sign_flip_p(difference)))
    columns = ["a", "b", "cts", "difference", "low", "high", "a_better_in", "b_better_in", "p"]
    differences = pd.DataFrame(found, columns=columns)
    return methods.sort_values("auc", ascending=False), differences.assign(p_holm=holm(differences["p"]))


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--claims", nargs="+", default=["hinton-kd:cxr-only", "prior:cxr-only", "prior:direct-head"])
    options = parser.parse_args()
    claims = [(a, b) for a, _, b in (claim.partition(":") for claim in options.claims)]
    try:
        table = auc_by_ct(read_table(options.predictions, PREDICTION_REQUIRED))
        methods, differences = compare(table, claims)
    except EmbedpriorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    write_table(methods, options.predictions.parent / "by_ct.csv")
    write_table(differences, options.predictions.parent / "by_ct_claims.csv")
    print(f"The unit is the CT: n = {len(table)}.\n")
    for row in methods.itertuples():
        print(f"{row.method:<14} AUC {row.auc:.3f} ({row.low:.3f} to {row.high:.3f})")
    print()
    for row in differences.itertuples():
        print(
            f"{row.a} - {row.b}: {row.difference:+.3f} ({row.low:+.3f} to {row.high:+.3f}), better in "
            f"{row.a_better_in}, worse in {row.b_better_in} of {row.cts}, p = {row.p:.3g} (Holm {row.p_holm:.3g})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
