"""Stored DICOM values → Hounsfield units, the rescale applied exactly once.

Uncompressed pixels are a view of the file's bytes; compressed ones go through SimpleITK's GDCM (JPEG, JPEG lossless,
JPEG-LS, JPEG 2000, RLE), and what GDCM can't decode through pydicom's plugins, when one is installed.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from jaxtyping import Float, Int16

from embedprior.imaging.audit import HIGHEST, LOWEST, below_air, floor_at_air
from embedprior.imaging.dicom_header import DicomFiles, Header, quiet_pydicom, read_dataset, read_pixels
from embedprior.imaging.files import UnreadableExam, printable, quiet_itk
from embedprior.imaging.findings import Finding
from embedprior.imaging.volume import AIR_HU

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
SURE_PADDING = (-900, 3072)
"""A padding value below or above these HU can be no tissue; between them only what touches the border is padding."""
NEXT = (
    "Next: pip install pylibjpeg pylibjpeg-openjpeg (MIT), or convert the files to an uncompressed syntax "
    "(gdcmconv --raw, dcmdjpeg)"
)


def syntax_name(header: Header) -> str:
    """Return the standard's name of the transfer syntax, or ``"private"``."""
    from pydicom.uid import AllTransferSyntaxes

    return next((str(known.name) for known in AllTransferSyntaxes if known == header.transfer_syntax), "private")


def slice_hu(files: DicomFiles, header: Header) -> tuple[Int16[np.ndarray, "rows columns"], float]:
    """Return one slice in HU, rounded and clipped to int16, and by how many HU rounding changed it at most.

    Raises:
        UnreadableExam: truncated, or a compression that nothing installed can decode.
    """
    if header.transfer_syntax in NATIVE:
        stored = stored_values(files, header)
        slope, intercept = _rescale(header)
        whole = slope == round(slope) and intercept == round(intercept)
        hu = rescaled(stored, slope, intercept)
        return hu, 0.0 if whole else _rounding(stored.astype(np.float64) * slope + intercept)
    values = _decompressed(files, header)
    hu = np.asarray(np.clip(np.rint(values), LOWEST, HIGHEST), dtype=np.int16)
    return hu, _rounding(values) if values.dtype.kind == "f" else 0.0


def _rounding(values: np.ndarray[Any, Any]) -> float:
    return float(np.abs(values - np.rint(values)).max())


def stack_hu(files: DicomFiles, headers: Sequence[Header]) -> tuple[Int16[np.ndarray, "z y x"], list[Finding]]:
    """Return the HU of all slices, padding as air, with one slice in memory besides the volume, and what was noted.

    Raises:
        UnreadableExam: see ``slice_hu``.
    """
    hu = np.empty((len(headers), headers[0].rows, headers[0].columns), np.int16)
    padded = below = 0
    lowest, off = AIR_HU, 0.0
    for plane, header, rounding in zip(hu, headers, _decoded(files, headers, hu), strict=True):
        off = max(off, rounding)
        padded += fill_padding(plane, padding_hu(header))
        # slice by slice, while it is in the processor's cache
        low, count = floor_at_air(plane)
        lowest, below = min(lowest, low), below + count
    findings = [Finding("padding", f"{padded / hu.size:.1%} of the voxels")] if padded else []
    if off:
        findings.append(Finding("fractional-hu", f"by up to {off:.2g} HU"))
    return hu, findings + below_air(lowest, below, hu.size)


def _decoded(files: DicomFiles, headers: Sequence[Header], hu: Int16[np.ndarray, "z y x"]) -> Iterator[float]:
    """Fill in each slice's HU in order, and yield how far rounding went; compressed ones are decoded on several
    threads, a few ahead of the reader.

    GDCM lets other threads run while it decodes. Workers of a run share the machine already, so they use one thread.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(MAX_THREADS, cores) if multiprocessing.parent_process() is None else 1
    if threads == 1 or all(header.transfer_syntax in NATIVE for header in headers):
        for plane, header in zip(hu, headers, strict=True):
            if _read_into(files, header, plane):
                yield 0.0
            else:
                plane[:], rounding = slice_hu(files, header)
                yield rounding
        return
    # the flag is global: set once around all threads, which find it set and leave it so
    with quiet_itk(), ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[tuple[Int16[np.ndarray, "rows columns"], float]]] = deque()
        planes = iter(hu)
        for header in headers:
            waiting.append(pool.submit(slice_hu, files, header))
            if len(waiting) > 2 * threads:
                next(planes)[:], rounding = waiting.popleft().result()
                yield rounding
        while waiting:
            next(planes)[:], rounding = waiting.popleft().result()
            yield rounding


def _read_into(files: DicomFiles, header: Header, plane: Int16[np.ndarray, "rows columns"]) -> bool:
    """Read a slice of plain 16-bit values into its place in the volume, and say whether it is one.

    Plain: uncompressed, little endian, one frame, all bits stored or none set above them, slope 1 and a whole
    intercept, and no value that leaves int16. Of any other slice ``plane`` holds nothing of use afterwards.
    """
    slope, intercept = _rescale(header)
    if (
        NATIVE.get(header.transfer_syntax) != "<" or sys.byteorder != "little" or header.frame is not None
        or header.bits_allocated != 16 or header.high_bit != header.bits_stored - 1 or header.pixels_at < 0
        or slope != 1 or intercept != round(intercept) or abs(intercept) > HIGHEST
    ):  # fmt: skip
        return False
    try:
        with files.open(header.name) as handle:
            if _native_length(handle, header) not in (plane.nbytes, plane.nbytes + 1):
                return False
            if handle.readinto(plane.data.cast("B")) != plane.nbytes:  # type: ignore[attr-defined]
                return False
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False
    low, high = int(plane.min()), int(plane.max())
    lowest, highest = (-(2 ** (header.bits_stored - 1)), 2 ** (header.bits_stored - 1) - 1) if header.signed else (
        0, min(2**header.bits_stored, 2**15) - 1)  # fmt: skip
    if low < lowest or high > highest or not LOWEST <= low + intercept <= high + intercept <= HIGHEST:
        return False
    if intercept:
        plane += np.int16(intercept)
    return True


def fill_padding(plane: Int16[np.ndarray, "rows columns"], declared: tuple[int, int] | None) -> int:
    """Set declared padding to air in place, and return how many pixels changed.

    A padding value that tissue can have too counts only where it touches the border of the slice.
    """
    if declared is None or declared[0] == declared[1] == AIR_HU:
        return 0
    mask = plane == declared[0] if declared[0] == declared[1] else (plane >= declared[0]) & (plane <= declared[1])
    if not mask.any():
        return 0
    if declared[1] > SURE_PADDING[0] and declared[0] < SURE_PADDING[1]:
        from scipy import ndimage

        labels, _ = ndimage.label(mask)
        border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        mask = np.isin(labels, border[border > 0])
    np.copyto(plane, AIR_HU, where=mask)
    return int(np.count_nonzero(mask))


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
    whole = _pixel_data(files, header)
    if header.frame is None:
        return whole
    size = header.rows * header.columns * (header.bits_allocated // 8)
    return memoryview(whole)[header.frame * size : (header.frame + 1) * size]


def _pixel_data(files: DicomFiles, header: Header) -> bytes:
    if files.last_pixels[0] == header.name:
        return files.last_pixels[1]
    try:
        with files.open(header.name) as handle, quiet_pydicom():
            data = _native_data(handle, header)
            if data is None:
                handle.seek(0)
                data = bytes(read_pixels(handle))
    # as in read_headers: whatever a damaged file leads to
    except Exception as error:
        raise UnreadableExam(f"{_file(header)}: pixels can't be read ({type(error).__name__})") from None
    if header.frame is not None:
        files.last_pixels = (header.name, data)
    return data


def _native_data(handle: IO[bytes], header: Header) -> bytes | None:
    """PixelData of an uncompressed file from the place where its header ended; None where it does not lie there."""
    length = _native_length(handle, header)
    return None if length is None else handle.read(length)


def _native_length(handle: IO[bytes], header: Header) -> int | None:
    """Bytes of an uncompressed file's PixelData, which the handle is left at; None where it is not known where."""
    if header.pixels_at < 0 or header.transfer_syntax not in NATIVE:
        return None
    handle.seek(header.pixels_at)
    head = handle.read(12)
    order: Literal["little", "big"] = "big" if NATIVE[header.transfer_syntax] == ">" else "little"
    group, element = (int.from_bytes(head[i : i + 2], order) for i in (0, 2))
    if (group, element) != PIXEL_DATA:
        return None
    explicit = head[4:6] in (b"OW", b"OB")
    length = int.from_bytes(head[8:12] if explicit else head[4:8], order)
    if length == 2**32 - 1:
        return None
    handle.seek(header.pixels_at + (12 if explicit else 8))
    return length


def stored_values(files: DicomFiles, header: Header) -> np.ndarray[Any, Any]:
    """Return the stored integers of an uncompressed one-sample image or frame, (rows, columns).

    Unused high bits, where old scanners kept overlays, are cleared; the sign is kept.

    Raises:
        UnreadableExam: fewer or more bytes than the header says, or bits of another layout.
    """
    if header.bits_allocated not in (8, 16) or not 1 <= header.bits_stored <= header.bits_allocated:
        raise UnreadableExam(f"{_file(header)}: {header.bits_stored} of {header.bits_allocated} bits stored")
    raw = pixel_bytes(files, header)
    kind = np.dtype(f"{NATIVE[header.transfer_syntax]}{'i' if header.signed else 'u'}{header.bits_allocated // 8}")
    count = header.rows * header.columns
    # one byte more makes an odd length even (DICOM PS3.5 8.1.1)
    if not count * kind.itemsize <= len(raw) <= count * kind.itemsize + 1:
        raise UnreadableExam(f"{_file(header)}: {len(raw)} bytes of pixels, expected {count * kind.itemsize}")
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


def _file(header: Header) -> str:
    return printable(Path(header.name).name)


def _rescale(header: Header) -> tuple[float, float]:
    slope, intercept = header.slope, header.intercept
    return 1.0 if slope is None else slope, 0.0 if intercept is None else intercept


MAX_THREADS = 8
PIXEL_DATA = (0x7FE0, 0x0010)
MONOCHROME1, MONOCHROME2 = b"MONOCHROME1", b"MONOCHROME2"
PHOTOMETRIC = b"\x28\x00\x04\x00CS\x0c\x00"
"""The element PhotometricInterpretation of twelve bytes, as compressed (explicit, little endian) files write it."""


def _decompressed(files: DicomFiles, header: Header) -> np.ndarray[Any, Any]:
    """Values after slope and intercept, (rows, columns), in whatever type the decoder gives.

    GDCM turns MONOCHROME1 over as it decodes, before the rescale and over the range of BitsStored. Here the stored
    values are asked for, as an uncompressed file has them: it is given a copy that calls itself MONOCHROME2.
    """
    import SimpleITK as sitk

    path = files.on_disk(header.name)
    inverse = header.photometric == "MONOCHROME1"
    folder: AbstractContextManager[str] = nullcontext("") if path and not inverse else tempfile.TemporaryDirectory()
    with folder as temporary:
        if path is None or inverse:
            path = Path(temporary) / "slice.dcm"
            with files.open(header.name) as handle:
                content = handle.read()
            path.write_bytes(content.replace(PHOTOMETRIC + MONOCHROME1, PHOTOMETRIC + MONOCHROME2))
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
        f"{_file(header)}: compressed as '{syntax_name(header)}'; damaged, or no decoder for it here. {NEXT}"
    )
