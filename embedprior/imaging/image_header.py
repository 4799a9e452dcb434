"""Does the header of a NIfTI, NRRD or MetaImage file say which side is left, and does it say so once?

ITK reads a file without orientation as if its axes ran left, posterior, superior, and decides silently between two
orientations that disagree: lungs and heart would come out mirrored without an error.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from embedprior.imaging.findings import Finding
from embedprior.imaging.volume import orientation_code

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
