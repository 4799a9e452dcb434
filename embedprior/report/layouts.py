"""Any study's results in the layout of two papers: the pilot's tables and figures, and the PE paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.report.content import EvidenceSection, Figure, Report, Table
from embedprior.report.figures import fits_of
from embedprior.report.formatting import escaped, estimate, fixed, interval
from embedprior.report.output import write_table_files
from embedprior.report.spreads import bars_figure
from embedprior.report.store import load_report
from embedprior.runs import make_folder, read_json, write_text
from embedprior.runs.integrity import note_results
from embedprior.tables import read_table

PILOT_METRICS = (
    "accuracy",
    "macro-F1",
    "balanced accuracy",
    "recall",
    "specificity",
    "MCC",
    "PR-AUC",
    "ROC-AUC",
    "Brier",
)
TIER_1 = ("cxr-only", "late-fusion", "slice-late-fusion", "same-modality-kd", "hinton-kd", "slice-kd")
TIER_2 = ("slice-attention", "slice-hint", "fitnets", "aft-kd")
TIERS = ("1 feasibility", "2 mechanism", "3 proposed and later")
MODULES = ("dpe", "mhra", "full", "dfpn")
PE_METRICS = ("accuracy", "sensitivity", "specificity")


@dataclass
class Source:
    """What a layout is made from.

    Attributes:
        report: of the run.
        config: settings of the study.
        support: counts by design, resample and fold; empty in a demo.
        folder: of the run.
    """

    report: Report
    config: Mapping[str, Any]
    support: pd.DataFrame
    folder: Path
    designs: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def of_split(self, *splits: str) -> list[EvidenceSection]:
        """Return the sections of designs with one of these splits."""
        return [s for s in self.report.evidence if self.design(s).get("split", "kfold") in splits]

    def fits(self, section: EvidenceSection, unit: str) -> pd.DataFrame:
        """Return the metrics of every fit of a section (see ``fit_table``)."""
        return fit_table(section, unit, self.config.get("methods"))

    def design(self, section: EvidenceSection) -> Mapping[str, Any]:
        """Return the settings of a section's design; of a demo, a fixed split."""
        return self.designs.get(section.key.split("@")[0], {"split": "fixed"})


Item = Table | Figure | str
"""A table, a figure, or the reason why the study has none."""


def write_layout(run: Path, layout: str, out: Path) -> list[Path]:
    """Write a finished run's results in the layout of a paper, and return the files; nothing is fitted.

    Every item becomes ``table_N.csv``, ``.tex`` or ``figure_N.png``, ``.csv``; ``layout.md`` shows all of them, and
    says of an item that this study can't fill why.

    Args:
        run: folder of a study or demo.
        layout: ``pilot`` or ``pe-paper``.
        out: folder; what an earlier call left there is replaced.

    Raises:
        BadInput: see ``store.load_report``.
    """
    report, record = load_report(run), read_json(run / "run.json")
    support = read_table(run / "support.csv", ["design"]) if (run / "support.csv").is_file() else pd.DataFrame()
    config = record.get("config") or {}
    designs = {d["name"]: d for d in config.get("designs", ())}
    source = Source(report, config, support, run, designs)
    items = {name: make(source) for name, make in LAYOUTS[layout].items()}
    make_folder(out)
    for stale in [*out.glob("table_[0-9].*"), *out.glob("figure_[0-9].*")]:
        stale.unlink()
    lines = [f"# {escaped(report.title)}: {layout}"]
    for name, item in items.items():
        file = name.lower().replace(" ", "_")
        lines.append(f"## {name}")
        if isinstance(item, str):
            lines.append(f"Not in this study: {escaped(item)}.")
        elif isinstance(item, Figure):
            (out / f"{file}.png").write_bytes(item.png)
            item.data.to_csv(out / f"{file}.csv", index=False)
            lines.append(f"![{escaped(item.caption)}]({file}.png)\n\n{escaped(item.caption)}")
        else:
            write_table_files(out, file, item)
            heading, frame, note = item
            lines += [f"{escaped(heading)}", _markdown(frame), *([escaped(note)] if note else [])]
    write_text(out / "layout.md", "\n\n".join(lines) + "\n")
    written = sorted(path for path in out.iterdir() if not path.name.startswith("."))
    note_results(out, [path.name for path in written])
    return written


def _markdown(frame: pd.DataFrame) -> str:
    from embedprior.report.formatting import markdown_table, text_table

    shown = text_table(frame, len(frame))
    return markdown_table(shown.header, shown.rows, shown.numeric)


def fit_metrics(rows: pd.DataFrame) -> dict[str, float]:
    """Return the pilot's metrics of one fit's held-out cases at the threshold .5; NaN where a class is missing.

    Args:
        rows: ``label``, ``score``.

    Example:
        >>> found = fit_metrics(pd.DataFrame({"label": [1, 1, 0], "score": [0.9, 0.4, 0.2]}))
        >>> round(found["accuracy"], 3), found["recall"], found["specificity"], found["ROC-AUC"]
        (0.667, 0.5, 1.0, 1.0)
    """
    from sklearn import metrics

    truth, score = rows["label"].to_numpy() == 1, rows["score"].to_numpy(dtype=float)
    called = score >= 0.5
    both, probabilities = truth.any() and not truth.all(), bool(score.min() >= 0 and score.max() <= 1)
    recall = float(called[truth].mean()) if truth.any() else np.nan
    specificity = float((~called[~truth]).mean()) if not truth.all() else np.nan
    return {
        "accuracy": float((called == truth).mean()),
        "macro-F1": float(metrics.f1_score(truth, called, average="macro", zero_division=0, labels=[False, True])),
        "balanced accuracy": (recall + specificity) / 2,
        "recall": recall,
        "specificity": specificity,
        "MCC": float(metrics.matthews_corrcoef(truth, called)) if both else np.nan,
        "PR-AUC": float(metrics.average_precision_score(truth, score)) if both else np.nan,
        "ROC-AUC": float(metrics.roc_auc_score(truth, score)) if both else np.nan,
        "Brier": float(((score - truth) ** 2).mean()) if probabilities else np.nan,
    }


def fit_table(section: EvidenceSection, unit: str, named: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Return the pilot's metrics of every fit of a section: ``method, <unit>, tier`` and the metrics.

    Args:
        section: of a report.
        unit: what a fit is called.
        named: the study's own names of methods, each with ``method`` and ``options``.
    """
    found = []
    for method, own in section.predictions.groupby("method", sort=False):
        for place, rows in enumerate(fits_of(own[own["label"].notna()]), 1):
            found.append(
                {"method": method, unit: place, "tier": tier_of(str(method), named or {}), **fit_metrics(rows)}
            )
    return pd.DataFrame(found, columns=["method", unit, "tier", *PILOT_METRICS])


def tier_of(method: str, named: Mapping[str, Any]) -> str:
    """Return the pilot's tier of a method, by what it is registered as; networks with modules are of the third.

    Example:
        >>> full = {"method": "slice-kd", "options": {"student": "pilot-dfpn", "teacher": "pilot-teacher-full"}}
        >>> tier_of("full", {"full": full}), tier_of("plain", {"plain": {"method": "slice-kd", "options": {}}})
        ('3 proposed and later', '1 feasibility')
    """
    own = named.get(method, {})
    registered, options = str(own.get("method", method)), own.get("options", {})
    networks = f"{options.get('teacher', '')} {options.get('student', '')}"
    if registered == "slice-kd" and any(part in networks for part in MODULES):
        return TIERS[2]
    return TIERS[0] if registered in TIER_1 else TIERS[1] if registered in TIER_2 else TIERS[2]


def _summary(table: pd.DataFrame, quantiles: bool) -> pd.DataFrame:
    rows = []
    for (tier, method), own in table.groupby(["tier", "method"], sort=False):
        row: dict[str, Any] = {"tier": tier, "method": method, "fits": len(own)}
        for name in PILOT_METRICS:
            values = own[name].dropna()
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            if quantiles and len(values) > 1:
                low, high = values.quantile([0.025, 0.975])
                spread += f" [{low:.3f}, {high:.3f}]"
            row[name] = f"{fixed(values.mean() if len(values) else None)}{spread}"
        rows.append(row)
    return pd.DataFrame(rows).sort_values("tier", kind="stable") if rows else pd.DataFrame()


def _boundary(source: Source) -> Item:
    if source.report.boundary.empty:
        return "the run left no table of conclusions"
    return "What can be concluded", source.report.boundary, ""


def _cohort(source: Source) -> Item:
    exams, label = source.folder / "cohort" / "exams.csv", f"label:{source.config.get('label', 'lesion')}"
    if not exams.is_file():
        return "the run left no cohort tables"
    table = read_table(exams, ["exam_id", "patient_id", "modality"])
    rows = []
    for modality, own in table.groupby("modality"):
        known = own[label] if label in own else pd.Series(dtype=float)
        counts = [int((known == value).sum()) for value in (1, 0)]
        rows.append([f"{modality} exams", len(own), own["patient_id"].nunique(), *counts, int(known.isna().sum())])
    pairs = source.folder / "cohort" / "pairs.csv"
    if pairs.is_file():
        paired = read_table(pairs, ["patient_id"])
        named = paired.merge(table, left_on="cxr_exam_id", right_on="exam_id", suffixes=("", "_exam"))
        known = named[label] if label in named else pd.Series(dtype=float)
        counts = [int((known == value).sum()) for value in (1, 0)]
        rows.append(["pairs", len(paired), paired["patient_id"].nunique(), *counts, int(known.isna().sum())])
    return "Cohort", pd.DataFrame(rows, columns=["set", "exams", "patients", "positive", "negative", "unknown"]), ""


def _regimes(source: Source) -> Item:
    rows = []
    for section in source.report.evidence:
        design, own = source.design(section), source.support
        own = own[own["design"] == section.key] if len(own) else own
        role = "reference" if design.get("cases") == "cxr" else (
            "feasibility" if design.get("split") == "fixed" else "primary")  # fmt: skip
        row: dict[str, Any] = {"design": section.key or section.heading, "role": role, "split": design.get("split")}
        row["methods"] = len(section.evidence["methods"])
        for part, text in (("held_out", "held out"), ("train", "training")):
            for sign, mark in (("pos", "+"), ("neg", "−")):
                column = f"{part}_images_{sign}"
                row[f"{text} {mark}"] = float(own[column].mean()) if column in own else None
        rows.append(row)
    note = "Images in a fold or resample, means. Reference: radiographs without CT; feasibility: one fixed split."
    return "Evaluation regimes and their support", pd.DataFrame(rows), note


def _fixed_split(source: Source) -> Item:
    sections = source.of_split("fixed")
    if not sections:
        return "no design has a fixed split"
    table = pd.concat([source.fits(s, "seed") for s in sections], ignore_index=True)
    return f"Fixed split: {sections[0].heading}", _summary(table, False), "At the threshold .5; mean ± sd over seeds."


def _resampling(source: Source) -> Item:
    sections = source.of_split("resamples") or source.of_split("kfold")
    if not sections:
        return "no design has resamples or folds"
    unit = "resample" if source.of_split("resamples") else "fold and seed"
    table = source.fits(sections[0], unit)
    note = f"At the threshold .5; mean ± sd [2.5 and 97.5 % quantiles] over every {unit}: a spread, no interval."
    return f"Every {unit}: {sections[0].heading}", _summary(table, True), note


def _statuses(source: Source) -> Item:
    found = [t for t in source.report.tables if t[0] == "Declared hypotheses"]
    if found:
        return found[0]
    rows = [
        [c["claim"], c["verdict"]] for s in source.report.evidence for c in s.evidence["comparisons"]
        if c.get("in_family")
    ]  # fmt: skip
    return ("Declared claims", pd.DataFrame(rows, columns=["claim", "status"]), "") if rows else "no claim was declared"


def _seed_dots(source: Source) -> Item:
    sections = source.of_split("fixed")
    if not sections:
        return "no design has a fixed split"
    return bars_figure(source.fits(sections[0], "seed"), "balanced accuracy", "seed") or "no fit holds both classes"


def _resample_dots(source: Source) -> Item:
    sections = source.of_split("resamples") or source.of_split("kfold")
    if not sections:
        return "no design has resamples or folds"
    unit = "resample" if source.of_split("resamples") else "fold"
    return bars_figure(source.fits(sections[0], unit), "balanced accuracy", unit) or "no fit holds both classes"


def _heat_map(source: Source) -> Item:
    found = [f for f in source.report.figures if f.name.startswith("sweep-")]
    return found[0] if found else "no setting is swept (the pilot sweeps temperature and weight)"


def _ablation(source: Source) -> Item:
    for section in source.report.evidence:
        rows = source.fits(section, "fit")
        proposed = rows[rows["tier"] == TIERS[2]]
        if proposed["method"].nunique() > 1:
            figure = bars_figure(proposed.drop(columns="tier"), "balanced accuracy", "fit")
            return figure or "no fit holds both classes"
    return "no design runs two methods of the third tier, whose parts could be compared"


def _pe_table(place: int) -> Callable[[Source], Item]:
    def make(source: Source) -> Item:
        named = [s for s in source.report.evidence if s.key.split("@")[0] == f"table-{place}"]
        sections = named or list(source.report.evidence)[place - 1 : place]
        if not sections:
            return f"the study has fewer than {place} designs"
        section = sections[0]
        rows = []
        for m in section.evidence["methods"]:
            row = {"method": m["method"] + (" (needs CT)" if m.get("oracle") else "")}
            row["AUC"] = _estimate(m.get("auc"), m)
            for name in PE_METRICS:
                one = (m.get("metrics") or {}).get(name) or {}
                row[name] = _estimate(one.get("value"), one)
            rows.append(row)
        note = "With intervals where they are defined; thresholds from validation patients, never from held-out ones."
        return section.heading, pd.DataFrame(rows), note

    return make


def _estimate(value: Any, row: Mapping[str, Any]) -> str:
    limits = interval(row.get("ci_low"), row.get("ci_high"))
    return estimate(fixed(value), limits) if limits != "–" else fixed(value)


def _map(source: Source) -> Item:
    found = [f for f in source.report.pictures if f.name in ("sampling", "embedding-map")]
    return found[0] if found else (
        "no embedding was generated in it; embedprior generate draws the map of a prior's sampling")  # fmt: skip


LAYOUTS: dict[str, dict[str, Callable[[Source], Item]]] = {
    "pilot": {
        "Table 1": _boundary, "Table 2": _cohort, "Table 3": _regimes, "Table 4": _fixed_split,
        "Table 5": _resampling, "Table 6": _statuses, "Figure 2": _seed_dots, "Figure 3": _resample_dots,
        "Figure 4": _heat_map, "Figure 5": _ablation,
    },
    "pe-paper": {"Table 1": _pe_table(1), "Table 2": _pe_table(2), "Figure 4": _map},
}  # fmt: skip
"""Layout → its items, in order, each with what makes it."""
