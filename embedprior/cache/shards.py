"""One shard: a safetensors file that carries its own exam ids, source hashes and checksum in its header."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save

from embedprior.errors import BadInput
from embedprior.runs import hash_array

TENSOR = "embeddings"


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says of itself."""

    key: str
    exam_ids: list[str]
    sources: list[str]
    checksum: str
    shape: tuple[int, int]
    offset: int


def write_shard(
    path: Path, key: str, exam_ids: list[str], sources: list[str], rows: Float[np.ndarray, "rows dim"]
) -> None:
    """Write a shard: temporary file, fsync, close, rename, fsync of the folder."""
    data = np.ascontiguousarray(rows, dtype=np.float32)
    header = {
        "key": key,
        "exam_ids": json.dumps(exam_ids),
        "sources": json.dumps(sources),
        "checksum": hash_array(data),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as handle:
        handle.write(save({TENSOR: data}, metadata=header))
        handle.flush()
        os.fsync(handle.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def read_header(path: Path) -> ShardHeader:
    """Read a shard's header without its data.

    Raises:
        BadInput: the file is cut short or is no shard.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > size:
                raise ValueError("header longer than the file")
            header = json.loads(handle.read(length))
        meta, tensor = header["__metadata__"], header[TENSOR]
        start, end = tensor["data_offsets"]
        if size != 8 + length + end or tensor["dtype"] != "F32":
            raise ValueError("size or dtype differs from the header")
        return ShardHeader(
            key=meta["key"],
            exam_ids=json.loads(meta["exam_ids"]),
            sources=json.loads(meta["sources"]),
            checksum=meta["checksum"],
            shape=(tensor["shape"][0], tensor["shape"][1]),
            offset=8 + length + start,
        )
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path.name} is damaged ({error}). Next: delete it and run the same command again.") from error


def map_rows(path: Path, header: ShardHeader) -> Float[np.ndarray, "rows dim"]:
    """Map a shard's matrix without copying it."""
    return np.memmap(path, dtype="<f4", mode="r", offset=header.offset, shape=header.shape)


def intact(path: Path, header: ShardHeader) -> bool:
    """Return whether the data still has the checksum it was written with."""
    return hash_array(map_rows(path, header)) == header.checksum
