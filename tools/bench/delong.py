"""Joint DeLong against its floor (one argsort per model) and against what people use instead.

Ratios of one run on one machine: ours / floor at N = 1e5 and 1e6 with 2 and 10 models (bar: at most 5), and
MLstatkit / ours and scikit-learn's AUC bootstrapped 1000 times / ours at N = 1e3 and 1e4 (bar: we are faster).
Contestants take turns and the fastest of their turns counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from embedprior.evidence.delong import delong
from embedprior.evidence.tests import two_sided_p

FLOOR_BAR = 5.0
PEER_BAR = 1.0


def fastest(contestants: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Return the fewest seconds of each contestant, all taking turns."""
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(turns):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def data(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (n,) and continuous scores (k, n)."""
    rng = np.random.default_rng(np.random.SeedSequence([7, n, k]))
    labels = rng.random(n) < 0.35
    return labels, rng.normal(size=(k, n)) + labels


def against_floor(quick: bool) -> list[dict[str, object]]:
    """Time ours against k float64 argsorts."""
    rows = []
    for n in (100_000, 1_000_000):
        for k in (2, 10):
            labels, scores = data(n, k)
            turns = 3 if quick or n > 100_000 else 9
            t = fastest(
                {
                    "floor": lambda s=scores: [np.argsort(row) for row in s],
                    "ours": lambda y=labels, s=scores: delong(y, s),
                },
                turns,
            )
            ratio = t["ours"] / t["floor"]
            rows.append({"n": n, "k": k, **t, "ratio": ratio, "bar": FLOOR_BAR, "met": ratio <= FLOOR_BAR})
            print(
                f"N = {n:>9,}  k = {k:>2}  argsort {t['floor']:.4f} s  ours {t['ours']:.4f} s  "
                f"ratio {ratio:.2f}  bar <= {FLOOR_BAR:g}  {_met(ratio <= FLOOR_BAR)}"
            )
    return rows


def against_peers(quick: bool) -> list[dict[str, object]]:
    """Time MLstatkit's paired test and a 1000-fold scikit-learn bootstrap of one AUC against our paired test."""
    from sklearn.metrics import roc_auc_score

    try:
        from MLstatkit import Delong_test
    except ImportError:
        Delong_test = None
        print("MLstatkit is not installed (pip install MLstatkit): its rows are skipped")
    rows: list[dict[str, object]] = []
    for n in (1_000,) if quick else (1_000, 10_000):
        labels, scores = data(n, 2)
        y = labels.astype(int)
        rng = np.random.default_rng(1)

        def bootstrap(y: np.ndarray = y, s: np.ndarray = scores[0], rng: np.random.Generator = rng) -> None:
            for _ in range(1000):
                drawn = rng.integers(0, y.size, y.size)
                roc_auc_score(y[drawn], s[drawn])

        def ours(y: np.ndarray = labels, s: np.ndarray = scores) -> float:
            joint = delong(y, s)
            difference = joint.variance(np.array([1.0, -1.0]))
            z = float((joint.auc[0] - joint.auc[1]) / np.sqrt(difference.total))
            two_sided_p(z, float(difference.df))
            return z

        peers: dict[str, Callable[[], object]] = {}
        if Delong_test is not None:
            peers["MLstatkit"] = lambda y=y, s=scores: Delong_test(y, s[0], s[1])
        t = fastest({"ours": ours, **peers}, 5 if quick else 15)
        t |= fastest({"scikit-learn bootstrap x1000": bootstrap}, 1)
        for peer in [*peers, "scikit-learn bootstrap x1000"]:
            ratio = t[peer] / t["ours"]
            met = ratio > PEER_BAR
            rows.append({"n": n, "peer": peer, "peer_s": t[peer], "ours": t["ours"], "ratio": ratio, "met": met})
            print(f"N = {n:>6,}  {peer} {t[peer]:.4f} s  ours {t['ours']:.6f} s  {ratio:,.0f}x  bar > 1  {_met(met)}")
        if Delong_test is not None:
            gap = abs(abs(float(Delong_test(y, scores[0], scores[1])[0])) - abs(ours()))
            rows.append({"n": n, "peer": "MLstatkit", "z_difference": gap, "met": gap < 1e-8})
            print(f"N = {n:>6,}  |z| differs from MLstatkit's by {gap:.1e}  bar < 1e-8  {_met(gap < 1e-8)}")
    return rows


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def main() -> int:
    """Print the ratios; return 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns, smaller peers' runs (under a minute)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    options = parser.parse_args()
    found = {"floor": against_floor(options.quick), "peers": against_peers(options.quick)}
    met = all(bool(row["met"]) for rows in found.values() for row in rows)
    if options.json:
        options.json.write_text(json.dumps({**found, "quick": options.quick, "met": met}, indent=2) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
