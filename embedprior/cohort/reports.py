"""Radiology reports: their sections, and report tables as exams of a cohort. Text goes into the text files alone."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from embedprior.errors import BadInput, nearest
from embedprior.runs import write_text
from embedprior.tables import EXAM_REQUIRED, PAIR_REQUIRED, check_exams, check_pairs, read_table, write_table

SECTIONS: dict[str, str] = {
    "findings": r"findings?",
    "impression": r"impressions?|conclusions?",
    "technique": r"techniques?|procedure",
    "clinical": r"(?:clinical )?(?:indications?|information|history|histories)|reason for exam(?:ination)?",
    "comparison": r"comparisons?",
}
"""Section → its headings, in any case of letters."""
NAMES = "|".join(f"(?P<{name}>{heading})" for name, heading in SECTIONS.items())
HEADING_RE = re.compile(rf"(?:(?<=\n)|\A)[ \t]*(?:{NAMES})[ \t]*:", re.IGNORECASE)
NOTHING = ("", "not given.", "not given", "none.", "n/a", "nan")
"""Texts that stand for an empty section in published tables, in lower case."""


def report_sections(text: str) -> dict[str, str]:
    """Return the sections of a report by name (``SECTIONS``); those that stand twice are joined.

    A heading stands at the beginning of a line and ends with a colon. What comes before the first one belongs to none.

    Example:
        >>> report_sections("CT CHEST\\nFINDINGS: clear lungs.\\nImpression: normal.")
        {'findings': 'clear lungs.', 'impression': 'normal.'}
    """
    found: dict[str, str] = {}
    headings = list(HEADING_RE.finditer(text))
    ends = [following.start() for following in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=False):
        body = text[heading.end() : end].strip()
        name = heading.lastgroup or ""
        if body.lower() not in NOTHING:
            found[name] = f"{found[name]}\n{body}" if name in found else body
    return found


def chosen_sections(text: str, sections: Sequence[str]) -> str:
    """Return some sections of a report, joined in the order asked for; empty where it has none of them."""
    found = report_sections(text)
    return "\n".join(found[name] for name in sections if name in found)


def checked_sections(sections: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of sections, given as a list or as one text with commas.

    Raises:
        BadInput: an unknown name.
    """
    names = tuple(s.strip() for s in sections.split(",") if s.strip()) if isinstance(sections, str) else tuple(sections)
    for name in names:
        if name not in SECTIONS:
            raise BadInput(f"report section '{name}'. Allowed: {', '.join(SECTIONS)}.{nearest(name, SECTIONS)}")
    return names


@dataclass(frozen=True)
class ReportCohort:
    """Tables with the reports in them.

    Attributes:
        exams, pairs: with REPORT exams, and the column ``report_exam_id``.
        files: path under the cohort's folder → text of the report.
        notes: sentences: how many reports, and for how many CTs there is none.
    """

    exams: pd.DataFrame
    pairs: pd.DataFrame
    files: Mapping[str, str]
    notes: tuple[str, ...]


def read_reports(
    table: Path, key: str, columns: Mapping[str, str], exams: Path, pairs: Path, out: Path
) -> ReportCohort:
    """Return a cohort's tables with the reports of a CSV added, one text file a report.

    Args:
        table: CSV, one row a CT.
        key: its column with the CT's exam id, or the name of its file (``train_1_a_1.nii.gz``).
        columns: section → column of its text.
        exams, pairs: tables of the cohort.
        out: folder of the new tables, which paths will be relative to.

    Raises:
        BadInput: a missing column, an unknown section, a CT with two rows of different text, or no row that belongs to
            a CT of the cohort. No message holds a report's text.
    """
    checked_sections(list(columns))
    rows = pd.read_csv(table, dtype=str, keep_default_na=False) if table.is_file() else None
    if rows is None:
        raise BadInput(f"no table of reports at {table}. Next: --table FILE")
    for column in (key, *columns.values()):
        if column not in rows.columns:
            have = ", ".join(rows.columns)
            raise BadInput(f"{table}: no column '{column}'. It has {have}.{nearest(column, list(rows.columns))}")
    known = check_exams(read_table(exams, EXAM_REQUIRED), str(exams))
    joined = check_pairs(read_table(pairs, PAIR_REQUIRED), known, str(pairs))
    scans = known[known["modality"] == "CT"].set_index("exam_id")
    names = rows[key].str.replace(r"\.nii(\.gz)?$", "", regex=True)
    texts: dict[str, str] = {}
    for name, values in zip(names, rows[list(columns.values())].itertuples(index=False), strict=True):
        if name not in scans.index:
            continue
        parts = [(section, str(body).strip()) for section, body in zip(columns, values, strict=True)]
        text = "\n\n".join(f"{section.upper()}:\n{body}" for section, body in parts if body.lower() not in NOTHING)
        if texts.setdefault(name, text) != text:
            raise BadInput(f"{table}: CT '{name}' has two rows of different text. Allowed: one.")
    if not texts:
        raise BadInput(f"{table}: none of its {len(rows)} rows belongs to a CT of {exams}: '{key}' must hold exam ids.")
    kept = {name: text for name, text in texts.items() if text}
    reports = pd.DataFrame(
        {"exam_id": [f"{name}-report" for name in kept], "patient_id": [scans.at[n, "patient_id"] for n in kept],
         "modality": "REPORT", "path": [f"reports/{name}.txt" for name in kept],
         "sha256": [hashlib.sha256(written(text).encode()).hexdigest() for text in kept.values()]}
    )  # fmt: skip
    moved = [
        os.path.relpath((exams.parent / str(path)).resolve(), out.resolve()) if isinstance(path, str) and path else path
        for path in known["path"]
    ]
    whole = pd.concat([known.assign(path=moved), reports], ignore_index=True)
    named = joined["ct_exam_id"].astype(str)
    joined = joined.assign(report_exam_id=(named + "-report").where(named.isin(kept), ""))
    notes = (
        f"{len(kept)} reports of {reports['patient_id'].nunique()} patients; {len(scans) - len(kept)} of {len(scans)} "
        f"CTs have none ({len(texts) - len(kept)} rows without text in these sections).",
        f"{int((joined['report_exam_id'] != '').sum())} of {len(joined)} pairs have a report.",
    )
    return ReportCohort(whole, joined, {f"reports/{name}.txt": text for name, text in kept.items()}, notes)


def written(text: str) -> str:
    """Return what the text file of a report holds."""
    return text + "\n"


def write_reports(cohort: ReportCohort, out: Path) -> None:
    """Write the tables, and the text files, which only their owner may read."""
    (out / "reports").mkdir(parents=True, exist_ok=True)
    for name, text in cohort.files.items():
        write_text(out / name, written(text))
        (out / name).chmod(0o600)
    write_table(cohort.exams, out / "exams.csv")
    write_table(cohort.pairs, out / "pairs.csv")
