"""CT-like embedding caches from a radiograph cache: one sample, the mean over samples, the one-step regression.

The three are kept apart because they are not the same thing: a sample has the spread of real CT embeddings, the other
two are regressions and too narrow. With a head its probabilities are kept too; their mean over samples is the score.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from einops import rearrange
from jaxtyping import Float
from scipy.special import expit

from embedprior.cache import CacheWriter, EmbeddingCache
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput
from embedprior.prior.config import GenerateConfig
from embedprior.prior.data import Array, conditions, encoder_name
from embedprior.prior.model import Prior
from embedprior.prior.storage import DESCRIPTION, WEIGHTS
from embedprior.runs import hash_file, hash_of, one_thread, progress
from embedprior.tables import EXAM_REQUIRED, check_exams, read_table
from embedprior.teachers.teacher import TeacherHead

TRANSFORM_VERSION = 1
ONE_THREAD_PARAMETERS = 2_000_000
SCORES = ("one_sample", "mean_of_samples", "sd_of_samples", "one_step")
"""Columns of the head's probabilities: of the first sample, mean and standard deviation over samples, of x0hat."""
OUTPUTS = {
    "sample": "the first sample",
    "mean": "the mean of the samples: an estimate of the regression",
    "one_step": "one network call at the last timestep: the regression",
}


@dataclass(frozen=True)
class Generated:
    """What ``generate`` leaves behind.

    Attributes:
        caches: output (``sample``, ``mean``, ``one_step``) → cache of the same exams.
        scores: ``exam_id`` and ``SCORES``; None without a head.
        drawn: exams that were computed in this call; the others were there.
    """

    caches: dict[str, EmbeddingCache]
    scores: pd.DataFrame | None
    drawn: int


def generate(
    prior: Prior,
    folder: Path | str,
    cache: EmbeddingCache,
    exam_ids: Sequence[str],
    config: GenerateConfig,
    out: Path | str,
    head: TeacherHead | None = None,
    head_hash: str = "",
    desc: str = "CT-like embeddings",
) -> Generated:
    """Draw CT-like embeddings of these exams; what is in ``out`` already is not drawn again.

    Args:
        prior: loaded from ``folder``.
        folder: of the prior; its hashes go into the keys of the caches.
        cache: radiograph (or DRR) embeddings.
        exam_ids: of ``cache``.
        config: how.
        out: becomes ``out/sample``, ``out/mean``, ``out/one_step``, each a folder of caches, and with a head
            ``out/scores``.
        head: frozen CT head.
        head_hash: of its weights.
        desc: text of the progress bar.

    Raises:
        BadInput: embeddings of another encoder than the prior was trained on, of another size or not finite, a head
            for another size, or a sampler that the prior can't run.
    """
    folder, out = Path(folder), Path(out)
    prior.check_encoders(condition=encoder_name(cache))
    width, dim = None if head is None else head.network.mean.numel(), prior.target_scaler.dim
    if width not in (None, dim):
        raise BadInput(f"the head reads embeddings of {width}. Allowed: {dim}, those of the prior.")
    # One sample of one exam: whatever the prior refuses, it refuses before a file is written.
    trial(prior, cache, exam_ids[:1], config.model_copy(update={"samples": 1}))
    sources = dict(zip(cache.ids, cache.sources, strict=True))
    specs = {name: _spec(name, prior, folder, cache, config) for name in OUTPUTS}
    if head is not None:
        specs["scores"] = _spec("scores", prior, folder, cache, config, head_hash)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(CacheWriter(out / name, spec)) for name, spec in specs.items()}
        todo = [exam for exam in exam_ids if not all(w.has(exam, sources[exam]) for w in writers.values())]
        chunks = [todo[start : start + config.batch] for start in range(0, len(todo), config.batch)]
        for chunk in progress(chunks, desc, total=len(chunks)) if chunks else ():
            made = _draw(prior, cache, chunk, config, head)
            for name, writer in writers.items():
                writer.append(chunk, [sources[exam] for exam in chunk], made[name])
        caches = {name: writer.close() for name, writer in writers.items()}
    scores = caches.pop("scores", None)
    return Generated(caches, None if scores is None else _score_table(scores, exam_ids), len(todo))


def exams_to_draw(cache: EmbeddingCache, table: Path | None, source: str) -> list[str]:
    """Return the exams to draw for, in the order of the cache.

    Args:
        cache: of the radiographs.
        table: exam table that chooses among them; None = every exam of the cache.
        source: ``cxr`` or ``drr``: which rows of the table.

    Raises:
        BadInput: the table can't be used, or none of its exams is in the cache.
    """
    if table is None:
        return list(cache.ids)
    exams = check_exams(read_table(table, EXAM_REQUIRED), str(table))
    wanted = set(exams.loc[exams["modality"] == source.upper(), "exam_id"])
    ids = [exam for exam in cache.ids if exam in wanted]
    if not ids:
        raise BadInput(f"{table}: no {source.upper()} exam that {cache.path.name} has an embedding of.")
    return ids


def plan_text(prior: Prior, cache: EmbeddingCache, ids: Sequence[str], config: GenerateConfig) -> str:
    """Return items, bytes and minutes, from the time that a few exams take."""
    few = ids[: min(8, len(ids))]
    started = time.perf_counter()
    trial(prior, cache, few, config)
    minutes = (time.perf_counter() - started) / len(few) * len(ids) / 60
    megabytes = len(ids) * prior.target_scaler.dim * 4 * len(OUTPUTS) / 1e6
    return (
        f"{len(ids)} exams, {config.samples} samples of {config.steps} steps each: about {minutes:.1f} minutes, "
        f"{megabytes:.1f} MB, if nothing is there yet. Nothing was written."
    )


def fit_threads(prior: Prior) -> AbstractContextManager[None]:
    """Compute a small prior on one thread: more of them cost more than they save."""
    return one_thread() if prior.network.parameter_count() <= ONE_THREAD_PARAMETERS else nullcontext()


def noise_key(exam_id: str) -> int:
    """Return the number that keys the noise of an exam: the same in any batch, order or restart.

    Example:
        >>> noise_key("exam-1") == noise_key("exam-1") != noise_key("exam-2")
        True
    """
    return int.from_bytes(hashlib.sha256(exam_id.encode()).digest()[:8], "little")


def path(prior: Prior, cache: EmbeddingCache, ids: Sequence[str], config: GenerateConfig) -> list[Array]:
    """Return the first sample of these exams at its start (noise), half way, and at its end; each (N, D)."""
    condition, real = conditions(cache, pd.DataFrame({"exam_id": list(ids)}), cache.path.name)
    keys = [noise_key(exam) for exam in ids]
    return prior.path(
        condition, (0.0, 0.5, 1.0), config.sampler, config.steps, config.seed, config.source, real, config.guidance,
        keys,
    )  # fmt: skip


def trial(prior: Prior, cache: EmbeddingCache, ids: Sequence[str], config: GenerateConfig) -> None:
    """Draw these exams and throw them away: to see whether it works, and how long it takes.

    Raises:
        BadInput: as ``generate``.
    """
    _draw(prior, cache, ids, config, None)


def _draw(
    prior: Prior, cache: EmbeddingCache, ids: Sequence[str], config: GenerateConfig, head: TeacherHead | None
) -> dict[str, Float[np.ndarray, "exams width"]]:
    condition, real = conditions(cache, pd.DataFrame({"exam_id": list(ids)}), cache.path.name)
    keys = [noise_key(exam) for exam in ids]
    drawn = prior.sample(
        condition, config.samples, config.sampler, config.steps, config.seed, config.source, real, config.guidance,
        keys,
    )  # fmt: skip
    made = {
        "sample": drawn[:, 0],
        "mean": drawn.mean(axis=1, dtype=np.float64).astype(np.float32),
        "one_step": prior.one_step(condition, config.source, real, config.seed, cases=keys),
    }
    if head is not None:
        flat = _probability(head, rearrange(drawn, "cases samples d -> (cases samples) d"))
        probability = rearrange(flat, "(cases samples) -> cases samples", samples=config.samples)
        columns = [probability[:, 0], probability.mean(axis=1), probability.std(axis=1)]
        columns.append(_probability(head, made["one_step"]))
        made["scores"] = np.stack(columns, axis=1).astype(np.float32)
    return made


def _probability(head: TeacherHead, embeddings: Array) -> Float[np.ndarray, " rows"]:
    return np.asarray(expit(head.logits(embeddings).astype(np.float64)))


def _score_table(cache: EmbeddingCache, exam_ids: Sequence[str]) -> pd.DataFrame:
    table = pd.DataFrame(cache.take(list(exam_ids)), columns=list(SCORES))
    table.insert(0, "exam_id", list(exam_ids))
    return table


def _spec(
    output: str, prior: Prior, folder: Path, cache: EmbeddingCache, config: GenerateConfig, head_hash: str = ""
) -> EncoderSpec:
    """Return the provenance of one output. ``batch`` and the settings of the report change no embedding."""
    changes = {"source", "seed"}
    if output != "one_step":
        changes |= {"sampler", "steps", "guidance"}
    if output in ("mean", "scores"):
        changes.add("samples")
    profile: dict[str, Any] = {
        "transform_version": TRANSFORM_VERSION,
        "output": output,
        "prior": hash_file(folder / DESCRIPTION),
        "condition": hash_of(cache.key),
        **config.model_dump(mode="json", include=changes),
    }
    if head_hash:
        profile["head"] = head_hash
    return EncoderSpec(
        name=f"prior-{output.replace('_', '-')}",
        modality="CXR",
        dim=len(SCORES) if output == "scores" else prior.target_scaler.dim,
        source="a diffusion prior (embedprior generate)",
        weights_sha256=hash_file(folder / WEIGHTS),
        licence="that of the embeddings the prior was trained on",
        profile=profile,
        pooling="none",
        patients_seen=None if cache.patients_seen is None else tuple(sorted(cache.patients_seen)),
    )


def standardised(prior: Prior, embeddings: Mapping[str, Array]) -> dict[str, Float[np.ndarray, "rows dim"]]:
    """Return embeddings by name in the prior's standardised units, float64: every dimension then counts alike."""
    return {name: prior.target_scaler.forward(rows).astype(np.float64) for name, rows in embeddings.items()}
