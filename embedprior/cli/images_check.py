"""``embedprior images check``: what is wrong with these volumes and radiographs, before anything is made of them."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput

if TYPE_CHECKING:
    from embedprior.imaging.contact_sheet import Tile
    from embedprior.imaging.findings import Finding
    from embedprior.imaging.preprocess import VolumeProfile
    from embedprior.imaging.readers import Found

HELP = "audit CT volumes and radiographs (geometry, Hounsfield units, lungs, views), with a contact sheet"
WORDS = {None: "ok", "note": "ok", "warning": "WARN", "error": "FAIL"}


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = argparse.ArgumentParser(prog="embedprior images check", description=HELP + ".", allow_abbrev=False)
    p.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH",
        help="a volume (.nii.gz, .nrrd, .mha, .npz, DICOM folder or zip), a radiograph (.dcm, .png, .jpg) or a folder",
    )  # fmt: skip
    p.add_argument(
        "--series", default="only", metavar="RULE",
        help="of a DICOM folder that holds several: only (else it fails), most-slices, or a short id (default: only)",
    )  # fmt: skip
    p.add_argument(
        "--profile", metavar="NAME",
        help="also prepare volumes by this profile (a shipped name, or a YAML file), and show the result",
    )  # fmt: skip
    p.add_argument("--contact-sheet", type=Path, metavar="FILE", help="write a PNG with every exam on it")
    p.add_argument("--out", type=Path, metavar="FILE", help="write the findings as CSV: exam, severity, code, message")
    p.add_argument("--limit", type=int, metavar="N", help="look at the first N exams only")
    return p


def main(argv: Sequence[str]) -> int:
    """Print a line an exam; return 0, or 3 when an exam has a warning or an error.

    Raises:
        BadInput: nothing to read, an unknown profile, or a sheet that is no PNG.
        SystemExit: ``--help`` (0) or a bad option (2).
    """
    options = parser().parse_args(list(argv))
    if options.contact_sheet and options.contact_sheet.suffix.lower() != ".png":
        raise BadInput(f"--contact-sheet writes a PNG; got '{options.contact_sheet.name}'.")
    for target in (options.contact_sheet, options.out):
        if target and not target.parent.is_dir():
            raise BadInput(f"the folder {target.parent} does not exist.")
    from embedprior.imaging.contact_sheet import contact_sheet
    from embedprior.imaging.findings import worst
    from embedprior.imaging.preprocess import load_profile, profile_key
    from embedprior.imaging.readers import discover
    from embedprior.runs import progress

    profile = load_profile(options.profile) if options.profile else None
    key = profile_key(profile) if profile else ""
    exams = [found for path in options.paths for found in discover(path)][: options.limit]
    tiles: list[Tile] = []
    rows: list[dict[str, str]] = []
    states: Counter[str] = Counter()
    width = max(len(found.name) for found in exams)
    for found in progress(exams, "images"):
        findings, tile = _look(found, options.series, profile, key, options.contact_sheet is not None)
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
    if options.out:
        import pandas as pd

        from embedprior.tables import write_table

        write_table(pd.DataFrame(rows, columns=["exam", "severity", "code", "message"]), options.out)
    if options.contact_sheet and tiles:
        contact_sheet(tiles, options.contact_sheet, columns=3 if max(len(tile.pictures) for tile in tiles) > 1 else 8)
        print(f"contact sheet: {options.contact_sheet} ({len(tiles)} exams)")
    return NEEDS_ATTENTION if states["WARN"] or states["FAIL"] else DONE


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
