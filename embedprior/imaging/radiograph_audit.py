"""Screening of a radiograph's pixels: inverted, lateral, collimated, or no chest at all.

Warnings are a reason to look, no diagnosis; how often each is right and wrong is in docs/imaging.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from embedprior.imaging.findings import Finding

SIDE = 64
INVERTED_MIDLINE, INVERTED_LUNGS = 0.02, 0.05
"""Both must hold: alone, either is fooled by one white lung or by a bright frame."""
LATERAL_MIDLINE, LATERAL_SYMMETRY = 0.17, 0.55
NO_CHEST_MIDLINE = 0.06
BORDER_SHARE = 0.10
EDGE = 4
ASPECTS = (0.5, 2.0)


@dataclass(frozen=True)
class Cues:
    """What the warnings are made from; all independent of brightness and contrast (grey values are ranked first).

    Attributes:
        midline: how much brighter the midline is than the brighter of the two lungs, in ranks from 0 to 1.
        dark_midline: the same of the negative.
        lungs: correlation with a drawing of two dark lungs, best over their places and sizes.
        dark_lungs: the same of the negative.
        symmetry: correlation of the detail with its mirror image, best over small shifts.
        border: share of the picture in uniform rows and columns at its edges.
    """

    midline: float
    dark_midline: float
    lungs: float
    dark_lungs: float
    symmetry: float
    border: float


def cues(grey: Float[np.ndarray, "height width"]) -> Cues:
    """Measure a picture whose values are not all equal."""
    small = Image.fromarray(np.ascontiguousarray(grey, np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, dtype=np.float64)
    smooth = ndimage.gaussian_filter(pixels, 1.0)
    ranks = smooth.ravel().argsort().argsort().reshape(smooth.shape) / (smooth.size - 1)
    return Cues(*_midlines(ranks), *_likeness(ranks), _symmetry(pixels), _border(pixels))


def audit_radiograph(grey: Float[np.ndarray, "height width"], view: str) -> list[Finding]:
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
    elif seen.dark_midline - seen.midline >= INVERTED_MIDLINE and seen.dark_lungs - seen.lungs >= INVERTED_LUNGS:
        cue = f"midline {seen.dark_midline:.2f}, lungs {seen.dark_lungs:.2f}"
        found = Finding("inverted", f"the midline is darker than both lungs, which look bright ({cue})")
    elif seen.midline < LATERAL_MIDLINE and seen.symmetry < LATERAL_SYMMETRY:
        cue = f"midline {seen.midline:.2f}, symmetry {seen.symmetry:.2f}"
        found = Finding("lateral", f"no bright midline and unlike halves ({cue}): lateral, or no chest")
    else:
        return findings
    return [*findings, found]


def _midlines(ranks: Float[np.ndarray, "64 64"]) -> tuple[float, float]:
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


def _likeness(ranks: Float[np.ndarray, "64 64"]) -> tuple[float, float]:
    inner = ranks[EDGE:-EDGE, EDGE:-EDGE].ravel()
    inner = inner - inner.mean()
    found = _drawn_lungs() @ (inner / np.linalg.norm(inner))
    return float(found.max()), float(-found.min())


@lru_cache(maxsize=1)
def _drawn_lungs() -> Float[np.ndarray, "drawings pixels"]:
    """Two dark lungs with soft edges, side by side at many places and in several sizes; each of mean 0 and length 1."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1)
    drawings = []
    for across, down, (apart, width), height in product(
        (0.40, 0.45, 0.50, 0.55, 0.60), (0.35, 0.42, 0.50), ((0.18, 0.12), (0.21, 0.14), (0.25, 0.16)), (0.25, 0.33)
    ):
        drawing = np.zeros((SIDE, SIDE))
        for side in (-1, 1):
            drawing -= np.exp(-((((x - across - side * apart) / width) ** 2 + ((y - down) / height) ** 2) ** 2))
        drawings.append(drawing[EDGE:-EDGE, EDGE:-EDGE].ravel())
    stacked = np.array(drawings)
    stacked -= stacked.mean(axis=1, keepdims=True)
    return np.asarray(stacked / np.linalg.norm(stacked, axis=1, keepdims=True))


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
