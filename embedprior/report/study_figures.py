"""Figures over a whole study: sweeps, AUC by the number of labelled radiographs, and the cases themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from embedprior.report.content import Figure, Table
from embedprior.report.embedding_map import stages_figure
from embedprior.report.gallery import cases_figure, neighbours_figure
from embedprior.report.spreads import LABEL_COLUMNS, sweep_figure
from embedprior.runs import seed_for
from embedprior.study.config import SOURCE_ONLY, StudyConfig
from embedprior.study.run import DesignResult, StudyResult


def estimate_of(row: Mapping[str, Any]) -> str:
    """Return ``0.812 (0.760–0.855)``, without the interval where there is none, or a dash."""
    if row["auc"] is None:
        return "–"
    if row["ci_low"] is None or row["ci_high"] is None:
        return f"{row['auc']:.3f}"
    return f"{row['auc']:.3f} ({row['ci_low']:.3f}–{row['ci_high']:.3f})"


def sweep_results(config: StudyConfig, result: StudyResult, evidence: Mapping[str, Mapping[str, Any]]) -> tuple[
    list[Table], list[Figure]]:  # fmt: skip
    """Return, for each design of a sweep, every method's AUC in every combination of settings: table and heat map."""
    if not config.sweep:
        return [], []
    tables, figures = [], []
    for design in config.designs:
        rows, values = [], []
        for part in (c for c in result.designs if c.design.name == design.name):
            settings = {name: str(value) for name, value in part.variant.settings.items()}
            own = evidence[part.key]["methods"]
            rows.append({**part.variant.settings, **{m["method"]: estimate_of(m) for m in own}})
            values += [{**settings, "method": m["method"], "auc": m["auc"]} for m in own]
        note = "AUC (95 % CI) by setting. No setting was chosen; Holm adjusts over all of them together."
        tables.append((f"Sweep: {design.name}", pd.DataFrame(rows), note))
        data = pd.DataFrame(values)
        data["auc"] = data["auc"].astype(float)
        figure = sweep_figure(design.name, data, [*config.sweep, *(["label"] if config.labels else [])])
        figures += [figure] if figure is not None else []
    return tables, figures


LABEL_SHARES = ("label_fraction", "cxr_label_fraction")
BESIDE_SHARES = {"name", "question", "cxr_label_fraction", "methods", "reference"}
"""Of a design: what may differ between designs that make one curve of labels."""


def label_curve_data(result: StudyResult, evidence: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return AUC by number of labelled training radiographs, for designs that differ in shares of labels alone.

    The shares may be a design's own, or values of a sweep.

    Returns:
        ``series, method, labelled, auc, ci_low, ci_high, oracle``, for ``spreads.label_curve_figure``: a series is what
        the designs share, named after the first of them; ``labelled`` is the mean over folds. Empty without two shares.
    """
    series: dict[str, list[DesignResult]] = {}
    for part in result.designs:
        others = {k: v for k, v in part.variant.settings.items() if k not in LABEL_SHARES}
        shared = part.design.model_dump_json(exclude=BESIDE_SHARES)
        series.setdefault(json.dumps([others, shared], sort_keys=True, default=str), []).append(part)
    rows = []
    for parts in series.values():
        shares = {(p.variant.config.label_fraction, p.variant.config.label_share(p.design)) for p in parts}
        for part in parts if len(shares) > 1 else ():
            own = result.support[result.support["design"] == part.key]
            known = own["train_images_labelled"] if "train_images_labelled" in own else pd.Series(dtype=float)
            everyone = own["train_images_pos"] + own["train_images_neg"]
            labelled = float(known.fillna(everyone).mean()) if len(known) else float(everyone.mean())
            for m in evidence[part.key]["methods"]:
                fields = {k: m[k] for k in ("method", "auc", "ci_low", "ci_high", "oracle")}
                rows.append({"series": parts[0].key, "labelled": labelled, **fields})
    frame = pd.DataFrame(rows, columns=LABEL_COLUMNS)
    return frame.astype({"labelled": float, "auc": float, "ci_low": float, "ci_high": float})


def case_pictures(result: StudyResult, evidence: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """Return radiograph, DRR and CT slice of hits and misses, of the first design whose files are there.

    The method is that of the first declared claim, else the first that is no oracle.
    """
    for part in result.designs:
        own = evidence[part.key]
        claimed = [c["a"] for c in own["comparisons"] if c["in_family"]]
        deployable = [m["method"] for m in own["methods"] if m["auc"] is not None and not m["oracle"]]
        method = next((m for m in [*claimed, *deployable] if m in deployable and m != SOURCE_ONLY), None)
        if method is None:
            continue
        rows = result.predictions
        rows = rows[(rows["design"] == part.key) & (rows["split"] == "test") & (rows["method"] == method)]
        cohort = result.cohort
        figure = cases_figure(cohort.root, cohort.exams, cohort.pairs, rows, method, part.variant.config.label)
        if figure is not None:
            return [figure]
    return []


def generated_pictures(config: StudyConfig, result: StudyResult) -> list[Figure]:
    """Return the map of what a prior generated at the stages of its training, and the real CTs nearest to it."""
    made, cohort = result.generated, result.cohort
    if made is None:
        return []
    label = next(part.variant.config.label for part in result.designs if part.key == made.design)
    real, last = np.asarray(made.cases.paired_ct(), dtype=np.float64), list(made.stages.values())[-1]
    seed = seed_for(config.seed, "t-SNE") % 2**31
    stages = {name: np.asarray(values, dtype=np.float64) for name, values in made.stages.items()}
    found = [stages_figure(real, stages, made.cases.label, label, seed)]
    if "path" in cohort.exams.columns:
        found.append(
            neighbours_figure(
                cohort.root, cohort.exams, dict(zip(made.cases.exam_ids, last, strict=True)),
                dict(zip(made.real_ids, made.real, strict=True)),
                dict(zip(cohort.pairs["cxr_exam_id"], cohort.pairs["ct_exam_id"], strict=True)),
                f"label:{label}",
            )
        )  # fmt: skip
    return [figure for figure in found if figure is not None]
