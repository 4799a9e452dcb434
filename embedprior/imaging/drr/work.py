"""All CTs of a run: in this process, in several workers, or shared among launched processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.volume import read_volume
from embedprior.runs import one_thread, progress

from .job import Rendered, isocentre, poses_of, project, render_exam
from .matching import Match, fit_tone, read_references, reference_files
from .settings import DrrConfig
from .sources import Scanned

SECONDS_PER_SAMPLE = 6e-9
"""Of the plane sweep on one core, measured with tools/bench/drr.py: a ray's reading of one plane."""
READ_SECONDS = 1.5
FIT_CTS, FIT_SIZE = 12, 112


def render_all(
    items: Sequence[Scanned], config: DrrConfig, root: Path, workers: int = 1, desc: str = "drr"
) -> list[Rendered]:
    """Render every CT; returns what came of each, in their order.

    The images do not depend on the number of workers: each CT is rendered on one thread.

    Args:
        items: CTs, each series once.
        config: the settings.
        root: folder of artifacts.
        workers: processes; 1 = this one.
        desc: text of the progress bar.
    """
    work = partial(render_exam, config=config, root=root)
    if workers <= 1 or len(items) <= 1:
        return list(progress(map(work, items), desc, total=len(items)))
    return list(progress(_pooled(work, items, min(workers, len(items))), desc, total=len(items)))


def seconds_estimate(items: int, config: DrrConfig, workers: int) -> float:
    """Return a rough duration for planning; a large CT takes longer to read."""
    each = READ_SECONDS + config.poses * config.size**2 * 256 * SECONDS_PER_SAMPLE
    return items * each / max(1, min(workers, items))


def tone_for(items: Sequence[Scanned], config: DrrConfig, references: Path) -> Match:
    """Fit the tone curve of a run to a folder of radiographs, on small straight images of its first CTs.

    Raises:
        BadInput: see ``matching.reference_files`` and ``read_references``; or no CT can be read.
    """
    pictures = read_references(reference_files(references, config.view))
    small = config.model_copy(update={"size": FIT_SIZE, "poses": 1})
    from .appearance import expose

    made = []
    with one_thread():
        for item in progress(items[:FIT_CTS], "tone", total=min(len(items), FIT_CTS)):
            try:
                volume, _ = read_volume(item.exam.path, config.series)
            except UnreadableExam:
                continue  # its failure is recorded when its turn to be rendered comes
            integrals = project(volume, small, poses_of(small, item.digest), isocentre(volume, config.centre))
            # noise changes no quantile that matters, and one seed must not depend on the order of the CTs
            still = config.appearance.model_copy(update={"photons_per_mm2": None})
            made.append(expose(integrals, still, small.geometry.pitch)[0].numpy())
    if not made:
        raise BadInput("--match-style: none of the first CTs can be read. Next: run without it to see why.")
    return fit_tone(made, pictures, config.appearance)


def _pooled(work: Callable[[Scanned], Rendered], items: Sequence[Scanned], workers: int) -> Iterator[Rendered]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # a forked child inherits the locks of torch's threads, and hangs on them
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, items)
