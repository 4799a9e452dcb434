"""``embedprior generate``: CT-like embeddings from a radiograph cache, and their quality."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from click import option

from embedprior.cli.options import COUNT, DEVICE, DRY_RUN, PATH
from embedprior.cli.settings import settings_command
from embedprior.errors import DONE, BadInput
from embedprior.prior.config import GenerateConfig


@settings_command(GenerateConfig, "generate", "default")
@option("--prior", type=PATH, required=True, metavar="DIR", help="folder of a trained prior")
@option("--cache", type=PATH, required=True, metavar="DIR", help="embedding cache of the radiographs or DRRs")
@option("--out", type=PATH, default=Path("runs/generated"), metavar="DIR", help="folder of the results")
@option("--head", type=PATH, metavar="DIR", help="folder of a CT teacher, whose probabilities are kept too")
@option("--exams", type=PATH, metavar="FILE", help="exam table: draw only for its CXR rows (DRR rows with --source "
        "drr)")  # fmt: skip
@option("--reference", type=PATH, metavar="DIR", help="cache of real CT embeddings, for the quality report")
@option("--pairs", type=PATH, metavar="FILE", help="pair table, for the quality report")
@option("--splits", type=PATH, metavar="FILE", help="split table: the quality report covers one part of it alone")
@option("--part", default="test", help="that part")
@option("--device", type=DEVICE, default="cpu", help="cpu or cuda")
@option("--limit", type=COUNT, metavar="N", help="draw for the first N exams only")
@option("--dry-run", is_flag=True, help=DRY_RUN)
def generate(config: GenerateConfig, **common: Any) -> int:
    """Generate, and measure where a reference is given; return the exit code.

    Everything that can be refused is refused before a file is written.

    Raises:
        BadInput: see ``prior.generate`` and ``prior.metrics``.
    """
    if (common["reference"] is None) != (common["pairs"] is None):
        raise BadInput("the quality report needs both --reference and --pairs.")
    from embedprior.cache.verify import open_verified
    from embedprior.prior.generate import exams_to_draw, fit_threads, plan_text
    from embedprior.prior.generate import generate as draw
    from embedprior.prior.model import Prior
    from embedprior.prior.storage import WEIGHTS
    from embedprior.report.generation_report import (
        build_generation_report,
        measure,
        pairs_to_measure,
        refuse_prior,
        refuse_reference,
    )
    from embedprior.runs import Run, claimed, hash_file, hash_of, noting_a_stop
    from embedprior.tables import write_table
    from embedprior.teachers.teacher import refuse_seen_by_head

    prior = Prior.load(common["prior"], common["device"])
    cache = open_verified(common["cache"])
    ids = exams_to_draw(cache, common["exams"], config.source)[: common["limit"]]
    inputs = {"prior": hash_file(common["prior"] / WEIGHTS), "cache": hash_of(cache.key)}
    head, head_hash = None, ""
    if common["head"] is not None:
        from embedprior.teachers.teacher import load_head, weights_hash

        head, head_hash = load_head(common["head"]), weights_hash(common["head"], "head")
        inputs["head"] = head_hash
    pairs, reference = None, None
    if common["pairs"] is not None:
        reference = open_verified(common["reference"])
        pairs = pairs_to_measure(common["pairs"], common["splits"], common["part"], set(ids), set(reference.ids))
        refuse_reference(prior, reference)
        if common["splits"] is not None:
            refuse_prior(common["prior"], pairs["patient_id"], common["part"])
        if common["splits"] is not None and common["head"] is not None:
            refuse_seen_by_head(common["head"], pairs["patient_id"], common["part"])
        inputs["reference"] = hash_of(reference.key)
    out = common["out"]
    if common["dry_run"]:
        with fit_threads(prior):
            print(plan_text(prior, cache, ids, config))
        return DONE

    def begin() -> Run:
        return Run(out, "generate", config, config.seed, inputs)

    with claimed(out), fit_threads(prior):
        with noting_a_stop(out, begin):
            made = draw(prior, common["prior"], cache, ids, config, out, head, head_hash)
        run = begin()
        run.stage("embeddings", exams=len(ids), drawn=made.drawn)
        if made.scores is not None:
            write_table(made.scores, out / "scores.csv")
        measured, figure = None, None
        if pairs is not None and reference is not None:
            measured, figure = measure(prior, made, reference, pairs, cache, config, common["splits"], common["part"])
    summary = build_generation_report(out, config, prior, made, len(ids), measured, figure)
    run.finish(summary, [], outputs={name: each.path for name, each in made.caches.items()})
    print(summary)
    print(f"{out}: {len(ids)} exams, {made.drawn} of them drawn now", file=sys.stderr)
    return DONE
