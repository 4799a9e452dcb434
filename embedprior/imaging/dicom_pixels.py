"""Stored DICOM values → Hounsfield units, the rescale applied exactly once.

Uncompressed pixels are a view of the file's bytes; compressed ones go through SimpleITK's GDCM (JPEG, JPEG lossless,
JPEG-LS, JPEG 2000, RLE), and what GDCM can't decode through pydicom's plugins, when one is installed.
"""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int16

from embedprior.imaging.audit import HIGHEST, LOWEST
from embedprior.imaging.dicom_header import DicomFiles, Header, quiet_pydicom, read_dataset, read_pixels
from embedprior.imaging.files import UnreadableExam, quiet_itk

NATIVE = {
    "1.2.840.10008.1.2": "<",
    "1.2.840.10008.1.2.1": "<",
    "1.2.840.10008.1.2.1.99": "<",
    "1.2.840.10008.1.2.2": ">",
}
"""Uncompressed transfer syntaxes and their byte order (DICOM PS3.5 annex A); .99 is deflated as a whole."""
LOSSY = {
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.203",
}
"""Syntaxes that may have lost detail: JPEG baseline and extended, near-lossless JPEG-LS, JPEG 2000, HTJ2K."""
NEXT = (
    "Next: pip install pylibjpeg pylibjpeg-openjpeg (MIT), or convert the files to an uncompressed syntax "
    "(gdcmconv --raw, dcmdjpeg)"
)


def syntax_name(header: Header) -> str:
    """Return the standard's name of the transfer syntax, or ``"private"``."""
    from pydicom.uid import AllTransferSyntaxes

    return next((str(known.name) for known in AllTransferSyntaxes if known == header.transfer_syntax), "private")


def slice_hu(files: DicomFiles, header: Header) -> Int16[np.ndarray, "rows columns"]:
    """Return one slice in HU, rounded and clipped to int16.

    Raises:
        UnreadableExam: truncated, or a compression that nothing installed can decode.
    """
    if header.transfer_syntax in NATIVE:
        return rescaled(stored_values(files, header), header.slope, header.intercept)
    return np.asarray(np.clip(np.rint(_decompressed(files, header)), LOWEST, HIGHEST), dtype=np.int16)


def modality_values(files: DicomFiles, header: Header) -> Float[np.ndarray, "rows columns"]:
    """Return one image after slope and intercept as float32, neither rounded nor clipped; raises as ``slice_hu``."""
    if header.transfer_syntax not in NATIVE:
        return np.asarray(_decompressed(files, header), dtype=np.float32)
    slope, intercept = _rescale(header)
    return np.asarray(stored_values(files, header) * np.float64(slope) + intercept, dtype=np.float32)


def pixel_bytes(files: DicomFiles, header: Header) -> bytes | memoryview:
    """Return the raw PixelData of one image, or of one frame of an enhanced CT.

    Raises:
        UnreadableExam: there is none, or it can't be read.
    """
    whole = _pixel_data(files, header.name)
    if header.frame is None:
        return whole
    size = header.rows * header.columns * (header.bits_allocated // 8)
    return memoryview(whole)[header.frame * size : (header.frame + 1) * size]


def _pixel_data(files: DicomFiles, name: str) -> bytes:
    if files.last_pixels[0] == name:
        return files.last_pixels[1]
    try:
        with files.open(name) as handle, quiet_pydicom():
            data = bytes(read_pixels(handle))
            files.last_pixels = (name, data)
            return data
    # as in read_headers: whatever a damaged file leads to
    except Exception as error:
        raise UnreadableExam(f"{Path(name).name}: pixels can't be read ({type(error).__name__})") from None


def stored_values(files: DicomFiles, header: Header) -> np.ndarray[Any, Any]:
    """Return the stored integers of an uncompressed one-sample image or frame, (rows, columns).

    Unused high bits, where old scanners kept overlays, are cleared; the sign is kept.

    Raises:
        UnreadableExam: fewer bytes than the header says, or bits of another layout.
    """
    if header.bits_allocated not in (8, 16) or not 1 <= header.bits_stored <= header.bits_allocated:
        raise UnreadableExam(f"{Path(header.name).name}: {header.bits_stored} of {header.bits_allocated} bits stored")
    raw = pixel_bytes(files, header)
    kind = np.dtype(f"{NATIVE[header.transfer_syntax]}{'i' if header.signed else 'u'}{header.bits_allocated // 8}")
    count = header.rows * header.columns
    if len(raw) < count * kind.itemsize:
        raise UnreadableExam(f"{Path(header.name).name}: {len(raw)} bytes of pixels, expected {count * kind.itemsize}")
    values = np.frombuffer(raw, kind, count).reshape(header.rows, header.columns)
    above = header.bits_allocated - 1 - header.high_bit
    unused = header.bits_allocated - header.bits_stored
    if unused and 0 <= above <= unused:
        native = kind.newbyteorder("=")
        values = (values.astype(native) << native.type(above)) >> native.type(unused)
    return values


def rescaled(
    stored: np.ndarray[Any, Any], slope: float | None, intercept: float | None
) -> Int16[np.ndarray, "rows columns"]:
    """Return stored · slope + intercept (1 and 0 where absent), rounded and clipped to int16."""
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if slope == 1 and intercept == round(intercept) and abs(intercept) < 2**30:
        low, high = int(stored.min()) + intercept, int(stored.max()) + intercept
        if stored.dtype == np.int16 and low >= LOWEST and high <= HIGHEST:
            return np.asarray(stored + np.int16(intercept))
        whole = stored.astype(np.int32) + np.int32(intercept)
        return np.clip(whole, LOWEST, HIGHEST, out=whole).astype(np.int16)
    return np.clip(np.rint(stored.astype(np.float64) * slope + intercept), LOWEST, HIGHEST).astype(np.int16)


def padding_hu(header: Header) -> tuple[int, int] | None:
    """Return the lowest and highest HU that the header declares to be padding, or None."""
    if header.padding is None:
        return None
    ends = rescaled(np.array(header.padding), header.slope, header.intercept)
    return int(ends.min()), int(ends.max())


def _rescale(header: Header) -> tuple[float, float]:
    slope, intercept = header.slope, header.intercept
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


def _decompressed(files: DicomFiles, header: Header) -> np.ndarray[Any, Any]:
    """Values after slope and intercept, (rows, columns), in whatever type the decoder gives."""
    import SimpleITK as sitk

    path = files.on_disk(header.name)
    folder: AbstractContextManager[str] = nullcontext("") if path else tempfile.TemporaryDirectory()
    with folder as temporary:
        if path is None:
            path = Path(temporary) / "slice.dcm"
            with files.open(header.name) as handle:
                path.write_bytes(handle.read())
        try:
            with quiet_itk():
                # GDCM applies slope and intercept itself; reading the stored values again would rescale twice
                image = sitk.ReadImage(str(path), imageIO="GDCMImageIO")
                decoded: np.ndarray[Any, Any] = sitk.GetArrayFromImage(image).reshape(header.rows, header.columns)
            return decoded
        except (RuntimeError, ValueError, MemoryError):
            return _by_plugin(path, header)


def _by_plugin(path: Path, header: Header) -> np.ndarray[Any, Any]:
    try:
        with path.open("rb") as handle, quiet_pydicom():
            stored = read_dataset(handle, pixels=True).pixel_array
        if stored.shape == (header.rows, header.columns):
            slope, intercept = _rescale(header)
            scaled: np.ndarray[Any, Any] = stored * np.float64(slope) + intercept
            return scaled
    # as in read_headers: whatever a damaged file, or a plugin, leads to
    except Exception:
        pass
    raise UnreadableExam(
        f"{Path(header.name).name}: compressed as '{syntax_name(header)}'; damaged, or no decoder for it here. {NEXT}"
    )
