"""Two reporting guidelines, filled in where the study knows the answer.

Item numbers are those of CLAIM (Mongan, Moy and Kahn, Radiology: Artificial Intelligence 2020) and TRIPOD+AI (Collins
and others, BMJ 2024). The subjects are named in our own words; the guidelines' text is not repeated, and their papers
decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from embedprior.report.content import Table
from embedprior.study.config import StudyConfig
from embedprior.study.run import StudyResult

BY_AUTHORS = "for the authors"
NOTE = (
    "Filled in from the configuration and the results; 'for the authors' is what no program can know. Subjects in our "
    "words: the published checklist decides."
)


def checklists(config: StudyConfig, result: StudyResult, evidence: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Return CLAIM and TRIPOD+AI as tables ``item, subject, this study``."""
    known = _facts(config, result, evidence)
    tables = []
    for name, items in (("CLAIM (2020)", CLAIM), ("TRIPOD+AI (2024)", TRIPOD_AI)):
        rows = [(item, subject, known.get(fact, BY_AUTHORS) or BY_AUTHORS) for item, subject, fact in items]
        tables.append((name, pd.DataFrame(rows, columns=["item", "subject", "this study"]), NOTE))
    return tables


def _facts(config: StudyConfig, result: StudyResult, evidence: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    exams = result.cohort.exams
    flow = result.cohort.flow
    sources = sorted({str(s) for s in exams["source"] if s}) if "source" in exams else []
    dropped = "; ".join(f"{s.step}: {s.dropped} ({s.reason})" for s in flow if s.dropped)
    designs = {p.design.name: p for p in result.designs}
    splits = "; ".join(f"{name}: {p.design.split}" for name, p in designs.items())
    external = [n for n, p in designs.items() if p.design.split in ("external", "site")]
    seeds = ", ".join(str(s) for s in sorted({s for d in config.designs for s in config.seeds_of(d)}))
    macros = [m.key(d) for m in result.study.macros for d in m.config.designs]
    own = evidence[macros[0]] if macros else next(iter(evidence.values()))
    counts = "; ".join(
        f"{name}: {len(p.targets)} X-rays of {p.targets['patient_id'].nunique()} patients, "
        f"{int((p.targets['label'] == 1).sum())} positive" for name, p in designs.items()
    )  # fmt: skip
    chosen = any(d.validation for d in config.designs)
    claims = [c["claim"] for e in evidence.values() for c in e["comparisons"] if c["in_family"]]
    families = sorted(set(claims))
    of_labels = f"{len(config.label_names)} binary labels ({', '.join(config.label_names)})"
    aucs = ("mean over labels: " if macros else "") + "; ".join(
        f"{m['method']} {m['auc']:.3f}" for m in own["methods"] if m["auc"] is not None
    )  # fmt: skip
    there = [c for c in ("age", "sex", "site", "source", "view") if c in exams and exams[c].notna().any()]
    encoder = "embedding caches of the configuration" if config.caches is not None else config.encoder.name
    plan = f"minimum detectable differences in plan.json, at AUC {config.assumed.auc:g} and correlation " \
           f"{config.assumed.correlation:g}"  # fmt: skip
    return {
        "data": f"{config.source}; sources: {', '.join(sources)[:200] or 'one'}",
        "eligibility": dropped or "nothing was dropped",
        "preprocessing": f"frozen encoder: {encoder}; profiles in its manifest",
        "subsets": f"views {', '.join(config.views) or 'all'}; complete exams only: {config.complete}",
        "outcome": (of_labels if config.labels else f"binary label '{config.label}'") + ", from the cohort's table",
        "missing": f"pictures: {config.missing_images}; unknown labels are left out, never counted as negative",
        "deidentified": "ids of the tables alone are copied; no name, birth date or free text",
        "partition": f"{splits}; seed {config.seed}",
        "disjoint": "by group of patients; files and pictures under two ids are "
                    + ("joined into one group" if config.duplicates == "join" else "reported"),
        "size": plan,
        "model": "named methods (embedprior methods); parameters and steps in 'Parameters and compute'",
        "software": "versions and commit in 'How it was made'",
        "seeds": f"training seeds {seeds}" + (f" ({config.as_published})" if config.as_published else ""),
        "training": f"{config.fit.steps} steps, learning rate {config.fit.lr:g}, batch {config.fit.batch_size}, the "
                    "same for every method",
        "selection": "lowest validation loss, on validation patients alone" if chosen else "fixed budget, no choice",
        "ensemble": "none: AUCs are means over fits",
        "metrics": f"AUC per {config.inference.unit}; also {', '.join(config.metrics) or 'none'}; calibration and "
                   "decision curves",
        "uncertainty": f"{100 * (1 - config.inference.alpha):g} % intervals by DeLong's variance; Holm over "
                       f"{len(claims if config.labels else families)} declared claims",
        "robustness": f"sweep over {', '.join(config.sweep)}" if config.sweep else
                      f"training seeds {seeds}, folds or resamples",
        "external": f"yes: {', '.join(external)}" if external else "none",
        "imbalance": f"balance: {', '.join(sorted({config.balance_of(d) for d in config.designs}))}",
        "flow": "'Who was included', drawn from the counts of this run",
        "participants": counts + (f"; known: {', '.join(there)}" if there else ""),
        "results": aucs,
        "failures": f"{len(result.failures)} unreadable images, {len(result.unfitted)} failed fits, "
                    f"{len(result.unscored)} cases without a score",
        "limits": "'What this does not show'",
        "objectives": "; ".join(families)[:400] or "none declared",
        "protocol": "plan.json, frozen before the first fit, with a hash",
        "code": "embedprior; configuration, splits, scores and hashes lie in the run's folder",
        "subgroups": "within sources, where there are several",
        "output": "a score per radiograph; thresholds from validation patients or declared, never from held-out ones",
        "updating": "none",
    }  # fmt: skip


CLAIM = (
    ("1", "kind of AI named in title", ""), ("2", "structured abstract", ""),
    ("3", "background and intended use", ""), ("4", "objectives and hypotheses", "objectives"),
    ("5", "retrospective or prospective", ""), ("6", "goal of the study", ""),
    ("7", "where the data come from", "data"), ("8", "who was eligible", "eligibility"),
    ("9", "preprocessing", "preprocessing"), ("10", "subsets of the data", "subsets"),
    ("11", "definition of data elements", "outcome"), ("12", "de-identification", "deidentified"),
    ("13", "missing data", "missing"), ("14", "definition of the reference standard", "outcome"),
    ("15", "why this reference standard", ""), ("16", "who annotated", ""), ("17", "annotation tools", ""),
    ("18", "variability between and within annotators", ""), ("19", "intended sample size", "size"),
    ("20", "how partitions were made", "partition"), ("21", "level at which partitions are disjoint", "disjoint"),
    ("22", "the model in detail", "model"), ("23", "software", "software"),
    ("24", "initial parameters", "seeds"), ("25", "training", "training"),
    ("26", "how the final model was chosen", "selection"), ("27", "ensembles", "ensemble"),
    ("28", "measures of performance", "metrics"), ("29", "significance and uncertainty", "uncertainty"),
    ("30", "robustness", "robustness"), ("31", "explainability", ""), ("32", "external data", "external"),
    ("33", "flow of participants", "flow"), ("34", "demographics by partition", "participants"),
    ("35", "performance on every partition", "results"), ("36", "accuracy with its precision", "uncertainty"),
    ("37", "analysis of failures", "failures"), ("38", "limitations", "limits"),
    ("39", "meaning for practice", ""), ("40", "registration", ""), ("41", "protocol", "protocol"),
    ("42", "funding", ""),
)  # fmt: skip
"""Item, its subject in our words, and the fact that answers it (empty: the authors do)."""

TRIPOD_AI = (
    ("1", "title", ""), ("2", "abstract", ""), ("3", "background, use and inequalities", ""),
    ("4", "objectives", "objectives"), ("5", "sources and dates of the data", "data"),
    ("6", "setting and eligibility", "eligibility"), ("7", "preparation of the data", "preprocessing"),
    ("8", "outcome", "outcome"), ("9", "predictors", "preprocessing"), ("10", "sample size", "size"),
    ("11", "missing data", "missing"), ("12", "how models were built and judged", "training"),
    ("13", "class imbalance", "imbalance"), ("14", "fairness", ""), ("15", "output of the model", "output"),
    ("16", "training against evaluation data", "partition"), ("17", "ethics approval", ""),
    ("18", "funding, interests, protocol, registration, data, code", "code"),
    ("19", "patients and public involved", ""), ("20", "participants", "participants"),
    ("21", "participants and events in each analysis", "participants"), ("22", "specification of the model", "model"),
    ("23", "performance with intervals", "results"), ("24", "updating", "updating"),
    ("25", "interpretation", ""), ("26", "limitations", "limits"), ("27", "use in practice and next steps", ""),
)  # fmt: skip
