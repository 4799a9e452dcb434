"""What lies in a cache folder: manifest, shards, index, and which of the rows a cohort chose (its *view*)."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from embedprior.cache.shards import PREFIX, SUFFIX, ShardHeader, read_header
from embedprior.encoders.base import EncoderSpec, differing_field, encoder_key, key8
from embedprior.errors import BadInput
from embedprior.runs import hash_file, make_folder, read_json, write_file, write_json, write_text

MANIFEST = "manifest.json"
CURRENT = "current"
INDEX = "index.csv"
VIEWS = "views"
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Place:
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


def place_for(out: Path, spec: EncoderSpec, tokens: bool = False) -> Place:
    """Return where a cache of this encoder lies under ``out``.

    Raises:
        BadInput: tokens are asked of an encoder that has none.
    """
    if tokens and spec.token_dim is None:
        raise BadInput(f"encoder '{spec.name}' gives no tokens. Next: leave out --tokens, or see: embedprior encoders")
    key = encoder_key(spec, tokens)
    return Place(out / f"{spec.name}@{key8(key)}", key)


def prepare(place: Place, spec: EncoderSpec) -> None:
    """Make the folder and its manifest where they are not there, or where the manifest is damaged.

    Raises:
        BadInput: a cache of another key lies in this folder (the field is named), or it can't be written to.
    """
    make_folder(place.folder)
    manifest = place.folder / MANIFEST
    try:
        have = key_of(place.folder)
    except BadInput:
        write_json(manifest, {"key": place.key, "spec": spec})
    else:
        refuse_other_key(place.folder.name, have, place.key)


def key_of(folder: Path) -> dict[str, Any]:
    """Return the key in a cache folder's manifest.

    Raises:
        BadInput: no manifest, or a damaged one.
    """
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("key"), dict):
        raise BadInput(f"{folder / MANIFEST} holds no key. Next: run the command that filled the cache again.")
    key: dict[str, Any] = manifest["key"]
    return key


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


def refuse_neighbour(out: Path, place: Place) -> None:
    """Refuse to start a second cache of an encoder beside one in ``out``.

    Raises:
        BadInput: their keys differ in a field other than the output (embeddings beside tokens are fine).
    """
    if (place.folder / MANIFEST).is_file():
        return
    for folder in sorted(out.glob(f"{place.key['encoder']}@*")):
        if not (folder / MANIFEST).is_file():
            continue
        try:
            have = key_of(folder)
        except BadInput:
            continue  # damaged; the command that filled it writes it again
        if have.get("encoder") == place.key["encoder"] and have.get("output") == place.key["output"]:
            refuse_other_key(f"{out.name}/{folder.name}", have, place.key)


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


def write_pointer(out: Path, place: Place, view: str) -> None:
    """Let ``out`` name the cache and view that were filled last."""
    write_text(out / CURRENT, f"{place.folder.name}\n{view}\n")


def read_pointer(out: Path) -> tuple[Path, str] | None:
    """Return the cache folder and view that ``out/current`` names, or None."""
    pointer = out / CURRENT
    if not pointer.is_file():
        return None
    lines = [*pointer.read_text(encoding="utf-8").splitlines(), "", ""]
    return out / lines[0].strip(), lines[1].strip()


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
