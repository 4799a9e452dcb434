"""The folder of one command and the record of what it was made with; seeds, progress bars and threads of long work."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from embedprior.errors import BadInput
from embedprior.runs.files import DiskFull, canonical, make_folder, read_json, write_json, write_text
from embedprior.runs.integrity import NOTED, file_records, forget_results, with_checksum
from embedprior.runs.locks import FOLDERS, claimed
from embedprior.runs.provenance import (
    RECORD,
    close_log,
    from_home,
    kept_caches,
    open_log,
    portable_path,
    register_run,
    relative_uses,
)
from embedprior.version import __version__

if TYPE_CHECKING:
    import tqdm as tqdm_module

T = TypeVar("T")
QUIET = "EMBEDPRIOR_QUIET"
LONG_AGO_S = 3600.0


def seed_for(seed: int, *names: str | int) -> int:
    """Return the seed of one named random stream: the same names give the same stream, others are independent."""
    text = json.dumps([seed, *names])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def progress(items: Iterable[T], desc: str, total: int | None = None) -> Iterator[T]:
    """Yield ``items`` with a progress bar on standard error (see ``progress_bar``).

    ``$EMBEDPRIOR_QUIET`` leaves it out; worker processes set it, so that their bars do not write over each other.
    """
    yield from progress_bar(items, desc, total, disable=bool(os.environ.get(QUIET)))


def progress_bar(
    items: Iterable[Any] | None, desc: str, total: int | None = None, disable: bool = False, **settings: Any
) -> tqdm_module.tqdm[Any]:
    """Return a progress bar on standard error (a line every so often when it is not a terminal).

    Args:
        items, desc, total, disable, settings: as tqdm takes them.
    """
    interval = 0.1 if sys.stderr.isatty() else 15.0
    chosen: dict[str, Any] = {"mininterval": interval, "maxinterval": 2 * interval, "leave": True, **settings}
    return _bar_class()(items, desc=desc, total=total, disable=disable, **chosen)


@dataclass
class Cost:
    """What a piece of work cost this process.

    Attributes:
        seconds: wall clock.
        cpu_seconds: of the processor, all threads together: the same on a busy machine.
        peak_mb: the largest resident memory meanwhile, that of the libraries and the data included, in 10^6 bytes; None
            where the system does not tell (it does on Linux).
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mb: float | None = None

    def record(self) -> dict[str, float | None]:
        """Return it for a JSON file."""
        return asdict(self)


@contextmanager
def measured() -> Iterator[Cost]:
    """Yield a cost that is filled in when the block ends.

    Example:
        >>> with measured() as cost:
        ...     total = sum(range(1000))
        >>> cost.seconds >= 0
        True
    """
    cost, started, busy = Cost(), time.monotonic(), time.process_time()
    with suppress(OSError):  # not Linux
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
    yield cost
    cost.seconds = round(time.monotonic() - started, 3)
    cost.cpu_seconds = round(time.process_time() - busy, 3)
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        cost.peak_mb = round(int(peak_kib) * 1024 / 1e6, 1)


SHORT_WAIT_S = 2.0
"""A part of other work that takes no longer shows no bar of its own."""


def inner_bar(desc: str, total: int) -> tqdm_module.tqdm[Any]:
    """Return a bar for one part of longer work: on a terminal only, after ``SHORT_WAIT_S``, gone when it is done."""
    quiet = bool(os.environ.get(QUIET)) or not sys.stderr.isatty()
    return progress_bar(None, desc, total, disable=quiet, leave=False, delay=SHORT_WAIT_S)


@cache
def _bar_class() -> type[tqdm_module.tqdm[Any]]:
    """Return tqdm with a lock of this process alone.

    The lock it makes by default is a semaphore shared with every forked child: a child killed while it draws takes the
    semaphore with it, and the next bar of any other process waits for it without end.
    """
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        """A class of its own, so that a caller's other bars keep their lock."""

    def renew() -> None:
        Bar.set_lock(threading.RLock())

    renew()
    os.register_at_fork(after_in_child=renew)  # another thread of the parent may have held it at that instant
    return Bar


@contextmanager
def one_thread() -> Iterator[None]:
    """Fit on one thread: these networks are so small that threads cost more than they save, and far more on a
    busy machine; and sums in one order give the same scores on every number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class MetricsLog:
    """Append-only ``metrics.jsonl``: one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, **fields: Any) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(canonical(fields), sort_keys=True) + "\n")


class Run:
    """The folder of one command: ``run.json``, ``metrics.jsonl``, ``summary.md``, ``failures.csv``.

    Create it only when the input has been found good: on bad input nothing is written. Artifacts and caches used
    until ``finish`` are listed in ``run.json`` under ``uses``, by key and by a path relative to this folder.

    Args:
        out: the folder.
        command: as it is typed.
        config: settings, for the record.
        seed: for the record.
        inputs: name → hash of what it reads.
        shared: other processes may write here at the same time: what they write is safe for that, as a cache is.
        keep_log: ``metrics.jsonl`` is that of work which was begun before this run, and stays.
        facts: entries of ``run.json`` that hold however the run ends; they are under a checksum from the beginning.

    Raises:
        BadInput: the folder can't be made or written to, or another process is writing there.
    """

    def __init__(
        self, out: Path, command: str, config: Any, seed: int, inputs: Mapping[str, str], *, shared: bool = False,
        keep_log: bool = False, facts: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.out, self._facts = out, dict(facts or {})
        make_folder(out)  # ``claimed`` does it too, where nothing is shared
        for earlier in [run for run in _unfinished if run.out.resolve() == out.resolve()]:
            earlier.stop("failed")  # in this process, by an error that its caller went on after
        self._claim = ExitStack()
        if not shared:
            self._claim.enter_context(claimed(out))
        for stale in ("metrics.jsonl",) * (not keep_log) + ("summary.md", "failures.csv"):
            (out / stale).unlink(missing_ok=True)
        for left in out.glob(".*.tmp") if shared else ():  # of a killed run, unless others may be writing them now
            if time.time() - left.stat().st_mtime > LONG_AGO_S:
                left.unlink(missing_ok=True)
        self.metrics = MetricsLog(out / "metrics.jsonl")
        self._started = time.monotonic()
        self._ledger = open_log()
        self._kept_before = kept_caches(out)
        self._record = {
            "id": secrets.token_hex(8),
            "command": command,
            "config": recorded_paths(canonical(config), command, out),
            "seed": seed,
            "inputs": dict(inputs),
            "versions": versions(),
            "git": git_revision(),
            "status": "running",
            **canonical(self._facts),
        }
        self._write_record()
        _unfinished.append(self)

    def keep(self, cache: Path) -> None:
        """Note a cache in this folder that the run fills, from now on: not unused, even should the run be stopped.

        Caches that earlier runs filled here stay noted; their ``run.json`` lay where ours lies now.
        """
        names = {*self._kept_before, cache.name}
        self._record["keeps"] = sorted(name for name in names if name == cache.name or (self.out / name).is_dir())
        self._write_record()

    def _write_record(self) -> None:
        write_json(self.out / RECORD, with_checksum(self._record) if self._facts else self._record)

    def stage(self, name: str, **fields: Any) -> None:
        """Record that a stage ended, with the seconds since the start."""
        self.metrics.write(event="stage", stage=name, seconds=round(self.seconds, 2), **fields)

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    def finish(self, summary: str, failures: list[dict[str, str]], **extra: Any) -> None:
        """Write ``summary.md``, ``failures.csv`` (only when something failed) and the final ``run.json``."""
        import pandas as pd

        from embedprior.tables import write_table

        close_log(self._ledger)
        self._record["kernels"] = kernels()  # of the libraries that the work has loaded
        write_text(self.out / "summary.md", summary)
        if failures:
            write_table(pd.DataFrame(failures), self.out / "failures.csv")
        self._record |= {"status": "done", "seconds": round(self.seconds, 1), "failures": len(failures), **extra}
        self._record["uses"] = relative_uses(self._ledger.records(), self.out)
        self.seal()
        register_run(self.out, self._record["id"], self._ledger.records())
        self._close()

    def seal(self) -> None:
        """Write ``run.json`` with the sha256 of every result that lies in the folder now, and of itself."""
        results = [path for path in self.out.iterdir() if path.is_file() and path.name not in (RECORD, "metrics.jsonl")]
        results = [path for path in results if not path.name.startswith((".", "resume"))]  # has a checksum of its own
        results += [path for name in FOLDERS for path in (self.out / name).rglob("*") if path.is_file()]
        self._record["files"] = file_records(self.out, results)
        write_json(self.out / RECORD, with_checksum(self._record))
        forget_results(self.out, self._record["files"], [NOTED])

    def stop(self, status: str = "stopped") -> None:
        """Say in ``run.json`` that the run ended before it was finished; what it had finished is kept.

        Args:
            status: ``"stopped"``, or ``"failed"``.
        """
        close_log(self._ledger)
        self._record |= {"status": status, "seconds": round(self.seconds, 1)}
        # on a full disk, or in a folder that was deleted, there is no place to say it
        with suppress(DiskFull, BadInput, OSError):
            self._write_record()
        self._close()

    def _close(self) -> None:
        with suppress(OSError):
            self._claim.close()
        _unfinished.remove(self)


_unfinished: list[Run] = []


def stop_unfinished_runs(status: str = "stopped") -> None:
    """Mark the runs of this process that were not finished as stopped, or as failed."""
    while _unfinished:
        _unfinished[-1].stop(status)


REREAD = ("study run", "train final")
"""Commands whose configuration is read back from ``run.json``: its paths start at the data's folder, and stay."""


def recorded_paths(config: Any, command: str, folder: Path) -> Any:
    """Return the JSON values of a configuration as the record of a command in a folder keeps them."""
    return nameless_paths(config) if command in REREAD else relative_paths(config, folder)


def relative_paths(config: Any, folder: Path) -> Any:
    """Return JSON values with absolute paths given from a folder: they name the machine, and often its user.

    Example:
        >>> relative_paths({"cache": "/data/jane/caches/cxr", "lr": 0.1}, Path("/data/jane/runs/prior"))
        {'cache': '../../caches/cxr', 'lr': 0.1}
    """
    return _with_paths(config, lambda path: portable_path(path, folder) if os.path.isabs(path) else path)


def nameless_paths(config: Any) -> Any:
    """Return JSON values with paths in the user's home from ``~``, which names nobody; others stay as they are."""
    return _with_paths(config, from_home)


def own_paths(config: Any) -> Any:
    """Return JSON values with the paths that ``nameless_paths`` gave in the home of the present user."""
    return _with_paths(config, lambda path: os.path.expanduser(path) if path.startswith("~/") else path)


def _with_paths(config: Any, change: Callable[[str], str]) -> Any:
    if isinstance(config, dict):
        return {key: _with_paths(value, change) for key, value in config.items()}
    if isinstance(config, list):
        return [_with_paths(value, change) for value in config]
    return change(config) if isinstance(config, str) else config


@contextmanager
def noting_a_stop(out: Path, begin: Callable[[], Run], *, even_if_done: bool = False) -> Iterator[None]:
    """Say in ``run.json`` that work was stopped whose run begins only after it, as it may still refuse its input.

    Args:
        out: folder of the run.
        begin: the run.
        even_if_done: where a run was finished in this folder, its record is replaced too: the work changed its results.
    """
    try:
        yield
    except KeyboardInterrupt:
        if even_if_done or not (out / RECORD).is_file() or read_json(out / RECORD).get("status") != "done":
            begin().stop()
        raise


LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "accelerate", "safetensors", "timm",
             "open-clip-torch", "torchxrayvision", "transformers", "pillow", "pydicom", "SimpleITK", "diffdrr",
             "nanodrr")  # fmt: skip
"""Distributions whose code numbers depend on: arithmetic, networks, decoders."""
CHOOSE_KERNELS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
                  "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES",
                  "NVIDIA_TF32_OVERRIDE")  # fmt: skip
"""Environment variables by which libraries choose other kernels, whose last digits differ."""
VECTOR_UNITS = ("sse4_1", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni",
                "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "sve", "bf16")  # fmt: skip


def kernels() -> dict[str, Any]:
    """Return what the last digits of numbers depend on beside versions: instruction sets, BLAS libraries, devices.

    Libraries that were not imported took no part and are left out. No name of a host, user or folder is among it.

    Returns:
        ``machine`` and ``vector_units`` of the processor, ``blas`` (library, version and the kernels it chose),
        ``environment`` (variables that choose kernels), and, where torch is loaded, ``torch``: the instruction set in
        use, MKL and oneDNN, and the GPU where one was used.

    Example:
        >>> import numpy
        >>> sorted(kernels())[:3]
        ['blas', 'environment', 'machine']
    """
    from threadpoolctl import threadpool_info

    libraries = [info for info in threadpool_info() if info["user_api"] == "blas"]
    named = ("internal_api", "version", "architecture", "threading_layer")
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "vector_units": _vector_units(),
        "blas": [{k: info[k] for k in named if info.get(k)} for info in libraries],
        "environment": {name: os.environ[name] for name in CHOOSE_KERNELS if name in os.environ},
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        built = re.findall(r"(?:Math Kernel Library Version|MKL-DNN v)\s*([\w.]+)", torch.__config__.show())
        found["torch"] = {
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "mkl": torch.backends.mkl.is_available(),
            "onednn": torch.backends.mkldnn.is_available(),
            "built with": built,
            "threads": torch.get_num_threads(),
        }
        if torch.cuda.is_initialized():
            found["torch"]["cuda"] = {
                "device": torch.cuda.get_device_name(),
                "version": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "tf32": torch.backends.cuda.matmul.allow_tf32,
            }
    return found


@cache
def _vector_units() -> list[str]:
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for name in VECTOR_UNITS if name in words]


def versions() -> dict[str, str]:
    """Return the versions of Python, embedprior and the libraries that numbers depend on."""
    found = {"python": platform.python_version(), "embedprior": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Return the revision of the checkout the package runs from (``+changed`` when it has edits), or None."""
    here = Path(__file__).parents[1]
    try:
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+changed", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
