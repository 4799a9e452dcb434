"""Radiographs on their way into ``predict``, and its table of scores on the way out."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from embedprior.encoders.base import Encoder
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import collect_findings
from embedprior.imaging.radiographs import stated_view
from embedprior.imaging.readers import discover
from embedprior.runs import write_text
from embedprior.runs.integrity import refuse_changed_result
from embedprior.tables import read_table, spreadsheet_safe

COLUMNS = [
    "image", "score", "probability", "low", "high", "decision", "distance_percentile", "warnings", "reason", "bundle",
]  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A radiograph on its way to the encoder.

    Attributes:
        name: its path.
        array: what the encoder reads; None where it can't be scored.
        warnings: of the audit.
        reason: why it can't be scored.
    """

    name: str
    array: NDArray[Any] | None
    warnings: str = ""
    reason: str = ""


def read_picture(encoder: Encoder, path: Path) -> Picture:
    """Read one radiograph; what is wrong with it is in its ``reason``, and never stops the others."""
    name = path.as_posix()
    try:
        if stated_view(path) == "LATERAL":
            raise UnreadableExam("a lateral view by its header; the models have seen frontal ones (PA, AP)")
        with collect_findings() as found:
            array = encoder.read(path.parent, path.name)
        return Picture(name, array, "; ".join(dict.fromkeys(f.code for f in found if f.severity == "warning")))
    except UnreadableExam as error:
        return Picture(name, None, reason=str(error))
    except EmbedpriorError:
        raise
    except Exception as error:  # one bad file of many must not stop the rest; its text may name a folder
        return Picture(name, None, reason=f"damaged ({type(error).__name__})")


class _Batches(Dataset[list[Picture]]):
    def __init__(self, encoder: Encoder, batches: Sequence[Sequence[Path]]) -> None:
        self._encoder, self._batches = encoder, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> list[Picture]:
        return [read_picture(self._encoder, path) for path in self._batches[number]]


def read_ahead(encoder: Encoder, batches: Sequence[Sequence[Path]], workers: int) -> Iterator[list[Picture]]:
    """Yield the pictures of every batch, in their order.

    Args:
        encoder: its ``read`` is called.
        batches: paths.
        workers: processes that read ahead; 0 = this one.
    """
    loader: DataLoader[list[Picture]] = DataLoader(
        _Batches(encoder, batches), batch_size=None, num_workers=workers, collate_fn=_as_it_is,
        generator=torch.Generator(), prefetch_factor=2 if workers else None,
        # as in cache.loading: forked workers share the weights' memory
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )  # fmt: skip
    yield from loader


def _as_it_is(batch: list[Picture]) -> list[Picture]:
    return batch


def image_files(paths: Iterable[Path | str]) -> list[Path]:
    """Return the radiographs: files as they are, folders searched.

    Raises:
        BadInput: a folder without a radiograph.
    """
    chosen: list[Path] = []
    for path in map(Path, paths):
        found = [one.path for one in discover(path).exams if one.kind == "radiograph"] if path.is_dir() else [path]
        if not found:
            raise BadInput(f"{path}: no radiograph in it. Allowed: DICOM, PNG or JPEG files.")
        chosen += found
    return chosen


def scored_before(table: Path, bundle_id: str) -> dict[str, bool]:
    """Return the images a table of predictions holds already → whether they have no score.

    Raises:
        BadInput: it is no such table, of another bundle, or not what a finished ``predict`` left.
    """
    if not table.is_file():
        return {}
    refuse_changed_result(table)
    drop_torn_row(table)
    if not table.stat().st_size:
        table.unlink()
        return {}
    rows = read_table(table, ("image", "score", "bundle"))
    others = sorted(set(rows["bundle"].astype(str)) - {bundle_id[:12]})
    if others:
        raise BadInput(f"{table} holds scores of another bundle ({others[0]}, not {bundle_id[:12]}). Next: give "
                       "another --out")  # fmt: skip
    return {str(image): bool(missing) for image, missing in zip(rows["image"], rows["score"].isna(), strict=True)}


def drop_torn_row(table: Path) -> None:
    """Cut off what a stopped run left of its last row."""
    with table.open("r+b") as handle:
        content = handle.read()
        if content and not content.endswith(b"\n"):
            handle.truncate(content.rfind(b"\n") + 1)


def write_scores(parts: Iterable[pd.DataFrame], out: Path | TextIO, kind: str) -> int:
    """Write predictions as they come; return how many images have no score.

    Args:
        parts: of ``Bundle.predict_files``.
        out: a file, appended to when it is a CSV that is there; or an open stream.
        kind: ``csv`` or ``json`` (a list of records).
    """
    without, collected = 0, []
    for part in parts:
        without += int(part["score"].isna().sum())
        if kind == "json":
            collected.append(part)
            continue
        new = not isinstance(out, Path) or not out.is_file()
        header = new if isinstance(out, Path) else not collected
        text = spreadsheet_safe(part).to_csv(index=False, header=header, float_format="%.10g")
        if isinstance(out, Path):
            with out.open("a", encoding="utf-8") as handle:
                handle.write(text)
        else:
            out.write(text)
            collected.append(part.iloc[:0])
    if kind == "json":
        whole = pd.concat(collected, ignore_index=True) if collected else pd.DataFrame(columns=COLUMNS)
        text = whole.to_json(orient="records", indent=2) + "\n"
        if isinstance(out, Path):
            write_text(out, text)
        else:
            out.write(text)
    return without
