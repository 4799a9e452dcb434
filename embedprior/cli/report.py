"""``embedprior report``: a finished run's report anew, as a paper's tables and figures, or two runs compared."""

from __future__ import annotations

from pathlib import Path

from click import Choice, argument, option

from embedprior.cli.options import PATH, command
from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput

LAYOUTS = ("pilot", "pe-paper")


@command(epilog="Nothing is fitted. Exit code 3 of --compare: the two runs scored other cases, or the same otherwise.")
@argument("run", type=PATH, required=False)
@option("--layout", type=Choice(LAYOUTS), help="write the tables and figures of this paper instead, from this run's "
        "results")  # fmt: skip
@option("--compare", nargs=2, type=PATH, metavar="RUN_A RUN_B", help="print how run B differs from run A: settings, "
        "cases, code, scores, verdicts")  # fmt: skip
@option("--out", type=PATH, metavar="PATH", help="folder to write to, by default the run's own (with --layout, a "
        "folder in it); with --compare, a file that takes the comparison as Markdown")  # fmt: skip
def report(run: Path | None, layout: str | None, compare: tuple[Path, Path] | None, out: Path | None) -> int:
    """Write the report of a finished run anew, or compare two runs; return the exit code.

    Raises:
        BadInput: neither or both of RUN and --compare; see ``report.store.load_report`` and
            ``report.run_comparison.compare_runs``.
    """
    if (run is None) == (not compare):
        raise BadInput(
            "give either the folder of one finished run, or --compare with two. Next: embedprior report runs/study; or "
            "embedprior report --compare runs/a runs/b"
        )
    if compare:
        if layout:
            raise BadInput("--layout belongs to one run, --compare to two: give one of them")
        return _compare(*compare, out)
    assert run is not None
    if layout:
        from embedprior.report.layouts import write_layout

        for path in write_layout(run, layout, out or run / f"layout-{layout}"):
            print(path)
        return DONE
    from embedprior.report.output import remake_report

    print(remake_report(run, out))
    return DONE


def _compare(a: Path, b: Path, out: Path | None) -> int:
    from embedprior.report.run_comparison import compare_runs
    from embedprior.runs import make_folder, write_text
    from embedprior.runs.integrity import note_results

    found = compare_runs(a, b)
    text = found.markdown()
    if out is not None:
        make_folder(out.parent)
        write_text(out, text)
        note_results(out.parent, (out.name,))
    print(text)
    return DONE if found.same else NEEDS_ATTENTION
