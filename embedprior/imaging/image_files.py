"""One volume in one file (NIfTI, NRRD, MetaImage, ``.npz``): read whole, with its place in the patient stated once.

Read by SimpleITK. What SimpleITK passes over in silence is checked here (an orientation that the file lacks or gives
twice) and in ``image_integrity`` (files that are cut short or damaged, values that are no numbers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int16

from embedprior.imaging.audit import audit_grid, to_int16
from embedprior.imaging.files import UnreadableExam, printable, quiet_itk
from embedprior.imaging.findings import Finding, UnusableExam, worst
from embedprior.imaging.image_integrity import (
    DEFLATE_LIMIT,
    audit_nifti_header,
    check_metaimage,
    check_nrrd,
    whole_nifti,
)
from embedprior.imaging.volume import MAX_VOXELS, Triple, Volume, orientation_code

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
FIELDS = (
    "NRRD_space", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "pixdim[1]", "pixdim[2]", "pixdim[3]", "srow_x", "srow_y", "srow_z",
)  # fmt: skip
"""What ``audit_header`` looks at, by SimpleITK's names."""
RAD_CHESTCT, RAD_CHESTCT_SPACING_MM = re.compile(r"(trn|val|tst)\d{5}\.npz"), 0.8
"""Names and spacing of RAD-ChestCT's volumes (Draelos et al., Medical Image Analysis 2021, appendix A.2)."""
TURN_DEG, SCALE_SHARE = 1.0, 0.01
"""Two orientations of a file count as one up to this: headers store 32-bit numbers, and one is made from the other."""


def read_image_file(path: Path | str) -> tuple[Volume, list[Finding]]:
    """Return the volume of a NIfTI, NRRD, MetaImage or ``.npz`` file as it is stored, and what was noted.

    Raises:
        UnreadableExam: damaged, or not one 3D volume.
        UnusableExam: no orientation in the file, or two that disagree.
    """
    path = Path(path)
    return _read_npz(path) if path.name.lower().endswith(".npz") else _read_image(path)


def read_mask(path: Path | str) -> Volume:
    """Return a lung mask from another tool (NIfTI, NRRD, MetaImage or ``.npz``): labels above 0 are lung.

    Raises:
        UnreadableExam: damaged, not one 3D volume of labels from 0 to 255, or of another format.
        UnusableExam: no orientation in the file.
    """
    path = Path(path)
    name = path.name.lower()
    if not path.is_file() or not name.endswith((".npz", *IMAGE_SUFFIXES)):
        raise UnreadableExam(f"{path.name}: no mask file. Allowed: .npz, {', '.join(IMAGE_SUFFIXES)}")
    mask, findings = read_image_file(path)
    low, high = int(mask.hu.min()), int(mask.hu.max())
    if low < 0 or high > 255 or any(f.code != "default-axes" for f in findings):
        raise UnreadableExam(f"{path.name}: a mask holds whole labels from 0 to 255; this file has {low} to {high}")
    return mask


def _read_image(path: Path) -> tuple[Volume, list[Finding]]:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        with whole_nifti(path) as (plain, header):
            if lost := audit_nifti_header(header, plain):
                raise UnusableExam(printable(path.name), lost)
            return _read_by_itk(path, plain, header.handedness)
    noted = check_metaimage(path) if name.endswith((".mha", ".mhd")) else check_nrrd(path)
    if worst(noted) == "error":
        raise UnusableExam(printable(path.name), noted)
    volume, findings = _read_by_itk(path, path)
    return volume, noted + findings


def _read_by_itk(path: Path, plain: Path, handedness: int = 1) -> tuple[Volume, list[Finding]]:
    """Read what ``plain`` holds, in the name of the file ``path`` that it was made from."""
    import SimpleITK as sitk

    name = printable(path.name)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(plain))
    with quiet_itk():
        try:
            reader.ReadImageInformation()
            size, components = reader.GetSize(), reader.GetNumberOfComponents()
            _refuse_size(path, size, components)
            fields = {key: reader.GetMetaData(key) for key in FIELDS if reader.HasMetaDataKey(key)}
            if len(size) == 4:
                reader.SetExtractSize([*size[:3], 0])
            image = reader.Execute()
        except (RuntimeError, MemoryError) as error:
            # ITK's own text holds the folder and header fields, so only its kind is passed on
            if "orthonormal" in str(error):
                message = "the affine is sheared. Next: straighten it first (dcm2niix writes a file ending in _Tilt_1)"
                raise UnusableExam(name, [Finding("gantry-tilt", message)]) from None
            raise UnreadableExam(f"{name}: damaged, or not the format its name says") from None
    spacing, direction = image.GetSpacing(), np.array(image.GetDirection(), dtype=np.float64).reshape(3, 3)
    lost = audit_header(path, fields, handedness) + audit_grid(spacing, direction)
    if lost:
        raise UnusableExam(name, lost)
    hu, findings = to_int16(sitk.GetArrayFromImage(image))
    x, y, z = spacing
    left, back, up = image.GetOrigin()
    return Volume(hu, (x, y, z), (left, back, up), direction), findings


def _refuse_size(path: Path, size: tuple[int, ...], components: int) -> None:
    if components != 1 or len(size) not in (3, 4) or (len(size) == 4 and size[3] != 1):
        shape = " x ".join(map(str, size))
        raise UnreadableExam(f"{path.name}: a {shape} image of {components} components; expected one 3D volume")
    claimed = float(np.prod([float(s) for s in size]))
    inside = path.suffix not in (".mhd", ".nhdr")
    if claimed > MAX_VOXELS or (inside and claimed > path.stat().st_size * DEFLATE_LIMIT):
        raise UnreadableExam(f"{path.name}: the header claims {claimed:.3g} voxels, more than the file can hold")


def _read_npz(path: Path) -> tuple[Volume, list[Finding]]:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            if stored.files == ["ct"] and RAD_CHESTCT.fullmatch(path.name):
                return _rad_chestct(path, stored["ct"])
            missing = [key for key in ("hu", "spacing_mm") if key not in stored.files]
            if missing:
                wanted = "Expected hu (z, y, x) and spacing_mm (x, y, z)"
                keys = ", ".join(sorted(stored.files)[:8])
                raise UnreadableExam(f"{path.name}: no array '{missing[0]}'; it has {keys}. {wanted}")
            values = stored["hu"]
            spacing = _three(stored["spacing_mm"])
            origin = _three(stored["origin_mm"]) if "origin_mm" in stored.files else (0.0, 0.0, 0.0)
            direction = stored["direction"].astype(np.float64) if "direction" in stored.files else np.eye(3)
    except UnreadableExam:
        raise
    # numpy, zipfile and zlib raise their own kinds for a damaged member, down to SyntaxError for its header
    except Exception as error:
        raise UnreadableExam(f"{path.name}: damaged, or not an .npz of numbers ({type(error).__name__})") from None
    _refuse_shape(path, "hu", values)
    if lost := audit_grid(spacing, direction):
        raise UnusableExam(path.name, lost)
    hu, findings = to_int16(values)
    return Volume(hu, spacing, origin, direction), findings


def _rad_chestct(path: Path, values: np.ndarray[Any, Any]) -> tuple[Volume, list[Finding]]:
    """RAD-ChestCT stores HU (z, y, x): apex to base, front to back, the patient's right to left; and no spacing."""
    _refuse_shape(path, "ct", values)
    hu, findings = to_int16(np.ascontiguousarray(values[::-1]))
    spacing = RAD_CHESTCT_SPACING_MM
    said = f"no spacing or axes in the file; those RAD-ChestCT was published with were taken: {spacing} mm, apex first"
    return Volume(hu, (spacing, spacing, spacing), (0.0, 0.0, 0.0)), [*findings, Finding("default-axes", said)]


def _refuse_shape(path: Path, name: str, values: np.ndarray[Any, Any]) -> None:
    if values.ndim != 3 or values.dtype.kind not in "iuf" or 0 in values.shape:
        raise UnreadableExam(f"{path.name}: '{name}' is {values.dtype} {values.shape}; expected numbers (z, y, x)")


def _three(values: np.ndarray[Any, Any]) -> Triple:
    x, y, z = (float(v) for v in np.asarray(values).ravel())
    return x, y, z


def write_npz(volume: Volume, path: Path | str) -> None:
    """Write a volume as ``.npz`` that ``read_volume`` reads back exactly; ids stay out of it."""
    path = Path(path)
    arrays: dict[str, Int16[np.ndarray, "z y x"] | np.ndarray[Any, Any]] = {
        "hu": volume.hu,
        "spacing_mm": np.array(volume.spacing_mm),
        "origin_mm": np.array(volume.origin_mm),
        "direction": volume.direction,
    }
    np.savez(path, allow_pickle=False, **arrays)


def audit_header(path: Path, fields: Mapping[str, str], handedness: int = 1) -> list[Finding]:
    """Return findings about orientation that the file lacks, or gives twice.

    Args:
        path: of the file.
        fields: those of ``FIELDS`` that the header has, as SimpleITK gives them.
        handedness: of a NIfTI's quaternion method: the sign of pixdim[0], which ITK does not pass on.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _audit_nifti(fields, handedness)
    if name.endswith((".nrrd", ".nhdr")) and "NRRD_space" not in fields:
        return [_unknown("the header has no 'space' field")]
    return []


def _audit_nifti(fields: Mapping[str, str], handedness: int) -> list[Finding]:
    known = [code for code in ("qform_code", "sform_code") if code in fields and _is_set(fields[code])]
    if not known:
        return [_unknown("qform_code and sform_code are 0")] if "qform_code" in fields else []
    if len(known) == 1:
        return []
    rotated, listed = _qform(fields, handedness), _sform(fields)
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


def _sform(fields: Mapping[str, str]) -> Float[np.ndarray, "3 3"]:
    """Voxel axes in RAS mm by the matrix (nifti1.h, method 3)."""
    return np.array([[float(v) for v in fields[f"srow_{axis}"].split()[:3]] for axis in "xyz"])


def _unknown(why: str) -> Finding:
    return Finding("no-geometry", f"{why}, so left and right are not known. Next: convert the DICOM again")
