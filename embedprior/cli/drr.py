"""``embedprior drr``: chest CTs → digitally reconstructed radiographs, paired with their CTs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedprior.imaging.drr.config import DrrConfig
    from embedprior.imaging.drr.render import CtExam, Rendered, Scanned

HELP = "render chest CTs as radiographs, paired with them"


def main(argv: Sequence[str]) -> int:
    """Render; returns the exit code.

    Several processes: torchrun --nproc_per_node 2 -m embedprior drr ...

    Raises:
        BadInput: no CT, a broken table or setting; nothing was written.
    """
    from embedprior.cli.options import DRY_RUN, parse
    from embedprior.errors import BadInput
    from embedprior.imaging.drr.config import DrrConfig

    config, common = parse(
        DrrConfig, "drr", argv, "embedprior drr", HELP, "default",
        {"dry_run": DRY_RUN, "include_incomplete": "pair scans that lack part of the lungs too"},
        ct=(Path, None, "a volume file, a DICOM folder or zip, or a folder of such things"),
        cohort=(Path, None, "an exam table instead: its CT rows, with their labels"),
        out=(Path, Path("runs/drr"), "folder of images, tables and contact sheet"),
        workers=(int, 1, "processes that render at the same time"),
        limit=(int, None, "the first N CTs only"),
        match_style=(Path, None, "fit the tone curve to this folder of radiographs"),
        processes=(int, None, "refuse to start unless torchrun or accelerate started just so many"),
    )  # fmt: skip
    for name in ("workers", "limit"):
        if common[name] is not None and common[name] < 1:
            raise BadInput(f"--{name} {common[name]}. Allowed: 1 or more.")
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
    me = launched(common["processes"], "drr ...")
    if common["dry_run"]:
        if me.first:
            print(_plan(exams, config, common["workers"] * me.count))
        return 0
    return _run(exams, config, common, me, common["include_incomplete"])


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
