"""A cohort's view while it is being gathered, block by block, by one or several processes."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from embedprior.cache.layout import INDEX, checksum_file, checksum_line, shard_files, view_file
from embedprior.cache.shards import ShardHeader, read_header
from embedprior.runs import write_file, write_text

INDEX_COLUMNS = ["exam_id", "shard", "row", "rows", "sha256"]


class ViewNotes:
    """Notes which exams of which block the cache holds, on disk: a cohort may be longer than memory is wide."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f".view.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        self.offsets: dict[int, int] = {}
        self._handle = self.path.open("wb")

    def add(self, block: int, pairs: Sequence[tuple[str, str]]) -> None:
        """Note a block's exams and the sha256 of their sources."""
        self.offsets[block] = self._handle.tell()
        self._handle.write(json.dumps(list(pairs)).encode() + b"\n")

    def close(self) -> tuple[str, dict[int, int]]:
        """End the notes; return the file and where each block starts in it."""
        self._handle.close()
        return str(self.path), self.offsets

    def remove(self) -> None:
        """Delete the notes."""
        with suppress(OSError):  # a full disk refuses what was not written yet
            self._handle.close()
        self.path.unlink(missing_ok=True)


def write_view(folder: Path, name: str, parts: Sequence[tuple[str, dict[int, int]]]) -> int:
    """Write ``views/<name>.csv`` from the notes of every process, in the order of the table; return its length."""
    target = view_file(folder, name)
    target.parent.mkdir(exist_ok=True)
    count = 0

    def fill(handle: BinaryIO) -> None:
        nonlocal count
        with ExitStack() as stack:
            files = [stack.enter_context(Path(path).open("rb")) for path, _ in parts]
            text = io.TextIOWrapper(handle, encoding="utf-8", newline="", write_through=True)
            rows = csv.writer(text, lineterminator="\n")
            rows.writerow(["exam_id", "sha256"])
            blocks = {block: (file, offset) for file, (_, at) in zip(files, parts, strict=True)
                      for block, offset in at.items()}  # fmt: skip
            for block in sorted(blocks):
                file, offset = blocks[block]
                file.seek(offset)
                pairs = json.loads(file.readline())
                rows.writerows(pairs)
                count += len(pairs)
            text.detach()

    write_file(target, fill)
    write_text(checksum_file(target), checksum_line(target))
    return count


def index_rows(name: str, header: ShardHeader) -> Iterator[list[str]]:
    """Yield the index's rows of one shard."""
    starts = header.offsets.tolist()
    for n, (exam_id, source) in enumerate(zip(header.exam_ids, header.sources, strict=True)):
        yield [exam_id, name, str(starts[n]), str(starts[n + 1] - starts[n]), source]


def write_index(folder: Path) -> None:
    """Write ``index.csv`` from the headers of the shards: where every exam lies."""

    def fill(handle: BinaryIO) -> None:
        text = io.TextIOWrapper(handle, encoding="utf-8", newline="", write_through=True)
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(INDEX_COLUMNS)
        for path in shard_files(folder):
            rows.writerows(index_rows(path.name, read_header(path)))
        text.detach()

    write_file(folder / INDEX, fill)
