"""Find what is wrong with a cache folder, and mend it by taking away what a rebuild replaces."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from embedprior.cache.layout import INDEX, MANIFEST, QUARANTINE, VIEWS, Place, key_of, read_view, shard_files
from embedprior.cache.present import Present, in_pieces
from embedprior.cache.shards import PREFIX, SUFFIX, damage, read_header
from embedprior.cache.views import INDEX_COLUMNS, index_rows
from embedprior.encoders.base import key8
from embedprior.errors import BadInput
from embedprior.runs import Lock

Kind = Literal["damaged", "missing", "foreign", "manifest"]
BUILDER, WRITER, LOCK = ".builder-", ".writer", ".lock"


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong.

    Attributes:
        file: its name in the cache folder.
        kind: a damaged file of the cache, a missing one, a file that does not belong there, or the manifest.
        reason: in words.
    """

    file: str
    kind: Kind
    reason: str


def inspect(folder: Path, key: dict[str, Any] | None = None) -> list[Damage]:
    """Return everything that is wrong with a cache folder, reading every byte of it.

    Args:
        folder: ``<encoder>@<key8>/``.
        key: what its key must be; None = as its manifest says.

    Raises:
        BadInput: there is no such folder.
    """
    if not folder.is_dir():
        raise BadInput(f"no cache folder {folder}. Next: embedprior cache ls {folder.parent}")
    found: list[Damage] = []
    try:
        have = key_of(folder)
        if not folder.name.endswith(f"@{key8(have)}"):
            found.append(Damage(MANIFEST, "manifest", f"its key has the hash {key8(have)}, the folder another"))
    except BadInput as error:
        found.append(Damage(MANIFEST, "manifest", str(error).partition(" Next:")[0]))
    short = key8(key) if key is not None else folder.name.rpartition("@")[2]
    for path in shard_files(folder):
        reason = damage(path, short)
        if reason:
            found.append(Damage(path.name, "foreign" if "another cache" in reason else "damaged", reason))
    found += _missing(folder, short, {d.file for d in found})
    found += [Damage(path.relative_to(folder).as_posix(), "foreign", "no file of a cache") for path in _strange(folder)]
    return found


def mend(place: Place, found: list[Damage]) -> None:
    """Take damaged shards and tables away (a rebuild computes just them), and put foreign files into quarantine."""
    for one in found:
        path = place.folder / one.file
        if one.kind == "foreign":
            aside = place.folder / QUARANTINE / one.file.replace("/", "_")
            aside.parent.mkdir(exist_ok=True)
            path.rename(aside)
        elif one.kind == "damaged":
            path.unlink(missing_ok=True)


def clear_leftovers(folder: Path, own: Path) -> None:
    """Remove what killed runs left (temporary files, their locks), unless another builder is at work here."""
    for lock in folder.glob(f".*{LOCK}"):
        if lock != own and not Lock(lock).remove_if_stale() and lock.name.startswith((BUILDER, WRITER)):
            return
    for left in folder.rglob(".*.tmp"):
        left.unlink(missing_ok=True)


def _missing(folder: Path, short: str, reported: set[str]) -> Iterator[Damage]:
    """Shards of the index that are gone, and exams of a view that no shard holds."""
    there = {path.name for path in shard_files(folder)}
    present = Present(folder, short, skip=reported)
    present.refresh()
    lost: dict[str, int] = {}
    try:
        for name, rows in _indexed(folder / INDEX):
            if name not in there:
                lost[name] = len(rows)
            elif name not in reported and rows != list(index_rows(name, read_header(folder / name))):
                raise ValueError(f"its rows of {name} are not those of the shard")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, IndexError, csv.Error) as error:
        yield Damage(INDEX, "damaged", f"not the index of these shards ({error})")
    for name, count in sorted(lost.items()):
        yield Damage(name, "missing", f"it is gone; the index has {count} exams in it")
    for view in sorted((folder / VIEWS).glob("*.csv")):
        try:
            gone, first = 0, ""
            for pairs in in_pieces(read_view(view), 4096):
                absent = ~present.has(pairs)
                gone, first = gone + int(absent.sum()), first or (pairs[absent.argmax()][0] if absent.any() else "")
        except BadInput as error:
            yield Damage(f"{VIEWS}/{view.name}", "damaged", str(error).partition(" Next:")[0])
            continue
        if gone and not lost and not reported:
            yield Damage(f"{VIEWS}/{view.name}", "missing", f"{gone} of its exams are in no shard; the first: {first}")


def _indexed(path: Path) -> Iterator[tuple[str, list[list[str]]]]:
    """Yield the index's rows shard by shard, as they lie."""
    with path.open(newline="", encoding="utf-8") as handle:
        rows = csv.reader(handle)
        if next(rows, None) != INDEX_COLUMNS:
            raise ValueError(f"its columns are not {', '.join(INDEX_COLUMNS)}")
        for name, group in groupby(rows, key=lambda row: row[1]):
            yield name, list(group)


def _strange(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_dir() or inside.parts[0] == QUARANTINE or inside.name.startswith("."):
            continue
        known = inside.as_posix() in (MANIFEST, INDEX)
        known |= len(inside.parts) == 1 and inside.name.startswith(PREFIX) and inside.name.endswith(SUFFIX)
        known |= len(inside.parts) == 2 and inside.parts[0] == VIEWS and inside.suffix in (".csv", ".sha256")
        if not known:
            yield path
