"""Run the fits of a study: in this process, in several, or over the processes of a launcher; one artifact a fit."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedprior.runs import QUIET, is_full, one_thread, progress_bar
from embedprior.runs.distributed import launcher_number
from embedprior.runs.workers import worker_pool
from embedprior.study.runner import FitJob, FoldId, FoldRunner

MAX_CRASHES = 2
"""A fit whose process died this often (out of memory, say) is recorded as failed."""


@dataclass(frozen=True)
class Outcome:
    """How one fit ended.

    Attributes:
        job: which.
        path: its artifact, or None when it failed.
        reason: why it failed; empty otherwise.
        seconds: it took here.
        reused: whether it was there already.
    """

    job: FitJob
    path: Path | None
    reason: str
    seconds: float
    reused: bool


LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TIMEOUT_DAYS = 30
"""How long a launched process waits for the others to finish their folds."""

RunnerFactory = Callable[[], list[FoldRunner]]


def run_jobs(jobs: Sequence[FitJob], make: RunnerFactory, workers: int = 1) -> list[Outcome]:
    """Run every job and return the outcomes in the order of ``jobs``.

    Args:
        jobs: what to fit.
        make: returns the fold runners, one a variant; called once in every process, so it must be picklable when
            there is more than one worker.
        workers: processes. Under ``torchrun`` or ``accelerate launch`` each launched process takes whole folds of
            its own instead, and every process returns all outcomes.
    """
    launched = launcher_number("WORLD_SIZE", 1)
    progress = _Progress(jobs, max(workers, launched))
    try:
        if launched > 1:
            found = _launched(jobs, make, progress)
        elif workers > 1:
            found = list(_pooled(jobs, make, workers, progress))
        else:
            fold_runners = make()
            with one_thread():
                found = [progress.count(_attempt(fold_runners, job)) for job in jobs]
    finally:
        progress.close()
    by_job = {o.job: o for o in found}
    return [by_job[job] for job in jobs]


def _attempt(fold_runners: list[FoldRunner], job: FitJob) -> Outcome:
    started = time.monotonic()
    try:
        made = fold_runners[job.fold_id.variant].fit(job)
    except Exception as error:  # one failed fit never stops the rest: it is recorded with its reason
        if is_full(error):  # every other would fail in the same way
            raise
        return Outcome(job, None, reason_of(error), time.monotonic() - started, False)
    return Outcome(job, made.path, "", time.monotonic() - started, made.reused)


def reason_of(error: Exception) -> str:
    """Return an exception in one line, with its type unless it is one of the package's own."""
    text = " ".join(str(error).split()) or "no message"
    own = type(error).__module__.startswith("embedprior.")
    return text if own else f"{type(error).__name__}: {text}"


def _together(job: FitJob) -> tuple[FoldId, int] | str:
    """Return what names the jobs that one process runs: of one fold and seed, for all labels."""
    return job.group or (job.fold_id, job.seed)


def _launched(jobs: Sequence[FitJob], make: RunnerFactory, progress: _Progress) -> list[Outcome]:
    from datetime import timedelta

    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT_DAYS * timedelta(days=1))
    folds = list(dict.fromkeys(_together(job) for job in jobs))
    mine = set(folds[state.process_index :: state.num_processes])
    # A prior trains through accelerate too: seen from a launched process it would take the others for its helpers.
    # So the fits run in a process of their own, which knows nothing of the launcher.
    own = list(_pooled([job for job in jobs if _together(job) in mine], make, 1, progress))
    state.wait_for_everyone()
    found: list[Outcome] = gather_object(own)
    return found


_RUNNERS: list[FoldRunner] = []


def _start(make: RunnerFactory) -> None:
    for name in LAUNCHER:
        os.environ.pop(name, None)
    os.environ[QUIET] = "1"
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)
    _RUNNERS[:] = make()


def _work(job: FitJob) -> Outcome | None:
    return _attempt(_RUNNERS, job)


def _work_all(jobs: Sequence[FitJob]) -> list[Outcome]:
    return [_attempt(_RUNNERS, job) for job in jobs]


def _train_head(where: FoldId, seed: int) -> Outcome | None:
    _RUNNERS[where.variant].head(where, seed)
    return None


def _pooled(jobs: Sequence[FitJob], make: RunnerFactory, workers: int, progress: _Progress) -> Iterator[Outcome]:
    """Yield outcomes as they come; a process that dies takes down its own fits only."""
    left = list(jobs)
    crashes: dict[FitJob, int] = defaultdict(int)
    while left:
        done: set[FitJob] = set()
        running: list[FitJob] = []
        try:
            for outcome in _one_pool(left, make, workers, running, bool(crashes)):
                done.add(outcome.job)
                yield progress.count(outcome)
        except BrokenProcessPool:
            for job in running or left[:1]:
                crashes[job] += 1
        left = [u for u in left if u not in done]
        for job in [u for u in left if crashes[u] >= MAX_CRASHES]:
            left.remove(job)
            yield progress.count(
                Outcome(job, None, f"its process died {MAX_CRASHES} times (out of memory?)", 0.0, False)
            )


def _one_pool(
    jobs: Sequence[FitJob], make: RunnerFactory, workers: int, running: list[FitJob], alone: bool
) -> Iterator[Outcome]:
    """Teacher first, then the fits of its fold and seed; whatever is ready goes to the next free process.

    The labels of a fold and seed go to one process, which trains a prior once and keeps its samples; not where a
    process died before (``alone``): then each fit is seen by itself.
    """
    waiting: dict[tuple[FoldId, int] | str, list[FitJob]] = defaultdict(list)
    for job in jobs:
        waiting[(job.fold_id, job.seed) if alone else _together(job)].append(job)
    folds = iter(list(waiting.values()))
    after: dict[tuple[FoldId, int], list[FitJob]] = {}
    futures: dict[Future[Any], FitJob | list[FitJob] | tuple[FoldId, int]] = {}
    with worker_pool(workers, _start, (make,)) as pool:
        while True:
            while len(futures) < 2 * workers and (ready := next(folds, None)) is not None:
                if len({job.fold_id for job in ready}) > 1:
                    futures[pool.submit(_work_all, ready)] = ready
                else:
                    key = (ready[0].fold_id, ready[0].seed)
                    after[key] = ready
                    futures[pool.submit(_train_head, *key)] = key
            if not futures:
                return
            ended, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in ended:
                ended_job = futures[future]
                if isinstance(future.exception(), BrokenProcessPool):
                    running[:] = [u for u in futures.values() if isinstance(u, FitJob)]
                    raise BrokenProcessPool(f"a process died while fitting {ended_job}")
                del futures[future]
                if isinstance(ended_job, FitJob):
                    yield future.result()
                elif isinstance(ended_job, list):
                    yield from future.result()
                else:  # a teacher that failed fails again, with its reason, in each fit that needs it
                    futures |= {pool.submit(_work, ready): ready for ready in after[ended_job]}


class _Progress:
    """Progress on standard error: fits done, and minutes left.

    A fit to come is thought to take the mean of its method's finished fits, or of all while there is none.
    """

    def __init__(self, jobs: Sequence[FitJob], processes: int) -> None:
        self._bar = progress_bar(None, "fits", len(jobs))
        self._processes = processes
        self._spent: dict[str, list[float]] = defaultdict(list)
        self._left = Counter(job.method for job in jobs)
        self._failed = 0

    def count(self, outcome: Outcome) -> Outcome:
        """Count one outcome, and return it."""
        self._left[outcome.job.method] -= 1
        self._failed += outcome.path is None
        if not outcome.reused:
            self._spent[outcome.job.method].append(outcome.seconds)
        if self._spent:
            every = float(np.mean([s for each in self._spent.values() for s in each]))
            mean = {m: float(np.mean(self._spent[m])) if m in self._spent else every for m in self._left}
            minutes = sum(count * mean[m] for m, count in self._left.items()) / self._processes / 60
            failed = f", {self._failed} failed" if self._failed else ""
            self._bar.set_postfix_str(f"about {minutes:.1f} min left{failed}", refresh=False)
        self._bar.update()
        return outcome

    def close(self) -> None:
        """End the bar."""
        self._bar.close()
