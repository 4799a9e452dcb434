"""``embedprior compare``: how two runs differ."""

from __future__ import annotations

from pathlib import Path

from click import argument, option

from embedprior.cli.options import PATH, command
from embedprior.errors import DONE, NEEDS_ATTENTION


@command(epilog="Exit code 3: the two runs scored other cases, or the same cases otherwise. Nothing is fitted.")
@argument("a", type=PATH, help="folder of a finished study, demo or evaluation")
@argument("b", type=PATH, help="likewise")
@option("--out", type=PATH, metavar="FILE", help="write the comparison there too, as Markdown")
def compare(a: Path, b: Path, out: Path | None) -> int:
    """Print how run B differs from run A; return 0 when every case has the same score, 3 when not.

    Raises:
        BadInput: see ``report.run_comparison.compare_runs``.
    """
    from embedprior.report.run_comparison import compare_runs
    from embedprior.runs import make_folder, write_text

    found = compare_runs(a, b)
    text = found.markdown()
    if out is not None:
        make_folder(out.parent)
        write_text(out, text)
    print(text)
    return DONE if found.same else NEEDS_ATTENTION
