"""A cohort of DRRs from chest CTs: rendered, grouped by patient, with exam and pair tables and a summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from embedprior.cohort.duplicates import fingerprint, join_groups, same_scans, union_find
from embedprior.imaging.drr.config import DrrConfig
from embedprior.imaging.drr.dataset import IMAGES, drr_sheet, publish, write_tables
from embedprior.imaging.drr.render import (
    Rendered,
    Scanned,
    image_name,
    memory_estimate,
    render_all,
    scan,
    seconds_estimate,
    shared_series,
)
from embedprior.imaging.drr.tone_fit import fit_tone_to_folder
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.radiographs import read_image
from embedprior.imaging.readers import CtExam
from embedprior.runs import Run, artifacts_root, progress
from embedprior.runs.distributed import ProcessGroup

MEGABYTES_PER_PIXEL = 1.2e-6


@dataclass(frozen=True)
class DrrCohort:
    """What rendering gave.

    Attributes:
        summary: in words, as in ``summary.md``.
        failures: one record (``exam_id``, ``stage``, ``reason``) for every CT left out.
    """

    summary: str
    failures: list[dict[str, str]]


def render_cohort(
    exams: Sequence[CtExam], config: DrrConfig, out: Path, processes: ProcessGroup, *, workers: int = 1,
    match_style: Path | None = None, include_incomplete: bool = False, notes: Sequence[str] = (),
) -> DrrCohort | None:  # fmt: skip
    """Render every CT and write images, ``exams.csv``, ``pairs.csv`` and a contact sheet.

    Args:
        exams: the CTs.
        config: view, poses, renderer, appearance.
        out: folder of the results.
        processes: this process among those of a launcher; each renders its share.
        workers: processes of its own that each of them renders with.
        match_style: folder of radiographs that the tone curve is fitted to.
        include_incomplete: pair scans that lack part of the lungs too.
        notes: further lines of the summary.

    Returns:
        What was made; None in all processes but the first.

    Raises:
        BadInput: two exam ids share a file name, or no CT can be read to fit the tone curve.
    """
    # every process hashes every CT: the list of series must be the same in all of them
    scanned, failures = scan(progress(exams, "scan", total=len(exams)) if processes.is_main else exams)
    firsts = [s for s in scanned if not s.same_as]
    lines = list(notes)
    for ids in shared_series(scanned):
        lines.append(f"Different scans share one SeriesInstanceUID, all rendered: {', '.join(ids)}.")
    if match_style is not None:
        match = fit_tone_to_folder(firsts, config, match_style)
        config = config.model_copy(update={"appearance": match.appearance})
        lines.append(
            f"Tone fitted to {match.references} radiographs: quantiles differ by {match.after:.3f} rms of the grey "
            f"range, {match.before:.3f} before."
        )
    hashes = {s.exam.exam_id: s.digest for s in scanned}
    run = Run(out, "drr", config, config.seed, hashes) if processes.is_main else None
    mine = firsts[processes.rank :: processes.world_size]
    where = f"drr {processes.rank + 1}/{processes.world_size}" if processes.world_size > 1 else "drr"
    own = render_all(mine, config, artifacts_root(out), workers, where)
    done = {result.exam_id: result for result in processes.gather(own)}
    made = None
    if run is not None:
        rendered = [done[s.exam.exam_id] for s in firsts]
        failures += [{"exam_id": r.exam_id, "stage": "drr", "reason": r.reason} for r in rendered if r.folder is None]
        summary = _write(out, config, scanned, rendered, failures, include_incomplete, lines)
        run.finish(summary, failures, rendered=sum(r.folder is not None for r in rendered))
        made = DrrCohort(summary, failures)
    processes.barrier()
    return made


def group_same_scans(exams: Sequence[CtExam], rendered: Sequence[Rendered]) -> tuple[list[CtExam], list[str]]:
    """Join the groups of patients whose images are the same picture: one scan in two resolutions, or under two ids.

    Returns:
        The exams with their joined ``group_id``, and the groups of like images (``"a = b = c"``).
    """
    rows = [
        {"exam_id": e.exam_id, "patient_id": e.patient_id, "group_id": e.columns.get("group_id", e.patient_id),
         "modality": "DRR"} for e in exams
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    first = image_name(0) + ".png"
    prints = {}
    for result in rendered:
        if result.folder is not None:
            try:
                prints[result.exam_id] = fingerprint(read_image(result.folder, first))
            except UnreadableExam:  # one uniform grey, which is like nothing
                continue
    found = same_scans(table, prints)
    if found.empty:
        return list(exams), []
    groups = join_groups(table, found)["group_id"]
    joined = [replace(e, columns={**e.columns, "group_id": g}) for e, g in zip(exams, groups, strict=True)]
    pairs = list(zip(found["exam_a"], found["exam_b"], strict=True))
    first_of = union_find(sorted({name for pair in pairs for name in pair}), pairs)
    alike = [[name for name in first_of if first_of[name] == one] for one in dict.fromkeys(first_of.values())]
    return joined, [" = ".join(names) for names in alike]


def plan_text(exams: Sequence[CtExam], config: DrrConfig, workers: int) -> str:
    """Return what rendering would make and need: CTs, images, megabytes, memory and, where they are known, minutes."""
    images = len(exams) * config.poses
    minutes = max(1, round(seconds_estimate(len(exams), config, workers) / 60))
    time = f" and {minutes} minute{'s'[: minutes > 1]} with {workers} worker{'s'[: workers > 1]}."
    return (
        f"{len(exams)} CTs, {images} {config.view} images of {config.size} x {config.size} pixels with "
        f"{config.renderer}; about {images * config.size**2 * MEGABYTES_PER_PIXEL:.0f} MB"
        + (time if config.renderer == "planesweep" else ".")
        + f" Memory: about {memory_estimate(exams) / 1e9:.1f} GB for each of {workers} worker{'s'[: workers > 1]}."
        + " Nothing was written."
    )


def _write(
    out: Path, config: DrrConfig, scanned: list[Scanned], rendered: list[Rendered], failures: list[dict[str, str]],
    incomplete: bool, notes: Sequence[str],
) -> str:  # fmt: skip
    exams, alike = group_same_scans([s.exam for s in scanned if not s.same_as], rendered)
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
    lines += notes
    if cut:
        fate = "paired all the same" if incomplete else "rendered, not paired (--include-incomplete pairs them)"
        lines.append(f"Lungs not complete in {len(cut)}: {', '.join(cut)}; {fate}.")
    twice = [f"{s.exam.exam_id} = {s.same_as}" for s in scanned if s.same_as]
    if twice:
        lines.append(f"The same scan twice, rendered once: {', '.join(twice)}.")
    if alike:
        lines.append(f"Images alike, so probably one patient, now in one group: {'; '.join(alike)}.")
    if failures:
        lines.append(f"{len(failures)} failed (failures.csv): {', '.join(f['exam_id'] for f in failures[:10])}.")
    return "\n".join(lines) + "\n"
