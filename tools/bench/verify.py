"""What integrity costs: the first check of a cache against plain sha256 of its files, and a start that remembers it.

The first check reads every byte of every shard, and its header twice, on as many threads as there are processors. The
ceiling is ``sha256`` of the same files, one after the other, in the same process just before and just after. A start is
what every study, training and export does first: open the cache, and look whether each shard is still the file that was
found whole. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common.measuring import Table, wall_seconds

from embedprior.cache import CacheWriter, open_cache
from embedprior.cache.build import SHARD_EXAMS
from embedprior.cache.format import shard_files
from embedprior.cache.verify import open_verified, refuse_corruption
from embedprior.encoders.base import EncoderSpec
from embedprior.runs import hash_file, hash_of
from embedprior.runs.integrity import REMEMBERED

START = "import sys; from embedprior.cache.verify import open_verified; open_verified(sys.argv[1])"
IMPORTS = "import embedprior.cache.verify"


def fill(folder: Path, count: int, dim: int) -> Path:
    """Write a cache of ``count`` embeddings; return its folder."""
    spec = EncoderSpec(
        name="synthetic", modality="image", dim=dim, source="benchmark", weights_sha256="none", licence="none",
        profile={"transform_version": 1}, pooling="none",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    with CacheWriter(folder, spec) as writer:
        for start in range(0, count, SHARD_EXAMS):  # shards as `embed` writes them
            part = range(start, min(start + SHARD_EXAMS, count))
            rows = rng.standard_normal((len(part), dim), dtype=np.float32)
            writer.append([f"study-{i:07d}" for i in part], [hash_of(i) for i in part], rows)
    return open_cache(folder).path


def first_check(table: Table, folder: Path, count: int, dim: int, turns: int) -> None:
    """Hold the first check to plain hashing of the same files."""
    cache = open_cache(fill(folder / "large", count, dim))
    files = shard_files(cache.path)
    size = sum(path.stat().st_size for path in files)

    def check() -> None:
        (cache.path / REMEMBERED).unlink(missing_ok=True)
        refuse_corruption(cache)

    check()  # the files are in the system's memory from here on: what is compared is the hash, not the disk
    plain, ours = [], []
    for _ in range(turns):
        before = wall_seconds(lambda: [hash_file(path) for path in files])
        ours.append(wall_seconds(check))
        plain.append((before + wall_seconds(lambda: [hash_file(path) for path in files])) / 2)
    shares = [ceiling / own for ceiling, own in zip(plain, ours, strict=True)]
    table.hold(f"sha256 of {count} x {dim} ({size / 1e9:.2f} GB), the ceiling", size / 1e9 / min(plain), "GB/s")
    table.hold("first check, of the ceiling's speed", statistics.median(shares), "x", least=0.7)


def remembered_start(table: Table, folder: Path, count: int, dim: int, turns: int) -> None:
    """Hold a start that remembers the check to two seconds."""
    path = fill(folder / "many", count, dim)
    table.hold(f"open and check {count} x {dim} for the first time", wall_seconds(lambda: open_verified(path)), "s")
    cache = open_cache(path)
    looks = [wall_seconds(lambda: refuse_corruption(cache)) for _ in range(turns)]
    table.hold(f"look whether {len(cache.shards)} shards are those that were checked", statistics.median(looks), "s")
    both = [wall_seconds(lambda: open_verified(path)) for _ in range(turns)]
    table.hold(f"open {count} exams, the check remembered", statistics.median(both), "s", most=2.0)
    imports = min(wall_seconds(lambda: subprocess.run([sys.executable, "-c", IMPORTS], check=True)) for _ in range(2))
    whole = min(wall_seconds(lambda: subprocess.run([sys.executable, "-c", START, str(path)], check=True))
                for _ in range(2))  # fmt: skip
    table.hold("  in a process of its own, without its imports", whole - imports, "s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less rows, the same code")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    table = Table()
    with tempfile.TemporaryDirectory() as name:
        first_check(table, Path(name), 100_000 if args.quick else 300_000, 512, 3)
        remembered_start(table, Path(name), 100_000 if args.quick else 1_000_000, 32, 3)
    return table.finish(args.json, numpy=np.__version__)


if __name__ == "__main__":
    sys.exit(main())
