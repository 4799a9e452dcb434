"""Warnings about a radiograph's pixels: inverted, lateral, collimated, or no chest at all. Screening, not diagnosis.

The cues are few and readable: a frontal chest is brighter along the midline than in both lungs, and its halves resemble
each other. Bars were set on one half of 467 real radiographs (by patient) and measured on the other half: the rates are
in docs/imaging.md, and ``tools/bench/ingest.py`` measures them again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from embedprior.imaging.findings import Finding

SIDE = 64
INVERTED_BY = 0.10
LATERAL_MIDLINE, LATERAL_SYMMETRY = 0.17, 0.55
NO_CHEST_MIDLINE = 0.06
BORDER_SHARE = 0.10
ASPECTS = (0.5, 2.0)


@dataclass(frozen=True)
class Cues:
    """What the warnings are made from; all independent of brightness and contrast (grey values are ranked first).

    Attributes:
        midline: how much brighter the midline is than the brighter of the two lungs, in ranks from 0 to 1.
        dark_midline: the same of the negative.
        symmetry: correlation of the detail with its mirror image, best over small shifts.
        border: share of the picture in uniform rows and columns at its edges.
    """

    midline: float
    dark_midline: float
    symmetry: float
    border: float


def cues(grey: Float[np.ndarray, "height width"]) -> Cues:
    """Measure a picture whose values are not all equal."""
    small = Image.fromarray(np.ascontiguousarray(grey, np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, dtype=np.float64)
    midline, dark = _midlines(pixels)
    return Cues(midline, dark, _symmetry(pixels), _border(pixels))


def audit_pixels(grey: Float[np.ndarray, "height width"], view: str) -> list[Finding]:
    """Return warnings about a radiograph, values in [0, 1], bone bright.

    Args:
        grey: the picture.
        view: ``"PA"``, ``"AP"``, ``"LATERAL"`` or empty; a picture declared lateral gets no warning for being one.
    """
    height, width = grey.shape
    if not ASPECTS[0] <= height / width <= ASPECTS[1]:
        return [Finding("not-chest-like", f"{width} x {height} pixels: too long for a chest radiograph")]
    seen = cues(grey)
    findings = []
    if seen.border >= BORDER_SHARE:
        findings.append(Finding("collimated", f"{seen.border:.0%} of the picture is uniform border"))
    if view == "LATERAL":
        return findings
    if max(seen.midline, seen.dark_midline) < NO_CHEST_MIDLINE and seen.symmetry >= LATERAL_SYMMETRY:
        found = Finding("not-chest-like", f"no bright midline between dark lungs (cue {seen.midline:.2f})")
    elif seen.dark_midline - seen.midline >= INVERTED_BY:
        found = Finding("inverted", f"the midline is darker than both lungs (cue {seen.dark_midline:.2f})")
    elif seen.midline < LATERAL_MIDLINE and seen.symmetry < LATERAL_SYMMETRY:
        cue = f"midline {seen.midline:.2f}, symmetry {seen.symmetry:.2f}"
        found = Finding("lateral", f"no bright midline and unlike halves ({cue}): lateral, or no chest")
    else:
        return findings
    return [*findings, found]


def _midlines(pixels: Float[np.ndarray, "64 64"]) -> tuple[float, float]:
    smooth = ndimage.gaussian_filter(pixels, 1.0)
    ranks = smooth.ravel().argsort().argsort().reshape(smooth.shape) / (smooth.size - 1)
    across = np.linspace(-1, 1, SIDE)
    level = ranks[SIDE // 4 : 2 * SIDE // 3].mean(axis=0)
    level = level - np.polyval(np.polyfit(across, level, 1), across)
    bright, dark = [], []
    for centre in np.arange(-0.3, 0.31, 0.05):
        from_centre = across - centre
        middle = level[np.abs(from_centre) < 0.13].mean()
        one = level[(from_centre < -0.25) & (from_centre > -0.65)].mean()
        other = level[(from_centre > 0.25) & (from_centre < 0.65)].mean()
        bright.append(middle - max(one, other))
        dark.append(min(one, other) - middle)
    return float(max(bright)), float(max(dark))


def _symmetry(pixels: Float[np.ndarray, "64 64"]) -> float:
    detail = (ndimage.gaussian_filter(pixels, 1.0) - ndimage.gaussian_filter(pixels, 8.0))[8:56]
    best = -1.0
    for shift in range(-6, 7):
        part = detail[:, 8 + shift : 56 + shift]
        spread = float(part.std())
        if spread > 0:
            centred = (part - part.mean()) / spread
            best = max(best, float((centred * centred[:, ::-1]).mean()))
    return best


def _border(pixels: Float[np.ndarray, "64 64"]) -> float:
    tolerance = 0.02 * float(np.ptp(pixels))

    def uniform(lines: Float[np.ndarray, "64 64"]) -> int:
        spread = np.percentile(lines, 98, axis=1) - np.percentile(lines, 2, axis=1)
        flat = spread <= tolerance
        return SIDE - 1 if flat.all() else int(flat.argmin())

    kept_rows = SIDE - min(SIDE - 1, uniform(pixels) + uniform(pixels[::-1]))
    kept_columns = SIDE - min(SIDE - 1, uniform(pixels.T) + uniform(pixels.T[::-1]))
    return 1 - kept_rows * kept_columns / SIDE**2
