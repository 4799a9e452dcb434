"""Do the intervals and tests keep their promises? Coverage, type I error and power by simulation.

Each cell draws tables of one size, AUC and law of the scores, and asks how often the 95 % interval holds the truth and
how often the test rejects at .05. The product's own functions make the limits, for all replicates at once; placements
and swaps are computed in batches here and compared with the product's on some replicates of every cell. pROC's defaults
(DeLong's variance with normal quantiles, Wald) stand beside. Prints the tables of docs/evidence.md; exits 1 when a bar
is missed. ``--quick``: fewer cells and replicates; every bar is widened by two Monte-Carlo standard errors.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats

from embedprior.evidence import delong_test
from embedprior.evidence.delong import Variance, delong
from embedprior.evidence.evaluate import evaluate_predictions
from embedprior.evidence.intervals import agreeing_with, auc_interval, auc_limits, square_and_add
from embedprior.evidence.power import detectable_difference, power_of
from embedprior.evidence.tests import SMALL, nadeau_bengio

LAWS = ("binormal", "positives SD 2", "positives SD 0.5", "hit or miss", "five levels")
CUTS = np.array([-0.5, 0.3, 1.0, 1.8])
SIZES = ((5, 15), (5, 95), (8, 22), (8, 92), (92, 8), (12, 188), (20, 180), (50, 150), (200, 200))
AUCS = (0.6, 0.7, 0.8, 0.9, 0.95, 0.97)
PAIRS = ((0.8, 0.8), (0.95, 0.95), (0.85, 0.75), (0.97, 0.87))
SWAPS = 499


def shift(auc: float) -> float:
    """Return the distance of two normals of SD 1 with this AUC."""
    return float(stats.norm.ppf(auc) * np.sqrt(2))


def truth(law: str, auc: float) -> float:
    """Return the AUC of a law: another one for five ordinal levels."""
    if law != "five levels":
        return auc
    edges = np.r_[-np.inf, CUTS, np.inf]
    negative, positive = np.diff(stats.norm.cdf(edges)), np.diff(stats.norm.cdf(edges - shift(auc)))
    return float(sum(positive[i] * (negative[:i].sum() + 0.5 * negative[i]) for i in range(5)))


def scores(law: str, auc: float, x: np.ndarray, y: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of positives and negatives from standard normal draws."""
    if law == "binormal":
        return x + shift(auc), y
    if law == "positives SD 2":
        return 2 * x + stats.norm.ppf(auc) * np.sqrt(5), y
    if law == "positives SD 0.5":
        return 0.5 * x + stats.norm.ppf(auc) * np.sqrt(1.25), y
    if law == "hit or miss":
        return np.where(special.ndtr(u) < 2 * auc - 1, 8.0, 0.0) + x, y
    return np.digitize(x + shift(auc), CUTS) * 1.0, np.digitize(y, CUTS) * 1.0


def correlated(rng: np.random.Generator, shape: tuple[int, int], r: float) -> list[np.ndarray]:
    """Return two arrays of standard normals with correlation r."""
    shared = rng.normal(size=shape)
    return [np.sqrt(r) * shared + np.sqrt(1 - r) * rng.normal(size=shape) for _ in range(2)]


def below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return for (B, m) values how many of (B, n) others are lower, ties one half."""
    together = stats.rankdata(np.concatenate([values, others], axis=1), axis=1)[:, : values.shape[1]]
    return together - stats.rankdata(values, axis=1)


def placements(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the placements of positives (B, m) and negatives (B, n)."""
    return below(x, y) / y.shape[1], 1 - below(y, x) / x.shape[1]


def variance_of(v: np.ndarray, w: np.ndarray) -> Variance:
    """Return DeLong's variance of every replicate from placements, or from their differences."""
    m, n = v.shape[1], w.shape[1]
    return Variance(v.var(axis=1, ddof=1) / m, w.var(axis=1, ddof=1) / n, m - 1, n - 1)


def limits_of(auc: np.ndarray, variance: Variance, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the product's default limits, with its bound for an AUC of exactly 0 or 1."""
    low, high = auc_limits(auc, variance)
    bound = 0.05 ** (1 / pairs)
    low = np.where(auc == 1, bound, np.where(auc == 0, 0.0, low))
    return low, np.where(auc == 1, 1.0, np.where(auc == 0, 1 - bound, high))


def swap_p(rng: np.random.Generator, first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the rank-swap p of every replicate from random swaps, drawn anew for every 50 replicates."""
    m = first[0].shape[1]
    ranks = [stats.rankdata(np.concatenate(pair, axis=1), axis=1) for pair in (first, second)]
    positives, negatives = (np.concatenate([r[:, s] for r in ranks], axis=1) for s in (np.s_[:m], np.s_[m:]))
    u = below(ranks[0][:, :m], negatives) - below(ranks[1][:, :m], negatives)
    v = below(ranks[1][:, m:], positives) - below(ranks[0][:, m:], positives)
    weights = np.concatenate([u, v], axis=1)
    p = np.empty(len(weights))
    for start in range(0, len(weights), 50):
        part = weights[start : start + 50]
        signs = rng.choice([-1.0, 1.0], size=(part.shape[1], SWAPS))
        far = np.abs(part @ signs) >= np.abs(part.sum(axis=1))[:, None] - 1e-9
        p[start : start + 50] = (1 + far.sum(axis=1)) / (SWAPS + 1)
    return p


@dataclass
class Ledger:
    """Rows of all simulations, and whether their bars are met."""

    quick: bool
    rows: list[dict[str, Any]] = field(default_factory=list)

    def hold(self, part: str, cell: dict[str, Any], name: str, hits: np.ndarray, low: float, high: float) -> None:
        """Record a rate with its Monte-Carlo error against its bar, widened by two of these errors."""
        rate = float(np.mean(hits))
        se = float(np.sqrt(max(rate * (1 - rate), 0.01 * 0.99) / hits.size))
        met = bool(low - 2 * se <= rate <= high + 2 * se)
        self.rows.append(
            {"part": part, **cell, "what": name, "rate": rate, "mc_se": se, "bar": [low, high], "met": met}
        )

    def note(self, part: str, cell: dict[str, Any], **numbers: Any) -> None:
        """Record figures that have no bar."""
        self.rows.append({"part": part, **cell, **numbers, "met": True})


def lowest(sizes: tuple[int, int]) -> float:
    """Return the bar of a coverage: .935 from 8 of a class on, .92 below."""
    return 0.935 if min(sizes) >= 8 else 0.92


def single_aucs(ledger: Ledger, rng: np.random.Generator, replicates: int) -> None:
    """Coverage and width of the interval of one AUC."""
    for m, n in SIZES[1::3] if ledger.quick else SIZES:
        for auc in AUCS[2::2] if ledger.quick else AUCS:
            for law in LAWS:
                drawn = (rng.normal(size=(replicates, k)) for k in (m, n, m))
                x, y = scores(law, auc, *drawn)
                v, w = placements(x, y)
                estimate, variance = v.mean(axis=1), variance_of(v, w)
                low, high = limits_of(estimate, variance, min(m, n))
                _same_single(x, y, low, high)
                half = 1.959964 * np.sqrt(variance.total)
                wald = np.maximum(estimate - half, 0), np.minimum(estimate + half, 1)
                true, cell = truth(law, auc), {"pos": m, "neg": n, "auc": auc, "law": law}
                ledger.hold("single", cell, "coverage", (low <= true) & (true <= high), lowest((m, n)), 1.0)
                ledger.note(
                    "single", cell, what="width", width=float((high - low).mean()),
                    proc_coverage=float(((wald[0] <= true) & (true <= wald[1])).mean()),
                    proc_width=float((wald[1] - wald[0]).mean()),
                )  # fmt: skip


def _same_single(x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    labels = np.repeat([1, 0], [x.shape[1], y.shape[1]])
    for i in range(2):
        joint = delong(labels, np.concatenate([x[i], y[i]]))
        found = auc_interval(float(joint.auc[0]), joint.variance(np.ones(1)), joint.independent_pairs)
        assert np.allclose((found.low, found.high), (low[i], high[i]), atol=1e-9, equal_nan=True)


def differences(ledger: Ledger, rng: np.random.Generator, replicates: int) -> None:
    """Coverage of a difference, type I error and power of the paired test, for two methods of one law."""
    for m, n in SIZES[2:5:2] if ledger.quick else SIZES:
        for aucs in PAIRS[::3] if ledger.quick else PAIRS:
            for r in (0.9,) if ledger.quick else (0.0, 0.9):
                for law in LAWS[:4:3] if ledger.quick else LAWS:
                    null = aucs[0] == aucs[1]
                    _difference(ledger, rng, replicates * (2 if null else 1), (m, n), aucs, r, law)


def _difference(
    ledger: Ledger, rng: np.random.Generator, replicates: int, size: tuple[int, int], aucs: tuple[float, float],
    r: float, law: str,
) -> None:  # fmt: skip
    m, n = size
    x, y, u = (correlated(rng, (replicates, k), r) for k in (m, n, m))
    a, b = (scores(law, auc, x[i], y[i], u[i]) for i, auc in enumerate(aucs))
    (va, wa), (vb, wb) = placements(*a), placements(*b)
    first, second, delta = va.mean(axis=1), vb.mean(axis=1), va.mean(axis=1) - vb.mean(axis=1)
    alone, other, together = variance_of(va, wa), variance_of(vb, wb), variance_of(va - vb, wa - wb)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(together.total > 1e-30, delta / np.sqrt(together.total), 0.0)
        rho = np.nan_to_num((alone.total + other.total - together.total) / 2 / np.sqrt(alone.total * other.total))
    p_delong = 2 * special.stdtr(together.df, -np.abs(z))
    swapped = swap_p(rng, a, b)
    coarse = law == "five levels"
    small = np.maximum(swapped, 2 * special.ndtr(-np.abs(z))) if coarse else swapped
    p = small if min(m, n) < SMALL else p_delong
    limits = square_and_add(
        first, limits_of(first, alone, min(m, n)), second, limits_of(second, other, min(m, n)), np.clip(rho, -1, 1)
    )
    low, high = agreeing_with(p, delta, limits, 0.05)
    _same_difference(a, b, p_delong, swapped, coarse and min(m, n) < SMALL)
    true = truth(law, aucs[0]) - truth(law, aucs[1])
    cell = {"pos": m, "neg": n, "aucs": list(aucs), "r": r, "law": law}
    same = (together.total <= 1e-30) & (np.abs(delta) < 1e-12) & (first < 1)
    low, high = np.where(same, 0.0, low), np.where(same, 0.0, high)
    ledger.hold("difference", cell, "coverage", (low <= true) & (true <= high), lowest(size), 1.0)
    half, z_p = 1.959964 * np.sqrt(together.total), 2 * special.ndtr(-np.abs(z))
    ledger.note(
        "difference", cell, what="width", width=float((high - low).mean()), proc_width=float(2 * half.mean()),
        proc_coverage=float((np.abs(delta - true) <= half + 1e-12).mean()),
    )  # fmt: skip
    if aucs[0] == aucs[1]:
        ledger.hold("difference", cell, "type I", p <= 0.05, 0.0, 0.055)
        ledger.note("difference", cell, what="type I of both", proc=float((z_p <= 0.05).mean()),
                    delong_t=float((p_delong <= 0.05).mean()), swaps=float((swapped <= 0.05).mean()))  # fmt: skip
    else:
        ledger.note("difference", cell, what="power", ours=float((p <= 0.05).mean()), proc=float((z_p <= 0.05).mean()))


def _same_difference(
    a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...], p: np.ndarray, swapped: np.ndarray, larger: bool
) -> None:
    labels = np.repeat([1, 0], [a[0].shape[1], a[1].shape[1]])
    for i in range(2):
        found = delong_test(labels, np.concatenate([a[0][i], a[1][i]]), np.concatenate([b[0][i], b[1][i]]))
        if np.isfinite(found.p_delong) and found.reason is None:
            assert np.isclose(found.p_delong, p[i], atol=1e-9)
            error = 5 * np.sqrt(found.p_permutation * (1 - found.p_permutation) / SWAPS) + 2 / SWAPS
            assert abs(found.p_permutation - swapped[i]) < error
            assert ("the larger p" in found.method) == larger


def clusters_and_folds(ledger: Ledger, rng: np.random.Generator, replicates: int) -> None:
    """Coverage, type I error and share of undefined tables with several exams a patient, and with folds."""
    clustered = ((40, 16, 3, 0.8, 0.5), (40, 8, 3, 0.8, 0.5), (40, 5, 3, 0.8, 0.5), (100, 8, 3, 0.9, 0.8))
    for patients, positive, exams, auc, icc in clustered[1:2] if ledger.quick else clustered:
        patient = np.repeat(np.arange(patients), exams)
        labels = (patient < positive).astype(int)

        def effect(icc: float = icc, patient: np.ndarray = patient, patients: int = patients) -> np.ndarray:
            return np.sqrt(icc) * rng.normal(size=patients)[patient] + np.sqrt(1 - icc) * rng.normal(size=patient.size)

        cell = {"pos": positive, "neg": patients - positive, "exams": exams, "auc": auc, "icc": icc}
        _by_product(ledger, "clusters", cell, replicates, labels, auc, effect, (positive, patients), groups=patient)
    folded = ((8, 92, 5, 0.8), (8, 32, 5, 0.8), (8, 92, 5, 0.9), (5, 45, 5, 0.8), (23, 63, 5, 0.8))
    for m, n, k, auc in folded[:1] if ledger.quick else folded:
        labels, fold = np.repeat([1, 0], [m, n]), np.r_[np.arange(m) % k, np.arange(n) % k]
        cell = {"pos": m, "neg": n, "folds": k, "auc": auc}
        _by_product(
            ledger, "folds", cell, replicates, labels, auc, lambda m=m, n=n: rng.normal(size=m + n), (m, n), folds=fold
        )


def _by_product(
    ledger: Ledger, part: str, cell: dict[str, Any], replicates: int, labels: np.ndarray, auc: float,
    effect: Callable[[], np.ndarray], size: tuple[int, int], **structure: np.ndarray,
) -> None:  # fmt: skip
    found = []
    for _ in range(replicates):
        common = effect()
        a, b = ((common + effect()) / np.sqrt(2) + shift(auc) * labels for _ in range(2))
        test = delong_test(labels, a, b, **structure)
        low, high = test.auc_ci[0]
        found.append((low <= auc <= high, test.ci[0] <= 0 <= test.ci[1], test.p <= 0.05, np.isnan(low + test.p)))
    covered, difference, rejected, undefined = np.array(found).T
    ledger.hold(part, cell, "coverage", covered, lowest(size), 1.0)
    ledger.hold(part, cell, "coverage of the difference", difference, lowest(size), 1.0)
    ledger.hold(part, cell, "type I", rejected, 0.0, 0.055)
    ledger.hold(part, cell, "undefined", undefined, 0.0, 0.0)


def table(labels: np.ndarray, by_method: dict[str, np.ndarray], **columns: Any) -> Any:
    """Return a predictions table of (seeds, N) scores by method."""
    import pandas as pd

    ids = [f"p{i}" for i in range(labels.size)]
    return pd.concat(
        [
            pd.DataFrame(
                {"exam_id": ids, "patient_id": ids, "label": labels, "method": m, "seed": s, "score": row, **columns}
            )
            for m, rows in by_method.items()
            for s, row in enumerate(np.atleast_2d(rows))
        ],
        ignore_index=True,
    )


def studies(ledger: Ledger, rng: np.random.Generator, replicates: int) -> None:
    """One small study of three seeds again and again, nothing true; and power against plan at three effects."""
    m, n = 34, 26
    labels = np.repeat([1, 0], [m, n])
    verdicts, rejected = [], []
    for _ in range(replicates):
        case = rng.normal(size=m + n)
        drawn = {
            name: case + 0.1 * rng.normal(size=m + n) + 0.2 * rng.normal(size=(3, m + n)) + 1.2 * labels
            for name in ("ref", "a")
        }
        (row,) = evaluate_predictions(table(labels, drawn), "ref")["comparisons"]
        verdicts.append(row["verdict"])
        rejected.append(row["p"] <= 0.05)
    cell = {"pos": m, "neg": n, "seeds": 3}
    ledger.hold("studies", cell, "supported", np.array([v.startswith("supported") for v in verdicts]), 0.0, 0.05)
    ledger.hold("studies", cell, "one verdict", np.array(verdicts) == max(verdicts, key=verdicts.count), 0.95, 1.0)
    ledger.hold("studies", cell, "type I", np.array(rejected), 0.0, 0.055)
    for m, n, auc, r in ((40, 90, 0.75, 0.5), (120, 240, 0.8, 0.9)):
        labels, folds = np.repeat([1, 0], [m, n]), [(float(m), float(n))]
        x, y = (correlated(rng, (2000, k), r) for k in (m, n))
        pilot = [below(x[i] + shift(auc), y[i]).mean(axis=1) / n for i in (0, 1)]
        correlation = float(np.corrcoef(*pilot)[0, 1])
        least = detectable_difference(folds, auc, correlation)
        for effect in (0.7 * least, least, 1.25 * least):
            x, y = (correlated(rng, (replicates, k), r) for k in (m, n))
            hits = [
                delong_test(labels, np.r_[x[0][i] + shift(auc + effect), y[0][i]], np.r_[x[1][i] + shift(auc), y[1][i]])
                for i in range(replicates)
            ]
            planned = power_of(effect, folds, auc, correlation)
            ledger.hold(
                "power", {"pos": m, "neg": n, "auc": auc, "r": r, "effect": round(effect, 4), "planned": planned},
                "power against plan", np.array([h.p <= 0.05 and h.delta > 0 for h in hits]), planned - 0.05,
                planned + 0.05,
            )  # fmt: skip


def recipes(ledger: Ledger, rng: np.random.Generator, replicates: int) -> None:
    """Two training recipes that are equal on average: what tests that take models as fixed make of it."""
    for m, n, width in ((12, 28, 10), (30, 70, 10))[: 1 if ledger.quick else 2]:
        labels = np.repeat([1, 0], [m, n])
        effect = 0.35 * np.tile(np.r_[np.ones(3), np.zeros(width - 3)], 2)
        fixed, corrected, verdicts = [], [], []
        for trained in range(replicates):
            features = rng.normal(size=(m + n, 2 * width)) + labels[:, None] * effect
            fold = np.empty(m + n, int)
            for value in (0, 1):
                fold[rng.permutation(np.flatnonzero(labels == value))] = np.arange((labels == value).sum()) % 5
            drawn = np.zeros((2, m + n))
            for k in range(5):
                for i in range(2):
                    own = features[:, i * width : (i + 1) * width]
                    train, y = own[fold != k], labels[fold != k]
                    step = train[y == 1].mean(0) - train[y == 0].mean(0)
                    weights = np.linalg.solve(np.cov(train.T) + 0.5 * np.eye(width), step)
                    drawn[i, fold == k] = own[fold == k] @ weights
            fixed.append(delong_test(labels, *drawn, folds=fold).p <= 0.05)
            if trained < 40:
                both = table(labels, {"ref": drawn[0], "a": drawn[1]}, fold=fold)
                (row,) = evaluate_predictions(both, "ref")["comparisons"]
                verdicts.append(row["verdict"].startswith("supported"))
            aucs = [[float(delong(labels[fold == k], drawn[i, fold == k]).auc[0]) for i in (0, 1)] for k in range(5)]
            corrected.append(nadeau_bengio(np.subtract(*np.array(aucs).T), 1 / 4).p <= 0.05)
        ledger.hold("recipes", {"pos": m, "neg": n}, "supported", np.array(verdicts), 0.0, 0.05)
        ledger.note(
            "recipes", {"pos": m, "neg": n}, what="rejected", fixed_models=float(np.mean(fixed)),
            corrected=float(np.mean(corrected)), mc_se=float(np.sqrt(0.1 * 0.9 / replicates)),
        )  # fmt: skip


def printed(rows: list[dict[str, Any]]) -> str:
    """Return the summary tables in Markdown, as they stand in docs/evidence.md."""
    out = []
    for part, title in (("single", "One AUC"), ("difference", "Difference of two AUCs")):
        out += [
            f"{title}: coverage of the 95 % interval over all laws and AUCs, worst / mean, mean width",
            "| positives / negatives | default | width | pROC's default | width |", "|---|---|---|---|---|",
        ]  # fmt: skip
        for m, n in SIZES:
            own = [r for r in rows if r["part"] == part and (r["pos"], r["neg"]) == (m, n)]
            rate = [r["rate"] for r in own if r["what"] == "coverage"]
            noted = [r for r in own if r["what"] == "width"]
            if not rate:
                continue
            mean = {k: np.mean([r[k] for r in noted]) for k in ("width", "proc_width", "proc_coverage")}
            worst = min(r["proc_coverage"] for r in noted)
            out.append(
                f"| {m} / {n} | {min(rate):.3f} / {np.mean(rate):.3f} | {mean['width']:.3f} | {worst:.3f} / "
                f"{mean['proc_coverage']:.3f} | {mean['proc_width']:.3f} |"
            )
        out.append("")
    out += [
        "Paired test: type I error at AUC .8 and .95, worst over laws and correlations; power, mean over the rest",
        "| positives / negatives | default | pROC's default | power | pROC's |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for m, n in SIZES:
        own = [r for r in rows if r["part"] == "difference" and (r["pos"], r["neg"]) == (m, n)]
        error = [r["rate"] for r in own if r["what"] == "type I"]
        if not error:
            continue
        proc = max(r["proc"] for r in own if r["what"] == "type I of both")
        power = [(r["ours"], r["proc"]) for r in own if r["what"] == "power"]
        ours, theirs = np.mean(power, axis=0)
        out.append(f"| {m} / {n} | {max(error):.3f} | {proc:.3f} | {ours:.3f} | {theirs:.3f} |")
    out.append("")
    for r in rows:
        if r["part"] not in ("single", "difference"):
            cell = {k: v for k, v in r.items() if k not in ("part", "met", "bar")}
            shown = [f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in cell.items()]
            out.append(f"{r['part']}: {', '.join(shown)}")
    return "\n".join(out)


def main() -> int:
    """Print every promise; return 1 when one is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cells and replicates (about a minute)")
    parser.add_argument("--replicates", type=int, default=2000, help="of a cell; parts that run the product take fewer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures")
    options = parser.parse_args()
    replicates = min(options.replicates, 400) if options.quick else options.replicates
    ledger = Ledger(options.quick)
    parts = (
        (single_aucs, replicates), (differences, replicates // 2), (clusters_and_folds, replicates // 3),
        (studies, min(400, replicates)), (recipes, replicates // 10),
    )  # fmt: skip
    for i, (simulate, count) in enumerate(parts):
        start = time.process_time()
        simulate(ledger, np.random.default_rng(np.random.SeedSequence([2026, i])), count)
        print(f"{simulate.__name__}: {count} replicates, {time.process_time() - start:.0f} s of CPU", flush=True)
    print(printed(ledger.rows))
    missed = [r for r in ledger.rows if not r["met"]]
    for row in missed:
        print("MISSED:", {k: v for k, v in row.items() if k not in ("met",)})
    judged = sum("bar" in r for r in ledger.rows)
    print(f"{judged - len(missed)} of {judged} rates meet their bar (widened by 2 Monte-Carlo standard errors)")
    if options.json:
        options.json.write_text(
            json.dumps({"replicates": replicates, "rows": ledger.rows, "met": not missed}, indent=1) + "\n"
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
