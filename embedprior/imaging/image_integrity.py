"""Is a NIfTI, NRRD or MetaImage file whole? Bytes compared with what its header promises, checksums read to their end.

SimpleITK fills what a truncated file lacks with zeros, which are water, and takes NaN for 0: both look like a sound CT.
Layouts: nifti1.h and nifti2.h; the NRRD and MetaIO documentation.
"""

from __future__ import annotations

import gzip
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import IO

import numpy as np

from embedprior.imaging.files import UnreadableExam, printable
from embedprior.imaging.findings import Finding

CHUNK = 2**22
NIFTI_BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}
"""NIfTI datatype of one number a voxel → its bits."""
NIFTI_LAYOUT = {
    348: {"dim": ("8h", 40), "type": ("2h", 70), "pixdim": ("8f", 76), "offset": ("f", 108), "scale": ("2f", 112),
          "units": ("B", 123), "codes": ("2h", 252), "numbers": ("18f", 256)},
    540: {"type": ("2h", 12), "dim": ("8q", 16), "pixdim": ("8d", 104), "offset": ("q", 168), "scale": ("2d", 176),
          "codes": ("2i", 344), "numbers": ("18d", 352), "units": ("i", 500)},
}  # fmt: skip
"""Size of the header of NIfTI-1 and NIfTI-2 → struct format and place of its fields (nifti1.h, nifti2.h)."""
FLOATS = {16: "f4", 64: "f8"}
META_BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4, "LONG": 8, "ULONG": 8,
              "LONG_LONG": 8, "ULONG_LONG": 8, "DOUBLE": 8}  # fmt: skip
META_MATRIX = {"transformmatrix", "orientation", "rotation"}
META_HEADER_BYTES, NRRD_HEADER_BYTES = 2**13, 2**16
NRRD_BYTES = {"signed char": 1, "int8": 1, "int8_t": 1, "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1,
              "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2,
              "ushort": 2, "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2,
              "int": 4, "signed int": 4, "int32": 4, "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4,
              "uint32_t": 4, "float": 4, "double": 8, "longlong": 8, "long long": 8, "int64": 8, "int64_t": 8,
              "ulonglong": 8, "unsigned long long": 8, "uint64": 8, "uint64_t": 8}  # fmt: skip
ANATOMICAL = ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las")
"""NRRD spaces that say which side is left; the others are those of a scanner or of mathematics."""


@dataclass(frozen=True)
class NiftiHeader:
    """The fields that reading depends on.

    Attributes:
        version: 1 or 2.
        order: ``"<"`` or ``">"``.
        shape: voxels along x, y, z and beyond.
        datatype, bits: code of a voxel's type, and its size.
        offset: bytes before the voxels.
        pixdim: signs and sizes; the first is the handedness of the quaternion method.
        slope, intercept: of the stored values.
        codes: qform_code and sform_code.
        numbers: quaternion, shift and the three rows of the matrix.
    """

    version: int
    order: str
    shape: tuple[int, ...]
    datatype: int
    bits: int
    offset: int
    pixdim: tuple[float, ...]
    slope: float
    intercept: float
    codes: tuple[int, int]
    numbers: tuple[float, ...]
    units: int

    @property
    def bytes_promised(self) -> int:
        """Size of the unpacked file."""
        return self.offset + prod(self.shape) * self.bits // 8

    @property
    def handedness(self) -> int:
        """The sign that the third axis takes in the quaternion method."""
        return -1 if self.pixdim[0] < 0 else 1

    def as_version_1(self) -> bytes:
        """Return a NIfTI-1 header of the same content, 352 bytes with the four that say that nothing follows."""
        head = bytearray(352)
        pack = struct.pack_into
        pack(f"{self.order}i", head, 0, 348)
        pack(f"{self.order}8h", head, 40, len(self.shape), *self.shape, *[1] * (7 - len(self.shape)))
        pack(f"{self.order}2h", head, 70, self.datatype, self.bits)
        pack(f"{self.order}8f", head, 76, *self.pixdim)
        pack(f"{self.order}3f", head, 108, 352.0, self.slope, self.intercept)
        head[123] = self.units & 0xFF
        pack(f"{self.order}2h", head, 252, *self.codes)
        pack(f"{self.order}18f", head, 256, *self.numbers)
        head[344:348] = b"n+1\0"
        return bytes(head)


def read_nifti_header(head: bytes) -> NiftiHeader | None:
    """Return the header in the first 540 bytes of an unpacked file; None when they are none."""
    for order in "<>":
        (size,) = struct.unpack_from(f"{order}i", head.ljust(4, b"\0"))
        if size in NIFTI_LAYOUT and len(head) >= size:
            found = {
                name: struct.unpack_from(order + kind, head, at) for name, (kind, at) in NIFTI_LAYOUT[size].items()
            }
            count, *shape = found["dim"]
            (offset,) = found["offset"]
            if not 1 <= count <= 7 or min(shape[:count]) < 1 or not 0 <= offset < 2**31:
                return None
            slope, intercept = found["scale"]
            (datatype, bits), (qform, sform), (units,) = found["type"], found["codes"], found["units"]
            return NiftiHeader(
                1 if size == 348 else 2, order, tuple(shape[:count]), datatype, bits, int(offset), found["pixdim"],
                slope, intercept, (qform, sform), found["numbers"], units,
            )  # fmt: skip
    return None


@contextmanager
def whole_nifti(path: Path) -> Iterator[tuple[Path, NiftiHeader]]:
    """Give a plain NIfTI-1 file of the same content, checked, and its header.

    A ``.nii.gz`` is unpacked to its end, which verifies its checksum, and a NIfTI-2 file is rewritten, both into a
    temporary folder.

    Raises:
        UnreadableExam: truncated, damaged, or packed otherwise than its name says.
    """
    name = printable(path.name)
    packed = path.name.lower().endswith(".gz")
    with path.open("rb") as handle:
        is_gzip = handle.read(2) == b"\x1f\x8b"
    if packed != is_gzip and path.stat().st_size:
        what, to = ("gzip", ".nii.gz") if is_gzip else ("not gzip", ".nii")
        raise UnreadableExam(f"{name}: the content is {what}. Next: rename it to end in {to}")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "volume.nii" if packed else path
        if packed:
            _unpack(path, plain)
        with plain.open("rb") as handle:
            header = read_nifti_header(handle.read(540))
        if header is None:
            raise UnreadableExam(f"{name}: damaged, or no NIfTI")
        if NIFTI_BITS.get(header.datatype, header.bits) != header.bits:
            raise UnreadableExam(f"{name}: datatype {header.datatype} of {header.bits} bits: a damaged header")
        compare_size(name, plain.stat().st_size, header.bytes_promised)
        if header.version == 2:
            if max(header.shape) > 32767:
                raise UnreadableExam(f"{name}: a NIfTI-2 of {header.shape} voxels is too large")
            plain = _as_version_1(plain, header, Path(folder) / "version-1.nii")
        yield plain, header


def audit_nifti_header(header: NiftiHeader, plain: Path) -> list[Finding]:
    """Return errors of voxel sizes, places and values that are 0 or no finite numbers."""
    sizes = header.pixdim[1:4]
    if not all(isfinite(s) and s != 0 for s in sizes):
        shown = " x ".join(f"{s:g}" for s in sizes)
        return [Finding("spacing-implausible", f"pixdim says voxels of {shown}. Next: convert the DICOM again")]
    quaternion, rows = header.numbers[:6], header.numbers[6:]
    for code, numbers, field in ((header.codes[0], quaternion, "qform"), (header.codes[1], rows, "sform")):
        if code > 0 and not all(isfinite(n) for n in numbers):
            return [
                Finding("no-geometry", f"the {field} holds numbers that are not finite. Next: convert the DICOM again")
            ]
    kind = FLOATS.get(header.datatype)
    if kind is None:
        return []
    values = np.memmap(plain, f"{header.order}{kind}", "r", 352 if header.version == 2 else header.offset)
    bad = sum(int(values[i : i + CHUNK].size - np.isfinite(values[i : i + CHUNK]).sum())
              for i in range(0, values.size, CHUNK))  # fmt: skip
    return [Finding("hu-range", f"{bad} voxels are not finite numbers")] if bad else []


def compare_size(name: str, found: int, promised: int) -> None:
    """Compare the bytes that are there with those that the header promises.

    Raises:
        UnreadableExam: fewer, or more.
    """
    if promised > found * DEFLATE_LIMIT:
        raise UnreadableExam(f"{name}: the header claims {promised:.3g} bytes, more than the file can hold")
    if found != promised:
        kind = "cut short" if found < promised else "longer than its header says"
        raise UnreadableExam(f"{name}: {kind}: {found} bytes, expected {promised}. Next: fetch the file again")


def check_metaimage(path: Path) -> list[Finding]:
    """Check that the voxels of a ``.mha`` or ``.mhd`` are all there, before memory is taken for them.

    Returns:
        A note where the header leaves the axes unsaid.

    Raises:
        UnreadableExam: they are not, or their file is missing.
    """
    with path.open("rb") as handle:
        head = handle.read(META_HEADER_BYTES)
    start = head.find(b"ElementDataFile")
    if start < 0:
        return []  # SimpleITK refuses it
    end = head.find(b"\n", start)
    fields = _fields(head[: end if end >= 0 else len(head)].decode("latin-1"), "=")
    item = META_BYTES.get(fields.get("elementtype", "").upper().removeprefix("MET_").removesuffix("_ARRAY"))
    shape, source = _integers(fields.get("dimsize", "")), fields.get("elementdatafile", "")
    noted = (
        [] if set(fields) & META_MATRIX else [Finding("default-axes", "no TransformMatrix: MetaImage's default, LPS")]
    )
    if item is None or not shape or source.upper().startswith("LIST") or "%" in source:
        return noted
    promised = prod(shape) * item * int(fields.get("elementnumberofchannels", "1") or 1)
    skip = int(fields.get("headersize", "0") or 0)
    packed = fields.get("compresseddata", "false").lower() == "true"
    local = source.upper() == "LOCAL"
    _check_data(path, None if local else source, end + 1 if local else 0, skip, promised, "zlib" if packed else "raw")
    return noted


def check_nrrd(path: Path) -> list[Finding]:
    """Check that the voxels of a ``.nrrd`` or ``.nhdr`` are all there; return an error where no side is left.

    Raises:
        UnreadableExam: they are not, or their file is missing.
    """
    with path.open("rb") as handle:
        head = handle.read(NRRD_HEADER_BYTES)
    parts = head.replace(b"\r\n", b"\n").partition(b"\n\n")
    fields = _fields(parts[0].decode("latin-1"), ":")
    shape, item = _integers(fields.get("sizes", "")), NRRD_BYTES.get(fields.get("type", "").lower())
    source = fields.get("data file", fields.get("datafile", ""))
    kind = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}.get(fields.get("encoding", "").lower())
    if item and shape and kind and not source.upper().startswith("LIST") and "%" not in source:
        blank = head.find(b"\n\n") + 2 if b"\n\n" in head else head.find(b"\r\n\r\n") + 4
        lines = int(fields.get("line skip", fields.get("lineskip", "0")) or 0)
        skip = int(fields.get("byte skip", fields.get("byteskip", "0")) or 0)
        if not lines:
            _check_data(path, source or None, 0 if source else blank, skip, prod(shape) * item, kind)
    space = fields.get("space", "").lower().removesuffix("-time").removesuffix("t")
    if space and space not in ANATOMICAL:
        return [Finding("no-geometry", f"its space, {space[:20]}, does not say which side is left. Next: convert the "
                        "DICOM again")]  # fmt: skip
    return []


def _check_data(path: Path, source: str | None, start: int, skip: int, promised: int, kind: str) -> None:
    """Compare what lies after ``start`` of a file, or of the file it names, with the bytes promised."""
    name = printable(path.name)
    file = path if source is None else path.parent / source
    if not file.is_file():
        raise UnreadableExam(f"{name}: its file of voxels is missing. Next: put it beside the header")
    if kind == "raw":
        if skip >= 0:  # -1: the voxels are the last bytes of the file, whatever comes before
            compare_size(name, file.stat().st_size, start + skip + promised)
        else:
            compare_size(name, min(file.stat().st_size, promised), promised)
        return
    with file.open("rb") as handle:
        handle.seek(start)
        compare_size(name, _unpacked_size(handle, name, kind, promised), promised)


def _unpacked_size(handle: IO[bytes], name: str, kind: str, most: int) -> int:
    unpack = zlib.decompressobj(zlib.MAX_WBITS | (16 if kind == "gzip" else 0))
    size = 0
    try:
        while size <= most and not unpack.eof:
            packed = handle.read(CHUNK)
            if not packed:
                break
            while packed and not unpack.eof and size <= most:
                size += len(unpack.decompress(packed, CHUNK))
                packed = unpack.unconsumed_tail
    except zlib.error:
        raise UnreadableExam(f"{name}: damaged: its compressed voxels can't be unpacked") from None
    if size == most and not unpack.eof:
        # the checksum after the last byte
        raise UnreadableExam(f"{name}: cut short: its compressed voxels end without a checksum")
    return size


def _unpack(path: Path, target: Path) -> None:
    """Unpack a ``.nii.gz``, no further than its own header promises."""
    name = printable(path.name)
    try:
        with gzip.open(path) as packed, target.open("wb") as plain:
            head = packed.read(540)
            header = read_nifti_header(head)
            if header is None:
                raise UnreadableExam(f"{name}: damaged, or no NIfTI")
            if prod(header.shape) > path.stat().st_size * DEFLATE_LIMIT:
                raise UnreadableExam(f"{name}: the header claims more voxels than the file can hold")
            plain.write(head)
            left = header.bytes_promised + 1 - len(head)
            while left > 0 and (part := packed.read(min(CHUNK, left))):
                plain.write(part)
                left -= len(part)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        kind = "cut short" if isinstance(error, EOFError) else "damaged"
        raise UnreadableExam(f"{name}: {kind}: it can't be unpacked to its end. Next: fetch the file again") from None


DEFLATE_LIMIT = 1032
"""No deflated file grows by more than this (zlib's documentation), so a header that claims more is damaged."""


def _as_version_1(plain: Path, header: NiftiHeader, target: Path) -> Path:
    with plain.open("rb") as source, target.open("wb") as out:
        out.write(header.as_version_1())
        source.seek(header.offset)
        shutil.copyfileobj(source, out, CHUNK)
    return target


def _fields(text: str, separator: str) -> dict[str, str]:
    pairs = (line.partition(separator) for line in text.splitlines() if not line.startswith("#"))
    return {key.strip().lower(): value.strip().lstrip("=").strip() for key, found, value in pairs if found}


def _integers(text: str) -> list[int]:
    parts = text.split()
    return [int(p) for p in parts] if parts and all(p.isdigit() and int(p) > 0 for p in parts) else []
