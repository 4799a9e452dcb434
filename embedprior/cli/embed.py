"""``embedprior embed``: from an exam table, through a frozen encoder, into an embedding cache."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click
from click import option

from embedprior.cli.options import COUNT, PATH, AtLeast, command, recorded

if TYPE_CHECKING:
    from embedprior.cache.build import Filled
    from embedprior.cache.format import Place
    from embedprior.cache.loading import ExamTable
    from embedprior.encoders.base import Encoder

READS = {"CXR": ("CXR", "DRR"), "CT": ("CT",), "image": ("CXR", "DRR", "CT")}
DRIFT_EXAMS = 32


@command(epilog="Exit code 3: exams left out are named in failures.csv. Several processes: torchrun "
        "--nproc_per_node 2 -m embedprior embed ...")  # fmt: skip
@option("--cohort", type=PATH, required=True, metavar="FILE", help="exam table (exams.csv); its paths are relative "
        "to its folder")  # fmt: skip
@option("--encoder", required=True, metavar="NAME", help="see: embedprior encoders")
@option("--out", type=PATH, required=True, metavar="DIR", help="folder of caches")
@option("--weights", type=PATH, metavar="PATH", help="local weights of the encoder")
@option("--random-init", is_flag=True, help="random weights, stamped into the key (for trials)")
@option("--option", multiple=True, metavar="NAME=VALUE", help="another option of the encoder, such as "
        "geometry=crop; may be repeated")  # fmt: skip
@option("--precision", type=click.Choice(["fp32", "bf16"]), help="of the encoder's arithmetic; bf16 reports its drift")
@option("--dtype", type=click.Choice(["float32", "float16", "bfloat16", "uint8"]), help="of the stored numbers")
@option("--tokens", is_flag=True, help="store slice or patch tokens instead of one embedding an exam")
@option("--modality", type=click.Choice(["CXR", "DRR", "CT"]), help="only exams of this modality")
@option("--batch-size", type=COUNT, default=64, metavar="N", help="exams a batch")
@option("--workers", type=AtLeast(0), default=0, metavar="N", help="processes that read ahead; 0: none")
@option("--shard-exams", type=COUNT, metavar="N", help="exams a shard, the most that a kill loses and what "
        "processes share out [default: 512; 64 with --tokens]")  # fmt: skip
@option("--limit", type=COUNT, metavar="N", help="only the first N exams")
@option("--device", metavar="NAME", help="of encoders that take one: cpu, cuda [default: their own]")
@option("--processes", type=COUNT, metavar="N", help="refuse to start unless there are just so many")
@option("--dry-run", is_flag=True, help="print what would be done (exams, bytes, minutes), and stop")
def embed(**given: Any) -> int:
    """Fill the cache; return the exit code.

    Raises:
        BadInput: anything that can be refused before the work begins; nothing was written.
    """
    options = SimpleNamespace(**given)
    from embedprior.cache.format import place_for, refuse_neighbour
    from embedprior.errors import DONE, NEEDS_ATTENTION
    from embedprior.runs.distributed import launched

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


def _fill(options: SimpleNamespace, encoder: Encoder, exams: ExamTable, place: Place, me: Any) -> Filled:
    from embedprior.cache.build import fill_cache
    from embedprior.runs import Run, hash_file, note_use

    run = None
    if me.first:
        inputs = {"cohort": hash_file(options.cohort), "encoder weights": encoder.spec.weights_sha256}
        run = Run(options.out, "embed", recorded(vars(options)), 0, inputs)
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


def _drift(options: SimpleNamespace, encoder: Encoder, exams: ExamTable) -> dict[str, Any] | None:
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


def _encoder(options: SimpleNamespace, precision: str | None = None) -> Encoder:
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


def _exams(options: SimpleNamespace, encoder: Encoder, quiet: bool) -> ExamTable:
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
