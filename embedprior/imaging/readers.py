"""Which exams lie under a path, and a CT volume of any supported format read and audited."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydicom

from embedprior.errors import BadInput
from embedprior.imaging.audit import audit_geometry, audit_hu
from embedprior.imaging.dicom_header import quiet_pydicom
from embedprior.imaging.dicom_series import read_series
from embedprior.imaging.files import DICOM_SUFFIXES, UnreadableExam
from embedprior.imaging.findings import Finding, UnusableExam, worst
from embedprior.imaging.image_files import IMAGE_SUFFIXES, read_image_file
from embedprior.imaging.lungs import audit_lungs
from embedprior.imaging.volume import Volume

PICTURES = (".png", ".jpg", ".jpeg")
VOLUMES = (*IMAGE_SUFFIXES, ".npz", ".zip")
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""SOP classes (DICOM PS3.4 B.5) of Enhanced and Legacy Converted Enhanced CT: a whole series in one file."""
SERIES_FROM = 8
"""A folder with at least this many DICOM files is one volume; the files of a smaller one are radiographs."""


def read_volume(path: Path | str, series: str = "only") -> tuple[Volume, list[Finding]]:
    """Read a CT volume and audit it.

    Args:
        path: a DICOM folder or zip, NIfTI (``.nii``, ``.nii.gz``), NRRD, MetaImage (``.mha``, ``.mhd``), or ``.npz``
            with ``hu`` (z, y, x) and ``spacing_mm`` (x, y, z), optionally ``origin_mm`` and ``direction``.
        series: which series of a folder that holds several: ``"only"`` (one, or an error), ``"most-slices"``, or the
            short id that the error message lists.

    Returns:
        The volume as stored (see ``Volume``; ``profiles.prepare`` reorients and resamples), and what the audit found.

    Raises:
        UnreadableExam: damaged, or not a volume.
        UnusableExam: read, but with a finding of severity ``error``; it carries all findings.
        BadInput: an unknown rule or series.

    Source: DICOM PS3.3 C.7.6.2 (image plane) and C.8.2.1 (Hounsfield units).

    Example:
        >>> import embedprior
        >>> import numpy as np
        >>> hu = np.full((40, 64, 64), -1000, np.int16)
        >>> hu[:, 8:56, 4:60] = 40                               # soft tissue in air, and no lungs in it
        >>> np.savez("scan.npz", hu=hu, spacing_mm=(5.0, 5.0, 7.0))
        >>> volume, findings = embedprior.read_volume("scan.npz")
        >>> volume.shape, volume.spacing_mm, volume.orientation
        ((40, 64, 64), (5.0, 5.0, 7.0), 'LPS')
        >>> [finding.code for finding in findings]
        ['no-lungs']
    """
    path = Path(path)
    name = path.name.lower()
    if path.is_dir() or name.endswith((".zip", ".dcm")):
        volume, findings = read_series(path, series)
    elif not path.is_file():
        raise UnreadableExam(f"{path.name}: no such file or folder")
    elif name.endswith((".npz", *IMAGE_SUFFIXES)):
        volume, findings = read_image_file(path)
    else:
        raise UnreadableExam(
            f"{path.name}: not a volume by its name. Allowed: a DICOM folder or .zip, .npz, {', '.join(IMAGE_SUFFIXES)}"
        )
    findings += audit_geometry(volume)
    findings += audit_hu(volume.hu)
    if worst(findings) == "error":
        raise UnusableExam(path.name, findings)
    findings += audit_lungs(volume)
    return volume, findings


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
