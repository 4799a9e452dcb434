from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedprior.cache import EmbeddingCache, open_cache, write_cache
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput
from embedprior.nn.config import FitConfig, SequenceConfig
from embedprior.runs import hash_of
from embedprior.teachers.config import TeacherConfig
from embedprior.teachers.teacher import Teacher
from embedprior.teachers.train import CtCases, train_teacher, write_embeddings

COUNT, WIDTH = 12, 3


def tokens(root: Path, name: str = "slices") -> EmbeddingCache:
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((int(rng.integers(1, 5)), WIDTH)).astype(np.float32) for _ in range(COUNT)]
    spec = EncoderSpec(
        name=name, modality="CT", dim=WIDTH, token_dim=WIDTH, source="test", weights_sha256="none", licence="none",
        profile={"transform_version": 1}, pooling="none",
    )  # fmt: skip
    return write_cache(root, spec, [f"ct{i}" for i in range(COUNT)], [f"s{i}" for i in range(COUNT)], rows, tokens=True)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Teacher, EmbeddingCache, Path]:
    cache = tokens(tmp_path / "tokens")
    config = TeacherConfig(
        kind="sequence", fit=FitConfig(steps=2, validate_every=1, hidden=4), sequence=SequenceConfig(hidden=4, dim=5)
    )
    label = np.array([0.0, 1.0] * 4)
    ids, people = [f"ct{i}" for i in range(8)], [f"p{i}" for i in range(8)]
    cases = CtCases(ids, people, label, [np.asarray(cache.tokens(i)) for i in ids])
    val = CtCases(["ct8", "ct9"], ["p8", "p9"], np.array([0.0, 1.0]), [np.asarray(cache.tokens(i)) for i in (8, 9)])
    teacher, _ = train_teacher(cases, val, config, "lesion", hash_of(cache.key))
    teacher.save(tmp_path / "teacher")
    return teacher, cache, tmp_path


def test_a_sequence_teacher_writes_a_cache_of_ct_embeddings(made: tuple[Teacher, EmbeddingCache, Path]) -> None:
    teacher, cache, root = made
    write_embeddings(Teacher.load(root / "teacher"), root / "teacher", cache, root / "ct")
    back = open_cache(root / "ct")
    assert back.matrix.shape == (COUNT, 5)
    assert back.sources == cache.sources
    alone = teacher.embed([np.asarray(cache.tokens("ct7"))])
    np.testing.assert_allclose(back.take(["ct7"]), alone, atol=1e-6)
    # Whoever reads the cache later can see whose exams made it.
    assert back.patients_seen == frozenset(f"p{i}" for i in range(10))


def test_writing_twice_computes_nothing_twice(
    made: tuple[Teacher, EmbeddingCache, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, cache, root = made
    write_embeddings(teacher, root / "teacher", cache, root / "ct")
    monkeypatch.setattr(Teacher, "embed", lambda *_: pytest.fail("embedded again"))
    assert len(write_embeddings(teacher, root / "teacher", cache, root / "ct").ids) == COUNT


def test_tokens_of_another_cache_and_heads_alone_are_refused(made: tuple[Teacher, EmbeddingCache, Path]) -> None:
    teacher, cache, root = made
    with pytest.raises(BadInput, match="not the token cache the teacher was trained on"):
        write_embeddings(teacher, root / "teacher", tokens(root / "other", "others"), root / "ct")
    head_alone = Teacher(teacher.head, "lesion", teacher.cache, {})
    with pytest.raises(BadInput, match="head alone"):
        write_embeddings(head_alone, root / "teacher", cache, root / "ct")
    embeddings = write_embeddings(teacher, root / "teacher", cache, root / "ct")
    with pytest.raises(BadInput, match="no tokens"):
        write_embeddings(teacher, root / "teacher", embeddings, root / "again")
