"""What the benchmarks share: seconds, ratios, memory, and a table of rows with their bars."""

from __future__ import annotations

import ctypes
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path


class Table:
    """Prints rows as they come, keeps them, and knows whether a bar was missed."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def hold(
        self, name: str, value: float, unit: str, least: float | None = None, most: float | None = None, case: str = ""
    ) -> None:
        """Print and keep a figure with the bar it is held to, if any; ``case`` names the block it belongs to."""
        met = (least is None or value >= least) and (most is None or value <= most)
        row = {"name": name, "value": value, "unit": unit, "least": least, "most": most, "met": met}
        self.rows.append({"case": case, **row} if case else row)
        bar = f"bar >= {least:g}" if least is not None else f"bar <= {most:g}" if most is not None else ""
        told = f"{case} {name}" if case else name
        print(f"{told:<72} {value:10.4g} {unit:<9} {bar:<12} {'' if met else 'MISSED'}".rstrip(), flush=True)

    def finish(self, path: Path | None, **versions: object) -> int:
        """Write the rows to ``path``, say how many bars are met, and return the exit code: 1 when one is missed."""
        if path:
            path.write_text(json.dumps({**versions, "rows": self.rows}, indent=1) + "\n")
        barred = [row for row in self.rows if row["least"] is not None or row["most"] is not None]
        met = [row for row in barred if row["met"]]
        print(f"{len(met)} of {len(barred)} bars met.")
        return 0 if len(met) == len(barred) else 1


def cpu_seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Least CPU seconds of the repeats."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def wall_seconds(work: Callable[[], object]) -> float:
    """Seconds on the wall, for work that waits or has processes of its own."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(theirs: Callable[[], object], own: Callable[[], object], repeats: int) -> float:
    """Median over the repeats of their CPU seconds over ours, the two measured back to back."""
    return statistics.median(cpu_seconds(theirs) / cpu_seconds(own) for _ in range(repeats))


def extra_mib(work: Callable[[], object]) -> float:
    """Peak resident memory of the work above what was resident before it (Linux: heap trimmed, peak mark reset)."""

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    resident = status("VmRSS")
    work()
    return status("VmHWM") - resident
