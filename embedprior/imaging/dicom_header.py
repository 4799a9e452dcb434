"""The few header fields of a DICOM image that matter here, read without letting anything else through."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any

from embedprior.imaging.dicom_elements import as_dataset, plain_elements, tag_of
from embedprior.imaging.files import (
    DICOM_SUFFIXES,
    UnreadableExam,
    dicom_mark,
    files_below,
    is_hidden,
    printable,
    refuse_bomb,
)

MAX_FILE_BYTES = 2**31
HEAD_BYTES = 2**15
"""Read of a file at first: the whole header of most slices."""
MODALITIES = (
    "CR", "CT", "DX", "ECG", "ES", "IO", "IVUS", "KO", "MG", "MR", "NM", "OT", "PR", "PT", "REG", "RF", "RTDOSE",
    "RTIMAGE", "RTPLAN", "RTSTRUCT", "SC", "SEG", "SM", "SR", "US", "XA", "XC",
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """One DICOM image. Ids serve joining only; nothing here is printed but numbers and known codes.

    Attributes:
        name: of the file within its folder or zip.
        orientation: the six cosines of ImageOrientationPatient, or None.
        position: ImagePositionPatient in mm, or None.
        spacing_yx: PixelSpacing (between rows, between columns) in mm, or None.
        slope, intercept: rescale to HU, or None where the header has none.
        padding: lowest and highest stored value of PixelPaddingValue and PixelPaddingRangeLimit, or None.
        instance_uid, study_uid, sop_class: of the image; empty where the header has none.
        kernel: ConvolutionKernel where it is a short code such as ``B30f``, else empty.
        pixels_at: byte of the file at which PixelData begins, or −1.
        frame: which frame of an enhanced (multi-frame) CT this is, from 0; None for a file that is one image.
    """

    name: str
    series_uid: str
    patient_id: str
    modality: str
    localizer: bool
    rows: int
    columns: int
    frames: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    spacing_yx: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    padding: tuple[int, int] | None
    transfer_syntax: str
    instance_uid: str = ""
    study_uid: str = ""
    sop_class: str = ""
    kernel: str = ""
    pixels_at: int = -1
    frame: int | None = None

    @property
    def series(self) -> str:
        """Eight characters that stand for the series: UIDs name the hospital, so they are not shown."""
        return short_id(self.series_uid)


def short_id(uid: str) -> str:
    """Return the first eight hexadecimal digits of the sha256 of an identifier."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


class DicomFiles:
    """The files of a folder, of a zip, or one file; opened one at a time.

    Args:
        path: folder, zip or file.
        nested: of a folder: its subfolders too.

    ``last_pixels`` keeps the name and PixelData of the file read last, which may hold hundreds of frames; ``headers``
    what ``read_headers`` found in each file, ``values`` what it made of each element's bytes.

    Raises:
        UnreadableExam: not a zip, or an encrypted or damaged one.
    """

    def __init__(self, path: Path, nested: bool = True) -> None:
        self._path = path
        self.last_pixels: tuple[str, bytes] = ("", b"")
        self.headers: dict[str, list[Header]] = {}
        self.values: dict[tuple[Any, ...], Any] = {}
        self._zip: zipfile.ZipFile | None = None
        if path.is_dir():
            self.names = sorted(p.relative_to(path).as_posix() for p in files_below(path, nested))
        elif path.name.lower().endswith(".zip"):
            try:
                self._zip = zipfile.ZipFile(path)
                members = [m for m in self._zip.infolist() if not m.is_dir()]
            except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
                raise UnreadableExam(f"{path.name}: not a zip, or damaged") from None
            if any(m.flag_bits & 1 for m in members):
                raise UnreadableExam(f"{path.name}: the zip has a password. Next: unpack it to a folder")
            if any(m.file_size > MAX_FILE_BYTES for m in members):
                raise UnreadableExam(f"{path.name}: a file in the zip is larger than {MAX_FILE_BYTES / 2**30:.0f} GiB")
            self.names = sorted(m.filename for m in members if not any(map(is_hidden, Path(m.filename).parts)))
        else:
            self.names = [path.name]

    def open(self, name: str) -> IO[bytes]:
        """Open one file for reading."""
        if self._zip is not None:
            return self._zip.open(name)
        return (self._path / name if self._path.is_dir() else self._path).open("rb")

    def on_disk(self, name: str) -> Path | None:
        """Return the path of a file that lies in a folder, None for a member of a zip."""
        if self._zip is not None:
            return None
        return self._path / name if self._path.is_dir() else self._path

    def __enter__(self) -> DicomFiles:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()


def read_headers(files: DicomFiles, name: str) -> list[Header]:
    """Return the header of one file, one a frame for an enhanced CT; none when it is no DICOM image.

    Raises:
        UnreadableExam: DICOM, but its header can't be decoded; or empty, or named ``.dcm``, and no DICOM.
        OtherImage: the same of a file that says it is no CT.
    """
    if name in files.headers:
        return files.headers[name]
    modality = ""
    try:
        with files.open(name) as handle, quiet_pydicom():
            head = handle.read(132)
            if dicom_mark(head) is None:
                suffix = Path(name).suffix.lower()
                # a lost slice: what has no suffix, or ends in a number as UIDs do, is named as slices are
                if suffix in DICOM_SUFFIXES or (not head and (not suffix or suffix[1:].isdigit())):
                    raise UnreadableExam(f"{printable(Path(name).name)}: {'no DICOM' if head else 'an empty file'}")
                return []
            quick = _quick_header(files, name, head + handle.read(HEAD_BYTES - len(head)))
            if quick is not None:
                files.headers[name] = [quick]
                return files.headers[name]
            handle.seek(0)
            data = read_dataset(handle, pixels=False)
            modality = str(data.get("Modality", "")).upper()
            if not data.get("Rows") or not data.get("Columns"):
                return []
            # pydicom stops at PixelData; a deflated file is unpacked as a whole, and has no such place
            header = replace(parse_header(_Converted(data, files.values), name), pixels_at=handle.tell())
            files.headers[name] = [header] if header.frames == 1 else frame_headers(data, header)
            return files.headers[name]
    except UnreadableExam:
        raise
    # pydicom raises whatever a damaged value leads to (ValueError, TypeError, NotImplementedError, struct.error …)
    # with the value in its text, which may be a name
    except Exception as error:
        kind = OtherImage if modality in MODALITIES and modality != "CT" else UnreadableExam
        why = (
            "RescaleSlope or RescaleIntercept holds several values"
            if isinstance(error, SeveralValues)
            else (f"header can't be decoded ({type(error).__name__})")
        )
        raise kind(f"{printable(Path(name).name)}: {why}") from None


class OtherImage(UnreadableExam):
    """A damaged file that says it is no CT: a CT series beside it can be read without it."""


class SeveralValues(ValueError):
    """A field of one number holds different ones."""


def read_dataset(handle: IO[bytes], pixels: bool, tags: Sequence[str] | None = None) -> Any:
    """Return pydicom's dataset of an open file, with or without DICOM's preamble; of these tags alone where given."""
    import pydicom

    refuse_bomb(handle)
    bare = dicom_mark(handle.read(132)) == "bare"
    handle.seek(0)
    return pydicom.dcmread(
        handle, stop_before_pixels=not pixels, force=bare, specific_tags=None if tags is None else list(tags)
    )


def read_pixels(handle: IO[bytes]) -> bytes:
    """Return PixelData, decoding nothing else of the header."""
    import pydicom

    refuse_bomb(handle)
    bare = dicom_mark(handle.read(132)) == "bare"
    handle.seek(0)
    data: bytes = pydicom.dcmread(handle, specific_tags=["PixelData"], force=bare).PixelData
    return data


class _Converted:
    """A dataset whose values are converted once for equal bytes: most are the same in every slice of a series.

    Args:
        data: pydicom's dataset, as read.
        values: what was converted already, by tag, representation and bytes; filled on the way.
    """

    def __init__(self, data: Any, values: dict[tuple[Any, ...], Any]) -> None:
        self._data, self._values = data, values
        self._signed = getattr(data.get_item(tag_of("PixelRepresentation")), "value", None)
        self.file_meta = getattr(data, "file_meta", {})

    def get(self, name: str, default: Any = None) -> Any:
        """Return an element's value by its keyword, as pydicom's ``get``."""
        raw = self._data.get_item(tag_of(name))
        content = getattr(raw, "value", None)
        # text that depends on the file's character set is converted each time
        if raw is None or not isinstance(content, bytes) or len(content) > 64 or raw.VR in ("LO", "PN", "SH", "SQ"):
            return self._data.get(name, default)
        key = (name, raw.VR, content, raw.is_little_endian, self._signed)
        if key not in self._values:
            self._values[key] = self._data.get(name, default)
        return self._values[key]


FIELDS = (
    "BitsAllocated", "BitsStored", "Columns", "ConvolutionKernel", "HighBit", "ImageOrientationPatient",
    "ImagePositionPatient", "ImageType", "Modality", "NumberOfFrames", "PatientID", "PhotometricInterpretation",
    "PixelPaddingRangeLimit", "PixelPaddingValue", "PixelRepresentation", "PixelSpacing", "RescaleIntercept",
    "RescaleSlope", "Rows", "SOPClassUID", "SOPInstanceUID", "SamplesPerPixel", "SeriesInstanceUID",
    "StudyInstanceUID",
)  # fmt: skip
"""What ``parse_header`` reads."""
OWN_FIELDS = (0x00080018, 0x00200032)
"""SOPInstanceUID and ImagePositionPatient: other bytes in every slice of a series; nearly all else repeats."""
_UID = re.compile(rb"[0-9.]+\0?")
_POSITION = re.compile(rb" *[-+0-9.eE]+ *(\\ *[-+0-9.eE]+ *){2}")


@cache
def _field_tags() -> frozenset[int]:
    return frozenset(tag_of(field) for field in FIELDS)


def _quick_header(files: DicomFiles, name: str, head: bytes) -> Header | None:
    """The header of one slice that differs from one read before in place and instance alone, without pydicom's walk.

    None for everything that is not plainly written: pydicom reads that. Values are pydicom's, of the first such slice.
    """
    found = plain_elements(head, _field_tags())
    if found is None:
        return None
    elements, syntax, pixels_at = found
    uid, position = (elements.get(tag, (b"", b""))[1] for tag in OWN_FIELDS)
    if not _UID.fullmatch(uid) or not _POSITION.fullmatch(position):
        return None
    key = (syntax, *(item for item in elements.items() if item[0] not in OWN_FIELDS))
    if key not in files.values:
        data = as_dataset(elements)
        if not data.get("Rows") or not data.get("Columns"):
            return None
        try:
            files.values[key] = replace(parse_header(data, name), transfer_syntax=syntax)
        # whatever a damaged value leads to: the whole reading names it
        except Exception:
            return None
    try:
        x, y, z = (float(part) for part in position.split(b"\\"))
    except ValueError:
        return None
    if max(abs(x), abs(y), abs(z)) >= 1e6:
        return None
    instance = uid.rstrip(b"\0").decode()
    shared: Header = files.values[key]
    return replace(shared, name=name, instance_uid=instance, position=(x, y, z), pixels_at=pixels_at)


def parse_header(data: Any, name: str) -> Header:
    """Return the fields of a pydicom dataset; raises what pydicom raises."""
    bits, stored = int(data.get("BitsAllocated", 16)), int(data.get("BitsStored", data.get("BitsAllocated", 16)))
    signed = int(data.get("PixelRepresentation", 0)) == 1
    kind = [str(part).upper() for part in _several(data.get("ImageType"))]
    return Header(
        name=name,
        series_uid=str(data.get("SeriesInstanceUID", "")),
        patient_id=str(data.get("PatientID", "") or ""),
        modality=str(data.get("Modality", "")).upper(),
        localizer="LOCALIZER" in kind,
        rows=int(data.get("Rows")),
        columns=int(data.get("Columns")),
        frames=int(data.get("NumberOfFrames", 1) or 1),
        samples=int(data.get("SamplesPerPixel", 1)),
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=int(data.get("HighBit", stored - 1)),
        signed=signed,
        photometric=str(data.get("PhotometricInterpretation", "MONOCHROME2")),
        orientation=_numbers(data.get("ImageOrientationPatient"), 6),
        position=_numbers(data.get("ImagePositionPatient"), 3),
        spacing_yx=_numbers(data.get("PixelSpacing"), 2),
        slope=_number(data.get("RescaleSlope")),
        intercept=_number(data.get("RescaleIntercept")),
        padding=_padding(data, signed, bits, stored),
        transfer_syntax=str(getattr(data, "file_meta", {}).get("TransferSyntaxUID", "1.2.840.10008.1.2")),
        instance_uid=str(data.get("SOPInstanceUID", "") or ""),
        study_uid=str(data.get("StudyInstanceUID", "") or ""),
        sop_class=str(data.get("SOPClassUID", "") or ""),
        kernel=_code(data.get("ConvolutionKernel")),
    )


def frame_headers(data: Any, header: Header) -> list[Header]:
    """Return a header for each frame of an enhanced image: place, spacing and rescale of its functional groups.

    What the per-frame groups leave out the shared ones say (DICOM PS3.3 C.7.6.16). An image of several frames without
    such groups comes back as it is.

    Raises:
        ValueError: not one group a frame; and what pydicom raises.
    """
    groups = list(data.get("PerFrameFunctionalGroupsSequence") or [])
    if not groups:
        return [header]
    if len(groups) != header.frames:
        raise ValueError(f"{len(groups)} functional groups for {header.frames} frames")
    shared = list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
    found = []
    for number, own in enumerate(groups):

        def value(group: str, field: str, places: tuple[Any, ...] = (own, *shared)) -> Any:
            return next((place[group][0].get(field) for place in places if place.get(group)), None)

        found.append(
            replace(
                header,
                frame=number,
                position=_numbers(value("PlanePositionSequence", "ImagePositionPatient"), 3),
                orientation=_numbers(value("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
                spacing_yx=_numbers(value("PixelMeasuresSequence", "PixelSpacing"), 2),
                slope=_number(value("PixelValueTransformationSequence", "RescaleSlope")),
                intercept=_number(value("PixelValueTransformationSequence", "RescaleIntercept")),
            )
        )
    return found


def known_modality(header: Header) -> str:
    """Return the modality when it is a code of the standard, else ``"unknown"``: the field may hold anything."""
    return header.modality if header.modality in MODALITIES else "unknown"


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's warnings, which quote header values, off standard error and out of logs."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


def _padding(data: Any, signed: bool, bits: int, stored: int) -> tuple[int, int] | None:
    first = data.get("PixelPaddingValue")
    if first is None:
        return None
    last = data.get("PixelPaddingRangeLimit", first)
    # writers store a negative padding value as unsigned, or the reverse
    ends = [(int(v) + 2**bits) % 2**bits if not signed else (int(v) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
            for v in (first, first if last is None else last)]  # fmt: skip
    # bits above BitsStored are cleared when pixels are read, so they are cleared here
    ends = [v % 2**stored if v >= 2**stored else v for v in ends]
    return min(ends), max(ends)


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    parts = tuple(float(v) for v in _several(value))
    return parts if len(parts) == count and all(abs(v) < 1e6 for v in parts) else None


def _number(value: Any) -> float | None:
    numbers = {float(v) for v in _several(value)}
    if len(numbers) > 1:
        raise SeveralValues
    if not numbers:
        return None
    (number,) = numbers
    return number if abs(number) < 1e9 else None


def _code(value: Any) -> str:
    """A vendor's short code; anything longer may be free text and is left out."""
    text = "/".join(str(v).strip() for v in _several(value))
    return text if re.fullmatch(r"[A-Za-z0-9+_./-]{1,16}", text) else ""


def _several(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return [value] if isinstance(value, (str, int, float)) else list(value)
