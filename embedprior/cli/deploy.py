"""``embedprior bundle`` and ``embedprior predict``: the X-ray-only model of a study, and its scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click import argument, option

from embedprior.cli.options import COUNT, DEVICE, PATH, AtLeast, command


@command(epilog="The study must have kept its models ('keep: last' or 'keep: all' in its configuration), or a final "
         "one was trained ('embedprior train final').")  # fmt: skip
@option("--study", type=PATH, required=True, metavar="DIR", help="folder of a finished study")
@option("--method", required=True, metavar="NAME", help="of the study; it must need no CT at inference")
@option("--out", type=PATH, required=True, metavar="DIR", help="folder of the bundle; new, unless it is pushed")
@option("--final", is_flag=True, help="the models of 'embedprior train final', fitted on everybody")
@option("--design", metavar="NAME", help="of the study [default: the only one that has the method]")
@option("--resample", type=int, metavar="N", help="only the models of this resample [default: all kept]")
@option("--fold", type=int, metavar="N", help="only the models of this fold [default: all kept]")
@option("--seed", type=int, metavar="N", help="only the models of this seed [default: all kept]")
@option("--threshold", type=float, metavar="X", help="declared operating point [default: Youden's on validation]")
@option("--encoder-weights", type=PATH, metavar="PATH", help="put the X-ray encoder's weights in: their file or folder "
        "[default: the encoder is named by its key]")  # fmt: skip
@option("--license", "licence", default="", metavar="NAME", help="of the model, for its card")
@option("--push", metavar="OWNER/NAME", help="publish it on the Hugging Face hub, after a question; a bundle in "
        "--out already goes out as it is")  # fmt: skip
@option("--public", is_flag=True, help="with --push: a repository that is made now is public [default: private]")
@option("--yes", is_flag=True, help="with --push: the answer to the question")
def bundle(study: Path, method: str, out: Path, push: str | None, public: bool, yes: bool, **chosen: Any) -> int:
    """Write the bundle, publish it where that was asked; return the exit code.

    Raises:
        BadInput: see ``deploy.bundle.build_bundle`` and ``deploy.hub.push``.
    """
    from embedprior.deploy.bundle import build_bundle, verify
    from embedprior.errors import DONE, BadInput

    if push is None and (public or yes):
        raise BadInput("--public and --yes belong to --push. Next: --push OWNER/NAME")
    if push is None or not out.exists():
        folder = build_bundle(study, method, out, **chosen)
        print(f"{folder}: bundle {verify(folder)[:12]}. Research use only. Card: {folder / 'README.md'}")
    if push is not None:
        from embedprior.deploy.hub import push as publish

        place = publish(out, push, study, lambda question: yes or _asked(question), private=not public)
        print("not published" if place is None else f"published: {place}")
    return DONE


def _asked(question: str) -> bool:
    """Return the answer of whoever sits at the terminal.

    Raises:
        BadInput: nobody does.
    """
    from embedprior.errors import BadInput

    if not sys.stdin.isatty():
        raise BadInput(f"{question} There is no terminal to ask. Next: --yes")
    return click.confirm(question, default=False, err=True)


@command(epilog="Exit code 3: images without a score have a reason. Research use only: not for diagnosis.")
@argument("images", type=PATH, nargs=-1, required=True, metavar="IMAGE...", help="DICOM, PNG, JPEG, or a folder")
@option("--bundle", "folder", required=True, metavar="DIR", help="of embedprior bundle, or hf:OWNER/NAME")
@option("--format", "kind", type=click.Choice(["csv", "json"]), default="csv", help="of the output")
@option("--out", type=PATH, metavar="FILE", help="write here, batch after batch; images in it already are kept (csv "
        "only) [default: standard output]")  # fmt: skip
@option("--weights", type=PATH, metavar="PATH", help="local weights of the encoder")
@option("--encoder", metavar="NAME", help="name of the encoder here, where the study read a cache made elsewhere")
@option("--device", type=DEVICE, metavar="NAME", help="of encoders that take one: cpu, cuda")
@option("--workers", type=AtLeast(0), default=0, metavar="N", help="processes that read images ahead")
@option("--batch-size", type=COUNT, default=64, metavar="N", help="images read together")
@option("--limit", type=COUNT, metavar="N", help="only the first N images")
def predict(
    images: tuple[Path, ...],
    folder: str,
    kind: str,
    out: Path | None,
    batch_size: int,
    workers: int,
    limit: int | None,
    **given: Any,
) -> int:
    """Score radiographs; return the exit code.

    Raises:
        BadInput: see ``deploy.predict.load_bundle``; or ``--out`` holds scores of another bundle.
    """
    from embedprior.deploy.files import image_files, scored_before, write_scores
    from embedprior.deploy.predict import load_bundle
    from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput
    from embedprior.runs.integrity import forget_results, note_results

    if out is not None and kind == "json" and out.exists():
        raise BadInput(f"--out {out} exists; a JSON file is written as a whole. Next: give another name")
    loaded = load_bundle(folder, **{name: value for name, value in given.items() if value is not None})
    paths = image_files(images)[:limit]
    before = scored_before(out, loaded.bundle_id) if out is not None and kind == "csv" else {}
    todo = [path for path in paths if path.as_posix() not in before]
    without = sum(1 for path in paths if before.get(path.as_posix()))
    if out is not None:
        forget_results(out.parent, (out.name,))
    without += write_scores(loaded.predict_files(todo, batch_size, workers), out or sys.stdout, kind)
    if out is not None and out.is_file():  # no image, no table
        note_results(out.parent, (out.name,))
    name, kept = loaded.config["method"], len(paths) - len(todo)
    print(f"{len(todo)} images scored with {name}, bundle {loaded.bundle_id[:12]}; {kept} were there already. "
          "Research use only: not for diagnosis.", file=sys.stderr)  # fmt: skip
    return NEEDS_ATTENTION if without else DONE
