"""What the fits of a study were: their number and time, what they chose, and whether the priors among them learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

import pandas as pd

from embedprior.report.content import Table
from embedprior.runs import read_json
from embedprior.study.config import method_infos
from embedprior.study.run import StudyResult
from embedprior.study.runner import RECORD

RIVAL = "direct-head"
"""Has the same optimum as a prior."""
AUC_TOLERANCE, BRIER_TOLERANCE = 0.01, 0.05
"""By how much a prior's AUC may lie below that of ``RIVAL``, and by which share its Brier score above, unsaid."""


def fit_table(result: StudyResult) -> Table:
    """Return what the fits were: how many, how many were there already, how many failed, and what each method costs."""
    frame = pd.DataFrame(
        [
            {
                "method": o.job.method, "fits": 1, "reused": int(o.reused), "failed": int(o.path is None),
                "seconds": o.seconds,
            }
            for o in result.outcomes
        ]
    )  # fmt: skip
    table = frame.groupby("method", sort=False).sum().reset_index()
    table["seconds"] = [f"{seconds:.1f}" for seconds in table["seconds"]]
    records: dict[str, list[Mapping[str, Any]]] = {}
    for outcome in (o for o in result.outcomes if o.path is not None):
        assert outcome.path is not None
        records.setdefault(outcome.job.method, []).append(read_json(outcome.path / RECORD))
    costs = pd.DataFrame([{"method": name, **_cost_of(found)} for name, found in records.items()], columns=COSTS)
    note = (
        "Seconds: of this run; a reused fit costs only the time to find it. A fit: the median over the fits when they "
        "were made, of the wall clock with networks that several methods share (as if this method had trained them "
        "itself), and of the processor without them. Peak memory: of the process, libraries and data included."
    )
    return ("Fits", table.merge(costs, on="method", how="left").fillna("–"), note)


COSTS = ("method", "seconds a fit", "CPU seconds a fit", "peak memory (MB)")


def _cost_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return seconds and memory of one method's fits; those of earlier versions hold less."""
    alone = [float(one["seconds"]) + float(one.get("shared_seconds", 0)) for one in records]
    busy = [float(one["cpu_seconds"]) for one in records if "cpu_seconds" in one]
    peaks = [float(one["peak_mb"]) for one in records if one.get("peak_mb") is not None]
    return {
        "seconds a fit": f"{median(alone):.2f}",
        "CPU seconds a fit": f"{median(busy):.2f}" if busy else "–",
        "peak memory (MB)": f"{max(peaks):.0f}" if peaks else "–",
    }


def cost_tables(result: StudyResult) -> list[Table]:
    """Return what each method costs: fits and their time, parameters that are trained, optimiser steps."""
    _, table, note = fit_table(result)
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for _, method, fit in _fits(result):
        rows.setdefault(method, []).append(fit)
    for name, key in (("parameters trained", "trainable"), ("parameters in all", "total"), ("steps a fit", "steps")):
        known = {m: [one[key] for one in fits if one.get(key) is not None] for m, fits in rows.items()}
        table[name] = [round(fmean(known[m])) if known.get(m) else None for m in table["method"]]
    note += " Parameters in all count frozen heads that a method reads, not the encoders before the caches."
    return [("Parameters and compute", table, note)]


def choice_tables(result: StudyResult) -> list[Table]:
    """Return what the fits took over of the DRR stage and what it was worth, and the settings that they chose."""
    stages: dict[str, list[Mapping[str, Any]]] = {}
    searches: dict[str, list[Mapping[str, Any]]] = {}
    notes: dict[str, None] = {}
    for _, method, fit in _fits(result):
        if fit["stage_weight"] is not None:
            stages.setdefault(method, []).append(fit["stage_weight"])
        if fit["search"] is not None:
            searches.setdefault(method, []).append(fit["search"])
        notes |= dict.fromkeys(f"{method}: {note}" for note in fit["notes"])
    tables: list[Table] = []
    if stages:
        rows = [
            {
                "method": method, "fits": len(found), "stage dropped": sum(one["weight"] == 0 for one in found),
                "mean weight": round(fmean(one["weight"] for one in found), 2),
                "loss saved": f"{fmean(one['worth'] for one in found):.1%}",
                "measured": ", ".join(sorted({one["measured_on"] for one in found})),
            }
            for method, found in stages.items()
        ]  # fmt: skip
        note = (
            "Weight of what the stage on DRRs had learned when the stage on radiographs began, chosen among several "
            "with 0 by the loss on pairs that neither was fitted on; the loss saved is in comparison with weight 0."
        )
        tables.append(("What the DRR stage was worth", pd.DataFrame(rows), note))
    if searches:
        rows = [
            {
                "method": method, "settings": name, "chosen in": f"{sum(one['chosen'] == name for one in found)} of "
                f"{len(found)} fits", "candidates": len(found[0]["rounds"][0]),
                "further trainings a fit": round(fmean(one["cost"] for one in found), 2),
            }
            for method, found in searches.items()
            for name in dict.fromkeys(one["chosen"] for one in found)
        ]  # fmt: skip
        note = (
            "Each method compared its candidates on the same validation cases, never on a held-out one. Further "
            "trainings: what the search cost beside the training that was kept, in trainings of its length."
        )
        tables.append(("Settings that were chosen", pd.DataFrame(rows), note))
    if notes:
        tables.append(("Notes of the fits", pd.DataFrame({"note": list(notes)}), ""))
    return tables


def unequal_search(result: StudyResult) -> list[str]:
    """Say which methods searched their settings and which trained with those given, where a study has both."""
    searched: dict[str, None] = {}
    given: dict[str, None] = {}
    for _, method, fit in _fits(result):
        if fit["steps"]:
            (given if fit["search"] is None else searched)[method] = None
    given = dict.fromkeys(name for name in given if name not in searched)
    if not searched or not given:
        return []
    return [
        f"Not every method had the same search for its settings: {', '.join(searched)} compared candidates on the "
        f"validation cases, {', '.join(given)} trained with the settings of the configuration. To compare them on "
        "equal terms, leave out both 'fit' and 'prior', or give both."
    ]


def prior_figures(result: StudyResult) -> list[dict[str, Any]]:
    """Return how each prior did on its validation pairs, a record a design and method, means over its fits.

    ``error``, ``spread_ratio`` and ``coverage`` as in ``prior.assessment.assess``; ``constant``: its counts in words;
    ``auc`` and ``brier`` of the ``prior`` and of ``direct-head`` on the labelled validation radiographs where both were
    scored there, otherwise of the prior and of a ridge regression of the head's probability (``direct``); ``warnings``:
    what it lost; ``learns``: it is no control.
    """
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    shared = {part.key: part.variant.shared_key(part.design) for part in result.designs}  # one prior for all labels
    for design, method, fit in _fits(result):
        if fit.get("learned"):
            found.setdefault((shared[design], method), []).append(fit["learned"])
    infos = {name: info for variant in result.study.variants for name, info in method_infos(variant.config).items()}
    rows = result.predictions[result.predictions["split"] == "val"]
    places = rows["design"].map(shared)
    return [
        _figures_of(design, method, fits, rows[places == design]) | {"learns": infos[method].role != "control"}
        for (design, method), fits in found.items()
    ]


def prior_warnings(priors: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for everything that a prior lost; null controls are not to learn.

    Where several priors have more than ``MAX_WARNINGS`` together, one sentence counts the priors of every kind; the
    table has their names and figures.

    Example:
        >>> lost = ["it has not learned: its error is 1.1", "its samples have 0.6 times the spread"]
        >>> priors = [{"design": "d", "method": name, "learns": True, "warnings": lost} for name in ("a", "b", "c")]
        >>> prior_warnings(priors)[0].partition(". ")[0]
        'Warnings of the priors: not learned, 3 of 3; another spread of samples than the error asks for, 3 of 3'
    """
    learners = [one for one in priors if one["learns"]]
    found = [(one["design"], one["method"], text) for one in learners for text in one["warnings"]]
    if len(found) <= MAX_WARNINGS or len({(design, method) for design, method, _ in found}) == 1:
        return [f"{design}: {method}: {text}." for design, method, text in found]
    kinds: dict[str, set[tuple[str, str]]] = {}
    for design, method, text in found:
        kinds.setdefault(_kind(text), set()).add((design, method))
    everyone = len({(one["design"], one["method"]) for one in learners})
    counted = "; ".join(f"{kind}, {len(of)} of {everyone}" for kind, of in kinds.items())
    return [f"Warnings of the priors: {counted}. The table '{LEARNED}' names them."]


LEARNED = "Have the priors learned?"
MAX_WARNINGS, MAX_SHOWN = 4, 3
KINDS = {
    "it has not learned": "not learned",
    "it has learned less than": "learned less than a linear map",
    "its samples have": "another spread of samples than the error asks for",
    "its 80 % intervals hold": "intervals that hold another share of the real values than they should",
}
"""Beginnings of warnings that hold figures, and their kind in words."""


WARNED = "warning on the means"


def _kind(warning: str) -> str:
    return next((words for start, words in KINDS.items() if warning.startswith(start)), warning.partition(":")[0])


def learned_table(priors: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Return the figures of ``prior_figures`` beside those of its rivals; no table where no prior was fitted."""
    if not priors:
        return []
    rows = []
    for one in priors:
        error, rival = one["error"], "direct-head" if "direct-head" in one["brier"] else "direct"
        row: dict[str, Any] = {"design": one["design"], "method": one["method"], "fits": one["fits"]}
        row["error, prior / ridge / mean"] = " / ".join(f"{error[name]:.3f}" for name in ("prior", "ridge", "mean"))
        row["spread ratio"] = f"{one['spread_ratio']:.2f}"
        if any(each["coverage"] is not None for each in priors):
            row["coverage of 80 %"] = "–" if one["coverage"] is None else f"{one['coverage']:.1%}"
        for name, title, digits in (("auc", "AUC", 3), ("brier", "Brier", 4)):
            scores = one[name]
            pair = [f"{scores[who]:.{digits}f}" for who in ("prior", rival)] if scores else ["–"]
            row[f"{title}, prior / {'direct-head' if rival == RIVAL else 'direct regression'}"] = " / ".join(pair)
        row["fits with a warning"] = f"{one['fits_with_a_warning']} of {one['fits']}"
        row[WARNED] = "; ".join(one["warnings"]) or "–"
        rows.append(row)
    frame = pd.DataFrame(rows).fillna("–")
    frame[WARNED] = frame.pop(WARNED)  # the last, however many rivals have columns
    note = (
        "On the validation pairs, which chose the checkpoint: a little too good. Error: squared, standardised, of the "
        "one-step prediction, of ridge regression and of the training mean. Spread ratio: of the samples to what the "
        "error asks for. Coverage: share of the real CTs' values inside the samples' 80 % intervals. A warning stands "
        "where the means over the fits lose to a plain regression, or where spread or coverage are off by more than "
        "10 % or 3 points and by more than two standard errors."
    )
    constant = list(dict.fromkeys(one["constant"] for one in priors if one["constant"]))
    if constant:
        note += f" Dimensions that do not vary over the training pairs: {'; '.join(constant)}."
    own = list(dict.fromkeys(text for one in priors for text in one["fit_warnings"]))
    if own:
        more = f"; and {len(own) - MAX_SHOWN} more, in fit.json" if len(own) > MAX_SHOWN + 1 else ""
        shown = own[: MAX_SHOWN if more else None]
        note += f" Warnings of single fits: {'; '.join(shown)}{more}."
    return [(LEARNED, frame, note)]


def _figures_of(design: str, method: str, fits: Sequence[Mapping[str, Any]], val: pd.DataFrame) -> dict[str, Any]:
    from embedprior.prior.assessment import warnings  # torch: only where a prior was fitted, so it is there already

    def mean(name: str) -> dict[str, float] | None:
        have = [fit[name] for fit in fits if fit.get(name) is not None]
        names = have[0] if have else ()
        known = {who: [one[who] for one in have if one[who] is not None] for who in names}
        return {who: fmean(values) for who, values in known.items() if values} or None

    figures: dict[str, Any] = {"error": mean("error"), "spread_ratio": fmean(fit["spread_ratio"] for fit in fits)}
    covered = [fit["coverage"] for fit in fits if fit.get("coverage") is not None]  # earlier versions had none
    figures["coverage"] = fmean(covered) if covered else None
    # As of one fit: the fits may have validation pairs in common.
    figures |= {name: mean(name) for name in ("auc", "brier", "standard_errors")}
    texts = warnings(figures)
    own, rival = (_validation_scores(val[val["method"] == name]) for name in (method, RIVAL))
    if own and rival:
        figures |= {name: {"prior": own[name], RIVAL: rival[name]} for name in ("auc", "brier")}
        if own["auc"] < rival["auc"] - AUC_TOLERANCE:
            texts.append(f"{RIVAL} has the higher AUC on the validation cases: {rival['auc']:.3f} to {own['auc']:.3f}")
        if own["brier"] > (1 + BRIER_TOLERANCE) * rival["brier"]:
            numbers = f"{rival['brier']:.4f} to {own['brier']:.4f}"
            texts.append(f"{RIVAL} has the lower Brier score on the validation cases: {numbers}")
    warned = sum(bool(fit["warnings"]) for fit in fits)
    said = list(dict.fromkeys(text for fit in fits for text in fit["warnings"]))
    return {"design": design, "method": method, "fits": len(fits), **figures, "constant": _constant(fits),
            "fits_with_a_warning": warned, "fit_warnings": said, "warnings": texts}  # fmt: skip


def _constant(fits: Sequence[Mapping[str, Any]]) -> str:
    """Return in words how many dimensions did not vary over the training pairs; empty where all did in every fit."""
    found = [fit["constant"] for fit in fits if fit.get("constant")]
    parts = []
    for name in found[0] if found else ():
        counts = sorted({one[name][0] for one in found})
        if counts[-1]:
            parts.append(f"{'–'.join(dict.fromkeys(str(n) for n in (counts[0], counts[-1])))} of {found[0][name][1]} "
                         f"of the {name}")  # fmt: skip
    return ", ".join(parts)


def _validation_scores(rows: pd.DataFrame) -> dict[str, float]:
    """Return AUC (mean over the fits whose validation cases hold both classes) and Brier score; empty without one."""
    from sklearn.metrics import roc_auc_score

    parts = [part for _, part in rows.groupby(["design", "resample", "fold", "seed"]) if part["label"].nunique() == 2]
    if not parts:
        return {}
    aucs = [roc_auc_score(part["label"], part["score"]) for part in parts]
    return {"auc": float(fmean(aucs)), "brier": float(((rows["score"] - rows["label"]) ** 2).mean())}


def _fits(result: StudyResult) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield design, method and the record of every fit that left one."""
    for outcome in result.outcomes:
        fit = None if outcome.path is None else read_json(outcome.path / RECORD).get("fit")
        if fit:
            yield outcome.job.key, outcome.job.method, fit
