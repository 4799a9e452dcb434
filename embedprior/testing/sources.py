"""Every promise that a cohort source makes: checked tables, counted losses, and nothing written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from embedprior.cohort.base import Cohort, MissingImages
from embedprior.cohort.sources import REGISTRY
from embedprior.errors import EmbedpriorError
from embedprior.imaging.files import exam_file
from embedprior.testing.promises import CheckFailed, Promises

Reader = Callable[[Path, MissingImages], Cohort]


def check_source(source: str | Reader, root: Path | str) -> list[str]:
    """Run every promise of a cohort source on a folder in its layout.

    Args:
        source: registry name, or the function.
        root: a folder that it reads, with at least two images that exist; it is only read.

    Returns:
        The promises that were kept, in words.

    Raises:
        CheckFailed: the first promise that was not kept.
        BadInput: unknown name.
    """
    read: Reader = REGISTRY.load(source) if isinstance(source, str) else source
    promises = Promises(source if isinstance(source, str) else source.__name__)
    root = Path(root)
    before = _state(root)
    cohort = read(root, "drop")
    _tables(promises, cohort)
    again = read(root, "drop")
    promises.require(
        cohort.exams.equals(again.exams) and cohort.pairs.equals(again.pairs) and cohort.flow == again.flow,
        "reading twice gives the same cohort", "the tables differ. Next: sort what the file system lists",
    )  # fmt: skip
    promises.require(before == _state(root), "it leaves the folder as it was", "a file was made or changed")
    _missing(promises, read, root, cohort)
    with tempfile.TemporaryDirectory() as empty:
        promises.require_error(
            lambda: read(Path(empty), "error"), EmbedpriorError, "an empty folder is refused (BadInput)"
        )
    return promises.kept


def _tables(promises: Promises, cohort: Cohort) -> None:
    promises.require(isinstance(cohort, Cohort), "it returns a Cohort", f"a {type(cohort).__name__}")
    try:
        checked = cohort.checked("its tables")
    except EmbedpriorError as error:
        raise CheckFailed(f"{promises.subject}: not true that its tables keep the rules: {error}") from error
    promises.require(True, "its tables keep the rules", "")
    promises.require(
        cohort.exams.columns.tolist() == checked.exams.columns.tolist(), "its tables were checked when it was read",
        "columns are missing. Next: return Cohort(...).checked(where)",
    )  # fmt: skip
    promises.require(len(cohort.exams) > 0, "it finds exams", "the exam table is empty")
    promises.require(len(cohort.flow) > 0, "it counts what it read", "flow is empty. Next: flow_step(...)")
    most = max(step.exams for step in cohort.flow)
    promises.require(
        most >= len(cohort.exams) and all(step.dropped >= 0 for step in cohort.flow),
        "its counts hold every exam", f"{len(cohort.exams)} exams, {most} at most in a step",
    )  # fmt: skip
    silent = [step.step for step in cohort.flow if step.dropped and not step.reason]
    promises.require(not silent, "what it drops has a reason", f"none at step '{silent[0]}'" if silent else "")


def _missing(promises: Promises, read: Reader, root: Path, cohort: Cohort) -> None:
    """Take one image away in a copy of links: it is an error, or dropped and counted, as asked."""
    paths = pd.Series([exam_file(root, str(p)) for p in cohort.exams["path"]], index=cohort.exams["exam_id"])
    alone = paths[~paths.duplicated(keep=False)]
    there = alone[[p.is_file() for p in alone]]
    if len(there) < 2:
        raise CheckFailed(f"{promises.subject}: the folder has fewer than two images to try with. Next: give another")
    exam_id, gone = str(there.index[0]), there.iloc[0]
    with tempfile.TemporaryDirectory() as folder:
        for file in (p for p in root.rglob("*") if p.is_file() and p.resolve() != gone.resolve()):
            link = Path(folder) / file.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        promises.require_error(
            lambda: read(Path(folder), "error"), EmbedpriorError,
            "an image that does not exist is refused (missing_images = error)",
        )  # fmt: skip
        left = read(Path(folder), "drop")
    before = {step.step: step.dropped for step in cohort.flow}
    counted = any(step.dropped > before.get(step.step, 0) for step in left.flow)
    promises.require(
        exam_id not in set(left.exams["exam_id"]) and counted,
        "such an image is dropped and counted when asked (missing_images = drop)",
        f"exam '{exam_id}' {'is still there' if exam_id in set(left.exams['exam_id']) else 'was dropped uncounted'}",
    )  # fmt: skip


def _state(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in root.rglob("*") if p.is_file()}
