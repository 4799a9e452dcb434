"""What an exam becomes before a network sees it: a radiograph; slices or windows of a CT volume; the whole volume.

A reader and a network are chosen apart (``frozen.FrozenEncoder``): any 2D network reads radiographs, and slices of a
volume after a preprocessing profile. Both stand in the cache key.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from embedprior.errors import BadInput, nearest
from embedprior.imaging.files import UnreadableExam, is_dicom, source_hash
from embedprior.imaging.findings import Finding, collect_findings, report_findings
from embedprior.imaging.preprocess import load_profile, prepare, profile_record
from embedprior.imaging.radiographs import Geometry, read_image, to_square
from embedprior.imaging.readers import VOLUMES, is_volume, read_volume
from embedprior.imaging.volume import Volume
from embedprior.runs import hash_of, write_file

ReaderName = Literal["radiograph", "slices", "triples", "windows", "volume"]
GREY = "ITU-R 601 luminance, repeated over three channels"
TRANSFORM_VERSION = 1
PICTURE_VERSION = 2
"""Of pictures. 2: compressed MONOCHROME1, modality tables, EXIF, orientation and pixel aspect are read as displayed."""


class Reader(Protocol):
    """Decodes and preprocesses one exam."""

    @property
    def parts(self) -> bool:
        """Whether the first axis of what ``read`` returns counts parts of the exam (slices, windows)."""

    def read(self, root: Path | str, path: str) -> np.ndarray[Any, Any]:
        """Return one exam as an array.

        Raises:
            UnreadableExam: damaged, or an exam of another kind.
        """

    def record(self) -> dict[str, Any]:
        """Return every number of the preprocessing, for the cache key."""


def check_geometry(geometry: str) -> None:
    """Check the name of a geometry.

    Raises:
        BadInput: it is not one.
    """
    allowed = get_args(Geometry)
    if geometry not in allowed:
        raise BadInput(f"unknown geometry '{geometry}'. Allowed: {', '.join(allowed)}.{nearest(geometry, allowed)}")


def read_picture(root: Path | str, path: str) -> Float[np.ndarray, "height width"]:
    """Return one 2D picture as grey values in [0, 1].

    Raises:
        UnreadableExam: a CT volume, not an image, damaged, not 2D, or of one uniform grey.
    """
    root, name = Path(root), Path(path).name
    if is_volume(root, path):
        raise UnreadableExam(
            f"{name}: a CT volume, and this encoder reads pictures. Next: --option reader=slices, where it has one"
        )
    grey = read_image(root, path)
    if grey.ndim != 2:
        raise UnreadableExam(f"{name}: expected one 2D picture, got shape {grey.shape}")
    if grey.min() == grey.max():
        raise UnreadableExam(f"{name}: every pixel has the same value")
    return grey


class RadiographReader:
    """Radiograph, DRR or key slice → (side, side), grey in [0, 1].

    Args:
        side: rows and columns.
        geometry: ``letterbox`` keeps the whole picture and pads with black; ``crop`` keeps the middle.
        resampling: filter of the resize.

    Example:
        >>> RadiographReader(224).record()["side"]
        224
    """

    parts = False

    def __init__(
        self, side: int, geometry: Geometry = "letterbox",
        resampling: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> None:  # fmt: skip
        check_geometry(geometry)
        self._side, self._geometry, self._resampling = side, geometry, resampling

    def read(self, root: Path | str, path: str) -> Float[np.ndarray, "side side"]:
        """Return one picture.

        Raises:
            UnreadableExam: see ``read_picture``.
        """
        return to_square(read_picture(root, path), self._side, self._geometry, self._resampling)

    def record(self) -> dict[str, Any]:
        """Return the numbers of the key."""
        return {
            "transform_version": PICTURE_VERSION, "geometry": self._geometry, "side": self._side,
            "interpolation": f"{self._resampling.name.lower()}, antialiased", "pad": 0.0, "grey": GREY,
        }  # fmt: skip


class KeptVolumes:
    """Preprocessed volumes on disk, named by the profile and the sha256 of their source: each is decoded once.

    A volume of another source or profile has another name; one whose bytes no longer have their sha256 is made again.

    Args:
        folder: of the volumes, made when it is needed.

    Example:
        >>> kept = KeptVolumes("volumes")
        >>> Path("ct.npz").write_bytes(b"any file")
        8
        >>> kept.get({"side": 2}, ".", "ct.npz", lambda: np.zeros((1, 2, 2), np.float32)).shape
        (1, 2, 2)
        >>> kept.get({"side": 2}, ".", "ct.npz", lambda: None).shape  # nothing is read again
        (1, 2, 2)
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def get(
        self, record: Mapping[str, Any], root: Path | str, path: str, make: Callable[[], np.ndarray[Any, Any]]
    ) -> np.ndarray[Any, Any]:
        """Return the volume of one exam: the kept one, or what ``make`` returns, which is then kept.

        Args:
            record: every number of the preprocessing.
            root: folder that the path is relative to.
            path: of the exam.
            make: reads and preprocesses it; what its audit finds is kept too.

        Raises:
            DiskFull: no room for another volume.
        """
        key = hash_of(record)[:16]
        file = self.folder / key / f"{source_hash(root, path)}.safetensors"
        if file.is_file():
            found = _kept(file, key)
            if found is not None:
                return found
            print(f"kept volume {file.name[:12]} is damaged and is made again", file=sys.stderr)
        with collect_findings() as findings:
            array = make()
        report_findings(findings)
        noted = json.dumps([[one.code, one.message] for one in findings])
        metadata = {"key": key, "sha256": _digest(array), "findings": noted}
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, lambda handle: handle.write(save({"volume": np.ascontiguousarray(array)}, metadata)))
        return array


def _kept(file: Path, key: str) -> np.ndarray[Any, Any] | None:
    """Return a kept volume and report what was found in it, or None when it is not what was written."""
    try:
        with safe_open(file, "numpy") as stored:
            metadata, array = stored.metadata(), stored.get_tensor("volume")
    except (OSError, SafetensorError):
        return None
    if metadata.get("key") != key or metadata.get("sha256") != _digest(array):
        return None
    report_findings(Finding(code, message) for code, message in json.loads(metadata["findings"]))
    return np.asarray(array)


def _digest(array: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


class VolumeReader:
    """CT volume (NIfTI, NRRD, MetaImage, .npz, DICOM folder or zip) → an array after a preprocessing profile.

    Args:
        profile: name in ``configs/profile``, or a YAML file.
        mode: ``slices``: (slices, windows, rows, columns), one slice after the other; ``triples``: each slice with its
            neighbours as three channels (2.5-D); ``windows``: (windows, HU windows, length, rows, columns) of
            consecutive slices; ``volume``: (HU windows, slices, rows, columns).
        every: take every n-th slice, or start a window every n slices.
        length: slices of a window.

    Raises:
        BadInput: no such profile, a bad number, or ``triples`` of a profile with several HU windows.
    """

    def __init__(self, profile: str, mode: ReaderName = "slices", every: int = 1, length: int = 24) -> None:
        if mode not in get_args(ReaderName)[1:]:
            raise BadInput(f"reader '{mode}'. Allowed: {', '.join(get_args(ReaderName))}.")
        if every < 1 or length < 1:
            raise BadInput(f"every {every}, length {length}. Allowed: 1 or more.")
        self.profile, self._name = load_profile(profile), profile
        if mode == "triples" and len(self.profile.windows) != 1:
            raise BadInput(
                f"reader 'triples' takes a profile of one HU window; '{profile}' has {', '.join(self.profile.windows)}."
            )
        self._mode, self._every, self._length = mode, every, length
        self.parts = mode != "volume"
        self.kept: KeptVolumes | None = None

    def read(self, root: Path | str, path: str) -> np.ndarray[Any, Any]:
        """Return one volume.

        Raises:
            UnreadableExam: a picture, damaged, or no lungs to crop to.
            UnusableExam: read, but with a finding of severity ``error``.
        """
        ready = prepared(self, profile_record(self.profile), root, path, lambda v: prepare(v, self.profile))
        if self._mode == "volume":
            return np.ascontiguousarray(ready)
        if self._mode == "slices":
            return np.ascontiguousarray(ready.swapaxes(0, 1)[:: self._every])
        if self._mode == "triples":
            edged = np.concatenate([ready[0][:1], ready[0], ready[0][-1:]])
            return np.stack([edged[:-2], edged[1:-1], edged[2:]], axis=1)[:: self._every]
        count = ready.shape[1]
        if count < self._length:
            raise UnreadableExam(f"{Path(path).name}: {count} slices are fewer than one window of {self._length}")
        starts = range(0, count - self._length + 1, self._every)
        return np.stack([ready[:, start : start + self._length] for start in starts])

    def record(self) -> dict[str, Any]:
        """Return the numbers of the key."""
        own: dict[str, Any] = {"transform_version": TRANSFORM_VERSION, "reader": self._mode}
        own |= {"every": self._every} if self.parts else {}
        own |= {"length": self._length} if self._mode == "windows" else {}
        return own | {"profile": profile_record(self.profile)}


def prepared(
    reader: Any, record: Mapping[str, Any], root: Path | str, path: str,
    preprocess: Callable[[Volume], np.ndarray[Any, Any]],
) -> np.ndarray[Any, Any]:  # fmt: skip
    """Return a preprocessed volume: the one that ``reader.kept`` holds, or read from its source.

    Args:
        reader: with the attribute ``kept``; None keeps nothing.
        record: every number of the preprocessing.
        root: folder that the path is relative to.
        path: of the exam.
        preprocess: volume → array.

    Raises:
        UnreadableExam: a picture, or damaged.
        UnusableExam: read, but with a finding of severity ``error``.
    """

    def make() -> np.ndarray[Any, Any]:
        volume, findings = read_volume(volume_path(root, path))
        report_findings(findings)
        return preprocess(volume)

    return make() if reader.kept is None else reader.kept.get(record, root, path, make)


def volume_path(root: Path | str, path: str) -> Path:
    """Return the file or folder of a CT volume.

    Raises:
        UnreadableExam: it is a picture.
    """
    file = Path(root) / path
    if file.is_file() and not file.name.lower().endswith(VOLUMES) and not is_dicom(file):
        raise UnreadableExam(
            f"{file.name}: no CT volume, and this encoder reads volumes. Next: an encoder of radiographs"
        )
    return file
