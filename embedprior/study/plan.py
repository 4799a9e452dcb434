"""The frozen plan: every fit, its cost, the difference it could detect; and the hash that keeps results apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.cohort.base import FlowStep, flow_table
from embedprior.cohort.sources.tables import read_splits
from embedprior.cohort.splits import Fold
from embedprior.errors import BadInput
from embedprior.evidence.power import detectable_difference, mean_detectable
from embedprior.runs import artifacts_root, canonical, hash_of, read_json, write_json
from embedprior.runs.provenance import portable_path
from embedprior.runs.run import nameless_paths
from embedprior.study.config import Assumed, Design, Hypothesis, InferenceConfig, StudyConfig, method_infos
from embedprior.study.designs import design_flow
from embedprior.study.keep import planned_models
from embedprior.study.prepare import StudyData, labels_of
from embedprior.study.runner import CODE_TAG, RECORD, TEACHER, TEACHER_TAG, FitJob, Study, fit_jobs
from embedprior.study.variants import Variant
from embedprior.tables import write_table


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


def held_out_counts(targets: pd.DataFrame, folds: Sequence[Fold]) -> pd.DataFrame:
    """Return held-out and training patients with a known label by fold: ``resample, fold, pos, neg, train``."""
    highest = targets.groupby("patient_id")["label"].max().dropna()
    rows = []
    for r in folds:
        held = highest[highest.index.isin(r.patients("test"))]
        train = highest.index.isin(r.patients("train"))
        rows.append((r.resample, r.fold, int((held == 1).sum()), int((held == 0).sum()), int(train.sum())))
    return pd.DataFrame(rows, columns=["resample", "fold", "pos", "neg", "train"])


def planned_difference(
    counts: pd.DataFrame, design: Design, family: int, assumed: Assumed, inference: InferenceConfig
) -> Detectable:
    """Return the smallest difference a claim of this design could show.

    Args:
        counts: see ``held_out_counts``.
        design: its settings; the repeats of a k-fold hold out the same patients and count once.
        family: number of claims Holm adjusts over.
        assumed: AUC and correlation.
        inference: error rate and power.
    """
    monte_carlo = design.split == "resamples"
    resamples = [part for _, part in counts.groupby("resample")]
    used = resamples if monte_carlo else resamples[:1]
    n_pos, n_neg = (float(np.mean([part[c].sum() for part in used])) for c in ("pos", "neg"))
    folds = [_folds(part) for part in used]
    if any(min(sum(m for m, _ in f), sum(n for _, n in f)) < 2 for f in folds):
        which = "resample" if monte_carlo else "design"
        fewest = {c: min(int(part[c].sum()) for part in used) for c in ("pos", "neg")}
        least = f"{fewest['pos']} positive, {fewest['neg']} negative"
        return Detectable(n_pos, n_neg, None, None, f"a {which} holds out too few patients (fewest: {least})")
    inflation, df = 1.0, np.inf
    if len(used) > 1:
        ratio = float(np.mean([part["pos"].sum() + part["neg"].sum() for part in used])) / counts["train"].mean()
        inflation, df = float(np.sqrt(1 / len(used) + ratio)), len(used) - 1

    def smallest(level: float) -> float:
        each = [
            detectable_difference(
                f, assumed.auc, assumed.correlation, alpha=level, power=inference.power, inflation=inflation, df=df
            )
            for f in folds
        ]
        return float(np.mean(each))

    delta, first = (smallest(level) for level in (inference.alpha, inference.alpha / max(family, 1)))
    if delta > 1 - assumed.auc:
        why = f"no AUC above {assumed.auc:g} is far enough away (detectable: {delta:.2f})"
        return Detectable(n_pos, n_neg, None, None, why)
    return Detectable(n_pos, n_neg, delta, first if first <= 1 - assumed.auc else None, "")


def _folds(part: pd.DataFrame) -> list[tuple[float, float]]:
    """Return the patients of both classes in every fold that holds both: pairs are formed within folds."""
    return [(float(m), float(n)) for m, n in zip(part["pos"], part["neg"], strict=True) if m and n]


def family_size(config: StudyConfig, study: Study) -> int:
    """Return how many claims are declared together: over all designs and combinations, failures included.

    Of several labels each claim is declared for every label, and for their mean.
    """
    return sum(h.declared is not None for h in config.hypotheses) * (len(study.variants) + len(study.macros))


def macro_difference(each: Sequence[Detectable]) -> Detectable:
    """Return the smallest difference of the mean over labels that a claim could show, at most (``mean_detectable``).

    Args:
        each: of the labels that can be tested.

    Example:
        >>> found = macro_difference([Detectable(9, 30, 0.2, 0.3, ""), Detectable(20, 30, 0.1, 0.2, "")])
        >>> round(found.delta, 2), round(found.delta_holm, 2)
        (0.15, 0.25)
    """
    if len(each) < 2:
        return Detectable(0.0, 0.0, None, None, f"{len(each)} of the labels can be tested: there is no mean over them")
    n_pos, n_neg = (float(np.mean([getattr(d, name) for d in each])) for name in ("n_pos", "n_neg"))
    delta, first = (mean_detectable([getattr(d, name) for d in each]) for name in ("delta", "delta_holm"))
    lacking = sum(d.delta is None for d in each)
    why = f"no difference can be detected for {lacking} of {len(each)} labels" if lacking else ""
    return Detectable(n_pos, n_neg, delta, first, why)


PLAN, SPLITS = "plan.json", "splits.csv"
SCHEMA_VERSION = 1
FROZEN = ("config", "inputs", "fits", "code")
NOT_IN_THE_HASH = ("caveats", "title", "metrics", "thresholds", "seconds_per_fit", "keep")
"""Settings that change no number: they may be edited without another plan."""


def make_plan(config: StudyConfig, study: Study, out: Path | str) -> dict[str, Any]:
    """Return the plan as plain JSON values.

    ``hash`` covers the configuration (but for ``NOT_IN_THE_HASH``), the cohort's tables, splits and embeddings, every
    fit and the code's version; not the cost, which is measured, nor ``data``, where the cohort lies from ``out``.

    Args:
        config: with its sweep.
        study: see ``run.read_study``.
        out: folder of the run: finished fits under it (or ``$EMBEDPRIOR_HOME``) give measured costs.
    """
    out = Path(out)
    jobs = fit_jobs(study)
    fits = [
        {
            "design": job.key, "resample": job.fold_id.resample, "fold": job.fold_id.fold, "seed": job.seed,
            "method": job.method,
        }
        for job in jobs
    ]  # fmt: skip
    shared = {variant.combination: prepared for variant, prepared in study.combinations()}  # by all labels
    inputs = {
        f"{combination}: {name}" if combination else name: value
        for combination, prepared in shared.items()
        for name, value in prepared.input_hashes().items()
    }
    settings = {k: v for k, v in nameless_paths(canonical(config)).items() if k not in NOT_IN_THE_HASH}
    del settings["label" if config.labels else "labels"]  # a study of one label is hashed as ever
    infos = method_infos(study.variants[0].config)
    versions = {m: infos[m].version for m in sorted({job.method for job in jobs})}
    code = {"fit": CODE_TAG, "CT head": TEACHER_TAG, "methods": versions}
    frozen = {"config": settings, "inputs": inputs, "fits": fits, "code": code}
    return {
        "schema_version": SCHEMA_VERSION,
        "hash": hash_of(frozen),
        "title": config.title,
        "data": portable_path(study.data[0].cohort.root, out),
        **frozen,
        "designs": _designs(study),
        "hypotheses": _hypotheses(config, study),
        "cost": cost(_costed(study, jobs), config, out),
        "models": planned_models(config, _by_design(jobs), out),
    }


def _by_design(jobs: Sequence[FitJob]) -> dict[str, list[tuple[str, int, int]]]:
    found: dict[str, list[tuple[str, int, int]]] = {}
    for job in jobs:
        found.setdefault(job.key, []).append((job.method, job.fold_id.resample, job.fold_id.fold))
    return found


def cost(fits: Mapping[str, int], config: StudyConfig, out: Path) -> dict[str, Any]:
    """Return the estimated cost in minutes of one process, and where each fit's cost comes from.

    Seconds of a fit: the median of finished fits of that method under the artifacts' folder, else ``seconds_per_fit``
    of the configuration; a method with neither has no estimate, and then the total is a lower bound.
    """
    measured = _measured(artifacts_root(out))
    rows, total, unknown = [], 0.0, []
    for method, count in fits.items():
        name = config.methods[method].method if method in config.methods else method
        seconds, basis = None, "unknown"
        if method in measured:
            seconds = float(np.median(measured[method]))
            basis = f"measured: median of {len(measured[method])} finished fits"
        elif name in config.seconds_per_fit or method in config.seconds_per_fit:
            seconds = config.seconds_per_fit.get(method, config.seconds_per_fit.get(name))
            basis = "declared in the configuration"
        if seconds is None:
            unknown.append(method)
        else:
            total += count * seconds / 60
        rows.append({"method": method, "fits": count, "seconds_per_fit": seconds, "basis": basis})
    return {"minutes": round(total, 2), "unknown": unknown, "methods": rows}


def freeze(plan: Mapping[str, Any], study: Study, out: Path | str) -> None:
    """Write ``plan.json`` and ``cohort/splits.csv``, or check that the ones that are there are the same; and the tables
    of who takes part and of shared files.

    Raises:
        BadInput: the folder holds results of another plan (what differs is named), or its split table was changed.
    """
    out = Path(out)
    refuse_other_plan(plan, out)
    refuse_changed_splits(study, out)
    (out / "cohort").mkdir(parents=True, exist_ok=True)
    if not (out / PLAN).is_file():
        write_json(out / PLAN, plan)
        write_table(all_splits(study), out / "cohort" / SPLITS)
        # once: afterwards they are results of the run, which knows more (images that could not be read)
        write_table(flow_table(planned_flow(study)), out / "cohort" / "flow.csv")
        write_table(study.data[0].duplicates, out / "cohort" / "duplicates.csv")


def planned_flow(study: Study) -> list[FlowStep]:
    """Return the flow of the first variant's cohort, to the cases that each design holds out."""
    data, config = study.data[0], study.variants[0].config
    labels = labels_of(data.cohort, config)
    steps = list(data.cohort.flow)
    for design in config.designs:
        steps += design_flow(data.cohort, labels, design, data.targets[design.name], data.folds(design.name))
    return steps


def refuse_other_plan(plan: Mapping[str, Any], out: Path) -> None:
    """Check that a folder holds no results, or those of this very plan.

    Raises:
        BadInput: it holds another plan; the first difference is named.
    """
    if not (out / PLAN).is_file():
        return
    before = read_json(out / PLAN)
    if not isinstance(before, dict) or hash_of({k: before.get(k) for k in FROZEN}) != before.get("hash"):
        raise BadInput(
            f"{out / PLAN} no longer has the contents that it was frozen with. Next: give another --out, or delete "
            "this folder's plan.json if you know that its results are those of the present plan."
        )
    if before["hash"] == plan["hash"]:
        return
    raise BadInput(
        f"{out} holds results of another plan ({str(before.get('hash'))[:12]}, not {plan['hash'][:12]}): "
        f"{_difference(before, canonical(plan))}. Results of two plans are never mixed. Next: give another --out."
    )


def refuse_changed_splits(study: Study, out: Path) -> None:
    """Check a split table that was written before: valid, and still the plan's.

    Raises:
        BadInput: it breaks a rule of split tables, or differs from the plan.
    """
    path = out / "cohort" / SPLITS
    if not path.is_file() or not (out / PLAN).is_file():
        return
    found = read_splits(path)
    wanted = all_splits(study)
    same = found.astype(str).reset_index(drop=True).equals(wanted[list(found.columns)].astype(str))
    if not same:
        raise BadInput(
            f"{path} was changed after the plan was frozen. Next: give it with --splits and another --out, or delete "
            "it together with plan.json."
        )


def all_splits(study: Study) -> pd.DataFrame:
    """Return the split table of every design and combination, by their names in the tables; labels share one."""
    parts = {}
    for variant, prepared in study.combinations():
        named = prepared.splits["design"].map(lambda name, v=variant: v.shared_key(name))
        parts[variant.combination] = prepared.splits.assign(design=named)
    return pd.concat(parts.values(), ignore_index=True)


def _costed(study: Study, jobs: Sequence[FitJob]) -> Counter[str]:
    """Count the fits of each method, and the CT heads they need."""
    needing = {
        (number, design.name)
        for number, variant in enumerate(study.variants)
        for design in variant.config.designs
        if design.cases == "paired" and any(method_infos(variant.config)[m].uses_ct for m in design.methods)
    }
    heads = {(job.fold_id, job.seed) for job in jobs if (job.fold_id.variant, job.fold_id.design) in needing}
    return Counter({TEACHER: len(heads)} if heads else {}) + Counter(job.method for job in jobs)


def _measured(root: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for record in sorted([*(root / "fit").glob(f"[!.]*/{RECORD}"), *(root / "teacher").glob(f"[!.]*/{RECORD}")]):
        try:
            fit = read_json(record)
            found.setdefault(str(fit["method"]), []).append(float(fit["seconds"]))
        except (BadInput, KeyError, TypeError, ValueError):
            continue  # a damaged fit is named and made again when it is needed; it has no cost to count
    return found


def _designs(study: Study) -> list[dict[str, Any]]:
    found = []
    for variant, prepared in study.combinations():
        for design in variant.config.designs:
            targets, folds = prepared.targets[design.name], prepared.folds(design.name)
            counts = held_out_counts(targets, folds)
            by = counts.groupby("resample")[["pos", "neg"]].sum().mean()
            found.append(
                {
                    "design": variant.key(design), "split": design.split, "cases": len(targets),
                    "patients": int(targets["patient_id"].nunique()), "methods": list(design.methods),
                    "rounds": len(folds), "seeds": len(variant.config.seeds_of(design)),
                    "held_out_pos": float(by["pos"]), "held_out_neg": float(by["neg"]),
                    "per": " in each resample" if design.split == "resamples" else "", **_label_of(variant, design),
                }
            )  # fmt: skip
    return found


def _hypotheses(config: StudyConfig, study: Study) -> list[dict[str, Any]]:
    found = []
    family = family_size(config, study)
    planned: dict[tuple[str, str], list[Detectable]] = {}

    def add(h: Hypothesis, variant: Variant, shown: Detectable) -> None:
        own = variant.config
        found.append(
            {
                "name": h.name, "claim": h.claim, "design": variant.key(h.design), "a": h.a, "b": h.b,
                "kind": h.kind, "margin": h.margin, "power": own.inference.power,
                "held_out_pos": shown.n_pos, "held_out_neg": shown.n_neg, "assumed_auc": own.assumed.auc,
                "assumed_correlation": own.assumed.correlation, "family": family,
                "min_detectable_delta": None if h.missing else shown.delta,
                "min_detectable_delta_holm": None if h.missing else shown.delta_holm,
                "reason": h.missing or shown.reason or None, **_label_of(variant, h.design),
            }
        )  # fmt: skip

    for variant, prepared in study.combinations():
        for h in config.hypotheses:
            design = next(d for d in variant.config.designs if d.name == h.design)
            shown = planned_of(variant, prepared, design, family)
            if design.name not in prepared.untestable:
                planned.setdefault((variant.combination, h.name), []).append(shown)
            add(h, variant, shown)
    for macro in study.macros:
        for h in config.hypotheses:
            each = planned.get((macro.combination, h.name), [])
            add(h, macro, macro_difference(each))
    return found


def _label_of(variant: Variant, design: Design | str) -> dict[str, str]:
    """Return the label, and the design that it shares with the others, of a study of several."""
    return {} if variant.label_name is None else {"label": variant.label_name, "shared": variant.shared_key(design)}


def planned_of(variant: Variant, prepared: StudyData, design: Design, family: int) -> Detectable:
    """Return the smallest difference that a claim of one design, and of one label, could show.

    Args:
        variant: combination of settings, and the label.
        prepared: its data.
        design: of the variant.
        family: number of claims Holm adjusts over.
    """
    counts = held_out_counts(prepared.targets[design.name], prepared.folds(design.name))
    shown = planned_difference(counts, design, family, variant.config.assumed, variant.config.inference)
    why = prepared.untestable.get(design.name)
    return shown if why is None else Detectable(shown.n_pos, shown.n_neg, None, None, why)


def _difference(before: Any, after: Any, where: str = "") -> str:
    """Name the first place where two plans differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in FROZEN if not where else sorted({*before, *after}):
            if before.get(key) != after.get(key):
                return _difference(before.get(key), after.get(key), f"{where}.{key}" if where else key)
    if isinstance(before, list) and isinstance(after, list):
        for i, (b, a) in enumerate(zip(before, after, strict=False)):
            if b != a:
                return _difference(b, a, f"{where}.{i}")
        return f"{where} has {len(before)} entries, not {len(after)}"
    shown = [str(v)[:40] for v in (before, after)]
    return f"{where} was {shown[0]}, is {shown[1]}"
