"""``embedprior methods`` and ``embedprior encoders``: what can be run, and what can embed an exam."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from click import argument, option

from embedprior.cli.options import COUNT, AtLeast, command

GROUPS = {
    "row": "rows of papers",
    "control": "controls",
    "oracle": "oracles: they need CT at inference, and are never ranked with the others",
}
NOTES = """
trained, total: parameters for z_CXR of {cxr} and z_CT of {ct} numbers, {pairs} pairs, hidden width {hidden}, prior
preset '{preset}'. Parts thrown away after training count as trained; total adds the frozen CT head, where it is read.
reads: 'any' = embedding, tokens or pixels (--inputs). (R): a detail its source does not give was filled in.
Refused by name, because two classes reduce them to another row: {degenerate}.
One method in full: embedprior methods NAME
"""


@command(epilog="Installed packages add encoders by the entry point 'embedprior.encoders'. LOADER:NAME is any network "
         "of timm, open_clip, torchhub, hf or txrv: docs/encoders.md")  # fmt: skip
@argument("pattern", required=False, default="*", metavar="[PATTERN]", help="only names like this: 'dinov2*'")
def encoders(pattern: str) -> int:
    """Print the registry; return the exit code.

    Raises:
        BadInput: no encoder has such a name.
    """
    from embedprior.encoders.registry import encoder_card, list_encoders, weights_status
    from embedprior.report.formatting import aligned

    rows = [("name", "reads", "dim", "tokens", "weights", "licence")]
    commands = []
    for name in list_encoders(pattern):
        card, status = encoder_card(name), weights_status(name)
        if card is None:
            rows.append((name, "?", "?", "?", status, "?"))
            continue
        rows.append((name, card.modality, str(card.dim), card.tokens or "none", status, card.licence))
        if status == "not here":
            commands.append(f"  {name}: {card.command or card.weights}")
    print(aligned(rows))
    if commands:
        print("\nWeights that are not here, and what gets them (then --weights, or $EMBEDPRIOR_HOME/weights/NAME):")
        print("\n".join(commands))
    return 0


@command()
@argument("method", required=False, metavar="[NAME]", help="describe one method in full")
@option("--cxr-dim", type=COUNT, default=512, metavar="N", help="length of z_CXR")
@option("--ct-dim", type=COUNT, default=512, metavar="N", help="length of z_CT")
@option("--pairs", type=AtLeast(2), default=300, metavar="N", help="training pairs")
@option("--hidden", type=COUNT, default=128, metavar="N", help="width of the shared student")
@option("--preset", default="prior-49m", metavar="NAME", help="size of the prior")
@option("--json", "as_json", is_flag=True, help="print JSON instead of text")
def methods(method: str | None, cxr_dim: int, ct_dim: int, pairs: int, hidden: int, preset: str, as_json: bool) -> int:
    """Print the table, or one method in full; return the exit code.

    Raises:
        BadInput: unknown method or preset.
    """
    from embedprior.config import parse_config
    from embedprior.errors import DONE
    from embedprior.students.planted import method_records
    from embedprior.students.registry import DEGENERATE, Budget

    if method is not None:
        print(_in_full(method))
        return DONE
    settings = {"fit": {"hidden": hidden}, "stages": [{"network": {"preset": preset}}]}
    rows = method_records(parse_config(Budget, settings, "embedprior methods"), cxr_dim, ct_dim, pairs)
    if as_json:
        print(json.dumps({"methods": rows, "degenerate": DEGENERATE}, indent=2))
        return DONE
    for role, title in GROUPS.items():
        print(f"{title}")
        for line in _lines([r for r in rows if r["role"] == role]):
            print(f"  {line}")
        print()
    print(
        NOTES.strip().format(
            cxr=cxr_dim, ct=ct_dim, pairs=pairs, hidden=hidden, preset=preset, degenerate=", ".join(DEGENERATE)
        )
    )
    return DONE


def _lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    from embedprior.report.formatting import aligned

    cells = [("method", "reads", "CT", "trained", "total", "source")]
    cells += [
        (
            r["name"] + (" (R)" if r["reconstruction"] else ""), _reads(r["inputs"]), _ct(r), _count(r["trainable"]),
            _count(r["total"]), r["source"],
        )
        for r in rows
    ]  # fmt: skip
    return aligned(cells, right=(3, 4)).splitlines()


def _in_full(name: str) -> str:
    """Return one method in words: its entry, and what its class says of itself."""
    import importlib
    import inspect

    from embedprior.errors import BadInput
    from embedprior.students.registry import DEGENERATE, describe

    if name in DEGENERATE:
        raise BadInput(f"method '{name}': {DEGENERATE[name]}. Next: embedprior methods")
    info = describe(name)
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
