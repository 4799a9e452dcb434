"""``embedprior bundle`` and ``embedprior predict``: the X-ray-only model of a study, and its scores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from click import argument, option

from embedprior.cli.options import COUNT, DEVICE, PATH, command


@command(epilog="The study must have kept its models: 'keep: last' or 'keep: all' in its configuration.")
@option("--study", type=PATH, required=True, metavar="DIR", help="folder of a finished study")
@option("--method", required=True, metavar="NAME", help="of the study; it must need no CT at inference")
@option("--out", type=PATH, required=True, metavar="DIR", help="folder of the bundle; it must not exist")
@option("--design", metavar="NAME", help="of the study [default: the only one that has the method]")
@option("--resample", type=int, metavar="N", help="only the models of this resample [default: all kept]")
@option("--fold", type=int, metavar="N", help="only the models of this fold [default: all kept]")
@option("--seed", type=int, metavar="N", help="only the models of this seed [default: all kept]")
@option("--threshold", type=float, metavar="X", help="declared operating point [default: Youden's on validation]")
def bundle(study: Path, method: str, out: Path, **chosen: Any) -> int:
    """Write the bundle; return the exit code.

    Raises:
        BadInput: see ``deploy.bundle.build_bundle``.
    """
    from embedprior.deploy.bundle import build_bundle, verify

    folder = build_bundle(study, method, out, **chosen)
    print(f"{folder}: bundle {verify(folder)[:12]}. Research use only. Card: {folder / 'README.md'}")
    return 0


@command(epilog="Exit code 3: images without a score have a reason. Research use only: not for diagnosis.")
@argument("images", type=PATH, nargs=-1, required=True, metavar="IMAGE...", help="DICOM, PNG, JPEG, or a folder")
@option("--bundle", "folder", required=True, metavar="DIR", help="of embedprior bundle, or hf:OWNER/NAME")
@option("--format", "kind", type=click.Choice(["csv", "json"]), default="csv", help="of the output")
@option("--out", type=PATH, metavar="FILE", help="write here, batch after batch; images in it already are kept (csv "
        "only) [default: standard output]")  # fmt: skip
@option("--weights", type=PATH, metavar="PATH", help="local weights of the encoder")
@option("--device", type=DEVICE, metavar="NAME", help="of encoders that take one: cpu, cuda")
@option("--batch-size", type=COUNT, default=64, metavar="N", help="images read together")
@option("--limit", type=COUNT, metavar="N", help="only the first N images")
def predict(
    images: tuple[Path, ...],
    folder: str,
    kind: str,
    out: Path | None,
    batch_size: int,
    limit: int | None,
    **given: Any,
) -> int:
    """Score radiographs; return the exit code.

    Raises:
        BadInput: see ``deploy.predict.load_bundle``; or ``--out`` holds scores of another bundle.
    """
    from embedprior.deploy.predict import image_files, load_bundle, scored_before, write_scores
    from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput

    if out is not None and kind == "json" and out.exists():
        raise BadInput(f"--out {out} exists; a JSON file is written as a whole. Next: give another name")
    loaded = load_bundle(folder, **{name: value for name, value in given.items() if value is not None})
    paths = image_files(images)[:limit]
    before = scored_before(out, loaded) if out is not None and kind == "csv" else {}
    todo = [path for path in paths if path.as_posix() not in before]
    without = sum(1 for path in paths if before.get(path.as_posix()))
    without += write_scores(loaded.predict_files(todo, batch_size), out or sys.stdout, kind)
    name, kept = loaded.config["method"], len(paths) - len(todo)
    print(f"{len(todo)} images scored with {name}, bundle {loaded.bundle_id[:12]}; {kept} were there already. "
          "Research use only: not for diagnosis.", file=sys.stderr)  # fmt: skip
    return NEEDS_ATTENTION if without else DONE
