"""Audit of a volume's numbers and header: are they Hounsfield units, and is it said once which side is left?"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int16

from embedprior.imaging.findings import Finding
from embedprior.imaging.volume import AIR_HU, orientation_code

LOWEST, HIGHEST = -32768, 32767
SAMPLES = 2_000_000
LUNG_OR_AIR = (-1020, -300)
SOFT_TISSUE = (-200, 250)
LEAST_SHARE = 0.005
LEAST_TISSUE = 0.03
METAL_HU = 4000
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
        values = np.clip(values, LOWEST, HIGHEST).astype(np.int16)
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
    count = int(np.count_nonzero(hu < AIR_HU))
    np.maximum(hu, AIR_HU, out=hu)
    return lowest, count


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
    air = _share(sample, *LUNG_OR_AIR)
    tissue = _share(sample, *SOFT_TISSUE)
    top = float(np.percentile(sample, 99.9))
    air_text = f"{seen}, {air:.1%} of them lung or air ({LUNG_OR_AIR[0]} to {LUNG_OR_AIR[1]} HU)"
    if air < LEAST_SHARE:
        return [Finding("hu-range", f"{air_text}: not a chest CT in HU; perhaps the rescale was never applied")]
    if tissue < LEAST_TISSUE:
        tissue_text = f"{seen}, {tissue:.1%} of them soft tissue ({SOFT_TISSUE[0]} to {SOFT_TISSUE[1]} HU)"
        return [Finding("hu-range", f"{tissue_text}: not a chest CT in HU; perhaps the rescale was applied twice")]
    if top >= METAL_HU:
        return [Finding("hu-range", f"{seen}; one voxel in a thousand is above {METAL_HU} HU: wrong scale")]
    return _audit_air(sample)


def _audit_air(sample: Int16[np.ndarray, " n"]) -> list[Finding]:
    gas = sample[(sample > AIR_HU) & (sample < -850)]
    if gas.size < 100:
        return []
    typical = int(np.bincount(gas.astype(np.int64) - AIR_HU).argmax()) + AIR_HU
    if typical > -930 and float((sample == AIR_HU).mean()) < 0.01:
        return [Finding("hu-offset", f"the most frequent value of air is {typical} HU, expected about -1000")]
    return []


def _share(sample: Int16[np.ndarray, " n"], low: int, high: int) -> float:
    return float(((sample >= low) & (sample <= high)).mean())


FIELDS = (
    "NRRD_space", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "pixdim[1]", "pixdim[2]", "pixdim[3]", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
"""What ``audit_header`` looks at, by SimpleITK's names."""
META_MATRIX = ("TransformMatrix", "Orientation", "Rotation")
META_HEADER_BYTES = 8192
PIXDIM = {348: ("f4", 76), 540: ("f8", 104)}
"""Size of a NIfTI-1 and a NIfTI-2 header → type and place of pixdim in it."""
TURN_DEG, SCALE_SHARE = 1.0, 0.01
"""Two orientations of a file count as one up to this: headers store 32-bit numbers, and one is made from the other."""


def audit_header(path: Path, fields: Mapping[str, str]) -> list[Finding]:
    """Return findings about orientation that the file lacks, or gives twice.

    Args:
        path: of the file.
        fields: those of ``FIELDS`` that the header has, as SimpleITK gives them.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _audit_nifti(path, fields)
    if name.endswith((".nrrd", ".nhdr")):
        if "NRRD_space" not in fields:
            return [_unknown("the header has no 'space' field")]
    elif name.endswith((".mha", ".mhd")):
        with path.open("rb") as handle:
            lines = handle.read(META_HEADER_BYTES).split(b"ElementDataFile")[0].decode("latin-1").splitlines()
        if not {line.split("=")[0].strip() for line in lines} & set(META_MATRIX):
            return [_unknown("the header has no TransformMatrix")]
    return []


def _audit_nifti(path: Path, fields: Mapping[str, str]) -> list[Finding]:
    known = [code for code in ("qform_code", "sform_code") if code in fields and _is_set(fields[code])]
    if not known:
        return [_unknown("qform_code and sform_code are 0")] if "qform_code" in fields else []
    if len(known) == 1:
        return []
    rotated, listed = _qform(fields, _handedness(path)), _sform(fields)
    lengths = np.linalg.norm(rotated, axis=0), np.linalg.norm(listed, axis=0)
    if not all(np.isfinite(length).all() and length.all() for length in lengths):
        return []
    cosines = ((rotated / lengths[0]) * (listed / lengths[1])).sum(axis=0)
    turned = float(np.degrees(np.arccos(np.clip(cosines.min(), -1, 1))))
    scaled = float(np.abs(lengths[0] / lengths[1] - 1).max())
    if turned <= TURN_DEG and scaled <= SCALE_SHARE:
        return []
    to_lps = np.diag([-1.0, -1.0, 1.0])
    codes = [orientation_code(to_lps @ matrix) for matrix in (rotated, listed)]
    return [
        Finding(
            "two-geometries",
            f"qform says {codes[0]}, sform {codes[1]} ({turned:.0f}° apart, voxel sizes by {scaled:.0%}); programs "
            "differ in which they read. Next: convert the DICOM again, or set the code of the wrong one to 0",
        )
    ]


def _is_set(code: str) -> bool:
    return code.strip() not in ("0", "") and not code.startswith("NIFTI_XFORM_UNK")


def _qform(fields: Mapping[str, str], handedness: int) -> Float[np.ndarray, "3 3"]:
    """Voxel axes in RAS mm by the quaternion (nifti1.h, method 2)."""
    b, c, d = (float(fields[f"quatern_{letter}"]) for letter in "bcd")
    a = np.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    sizes = np.array([float(fields[f"pixdim[{axis}]"]) for axis in (1, 2, 3)])
    return np.asarray(turn * sizes * np.array([1, 1, handedness]))


def _handedness(path: Path) -> int:
    """The sign that the third axis takes in the quaternion method: pixdim[0], which ITK does not pass on."""
    with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as handle:
        head = handle.read(112)
    for order in "<>":
        size = int(np.frombuffer(head, f"{order}i4", 1)[0])
        if size in PIXDIM:
            kind, offset = PIXDIM[size]
            return -1 if np.frombuffer(head, order + kind, 1, offset)[0] < 0 else 1
    return 1


def _sform(fields: Mapping[str, str]) -> Float[np.ndarray, "3 3"]:
    """Voxel axes in RAS mm by the matrix (nifti1.h, method 3)."""
    return np.array([[float(v) for v in fields[f"srow_{axis}"].split()[:3]] for axis in "xyz"])


def _unknown(why: str) -> Finding:
    return Finding("no-geometry", f"{why}, so left and right are not known. Next: convert the DICOM again")
