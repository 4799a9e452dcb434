"""The files of a cache: manifest, shards, index, and which of the rows a cohort chose (its *view*).

A shard is a safetensors file that carries its own exam ids, source hashes, row offsets and checksum. Its header is
written here rather than by the safetensors library so that the same rows always give the same bytes. Numbers are stored
as float32, float16, bfloat16 (which numpy lacks) or uint8.
"""

from __future__ import annotations

import csv
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from embedprior.encoders.base import CACHE_FORMAT, EncoderSpec, differing_field, encoder_key, key8
from embedprior.errors import BadInput, choose
from embedprior.runs import hash_file, make_folder, read_json, write_file, write_json
from embedprior.runs.integrity import CHECKSUM, has_own_checksum, refuse_other_format, with_checksum

MANIFEST = "manifest.json"
CURRENT = "current"
INDEX = "index.csv"
VIEWS = "views"
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class CacheLocation:
    """A cache folder that is being filled.

    Attributes:
        folder: ``OUT/<encoder>@<key8>``.
        key: everything its rows depend on.
        tokens: whether an exam has several rows.
    """

    folder: Path
    key: dict[str, Any]

    @property
    def short(self) -> str:
        """The short hash of the key."""
        return key8(self.key)

    @property
    def tokens(self) -> bool:
        """Whether an exam has several rows."""
        return bool(self.key["output"] == "tokens")

    @property
    def dtype(self) -> str:
        """Of the stored numbers."""
        return str(self.key["dtype"])


def cache_location(out: Path, spec: EncoderSpec, tokens: bool = False) -> CacheLocation:
    """Return where a cache of this encoder lies under ``out``.

    Raises:
        BadInput: tokens are asked of an encoder that has none.
    """
    if tokens and spec.token_dim is None:
        raise BadInput(f"encoder '{spec.name}' gives no tokens. Next: leave out --tokens, or see: embedprior encoders")
    key = encoder_key(spec, tokens)
    return CacheLocation(out / f"{spec.name}@{key8(key)}", key)


def prepare(location: CacheLocation, spec: EncoderSpec) -> None:
    """Make the folder and its manifest where they are not there, or where the manifest is damaged.

    Raises:
        BadInput: a cache of another key lies in this folder (the field is named), or it can't be written to.
    """
    make_folder(location.folder)
    try:
        have = read_manifest(location.folder)
    except BadInput:
        have = {}
    else:
        refuse_other_key(location.folder.name, have["key"], location.key)
    if CHECKSUM not in have:
        write_json(location.folder / MANIFEST, with_checksum({"key": location.key, "spec": spec}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a cache folder's manifest: ``key``, ``spec`` (with ``patients_seen``) and the checksum of the two.

    One without checksum, of an earlier version, is read as it is; ``cache verify`` names it.

    Raises:
        BadInput: no manifest, or a damaged one.
    """
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("key"), dict):
        raise BadInput(f"{folder / MANIFEST} holds no key. Next: run the command that filled the cache again.")
    if not (has_own_checksum(manifest) if CHECKSUM in manifest else set(manifest) <= {"key", "spec"}):
        raise BadInput(
            f"{folder / MANIFEST} no longer has the contents it was written with: its key, or what it says of the "
            "encoder (patients_seen). Next: run the command that filled the cache again."
        )
    again = "run the command that filled it again, into another folder"
    refuse_other_format(f"the cache {folder}", manifest["key"].get("format", CACHE_FORMAT), CACHE_FORMAT, again)
    return manifest


def key_of(folder: Path) -> dict[str, Any]:
    """Return the key in a cache folder's manifest.

    Raises:
        BadInput: see ``read_manifest``.
    """
    return dict(read_manifest(folder)["key"])


def refuse_other_key(name: str, have: Mapping[str, Any], want: Mapping[str, Any]) -> None:
    """Compare two keys.

    Raises:
        BadInput: a field differs; it is named, with both values.
    """
    found = differing_field(have, want)
    if found is not None:
        field, left, right = found
        raise BadInput(
            f"{name} was made with another {field}: {left!r:.80}, not {right!r:.80}. "
            "Embeddings of different origin are never mixed. Next: set it back, or give another folder."
        )


def shard_files(folder: Path) -> list[Path]:
    """Return the shards of a cache, in order."""
    return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))


def table_hash(exams: Iterable[tuple[str, str]]) -> str:
    """Return a hash of exam ids and paths, in order."""
    return hashlib.sha256(json.dumps(list(exams)).encode()).hexdigest()[:12]


def view_file(folder: Path, name: str) -> Path:
    """Return the table of a view: ``exam_id, sha256``."""
    return folder / VIEWS / f"{name}.csv"


def read_view(path: Path) -> Iterator[tuple[str, str]]:
    """Yield exam id and sha256 of its source, in the order of the cohort.

    Raises:
        BadInput: not such a table.
    """
    try:
        if checksum_file(path).read_text() != checksum_line(path):
            raise ValueError("its checksum differs")
        with path.open(newline="", encoding="utf-8") as handle:
            rows = csv.reader(handle)
            if next(rows, None) != ["exam_id", "sha256"]:
                raise ValueError("its columns are not exam_id, sha256")
            yield from ((exam_id, source) for exam_id, source in rows)
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadInput(f"{path} is damaged ({reason}). Next: run the command that filled the cache again.") from error


def checksum_file(view: Path) -> Path:
    """Return the file beside a view that holds its sha256, as ``sha256sum`` writes and checks it."""
    return view.with_suffix(".sha256")


def checksum_line(view: Path) -> str:
    """Return what that file must say of the view as it is now."""
    return f"{hash_file(view)}  {view.name}\n"


def read_pointer(out: Path) -> tuple[Path, str] | None:
    """Return the cache folder and view that ``out/current`` names, or None."""
    pointer = out / CURRENT
    if not pointer.is_file():
        return None
    lines = [*pointer.read_text(encoding="utf-8", errors="replace").splitlines(), "", ""]
    return out / lines[0].strip(), lines[1].strip()


INDEX_COLUMNS = ["exam_id", "shard", "row", "rows", "sha256"]


def index_rows(name: str, header: ShardHeader) -> Iterator[list[str]]:
    """Yield the index's rows of one shard."""
    starts = header.offsets.tolist()
    for n, (exam_id, source) in enumerate(zip(header.exam_ids, header.sources, strict=True)):
        yield [exam_id, name, str(starts[n]), str(starts[n + 1] - starts[n]), source]


# cache dtype → (name in a safetensors header, dtype of the bytes on disk)
STORED: dict[str, tuple[str, np.dtype[Any]]] = {
    "float32": ("F32", np.dtype("<f4")),
    "float16": ("F16", np.dtype("<f2")),
    "bfloat16": ("BF16", np.dtype("<u2")),
    "uint8": ("U8", np.dtype("u1")),
}

Array = np.ndarray[Any, Any]


def to_stored(values: Array, dtype: str) -> Array:
    """Return values as the bytes of a shard; bfloat16 is rounded to nearest, ties to even.

    Raises:
        BadInput: unknown dtype, or floats to be stored as uint8.
    """
    stored = choose("dtype", dtype, STORED)[1]
    if dtype == "uint8":
        if values.dtype != np.uint8:
            raise BadInput(f"dtype uint8 is for encoders that return bytes, not {values.dtype}. Allowed: float32, "
                           "float16, bfloat16.")  # fmt: skip
        return np.ascontiguousarray(values)
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
        rounded: Array = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
        return rounded
    with np.errstate(over="ignore"):  # what overflows float16 is refused by ``finite``
        return np.ascontiguousarray(values, dtype=stored)


def from_stored(stored: Array, dtype: str) -> Array:
    """Return a shard's numbers to compute with: float32, or uint8 as it is."""
    if dtype == "bfloat16":
        wide: Array = (stored.astype("<u4") << 16).view("<f4")
        return wide
    return stored if dtype == "uint8" else np.asarray(stored, dtype=np.float32)


def working_dtype(dtype: str) -> np.dtype[Any]:
    """Return the dtype that ``from_stored`` gives."""
    return np.dtype(np.uint8 if dtype == "uint8" else np.float32)


def finite(stored: Array, dtype: str) -> Array:
    """Return of each stored row whether all its numbers are finite (an overflow of float16 is not)."""
    if dtype == "uint8":
        return np.ones(stored.shape[:-1], dtype=bool)
    return np.asarray(np.isfinite(from_stored(stored, dtype)).all(-1))


TENSOR = "embeddings"
PREFIX, SUFFIX = "shard-", ".safetensors"
_MAX_HEADER_BYTES = 100_000_000
PAGE = 4096
_CHUNK = 1 << 18


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says of itself.

    Attributes:
        key: short hash of the cache it belongs to.
        exam_ids: in the order of the rows.
        sources: sha256 of each exam's source.
        counts: rows of each exam; None when every exam has one.
        checksum: sha256 of all the above and the numbers.
        shape: rows × dim.
        dtype: of the numbers, see ``STORED``.
        start: of the numbers in the file.
    """

    key: str
    exam_ids: list[str]
    sources: list[str]
    counts: list[int] | None
    checksum: str
    shape: tuple[int, int]
    dtype: str
    start: int

    @cached_property
    def offsets(self) -> Array:
        """First row of each exam, and the number of rows at the end."""
        counts = np.ones(len(self.exam_ids), np.int64) if self.counts is None else np.asarray(self.counts, np.int64)
        return np.concatenate([[0], np.cumsum(counts)])


def shard_name(block: int, exam_ids: Sequence[str], sources: Sequence[str]) -> str:
    """Return the file name of a shard: its block in the exam table, and a hash of the exams in it."""
    return f"{PREFIX}{block:06d}-{_exams_hash(exam_ids, sources)}{SUFFIX}"


def write_shard(
    path: Path, key: str, dtype: str, exam_ids: list[str], sources: list[str], stored: Array,
    counts: list[int] | None = None,
) -> None:  # fmt: skip
    """Write a shard: temporary file, fsync, close, rename, fsync of the folder.

    Args:
        path: its final name.
        key: short hash of the cache.
        dtype: see ``STORED``.
        exam_ids: one an exam.
        sources: sha256 of each exam's source.
        stored: rows × dim, as ``to_stored`` gives them.
        counts: rows of each exam; None = one each.

    Raises:
        DiskFull: no room; what was there before is untouched.
    """
    data = np.ascontiguousarray(stored).reshape(-1).view(np.uint8).data
    metadata = _metadata(key, dtype, exam_ids, sources, counts, stored.shape)
    head = _header(metadata, _checksum(metadata, [data]), dtype, stored.shape)

    def fill(handle: BinaryIO) -> None:
        handle.write(head)
        handle.write(data)

    write_file(path, fill)


def read_header(path: Path) -> ShardHeader:
    """Read a shard's header without its numbers. Nothing in the file is executed.

    Raises:
        BadInput: the file is cut short or is no shard.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError("its header is longer than the file")
            header = json.loads(handle.read(length))
        metadata = json.loads(header["__metadata__"]["embedprior"])
        tensor = header[TENSOR]
        rows, dim = (int(n) for n in tensor["shape"])
        code, stored = STORED[metadata["dtype"]]
        found = ShardHeader(
            key=metadata["key"],
            exam_ids=metadata["exam_ids"],
            sources=metadata["sources"],
            counts=metadata["counts"],
            checksum=header["__metadata__"]["checksum"],
            shape=(rows, dim),
            dtype=metadata["dtype"],
            start=8 + length,
        )
        if tensor["dtype"] != code or tensor["data_offsets"] != [0, rows * dim * stored.itemsize]:
            raise ValueError("its tensor is not what the header says")
        if size != found.start + rows * dim * stored.itemsize:
            raise ValueError("its size differs from the header")
        if len(found.sources) != len(found.exam_ids) or int(found.offsets[-1]) != rows:
            raise ValueError("its exams and rows differ in number")
        return found
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise BadInput(
            f"{path.name} is damaged or no shard ({reason}). Next: run the command that filled the cache again (it "
            f"computes only what is lost), or: embedprior cache verify {path.parent}"
        ) from error


def map_rows(path: Path, header: ShardHeader) -> Array:
    """Map a shard's numbers, as stored, without copying them; shape rows × dim, read-only.

    Torch maps the file, because it closes it then: Python's own map keeps it open, and a cache may have more shards
    than a process may have open files.
    """
    import torch

    stored = STORED[header.dtype][1]
    if header.shape[0] == 0:
        return np.empty(header.shape, stored)
    size = header.start + header.shape[0] * header.shape[1] * stored.itemsize
    mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    mapped.flags.writeable = False
    return mapped[header.start :].view(stored).reshape(header.shape)


def copy_rows(path: Path, header: ShardHeader, into: Array) -> None:
    """Copy a shard's numbers, as stored, into ``into`` (rows × dim, contiguous): one read, where a map faults by page.

    Raises:
        BadInput: the file ends too soon.
    """
    wanted = into.reshape(-1).view(np.uint8).data
    with path.open("rb", buffering=0) as handle:
        handle.seek(header.start)
        done = 0
        while done < len(wanted):
            got = handle.readinto(wanted[done:])
            if not got:
                raise BadInput(f"{path.name} ends too soon. Next: embedprior cache verify {path.parent}")
            done += got


def shard_corruption(path: Path, key: str) -> str:
    """Return what is wrong with a shard of the cache ``key`` in words, or an empty string.

    Every byte is read: the numbers against their checksum, the header against the one that would be written.
    """
    try:
        header = read_header(path)
    except BadInput as error:
        return str(error).partition(" Next:")[0].removeprefix(path.name + " ")
    if header.key != key:
        return f"belongs to another cache (key {header.key}, not {key})"
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as handle:
        head = handle.read(header.start)
        metadata = json.loads(head[8:])["__metadata__"]["embedprior"]  # as it lies there, not written anew
        checksum = _checksum(metadata, (buffer[:read] for read in iter(lambda: handle.readinto(buffer), 0)))
    if head != _header(metadata, checksum, header.dtype, header.shape):
        return "its contents no longer have the checksum they were written with"
    if not path.name.endswith(f"-{_exams_hash(header.exam_ids, header.sources)}{SUFFIX}"):
        return "its name is not that of the exams in it"
    return ""


def _exams_hash(exam_ids: Sequence[str], sources: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([list(exam_ids), list(sources)]).encode()).hexdigest()[:12]


def _metadata(
    key: str, dtype: str, exam_ids: list[str], sources: list[str], counts: list[int] | None, shape: Sequence[int]
) -> str:
    metadata: dict[str, Any] = {
        "key": key, "dtype": dtype, "exam_ids": exam_ids, "sources": sources, "counts": counts, "shape": list(shape),
    }  # fmt: skip
    return json.dumps(metadata, sort_keys=True, separators=(",", ":"))


def _header(metadata: str, checksum: str, dtype: str, shape: Sequence[int]) -> bytes:
    code, stored = STORED[dtype]
    header = {
        "__metadata__": {"checksum": checksum, "embedprior": metadata},
        TENSOR: {"data_offsets": [0, shape[0] * shape[1] * stored.itemsize], "dtype": code, "shape": list(shape)},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % PAGE)  # a row of 1024 numbers then lies in one page, not in two
    return struct.pack("<Q", len(text)) + text


def _checksum(metadata: str, chunks: Any) -> str:
    digest = hashlib.sha256(metadata.encode())
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
