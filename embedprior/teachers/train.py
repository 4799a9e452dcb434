"""Train a CT teacher: a head on embeddings, or a sequence model and its head on tokens; then use it as an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from embedprior.cache import CacheWriter, EmbeddingCache
from embedprior.cache.reader import drop_unembedded
from embedprior.cache.verify import open_verified
from embedprior.encoders.base import EncoderSpec, refuse_seen_patients
from embedprior.errors import BadInput
from embedprior.nn.losses import case_weights
from embedprior.nn.network import Mlp, fit_network, loss_of_labels
from embedprior.nn.sequence import Tokens, new_sequence, pad
from embedprior.nn.training import ValidationHistory, seeded, tensor
from embedprior.runs import hash_file, hash_of, progress
from embedprior.tables import (
    EXAM_REQUIRED,
    PARTS,
    SPLIT_REQUIRED,
    check_exams,
    check_splits,
    fold_parts,
    label_column,
    read_table,
)
from embedprior.teachers.config import TeacherConfig, TrainTeacherConfig
from embedprior.teachers.teacher import Teacher, TeacherHead, require_both_classes, train_head, weights_hash


@dataclass(frozen=True)
class CtCases:
    """CT exams of one part, as a teacher sees them.

    Attributes:
        exam_ids, patient_ids: one a case.
        label: 1, 0 or NaN (unknown).
        inputs: (cases, dim) embeddings, or a list of (tokens, dim), one an exam.
    """

    exam_ids: Sequence[str]
    patient_ids: Sequence[str]
    label: Float[np.ndarray, " cases"]
    inputs: Float[np.ndarray, "cases dim"] | Sequence[Tokens]

    def __len__(self) -> int:
        return len(self.exam_ids)

    def known(self) -> CtCases:
        """Return the cases whose label is known."""
        rows = np.flatnonzero(~np.isnan(self.label))
        inputs = self.inputs[rows] if isinstance(self.inputs, np.ndarray) else [self.inputs[i] for i in rows.tolist()]
        ids = [[column[i] for i in rows.tolist()] for column in (self.exam_ids, self.patient_ids)]
        return CtCases(ids[0], ids[1], self.label[rows], inputs)


def read_cases(
    config: TrainTeacherConfig, dropped: list[dict[str, str]] | None = None
) -> tuple[dict[str, CtCases], EmbeddingCache, dict[str, str]]:
    """Return the CT cases by part, the cache they come from, and a hash of every input by name.

    Args:
        config: where cache and tables are.
        dropped: takes a record (``exam_id, stage, reason``) of each CT without embedding, which is left out.

    Raises:
        BadInput: a missing file (the command that makes it is named), a broken table, an unknown label, no CT exam in
            ``train``, no CT with an embedding, a cache without tokens for a sequence teacher, or held-out patients whom
            the encoder was trained on.
    """
    for name in (config.cache, config.exams, config.splits):
        if not Path(name).exists():
            raise BadInput(f"{name} does not exist. Next: {config.made_by}")
    exams = check_exams(read_table(Path(config.exams), EXAM_REQUIRED), config.exams)
    column = label_column(exams, config.label, config.exams)
    splits = check_splits(read_table(Path(config.splits), SPLIT_REQUIRED), config.splits)
    parts = fold_parts(splits, config.design, config.resample, config.fold, config.splits)
    cache = open_verified(config.cache)
    if config.teacher.kind == "sequence" and not cache.has_tokens:
        raise BadInput(
            f"{cache.path.name} holds one embedding an exam, no tokens. Allowed for kind 'sequence': a token cache "
            "(embedprior embed --tokens). Or set teacher.kind to head"
        )
    scans = exams[exams["modality"] == "CT"]
    scans = scans[scans["patient_id"].isin(parts.index)]
    scans, failures = drop_unembedded(scans, [("exam_id", cache)], config.exams)
    if dropped is not None:
        dropped += failures
    part_of = scans["patient_id"].map(parts)
    cases = {part: _cases(scans[part_of == part], column, cache, config.teacher.kind) for part in PARTS}
    refuse_seen_patients(f"the encoder of {cache.path.name}", cache.patients_seen, cases["test"].patient_ids, "test")
    if not len(cases["train"]):
        raise BadInput(f"{config.exams}: no CT exam of a patient whose part is 'train' in {config.splits}.")
    inputs = {"cache": hash_of(cache.key)}
    inputs |= {"exams": hash_file(Path(config.exams)), "splits": hash_file(Path(config.splits))}
    return cases, cache, inputs


def _cases(rows: pd.DataFrame, column: str, cache: EmbeddingCache, kind: str) -> CtCases:
    ids = [str(exam) for exam in rows["exam_id"]]
    inputs = [np.asarray(cache.tokens(exam)) for exam in ids] if kind == "sequence" else cache.take(ids)
    return CtCases(ids, rows["patient_id"].tolist(), rows[column].to_numpy(dtype=np.float64), inputs)


def train_teacher(
    train: CtCases, val: CtCases, config: TeacherConfig, label: str, cache: str, device: str = "cpu"
) -> tuple[Teacher, ValidationHistory]:
    """Train on ``train``, choose the step on ``val`` (with none, the last step is kept).

    Cases without a label are left out: they are not negatives.

    Args:
        train, val: cases of different patients.
        config: what is trained.
        label: its name, kept with the teacher.
        cache: hash of the cache's key, kept with the teacher.
        device: where a sequence model is trained; the teacher comes back on the CPU. A head alone never needs another.

    Returns:
        The frozen teacher, and one record a validation.

    Raises:
        OneClass: fewer than two classes among the known training labels.
        BadInput: a patient in both parts.
    """
    both = sorted(set(train.patient_ids) & set(val.patient_ids))
    if both:
        raise BadInput(f"patient '{both[0]}' is in training and in validation ({len(both)} such patients).")
    train, val = train.known(), val.known()
    seen = {"train": sorted(set(train.patient_ids)), "val": sorted(set(val.patient_ids))}
    if config.kind == "head":
        inputs, val_inputs = np.asarray(train.inputs), np.asarray(val.inputs)
        head = train_head(inputs, train.label, val_inputs, val.label, config.fit, config.seed)
        return Teacher(head, label, cache, seen), [dict(record) for record in head.validation_history]
    require_both_classes(train.label, "a CT teacher")
    return _train_sequence(train, val, config, Teacher(_new_head(config), label, cache, seen), device)


def _new_head(config: TeacherConfig) -> TeacherHead:
    with seeded(config.seed, "initial weights", "head"):
        network = Mlp(config.sequence.dim, 1, config.fit)
    return TeacherHead(network, config.fit)


def _train_sequence(
    train: CtCases, val: CtCases, config: TeacherConfig, blank: Teacher, device: str
) -> tuple[Teacher, ValidationHistory]:
    settings, fit_config = config.sequence, config.fit
    model = new_sequence(list(train.inputs), settings, config.seed).to(device)
    head = blank.head.network.requires_grad_(True).to(device)
    network = torch.nn.Sequential()
    network.add_module("sequence", model)
    network.add_module("head", head)
    loss, val_loss = loss_of_labels(train.label), loss_of_labels(val.label)

    def outputs(cases: CtCases, rows: Sequence[int]) -> Tensor:
        tokens, lengths = pad([cases.inputs[i] for i in rows], settings.max_tokens)
        logits: Tensor = head(model(tokens.to(device), lengths)).cpu()
        return logits

    def batch_loss(rows: Tensor) -> Tensor:
        return loss(outputs(train, rows.tolist()), rows)

    def validate() -> float:
        size = fit_config.batch_size
        logits = [outputs(val, range(k, min(k + size, len(val)))) for k in range(0, len(val), size)]
        return float(val_loss(torch.cat(logits), torch.arange(len(val))))

    history = fit_network(
        network, batch_loss, len(train), validate if len(val) else None, fit_config, config.seed,
        tensor(case_weights(train.label)) if settings.balanced else None,
    )  # fmt: skip
    frozen = TeacherHead(head.cpu(), fit_config)
    model.cpu().eval().requires_grad_(False)
    return replace(blank, head=frozen, sequence=model, sequence_config=settings), history


def logits_of(teacher: Teacher, cases: CtCases) -> Float[np.ndarray, " cases"]:
    """Return the teacher's logit of every case."""
    if isinstance(cases.inputs, np.ndarray):
        return teacher.head.logits(cases.inputs)
    return teacher.head.logits(teacher.embed(cases.inputs))


def predictions(teacher: Teacher, cases: dict[str, CtCases], config: TrainTeacherConfig) -> pd.DataFrame:
    """Return a predictions table of the validation and held-out CTs with a label; see ``docs/formats.md``."""
    tables: list[dict[str, Any]] = []
    for part in ("val", "test"):
        known = cases[part].known()
        if not len(known):
            continue
        score = 1 / (1 + np.exp(-logits_of(teacher, known).astype(np.float64)))
        for exam, patient, label, value in zip(known.exam_ids, known.patient_ids, known.label, score, strict=True):
            tables.append(
                {"exam_id": exam, "patient_id": patient, "label": int(label), "method": "ct-only", "score": value,
                 "fold": config.fold, "seed": config.teacher.seed, "split": part}
            )  # fmt: skip
    return pd.DataFrame(tables)


NAME, TRANSFORM_VERSION, BATCH = "ct-sequence-teacher", 1, 64


def spec_of(teacher: Teacher, folder: Path, tokens: EmbeddingCache) -> EncoderSpec:
    """Return the provenance of the teacher's embeddings of these tokens.

    Raises:
        BadInput: the teacher is a head alone.
    """
    if teacher.sequence is None or teacher.sequence_config is None:
        raise BadInput("this teacher is a head alone: it makes no embeddings. Allowed: teacher.kind 'sequence'.")
    seen = {patient for ids in teacher.patients.values() for patient in ids}
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
        patients_seen=tuple(sorted(seen | (tokens.patients_seen or frozenset()))),
    )


def write_embeddings(teacher: Teacher, folder: Path | str, tokens: EmbeddingCache, out: Path | str) -> EmbeddingCache:
    """Embed every exam of a token cache; what ``out`` holds already is kept.

    Args:
        teacher: loaded from, or saved in, ``folder``.
        folder: of the teacher.
        tokens: a token cache.
        out: folder of caches.

    Raises:
        BadInput: a head alone, a cache without tokens, or tokens of another cache than the teacher was trained on.
    """
    folder, out = Path(folder), Path(out)
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
