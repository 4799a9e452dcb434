"""``embedprior embed``: the exams of a table through a frozen encoder into a cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedprior.cache.build import Filled
    from embedprior.cache.format import Place
    from embedprior.cache.loading import ExamTable
    from embedprior.encoders.base import Encoder

HELP = "embed the exams of a table with a frozen encoder; what is there is kept"
READS = {"CXR": ("CXR", "DRR"), "CT": ("CT",), "image": ("CXR", "DRR", "CT")}
DRIFT_EXAMS = 32


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    p = argparse.ArgumentParser(
        prog="embedprior embed",
        description=HELP + ".",
        epilog="exit codes: 0 done, 2 bad input (nothing written), 3 done but for the exams in failures.csv. Several "
        "processes: torchrun --nproc_per_node 2 -m embedprior embed ...",
        allow_abbrev=False,
    )
    p.add_argument("--cohort", type=Path, required=True, metavar="FILE", help="exam table (exams.csv); its paths are "
                   "relative to its folder")  # fmt: skip
    p.add_argument("--encoder", required=True, metavar="NAME", help="see: embedprior encoders")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of caches")
    p.add_argument("--weights", type=Path, metavar="PATH", help="local weights of the encoder")
    p.add_argument("--random-init", action="store_true", help="random weights, stamped into the key (for trials)")
    p.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="another option of the encoder, "
                   "such as geometry=crop; may be repeated")  # fmt: skip
    p.add_argument("--precision", choices=("fp32", "bf16"), help="of the encoder's arithmetic; bf16 reports its drift")
    p.add_argument("--dtype", choices=("float32", "float16", "bfloat16", "uint8"), help="of the stored numbers")
    p.add_argument("--tokens", action="store_true", help="store slice or patch tokens instead of one embedding an exam")
    p.add_argument("--modality", choices=("CXR", "DRR", "CT"), help="only exams of this modality")
    p.add_argument("--batch-size", type=int, default=64, metavar="N", help="exams a batch (default: 64)")
    p.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read ahead (default: 0 = none)")
    p.add_argument("--shard-exams", type=int, metavar="N", help="exams a shard, the most that a kill loses and what "
                   "processes share out (default: 512; 64 with --tokens)")  # fmt: skip
    p.add_argument("--limit", type=int, metavar="N", help="the first N exams only")
    p.add_argument("--device", metavar="NAME", help="of encoders that take one: cpu, cuda (default: their own)")
    p.add_argument("--processes", type=int, metavar="N", help="refuse to start unless there are just so many")
    p.add_argument("--dry-run", action="store_true", help="say what would be done (exams, bytes, minutes), and stop")
    return p


def main(argv: Sequence[str]) -> int:
    """Fill the cache; returns the exit code.

    Raises:
        BadInput: anything that can be refused before the work begins; nothing was written.
        SystemExit: ``--help`` (0) or a bad option (2).
    """
    options = parser().parse_args(argv)
    from embedprior.cache.format import place_for, refuse_neighbour
    from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput
    from embedprior.runs.distributed import launched

    for name in ("batch_size", "shard_exams", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name.replace('_', '-')} {value}. Allowed: 1 or more.")
    if options.workers < 0:
        raise BadInput(f"--workers {options.workers}. Allowed: 0 or more.")
    me = launched(options.processes)
    encoder = _encoder(options)
    spec = encoder.spec if options.dtype is None else encoder.spec.model_copy(update={"dtype": options.dtype})
    _refuse_bytes(encoder, options.dtype)
    place = place_for(options.out, spec, options.tokens)
    refuse_neighbour(options.out, place)
    exams = _exams(options, encoder, quiet=not me.first)
    if options.dry_run:
        from embedprior.cache.build import plan

        if me.first:
            print(f"{place.folder}\n{plan(exams, options.cohort.parent, encoder, place).words()}")
        return DONE
    filled = _fill(options, encoder, exams, place, me)
    me.meet()  # a launcher ends all processes when one ends with exit code 3: not before the first has written all
    return NEEDS_ATTENTION if filled.failures else DONE


def _fill(options: argparse.Namespace, encoder: Encoder, exams: ExamTable, place: Place, me: Any) -> Filled:
    from embedprior.cache.build import fill_cache
    from embedprior.runs import Run, hash_file, note_use

    run = None
    if me.first:
        config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
        inputs = {"cohort": hash_file(options.cohort), "encoder weights": encoder.spec.weights_sha256}
        run = Run(options.out, "embed", config, 0, inputs)
        run.keep(place.folder)
    filled = fill_cache(
        exams, options.cohort.parent, encoder, options.out, options.batch_size, tokens=options.tokens,
        dtype=options.dtype, workers=options.workers, shard_exams=options.shard_exams, processes=me,
    )  # fmt: skip
    if run is not None:
        note_use("cache", filled.place.folder.name, filled.place.folder, filled.view)
        drift = _drift(options, encoder, exams)
        text = _summary(filled, drift, exams.count)
        run.stage("embed", exams=filled.exams, embedded=filled.embedded, failures=len(filled.failures))
        run.finish(text, filled.failures, cache=filled.place.folder.name, view=filled.view, drift=drift,
                   mended=[vars(one) for one in filled.mended])  # fmt: skip
        print(text)
    return filled


def _summary(filled: Filled, drift: dict[str, Any] | None, asked: int) -> str:
    lines = [f"# {filled.place.folder.name}", ""]
    lines.append(f"{filled.exams} of {asked} exams are in the cache; {filled.embedded} were embedded now.")
    for one in filled.mended:
        lines.append(f"- found at the start: {one.file}: {one.reason}")
    if drift is not None:
        centred = drift["centred_one_minus_cos_max"]
        lines.append(
            f"Drift of {drift['what']} against float32 over {drift['exams']} exams: largest 1 − cos "
            f"{drift['one_minus_cos_max']:.1e}" + ("" if centred is None else f", {centred:.1e} about the mean") + "."
        )
    if filled.failures:
        lines.append(f"Left out, each with its reason in failures.csv: {len(filled.failures)}.")
        lines += [f"- {one['exam_id']}: {one['reason']}" for one in filled.failures[:5]]
    return "\n".join(lines) + "\n"


def _drift(options: argparse.Namespace, encoder: Encoder, exams: ExamTable) -> dict[str, Any] | None:
    """Return how far reduced precision moves the embedding, measured on the first exams; None in float32."""
    import numpy as np

    from embedprior.cache.build import sample
    from embedprior.cache.shards import from_stored, to_stored
    from embedprior.cache.verify import drift

    dtype = options.dtype or encoder.spec.dtype
    if dtype == "uint8" or (dtype == "float32" and encoder.spec.precision == "fp32"):
        return None
    paths = (str(path) for piece in exams for path in piece["path"])
    read = sample(paths, options.cohort.parent, encoder, DRIFT_EXAMS)
    if not read:
        return None
    batch = np.stack(read)
    rounded = from_stored(to_stored(encoder.embed(batch), dtype), dtype)
    exact = encoder if encoder.spec.precision == "fp32" else _encoder(options, precision="fp32")
    what = " and ".join(
        word for word in (encoder.spec.precision + " arithmetic" if encoder.spec.precision != "fp32" else "",
                          dtype + " storage" if dtype != "float32" else "") if word
    )  # fmt: skip
    return {"what": what} | drift(exact.embed(batch), rounded)


def _encoder(options: argparse.Namespace, precision: str | None = None) -> Encoder:
    from embedprior.encoders.registry import create_encoder
    from embedprior.errors import BadInput

    given: dict[str, Any] = {}
    for text in options.option:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--option {text}. Allowed: NAME=VALUE, such as --option geometry=crop")
        given[name] = value
    asked = {"weights": options.weights, "device": options.device, "precision": precision or options.precision}
    given |= {name: value for name, value in asked.items() if value is not None}
    if options.random_init:
        given["random_init"] = True
    return create_encoder(options.encoder, **given)


def _refuse_bytes(encoder: Encoder, dtype: str | None) -> None:
    from embedprior.errors import BadInput

    if dtype is not None and (dtype == "uint8") != (encoder.spec.dtype == "uint8"):
        allowed = "uint8" if encoder.spec.dtype == "uint8" else "float32, float16, bfloat16"
        raise BadInput(f"--dtype {dtype} with encoder '{encoder.spec.name}'. Allowed: {allowed}.")


def _exams(options: argparse.Namespace, encoder: Encoder, quiet: bool) -> ExamTable:
    from embedprior.cache.loading import ExamTable
    from embedprior.errors import BadInput

    readable = READS.get(encoder.spec.modality, (encoder.spec.modality,))
    wanted = readable if options.modality is None else tuple(m for m in readable if m == options.modality)
    if not wanted:
        raise BadInput(f"--modality {options.modality}: encoder '{encoder.spec.name}' reads {', '.join(readable)}.")
    exams = ExamTable(options.cohort, wanted, options.limit)
    if exams.left_out and not quiet:
        print(f"{exams.left_out} exams of other modalities are left out; embedding {', '.join(wanted)}",
              file=sys.stderr)  # fmt: skip
    return exams
