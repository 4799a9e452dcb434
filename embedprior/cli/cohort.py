"""``embedprior init`` and ``embedprior cohort``: build, check, split, merge."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import Choice, FloatRange, argument, option

from embedprior.cli.options import COUNT, PATH, command, recorded
from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput

if TYPE_CHECKING:
    from embedprior.cohort.base import FlowStep

SHOWN = 240


def _hours(text: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(h|d)?\s*", text)
    if not found:
        raise BadInput(f"--window {text}. Allowed: hours or days, such as 24h or 7d.")
    return float(found[1]) * (24 if found[2] == "d" else 1)


@command(epilog="Labels: NAME=COLUMN (yes or no), NAME=COLUMN~TEXT (contains), NAME=COLUMN:A|B (is one of).")
@option("--ct", type=PATH, metavar="DIR", help="folder of CTs: DICOM, NIfTI and so on")
@option("--cxr", type=PATH, metavar="DIR", help="folder of radiographs: DICOM, PNG, JPEG")
@option("--labels", "table", type=PATH, required=True, metavar="CSV", help="a row for each exam, as it was exported")
@option("--window", default="24h", metavar="HOURS", help="a radiograph and a CT further apart are no pair: 24h, 7d")
@option("--out", type=PATH, required=True, metavar="DIR", help="folder of the tables")
@option("--map", "mapping", multiple=True, metavar="COLUMN=ROLE", help="what a column is: patient_id, path, "
        "acquired_at, view …; may be given several times")  # fmt: skip
@option("--label", multiple=True, metavar="RULE", help="a label and the cells it is read from; may be given several "
        "times")  # fmt: skip
@option("--unknown", multiple=True, metavar="WORD", help="a cell that is no answer; may be given several times")
@option("--dates", type=Choice(["dmy", "mdy"]), help="what 03/04/2021 is, where the column can't tell")
@option("--views", default="PA,AP", metavar="LIST", help="radiographs of these views are paired")
def build(table: Path, out: Path, **given: Any) -> int:
    """Write exams.csv, pairs.csv, flow.csv, dropped.csv and a study; return the exit code.

    Raises:
        BadInput: see ``cohort.labels`` and ``cohort.build``; nothing was written.
    """
    folders = {name: given[key] for name, key in (("CT", "ct"), ("CXR", "cxr")) if given[key] is not None}
    if not folders:
        raise BadInput("give --ct DIR, --cxr DIR or both. Next: embedprior cohort build --help")
    return _build(folders, table, out, given)


@command()
@option("--from-folder", "folder", type=PATH, required=True, metavar="DIR", help="exams and one CSV, as exported")
@option("--out", type=PATH, metavar="DIR", help="folder of the tables [default: DIR-cohort, beside it]")
@option("--window", default="24h", metavar="HOURS", help="a radiograph and a CT further apart are no pair: 24h, 7d")
@option("--map", "mapping", multiple=True, metavar="COLUMN=ROLE", help="what a column is; may be given several times")
@option("--label", multiple=True, metavar="RULE", help="NAME=COLUMN, NAME=COLUMN~TEXT or NAME=COLUMN:A|B")
@option("--unknown", multiple=True, metavar="WORD", help="a cell that is no answer; may be given several times")
@option("--dates", type=Choice(["dmy", "mdy"]), help="what 03/04/2021 is, where the column can't tell")
@option("--views", default="PA,AP", metavar="LIST", help="radiographs of these views are paired")
def init(folder: Path, out: Path | None, **given: Any) -> int:
    """Build a cohort of one exported folder; return the exit code.

    Raises:
        BadInput: no CSV in the folder, or several; else as ``build``.
    """
    tables = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".csv", ".tsv")) if folder.is_dir() else []
    if len(tables) != 1:
        have = ", ".join(p.name for p in tables) or "none"
        raise BadInput(f"--from-folder {folder}: one table (.csv) is expected, there is {have}. Next: embedprior "
                       "cohort build --ct DIR --cxr DIR --labels CSV --out DIR")  # fmt: skip
    beside = folder.parent if folder.name else folder.resolve().parent
    place = out or beside / f"{folder.resolve().name}-cohort"
    return _build({"CT": folder, "CXR": folder}, tables[0], place, given)


def _build(folders: dict[str, Path], table: Path, out: Path, given: dict[str, Any]) -> int:
    from embedprior.cohort.base import flow_table
    from embedprior.cohort.build import build_cohort
    from embedprior.cohort.first_study import write_first_studies
    from embedprior.cohort.labels import possible_labels, read_label_table
    from embedprior.imaging.radiographs import parse_views
    from embedprior.runs import Run, hash_file, progress
    from embedprior.tables import check_exams, check_pairs, write_table

    for folder in folders.values():
        if not folder.exists():
            raise BadInput(f"{folder} does not exist.")
    window = _hours(given["window"])
    views = sorted(parse_views(given["views"]))
    read = read_label_table(table, given["mapping"])
    built = build_cohort(folders, read, table.parent, out, given["label"], window_hours=window,
                         unknown=given["unknown"], dates=given["dates"], views=views,
                         progress=lambda exams: progress(exams, "reading exams", len(exams)))  # fmt: skip
    exams = check_exams(built.exams, "the exams found")
    check_pairs(built.pairs, exams, "the pairs found")
    settings = recorded({**given, **{f"{k.lower()}_folder": v for k, v in folders.items()}, "table": table})
    run = Run(out, "cohort build", settings, 0, {"labels": hash_file(table)})
    write_table(exams, out / "exams.csv")
    write_table(built.pairs, out / "pairs.csv")
    write_table(flow_table(built.flow), out / "flow.csv")
    write_table(built.dropped, out / "dropped.csv")
    studies, told = write_first_studies(out, exams, built.pairs)
    lines = [*built.notes, "", *_flow_lines(built.flow), *told]
    lost = [row for row in built.dropped.to_dict("records") if row["stage"] != "pairs"]
    if lost:
        lines.append(f"{len(lost)} rows or files were left out; each is in dropped.csv with its reason.")
    if not given["label"]:
        columns = possible_labels(read) or "another table: no column here has few values"
        lines.append(f"Next: again, with --label NAME=COLUMN or 'NAME=COLUMN~TEXT', of {columns}")
    lines.append(f"Next: embedprior cohort check {out}")
    text = "\n".join(lines) + "\n"
    run.finish(text, [{"exam_id": r["name"], "stage": r["stage"], "reason": r["reason"]} for r in lost])
    print(text)
    print(f"written: {out}/" + ", ".join(["exams.csv", "pairs.csv", "flow.csv", "dropped.csv", *studies]),
          file=sys.stderr)  # fmt: skip
    return NEEDS_ATTENTION if lost else DONE


def _flow_lines(flow: Sequence[FlowStep]) -> list[str]:
    return [f"{s.step}: {s.exams} of {s.patients} patients" + (f"; dropped {s.dropped}: {s.reason}" * bool(s.dropped))
            for s in flow]  # fmt: skip


@command()
@option("--source", required=True, metavar="NAME", help="layout of the set: bimcv-covid19, "
        "covid-chestxray, ct-rate, inspect, lidc-idri, mimic-cxr, rad-chestct, rspect, or one of an installed package"
        )  # fmt: skip
@option("--data", type=PATH, required=True, metavar="DIR", help="its folder, as it was downloaded")
@option("--out", type=PATH, required=True, metavar="DIR", help="folder of the tables")
@option("--missing-images", type=Choice(["error", "drop"]), default="error", help="a part of the set: drop what is not "
        "there, and count it")  # fmt: skip
def import_(source: str, data: Path, out: Path, missing_images: Any) -> int:
    """Write exams.csv, pairs.csv and flow.csv of a public set; return the exit code.

    Raises:
        BadInput: see ``cohort.sources.read_cohort``; nothing was written.
    """
    import os

    from embedprior.cohort.base import flow_table
    from embedprior.cohort.sources import read_cohort
    from embedprior.runs import Run
    from embedprior.tables import write_table

    cohort = read_cohort(source, data, missing_images)
    if cohort.exams.empty:
        raise BadInput(f"{data}: no exam of '{source}' is there.")
    place = [os.path.relpath((data / str(path)).resolve(), out.resolve()) for path in cohort.exams["path"]]
    run = Run(out, "cohort import", recorded({"source": source, "data": data}), 0, {})
    write_table(cohort.exams.assign(path=place), out / "exams.csv")
    write_table(cohort.pairs, out / "pairs.csv")
    write_table(flow_table(cohort.flow), out / "flow.csv")
    text = "\n".join([*_flow_lines(cohort.flow), f"{len(cohort.pairs)} pairs"]) + "\n"
    run.finish(text, [])
    print(text)
    return DONE


@command()
@argument("folder", type=PATH)
@option("--out", type=PATH, metavar="CSV", help="write the findings here [default: findings.csv in the folder]")
@option("--cache", "caches", type=PATH, multiple=True, metavar="DIR", help="compare the embeddings of this cache too, "
        "where pictures are not at hand; may be given several times")  # fmt: skip
def check(folder: Path, out: Path | None, caches: tuple[Path, ...]) -> int:
    """Check a cohort; return the exit code: 3 when something needs a decision.

    Raises:
        BadInput: no exams.csv, a table that breaks a rule of its format, or no such cache.
    """
    from embedprior.cache.verify import open_verified
    from embedprior.cohort.check import check_cohort
    from embedprior.cohort.sources.tables import read_tables
    from embedprior.runs.integrity import note_results
    from embedprior.tables import write_table

    opened = {str(place): open_verified(place) for place in caches}
    for place, cache in opened.items():
        if cache.has_tokens:
            raise BadInput(f"--cache {place} holds tokens. Allowed: a cache with one embedding an exam.")
    embeddings = {place: (cache.ids, cache.read(range(len(cache.ids)))) for place, cache in opened.items()}
    found = check_cohort(
        read_tables(folder, "keep"), lambda step: print(f"{step} …", file=sys.stderr), embeddings
    )  # fmt: skip
    for row in found.findings.to_dict("records"):
        counts = f"{_counted(row['exams'], 'exam')} of {_counted(row['patients'], 'patient')}" if row["exams"] else ""
        said = ": ".join(part for part in (counts, row["message"]) if part)
        shown = said if len(said) <= SHOWN else f"{said[:SHOWN]} … (all of it: findings.csv)"
        print(f"{row['severity']:<7} {row['check']:<26} {shown}".rstrip())
    file = out or folder / "findings.csv"
    write_table(found.findings, file)
    write_table(found.duplicates, file.with_name("duplicates.csv"))
    note_results(file.parent, (file.name, "duplicates.csv"))
    print(f"{_counted(found.decide, 'finding')} to decide on. Tables: {file}, {file.with_name('duplicates.csv').name}")
    return NEEDS_ATTENTION if found.decide else DONE


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


@command()
@argument("folder", type=PATH)
@option("--label", required=True, metavar="NAME", help="that is balanced over the parts")
@option("--design", type=Choice(["kfold", "fixed", "resamples", "site"]), default="kfold", help="who is held out when")
@option("--folds", type=COUNT, default=5, metavar="N", help="of kfold")
@option("--resamples", type=COUNT, default=8, metavar="N", help="of resamples")
@option("--validation", type=FloatRange(0, 0.5), default=0.0, metavar="SHARE", help="of the training patients, to "
        "choose by")  # fmt: skip
@option("--seed", type=int, default=1, metavar="N", help="of the draw")
def split(
    folder: Path, label: str, design: str, folds: int, resamples: int, seed: int, validation: float
) -> int:  # fmt: skip
    """Write splits.csv once; return the exit code.

    Raises:
        BadInput: there is one already, no such label, or too few patients.
    """
    from embedprior.cohort.check import joined_by_file
    from embedprior.cohort.sources.tables import read_tables
    from embedprior.cohort.splits import (
        fixed_split,
        group_kfold,
        leave_one_site_out,
        patient_labels,
        pilot_resamples,
        splits_table,
        with_validation,
    )
    from embedprior.runs.integrity import note_results
    from embedprior.tables import write_table

    file = folder / "splits.csv"
    if file.is_file():
        raise BadInput(f"{file} is there already, and is written once. Next: remove it, if nothing was run with it.")
    cohort = joined_by_file(read_tables(folder, "drop"))
    labels = cohort.labels(label)
    known = cohort.exams[labels.loc[cohort.exams["exam_id"]].notna().to_numpy()]
    if known.empty:
        raise BadInput(f"{folder}: no exam with label '{label}'.")
    # a set of CTs alone is divided by them
    kind = next(kind for kind in ("CXR", "DRR", "CT", "REPORT") if kind in set(known["modality"]))
    exams = known[known["modality"] == kind]
    name = f"{design}-{folds}" if design == "kfold" else design
    of = patient_labels(exams, labels)
    made = {
        "kfold": lambda: group_kfold(exams, labels, name, folds, seed),
        "fixed": lambda: fixed_split(exams, of, name, seed=seed),
        "resamples": lambda: pilot_resamples(exams, of, name, resamples, share=0.2),
        "site": lambda: leave_one_site_out(exams, name),
    }[design]()
    made = [with_validation(one, of, validation, seed) for one in made] if validation else made
    table = splits_table(made, str(file))
    write_table(table, file)
    note_results(folder, (file.name,))
    for one in made:
        parts = ", ".join(f"{part} {len(one.patients(part))}" for part in ("train", "val", "test"))
        print(f"resample {one.resample}, fold {one.fold}: patients {parts}")
    print(f"written: {file}", file=sys.stderr)
    return DONE


@command(epilog="The text goes into DIR/reports alone, readable by its owner; embed it with --encoder hf-text:FOLDER.")
@option("--table", type=PATH, required=True, metavar="FILE", help="CSV with one row a CT")
@option("--key", required=True, metavar="COLUMN", help="its column of CT exam ids, or of the volumes' file names")
@option("--section", "sections", multiple=True, required=True, metavar="NAME=COLUMN", help="findings, impression, "
        "technique, clinical or comparison, and the column of its text; may be repeated")  # fmt: skip
@option("--exams", type=PATH, required=True, metavar="FILE", help="exam table of the cohort")
@option("--pairs", type=PATH, required=True, metavar="FILE", help="pair table of the cohort")
@option("--out", type=PATH, required=True, metavar="DIR", help="folder of the new tables and the text files")
def reports(table: Path, key: str, sections: tuple[str, ...], exams: Path, pairs: Path, out: Path) -> int:
    """Write tables and text files; return the exit code.

    Raises:
        BadInput: see ``cohort.reports.read_reports``; nothing was written.
    """
    from embedprior.cohort.reports import read_reports, write_reports
    from embedprior.runs import Run, hash_file

    columns = {}
    for text in sections:
        name, equals, column = text.partition("=")
        if not equals or not column:
            raise BadInput(f"--section {text}. Allowed: NAME=COLUMN, such as --section findings=Findings_EN")
        columns[name] = column
    made = read_reports(table, key, columns, exams, pairs, out)
    inputs = {"table": hash_file(table), "exams": hash_file(exams), "pairs": hash_file(pairs)}
    run = Run(out, "cohort reports", {"key": key, "sections": columns}, 0, inputs)
    write_reports(made, out)
    text = "\n".join(made.notes) + "\n"
    run.finish(text, [])
    print(text)
    return DONE


@command()
@argument("folders", type=PATH, nargs=-1)
@option("--out", type=PATH, required=True, metavar="DIR", help="folder of the merged tables")
def merge(folders: tuple[Path, ...], out: Path) -> int:
    """Merge cohorts; return the exit code.

    Raises:
        BadInput: see ``cohort.merge.merge_cohorts``.
    """
    from embedprior.cohort.base import flow_table
    from embedprior.cohort.first_study import write_first_studies
    from embedprior.cohort.merge import merge_cohorts
    from embedprior.runs import Run, hash_file
    from embedprior.tables import write_table

    cohort, notes = merge_cohorts(folders, out)
    inputs = {folder.name: hash_file(folder / "exams.csv") for folder in folders}
    run = Run(out, "cohort merge", recorded({"folders": [str(f) for f in folders]}), 0, inputs)
    write_table(cohort.exams, out / "exams.csv")
    write_table(cohort.pairs, out / "pairs.csv")
    write_table(flow_table(cohort.flow), out / "flow.csv")
    studies, told = write_first_studies(out, cohort.exams, cohort.pairs)
    text = "\n".join([*_flow_lines(cohort.flow), *notes, *told, f"Next: embedprior cohort check {out}"]) + "\n"
    run.finish(text, [])
    print(text)
    print(f"written: {out}/" + ", ".join(["exams.csv", "pairs.csv", "flow.csv", *studies]), file=sys.stderr)
    return DONE
