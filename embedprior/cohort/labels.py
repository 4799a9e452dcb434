"""A hospital's table of exams as it comes: separator, encoding, columns, dates and labels, each found and told."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.errors import BadInput, nearest

ROLES = ("patient_id", "path", "modality", "acquired_at", "view", "sex", "age", "site", "source", "group_id")
SYNONYMS = {
    "patient_id": ("patientid", "patient", "mrn", "subject", "subjectid", "pid", "patientidentifier", "anonpatientid"),
    "path": ("path", "file", "filename", "filepath", "image", "imagepath", "imageindex", "dicompath", "volumename"),
    "modality": ("modality", "imagingmodality"),
    "acquired_at": (
        "acquiredat", "studydate", "date", "examdate", "acquisitiondate", "scandate", "datetime", "studydatetime",
        "performed",
    ),
    "view": ("view", "viewposition", "appa", "projection", "viewpos"),
    "sex": ("sex", "gender", "patientsex", "patientgender"),
    "age": ("age", "patientage"),
    "site": ("site", "hospital", "center", "centre", "institution"),
    "source": ("source",),
    "group_id": ("groupid",),
}  # fmt: skip
MODALITY_WORDS = {
    "CT": ("CT", "CTA", "CTPA"), "CXR": ("CXR", "CR", "DX", "DR", "XRAY", "X-RAY", "XR", "RX", "RADIOGRAPH"),
}  # fmt: skip
UNKNOWN = ("", "nan", "na", "n/a", "none", "null", "?", "-", "unknown", "todo")
"""Cells that are no answer, in any case of letters; ``--unknown`` adds to them."""
YES, NO = ("1", "1.0", "yes", "true", "positive", "pos", "y"), ("0", "0.0", "no", "false", "negative", "neg", "n")
DATES = {
    "YYYY-MM-DD": ("%Y-%m-%d", ""), "YYYYMMDD": ("%Y%m%d", ""), "YYYY/MM/DD": ("%Y/%m/%d", ""),
    "DD/MM/YYYY": ("%d/%m/%Y", "dmy"), "MM/DD/YYYY": ("%m/%d/%Y", "mdy"), "DD.MM.YYYY": ("%d.%m.%Y", ""),
    "DD-MM-YYYY": ("%d-%m-%Y", "dmy"), "MM-DD-YYYY": ("%m-%d-%Y", "mdy"), "DD.MM.YY": ("%d.%m.%y", ""),
    "DD/MM/YY": ("%d/%m/%y", "dmy"), "MM/DD/YY": ("%m/%d/%y", "mdy"),
}  # fmt: skip
"""How a date may be written, and whether day and month may be exchanged."""
TIMES = (
    "", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", "T%H:%M:%S", "T%H:%M:%S.%f", "T%H:%M", " %H%M%S", "%H%M%S",
    " %I:%M %p", " %I:%M:%S %p",
)  # fmt: skip


@dataclass(frozen=True)
class LabelTable:
    """A table as it was read.

    Attributes:
        rows: every cell as text, stripped; columns as in the file.
        column_of: role (``ROLES``) → the column that has it.
        notes: sentences: what was found out about the file.
    """

    rows: pd.DataFrame
    column_of: Mapping[str, str]
    notes: tuple[str, ...] = field(default=())


def read_label_table(path: Path, mapping: Sequence[str] = ()) -> LabelTable:
    """Read a CSV of any separator and encoding, and find out which column is what.

    Args:
        path: the file.
        mapping: ``COLUMN=ROLE`` for columns that are not known by their names.

    Raises:
        BadInput: no such file, not a table, a mapping that names no column or no role, or no patient or file column.
    """
    if not path.is_file():
        raise BadInput(f"no label table at {path}. Next: --labels FILE, a CSV with a row for each exam.")
    text, encoding = _decoded(path.read_bytes(), path)
    first = re.match(r"sep=(.)\s*\n", text)  # a line that spreadsheets write and read
    text = text[first.end() :] if first else text
    separator = _separator(text, path)
    try:
        rows = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise BadInput(f"{path} can't be read as a table: {error}") from error
    rows.columns = [str(c).strip() for c in rows.columns]
    rows = rows.map(str.strip)
    told = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}[separator]
    notes = [f"{path.name}: {len(rows)} rows, separated by {told}, {encoding}."]
    column_of = _columns(rows, mapping, path)
    notes.append("Columns: " + ", ".join(f"{role} = '{column}'" for role, column in column_of.items()) + ".")
    others = [column for column in rows.columns if column not in column_of.values()]
    if others:
        notes.append(f"Other columns, for --label or --map: {', '.join(others)}.")
    absent = [role for role in ("patient_id", "path") if role not in column_of]
    if absent:
        named, options = "' or '".join(absent), " ".join(f"--map COLUMN={role}" for role in absent)
        raise BadInput(f"{path}: no column is known to be '{named}'. It has {', '.join(rows.columns)}. Next: {options}")
    return LabelTable(rows, column_of, tuple(notes))


def _decoded(content: bytes, path: Path) -> tuple[str, str]:
    for encoding, mark in (("utf-8-sig", b"\xef\xbb\xbf"), ("utf-16", b"\xff\xfe"), ("utf-16", b"\xfe\xff")):
        if content.startswith(mark):
            try:
                return content.decode(encoding), f"{encoding.removesuffix('-sig').upper()} with a byte order mark"
            except UnicodeDecodeError:
                break
    try:
        return content.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError:
        if b"\0" in content:
            raise BadInput(f"{path} is not a text file. Next: save the table as CSV.") from None
        return content.decode("cp1252", errors="replace"), "Windows-1252 (it is not UTF-8)"


def _separator(text: str, path: Path) -> str:
    """The separator that cuts the first lines into the same number of cells, the most cells first."""
    lines = [line for line in text.splitlines() if line.strip()][:50]
    if not lines:
        raise BadInput(f"{path} is empty.")
    found = []
    for candidate in (",", ";", "\t", "|"):
        counts = [len(row) for row in csv.reader(lines, delimiter=candidate)]
        if counts[0] > 1:
            found.append((sum(count == counts[0] for count in counts), counts[0], candidate))
    if not found:
        raise BadInput(f"{path}: one column only ('{lines[0][:60]}'). Allowed separators: comma, semicolon, tab, bar.")
    return max(found)[2]


def _columns(rows: pd.DataFrame, mapping: Sequence[str], path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in mapping:
        column, equals, role = (part.strip() for part in pair.partition("="))
        if not equals or column not in rows.columns:
            have = ", ".join(rows.columns)
            raise BadInput(f"--map {pair}: no column '{column}' in {path}. It has {have}."
                           f"{nearest(column, list(rows.columns))}")  # fmt: skip
        if role not in ROLES:
            raise BadInput(f"--map {pair}: '{role}'. Allowed: {', '.join(ROLES)}.{nearest(role, ROLES)}")
        found[role] = column
    for role, names in SYNONYMS.items():
        plain = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in reversed(rows.columns)}
        known = next((plain[name] for name in names if name in plain), None)
        if role not in found and known is not None and known not in found.values():
            found[role] = known
    return {role: found[role] for role in ROLES if role in found}


def modality_of(text: str) -> str:
    """Return ``CT`` or ``CXR`` for any known word, else an empty string.

    Example:
        >>> modality_of("dx"), modality_of("CTPA"), modality_of("MR")
        ('CXR', 'CT', '')
    """
    word = text.strip().upper()
    return next((name for name, words in MODALITY_WORDS.items() if word in words), "")


def parse_dates(cells: pd.Series, order: str | None, where: str) -> tuple[pd.Series, list[str]]:
    """Return the times of a column, NaT where a cell is empty or no date, and sentences about how it is written.

    A column may mix ways of writing. Of 03/04/2021 the column decides, by cells such as 25/04/2021.

    Args:
        cells: text.
        order: ``dmy`` or ``mdy`` where the column can't decide; None = it must.
        where: column, for messages.

    Raises:
        BadInput: day and month can't be told apart, or both orders occur.

    Example:
        >>> times, notes = parse_dates(pd.Series(["20210325", "26/03/2021"]), None, "date")
        >>> (times[1] - times[0]).days, notes
        (1, ['date: 1 as YYYYMMDD, 1 as DD/MM/YYYY.'])
    """
    parsed = {name: _parsed(cells, form) for name, (form, _) in DATES.items()}
    for slash, day_first, month_first in (
        ("/", "DD/MM/YYYY", "MM/DD/YYYY"),
        ("/", "DD/MM/YY", "MM/DD/YY"),
        ("-", "DD-MM-YYYY", "MM-DD-YYYY"),
    ):
        a, b = parsed[day_first].notna(), parsed[month_first].notna()
        both, chosen = a & b, order
        if (a & ~b).any() and (b & ~a).any():
            raise BadInput(f"{where}: {int((a & ~b).sum())} dates are day{slash}month and {int((b & ~a).sum())} are "
                           f"month{slash}day, e.g. {cells[a & ~b].iloc[0]} and {cells[b & ~a].iloc[0]}. Next: write "
                           "them alike.")  # fmt: skip
        if (a & ~b).any() or (b & ~a).any():
            chosen = "dmy" if (a & ~b).any() else "mdy"
        if both.any() and (parsed[day_first][both] != parsed[month_first][both]).any() and chosen is None:
            raise BadInput(f"{where}: day or month first? {int(both.sum())} dates such as {cells[both].iloc[0]} can be "
                           "read both ways. Next: --dates dmy, or --dates mdy")  # fmt: skip
        parsed[month_first if chosen != "mdy" else day_first][both] = pd.NaT
    times = pd.Series(pd.NaT, index=cells.index, dtype="datetime64[ns]")
    counts = Counter[str]()
    for name, values in parsed.items():
        new = times.isna() & values.notna()
        times[new] = values[new]
        counts[name] += int(new.sum())
    lost = times.isna() & ~cells.str.lower().isin(UNKNOWN)
    notes = (
        [f"{where}: " + ", ".join(f"{n} as {name}" for name, n in counts.items() if n) + "."]
        if times.notna().any()
        else []
    )
    if lost.any():
        few = ", ".join(f"'{value}'" for value in cells[lost].unique()[:3])
        notes.append(f"{where}: {int(lost.sum())} cells are no date and count as unknown: {few}.")
    return times, notes


def _parsed(cells: pd.Series, form: str) -> pd.Series:
    cells = cells.str.replace(r"(?<=\d)Z$", "", regex=True)
    times = pd.Series(pd.NaT, index=cells.index, dtype="datetime64[ns]")
    for more in TIMES:
        found = pd.to_datetime(cells, format=form + more, errors="coerce")
        times = times.fillna(found.where((found.dt.year > 1900) & (found.dt.year < 2200)))
    return times


def parse_label(rows: pd.DataFrame, rule: str, unknown: Sequence[str]) -> tuple[str, pd.Series, str]:
    """Return a label's name, its values (1, 0 or NaN) and a sentence about them.

    Args:
        rows: the table, cells as text.
        rule: ``NAME=COLUMN`` (cells say yes or no), ``NAME=COLUMN~TEXT`` (1 where a cell contains the text, in any
            case of letters), or ``NAME=COLUMN:A|B`` (1 where a cell is A or B).
        unknown: words, beside ``UNKNOWN``, that are no answer.

    Raises:
        BadInput: not such a rule, no such column, or cells that say neither yes nor no (they are named).

    Example:
        >>> rows = pd.DataFrame({"finding": ["COVID-19", "No Finding", "todo"]})
        >>> parse_label(rows, "covid=finding~covid", ())[1].tolist()
        [1.0, 0.0, nan]
    """
    found = re.fullmatch(r"([A-Za-z0-9_.-]+)=([^~:]+)(?:([~:])(.+))?", rule)
    if not found:
        raise BadInput(f"--label {rule}. Allowed: NAME=COLUMN, NAME=COLUMN~TEXT or NAME=COLUMN:VALUE|VALUE.")
    name, column, how, text = found.groups()
    column = column.strip()
    if column not in rows.columns:
        raise BadInput(f"--label {rule}: no column '{column}'. The table has {', '.join(rows.columns)}."
                       f"{nearest(column, list(rows.columns))}")  # fmt: skip
    cells = rows[column].str.lower()
    silent = cells.isin([*UNKNOWN, *(word.strip().lower() for word in unknown)])
    if how == "~":
        positive = cells.str.contains(text.lower(), regex=False)
        negative = ~positive
    elif how == ":":
        positive = cells.isin([value.strip().lower() for value in text.split("|")])
        negative = ~positive
    else:
        positive, negative = cells.isin(YES), cells.isin(NO)
    odd = ~(positive | negative | silent)
    if odd.any():
        counts = ", ".join(f"'{value}' ({n})" for value, n in rows.loc[odd, column].value_counts().head(5).items())
        raise BadInput(f"--label {rule}: cells of '{column}' that say neither yes nor no: {counts}. Allowed: "
                       f"{'/'.join(YES[:4])} and {'/'.join(NO[:4])}. Next: --unknown WORD, or --label "
                       f"{name}='{column}~TEXT'")  # fmt: skip
    values = pd.Series(np.where(silent, np.nan, positive.astype(float)), index=rows.index)
    counts = (
        f"{int((values == 1).sum())} positive, {int((values == 0).sum())} negative, {int(values.isna().sum())} unknown"
    )
    negatives = rows.loc[values == 0, column].value_counts().head(4)
    seen = ", ".join(f"'{value}' ({n})" for value, n in negatives.items())
    return name, values, f"label {name} of '{column}': {counts} rows; negative are {seen or 'none'}."


def possible_labels(table: LabelTable) -> str:
    """Return, in words, the columns that might hold a label: those of few different values, with the most frequent.

    Example:
        >>> rows = pd.DataFrame({"patient": ["1", "2", "3"], "finding": ["yes", "no", "no"]})
        >>> possible_labels(LabelTable(rows, {"patient_id": "patient"}))
        "finding ('no' 2, 'yes' 1)"
    """
    found = []
    for column in table.rows.columns:
        counts = table.rows[column][~table.rows[column].str.lower().isin(UNKNOWN)].value_counts()
        if column not in table.column_of.values() and 1 < len(counts) <= max(2, len(table.rows) // 2):
            few = ", ".join(f"'{value}' {n}" for value, n in counts.head(3).items())
            found.append(f"{column} ({few})")
    return ", ".join(found[:4])
