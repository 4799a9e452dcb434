"""Audit of a volume: are its numbers Hounsfield units, and are its voxels of a size that a chest CT has?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int16

from embedprior.imaging.findings import Finding
from embedprior.imaging.volume import AIR_HU, Volume, is_rotation

LOWEST, HIGHEST = -32768, 32767
MIN_SPACING_MM, MAX_SPACING_MM = 0.1, 12.0
SAMPLES = 2_000_000
LUNG_OR_AIR = (-1020, -300)
SOFT_TISSUE = (-200, 250)
MIN_GAS_SHARE = 0.005
MIN_TISSUE_SHARE = 0.03
METAL_HU = 4000
MASK_LABELS = 16
CLIPPED_BELOW_HU, CLIPPED_SHARE = 2000, 5e-4
"""Bars of the plausibility check. On the 17 real volumes the smallest shares seen are in docs/imaging.md."""


def to_int16(values: np.ndarray[Any, Any]) -> tuple[Int16[np.ndarray, "*shape"], list[Finding]]:
    """Return values as int16 HU, rounded and clipped where needed, nothing below −1024, and what was done.

    int16 input is not copied unless it is read-only.
    """
    findings = []
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            findings.append(Finding("hu-range", f"{int((~finite).sum())} voxels are not finite numbers"))
            values = np.where(finite, values, AIR_HU)
        whole = np.rint(values)
        if not np.array_equal(whole, values):
            findings.append(Finding("fractional-hu", f"by up to {float(np.abs(whole - values).max()):.2g} HU"))
        values = whole
    if values.dtype != np.int16:
        high = int(values.max())
        if high > HIGHEST:
            findings.append(Finding("hu-clipped", f"up to {high:.6g}; int16 ends at {HIGHEST}"))
        ends = (LOWEST, HIGHEST)
        if values.dtype.kind in "ui":  # NumPy 2.0 refuses an end that the type can't hold
            held = np.iinfo(values.dtype)
            ends = (max(LOWEST, held.min), min(HIGHEST, held.max))
        values = np.clip(values, *ends).astype(np.int16)
    elif not values.flags.writeable:
        values = values.copy()
    return values, findings + below_air(*floor_at_air(values), values.size)


def floor_at_air(hu: Int16[np.ndarray, "*shape"]) -> tuple[int, int]:
    """Set values below −1024 HU, which no tissue and no gas has, to −1024 in place.

    Returns:
        The lowest value there was, and how many were changed.
    """
    lowest = int(hu.min())
    if lowest >= AIR_HU:
        return lowest, 0
    below = hu < AIR_HU
    np.copyto(hu, AIR_HU, where=below)
    return lowest, int(np.count_nonzero(below))


def below_air(lowest: int, count: int, size: int) -> list[Finding]:
    """Return the finding of ``floor_at_air``, if it changed anything."""
    if not count:
        return []
    return [Finding("below-air", f"{count / size:.1%} of the voxels, down to {lowest} HU, are now {AIR_HU}")]


def audit_hu(hu: Int16[np.ndarray, "z y x"]) -> list[Finding]:
    """Return findings when the values can't be a chest CT in Hounsfield units.

    Looks at about two million voxels on a regular grid: whether there is lung or air, whether there is soft tissue
    near 0, and whether the top of the range is metal or a wrong scale. Voxels at −1024 exactly (padding) count for
    neither.
    """
    stride = max(1, round((hu.size / SAMPLES) ** (1 / 3)))
    sample = hu[::stride, ::stride, ::stride].ravel()
    low, high = int(sample.min()), int(sample.max())
    seen = f"values from {low} to {high}"
    if low == high:
        return [Finding("hu-range", f"every voxel is {low}")]
    if low >= 0 and high <= 255 and np.unique(sample).size <= MASK_LABELS:
        return [Finding("hu-range", f"{seen}, few different ones: labels of a mask, or scaled values, not HU")]
    air = _share(sample, *LUNG_OR_AIR)
    tissue = _share(sample, *SOFT_TISSUE)
    metal = np.count_nonzero(sample >= METAL_HU)
    air_text = f"{seen}, {air:.1%} of them lung or air ({LUNG_OR_AIR[0]} to {LUNG_OR_AIR[1]} HU)"
    if air < MIN_GAS_SHARE:
        return [Finding("hu-range", f"{air_text}: not a chest CT in HU; perhaps the rescale was never applied")]
    if tissue < MIN_TISSUE_SHARE:
        tissue_text = f"{seen}, {tissue:.1%} of them soft tissue ({SOFT_TISSUE[0]} to {SOFT_TISSUE[1]} HU)"
        return [Finding("hu-range", f"{tissue_text}: not a chest CT in HU; perhaps the rescale was applied twice")]
    # rarer ones can't reach the percentile, which takes longer to find
    if metal >= 0.0005 * sample.size and float(np.percentile(sample, 99.9)) >= METAL_HU:
        return [Finding("hu-range", f"{seen}; one voxel in a thousand is above {METAL_HU} HU: wrong scale")]
    return _audit_air(sample) + _audit_top(sample, high)


def _audit_top(sample: Int16[np.ndarray, " n"], high: int) -> list[Finding]:
    share = float(np.count_nonzero(sample == high) / sample.size)
    if high >= CLIPPED_BELOW_HU or share < CLIPPED_SHARE:
        return []
    return [Finding("window-clipped", f"{share:.1%} of the voxels are {high} HU, and none is above")]


def _audit_air(sample: Int16[np.ndarray, " n"]) -> list[Finding]:
    gas = sample[(sample > AIR_HU) & (sample < -850)]
    if gas.size < 100:
        return []
    typical = int(np.bincount(gas.astype(np.int64) - AIR_HU).argmax()) + AIR_HU
    if typical > -930 and float((sample == AIR_HU).mean()) < 0.01:
        return [Finding("hu-offset", f"the most frequent value of air is {typical} HU, expected about -1000")]
    return []


def _share(sample: Int16[np.ndarray, " n"], low: int, high: int) -> float:
    return float(np.count_nonzero((sample >= low) & (sample <= high)) / sample.size)


def audit_grid(spacing_mm: Sequence[float], direction: np.ndarray[Any, Any]) -> list[Finding]:
    """Return an error where spacing and axes are no grid of voxels: what no ``Volume`` can hold.

    Args:
        spacing_mm: along index x, y and z.
        direction: 3 x 3; columns are the directions of index x, y and z.

    Example:
        >>> [f.code for f in audit_grid((0.7, 0.7, 0.0), np.eye(3))]
        ['spacing-implausible']
    """
    if not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        shown = " x ".join(f"{s:g}" for s in spacing_mm)
        return [Finding("spacing-implausible", f"voxels of {shown} mm. Next: fetch or convert the exam again")]
    if not is_rotation(direction):
        message = "the three axes are not perpendicular, or not of length 1. Next: convert the exam again"
        return [Finding("skewed-axes", message)]
    return []


def audit_geometry(volume: Volume) -> list[Finding]:
    """Return findings about spacing and orientation."""
    findings = []
    if min(volume.spacing_mm) < MIN_SPACING_MM or max(volume.spacing_mm) > MAX_SPACING_MM:
        spacing = " x ".join(f"{s:g}" for s in volume.spacing_mm)
        findings.append(
            Finding(
                "spacing-implausible", f"voxels of {spacing} mm; allowed: {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm"
            )
        )
    if volume.orientation != "LPS":
        findings.append(Finding("reoriented", f"stored as {volume.orientation}"))
    off = float(np.degrees(np.arccos(np.clip(np.abs(volume.direction).max(axis=0).min(), -1, 1))))
    if off > 0.5:
        findings.append(Finding("oblique", f"axes turned by {off:.1f}° against the patient's"))
    return findings
