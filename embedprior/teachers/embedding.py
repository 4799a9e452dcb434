"""A sequence teacher as an encoder: a token cache becomes a cache of CT embeddings."""

from __future__ import annotations

from pathlib import Path

from embedprior.cache import CacheWriter, EmbeddingCache
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput
from embedprior.runs import hash_of, progress
from embedprior.teachers.teacher import Teacher, weights_hash

NAME, TRANSFORM_VERSION, BATCH = "ct-sequence-teacher", 1, 64


def spec_of(teacher: Teacher, folder: Path, tokens: EmbeddingCache) -> EncoderSpec:
    """Return the provenance of the teacher's embeddings of these tokens.

    Raises:
        BadInput: the teacher is a head alone.
    """
    if teacher.sequence is None or teacher.sequence_config is None:
        raise BadInput("this teacher is a head alone: it makes no embeddings. Allowed: teacher.kind 'sequence'.")
    return EncoderSpec(
        name=NAME,
        modality="CT",
        dim=teacher.sequence_config.dim,
        source="embedprior train teacher",
        weights_sha256=weights_hash(folder, "sequence"),
        licence="that of the tokens it was trained on",
        profile={
            "transform_version": TRANSFORM_VERSION,
            "tokens": hash_of(tokens.key),
            "label": teacher.label,
            "max_tokens": teacher.sequence_config.max_tokens,
        },
        pooling=teacher.sequence_config.pool,
        patients_seen=tuple(sorted({patient for ids in teacher.patients.values() for patient in ids})),
    )


def write_embeddings(teacher: Teacher, folder: Path, tokens: EmbeddingCache, out: Path) -> EmbeddingCache:
    """Embed every exam of a token cache; what ``out`` holds already is kept.

    Args:
        teacher: loaded from, or saved in, ``folder``.
        folder: of the teacher.
        tokens: a token cache.
        out: folder of caches.

    Raises:
        BadInput: a head alone, a cache without tokens, or tokens of another cache than the teacher was trained on.
    """
    if not tokens.has_tokens:
        raise BadInput(f"{tokens.path.name} holds one embedding an exam, no tokens. Next: embed with --tokens")
    if teacher.cache != hash_of(tokens.key):
        raise BadInput(
            f"{tokens.path.name} is not the token cache the teacher was trained on (another key). Embeddings of "
            "different origin are never mixed. Next: train a teacher on it"
        )
    with CacheWriter(out, spec_of(teacher, folder, tokens)) as writer:
        sources = dict(zip(tokens.ids, tokens.sources, strict=True))
        todo = [exam for exam in tokens.ids if not writer.has(exam, sources[exam])]
        chunks = [todo[start : start + BATCH] for start in range(0, len(todo), BATCH)]
        for chunk in progress(chunks, NAME, total=len(chunks)):
            writer.append(chunk, [sources[i] for i in chunk], teacher.embed([tokens.tokens(i) for i in chunk]))
        return writer.close()
