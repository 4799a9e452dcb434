"""Display transforms of DICOM radiographs: windows and lookup tables (DICOM PS3.3 C.11), and whether one is usable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from embedprior.imaging.findings import Finding

DARK = 0.2
"""Values that use less of the range than this share look black."""
MIN_VISIBLE = 0.1
OUTLIERS = (0.1, 99.9)
"""Percentiles taken for the ends of the range where a few pixels far off would darken all others."""


@dataclass(frozen=True, eq=False)
class Voi:
    """A display transform: a window, or a table of output values from ``first`` on (DICOM PS3.3 C.11.2)."""

    centre: float = 0.0
    width: float = 1.0
    function: str = "LINEAR"
    table: np.ndarray[Any, Any] | None = None
    first: int = 0
    bits: int = 16

    def looked_up(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the table's entry of each value; below and above the table the first and last."""
        assert self.table is not None
        index = np.clip(np.rint(values).astype(np.int64) - self.first, 0, self.table.size - 1)
        return np.asarray(self.table[index])


def apply_voi(
    values: Float[np.ndarray, "height width"], voi: Voi | None, ignored: np.ndarray[Any, Any] | None = None
) -> Float[np.ndarray, "height width"]:
    """Return display values in [0, 1] (float32) by the display transform, or over the range of the pixels.

    Formulas: DICOM PS3.3 C.11.2.1.2 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT), C.11.1.1 (tables).
    ``ignored`` marks padding, which is left out of that range and becomes 0.
    """
    if voi is not None and voi.table is not None:
        # entries may use fewer bits than the table declares
        white = 2 ** min(voi.bits, int(voi.table.max()).bit_length()) - 1
        grey = voi.looked_up(values).astype(np.float32) / max(white, 1)
    elif voi is not None and voi.function == "SIGMOID":
        grey = 1 / (1 + np.exp(-4 * (values - voi.centre) / voi.width))
    elif voi is not None:
        # LINEAR counts the end points as pixels, LINEAR_EXACT does not
        exact = voi.function == "LINEAR_EXACT"
        centre, width = (voi.centre, voi.width) if exact else (voi.centre - 0.5, voi.width - 1)
        grey = (values - centre) / max(width, 1e-6) + 0.5
    else:
        kept = values if ignored is None or ignored.all() else values[~ignored]
        low, high = float(kept.min()), float(kept.max())
        grey = (values - low) / max(high - low, 1e-6)
    shown = np.asarray(np.clip(grey, 0.0, 1.0), dtype=np.float32)
    if ignored is not None:
        shown[ignored] = 0.0
    return shown


def read_voi(data: Any) -> Voi | None:
    """Return the VOI table or window of a pydicom dataset, None where it has none that means anything."""
    table = read_table(data.get("VOILUTSequence"), data)
    if table is not None:
        return table
    centre, width = (data.get(name) for name in ("WindowCenter", "WindowWidth"))
    if centre in (None, "") or width in (None, ""):
        return None
    one, other = (float(v if isinstance(v, (int, float, str)) else v[0]) for v in (centre, width))
    if not np.isfinite(one) or not other > 0:
        return None
    return Voi(one, other, str(data.get("VOILUTFunction", "LINEAR")).upper())


def read_table(tables: Any, data: Any) -> Voi | None:
    """Return the first lookup table of a sequence of VOI or modality tables."""
    if not tables:
        return None
    entries, first, bits = (int(v) & 0xFFFF for v in tables[0].LUTDescriptor)
    raw = tables[0].LUTData
    # entries of 8 bits may lie one or two to a word
    packed = isinstance(raw, bytes) and len(raw) < 2 * (entries or 0x10000)
    table = np.frombuffer(raw, "u1" if packed else "<u2") if isinstance(raw, bytes) else np.asarray(list(raw))
    if data.get("PixelRepresentation", 0) == 1 and first > 0x7FFF:
        first -= 0x10000
    return Voi(table=table[: entries or 0x10000].astype(np.int64) & 0xFFFF, first=first, bits=min(16, max(1, bits)))


def usable_voi(
    voi: Voi | None, values: Float[np.ndarray, "height width"], ignored: np.ndarray[Any, Any] | None
) -> tuple[Voi | None, list[Finding]]:
    """Return the transform to use: the stated one unless it shows next to nothing, else the range of the pixels.

    Args:
        voi: as the header states it.
        values: after the modality's rescale or table.
        ignored: padding, left out of the range.
    """
    kept = values if ignored is None or ignored.all() else values[~ignored]
    if voi is not None:
        shown = apply_voi(kept, voi)
        visible = float(((shown > 0) & (shown < 1)).mean())
        if voi.table is not None or visible >= MIN_VISIBLE or float(np.ptp(kept)) == 0:
            return voi, []
        message = f"{visible:.0%} of the pixels lie inside the window, so the range of the pixels was used"
        return None, [Finding("unusual-window", message)]
    findings = [Finding("no-voi", "the range of the pixels was used")]
    low, high = float(kept.min()), float(kept.max())
    near, far = (float(v) for v in np.percentile(kept, OUTLIERS))
    if far - near < DARK * (high - low) and far > near:
        slack = far - near
        inner = kept[(kept >= near - slack) & (kept <= far + slack)]
        near, far = float(inner.min()), float(inner.max())
        message = f"nearly all values lie between {near:g} and {far:g}, a few as far off as {low:g} and {high:g}"
        return Voi((near + far) / 2, far - near, "LINEAR_EXACT"), [*findings, Finding("stretched", message)]
    return None, findings
