"""``embedprior methods``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

GROUPS = {
    "row": "rows of papers",
    "control": "controls",
    "oracle": "oracles: they need CT at inference, and are never ranked with the others",
}
HELP = "every row a study can have: source, inputs, CT, parameters, reconstructions, oracles, controls"
NOTES = """
trained, total: parameters for z_CXR of {cxr} and z_CT of {ct} numbers, {pairs} pairs, hidden width {hidden}, prior
preset '{preset}'. Parts thrown away after training count as trained; total adds the frozen CT head, where it is read.
reads: 'any' = embedding, tokens or pixels (--inputs). (R): a detail its source does not give was filled in.
Refused by name, because two classes reduce them to another row: {degenerate}.
One method in full: embedprior methods NAME
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = argparse.ArgumentParser(prog="embedprior methods", description=HELP + ".", allow_abbrev=False)
    p.add_argument("method", nargs="?", metavar="NAME", help="tell one method in full")
    p.add_argument("--cxr-dim", type=int, default=512, metavar="N", help="length of z_CXR (default: 512)")
    p.add_argument("--ct-dim", type=int, default=512, metavar="N", help="length of z_CT (default: 512)")
    p.add_argument("--pairs", type=int, default=300, metavar="N", help="training pairs (default: 300)")
    p.add_argument("--hidden", type=int, default=128, metavar="N", help="width of the shared student (default: 128)")
    p.add_argument("--preset", default="prior-49m", help="size of the prior (default: prior-49m)")
    p.add_argument("--json", action="store_true", help="print JSON instead of text")
    return p


def main(argv: Sequence[str]) -> int:
    """Print the table; returns the exit code.

    Raises:
        BadInput: unknown method, a size below 1, or an unknown preset.
        SystemExit: ``--help`` (0) or a bad option (2).
    """
    o = parser().parse_args(argv)
    from embedprior.config import parse_config
    from embedprior.errors import DONE, BadInput
    from embedprior.students.registry import DEGENERATE, Budget

    if o.method is not None:
        print(_told(o.method))
        return DONE
    for name in ("cxr_dim", "ct_dim", "hidden"):
        if getattr(o, name) < 1:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(o, name)}. Allowed: 1 or more.")
    if o.pairs < 2:
        raise BadInput(f"--pairs {o.pairs}. Allowed: 2 or more.")
    settings = {"fit": {"hidden": o.hidden}, "stages": [{"network": {"preset": o.preset}}]}
    rows = table(parse_config(Budget, settings, "embedprior methods"), o.cxr_dim, o.ct_dim, o.pairs)
    if o.json:
        print(json.dumps({"methods": rows, "degenerate": DEGENERATE}, indent=2))
        return DONE
    for role, title in GROUPS.items():
        print(f"{title}")
        for line in _lines([r for r in rows if r["role"] == role]):
            print(f"  {line}")
        print()
    print(
        NOTES.strip().format(
            cxr=o.cxr_dim, ct=o.ct_dim, pairs=o.pairs, hidden=o.hidden, preset=o.preset,
            degenerate=", ".join(DEGENERATE),
        )
    )  # fmt: skip
    return DONE


def table(budget: Any, cxr_dim: int, ct_dim: int, pairs: int) -> list[dict[str, Any]]:
    """Return one record a method, with its parameters (None where it can't say)."""
    from embedprior.students.planted import counted
    from embedprior.students.registry import build_method, methods

    rows = []
    for name, info in methods().items():
        found = counted(build_method(name, budget), cxr_dim, ct_dim, pairs, budget)
        trainable, total = found or (None, None)
        rows.append(
            {
                "name": name, "role": info.role, "summary": info.summary, "source": info.source,
                "inputs": list(info.inputs), "needs_ct": info.needs_ct, "uses_ct": info.uses_ct,
                "needs_teacher": info.needs_teacher, "reconstruction": info.reconstruction,
                "trainable": trainable, "total": total,
            }
        )  # fmt: skip
    return rows


def _lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [("method", "reads", "CT", "trained", "total", "source")]
    cells += [
        (
            r["name"] + (" (R)" if r["reconstruction"] else ""), _reads(r["inputs"]), _ct(r), _count(r["trainable"]),
            _count(r["total"]), r["source"],
        )
        for r in rows
    ]  # fmt: skip
    widths = (23, 9, 9, 10, 10, 0)
    return [
        "  ".join(
            cell.rjust(width) if column in (3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _told(name: str) -> str:
    """Return one method in words: its entry, and what its class says of itself."""
    import importlib
    import inspect

    from embedprior.errors import BadInput, choose
    from embedprior.students.registry import DEGENERATE, methods

    if name in DEGENERATE:
        raise BadInput(f"method '{name}': {DEGENERATE[name]}. Next: embedprior methods")
    info = choose("method", name, methods())
    module, _, attribute = info.build.partition(":")
    text = inspect.getdoc(getattr(importlib.import_module(module), attribute)) or ""
    options = "".join(f"\n  {key}: {value}" for key, value in info.options.items())
    return (
        f"{info.name}: {info.summary}\nsource: {info.source}{' (reconstruction)' if info.reconstruction else ''}\n"
        f"reads: {', '.join(info.inputs)}\n\n{text}{options and chr(10) * 2 + 'This row sets:' + options}"
    )


def _reads(inputs: Sequence[str]) -> str:
    return "any" if len(inputs) == 3 else ", ".join(inputs)


def _ct(row: dict[str, Any]) -> str:
    if row["needs_ct"]:
        return "inference"
    return "training" if row["uses_ct"] else "never"


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"
