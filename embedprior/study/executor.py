"""Run the fits of a study: in this process, in several, or over the processes of a launcher; one artifact a fit."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedprior.runs import QUIET, one_thread, progress_bar
from embedprior.study.runner import Bench, RoundId, Unit

MOST_DEATHS = 2
"""A fit whose process died this often (out of memory, say) is recorded as failed."""


@dataclass(frozen=True)
class Outcome:
    """How one fit ended.

    Attributes:
        unit: which.
        path: its artifact, or None when it failed.
        reason: why it failed; empty otherwise.
        seconds: it took here.
        reused: whether it was there already.
    """

    unit: Unit
    path: Path | None
    reason: str
    seconds: float
    reused: bool


LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LONGEST_WAIT = 30
"""Days that a launched process waits for the others to finish their rounds."""

BenchMaker = Callable[[], list[Bench]]


def run_units(units: Sequence[Unit], make: BenchMaker, workers: int = 1) -> list[Outcome]:
    """Run every unit and return the outcomes in the order of ``units``.

    Args:
        units: what to fit.
        make: gives the benches, one a variant; called once in every process, so it must be picklable when there is
            more than one worker.
        workers: processes. Under ``torchrun`` or ``accelerate launch`` each launched process takes whole rounds of
            its own instead, and every process returns all outcomes.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    clock = _Clock(units, max(workers, launched))
    if launched > 1:
        found = _launched(units, make, clock)
    elif workers > 1:
        found = list(_pooled(units, make, workers, clock))
    else:
        benches = make()
        with one_thread():
            found = [clock.tick(_attempt(benches, u)) for u in units]
    clock.close()
    by_unit = {o.unit: o for o in found}
    return [by_unit[u] for u in units]


def _attempt(benches: list[Bench], unit: Unit) -> Outcome:
    started = time.monotonic()
    try:
        made = benches[unit.round.variant].fit(unit)
    except Exception as error:  # one failed fit never stops the rest: it is recorded with its reason
        return Outcome(unit, None, reason_of(error), time.monotonic() - started, False)
    return Outcome(unit, made.path, "", time.monotonic() - started, made.reused)


def reason_of(error: Exception) -> str:
    """Return an exception in one line, with its type unless it is one of the package's own."""
    text = " ".join(str(error).split()) or "no message"
    own = type(error).__module__.startswith("embedprior.")
    return text if own else f"{type(error).__name__}: {text}"


def _launched(units: Sequence[Unit], make: BenchMaker, clock: _Clock) -> list[Outcome]:
    from datetime import timedelta

    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT * timedelta(days=1))
    rounds = list(dict.fromkeys((u.round, u.seed) for u in units))
    mine = set(rounds[state.process_index :: state.num_processes])
    # A prior trains through accelerate too: seen from a launched process it would take the others for its helpers.
    # So the fits run in a process of their own, which knows nothing of the launcher.
    own = list(_pooled([u for u in units if (u.round, u.seed) in mine], make, 1, clock))
    state.wait_for_everyone()
    found: list[Outcome] = gather_object(own)
    return found


_BENCHES: list[Bench] = []


def _start(make: BenchMaker) -> None:
    for name in LAUNCHER:
        os.environ.pop(name, None)
    os.environ[QUIET] = "1"
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)
    _BENCHES[:] = make()


def _work(unit: Unit) -> Outcome | None:
    return _attempt(_BENCHES, unit)


def _prepare_head(where: RoundId, seed: int) -> Outcome | None:
    _BENCHES[where.variant].head(where, seed)
    return None


def _pooled(units: Sequence[Unit], make: BenchMaker, workers: int, clock: _Clock) -> Iterator[Outcome]:
    """Yield outcomes as they come; a process that dies takes down its own fits only."""
    left = list(units)
    deaths: dict[Unit, int] = defaultdict(int)
    while left:
        done: set[Unit] = set()
        running: list[Unit] = []
        try:
            for outcome in _one_pool(left, make, workers, running):
                done.add(outcome.unit)
                yield clock.tick(outcome)
        except BrokenProcessPool:
            for unit in running or left[:1]:
                deaths[unit] += 1
        left = [u for u in left if u not in done]
        for unit in [u for u in left if deaths[u] >= MOST_DEATHS]:
            left.remove(unit)
            yield clock.tick(Outcome(unit, None, f"its process died {MOST_DEATHS} times (out of memory?)", 0.0, False))


def _one_pool(units: Sequence[Unit], make: BenchMaker, workers: int, running: list[Unit]) -> Iterator[Outcome]:
    """Teacher first, then the fits of its round and seed; whatever is ready goes to the next free process."""
    waiting: dict[tuple[RoundId, int], list[Unit]] = defaultdict(list)
    for unit in units:
        waiting[unit.round, unit.seed].append(unit)
    rounds = iter(list(waiting))
    jobs: dict[Future[Outcome | None], Unit | tuple[RoundId, int]] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(make,)) as pool:
        while True:
            while len(jobs) < 2 * workers and (key := next(rounds, None)) is not None:
                jobs[pool.submit(_prepare_head, *key)] = key
            if not jobs:
                return
            ended, _ = wait(jobs, return_when=FIRST_COMPLETED)
            for future in ended:
                job = jobs[future]
                if isinstance(future.exception(), BrokenProcessPool):
                    running[:] = [u for u in jobs.values() if isinstance(u, Unit)]
                    raise BrokenProcessPool(f"a process died while fitting {job}")
                del jobs[future]
                if isinstance(job, Unit):
                    outcome = future.result()
                    assert outcome is not None
                    yield outcome
                else:  # a teacher that failed fails again, with its reason, in each fit that needs it
                    jobs |= {pool.submit(_work, unit): unit for unit in waiting[job]}


class _Clock:
    """Progress on standard error: fits done, and minutes left.

    A fit to come is thought to take the mean of its method's finished fits, or of all while there is none.
    """

    def __init__(self, units: Sequence[Unit], processes: int) -> None:
        self._bar = progress_bar(None, "fits", len(units))
        self._processes = processes
        self._spent: dict[str, list[float]] = defaultdict(list)
        self._left = Counter(unit.method for unit in units)
        self._failed = 0

    def tick(self, outcome: Outcome) -> Outcome:
        """Count one outcome and return it."""
        self._left[outcome.unit.method] -= 1
        self._failed += outcome.path is None
        if not outcome.reused:
            self._spent[outcome.unit.method].append(outcome.seconds)
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
