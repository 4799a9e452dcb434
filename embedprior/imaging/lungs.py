"""Where the lungs are, and whether the scan holds all of them: a threshold method on a coarse grid, no network.

Lung is what holds air and tissue together (so neither outside air nor bowel gas) with the body seen in at least three
of the four in-plane directions. Nothing is removed for touching the border of the scan, so lungs that a narrow field of
view cuts at the side are kept; table, mattress and clothes have the body on one side only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from embedprior.imaging.findings import Finding
from embedprior.imaging.volume import Volume, canonical

COARSE_MM = 4.0
TISSUE_HU = -300
LUNG_HU = (-970, -400)
MIN_ML = 300.0
MIN_PART_ML, MIN_PART_SHARE = 100.0, 0.1
CUT_SHARE, TOUCH_SHARE = 0.5, 0.05
"""Bars of ``audit_lungs``; what they separate on real volumes, and how narrowly, is in docs/imaging.md."""
BLANK_SHARE = 0.2
GAS_HU, MIN_GAS_ML, MAX_GAS_SHARE, MIN_LUNG_SHELL = -940, 20.0, 0.5, 0.3
"""Gas of the bowel: darker than this, at least so much of it, with less lung around it than this share of its shell."""
LOW_SHARE = 0.25
SHORT_MM = 200.0

Mask = Bool[np.ndarray, "z y x"]


@dataclass(frozen=True, eq=False)
class Lungs:
    """A lung mask on a coarse grid whose axes are left, posterior, superior.

    Attributes:
        mask: True in the lungs, (z, y, x) of the coarse grid.
        factors: voxels of the canonical volume per coarse voxel, (z, y, x).
        voxel_mm: size of a coarse voxel, (z, y, x).
        body: True in the body.
    """

    mask: Mask
    factors: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]
    body: Mask

    @property
    def ml(self) -> float:
        """Volume of the lungs in ml."""
        return float(self.mask.sum() * np.prod(self.voxel_mm) / 1000)

    def areas_cm2(self) -> Float[np.ndarray, " z"]:
        """Cross-section of the lungs in each coarse slice, foot to head."""
        return np.asarray(self.mask.sum(axis=(1, 2)) * self.voxel_mm[1] * self.voxel_mm[2] / 100)


def find_lungs(volume: Volume) -> Lungs:
    """Segment the lungs of a volume in any of the axis-aligned orientations, at about 4 mm.

    Found once for a volume: audit, crop, isocentre and picture of one exam ask for them in turn. A volume whose voxels
    were written to is another one (``Volume.with_hu``).
    """
    if volume not in _FOUND:
        _FOUND[volume] = _segmented(canonical(volume))
    return _FOUND[volume]


_FOUND: WeakKeyDictionary[Volume, Lungs] = WeakKeyDictionary()


def _segmented(upright: Volume) -> Lungs:
    coarse, factors = _coarse(upright)
    body = largest_part(_opened(coarse > TISSUE_HU))
    enclosed = sum(_shadow(body, axis, away).astype(np.int8) for axis in (1, 2) for away in (False, True)) >= 3
    aerated = _opened((coarse > LUNG_HU[0]) & (coarse < LUNG_HU[1]) & enclosed)
    x, y, z = upright.spacing_mm
    voxel_mm = (z * factors[0], y * factors[1], x * factors[2])
    thoracic = _without_bowel_gas(coarse, aerated, voxel_mm)
    return Lungs(_above_diaphragm(large_parts(thoracic, voxel_mm)), factors, voxel_mm, body)


def _without_bowel_gas(coarse: Float[np.ndarray, "z y x"], aerated: Mask, voxel_mm: tuple[float, float, float]) -> Mask:
    """Leave out gas without tissue in it that is not enclosed by lung: gas in stomach and colon.

    A bulla or a part with emphysema is as dark, but has lung around it. Where most of the lungs are that dark, nothing
    is left out.
    """
    gas = binary_opening(aerated & (coarse < GAS_HU), box=True)
    if gas.sum() > MAX_GAS_SHARE * aerated.sum():
        return aerated
    parts, _ = ndimage.label(gas)
    removed = np.zeros_like(gas)
    lung = aerated & ~gas
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        around = tuple(slice(max(0, part.start - 2), part.stop + 2) for part in box)
        one = parts[around] == number
        if one.sum() * np.prod(voxel_mm) / 1000 < MIN_GAS_ML:
            continue
        rim = ndimage.binary_dilation(one, iterations=1)
        shell = ndimage.binary_dilation(rim, iterations=1) & ~rim
        if (lung[around] & shell).sum() < MIN_LUNG_SHELL * shell.sum():
            removed[around] |= ndimage.binary_dilation(one, np.ones((3, 3, 3), np.bool_))
    return _opened(aerated & ~removed) if removed.any() else aerated


def _above_diaphragm(mask: Mask) -> Mask:
    """Leave out parts that lie wholly in the lowest quarter of the largest one's height, or below it."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    boxes = ndimage.find_objects(parts)
    foot, head = boxes[largest - 1][0].start, boxes[largest - 1][0].stop
    level = foot + LOW_SHARE * (head - foot)
    low = [number for number, box in enumerate(boxes, 1) if box[0].stop <= level]
    return mask & ~np.isin(parts, low) if low else mask


def audit_lungs(volume: Volume, lungs: Lungs | None = None) -> list[Finding]:
    """Return findings about missing lungs, lungs cut at apex or base, and a short scan.

    The lungs count as cut where their cross-section at the end of the scan is at least half their largest one;
    from 5 % on it is noted that they touch the end (a costophrenic recess may be missing).
    """
    lungs = find_lungs(volume) if lungs is None else lungs
    findings = []
    height = canonical(volume).size_mm[2]
    if height < SHORT_MM:
        findings.append(Finding("short-field", f"{height:.0f} mm from foot to head"))
    if lungs.ml < MIN_ML:
        return [*findings, Finding("no-lungs", f"{lungs.ml:.0f} ml of lung found, expected at least {MIN_ML:.0f} ml")]
    body = lungs.body.sum(axis=(1, 2))
    # resampling may leave an empty slice at the end, where a cut lung would look complete
    filled = np.flatnonzero(body > BLANK_SHARE * np.median(body[body > 0]))
    areas = lungs.areas_cm2()
    largest = float(areas.max())
    for code, end, where in (("apex-cut", filled[-1], "top"), ("base-cut", filled[0], "bottom")):
        share = float(areas[end]) / largest
        seen = f"lung on {areas[end]:.0f} cm² of the {where} slice, {share:.0%} of the largest cross-section"
        if share >= CUT_SHARE:
            findings.append(Finding(code, seen))
        elif share >= TOUCH_SHARE:
            findings.append(Finding("lungs-touch-end", seen))
    return findings


def lung_box(volume: Volume, margin_mm: float = 10.0, lungs: Lungs | None = None) -> tuple[slice, slice, slice] | None:
    """Return the (z, y, x) box of a canonical (LPS) volume that holds the lungs, or None when none were found.

    The margin is widened by one coarse voxel, which covers the coarse grid's error.

    Args:
        volume: in LPS orientation (``orientation.canonical``).
        margin_mm: tissue kept around the lungs.
        lungs: of this volume, when they are known.
    """
    lungs = find_lungs(volume) if lungs is None else lungs
    if lungs.ml < MIN_ML:
        return None
    spacing_zyx = volume.spacing_mm[::-1]
    box = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(lungs.mask.any(axis=others))
        factor = lungs.factors[axis]
        margin = int(np.ceil(margin_mm / spacing_zyx[axis])) + factor
        last = (int(hit[-1]) + 1) * factor
        box.append(slice(max(0, int(hit[0]) * factor - margin), min(volume.shape[axis], last + margin)))
    return box[0], box[1], box[2]


def large_parts(mask: Mask, voxel_mm: tuple[float, float, float]) -> Mask:
    """Return the connected parts of at least 100 ml and a tenth of the largest one: each lung, or both in one."""
    parts, count = ndimage.label(mask)
    ml = np.bincount(parts.ravel(), minlength=count + 1) * np.prod(voxel_mm) / 1000
    ml[0] = 0
    kept = ml >= max(MIN_PART_ML, MIN_PART_SHARE * ml.max())
    return np.asarray(kept[parts])


def largest_part(mask: Bool[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    """Return the largest connected part of a mask."""
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(parts == sizes.argmax())


def _coarse(volume: Volume) -> tuple[Float[np.ndarray, "z y x"], tuple[int, int, int]]:
    """Average two readings along each axis of every coarse voxel: enough against noise, and far less to read."""
    factors = [min(n, max(1, round(COARSE_MM / s))) for s, n in zip(volume.spacing_mm[::-1], volume.shape, strict=True)]
    counts = [n // f for n, f in zip(volume.shape, factors, strict=True)]
    offsets = [sorted({f // 4, f - 1 - f // 4}) for f in factors]
    total = np.empty(counts, np.float32)
    # layer by layer, while it is in the processor's cache; sums of whole numbers are exact in any order
    for layer, first in zip(total, range(0, volume.shape[0], factors[0]), strict=False):
        rows = np.zeros((counts[1], volume.shape[2]), np.int32)
        for z in offsets[0]:
            for y in offsets[1]:
                rows += volume.hu[first + z, y :: factors[1]][: counts[1]]
        layer[:] = np.sum([rows[:, x :: factors[2]][:, : counts[2]] for x in offsets[2]], axis=0)
    total /= np.prod([len(o) for o in offsets])
    return total, (factors[0], factors[1], factors[2])


def _opened(mask: Mask) -> Mask:
    """Binary opening that does not eat the first and last slices, where a cut lung has to be seen."""
    wide = np.pad(mask, 2, mode="edge")
    return binary_opening(wide)[2:-2, 2:-2, 2:-2]


def binary_opening(mask: Mask, box: bool = False) -> Mask:
    """Return scipy's ``ndimage.binary_opening`` of a 3-D mask, in shifts of the whole mask: about ten times as fast.

    Args:
        mask: True inside; beyond the border is outside.
        box: by 3 x 3 x 3 voxels; otherwise by a voxel and its six neighbours.
    """
    eroded = ~_dilated(np.pad(~mask, 1, constant_values=True), box)[1:-1, 1:-1, 1:-1]
    return _dilated(eroded, box)


def _dilated(mask: Mask, box: bool) -> Mask:
    grown = mask.copy()
    for axis in range(3):
        low, high = (
            tuple(part if a == axis else slice(None) for a in range(3)) for part in (slice(-1), slice(1, None))
        )
        source = grown.copy() if box else mask
        grown[high] |= source[low]
        grown[low] |= source[high]
    return grown


def _shadow(body: Mask, axis: int, away: bool) -> Mask:
    """Where the body has been met on the way from one border along an axis."""
    seen: np.ndarray[Any, Any] = np.flip(body, axis) if away else body
    seen = np.maximum.accumulate(seen, axis=axis)
    return np.flip(seen, axis) if away else seen
