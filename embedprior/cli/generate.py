"""``embedprior generate``: CT-like embeddings from a radiograph cache, and their quality."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import option

from embedprior.cli.options import COUNT, DRY_RUN, PATH
from embedprior.cli.settings import settings_command
from embedprior.errors import DONE, BadInput
from embedprior.prior.config import GenerateConfig

if TYPE_CHECKING:
    import pandas as pd

    from embedprior.cache import EmbeddingCache
    from embedprior.prior.generate import Generated
    from embedprior.prior.model import Prior

SMALL = 2_000_000
"""Parameters up to which threads cost more than they save."""


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
@option("--device", default="cpu", help="cpu or cuda")
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
    from embedprior.cache import open_cache
    from embedprior.prior.generate import generate as draw
    from embedprior.prior.model import Prior
    from embedprior.prior.storage import WEIGHTS
    from embedprior.report.generation_report import build_generation_report
    from embedprior.runs import Run, hash_file, hash_of
    from embedprior.tables import write_table

    prior = Prior.load(common["prior"], common["device"])
    cache = open_cache(common["cache"])
    ids = _exams(cache, common["exams"], config.source)[: common["limit"]]
    inputs = {"prior": hash_file(common["prior"] / WEIGHTS), "cache": hash_of(cache.key)}
    head, head_hash = None, ""
    if common["head"] is not None:
        from embedprior.teachers.teacher import load_head, weights_hash

        head, head_hash = load_head(common["head"]), weights_hash(common["head"], "head")
        inputs["head"] = head_hash
    pairs, reference = None, None
    if common["pairs"] is not None:
        reference = open_cache(common["reference"])
        pairs = _pairs(common["pairs"], common["splits"], common["part"], set(ids), set(reference.ids))
        _same_space(prior, reference)
        if common["splits"] is not None and common["head"] is not None:
            _refuse_seen(common["head"], pairs, common["part"])
        inputs["reference"] = hash_of(reference.key)
    out = common["out"]
    if common["dry_run"]:
        with _threads(prior):
            print(_plan(prior, cache, ids, config))
        return DONE
    with _threads(prior):
        made = draw(prior, common["prior"], cache, ids, config, out, head, head_hash)
        run = Run(out, "generate", config, config.seed, inputs)
        run.stage("embeddings", exams=len(ids), drawn=made.drawn)
        if made.scores is not None:
            write_table(made.scores, out / "scores.csv")
        measured, figure = None, None
        if pairs is not None and reference is not None:
            measured, figure = _measure(prior, made, reference, pairs, cache, config, common["splits"], common["part"])
    summary = build_generation_report(out, config, prior, made, len(ids), measured, figure)
    run.finish(summary, [], outputs={name: each.path for name, each in made.caches.items()})
    print(summary)
    print(f"{out}: {len(ids)} exams, {made.drawn} of them drawn now", file=sys.stderr)
    return DONE


def _exams(cache: EmbeddingCache, table: Path | None, source: str) -> list[str]:
    """Return the exams to draw, in the order of the cache."""
    from embedprior.tables import EXAM_REQUIRED, check_exams, read_table

    if table is None:
        return list(cache.ids)
    exams = check_exams(read_table(table, EXAM_REQUIRED), str(table))
    wanted = set(exams.loc[exams["modality"] == source.upper(), "exam_id"])
    ids = [exam for exam in cache.ids if exam in wanted]
    if not ids:
        raise BadInput(f"{table}: no {source.upper()} exam that {cache.path.name} has an embedding of.")
    return ids


def _pairs(table: Path, splits: Path | None, part: str, drawn: set[str], real: set[str]) -> pd.DataFrame:
    """Return the pairs that the quality report is about."""
    from embedprior.prior.metrics import MIN_PATIENTS
    from embedprior.tables import PAIR_REQUIRED, SPLIT_REQUIRED, check_splits, fold_parts, read_table

    pairs = read_table(table, PAIR_REQUIRED)
    if splits is not None:
        parts = fold_parts(check_splits(read_table(splits, SPLIT_REQUIRED), str(splits)), None, 0, 0, str(splits))
        pairs = pairs[pairs["patient_id"].map(parts) == part]
    kept = pairs[pairs["cxr_exam_id"].isin(drawn) & pairs["ct_exam_id"].isin(real)]
    patients = kept["patient_id"].nunique()
    if patients < MIN_PATIENTS:
        where = f" of part '{part}'" if splits is not None else ""
        raise BadInput(
            f"{table}: {patients} patients{where} with a drawn radiograph and a real CT embedding in --reference. "
            f"Allowed: at least {MIN_PATIENTS}, below that a distribution can't be judged."
        )
    return kept


def _refuse_seen(folder: Path, pairs: pd.DataFrame, part: str) -> None:
    """Refuse a head that was trained on the patients of the report (a head saved alone does not know whom it saw)."""
    from embedprior.teachers.teacher import DESCRIPTION, Teacher

    if (folder / DESCRIPTION).is_file():
        Teacher.load(folder).refuse_seen(pairs["patient_id"], part)


def _threads(prior: Prior) -> AbstractContextManager[None]:
    from embedprior.runs import one_thread

    return one_thread() if prior.network.parameter_count() <= SMALL else nullcontext()


def _plan(prior: Prior, cache: EmbeddingCache, ids: list[str], config: GenerateConfig) -> str:
    """Return items, bytes and minutes, from the time that a few exams take."""
    import time

    from embedprior.prior.generate import OUTPUTS, trial

    few = ids[: min(8, len(ids))]
    started = time.perf_counter()
    trial(prior, cache, few, config)
    minutes = (time.perf_counter() - started) / len(few) * len(ids) / 60
    megabytes = len(ids) * prior.target_scaler.dim * 4 * len(OUTPUTS) / 1e6
    return (
        f"{len(ids)} exams, {config.samples} samples of {config.steps} steps each: about {minutes:.1f} minutes, "
        f"{megabytes:.1f} MB, if nothing is there yet. Nothing was written."
    )


def _same_space(prior: Prior, reference: EmbeddingCache) -> None:
    from embedprior.prior.data import encoder_name

    prior.check_encoders(target=encoder_name(reference))
    dim = prior.target_scaler.dim
    if int(reference.key["dim"]) != dim:
        raise BadInput(f"{reference.path.name} has embeddings of {reference.key['dim']}. Allowed: {dim}, the prior's.")


def _measure(
    prior: Prior, made: Generated, reference: EmbeddingCache, pairs: pd.DataFrame, cache: EmbeddingCache,
    config: GenerateConfig, splits: Path | None, part: str,
) -> tuple[dict[str, Any], bytes]:  # fmt: skip
    """Return the quality figures and the map of a sampling as PNG."""
    from embedprior.prior.generate import path, standardised
    from embedprior.prior.metrics import Matched, quality
    from embedprior.report.embedding_map import path_figure

    radiographs, scans = pairs["cxr_exam_id"].tolist(), pairs["ct_exam_id"].tolist()
    generated = standardised(prior, {name: each.take(radiographs) for name, each in made.caches.items()})
    real = standardised(prior, {"real": reference.take(scans)})["real"]
    matched = Matched(generated, real, pairs["patient_id"].tolist(), scans)
    found = quality(matched, config.seed, config.halves, config.replicates)
    found["part"] = part if splits is not None else "all pairs given"
    found["in_sample"] = splits is None or part != "test"
    seen = (cache.patients_seen or frozenset()) | (reference.patients_seen or frozenset())
    found["patients_seen_by_encoders"] = len(seen & set(pairs["patient_id"]))
    first = pairs.drop_duplicates("patient_id").head(MAP_CASES)
    way = path(prior, cache, first["cxr_exam_id"].tolist(), config)
    states = {str(k): rows for k, rows in enumerate(way)} | {"real": reference.take(first["ct_exam_id"].tolist())}
    return found, path_figure(standardised(prior, states), config.seed)


MAP_CASES = 200
"""Patients in the map: four points each."""
