"""The embedding cache: batch reads against an in-RAM gather and one .npy per study, opening, and memory while building.

Ratios compare work done back to back in one run. Memory is the peak of a process of its own that runs the command
`embedprior embed` on an exam table in a file, by number of rows. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common.measuring import Table, wall_seconds

from embedprior.cache import CacheWriter, open_cache, reader
from embedprior.cache.verify import find_corruption
from embedprior.cli import main as command
from embedprior.encoders import registry
from embedprior.encoders.base import EncoderSpec

BATCH = 64


class Synthetic:
    """Eight bytes → a fixed random projection: next to no work, so that the cache's own cost shows."""

    def __init__(self, dim: int) -> None:
        self.spec = EncoderSpec(
            name="synthetic", modality="image", dim=dim, source="benchmark", weights_sha256="none", licence="none",
            profile={"transform_version": 1}, pooling="none",
        )  # fmt: skip
        self._weights = np.random.default_rng(0).normal(size=(8, dim)).astype(np.float32)
        self._rows: np.ndarray | None = None

    def read(self, root: Path, path: str) -> np.ndarray:
        if self._rows is None:
            self._rows = np.load(root / "rows.npy", mmap_mode="r")
        return np.array(self._rows[int(path.partition("#")[2])])

    def embed(self, batch: np.ndarray) -> np.ndarray:
        return batch.astype(np.float32) @ self._weights


class Synthetic512(Synthetic):
    """The encoder that the command finds by name."""

    def __init__(self) -> None:
        super().__init__(512)


def build(folder: Path) -> None:
    """Fill a cache by the command, in this process; print its peak memory in KiB (Linux), and seconds of the check."""
    registry.ENCODERS["synthetic"] = f"{__name__}:Synthetic512"
    words = ["embed", "--cohort", str(folder / "exams.csv"), "--encoder", "synthetic", "--out", str(folder / "cache")]
    code = command(words)
    assert code == 0, f"embed returned {code}"
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
    cache = next((folder / "cache").glob("synthetic@*"))
    print(peak, wall_seconds(lambda: find_corruption(cache)))


def peak_mib(folder: Path, count: int) -> tuple[float, float, float]:
    """Peak memory (MiB) of embedding ``count`` rows in a process of its own, its seconds, and those of the check with
    which the next run starts."""
    folder.mkdir()
    np.save(folder / "rows.npy", np.random.default_rng(1).integers(0, 256, (count, 8), dtype=np.uint8))
    with (folder / "exams.csv").open("w") as table:
        table.write("exam_id,patient_id,modality,path\n")
        table.writelines(f"e{i},p{i},CXR,rows.npy#{i}\n" for i in range(count))
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--build", str(folder)], check=True, stdout=subprocess.PIPE, text=True
    )
    peak, checked = done.stdout.split()[-2:]
    return int(peak) / 1024, time.perf_counter() - start - float(checked), float(checked)


def reads(table: Table, folder: Path, count: int, dim: int, studies: int, rounds: int) -> None:
    """Opening, and random batches of 64."""
    rng = np.random.default_rng(2)
    spec = Synthetic(dim).spec
    ids = [f"study-{i:07d}" for i in range(count)]
    with CacheWriter(folder / "cache", spec) as writer:
        for start in range(0, count, 512):
            part = ids[start : start + 512]
            writer.append(part, ["0" * 64] * len(part), rng.normal(size=(len(part), dim)).astype(np.float32))
    opening = [wall_seconds(lambda: open_cache(folder / "cache")) for _ in range(3)]
    table.hold(f"open {count} x {dim}", statistics.median(opening), "s", most=1.0)
    fresh, copied = open_cache(folder / "cache"), open_cache(folder / "cache")
    table.hold("copy to RAM, once", wall_seconds(lambda: copied.matrix), "s")
    matrix = np.array(copied.matrix)
    (folder / "npy").mkdir()
    for i in range(studies):
        np.save(folder / "npy" / f"{ids[i]}.npy", matrix[i])

    def one_npy_each(rows: np.ndarray) -> np.ndarray:
        return np.stack([np.load(folder / "npy" / f"{ids[i]}.npy") for i in rows])

    def other() -> np.ndarray:
        """Rows that no turn has had: none finds its numbers warm from the turn before."""
        return rng.integers(0, count, BATCH)

    place = {exam_id: row for row, exam_id in enumerate(ids)}
    mapped = open_cache(folder / "cache")
    reader.COPY_AFTER, copy_after = float("inf"), reader.COPY_AFTER  # stays by map however much is read
    times: dict[str, list[float]] = {}
    for n in range(rounds + 1):
        gathered, by_ram, by_map = other(), other(), other()
        names, wanted = [ids[i] for i in other()], [ids[i] for i in other()]
        few = rng.integers(0, studies, BATCH)
        turn = {
            "gather": wall_seconds(lambda rows=gathered: matrix[rows]),
            "ram": wall_seconds(lambda rows=by_ram: copied.read(rows)),
            "map": wall_seconds(lambda rows=by_map: mapped.read(rows)),
            "gather ids": wall_seconds(lambda names=names: matrix[[place[name] for name in names]]),
            "ids": wall_seconds(lambda names=wanted: copied.take(names)),
            "npy": wall_seconds(lambda rows=few: one_npy_each(rows)),
        }
        for name, value in turn.items() if n else []:  # the first pays for maps and tables that are made once
            times.setdefault(name, []).append(value)
    assert "matrix" not in mapped.__dict__
    reader.COPY_AFTER = copy_after
    assert np.array_equal(copied.read(by_ram), matrix[by_ram])
    assert np.array_equal(mapped.read(by_map), matrix[by_map])
    batches = rng.permutation(count)[: count // BATCH * BATCH].reshape(-1, BATCH)
    gathering = wall_seconds(lambda: [matrix[rows] for rows in batches])
    first_epoch = wall_seconds(lambda: [fresh.read(rows) for rows in batches])
    middle = {name: statistics.median(values) for name, values in times.items()}
    table.hold("in-RAM gather of 64 random rows (the ceiling)", 1e6 * middle["gather"], "us")
    table.hold("read 64 rows (in RAM), over it", middle["ram"] / middle["gather"], "x", most=2.0)
    table.hold("read 64 rows (by memory map), over it", middle["map"] / middle["gather"], "x", most=2.0)
    first = statistics.median(times["map"][: rounds // 10])
    table.hold("  the first of them, whose pages nobody has touched, over it", first / middle["gather"], "x")
    table.hold("take 64 exams by id (in RAM), over an in-RAM gather by id", middle["ids"] / middle["gather ids"], "x",
               most=2.0)  # fmt: skip
    table.hold("  over the gather by row", middle["ids"] / middle["gather"], "x")
    table.hold("the whole first epoch, copy to RAM included, over its gathers", first_epoch / gathering, "x")
    table.hold("one .npy per study over reading 64 rows (in RAM)", middle["npy"] / middle["ram"], "x", least=50.0)
    table.hold("one .npy per study over reading 64 rows (by map)", middle["npy"] / middle["map"], "x", least=50.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less rows, the same code")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--build", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        build(Path(args.build))
        return 0
    table = Table()
    small, large = (5_000, 50_000) if args.quick else (100_000, 1_000_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reads(table, folder, 20_000 if args.quick else 100_000, 1024, 1000 if args.quick else 5000,
              100 if args.quick else 400)  # fmt: skip
        low, _, _ = peak_mib(folder / "small", small)
        high, wall, checked = peak_mib(folder / "large", large)
        table.hold(f"peak memory of embed, {small} x 512", low, "MiB")
        table.hold(f"peak memory of embed, {large} x 512 ({large * 2048 / 2**20:.0f} MiB of numbers)", high, "MiB")
        growth = (high - low) * 2**20 / (large - small)
        table.hold("  growth, of the 2048 bytes that a row has", growth, "bytes/row", most=102.4)
        table.hold("  rows embedded, with the process's start", large / wall, "rows/s")
        table.hold("  check of every byte at the start of the next run", checked, "s")
    return table.finish(args.json, numpy=np.__version__)


if __name__ == "__main__":
    sys.exit(main())
