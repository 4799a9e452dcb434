"""What a run's report was made from, kept in its folder, so that it can be set anew without fitting anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.errors import BadInput
from embedprior.report.content import EvidenceSection, Figure, Report, Table
from embedprior.report.embedding_map import embedding_figure
from embedprior.runs import read_json, write_json
from embedprior.runs.integrity import read_run_record, refuse_changed_result
from embedprior.tables import PREDICTION_REQUIRED, read_table

CONTENT, FIGURES, TABLES = "report.json", "figures", "tables"
VERSION = 1
#: Of ``run.json``: pages of fits and checksums, which stay there.
UNSHOWN = ("uses", "files", "checksum", "priors")


def drawn(report: Report) -> Report:
    """Return a report whose map of embeddings is a picture among the others, or a sentence saying why there is none."""
    if report.embeddings is None:
        return report
    found = embedding_figure(report.embeddings)
    if isinstance(found, str):
        return replace(report, embeddings=None, caveats=[*report.caveats, found])
    return replace(report, embeddings=None, pictures=[found, *report.pictures])


def save_content(out: Path, report: Report) -> None:
    """Write ``report.json``: everything of a report but evidence, scores and run record, which have their own files.

    Figures are named there; ``figures/`` holds them.
    """
    write_json(
        out / CONTENT,
        {
            "schema_version": VERSION,
            **{name: getattr(report, name) for name in ("title", "question")},
            **{name: list(getattr(report, name)) for name in ("verdict", "lead", "caveats")},
            "sections": [
                {
                    "heading": s.heading, "key": s.key, "intro": list(s.intro), "method_notes": dict(s.method_notes),
                    "tables": [_packed(t) for t in s.tables],
                }
                for s in report.evidence
            ],
            **{name: _frame(getattr(report, name)) for name in ("boundary", "flow", "failures")},
            **{name: [_packed(t) for t in getattr(report, name)] for name in ("tables", "checklists")},
            **{
                name: [{"name": f.name, "caption": f.caption, "alt": f.alt} for f in getattr(report, name)]
                for name in ("lead_figures", "figures", "label_curves", "pictures")
            },
        },
    )  # fmt: skip


def load_report(out: Path) -> Report:
    """Return the report of a finished run, from the files that it left.

    Raises:
        BadInput: there is no finished run, it left no ``report.json``, or a file is not what the run left.
    """
    needed = ("run.json", CONTENT, "evidence.json", "predictions.csv")
    missing = [name for name in needed if not (out / name).is_file()]
    if missing:
        raise BadInput(
            f"{out} holds no run whose report can be made anew: {', '.join(missing)} missing. Next: give the folder of "
            "a finished study or demo; one of an earlier version has to be run again, which fits nothing anew"
        )
    for name in needed[1:]:
        refuse_changed_result(out / name)
    record, kept, evidence = read_run_record(out), read_json(out / CONTENT), read_json(out / "evidence.json")
    if record.get("status") != "done":
        raise BadInput(f"the run in {out} is not finished (status: {record.get('status')}). Next: run it to its end")
    if kept.get("schema_version") != VERSION:
        raise BadInput(f"{out / CONTENT} is of version {kept.get('schema_version')}; this embedprior reads {VERSION}")
    scores = read_table(out / "predictions.csv", PREDICTION_REQUIRED)
    return Report(
        title=kept["title"], question=kept["question"], lead=kept["lead"], verdict=kept["verdict"],
        caveats=kept["caveats"],
        evidence=[_section(s, evidence, scores) for s in kept["sections"]],
        boundary=_unframed(kept["boundary"]), flow=_unframed(kept["flow"]), failures=_unframed(kept["failures"]),
        tables=[_unpacked(t) for t in kept["tables"]], checklists=[_unpacked(t) for t in kept["checklists"]],
        lead_figures=_figures(out, kept["lead_figures"]), figures=_figures(out, kept["figures"]),
        label_curves=_figures(out, kept.get("label_curves", ())), pictures=_figures(out, kept["pictures"]),
        run=shown_record(record),
    )  # fmt: skip


def shown_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a report shows of ``run.json``."""
    return {name: value for name, value in record.items() if name not in UNSHOWN}


def compared_scores(evidence: Mapping[str, Any], scores: pd.DataFrame) -> pd.DataFrame:
    """Return the held-out scores of the methods that have an AUC: what curves are drawn from."""
    if scores.empty:
        return scores
    known = [m["method"] for m in evidence.get("methods", ()) if m.get("auc") is not None]
    held_out = scores[scores["split"] == "test"] if "split" in scores else scores
    found = held_out[held_out["method"].isin(known)]
    if "resample" in found and found["resample"].nunique() <= 1:
        found = found.drop(columns="resample")
    return found.reset_index(drop=True)


def _section(kept: Mapping[str, Any], evidence: Mapping[str, Any], scores: pd.DataFrame) -> EvidenceSection:
    key = str(kept["key"])
    own = evidence["designs"][key] if "designs" in evidence else evidence
    rows = scores[scores["design"] == key] if "design" in scores and key else scores
    return EvidenceSection(
        kept["heading"], own, compared_scores(own, rows.drop(columns="design", errors="ignore")),
        kept["method_notes"], kept["intro"], key, [_unpacked(t) for t in kept["tables"]],
    )  # fmt: skip


def _figures(out: Path, kept: Sequence[Mapping[str, str]]) -> list[Figure]:
    found = []
    for one in kept:
        path = out / FIGURES / f"{file_name(one['name'])}.png"
        if not path.is_file():
            raise BadInput(f"the figure {path} is missing. Next: run the study again, which fits nothing anew")
        data = path.with_suffix(".csv")
        for file in (path, data):
            refuse_changed_result(file)
        frame = pd.read_csv(data) if data.is_file() else pd.DataFrame()
        found.append(Figure(one["name"], one["caption"], path.read_bytes(), frame, one["alt"]))
    return found


def file_name(text: str) -> str:
    """Return a name that every file system takes: letters, digits, ``-``, ``_`` and ``.``; the rest becomes ``_``.

    Example:
        >>> file_name("table-1@fit.lr=0.1 / prior")
        'table-1_fit.lr_0.1_prior'
    """
    kept = "".join(c if c.isalnum() or c in "-_." else " " for c in text)
    return "_".join(kept.split())[:80].strip(".") or "unnamed"


def _packed(table: Table) -> dict[str, Any]:
    heading, frame, note = table
    return {"heading": heading, "note": note, **_frame(frame)}


def _unpacked(kept: Mapping[str, Any]) -> Table:
    return kept["heading"], _unframed(kept), kept["note"]


def _frame(frame: pd.DataFrame) -> dict[str, Any]:
    rows = [[_plain(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return {"columns": [str(c) for c in frame.columns], "rows": rows}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool)) or value is None else json.dumps(value, default=str)


def _unframed(kept: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(kept["rows"], columns=kept["columns"])


def stored_tables(report: Report) -> Report:
    """Return a report with its tables as ``report.json`` gives them back, so that a page made anew is the same page."""
    return replace(
        report,
        evidence=[replace(s, tables=[_unpacked(_packed(t)) for t in s.tables]) for s in report.evidence],
        boundary=_unframed(_frame(report.boundary)),
        flow=_unframed(_frame(report.flow)),
        failures=_unframed(_frame(report.failures)),
        tables=[_unpacked(_packed(t)) for t in report.tables],
        checklists=[_unpacked(_packed(t)) for t in report.checklists],
    )
