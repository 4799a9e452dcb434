"""From folders of CTs and radiographs and a label table to the tables of a cohort; every drop has its reason."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.cohort.base import FlowStep, flow_step
from embedprior.cohort.labels import LabelTable, modality_of, parse_dates, parse_label
from embedprior.errors import BadInput
from embedprior.imaging.contact_sheet import check_exam
from embedprior.imaging.files import UnreadableExam, source_hash
from embedprior.imaging.findings import Finding, lungs_complete, worst
from embedprior.imaging.radiographs import normal_view
from embedprior.imaging.readers import ExamSource, discover
from embedprior.tables import LABEL_PREFIX, PAIR_REQUIRED

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz", ".zip", ".dcm", ".dicom", ".png", ".jpg",
           ".jpeg", ".tif", ".tiff", ".bmp")  # fmt: skip
LONGER_HOURS = (24.0, 72.0, 168.0, 336.0, 720.0)
"""Windows whose number of pairs is said beside that of the one that was given."""


@dataclass(frozen=True)
class Built:
    """The tables of a cohort.

    Attributes:
        exams: exam table; ``path`` is relative to the cohort's folder.
        pairs: pair table.
        flow: rows and files in, exams and pairs out.
        dropped: every row or file that is not in the tables: ``name, stage, reason``.
        notes: sentences: what was found out, and what to look at.
    """

    exams: pd.DataFrame
    pairs: pd.DataFrame
    flow: tuple[FlowStep, ...]
    dropped: pd.DataFrame
    notes: tuple[str, ...]


def build_cohort(
    folders: Mapping[str, Path], table: LabelTable, table_folder: Path, out: Path, labels: Sequence[str], *,
    window_hours: float = 24.0, unknown: Sequence[str] = (), dates: str | None = None,
    views: Collection[str] = ("PA", "AP"),
    progress: Callable[[Sequence[ExamSource]], Iterable[ExamSource]] = iter,
) -> Built:  # fmt: skip
    """Match the rows of a label table with the exams in folders, read every exam, and pair radiographs with CTs.

    Args:
        folders: ``CT`` and ``CXR`` → where such exams lie; the same folder for both will do.
        table: the label table.
        table_folder: what the table's paths may be relative to.
        out: folder of the cohort, which paths will be relative to.
        labels: rules (see ``labels.parse_label``).
        window_hours: a radiograph and a CT of one patient further apart are no pair.
        unknown: further words that are no answer.
        dates: ``dmy`` or ``mdy``, where a column of dates can be read both ways.
        views: of the radiographs that are paired; an unknown view counts as one of them.
        progress: yields what it is given, and shows how far the reading is.

    Raises:
        BadInput: nothing to read in a folder, a label rule that does not fit, dates that can be read both ways, or no
            row that has a file.
    """
    rows = table.rows.copy()
    notes = list(table.notes)
    flow = [FlowStep("rows of the label table", len(rows), rows[table.column_of["patient_id"]].nunique(), 0, "")]
    values = {}
    for rule in labels:
        name, found_values, told = parse_label(rows, rule, unknown)
        values[LABEL_PREFIX + name] = found_values
        notes.append(told)
    exams = pd.DataFrame({role: rows[column] for role, column in table.column_of.items()}).assign(**values)
    if "acquired_at" in exams:
        times, told_dates = parse_dates(exams["acquired_at"], dates, table.column_of["acquired_at"])
        exams["acquired_at"] = times
        notes += told_dates
    found, skipped = _sources(folders)
    dropped: list[tuple[str, str, str]] = [(name, "files", reason) for name, reason in skipped]
    exams, told_ids = _one_spelling(exams)
    notes += told_ids
    keys = _table_keys(exams["path"], found, [table_folder, *folders.values()])

    def keep(frame: pd.DataFrame, wanted: pd.Series, step: str, reason: str) -> pd.DataFrame:
        left = frame[wanted]
        dropped.extend((str(name), "rows", reason) for name in frame.loc[~wanted, "path"])
        flow.append(flow_step(step, left, len(frame) - len(left), reason))
        return left

    exams = keep(exams, exams["patient_id"] != "", "with a patient", "no patient id")
    exams = keep(exams, ~exams.duplicated(), "each row once", "the same row again")
    exams = exams.assign(place=keys.loc[exams.index])
    exams = keep(exams, exams["place"] != "", "file found", "no such file, or nothing that can be read")
    if exams.empty:
        raise BadInput(
            f"no row of the label table has a file under {', '.join(map(str, dict.fromkeys(folders.values())))}; the "
            f"column '{table.column_of['path']}' has {', '.join(rows[table.column_of['path']].unique()[:2])}, the "
            f"folders {', '.join(s.name for s in list(found.values())[:2])}. Next: --map COLUMN=path"
        )
    owners = exams.groupby("place")["patient_id"].nunique()
    if (owners > 1).any():
        names = ", ".join(found[place].name for place in owners[owners > 1].index[:3])
        notes.append(f"{int((owners > 1).sum())} files have rows of several patients; the first row stays: {names}.")
    once = ~exams["place"].duplicated()
    exams = keep(exams, once, "one row a file", "another row of the same file; the first stays")
    without = sorted(set(found) - set(exams["place"]))
    dropped += [(found[name].name, "files", "no row in the label table") for name in without]
    if without:
        notes.append(f"{len(without)} files have no row in the label table, e.g. {found[without[0]].name}.")
    exams, told_kinds = _kinds(exams, found)
    notes += told_kinds
    exams = keep(exams, exams["modality"] != "", "CT or radiograph", "neither CT nor radiograph")
    read = _read(exams, found, progress)
    bad = {place: next(f.message for f in findings if f.severity == "error") for place, (findings, _) in read.items()
           if worst(findings) == "error"}  # fmt: skip
    whole = ~exams["place"].isin(bad)
    dropped.extend((str(n), "rows", bad[p]) for n, p in exams.loc[~whole, ["path", "place"]].itertuples(index=False))
    exams, gone = exams[whole], int((~whole).sum())
    flow.append(flow_step("can be read", exams, gone, "it can't be read (dropped.csv names the reason)"))
    if exams.empty:
        folder = next(iter(folders.values()))
        raise BadInput(f"none of the {gone} exams can be read, e.g. {next(iter(bad.values()))}. Next: embedprior "
                       f"images check {folder}")  # fmt: skip
    exams, told_exams = _described(exams, found, read, out)
    notes += told_exams
    flow += [_count(exams, "CT", "CTs"), _count(exams, "CXR", "radiographs")]
    pairs, steps, lost = pair_in_window(exams, window_hours, views)
    notes += _pairs_by_window(exams, window_hours, views, len(pairs))
    flow += steps
    dropped += lost
    order = ["exam_id", "patient_id", "modality", "path"]
    exams = exams[[*order, *(c for c in exams.columns if c not in order)]].reset_index(drop=True)
    table_of_drops = pd.DataFrame(dropped, columns=["name", "stage", "reason"])
    return Built(exams, pairs, tuple(flow), table_of_drops, tuple(notes))


def pair_in_window(
    exams: pd.DataFrame, window_hours: float, views: Collection[str]
) -> tuple[pd.DataFrame, list[FlowStep], list[tuple[str, str, str]]]:
    """Pair radiographs with CTs of the same patient, each in one pair at most.

    Of all that lie within the window the pairs are taken in this order: radiographs before the CT, or at its time,
    first; then the nearest; then by exam ids. A radiograph after the CT may show what was done about it. An unknown
    time pairs with nothing.

    Args:
        exams: with ``exam_id, patient_id, modality``, ``acquired_at`` (times) and ``view``.
        window_hours: how far apart at most; times of whole days count as midnight.
        views: of the radiographs that may be paired; an unknown view counts as one of them.

    Returns:
        The pair table (``offset_days``: CT minus radiograph), the steps of the flow, and each radiograph without pair
        with its reason: ``(exam, "pairs", reason)``.
    """
    label_names = [c for c in exams.columns if c.startswith(LABEL_PREFIX)]
    cxr, ct = exams[exams["modality"] == "CXR"], exams[exams["modality"] == "CT"]
    lost: list[tuple[str, str, str]] = []
    steps: list[FlowStep] = []

    def keep(wanted: pd.Series, step: str, reason: str) -> pd.DataFrame:
        lost.extend((str(name), "pairs", reason) for name in cxr.loc[~wanted, "exam_id"])
        left = cxr[wanted]
        steps.append(flow_step(f"pairing: {step}", left, len(cxr) - len(left), reason))
        return left

    wanted_views = {normal_view(view) for view in views}
    stated = cxr["view"].map(normal_view) if "view" in cxr else pd.Series("", index=cxr.index)
    if wanted_views:
        cxr = keep(stated.isin([*wanted_views, ""]), f"radiographs of view {', '.join(views)}", "another view")
    cxr = keep(cxr["patient_id"].isin(ct["patient_id"]), "of patients with CT", "the patient has no CT")
    timed = cxr["acquired_at"].notna() if "acquired_at" in cxr else pd.Series(False, index=cxr.index)
    cxr = keep(timed, "of known time", "the time is unknown")
    ct = ct[ct["acquired_at"].notna()] if "acquired_at" in ct else ct.iloc[:0]
    both = cxr.merge(ct, on="patient_id", suffixes=("", "_ct"))
    if len(both):
        both["offset"] = (both["acquired_at_ct"] - both["acquired_at"]).dt.total_seconds() / 86400
        both = both[both["offset"].abs() * 24 <= window_hours]
        both = both.assign(after=both["offset"] < 0, far=both["offset"].abs())
        both = both.sort_values(["after", "far", "exam_id", "exam_id_ct"])
    taken: set[str] = set()
    made = []
    for row in both.to_dict("records"):
        if row["exam_id"] not in taken and row["exam_id_ct"] not in taken:
            taken |= {row["exam_id"], row["exam_id_ct"]}
            agree = [row[c] == row[f"{c}_ct"] for c in label_names if pd.notna(row[c]) and pd.notna(row[f"{c}_ct"])]
            made.append((f"{row['exam_id']}|{row['exam_id_ct']}", row["patient_id"], row["exam_id"], row["exam_id_ct"],
                         round(row["offset"], 6), float(all(agree)) if agree else np.nan))  # fmt: skip
    near = cxr["exam_id"].isin(both["exam_id"]) if len(both) else pd.Series(False, index=cxr.index)
    cxr = keep(near, f"within {window_hours:g} h of a CT", f"no CT within {window_hours:g} h")
    cxr = keep(cxr["exam_id"].isin(taken), "paired one to one", "its CT is paired with another radiograph")
    return pd.DataFrame(made, columns=list(PAIR_REQUIRED)), steps, lost


def _sources(folders: Mapping[str, Path]) -> tuple[dict[str, ExamSource], list[tuple[str, str]]]:
    """Exams by their resolved path, and what lies there and is none."""
    found: dict[str, ExamSource] = {}
    skipped: list[tuple[str, str]] = []
    for folder in dict.fromkeys(folders.values()):
        there = discover(folder)
        found |= {str(exam.path.resolve()): exam for exam in there.exams}
        skipped += there.skipped
    return found, skipped


def _key(path: str) -> str:
    """A path as it is compared: of either system, accents composed."""
    plain = unicodedata.normalize("NFC", path).strip().replace("\\", "/")
    return re.sub(r"/+", "/", plain).strip("/").removeprefix("./")


def _table_keys(paths: pd.Series, found: Mapping[str, ExamSource], roots: Sequence[Path]) -> pd.Series:
    """Where each cell's file lies, empty where nothing does; letters may differ in case where one file alone fits.

    A folder that all cells begin with, such as that of the archive's own disk, may be unknown here: as much of it is
    taken off as finds the most files.
    """
    place = _places(found, roots)
    keys = paths.map(_key)
    columns = zip(*(key.split("/")[:-1] for key in keys if key), strict=False)
    shared = list(takewhile(lambda parts: len(set(parts)) == 1, columns))
    tries = []
    for depth in range(len(shared) + 1):
        shorter = keys.map(lambda key, depth=depth: "/".join(key.split("/")[depth:]))
        tries.append(shorter.map(lambda key: place.get(key, place.get(key.casefold(), ""))))
    return max(tries, key=lambda one: int((one != "").sum()))  # of equals the first: nothing taken off


def _places(found: Mapping[str, ExamSource], roots: Sequence[Path]) -> dict[str, str]:
    """How a table may write an exam's path → where it lies: as from a root, by name alone, without its ending."""
    ways: dict[str, set[str]] = defaultdict(set)
    for place, exam in found.items():
        names = {exam.path.name, place}
        for root in roots:
            if exam.path.resolve().is_relative_to(root.resolve()):
                names.add(exam.path.resolve().relative_to(root.resolve()).as_posix())
        for name in list(names):
            names.add(_without_ending(name))
        for name in names:
            ways[_key(name)].add(place)
    folded: dict[str, set[str]] = defaultdict(set)
    for name, places in ways.items():
        folded[name.casefold()] |= places
    return {name: next(iter(places)) for name, places in (folded | ways).items() if len(places) == 1}


def _one_spelling(exams: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Patient ids that a spreadsheet wrote in several ways (00123, 123, 123.0) in one; and a sentence."""
    ids = exams["patient_id"]
    plain = ids.str.replace(r"^(\d+)\.0$", r"\1", regex=True).str.lower()
    plain = plain.where(~plain.str.fullmatch(r"\d+"), plain.str.lstrip("0").replace("", "0"))
    spellings = ids.groupby(plain).unique()
    several = {key: sorted(ways, key=lambda way: (-len(way.removesuffix(".0")), way)) for key, ways in spellings.items()
               if len(ways) > 1 and key}  # fmt: skip
    if not several:
        return exams, []
    chosen = plain.map({key: ways[0] for key, ways in several.items()})
    first = " = ".join(next(iter(several.values())))
    note = (
        f"{len(several)} patients have ids in several spellings (leading zeros, '.0', case), taken as one each: {first}"
    )
    return exams.assign(patient_id=chosen.fillna(ids)), [note + "."]


def _without_ending(name: str) -> str:
    ending = next((e for e in ENDINGS if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def _kinds(exams: pd.DataFrame, found: Mapping[str, ExamSource]) -> tuple[pd.DataFrame, list[str]]:
    """Fill in the modality, empty for what is neither CT nor radiograph; and say where table and file differ."""
    sources = [found[place] for place in exams["place"]]
    kinds = ["CT" if source.kind == "volume" else "CXR" for source in sources]
    stated = exams["modality"] if "modality" in exams else pd.Series("", index=exams.index)
    said = [modality_of(text) for text in stated]
    notes = []
    differ = [s.name for s, kind, word in zip(sources, kinds, said, strict=True) if word and word != kind]
    if differ:
        notes.append(f"{len(differ)} rows name another modality than their file has, which decides: {differ[0]}.")
    foreign = Counter(text for text, word in zip(stated, said, strict=True) if text and not word)
    if foreign:
        notes.append(f"Rows of other modalities: {', '.join(f'{n} {text}' for text, n in foreign.items())}.")
    kinds = ["" if text and not word else kind for text, word, kind in zip(stated, said, kinds, strict=True)]
    return exams.assign(modality=kinds), notes


Read = Mapping[str, tuple[list[Finding], str]]


def _read(
    exams: pd.DataFrame, found: Mapping[str, ExamSource],
    progress: Callable[[Sequence[ExamSource]], Iterable[ExamSource]],
) -> Read:  # fmt: skip
    """What the audit finds in each exam, and a radiograph's view, by place."""
    views = exams["view"] if "view" in exams else pd.Series("", index=exams.index)
    sources = [replace(found[place], view=normal_view(view)) for place, view in zip(exams["place"], views, strict=True)]
    read = {}
    for place, source in zip(exams["place"], progress(sources), strict=True):
        findings, _, view = check_exam(source, draw=False)
        read[place] = (findings, view)
    return read


def _described(
    exams: pd.DataFrame, found: Mapping[str, ExamSource], read: Read, out: Path
) -> tuple[pd.DataFrame, list[str]]:
    """Fill in exam id, view, completeness, path and checksum of the files."""
    sources = [found[place] for place in exams["place"]]
    audits = [read[place] for place in exams["place"]]
    is_ct = exams["modality"] == "CT"
    paths = [os.path.relpath(source.path.resolve(), out.resolve()) for source in sources]
    hashes = []
    for source in sources:
        try:
            hashes.append(source_hash(source.path.parent, source.path.name))
        except (OSError, ValueError, IndexError, UnreadableExam):
            hashes.append("")
    changed = exams.assign(
        exam_id=_exam_ids(sources, exams["patient_id"]), path=paths, sha256=hashes,
        view=[view if not ct else "" for (_, view), ct in zip(audits, is_ct, strict=True)],
    ).drop(columns="place")  # fmt: skip
    notes = []
    if is_ct.any():
        whole = [lungs_complete(findings) if ct else "" for (findings, _), ct in zip(audits, is_ct, strict=True)]
        changed = changed.assign(complete=pd.Series(whole, index=exams.index, dtype=object))
        cut = list(changed.loc[changed["complete"] == False, "exam_id"])  # noqa: E712
        if cut:
            notes.append(f"{len(cut)} CTs lack part of the lungs ('complete' is false; studies leave them out): "
                         f"{', '.join(cut[:5])}.")  # fmt: skip
    side = [str(i) for i, (findings, view) in zip(changed["exam_id"], audits, strict=True)
            if view != "LATERAL" and any(f.code == "lateral" for f in findings)]  # fmt: skip
    if side:
        notes.append(f"{len(side)} radiographs look lateral, though nothing says that they are; look at them: "
                     f"{', '.join(side[:5])}.")  # fmt: skip
    views = exams["view"] if "view" in exams else pd.Series("", index=exams.index)
    spelled = {v for v in views if v and not normal_view(v)}
    if spelled:
        notes.append(f"Views that are not known, and count as unknown: {', '.join(sorted(spelled)[:5])}.")
    return changed, notes


def _exam_ids(sources: Sequence[ExamSource], patients: pd.Series) -> list[str]:
    """A file's name without its ending, after the patient's id where several exams have one name.

    Folders' names are left out: they are long UIDs, or persons' names, which belong in no table and no report.
    """
    names = [_without_ending(source.path.name) for source in sources]
    counts = Counter(names)
    names = [f"{p}_{name}" if counts[name] > 1 else name for name, p in zip(names, patients, strict=True)]
    counts, seen = Counter(names), Counter[str]()
    for n, name in enumerate(names):
        seen[name] += 1
        names[n] = f"{name}_{seen[name]}" if counts[name] > 1 else name
    return names


def _pairs_by_window(exams: pd.DataFrame, window_hours: float, views: Collection[str], pairs: int) -> list[str]:
    """How many pairs wider windows would give, where that is more."""
    if exams["modality"].nunique() < 2:
        return []
    wider = {hours: len(pair_in_window(exams, hours, views)[0]) for hours in LONGER_HOURS if hours > window_hours}
    if max(wider.values(), default=0) <= pairs:
        return []
    text = ", ".join(f"{count} within {hours / 24:g}d" for hours, count in wider.items())
    return [f"{pairs} pairs within {window_hours / 24:g}d; --window would give {text}."]


def _count(exams: pd.DataFrame, modality: str, name: str) -> FlowStep:
    own = exams[exams["modality"] == modality]
    return FlowStep(f"of these, {name}", len(own), int(own["patient_id"].nunique()), 0, "")
