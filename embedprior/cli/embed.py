"""``embedprior embed``: from an exam table, through a frozen encoder, into an embedding cache."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, get_args

import click
from click import option

from embedprior.cli.options import COUNT, DEVICE, EXAM_TABLE, PATH, AtLeast, command, recorded
from embedprior.encoders.config import Precision
from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput

if TYPE_CHECKING:
    from embedprior.encoders.base import Encoder


@command(epilog="Exit code 3: exams left out are named in failures.csv. Several processes: torchrun "
        "--nproc_per_node 2 -m embedprior embed ...")  # fmt: skip
@option("--cohort", type=EXAM_TABLE, required=True, metavar="FILE", help="exam table (exams.csv), or its folder; its "
        "paths are relative to it")  # fmt: skip
@option("--encoder", required=True, metavar="NAME", help="see: embedprior encoders")
@option("--out", type=PATH, required=True, metavar="DIR", help="folder of caches")
@option("--weights", type=PATH, metavar="PATH", help="local weights of the encoder")
@option("--random-init", is_flag=True, help="random weights, stamped into the key (for trials)")
@option("--option", multiple=True, metavar="NAME=VALUE", help="another option of the encoder, such as "
        "geometry=crop; may be repeated")  # fmt: skip
@option("--precision", type=click.Choice(get_args(Precision)), help="of the encoder's arithmetic: bfloat16 weights, or "
        "float32 weights under autocast; its error is measured")  # fmt: skip
@option("--dtype", type=click.Choice(["float32", "float16", "bfloat16", "uint8"]), help="of the stored numbers")
@option("--tokens", is_flag=True, help="store slice or patch tokens instead of one embedding an exam")
@option("--modality", type=click.Choice(["CXR", "DRR", "CT", "REPORT"]), multiple=True, help="only exams of this "
        "modality; may be given several times")  # fmt: skip
@option("--views", metavar="LIST", help="only radiographs of these views, such as PA,AP, by the table or the DICOM "
        "header, and those whose view nothing names")  # fmt: skip
@option("--batch-size", type=COUNT, metavar="N", help="exams read together [default: 64; 4 CT volumes]")
@option("--workers", type=AtLeast(0), default=0, metavar="N", help="processes that read ahead; 0: none")
@option("--shard-exams", type=COUNT, metavar="N", help="exams a shard, the most that a kill loses and what "
        "processes share out [default: 512; 64 with --tokens]")  # fmt: skip
@option("--limit", type=COUNT, metavar="N", help="only the first N exams")
@option("--device", type=DEVICE, metavar="NAME", help="of encoders that take one: cpu, cuda [default: their own]")
@option("--keep-volumes", type=PATH, metavar="DIR", help="keep preprocessed CT volumes here: another encoder with the "
        "same profile decodes none again")  # fmt: skip
@option("--processes", type=COUNT, metavar="N", help="refuse to start unless there are just so many")
@option("--dry-run", is_flag=True, help="print what would be done (exams, bytes, minutes), and stop")
def embed(**given: Any) -> int:
    """Fill the cache; return the exit code.

    Raises:
        BadInput: anything that can be refused before the work begins; nothing was written.
    """
    from embedprior.cache.build import clear_findings, fill_cache, summary_text, write_findings
    from embedprior.cache.format import cache_location
    from embedprior.cache.plan import exams_for, measure_quantization, plan, refuse_dtype, refuse_second_cache
    from embedprior.imaging.radiographs import parse_views
    from embedprior.runs import Run, hash_file, record_dependency
    from embedprior.runs.distributed import process_group

    cohort, out, dtype, tokens = given["cohort"], given["out"], given["dtype"], given["tokens"]
    processes = process_group(given["processes"])
    encoder = _encoder(given)
    refuse_dtype(encoder, dtype)
    spec = encoder.spec if dtype is None else encoder.spec.model_copy(update={"dtype": dtype})
    location = cache_location(out, spec, tokens)
    refuse_second_cache(out, location)
    exams = exams_for(encoder, cohort, given["modality"], given["limit"], parse_views(given["views"]))
    if exams.left_out and processes.is_main:
        print(f"{exams.left_out} exams of other modalities are left out", file=sys.stderr)
    if exams.view_text() and processes.is_main:
        kept = f"; {exams.unknown_views} stay though nothing names their view" if exams.unknown_views else ""
        print(f"{sum(exams.other_views.values())} exams of other views are left out ({exams.view_text()}){kept}",
              file=sys.stderr)  # fmt: skip
    if given["dry_run"]:
        if processes.is_main:
            print(f"{location.folder}\n{plan(exams, cohort.parent, encoder, location).words()}")
        return DONE
    run = None
    if processes.is_main:
        inputs = {"cohort": hash_file(cohort), "encoder weights": encoder.spec.weights_sha256}
        run = Run(out, "embed", recorded(given), 0, inputs, shared=True)
        run.keep(location.folder)
    filled = fill_cache(
        exams, cohort.parent, encoder, out, given["batch_size"], tokens=tokens, dtype=dtype,
        workers=given["workers"], shard_exams=given["shard_exams"], processes=processes, keep_findings=True,
    )  # fmt: skip
    if run is not None:
        record_dependency("cache", filled.location.folder.name, filled.location.folder, filled.view)
        precision = measure_quantization(
            encoder, lambda: _encoder(given | {"precision": "fp32"}), exams, cohort.parent, dtype
        )
        write_findings(out, filled.findings)
        clear_findings(filled.location.folder)
        text = summary_text(filled, precision, exams.count)
        if exams.view_text():
            text += f"Views left out: {exams.view_text()}.\n"
        run.stage("embed", exams=filled.exams, embedded=filled.embedded, failures=len(filled.failures))
        run.finish(text, filled.failures, cache=filled.location.folder.name, view=filled.view,
                   quantization_error=precision, repaired=[vars(one) for one in filled.repaired])  # fmt: skip
        print(text)
    processes.barrier()  # a launcher ends all processes when one ends with exit code 3: first let all be written
    return NEEDS_ATTENTION if filled.failures else DONE


def _encoder(given: dict[str, Any]) -> Encoder:
    from embedprior.encoders.registry import create_encoder

    options: dict[str, Any] = {}
    for text in given["option"]:
        name, equals, value = text.partition("=")
        if not equals:
            raise BadInput(f"--option {text}. Allowed: NAME=VALUE, such as --option geometry=crop")
        options[name] = value
    options |= {name: given[name] for name in ("weights", "device", "precision") if given[name] is not None}
    if given["random_init"]:
        options["random_init"] = True
    encoder = create_encoder(given["encoder"], **options)
    if given["keep_volumes"] is not None and not given["dry_run"]:
        from embedprior.encoders.frozen import keep_volumes

        keep_volumes(encoder, given["keep_volumes"])
    return encoder
