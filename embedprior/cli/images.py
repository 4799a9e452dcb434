"""``embedprior images check`` and ``embedprior drr``: audit images, and render CTs as radiographs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import argument, option

from embedprior.cli.options import COUNT, DRY_RUN, PATH, command
from embedprior.cli.settings import settings_command
from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput
from embedprior.imaging.drr.config import DrrConfig

if TYPE_CHECKING:
    from embedprior.imaging.contact_sheet import Tile

WORDS = {None: "ok", "note": "ok", "warning": "WARN", "error": "FAIL"}


@command()
@argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...", help="a volume (.nii.gz, .nrrd, .mha, "
        ".npz, DICOM folder or zip), a radiograph (.dcm, .png, .jpg), or a folder of them")  # fmt: skip
@option("--series", default="only", metavar="RULE", help="which series of a DICOM folder that holds several: only "
        "(fail), most-slices, or a short id")  # fmt: skip
@option("--profile", metavar="NAME", help="also prepare volumes by this profile (a shipped name, or a YAML file), "
        "and show the result")  # fmt: skip
@option("--contact-sheet", type=PATH, metavar="FILE", help="write a PNG with every exam on it")
@option("--out", type=PATH, metavar="FILE", help="write the findings as CSV: exam, severity, code, message")
@option("--limit", type=COUNT, metavar="N", help="only the first N exams")
def check(
    paths: tuple[Path, ...], series: str, profile: str | None, contact_sheet: Path | None, out: Path | None,
    limit: int | None,
) -> int:  # fmt: skip
    """Print a line for each exam; return 0, or 3 when an exam has a warning or an error.

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
    from embedprior.imaging.findings import worst
    from embedprior.imaging.preprocess import load_profile, profile_key
    from embedprior.imaging.readers import discover
    from embedprior.runs import progress

    chosen = load_profile(profile) if profile else None
    key = profile_key(chosen) if chosen else ""
    exams = [found for path in paths for found in discover(path)][:limit]
    tiles: list[Tile] = []
    rows: list[dict[str, str]] = []
    states: Counter[str] = Counter()
    width = max(len(found.name) for found in exams)
    for found in progress(exams, "images"):
        findings, tile = check_exam(found, series, chosen, key, contact_sheet is not None)
        state = WORDS[worst(findings)]
        states[state] += 1
        print(f"{state:<4}  {found.name:<{width}}  {', '.join(dict.fromkeys(f.code for f in findings))}".rstrip())
        for finding in findings:
            rows.append({"exam": found.name, "severity": finding.severity, "code": finding.code,
                         "message": finding.message})  # fmt: skip
            if finding.severity != "note":
                print(f"      {finding.code}: {finding.message}")
        if tile:
            tiles.append(tile)
    print(", ".join(f"{states[word]} {word}" for word in ("ok", "WARN", "FAIL")))
    if out:
        import pandas as pd

        from embedprior.tables import write_table

        write_table(pd.DataFrame(rows, columns=["exam", "severity", "code", "message"]), out)
    if contact_sheet and tiles:
        draw_sheet(tiles, contact_sheet, columns=3 if max(len(tile.pictures) for tile in tiles) > 1 else 8)
        print(f"contact sheet: {contact_sheet} ({len(tiles)} exams)")
    return NEEDS_ATTENTION if states["WARN"] or states["FAIL"] else DONE


@settings_command(DrrConfig, "drr", "default")
@option("--ct", type=PATH, metavar="PATH", help="a volume file, a DICOM folder or zip, or a folder of such things")
@option("--cohort", type=PATH, metavar="FILE", help="an exam table instead: its CT rows, with their labels")
@option("--out", type=PATH, metavar="DIR", default=Path("runs/drr"), help="folder of images, tables, contact sheet")
@option("--workers", type=COUNT, metavar="N", default=1, help="processes that render at the same time")
@option("--limit", type=COUNT, metavar="N", help="only the first N CTs")
@option("--match-style", type=PATH, metavar="DIR", help="fit the tone curve to this folder of radiographs")
@option("--include-incomplete", is_flag=True, help="pair scans that lack part of the lungs too")
@option("--processes", type=COUNT, metavar="N", help="refuse to start unless torchrun or accelerate started so many")
@option("--dry-run", is_flag=True, help=DRY_RUN)
def drr(config: DrrConfig, dry_run: bool, include_incomplete: bool, processes: int | None, **common: Any) -> int:
    """Render; return the exit code.

    Several processes: torchrun --nproc_per_node 2 -m embedprior drr ...

    Raises:
        BadInput: no CT, a broken table or setting; nothing was written.
    """
    from embedprior.cohort.drr import plan_text, render_cohort
    from embedprior.imaging.drr.config import get_renderer
    from embedprior.imaging.drr.render import cts_of_table, find_cts
    from embedprior.runs.distributed import process_group

    if (common["ct"] is None) == (common["cohort"] is None):
        raise BadInput("give either --ct PATH or --cohort FILE. Next: embedprior drr --ct FOLDER --out runs/drr")
    exams = find_cts(common["ct"]) if common["ct"] is not None else cts_of_table(common["cohort"])
    exams = exams[: common["limit"]]
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
        include_incomplete=include_incomplete,
    )  # fmt: skip
    if made is None:
        return DONE
    print(made.summary)
    return NEEDS_ATTENTION if made.failures else DONE
