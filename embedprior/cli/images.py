"""``embedprior images check`` and ``embedprior drr``: audit images, and render CTs as radiographs."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import argument, option

from embedprior.cli.options import COUNT, DRY_RUN, EXAM_TABLE, PATH, command
from embedprior.cli.settings import settings_command
from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput
from embedprior.imaging.drr.config import DrrConfig

if TYPE_CHECKING:
    from embedprior.imaging.contact_sheet import Tile
    from embedprior.imaging.findings import Finding

LONGEST_NAME = 56
WORDS = {None: "ok", "note": "ok", "warning": "WARN", "error": "FAIL"}


@command()
@argument("paths", nargs=-1, type=PATH, metavar="PATH...", help="a volume (.nii.gz, .nrrd, .mha, "
        ".npz, DICOM folder or zip), a radiograph (.dcm, .png, .jpg), or a folder of them")  # fmt: skip
@option("--cohort", type=EXAM_TABLE, metavar="FILE", help="an exam table, or its folder, instead: its paths, and the "
        "views it names")  # fmt: skip
@option("--views", metavar="LIST", help="only radiographs of these views, such as PA,AP, and those whose view nothing "
        "names")  # fmt: skip
@option("--series", default="only", metavar="RULE", help="which series of a DICOM folder that holds several: only "
        "(fail), most-slices, or short ids, separated by commas")  # fmt: skip
@option("--profile", metavar="NAME", help="also prepare volumes by this profile (a shipped name, or a YAML file), "
        "and show the result")  # fmt: skip
@option("--contact-sheet", type=PATH, metavar="FILE", help="write a PNG with every exam on it")
@option("--out", type=PATH, metavar="FILE", help="write the findings as CSV: exam, severity, code, message")
@option("--limit", type=COUNT, metavar="N", help="only the first N exams")
@option("--keep-names", is_flag=True, help="write names of files and folders: they hold no patient's")
def check(
    paths: tuple[Path, ...], cohort: Path | None, views: str | None, series: str, profile: str | None,
    contact_sheet: Path | None, out: Path | None, limit: int | None, keep_names: bool,
) -> int:  # fmt: skip
    """Print a line for each exam; return 0, or 3 when an exam has a warning or an error.

    Names of files and folders are shown on a terminal alone, unless they are to be kept: what goes into a file or a
    log has an id made of the exam's contents, and beside ``--out`` there is a table of ids and paths that only its
    owner can read.

    Raises:
        BadInput: nothing to read, an unknown profile, or a sheet that is no PNG.
    """
    if contact_sheet and contact_sheet.suffix.lower() != ".png":
        raise BadInput(f"--contact-sheet writes a PNG; got '{contact_sheet.name}'.")
    for target in (contact_sheet, out):
        if target and not target.parent.is_dir():
            raise BadInput(f"the folder {target.parent} does not exist.")
    from embedprior.imaging.contact_sheet import check_exam
    from embedprior.imaging.contact_sheet import contact_sheet as draw_sheet
    from embedprior.imaging.dicom_series import series_rule
    from embedprior.imaging.findings import worst
    from embedprior.imaging.preprocess import load_profile, profile_key
    from embedprior.imaging.radiographs import parse_views
    from embedprior.imaging.readers import discover, exams_of_table, named_by_content
    from embedprior.runs import progress
    from embedprior.runs.integrity import note_results

    chosen = load_profile(profile) if profile else None
    key = profile_key(chosen) if chosen else ""
    wanted = parse_views(views)
    if bool(paths) == (cohort is not None):
        raise BadInput("give either PATHs or --cohort FILE. Next: embedprior images check FOLDER")
    found = [discover(path) for path in paths]
    exams = [exam for one in found for exam in one.exams] if cohort is None else exams_of_table(cohort)
    exams = exams[:limit]
    keep_names |= cohort is not None  # these are the table's own ids
    ids = [exam.name for exam in exams] if keep_names else named_by_content(exams)
    shown = [exam.name for exam in exams] if sys.stdout.isatty() else ids
    tiles: list[Tile] = []
    rows: list[dict[str, str]] = []
    states: Counter[str] = Counter()
    width = min(max(len(name) for name in shown), LONGEST_NAME)
    rule = series_rule(series, len(exams))
    for exam, name, line in zip(progress(exams, "images"), ids, shown, strict=True):
        findings, tile, view = check_exam(replace(exam, name=name), rule, chosen, key, contact_sheet is not None)
        if wanted and view and view not in wanted:
            states["other view"] += 1
            rows.append({"exam": name, "severity": "skipped", "code": "", "message": f"view {view}"})
            continue
        state = WORDS[worst(findings)]
        states[state] += 1
        codes = ", ".join(dict.fromkeys(f.code for f in findings))
        print(f"{state:<4}  {_short(line, width):<{width}}  {codes}".rstrip())
        for finding in findings if keep_names else [_nameless(one, exam.path) for one in findings]:
            rows.append({"exam": name, "severity": finding.severity, "code": finding.code,
                         "message": finding.message})  # fmt: skip
            if finding.severity != "note":
                print(f"      {finding.code}: {finding.message}")
        if not findings:
            rows.append({"exam": name, "severity": "ok", "code": "", "message": ""})
        if tile:
            tiles.append(tile)
    for one in found:
        for name, reason in one.skipped:
            said = _short(name, width) if keep_names or sys.stdout.isatty() else ""
            print(f"skip  {said:<{width}}  {reason}".rstrip())
            rows.append({"exam": name if keep_names else "", "severity": "skipped", "code": "", "message": reason})
        for note in one.notes()[len(one.skipped) :]:
            print(note)
    counts = [f"{states[word]} {word}" for word in ("ok", "WARN", "FAIL")]
    skipped = sum(len(one.skipped) for one in found)
    counts += [f"{skipped} skipped"] if skipped else []
    counts += [f"{states['other view']} of other views left out"] if wanted else []
    print(", ".join(counts))
    if out:
        import pandas as pd

        from embedprior.tables import write_table

        write_table(pd.DataFrame(rows, columns=["exam", "severity", "code", "message"]), out)
        note_results(out.parent, (out.name,))
        if not keep_names:
            private = out.with_name(f"{out.stem}.private{out.suffix}")
            private.touch(mode=0o600)
            paths_of = pd.DataFrame({"exam": ids, "path": [str(exam.path) for exam in exams]})
            write_table(paths_of, private)
            private.chmod(0o600)
            note_results(out.parent, (private.name,))
            print(f"{private}: the file of each id. It may hold names: readable by you alone, and yours to delete")
    if contact_sheet and tiles:
        draw_sheet(tiles, contact_sheet, columns=3 if max(len(tile.pictures) for tile in tiles) > 1 else 8)
        note_results(contact_sheet.parent, (contact_sheet.name,))
        print(f"contact sheet: {contact_sheet} ({len(tiles)} exams)")
    return NEEDS_ATTENTION if states["WARN"] or states["FAIL"] else DONE


def _nameless(finding: Finding, path: Path) -> Finding:
    from embedprior.imaging.files import without_names

    return replace(finding, message=without_names(finding.message, path))


def _short(name: str, width: int) -> str:
    """A name with its middle left out: the folders of an archive are UIDs."""
    return name if len(name) <= width else f"{name[: width // 3]}…{name[len(name) - (width - width // 3 - 1) :]}"


@settings_command(DrrConfig, "drr", "default")
@option("--ct", type=PATH, metavar="PATH", help="a volume file, a DICOM folder or zip, or a folder of such things")
@option("--cohort", type=EXAM_TABLE, metavar="FILE", help="an exam table, or its folder, instead: its CT rows, with "
        "their labels")  # fmt: skip
@option("--out", type=PATH, metavar="DIR", default=Path("runs/drr"), help="folder of images, tables, contact sheet")
@option("--workers", type=COUNT, metavar="N", default=1, help="processes that render at the same time")
@option("--limit", type=COUNT, metavar="N", help="only the first N CTs")
@option("--match-style", type=PATH, metavar="DIR", help="fit the tone curve to this folder of radiographs")
@option("--include-incomplete", is_flag=True, help="pair scans that lack part of the lungs too")
@option("--processes", type=COUNT, metavar="N", help="refuse to start unless torchrun or accelerate started so many")
@option("--keep-names", is_flag=True, help="exam ids from the names of files and folders: they hold no patient's")
@option("--dry-run", is_flag=True, help=DRY_RUN)
def drr(
    config: DrrConfig, dry_run: bool, keep_names: bool, include_incomplete: bool, processes: int | None, **common: Any
) -> int:
    """Render; return the exit code.

    Several processes: torchrun --nproc_per_node 2 -m embedprior drr ...

    Raises:
        BadInput: no CT, a broken table or setting; nothing was written.
    """
    from embedprior.cohort.drr import plan_text, render_cohort
    from embedprior.imaging.dicom_series import series_rule
    from embedprior.imaging.drr.config import get_renderer
    from embedprior.imaging.readers import cts_of_table, find_cts
    from embedprior.runs.distributed import process_group

    if (common["ct"] is None) == (common["cohort"] is None):
        raise BadInput("give either --ct PATH or --cohort FILE. Next: embedprior drr --ct FOLDER --out runs/drr")
    if common["ct"] is not None:
        found, others = find_cts(common["ct"], keep_names)
    else:
        found, others = cts_of_table(common["cohort"]), []
    exams = found[: common["limit"]]
    config = config.model_copy(update={"series": series_rule(config.series, len(exams))})
    get_renderer(config.renderer)
    if common["match_style"] is not None:
        from embedprior.imaging.drr.tone_fit import reference_files

        reference_files(common["match_style"], config.view)
    group = process_group(processes, "drr ...")
    if dry_run:
        if group.is_main:
            print(plan_text(exams, config, common["workers"] * group.world_size))
        return DONE
    made = render_cohort(
        exams, config, common["out"], group, workers=common["workers"], match_style=common["match_style"],
        include_incomplete=include_incomplete, notes=[f"Left out: {line}." for line in others[:10]],
    )  # fmt: skip
    if made is None:
        return DONE
    print(made.summary)
    return NEEDS_ATTENTION if made.failures else DONE
