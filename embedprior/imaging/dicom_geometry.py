"""The order and spacing of a series' slices, by ImagePositionPatient alone: file names and numbers may be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from embedprior.imaging.dicom_header import Header
from embedprior.imaging.findings import Finding

FEWEST_SLICES = 8
TILT_DEG, MOST_TILT_DEG, SIDEWAYS_DEG = 0.5, 35.0, 0.5
"""A gantry tilts about the patient's left-right axis, by 30° at most: slices then shift along their columns only."""
EVEN_MM, EVEN_SHARE = 0.1, 0.05
"""A slice may lie 0.1 mm or 5 % of the step off the even grid: headers round positions to 0.1 mm, and rounding does not
add up along the series, while a real change of step does."""
SAME_MM = 0.01


@dataclass(frozen=True)
class Stack:
    """Slices in order, with the grid they lie on.

    Attributes:
        headers: lowest position along the slice normal first.
        spacing_mm: (x, y, z).
        origin_mm: LPS centre of the first voxel.
        direction: 3 × 3, columns are index x, y, z.
        shear_mm: how much further along its columns (index y) each slice starts than the one before: a tilted gantry.
    """

    headers: tuple[Header, ...]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: Float[np.ndarray, "3 3"]
    shear_mm: float = 0.0


def audit_frames(headers: Sequence[Header]) -> list[Finding]:
    """Return findings about slices without geometry, or of more than one size, spacing or orientation."""
    findings = []
    lost = sum(h.position is None or h.orientation is None or h.spacing_yx is None for h in headers)
    if lost:
        findings.append(
            Finding(
                "missing-position",
                f"{lost} of {len(headers)} slices lack ImagePositionPatient, ImageOrientationPatient or PixelSpacing",
            )
        )
    if len(headers) < FEWEST_SLICES:
        findings.append(Finding("too-few-slices", f"{len(headers)} slices; a volume needs {FEWEST_SLICES}"))
    for what, values in (
        ("sizes", [(h.rows, h.columns) for h in headers]),
        ("pixel formats", [(h.bits_allocated, h.signed, h.samples) for h in headers]),
        ("pixel spacings", [_rounded(h.spacing_yx, 4) for h in headers]),
        ("orientations", [_rounded(h.orientation, 3) for h in headers]),
    ):
        counts = Counter(v for v in values if v is not None)
        if len(counts) > 1:
            parts = ", ".join(f"{number} x {_text(value)}" for value, number in counts.most_common(4))
            findings.append(Finding("mixed-frames", f"{len(counts)} different {what} in one series: {parts}"))
    return findings


def order(headers: Sequence[Header]) -> tuple[list[Header], Float[np.ndarray, "n 3"], Float[np.ndarray, "3 3"]]:
    """Return the slices sorted along the slice normal, their positions in mm, and the direction matrix.

    Every header must have a position and an orientation (``audit_frames`` found none without).
    """
    cosines = np.array(headers[0].orientation, dtype=np.float64).reshape(2, 3)
    x, y = cosines / np.linalg.norm(cosines, axis=1, keepdims=True)
    normal = np.cross(x, y)
    positions = np.array([h.position for h in headers], dtype=np.float64)
    sequence = np.argsort(positions @ normal, kind="stable")
    direction = np.stack([x, y, normal / np.linalg.norm(normal)], axis=1)
    return [headers[i] for i in sequence], positions[sequence], direction


def same_place(positions: Float[np.ndarray, "n 3"], normal: Float[np.ndarray, " 3"]) -> list[tuple[int, int]]:
    """Return neighbours (i, i + 1) of the sorted slices that lie less than 0.01 mm apart."""
    gaps = np.diff(positions @ normal)
    return [(int(i), int(i) + 1) for i in np.flatnonzero(gaps < SAME_MM)]


def audit_spacing(positions: Float[np.ndarray, "n 3"], direction: Float[np.ndarray, "3 3"]) -> list[Finding]:
    """Return findings about gaps, uneven steps and gantry tilt of sorted slices, no two at one place."""
    if len(positions) < 2:
        return []
    normal = direction[:, 2]
    tilt = _tilt(positions, direction)
    findings = []
    if tilt.degrees > TILT_DEG and tilt.of_gantry:
        moved = f"slices moved by up to {abs(tilt.rows_mm):.0f} mm along their columns"
        findings.append(Finding("straightened", f"a gantry tilt of {tilt.degrees:.1f}°: {moved}"))
    elif tilt.degrees > TILT_DEG:
        findings.append(
            Finding(
                "gantry-tilt",
                f"sheared by {tilt.degrees:.1f}°, which no gantry does: slices shift by {abs(tilt.columns_mm):.0f} mm "
                f"along rows and {abs(tilt.rows_mm):.0f} mm along columns over {tilt.along_mm:.0f} mm. "
                "Next: fetch the series again, or convert it with dcm2niix",
            )
        )
    gaps = np.diff(positions @ normal)
    step = float(np.median(gaps))
    holes = np.flatnonzero(gaps > 1.5 * step)
    if holes.size:
        return [*findings, _holes(gaps, step, holes)]
    even = positions[0] + np.linspace(0, 1, len(positions))[:, None] * (positions[-1] - positions[0])
    off = np.linalg.norm(positions - even, axis=1)
    if off.max() > max(EVEN_MM, EVEN_SHARE * step):
        findings.append(
            Finding(
                "uneven-spacing",
                f"steps from {gaps.min():g} to {gaps.max():g} mm; slice {int(off.argmax()) + 1} of {len(positions)} "
                f"(in order of position) lies {off.max():.2f} mm off an even grid",
            )
        )
    return findings


@dataclass(frozen=True)
class _Tilt:
    """How far the last slice lies from the first: along the normal, the rows' and the columns' direction, mm."""

    along_mm: float
    columns_mm: float
    rows_mm: float

    @property
    def degrees(self) -> float:
        return float(np.degrees(np.arctan2(np.hypot(self.columns_mm, self.rows_mm), self.along_mm)))

    @property
    def of_gantry(self) -> bool:
        sideways = float(np.degrees(np.arctan2(abs(self.columns_mm), self.along_mm)))
        return sideways <= SIDEWAYS_DEG and self.degrees <= MOST_TILT_DEG


def _tilt(positions: Float[np.ndarray, "n 3"], direction: Float[np.ndarray, "3 3"]) -> _Tilt:
    columns, rows, along = (float(v) for v in (positions[-1] - positions[0]) @ direction)
    return _Tilt(along, columns, rows)


def stack(headers: Sequence[Header], positions: Float[np.ndarray, "n 3"], direction: Any) -> Stack:
    """Return sorted, evenly spaced slices as a stack."""
    between_rows, between_columns = headers[0].spacing_yx or (1.0, 1.0)
    tilt = _tilt(positions, np.asarray(direction))
    tilted = tilt.degrees > TILT_DEG
    length = tilt.along_mm if tilted else float(np.linalg.norm(positions[-1] - positions[0]))
    x, y, z = (float(v) for v in positions[0])
    spacing = (between_columns, between_rows, length / (len(positions) - 1))
    shear = tilt.rows_mm / (len(positions) - 1) if tilted else 0.0
    return Stack(tuple(headers), spacing, (x, y, z), direction, shear)


def _holes(gaps: Float[np.ndarray, " n"], step: float, holes: np.ndarray[Any, Any]) -> Finding:
    multiples = gaps[holes] / step
    whole = bool((np.abs(multiples - np.rint(multiples)) < 0.1).all())
    where = [f"{gaps[i]:g} mm between slices {i + 1} and {i + 2}" for i in holes[:4]]
    more = f" and {holes.size - 4} more gaps" if holes.size > 4 else ""
    seen = f"steps of {step:g} mm, but {', '.join(where)}{more} (in order of position)"
    if whole:
        missing = int(np.rint(multiples - 1).sum())
        return Finding("missing-slice", f"{missing} missing: {seen}. Next: fetch the series again")
    return Finding("uneven-spacing", seen)


def _rounded(values: tuple[float, ...] | None, digits: int) -> tuple[float, ...] | None:
    return None if values is None else tuple(round(v, digits) + 0.0 for v in values)


def _text(value: object) -> str:
    return "/".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) if isinstance(value, tuple) else ""
