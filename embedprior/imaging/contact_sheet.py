"""A page of small pictures that a person checks in seconds: is everything upright, whole and the right way round?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from embedprior.errors import EmbedpriorError
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import Finding, UnusableExam, worst
from embedprior.imaging.lungs import Lungs, find_lungs
from embedprior.imaging.preprocess import VolumeProfile, prepare, windowed
from embedprior.imaging.radiographs import read_radiograph
from embedprior.imaging.readers import ExamSource, read_volume
from embedprior.imaging.volume import Volume, canonical

HEIGHT, WIDTH, GAP, CAPTION = 170, 190, 4, 46
WINDOW = (-1000.0, 400.0)
OUTLINE = (255, 90, 60)
INK = {None: (200, 200, 200), "note": (200, 200, 200), "warning": (255, 190, 60), "error": (255, 90, 90)}
PAPER = (24, 24, 24)


@dataclass(frozen=True, eq=False)
class Tile:
    """One exam on the sheet: pictures side by side, a title, and what the audit found."""

    title: str
    detail: str
    pictures: tuple[UInt8[np.ndarray, "height width 3"], ...]
    findings: tuple[Finding, ...] = ()


def volume_tile(title: str, volume: Volume, findings: Sequence[Finding]) -> Tile:
    """Return axial, coronal and sagittal slices through the lungs, their outline in red.

    Shown as radiologists look: the patient's right on the viewer's left, head up, face to the left in the sagittal.
    """
    upright = canonical(volume)
    lungs = find_lungs(upright)
    middle = [_through(lungs, axis, upright.shape[axis]) for axis in range(3)]
    x, y, z = upright.spacing_mm
    views = []
    for axis, spacing in ((0, (y, x)), (1, (z, x)), (2, (z, y))):
        plane = upright.hu.take(middle[axis], axis=axis)
        mask = lungs.mask.take(min(middle[axis] // lungs.factors[axis], lungs.mask.shape[axis] - 1), axis=axis)
        if axis:
            plane, mask = plane[::-1], mask[::-1]
        views.append(_view(windowed(plane, *WINDOW), mask, spacing))
    size = " x ".join(f"{n}" for n in reversed(volume.shape))
    spacing_text = " x ".join(f"{s:.3g}" for s in volume.spacing_mm)
    return Tile(title, f"{size} voxels of {spacing_text} mm, {volume.orientation}", tuple(views), tuple(findings))


def prepared_tile(
    title: str, prepared: Float[np.ndarray, "windows slices rows columns"], findings: Sequence[Finding], detail: str
) -> Tile:
    """Return what an encoder sees of a prepared volume: the middle slice of each axis, first window, as stored."""
    shown = prepared[0]
    low, high = float(shown.min()), float(shown.max())
    scaled = (shown - low) / (high - low if high > low else 1.0)
    views = []
    for axis in range(3):
        plane = scaled.take(scaled.shape[axis] // 2, axis=axis)
        views.append(_view(plane[::-1] if axis else plane, None, (1.0, 1.0)))
    return Tile(title, detail, tuple(views), tuple(findings))


def picture_tile(title: str, grey: Float[np.ndarray, "height width"], findings: Sequence[Finding], detail: str) -> Tile:
    """Return one radiograph, values in [0, 1]."""
    return Tile(title, detail, (_view(grey, None, (1.0, 1.0)),), tuple(findings))


def check_exam(
    found: ExamSource, series: str = "only", profile: VolumeProfile | None = None, profile_name: str = "",
    draw: bool = True,
) -> tuple[list[Finding], Tile | None, str]:  # fmt: skip
    """Read one exam and audit it; an exam that can't be read is a finding, not an exception.

    Args:
        found: the exam.
        series: which series of a DICOM folder that holds several (``readers.read_volume``).
        profile: also prepare a volume by this profile.
        profile_name: of the profile, for the tile.
        draw: return its tile; None otherwise.

    Returns:
        What was found, the tile, and the view of a radiograph (empty when nothing names it).
    """
    view = found.view
    try:
        if found.kind == "radiograph":
            radiograph, findings = read_radiograph(found.path, found.view)
            height, width = radiograph.grey.shape
            view = radiograph.view
            detail = f"{width} x {height}, {view or 'view unknown'}"
            return findings, picture_tile(found.name, radiograph.grey, findings, detail) if draw else None, view
        volume, findings = read_volume(found.path, series)
        if profile is None:
            return findings, volume_tile(found.name, volume, findings) if draw else None, view
        prepared = prepare(volume, profile)
        detail = f"{' x '.join(map(str, prepared.shape))}, profile {profile_name}"
        return findings, prepared_tile(found.name, prepared, findings, detail) if draw else None, view
    except UnusableExam as error:
        findings = list(error.findings)
    except UnreadableExam as error:
        findings = [Finding("unreadable", str(error))]
    except EmbedpriorError:
        raise
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        # one exam of many: the error's text may name a folder or a patient
        findings = [Finding("unreadable", f"it can't be read ({type(error).__name__})")]
    # a page without the exams that failed would look as if there were none
    return findings, Tile(found.name, "no picture: see the findings", (), tuple(findings)) if draw else None, view


def contact_sheet(tiles: Sequence[Tile], path: Path | str, columns: int = 2) -> None:
    """Write the tiles as one PNG, row by row.

    Args:
        tiles: at least one; all with the same number of pictures look best.
        path: of the PNG.
        columns: tiles side by side.
    """
    path = Path(path)
    across = max(1, *(len(tile.pictures) for tile in tiles))
    tile_width, tile_height = across * (WIDTH + GAP) + GAP, HEIGHT + CAPTION + 2 * GAP
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (min(columns, len(tiles)) * tile_width, rows * tile_height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, tile in enumerate(tiles):
        left, top = number % columns * tile_width + GAP, number // columns * tile_height + GAP
        for place, picture in enumerate(tile.pictures):
            shown = Image.fromarray(picture)
            offset = left + place * (WIDTH + GAP) + (WIDTH - shown.width) // 2
            sheet.paste(shown, (offset, top + (HEIGHT - shown.height) // 2))
        codes = ", ".join(dict.fromkeys(f.code for f in tile.findings)) or "nothing found"
        ink = INK[worst(tile.findings)]
        for line, (text, colour) in enumerate(((tile.title, (255, 255, 255)), (tile.detail, INK[None]), (codes, ink))):
            draw.text((left, top + HEIGHT + line * 15), _short(text, draw, font, tile_width - 2 * GAP), colour, font)
    sheet.save(path, optimize=True)


def _through(lungs: Lungs, axis: int, count: int) -> int:
    """Index of the slice that shows most lung, or the middle one where there is none."""
    areas = lungs.mask.sum(axis=tuple(a for a in range(3) if a != axis))
    if not areas.any():
        return count // 2
    # the widest slice of the sagittal axis lies in one lung, which is what a reader wants to see
    return min(count - 1, int(areas.argmax()) * lungs.factors[axis] + lungs.factors[axis] // 2)


def _view(
    grey: Float[np.ndarray, "height width"], mask: np.ndarray[Any, Any] | None, spacing: tuple[float, float]
) -> UInt8[np.ndarray, "height width 3"]:
    """Scale to the tile with square millimetres, and draw the mask's outline."""
    high, wide = grey.shape[0] * spacing[0], grey.shape[1] * spacing[1]
    scale = min(HEIGHT / high, WIDTH / wide)
    size = (max(1, round(wide * scale)), max(1, round(high * scale)))
    picture = Image.fromarray(np.ascontiguousarray(grey, np.float32)).resize(size, Image.Resampling.BILINEAR)
    pixels = np.repeat((np.clip(np.asarray(picture), 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)
    if mask is not None:
        inside = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 127
        edge = np.zeros_like(inside)
        edge[1:] |= inside[1:] != inside[:-1]
        edge[:, 1:] |= inside[:, 1:] != inside[:, :-1]
        pixels[edge] = OUTLINE
    return pixels


def _short(text: str, draw: ImageDraw.ImageDraw, font: Any, width: int) -> str:
    while draw.textlength(text, font=font) > width and len(text) > 4:
        text = text[:-4].rstrip() + "…"
    return text
