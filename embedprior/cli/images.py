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
    from embedprior.imaging.drr.render import CtExam, Rendered, Scanned
    from embedprior.imaging.findings import Finding
    from embedprior.imaging.preprocess import VolumeProfile
    from embedprior.imaging.readers import Found

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
        findings, tile = _look(found, series, chosen, key, contact_sheet is not None)
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
    from embedprior.imaging.drr.config import get_renderer
    from embedprior.imaging.drr.render import cts_of_table, find_cts
    from embedprior.runs.distributed import launched

    if (common["ct"] is None) == (common["cohort"] is None):
        raise BadInput("give either --ct PATH or --cohort FILE. Next: embedprior drr --ct FOLDER --out runs/drr")
    exams = find_cts(common["ct"]) if common["ct"] is not None else cts_of_table(common["cohort"])
    exams = exams[: common["limit"]]
    get_renderer(config.renderer)
    if common["match_style"] is not None:
        from embedprior.imaging.drr.tone_fit import reference_files

        reference_files(common["match_style"], config.view)
    me = launched(processes, "drr ...")
    if dry_run:
        if me.first:
            print(_plan(exams, config, common["workers"] * me.count))
        return DONE
    return _run(exams, config, common, me, include_incomplete)


def _run(exams: list[CtExam], config: DrrConfig, common: dict[str, Any], me: Any, incomplete: bool) -> int:
    from embedprior.errors import DONE, NEEDS_ATTENTION
    from embedprior.imaging.drr.render import render_all, scan
    from embedprior.imaging.drr.tone_fit import fit_tone_to_folder
    from embedprior.runs import Run, artifacts_root, progress

    # every process hashes every CT: the list of series must be the same in all of them
    scanned, failures = scan(progress(exams, "scan", total=len(exams)) if me.first else exams)
    firsts = [s for s in scanned if not s.same_as]
    note = ""
    if common["match_style"] is not None:
        match = fit_tone_to_folder(firsts, config, common["match_style"])
        config = config.model_copy(update={"appearance": match.appearance})
        note = (
            f"Tone fitted to {match.references} radiographs: quantiles differ by {match.after:.3f} rms of the grey "
            f"range, {match.before:.3f} before."
        )
    out: Path = common["out"]
    run = Run(out, "drr", config, config.seed, {s.exam.exam_id: s.digest for s in scanned}) if me.first else None
    mine = firsts[me.rank :: me.count]
    where = f"drr {me.rank + 1}/{me.count}" if me.count > 1 else "drr"
    done = {r.exam_id: r for r in me.gather(render_all(mine, config, artifacts_root(out), common["workers"], where))}
    if run is None:
        me.meet()
        return DONE
    rendered = [done[s.exam.exam_id] for s in firsts]
    failures += [{"exam_id": r.exam_id, "stage": "drr", "reason": r.reason} for r in rendered if r.folder is None]
    summary = _finish(out, config, scanned, rendered, failures, incomplete, note)
    run.finish(summary, failures, rendered=sum(r.folder is not None for r in rendered))
    me.meet()
    print(summary)
    return NEEDS_ATTENTION if failures else DONE


def _finish(
    out: Path, config: DrrConfig, scanned: list[Scanned], rendered: list[Rendered], failures: list[dict[str, str]],
    incomplete: bool, note: str,
) -> str:  # fmt: skip
    from embedprior.imaging.drr.dataset import IMAGES, drr_sheet, publish, write_tables

    exams, alike = _grouped([s.exam for s in scanned if not s.same_as], rendered)
    count = publish(out, exams, rendered, config)
    _, pairs = write_tables(out, exams, rendered, config, incomplete)
    shown = drr_sheet(rendered, config, out / "contact_sheet.png")
    good = [r for r in rendered if r.folder is not None]
    cut = [r.exam_id for r in good if not r.complete]
    lines = [
        f"{count} {config.view} images of {len(good)} CTs ({sum(r.reused for r in good)} were there already), "
        f"{len(pairs)} pairs. Renderer: {config.renderer}.",
        f"Tables: exams.csv, pairs.csv; pictures: {IMAGES}/; for a look: contact_sheet.png ({shown} images).",
    ]
    if note:
        lines.append(note)
    if cut:
        fate = "paired all the same" if incomplete else "rendered, not paired (--include-incomplete pairs them)"
        lines.append(f"Lungs not complete in {len(cut)}: {', '.join(cut)}; {fate}.")
    twice = [f"{s.exam.exam_id} = {s.same_as}" for s in scanned if s.same_as]
    if twice:
        lines.append(f"The same series twice, rendered once: {', '.join(twice)}.")
    if alike:
        lines.append(f"Images alike, so probably one patient, now in one group: {', '.join(alike)}.")
    if failures:
        lines.append(f"{len(failures)} failed (failures.csv): {', '.join(f['exam_id'] for f in failures[:10])}.")
    return "\n".join(lines) + "\n"


def _grouped(exams: list[CtExam], rendered: list[Rendered]) -> tuple[list[CtExam], list[str]]:
    """Join the groups of patients whose images are the same picture: one scan in two resolutions, or under two ids."""
    from dataclasses import replace

    import pandas as pd

    from embedprior.cohort.duplicates import fingerprint, join_groups, same_scans
    from embedprior.imaging.drr.render import image_name
    from embedprior.imaging.radiographs import read_image

    rows = [
        {"exam_id": e.exam_id, "patient_id": e.patient_id, "group_id": e.columns.get("group_id", e.patient_id),
         "modality": "DRR"} for e in exams
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    first = image_name(0) + ".png"
    prints = {r.exam_id: fingerprint(read_image(r.folder, first)) for r in rendered if r.folder is not None}
    found = same_scans(table, prints)
    if found.empty:
        return exams, []
    groups = join_groups(table, found)["group_id"]
    joined = [replace(e, columns={**e.columns, "group_id": g}) for e, g in zip(exams, groups, strict=True)]
    return joined, [f"{a} = {b}" for a, b in zip(found["exam_a"], found["exam_b"], strict=True)]


def _plan(exams: list[CtExam], config: DrrConfig, workers: int) -> str:
    from embedprior.imaging.drr.render import seconds_estimate

    images = len(exams) * config.poses
    minutes = max(1, round(seconds_estimate(len(exams), config, workers) / 60))
    time = f" and {minutes} minute{'s'[: minutes > 1]} with {workers} worker{'s'[: workers > 1]}."
    return (
        f"{len(exams)} CTs, {images} {config.view} images of {config.size} x {config.size} pixels with "
        f"{config.renderer}; about {images * config.size**2 * 1.2 / 1e6:.0f} MB"
        + (time if config.renderer == "planesweep" else ".")
        + " Nothing was written."
    )


def _look(
    found: Found, series: str, profile: VolumeProfile | None, key: str, draw: bool
) -> tuple[list[Finding], Tile | None]:
    from embedprior.imaging.contact_sheet import Tile, picture_tile, prepared_tile, volume_tile
    from embedprior.imaging.files import UnreadableExam
    from embedprior.imaging.findings import Finding, UnusableExam
    from embedprior.imaging.preprocess import prepare
    from embedprior.imaging.radiographs import read_radiograph
    from embedprior.imaging.readers import read_volume

    try:
        if found.kind == "radiograph":
            radiograph, findings = read_radiograph(found.path)
            height, width = radiograph.grey.shape
            detail = f"{width} x {height}, {radiograph.view or 'view unknown'}"
            return findings, picture_tile(found.name, radiograph.grey, findings, detail) if draw else None
        volume, findings = read_volume(found.path, series)
        if profile is None:
            return findings, volume_tile(found.name, volume, findings) if draw else None
        prepared = prepare(volume, profile)
        detail = f"{' x '.join(map(str, prepared.shape))}, profile {key}"
        return findings, prepared_tile(found.name, prepared, findings, detail) if draw else None
    except UnusableExam as error:
        findings = list(error.findings)
    except UnreadableExam as error:
        findings = [Finding("unreadable", str(error))]
    # a page without the exams that failed would look as if there were none
    return findings, Tile(found.name, "no picture: see the findings", (), tuple(findings)) if draw else None
