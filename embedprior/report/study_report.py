"""What a study's report says, and the files a study leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.cohort.base import FlowStep, flow_table
from embedprior.evidence.decision import SUPPORTED, SUPPORTED_SMALL
from embedprior.evidence.tables import METRICS
from embedprior.report.checklists import checklists
from embedprior.report.conclusions import boundary_table, by_text, design_findings, study_caveats
from embedprior.report.content import EvidenceSection, Figure, Report, Table
from embedprior.report.fit_tables import (
    choice_tables,
    cost_tables,
    learned_table,
    prior_figures,
    prior_warnings,
    unequal_search,
)
from embedprior.report.label_sections import hypotheses_by_label, label_sections, labelled_keys
from embedprior.report.output import finish_report
from embedprior.report.spreads import label_curve_figure
from embedprior.report.store import compared_scores
from embedprior.report.study_figures import (
    case_pictures,
    estimate_of,
    generated_pictures,
    label_curve_data,
    sweep_results,
)
from embedprior.report.verdicts import verdict_sentences
from embedprior.runs import Run, write_json
from embedprior.study.config import SOURCE_ONLY, StudyConfig
from embedprior.study.confounding import method_notes, source_by_label, within_source
from embedprior.study.designs import design_flow
from embedprior.study.evidence import all_evidence, balanced_accuracies, hypothesis_table
from embedprior.study.leakage import shared_text
from embedprior.study.plan import family_size
from embedprior.study.prepare import StudyData, labels_of
from embedprior.study.run import DesignResult, StudyResult
from embedprior.tables import write_table


def metric_table(metrics: Sequence[str], key: str, evidence: Mapping[str, Any]) -> list[Table]:
    """Return the other metrics of one design, each with its interval or a dash where it is undefined."""
    if not metrics:
        return []
    rows, reasons = [], []
    for method in evidence["methods"]:
        panel = method.get("metrics") or {}
        row = {"method": method["method"]}
        for name in metrics:
            found = panel.get(name) or {}
            limits = {k: found.get(k) for k in ("ci_low", "ci_high")}
            row[METRICS.get(name, name.capitalize())] = estimate_of({"auc": found.get("value"), **limits})
            if found.get("value") is None:
                reasons.append(found.get("reason") or f"{name} is not computed for this design")
        rows.append(row)
    note = "A dash: " + "; ".join(dict.fromkeys(reasons)) + "." if reasons else ""
    return [(f"Other metrics: {key}", pd.DataFrame(rows), note)]


def threshold_table(thresholds: Sequence[float], key: str, test: pd.DataFrame) -> list[Table]:
    """Return every method's balanced accuracy at each threshold, a mean over the fits that hold out both classes."""
    if not thresholds:
        return []
    rows = [
        {"method": method, **{f"{t:g}": f"{value:.3f}" for t, value in balanced_accuracies(own, thresholds).items()}}
        for method, own in test.groupby("method", sort=False)
    ]
    note = "Balanced accuracy at each threshold. None is chosen here: the best of them is the best partly by chance."
    return [(f"Threshold sweep: {key}", pd.DataFrame(rows), note)]


SUPPORT_COLUMNS = {
    "resample": "resample",
    "fold": "fold",
    "site": "site",
    "held_out_patients_pos": "held-out patients +",
    "held_out_patients_neg": "held-out patients −",
    "held_out_images_pos": "held-out images +",
    "held_out_images_neg": "held-out images −",
    "held_out_images_ct_disagrees": "of these, CT label differs",
    "train_images_pos": "training images +",
    "train_images_neg": "training images −",
    "val_images_pos": "checkpoint images +",
    "val_images_neg": "checkpoint images −",
    "train_images_labelled": "of these, label known",
    "train_pairs": "training pairs used",
    "pretraining_pairs": "DRR–CT pairs",
    "teacher_ct_pos": "teacher CT +",
    "teacher_ct_neg": "teacher CT −",
}


@dataclass(frozen=True)
class StudyReport:
    """What a study reports: the content of its pages, the evidence they rest on, and how its priors did.

    Attributes:
        report: for the pages.
        evidence: by design.
        priors: see ``fit_tables.prior_figures``.
    """

    report: Report
    evidence: dict[str, Any]
    priors: list[dict[str, Any]]


def build_study_report(config: StudyConfig, result: StudyResult) -> StudyReport:
    """Return the report of a study: sentences, tables, and the evidence they rest on."""
    evidence = all_evidence(config, result)
    named = labelled_keys(result)
    fixed = [d.name for d in config.designs if d.split == "fixed"]
    hypotheses = hypothesis_table(config.hypotheses, evidence, fixed, named)
    _one_verdict(config, hypotheses, evidence, named)
    sections: list[EvidenceSection] = []
    tables: list[Table] = []
    findings: list[tuple[str, str]] = []
    verdict: list[str] = []
    if len(hypotheses):
        shown = hypotheses_by_label(hypotheses) if named else hypotheses
        tables.append(("Declared hypotheses", shown, "Declared in the configuration, before any score was seen."))
    swept, figures = sweep_results(config, result, evidence)
    curves: list[Figure] = []
    tables += swept
    if named:
        intros = {p.variant.shared_key(p.design): _intro(p, evidence[p.key])[1] for p in reversed(result.designs)}
        by_label = label_sections(result, evidence, intros, family_size(config, result.study))
        sections, findings, verdict = by_label.sections, by_label.findings, by_label.verdict
        figures, curves = [*figures, *by_label.figures], by_label.curves
    for part in result.designs if not named else ():
        rows = result.predictions[result.predictions["design"] == part.key]
        test = rows[rows["split"] == "test"]
        own = evidence[part.key]
        notes = method_notes(part.design, part.targets, result.uses_ct)
        heading = part.design.question or part.design.name
        named_apart = len(result.designs) > 1 and part.design.question
        heading += f" ({part.key})" if named_apart else f" ({part.variant.label})" if part.variant.label else ""
        inside = _inside_sources(part, test)
        own_tables = _design_tables(part, test, result.support, own, inside)
        own_tables += metric_table(part.variant.config.metrics, part.key, own)
        own_tables += threshold_table(part.variant.config.thresholds, part.key, test)
        scores = compared_scores(own, rows.drop(columns="design"))
        sections.append(EvidenceSection(heading, own, scores, notes, _intro(part, own), part.key, own_tables))
        findings += [(part.key, text) for text in design_findings(part, own, inside)]
        verdict += verdict_sentences(own, part.key if len(result.designs) > 1 else "", _family_of(part, config, result))
    for external in result.study.data[0].externals.values():
        tables.append((f"Who was included: {external.name}", flow_table(external.cohort.flow), "The external cohort."))
    priors = prior_figures(result)
    lead = [*by_text(findings), *prior_warnings(priors)]
    tables += [*learned_table(priors), *choice_tables(result), *cost_tables(result)]
    tables += _leakage_tables(config, result.study.data[0])
    alpha = config.inference.alpha
    curve = label_curve_figure(label_curve_data(result, evidence), "", alpha)
    report = Report(
        title=config.title,
        question="; ".join(d.question for d in config.designs if d.question),
        verdict=list(dict.fromkeys(verdict)),  # designs of the same size need the same number of patients
        lead=lead,
        evidence=sections,
        boundary=boundary_table(config, result, evidence),
        flow=flow_table(scored_flow(result)),
        lead_figures=[] if curve is None else [curve],
        figures=figures,
        label_curves=curves,
        tables=tables,
        pictures=[*case_pictures(result, evidence), *generated_pictures(config, result)],
        caveats=[*study_caveats(config, result), *unequal_search(result), *config.caveats],
        checklists=checklists(config, result, evidence),
        failures=pd.DataFrame(failure_records(result)),
    )
    found = {"schema_version": 1, "designs": evidence, "hypotheses": hypotheses.to_dict("records")}
    return StudyReport(report, found, priors)


def write_tables(out: Path, result: StudyResult) -> None:
    """Write the cohort's tables and the predictions: what any evaluation can start from again."""
    folder = out / "cohort"
    folder.mkdir(parents=True, exist_ok=True)
    for external in result.study.data[0].externals.values():
        (folder / external.name).mkdir(exist_ok=True)
        write_table(nameless(external.cohort.exams), folder / external.name / "exams.csv")
        write_table(external.cohort.pairs, folder / external.name / "pairs.csv")
    write_table(nameless(result.cohort.exams), folder / "exams.csv")
    write_table(result.cohort.pairs, folder / "pairs.csv")
    write_table(flow_table(scored_flow(result)), folder / "flow.csv")
    write_table(result.study.data[0].duplicates, folder / "duplicates.csv")
    write_table(result.support, out / "support.csv")
    write_table(result.predictions, out / "predictions.csv")
    if len(result.models):
        write_table(result.models, out / "models.csv")


def nameless(exams: pd.DataFrame) -> pd.DataFrame:
    """Return an exam table without the paths of files, whose names may be a patient's; the cohort's own has them.

    Rows of an array file (``radiographs.npy#12``) keep theirs: nobody names such a file after one patient.
    """
    rows = exams["path"].astype(str).str.fullmatch(r".*#\d+")
    return exams.assign(path=exams["path"].where(rows, ""))


def write_results(out: Path, result: StudyResult, content: StudyReport, run: Run, **record: Any) -> str:
    """Write evidence, summary and report; return the summary. ``record`` goes into ``run.json``."""
    write_json(out / "evidence.json", content.evidence)
    priors = {"priors": content.priors} if content.priors else {}
    return finish_report(run, content.report, failure_records(result), **record, **priors)


def failure_records(result: StudyResult) -> list[dict[str, str]]:
    """Return what was skipped: images that can't be read, fits that failed, cases without a score."""
    skipped = [*result.failures, *result.unfitted, *result.unscored]
    return [{k: f[k] for k in ("exam_id", "stage", "reason")} for f in skipped]


def _one_verdict(
    config: StudyConfig, hypotheses: pd.DataFrame, evidence: Mapping[str, dict[str, Any]],
    labelled: Mapping[str, tuple[str, str]],
) -> None:  # fmt: skip
    """Give a claim on a fixed split the status that the hypotheses' table gives it, wherever else it is shown."""
    fixed = {d.name for d in config.designs if d.split == "fixed"}
    for h in config.hypotheses:
        if h.design not in fixed or h.declared is None:
            continue
        for key in (k for k in evidence if k.split("@")[0] == h.design):
            named = hypotheses[hypotheses["hypothesis"] == h.name]
            settings = dict(zip(("settings", "label"), labelled.get(key, (key.partition("@")[2], "")), strict=True))
            for column in set(settings) & set(named.columns):
                named = named[named[column] == settings[column]]
            for row in evidence[key]["comparisons"]:
                if row["claim"] == h.declared.text and len(named) and row["verdict"] in (SUPPORTED, SUPPORTED_SMALL):
                    row["verdict"] = str(named["status"].iloc[0])


def _family_of(part: DesignResult, config: StudyConfig, result: StudyResult) -> int | None:
    """Return the claims that Holm adjusts over, as the plan counts them; None where a design is judged by itself."""
    declared = any(h.design == part.design.name and h.declared is not None for h in config.hypotheses)
    return family_size(config, result.study) if declared else None


def _intro(part: DesignResult, evidence: Mapping[str, Any]) -> list[str]:
    design, targets = part.design, part.targets
    images, patients = len(targets), targets["patient_id"].nunique()
    positive = int((targets["label"] == 1).sum())
    repeated = f", drawn {design.repeats} times" if design.repeats > 1 else ""
    balanced = "balanced over all labels" if part.variant.label_name else "stratified by label"
    how = {
        "resamples": f"{design.resamples} patient-level resamples; every method scores the same held-out cases",
        "kfold": f"{design.folds} folds, {balanced}, each group of patients in one fold only{repeated}",
        "fixed": "one fixed split",
        "site": (
            f"each {design.site_column} is held out in turn and all others train; positives and negatives are compared "
            f"within one {design.site_column}"
        ),
        "external": f"trained on everyone else, held out: {_outside(part)}",
    }[design.split]
    share = f"{100 * design.validation_share:g} % of the training patients choose the checkpoint"
    chosen = "the next fold chooses the checkpoint" if design.split == "kfold" else share
    if not design.validation:
        chosen = "fixed training budget, no checkpoint is chosen"
    if part.user_splits:
        how, chosen = "splits as given by the user", "the patients marked val, if any, choose the checkpoint"
    seeds = len(part.variant.config.seeds_of(design))
    fits = f" Every fit with {seeds} seeds." if seeds > 1 else ""
    if part.variant.config.as_published:
        fits += f" Seeds as published ({part.variant.config.as_published})."
    held = {patient for fold in part.folds for patient in fold.patients("test")}
    scored = targets[targets["patient_id"].isin(held)]
    rest = ""
    if len(scored) < images:
        rest = f" Held out and scored: {len(scored)} X-rays of {scored['patient_id'].nunique()} patients; others train."
    sentences = [
        f"{images} X-rays of {patients} patients, {positive} positive and {images - positive} negative.{rest}",
        f"{how[0].upper()}{how[1:]}; {chosen}.{fits}",
    ]
    disagree = targets[(targets["label"] == 0) & (targets["ct_label"] == 1)]
    if len(disagree):
        share = "All" if len(disagree) == images - positive else f"{len(disagree)} of the"
        sentences.append(
            f"{share} {images - positive} negative pairs are positive on their own CT. Where the CT is right, it "
            "contradicts the X-ray label that these methods are scored against."
        )
    reasons = {m["reason"] for m in evidence["methods"]}
    if any(m.get("auc_per_resample") for m in evidence["methods"]) and len(reasons) == 1 and None not in reasons:
        sentences.append(f"Each AUC is a mean over the resamples and has no interval: {reasons.pop()}.")
    return sentences


def _outside(part: DesignResult) -> str:
    """Name the sites, or the folder with what of it is scored, that a design holds out."""
    if part.design.data is None:
        return ", ".join(part.design.external)
    own = part.targets[part.targets["patient_id"].isin(part.folds[0].patients("test"))]
    positive = int((own["label"] == 1).sum())
    return (
        f"the external cohort '{own['site'].iloc[0]}' ({len(own)} X-rays of {own['patient_id'].nunique()} patients, "
        f"{positive} positive and {len(own) - positive} negative; nothing of it is used in training)"
    )


def _inside_sources(part: DesignResult, rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    design, targets = part.design, part.targets
    if design.cases != "cxr" or rows["resample"].nunique() > 1 or targets["source"].nunique() < 2:
        return {}
    sources = dict(zip(targets["exam_id"], targets["source"], strict=True))
    pictured = [m for m in design.methods if m != SOURCE_ONLY and m in set(rows["method"])]
    found = {m: within_source(rows, m, sources) for m in pictured}
    return {m: table for m, table in found.items() if not table.empty}


def _design_tables(
    part: DesignResult, rows: pd.DataFrame, support: pd.DataFrame, evidence: Mapping[str, Any],
    inside: Mapping[str, pd.DataFrame],
) -> list[tuple[str, pd.DataFrame, str]]:  # fmt: skip
    own = support[support["design"] == part.key].dropna(axis=1, how="all")
    shown = [c for c in SUPPORT_COLUMNS if c in own.columns]
    shown = [c for c in shown if c not in ("resample", "fold") or own[c].nunique() > 1]
    optional = ("val_images_pos", "val_images_neg", "held_out_images_ct_disagrees")
    shown = [c for c in shown if c not in optional or own[c].any()]
    tables = [(f"Support: {part.key}", own[shown].rename(columns=SUPPORT_COLUMNS), _support_note(own))]
    per = {m["method"]: m["auc_per_resample"] for m in evidence["methods"] if m.get("auc_per_resample")}
    if per:
        frame = pd.DataFrame(per).T.rename_axis("method").reset_index()
        frame.columns = pd.Index(["method", *(f"k = {k}" for k in sorted(rows["resample"].unique()))])
        note = "With so few held-out patients these are points, not estimates."
        tables.append((f"AUC in each resample: {part.key}", frame, note))
    if part.design.cases == "cxr" and (part.targets["source"] != "").any():
        note = "Where nearly all X-rays of a source have one label, a model can score well by recognising the source."
        tables.append((f"Source confounds label: {part.key}", source_by_label(part.targets), note))
    for method, table in inside.items():
        note = "Compares only X-rays of one source and one fold, so recognising the source does not help. Exploratory."
        tables.append((f"{method} within one source", table, note))
    return tables


def _support_note(own: pd.DataFrame) -> str:
    fewest = int(own[["held_out_patients_pos", "held_out_patients_neg"]].min().min())
    if fewest >= 2:
        return ""
    number = {0: "no", 1: "1"}[fewest]
    return f"With {number} held-out patient of a class in a fold, an AUC of that fold has no confidence interval."


def scored_flow(result: StudyResult) -> list[FlowStep]:
    """Return the flow of the first variant, from the cohort's table to the cases that each design scored.

    Of several labels: to the cases that were scored for any of them.
    """
    steps, first = list(result.cohort.flow), result.study.variants[0]
    for part in result.designs:
        if part.variant is first:
            labels = labels_of(result.cohort, first.config)
            together = [
                p for p in result.designs
                if p.design.name == part.design.name and p.variant.combination == first.combination
            ]  # fmt: skip
            targets = pd.concat([p.targets for p in together]).drop_duplicates("exam_id")
            rows = result.predictions[result.predictions["design"].isin([p.key for p in together])]
            scored = set(rows.loc[(rows["split"] == "test") & rows["score"].notna(), "exam_id"])
            steps += design_flow(result.cohort, labels, part.design, targets, part.folds, scored)
    return steps


def _leakage_tables(config: StudyConfig, data: StudyData) -> list[tuple[str, pd.DataFrame, str]]:
    """What was compared for one file or picture under several ids, what was not, and what was found."""
    said = [sentence.split(": ", 1) for sentence in data.compared]
    if not said:
        return []
    found = shared_text(data.duplicates, config.duplicates == "join")
    note = found or "No file or picture was found under two patient ids."
    tables = [("Leakage between patients", pd.DataFrame(said, columns=["", "what"]), note)]
    if len(data.duplicates):
        names = {"patient_a": "patient", "exam_a": "image", "patient_b": "other patient", "exam_b": "other image"}
        shown = data.duplicates.rename(columns=names | {"hash_distance": "hash distance"})
        columns = [*names.values(), "how", "hash distance", "correlation"]
        tables.append(("Shared files and pictures", shown[columns], ""))
    return tables
