"""Does a study claim what is not there, and find what its plan says it finds?

Three parts, each through the study's own evidence. 2,000 null studies of scores: every method has the same AUC, so any
claim that comes out "supported" is false. 20 null studies that are trained: labels are shuffled between patients, and
students, ridge and direct head are fitted on what is left. Power: two methods that differ by what ``embedprior power``
says is found with 50, 80 and 95 % chance. Every part is written to ``--out`` as it goes and is not repeated: a stopped
run goes on. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common.measuring import Table
from scipy import optimize, special

from embedprior.cache import write_cache
from embedprior.config import parse_config
from embedprior.encoders.base import EncoderSpec
from embedprior.evidence.decision import SUPPORTED, SUPPORTED_SMALL
from embedprior.evidence.delong import delong
from embedprior.evidence.evaluate import evaluation, judged
from embedprior.evidence.power import detectable_difference, power_of
from embedprior.runs import one_thread
from embedprior.study.config import StudyConfig
from embedprior.study.evidence import all_evidence
from embedprior.study.run import read_study, run_study

REFERENCE, RIVALS = "cxr-only", ("a", "b", "c", "d")
POWERS = (0.5, 0.8, 0.95)
CHUNK = 100
Scores = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Layout:
    """One kind of null study.

    Attributes:
        name: in the table.
        pos, neg: held-out patients.
        seeds: fits of every method; each moves its method's AUC a little.
        folds: held out one after the other.
        exams: of each patient; more than one is evaluated by exam, clustered by patient.
        designs: on the same patients, judged as one family.
        auc: of every method.
    """

    name: str
    pos: int
    neg: int
    seeds: int = 1
    folds: int = 1
    exams: int = 1
    designs: int = 1
    auc: float = 0.75


LAYOUTS = (
    Layout("fixed split, three seeds", 60, 90, seeds=3),
    Layout("five folds, three seeds", 60, 140, seeds=3, folds=5),
    Layout("few positives", 15, 85, auc=0.85),
    Layout("three exams a patient", 40, 60, exams=3),
    Layout("two worlds of one study", 150, 150, seeds=3, designs=2),
)


def table(layout: Layout, rng: np.random.Generator, correlation: float = 0.6) -> pd.DataFrame:
    """Return the held-out scores of one null study's design: methods alike in law, correlated over patients."""
    patients = layout.pos + layout.neg
    label = np.repeat([1, 0], [layout.pos, layout.neg])
    fold = rng.permutation(patients) % layout.folds
    shift = float(special.ndtri(layout.auc) * np.sqrt(2))
    shared = rng.normal(size=patients)
    rows = []
    for method in (REFERENCE, *RIVALS):
        own = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(size=patients)
        for seed in range(layout.seeds):
            moved = shift + (0.15 * rng.normal() if layout.seeds > 1 else 0.0)
            for exam in range(layout.exams):
                noise = own + 0.5 * rng.normal(size=patients) if layout.exams + layout.seeds > 2 else own
                rows.append(
                    pd.DataFrame(
                        {
                            "exam_id": [f"e{i}-{exam}" for i in range(patients)],
                            "patient_id": [f"p{i}" for i in range(patients)], "label": label, "method": method,
                            "score": special.expit(noise + moved * label), "fold": fold, "seed": seed, "split": "test",
                        }
                    )
                )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def supported(evidence: list[dict[str, Any]]) -> int:
    """Return how many declared claims came out supported."""
    declared = [c for e in evidence for c in e["comparisons"] if c["in_family"]]
    return sum(c["verdict"] in (SUPPORTED, SUPPORTED_SMALL) for c in declared)


def null_study(layout: Layout, rng: np.random.Generator) -> int:
    """Return the false claims of one null study. The relevant difference is one that its size can detect."""
    family = [(rival, REFERENCE) for rival in RIVALS]
    sizes = [(layout.pos / layout.folds, layout.neg / layout.folds)] * layout.folds
    alpha = 0.05 / (len(family) * layout.designs)
    relevant = min(0.45, detectable_difference(sizes, 0.8, 0.5, alpha=alpha) + 0.005)
    parts = [
        evaluation(
            table(layout, rng), REFERENCE, family, "exam" if layout.exams > 1 else "patient", relevant_delta=relevant,
            planned=(relevant, relevant - 0.004),
        )
        for _ in range(layout.designs)
    ]  # fmt: skip
    return supported(judged(parts))


def effect(power: float, pos: int, neg: int) -> float:
    """Return the difference above AUC .8 that the plan says is found with this power."""
    return float(optimize.brentq(lambda d: power_of(d, [(pos, neg)], 0.8, 0.5) - power, 1e-4, 0.19))


def score_correlation(delta: float) -> float:
    """Return the correlation of two methods' scores at which their AUC estimates correlate by one half."""
    rng = np.random.default_rng(0)
    size = 4000
    shared, first, second = rng.normal(size=(3, size))
    label = np.arange(size) % 2
    shifts = special.ndtri(np.array([0.8 + delta, 0.8])) * np.sqrt(2)

    def excess(r: float) -> float:
        each = [np.sqrt(r) * shared + np.sqrt(1 - r) * own for own in (first, second)]
        found = delong(label, np.stack([e + s * label for e, s in zip(each, shifts, strict=True)]))
        cov = np.asarray(found.covariance)
        return float(cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1])) - 0.5

    return float(optimize.brentq(excess, 0.2, 0.9, xtol=1e-3))


def power_study(power: float, rng: np.random.Generator, pos: int, neg: int, correlation: float) -> int:
    """Return 1 when a true difference is found."""
    delta, label = effect(power, pos, neg), np.repeat([1, 0], [pos, neg])
    shared = rng.normal(size=pos + neg)
    rows = []
    for method, auc in (("better", 0.8 + delta), (REFERENCE, 0.8)):
        own = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(size=pos + neg)
        score = special.expit(own + special.ndtri(auc) * np.sqrt(2) * label)
        names = [f"p{i}" for i in range(pos + neg)]
        columns = {"exam_id": names, "patient_id": names, "label": label, "method": method, "score": score}
        rows.append(pd.DataFrame(columns))
    relevant = detectable_difference([(pos, neg)], 0.8, 0.5)
    found = evaluation(
        pd.concat(rows, ignore_index=True), REFERENCE, [("better", REFERENCE)], relevant_delta=relevant + 0.005
    )
    return min(supported(judged([found])), 1)


def trained_study(seed: int) -> int:
    """Return the false claims of a study whose labels were shuffled between patients before anything was fitted."""
    rng = np.random.default_rng(seed)
    patients = 180
    ct = rng.normal(size=(patients, 8))
    cxr = ct @ rng.normal(size=(8, 12)) + 2 * rng.normal(size=(patients, 12))
    label = rng.permutation((ct[:, 0] + 0.3 * rng.normal(size=patients) > 0).astype(int))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exams, pairs = [], []
        for i in range(patients):
            for modality in ("CXR", "CT"):
                exams.append((f"{modality}{i}", f"p{i}", modality, "", label[i]))
            pairs.append((f"pair{i}", f"p{i}", f"CXR{i}", f"CT{i}", 0, 1))
        columns = ["exam_id", "patient_id", "modality", "path", "label:finding"]
        pd.DataFrame(exams, columns=columns).to_csv(folder / "exams.csv", index=False)
        columns = ["pair_id", "patient_id", "cxr_exam_id", "ct_exam_id", "offset_days", "label_agree"]
        pd.DataFrame(pairs, columns=columns).to_csv(folder / "pairs.csv", index=False)
        for modality, rows in (("CXR", cxr), ("CT", ct)):
            spec = EncoderSpec(
                name="drawn", modality=modality, dim=rows.shape[1], source="drawn", weights_sha256="none",
                licence="none", profile={}, pooling="none",
            )  # fmt: skip
            ids = [f"{modality}{i}" for i in range(patients)]
            write_cache(folder / modality, spec, ids, ids, rows.astype(np.float32))
        methods = ["cxr-only", "hinton-kd", "ridge-head", "direct-head"]
        settings = {
            "title": "null", "label": "finding", "caches": {"cxr": "CXR", "ct": "CT"}, "seed": seed,
            "fit": {"hidden": 16, "steps": 60, "validate_every": 20},
            "inference": {"unit": "patient", "relevant_delta": 0.2},
            "designs": [{"name": "folds", "folds": 3, "validation": True, "methods": methods}],
            "hypotheses": [
                {"name": m, "claim": f"{m} is better", "design": "folds", "a": m, "b": "cxr-only"} for m in methods[1:]
            ],
        }  # fmt: skip
        config = parse_config(StudyConfig, settings, "the null study")
        with one_thread():
            result = run_study(read_study(config, folder), folder / "out", lambda name, **fields: None)
        return supported(list(all_evidence(config, result).values()))


def kept(file: Path, count: int, work: Callable[[int], int]) -> Scores:
    """Return the outcomes of ``count`` numbered studies; those in the file are not repeated."""
    done: list[int] = json.loads(file.read_text()) if file.is_file() else []
    for start in range(len(done), count, CHUNK):
        done += [work(i) for i in range(start, min(start + CHUNK, count))]
        file.write_text(json.dumps(done))
    return np.array(done[:count], dtype=np.float64)


def main() -> int:
    """Print the rates with their bars and return 1 when one is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/study-null"), help="folder of what is done")
    parser.add_argument("--parts", nargs="+", choices=("scores", "power", "trained"),
                        default=["scores", "power", "trained"])  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="a tenth of the studies of scores, two that are trained")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    each, powered, trained = (40, 60, 2) if options.quick else (400, 800, 20)
    shown = Table()
    if "scores" in options.parts:
        hits = np.concatenate(list(_null_rates(shown, options.out, each)))
        se = float(np.sqrt(0.05 * 0.95 / len(hits)))
        shown.hold(f"{len(hits)} null studies with a false claim", float(hits.mean()), "share", most=0.05 + 2 * se)
    if "power" in options.parts:
        for power in POWERS:
            correlation = score_correlation(effect(power, 150, 150))
            found = kept(
                options.out / f"power-{power:g}.json", powered,
                lambda i, p=power, r=correlation: power_study(  # type: ignore[misc]
                    p, np.random.default_rng([1, round(100 * p), i]), 150, 150, r
                ),
            )  # fmt: skip
            slack = 0.05 if not options.quick else 0.05 + 2 * float(np.sqrt(power * (1 - power) / powered))
            name = f"difference {effect(power, 150, 150):.3f}, planned power {power:g}, found in"
            shown.hold(name, float(found.mean()), "share", least=power - slack, most=power + slack)
    if "trained" in options.parts:
        done: list[float] = []
        for i in range(trained):
            done += list(kept(options.out / f"trained-{i}.json", 1, lambda _, i=i: trained_study(i)) > 0)  # type: ignore[misc]
        # with a true rate of 5 %, more than 3 of 20 have a chance of 1.6 %
        shown.hold(f"of {trained} trained null studies, with a false claim", float(sum(done)), "studies", most=3)
    return shown.finish(options.json)


def _null_rates(shown: Table, out: Path, each: int) -> Iterator[Scores]:
    for number, layout in enumerate(LAYOUTS):
        hits = kept(
            out / f"scores-{number}.json", each,
            lambda i, n=number, la=layout: null_study(la, np.random.default_rng([0, n, i])),  # type: ignore[misc]
        )  # fmt: skip
        hits = (hits > 0).astype(float)
        shown.hold(f"  {layout.name} ({each})", float(hits.mean()), "share")
        yield hits


if __name__ == "__main__":
    sys.exit(main())
