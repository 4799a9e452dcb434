"""Which exams lie under a path, and a CT volume of any supported format read and audited."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int16

from embedprior.errors import BadInput
from embedprior.imaging.audit import FIELDS, audit_header, audit_hu, to_int16
from embedprior.imaging.files import DICOM_SUFFIXES, UnreadableExam, quiet_itk
from embedprior.imaging.findings import Finding, UnusableExam, worst
from embedprior.imaging.volume import Triple, Volume

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
MAX_VOXELS = 2**31
"""4 GiB of int16: more than any chest CT; a damaged header that asks for more is refused before memory is taken."""
DEFLATE_LIMIT = 1032
"""No deflated file grows by more than this (zlib's documentation), so a header that claims more is damaged."""
FINEST_MM, COARSEST_MM = 0.1, 12.0


def read(path: Path, series: str) -> tuple[Volume, list[Finding]]:
    """Return the volume and its findings; see ``volume.read_volume``."""
    name = path.name.lower()
    if path.is_dir() or name.endswith((".zip", ".dcm")):
        from embedprior.imaging.dicom_series import read_series

        volume, findings = read_series(path, series)
    elif not path.is_file():
        raise UnreadableExam(f"{path.name}: no such file or folder")
    elif name.endswith(".npz"):
        volume, findings = _read_npz(path)
    elif name.endswith(IMAGE_SUFFIXES):
        volume, findings = _read_image(path)
    else:
        raise UnreadableExam(
            f"{path.name}: not a volume by its name. Allowed: a DICOM folder or .zip, .npz, {', '.join(IMAGE_SUFFIXES)}"
        )
    findings += audit_geometry(volume)
    findings += audit_hu(volume.hu)
    if worst(findings) == "error":
        raise UnusableExam(path.name, findings)
    from embedprior.imaging.lungs import audit_lungs

    findings += audit_lungs(volume)
    return volume, findings


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
    mask, findings = _read_npz(path) if name.endswith(".npz") else _read_image(path)
    low, high = int(mask.hu.min()), int(mask.hu.max())
    if low < 0 or high > 255 or findings:
        raise UnreadableExam(f"{path.name}: a mask holds whole labels from 0 to 255; this file has {low} to {high}")
    return mask


def audit_geometry(volume: Volume) -> list[Finding]:
    """Return findings about spacing and orientation."""
    findings = []
    if min(volume.spacing_mm) < FINEST_MM or max(volume.spacing_mm) > COARSEST_MM:
        spacing = " x ".join(f"{s:g}" for s in volume.spacing_mm)
        findings.append(
            Finding("spacing-implausible", f"voxels of {spacing} mm; allowed: {FINEST_MM:g} to {COARSEST_MM:g} mm")
        )
    if volume.orientation != "LPS":
        findings.append(Finding("reoriented", f"stored as {volume.orientation}"))
    off = float(np.degrees(np.arccos(np.clip(np.abs(volume.direction).max(axis=0).min(), -1, 1))))
    if off > 0.5:
        findings.append(Finding("oblique", f"axes turned by {off:.1f}° against the patient's"))
    return findings


def _read_image(path: Path) -> tuple[Volume, list[Finding]]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
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
                raise UnusableExam(path.name, [Finding("gantry-tilt", message)]) from None
            raise UnreadableExam(f"{path.name}: damaged, or not the format its name says") from None
    lost = audit_header(path, fields)
    if lost:
        raise UnusableExam(path.name, lost)
    hu, findings = to_int16(sitk.GetArrayFromImage(image))
    x, y, z = image.GetSpacing()
    left, back, up = image.GetOrigin()
    direction = np.array(image.GetDirection(), dtype=np.float64).reshape(3, 3)
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
    if values.ndim != 3 or values.dtype.kind not in "iuf" or 0 in values.shape:
        raise UnreadableExam(f"{path.name}: 'hu' is {values.dtype} {values.shape}; expected numbers (z, y, x)")
    hu, findings = to_int16(values)
    return Volume(hu, spacing, origin, direction), findings


def _three(values: np.ndarray[Any, Any]) -> Triple:
    x, y, z = (float(v) for v in np.asarray(values).ravel())
    return x, y, z


def write_npz(volume: Volume, path: Path) -> None:
    """Write a volume as ``.npz`` that ``read_volume`` reads back exactly; ids stay out of it."""
    arrays: dict[str, Int16[np.ndarray, "z y x"] | np.ndarray[Any, Any]] = {
        "hu": volume.hu,
        "spacing_mm": np.array(volume.spacing_mm),
        "origin_mm": np.array(volume.origin_mm),
        "direction": volume.direction,
    }
    np.savez(path, allow_pickle=False, **arrays)


PICTURES = (".png", ".jpg", ".jpeg")
VOLUMES = (*IMAGE_SUFFIXES, ".npz", ".zip")
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""SOP classes (DICOM PS3.4 B.5) of Enhanced and Legacy Converted Enhanced CT: a whole series in one file."""
SERIES_FROM = 8
"""A folder with at least this many DICOM files is one volume; the files of a smaller one are radiographs."""


@dataclass(frozen=True)
class Found:
    """One exam's source.

    Attributes:
        name: relative to the path that was searched.
        path: file, or folder of one DICOM series (or of several).
        kind: how it is to be read.
    """

    name: str
    path: Path
    kind: Literal["volume", "radiograph"]


def discover(path: Path) -> list[Found]:
    """Return the exams under a file or folder, sorted by name.

    Raises:
        BadInput: the path does not exist, or holds nothing that can be read.
    """
    if not path.exists():
        raise BadInput(f"{path} does not exist.")
    if path.is_file():
        kind = _dicom_kind(path) if path.suffix.lower() in DICOM_SUFFIXES else _kind(path)
        found = [Found(path.name, path, kind)] if kind else []
    else:
        found = _in_folder(path)
    if not found:
        allowed = ", ".join((*VOLUMES, *DICOM_SUFFIXES, *PICTURES))
        raise BadInput(f"{path}: nothing to read. Allowed: a folder of DICOM files, or files named {allowed}.")
    return found


def _in_folder(folder: Path) -> list[Found]:
    found: list[Found] = []
    dicom: dict[Path, list[Path]] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        if kind := _kind(file):
            if file.suffix.lower() in DICOM_SUFFIXES:
                dicom.setdefault(file.parent, []).append(file)
            else:
                found.append(Found(file.relative_to(folder).as_posix(), file, kind))
        elif not file.suffix and _is_dicom(file):
            dicom.setdefault(file.parent, []).append(file)
    for parent, files in dicom.items():
        if len(files) >= SERIES_FROM:
            name = parent.relative_to(folder).as_posix()
            found.append(Found(folder.name if name == "." else name, parent, "volume"))
        else:
            found += [Found(f.relative_to(folder).as_posix(), f, _dicom_kind(f)) for f in files]
    return sorted(found, key=lambda item: item.name)


def _kind(file: Path) -> Literal["volume", "radiograph"] | None:
    name = file.name.lower()
    if name.endswith(VOLUMES):
        return "volume"
    return "radiograph" if name.endswith((*PICTURES, *DICOM_SUFFIXES)) else None


def _dicom_kind(file: Path) -> Literal["volume", "radiograph"]:
    import pydicom

    from embedprior.imaging.dicom_header import quiet_pydicom

    try:
        with quiet_pydicom():
            meta = pydicom.filereader.read_file_meta_info(file)
            return "volume" if str(meta.get("MediaStorageSOPClassUID", "")) in ENHANCED_CT else "radiograph"
    # a damaged file is reported by what reads it
    except Exception:
        return "radiograph"


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as handle:
        return handle.read(132)[128:] == b"DICM"
