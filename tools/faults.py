"""Damages, kills, fills and moves what every command leaves, and looks whether that is noticed.

1. Every kind of file is damaged in five ways (one bit flipped, cut, emptied, replaced by a pickle, swapped with another
   file), and the next command that reads it is run. Right is: refused with the file's name; or made again with the same
   results; or left out and named; or, where no command reads it, found by ``embedprior verify``.
2. Commands are killed at durable points spread over their course, and run again: the same files must come out.
3. Disks are full or read-only: one line, and the rest when there is room.
4. Output folders are moved and copied, and used.

Exits 1 when something passed silently. ``--quick``: two of the five damages, five kills of each command. ``--docs``
writes the tables into ``docs/reliability.md``, from this run or from those that ``--from`` names (parts of it may be
run one after the other: ``--only``, ``--of``, ``--json``).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fault_kills import KILLED, Trial, full_disks, kills, moved, read_only
from fault_kinds import KINDS, Kind
from fault_worlds import build, call, child

PARTS = ("damage", "kills", "disk", "moved")
PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- written by tools/faults.py -->", "<!-- to here -->"
GROUPS = {"study": "study, its cohort and caches", "evaluation": "evaluate", "embed": "embed", "drr": "drr",
          "models": "prior, teacher, student, generated embeddings", "encoder": "trained encoder, alignment, align",
          "bundle": "kept models, bundle", "final": "train final, and what it and comparisons read",
          "transfer": "evaluate-embeddings", "cohort": "cohort commands, images check",
          "report": "reports, layouts, study plan, cache export, predict, report --compare"}  # fmt: skip
OUTCOMES = ("refused", "made again", "left out", "found by verify", "SILENT")
NAMES = {"run": "study run", "keep": "study run (pictures)", "prior": "train prior", "teacher": "train teacher",
         "student": "train student", "generated": "generate"}  # fmt: skip
MODULES = "modules.txt"
KILLS, SHARES = 25, 3
"""Kills of each command, and the shares that they are tried in."""


def flip(path: Path, other: Path) -> None:
    """Flip one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "flipped": flip,
    "cut": lambda path, other: path.write_bytes(path.read_bytes()[: -max(1, path.stat().st_size // 3)]),
    "emptied": lambda path, other: path.write_bytes(b""),
    "pickle": lambda path, other: path.write_bytes(pickle.dumps({"scores": [1.0]})),
    "swapped": lambda path, other: path.write_bytes(other.read_bytes()),
}


@dataclass(frozen=True)
class Case:
    """One damage and what came of it.

    Attributes:
        group: of files.
        kind: pattern of the file.
        damage: its name.
        outcome: ``refused``, ``made again``, ``left out``, ``found by verify``, or ``SILENT``.
        detail: in words.
    """

    group: str
    kind: str
    damage: str
    outcome: str
    detail: str


def attempt(group: str, kind: Kind, damage: str) -> Case:
    """Damage one file of the world in the working folder, run what reads it, and say what came of it."""
    path = kind.path()
    original = path.read_bytes()
    others = [p for p in sorted(Path().glob(kind.shown)) if p.read_bytes() != original]
    strange = Path("cohort/pairs.csv") if path.name != "pairs.csv" else Path("cohort/exams.csv")
    before = {pattern: results(pattern) for pattern in kind.results}
    for pattern in kind.prepare:
        for folder in Path().glob(pattern):
            shutil.rmtree(folder)
    path.unlink()  # not through a hard link, which would change its twin too
    path.write_bytes(original)
    DAMAGES[damage](path, others[0] if others else strange)

    def case(outcome: str, detail: str = "") -> Case:
        return Case(group, kind.shown, damage, outcome, detail)

    code, said = kind.read(path)
    lines = [line for line in said.splitlines() if line.strip()]
    final = lines[-1] if lines else ""
    if "Traceback" in said:
        return case("SILENT", f"traceback: {final}")
    errors = [line for line in lines if line.startswith("error: ")]
    if code == 2:
        return case("refused" if errors and named(path, errors[-1]) else "SILENT", final)
    if code == 3 and kind.read.__name__ == "embedded":
        failures = Path("new/failures.csv")
        left_out = failures.is_file() and "its sha256 is another" in failures.read_text()
        return case("left out" if left_out else "SILENT", final)
    if code == 3:
        of_view = path.name.removesuffix(".sha256")  # the checksum of a view is named by the view
        return case("found by verify" if of_view in said else "SILENT", final)
    if code != 0 or not kind.results:
        return case("SILENT", f"exit {code}: {final}")
    changed = [pattern for pattern, content in before.items() if results(pattern) != content]
    if changed:
        return case("SILENT", f"exit 0, other {', '.join(changed)}")
    checked, found = call("verify", path.parts[0])
    if checked == 0:
        return case("made again")
    return case("found by verify" if path.name in found else "SILENT", found.strip().splitlines()[0])


def named(path: Path, error: str) -> bool:
    """Return whether an error names what is damaged: the file, its folder, or the cache or table that it belongs to."""
    folder = path.parent.name
    wanted = {path.name, path.stem, folder, *(("cxr", "embeddings") if "caches" in path.parts else ())}
    wanted |= {part for part in path.parts if "@" in part}
    if path.name == "plan.json" or path.parts[0] == "cohort":
        wanted |= {"plan", "exams", "pairs"}
    return any(name in error for name in wanted)


def results(pattern: str) -> dict[str, bytes]:
    """Return the files of a pattern."""
    return {path.as_posix(): path.read_bytes() for path in sorted(Path().glob(pattern)) if path.is_file()}


def damages_of(job: tuple[Path, str, int, Sequence[str]]) -> list[Case]:
    """Try every damage of one kind, each on a copy of the world."""
    world, group, number, damages = job
    found = []
    for damage in damages:
        with copy_of(world) as root:
            os.chdir(root)
            found.append(attempt(group, KINDS[group][number], damage))
            os.chdir("/")
    return found


def trials_of(job: tuple[Path, str, str, int, int]) -> list[Trial]:
    """Try a share of the kills, or full and read-only disks, of one command; or moved folders."""
    world, part, command, wanted, share = job
    with copy_of(world) as root:
        os.chdir(root)
        if part == "kills":
            found = list(kills(command, wanted, (share, SHARES)))
        elif part == "disk":
            found = [*full_disks(command), *read_only(command)]
        else:
            found = list(moved())
        os.chdir("/")
    return found


class copy_of:
    """A copy of the world in a temporary folder, as a context manager."""

    def __init__(self, world: Path) -> None:
        self.world = world

    def __enter__(self) -> Path:
        self.folder = tempfile.TemporaryDirectory(prefix="faults-")
        root = Path(self.folder.name) / "w"
        shutil.copytree(self.world, root)
        return root

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()


def every(world: Path, options: argparse.Namespace) -> Iterator[Case | Trial]:
    """Yield what came of every disturbance; each kind of them is tried in a process of its own."""
    parts, of = options.only, options.of
    damages = ("flipped", "swapped") if options.quick else tuple(DAMAGES)
    shares = range(SHARES) if options.share is None else [options.share]
    commands = [name for name in KILLED if not of or name in of]
    context = multiprocessing.get_context("fork")
    with context.Pool(options.jobs, maxtasksperchild=1) as pool:
        waiting = []
        if "kills" in parts:
            wanted = 5 if options.quick else KILLS
            jobs = [(world, "kills", command, wanted, share) for command in commands for share in shares]
            waiting += [pool.apply_async(trials_of, (job,)) for job in jobs]
        if "moved" in parts:
            waiting.append(pool.apply_async(trials_of, ((world, "moved", "", 0, 0),)))
        if "disk" in parts:
            waiting += [pool.apply_async(trials_of, ((world, "disk", command, 0, 0),)) for command in commands]
        if "damage" in parts:
            waiting += [
                pool.apply_async(damages_of, ((world, group, number, damages),))
                for group, kinds in KINDS.items() if not of or group in of for number in range(len(kinds))
            ]  # fmt: skip
        for one in waiting:
            yield from one.get()


def main(argv: Sequence[str]) -> int:
    """Try everything and print the tables; return 1 when something passed silently."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two damages of each kind, five kills of each command")
    parser.add_argument("--only", choices=PARTS, nargs="*", default=PARTS, help="these parts alone")
    parser.add_argument("--of", nargs="*", default=(), help="these commands or groups of files alone")
    parser.add_argument("--share", type=int, choices=range(SHARES), help="of the kills of each command, this one alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--json", type=Path, help="write the outcomes here")
    parser.add_argument("--from", type=Path, nargs="*", dest="earlier", help="outcomes of earlier runs, instead of one")
    parser.add_argument("--docs", action="store_true", help=f"write the tables into {PAGE.name}")
    options = parser.parse_args(argv)
    os.environ.pop("EMBEDPRIOR_HOME", None)
    os.environ |= {"EMBEDPRIOR_QUIET": "1", "OMP_NUM_THREADS": "1"}
    target = None if options.json is None else options.json.resolve()
    started = time.monotonic()
    outcomes = [read_outcome(one) for file in options.earlier or () for one in json.loads(file.read_text())]
    if options.earlier is None:
        outcomes = list(tried(options))
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        spent = sum(one.ru_utime + one.ru_stime for one in used)
        print(f"{time.monotonic() - started:.0f} s, {spent:.0f} s of processors")
    cases = [one for one in outcomes if isinstance(one, Case)]
    trials = [one for one in outcomes if isinstance(one, Trial)]
    text = tables(cases, trials)
    print(text)
    if options.docs:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}{END}{rest.partition(END)[2]}", encoding="utf-8")
    if target is not None:
        target.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    return 1 if any(case.outcome == "SILENT" for case in cases) or any(trial.wrong for trial in trials) else 0


def tried(options: argparse.Namespace) -> Iterator[Case | Trial]:
    """Build the world, try everything that was asked for, and print and yield each outcome."""
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        world = Path(scratch) / "world"
        code, said = child(lambda: built(world))
        assert code == 0, said
        for name in (world / MODULES).read_text().split():  # what commands need is there when they are forked
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        for one in every(world, options):
            if isinstance(one, Case):
                print(f"{one.outcome:<16} {one.damage:<8} {one.kind}  {one.detail[:150]}", flush=True)
            else:
                print(f"{'WRONG' if one.wrong else 'right':<6} {one.command}: {one.what}  {one.wrong}", flush=True)
            yield one


def built(world: Path) -> int:
    """Build the world, and write down which modules that took."""
    build(world)
    (world / MODULES).write_text("\n".join(name for name in list(sys.modules) if not name.startswith("__")))
    return 0


def read_outcome(record: dict[str, str]) -> Case | Trial:
    """Return an outcome from its JSON record."""
    return Trial(**record) if "command" in record else Case(**record)


def tables(cases: Sequence[Case], trials: Sequence[Trial]) -> str:
    """Return what came of everything, as two Markdown tables."""
    rows = ["", "| files of | kinds | damages | " + " | ".join(OUTCOMES[:-1]) + " | silent |", "|---" * 8 + "|"]
    for group, title in GROUPS.items():
        own = [case for case in cases if case.group == group]
        if own:
            counts = Counter(case.outcome for case in own)
            kinds = len({case.kind for case in own})
            cells = [title, kinds, len(own), *(counts[outcome] for outcome in OUTCOMES)]
            rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    heads = ("killed", "disk full", "then room", "read-only", "moved", "copied", "wrong")
    rows += ["", "| command | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for command in dict.fromkeys(trial.command for trial in trials):
        own_trials = [trial for trial in trials if trial.command == command]
        counts = Counter(way_of(trial) for trial in own_trials)
        wrong = sum(bool(trial.wrong) for trial in own_trials)
        cells = [NAMES.get(command, command), *(counts[head] or "–" for head in heads[:-1]), wrong]
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join([*rows, "", ""])


def way_of(trial: Trial) -> str:
    """Return what kind of disturbance a trial was."""
    if trial.what.startswith(("killed", "finished", "left")):
        return trial.what.partition(" ")[0]
    if trial.what.startswith(("disk full", "no file")):
        return "then room" if trial.what.endswith("then room") else "disk full"
    return trial.what.partition(":")[0].removesuffix(" folder")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
