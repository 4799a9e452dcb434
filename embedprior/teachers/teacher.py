"""A CT teacher: the head (embedding → logit), the sequence model where it has one, and whose exams it has seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from embedprior.config import parse_config
from embedprior.errors import BadInput
from embedprior.nn.config import Balance, FitConfig, SequenceConfig
from embedprior.nn.losses import case_weights
from embedprior.nn.network import Mlp, fit_mlp, loss_of_labels, new_mlp, predict
from embedprior.nn.sequence import SequenceModel, Tokens, embed
from embedprior.nn.training import contiguous, tensor
from embedprior.runs import hash_file, read_json, write_json, write_tensors
from embedprior.runs.integrity import read_sealed, refuse_damaged_artifact, write_sealed

WEIGHTS, SETTINGS = "head.safetensors", "head.json"


class OneClass(BadInput):
    """A classifier needs both classes."""


class TeacherHead:
    """A frozen classifier on CT embeddings.

    Attributes:
        network: from embedding to logit.
        config: of its training.
        validation_history: of its training; empty when it was read from a folder.
    """

    def __init__(self, network: Mlp, config: FitConfig, history: Sequence[Mapping[str, float]] = ()) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config = config
        self.validation_history = tuple(history)

    def logits(self, embeddings: Float[np.ndarray, "cases dim"]) -> Float[np.ndarray, " cases"]:
        """Return one logit a case.

        Raises:
            BadInput: not (cases, dim).
        """
        _require_rows(embeddings.shape, self.network.mean.numel())
        return predict(self.network, embeddings)[:, 0]

    def __call__(self, embeddings: Float[Tensor, "cases dim"]) -> Float[Tensor, " cases"]:
        """Return logits with gradients to the embeddings (the weights stay frozen).

        Raises:
            BadInput: not (cases, dim).
        """
        _require_rows(tuple(embeddings.shape), self.network.mean.numel())
        out: Tensor = self.network(embeddings)[:, 0]
        return out

    def save(self, folder: Path | str) -> None:
        """Write weights (safetensors) and settings (JSON)."""
        folder = Path(folder)
        write_tensors(folder / WEIGHTS, contiguous(self.network.state_dict()))
        write_json(folder / SETTINGS, {"dim": self.network.mean.numel(), "config": self.config})

    @classmethod
    def load(cls, folder: Path | str) -> TeacherHead:
        """Read a head back; runs no code from the file."""
        folder = Path(folder)
        settings = read_json(folder / SETTINGS)
        config = parse_config(FitConfig, settings["config"], str(folder / SETTINGS))
        network = Mlp(int(settings["dim"]), 1, config)
        network.load_state_dict(load_file(folder / WEIGHTS))
        return cls(network, config)


def _require_rows(shape: tuple[int, ...], dim: int) -> None:
    # (cases, samples, dim) would pass through the layers, and [:, 0] would be the first sample alone.
    if len(shape) != 2 or shape[1] != dim:
        raise BadInput(
            f"embeddings of shape {shape}. Allowed: (cases, {dim}). "
            "Next: one row a sample, embeddings.reshape(-1, embeddings.shape[-1])"
        )


def train_head(
    embeddings: Float[np.ndarray, "cases dim"],
    labels: Float[np.ndarray, " cases"],
    val_embeddings: Float[np.ndarray, "others dim"],
    val_labels: Float[np.ndarray, " others"],
    config: FitConfig,
    seed: int,
    balance: Balance = "none",
) -> TeacherHead:
    """Train a head on labelled CT embeddings.

    Args:
        embeddings: of training CTs.
        labels: 1, 0 or NaN (left out).
        val_embeddings: of CTs that choose the step; may be empty.
        val_labels: their labels.
        config: network and budget.
        seed: of weights, batches and dropout.
        balance: ``class-weights`` weighs the loss (that of the validation CTs by their own classes, too); ``sampler``
            draws both classes alike.

    Raises:
        OneClass: fewer than two classes among the training labels.

    Example:
        >>> z, label = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32), np.arange(80) % 2
        >>> z[:, 0] += 4 * label
        >>> head = train_head(z[:60], label[:60], z[60:], label[60:], FitConfig(hidden=8, steps=60, lr=0.01), seed=0)
        >>> bool(((head.logits(z[60:]) > 0) == label[60:]).mean() > 0.9)
        True
    """
    known, val_known = ~np.isnan(labels), ~np.isnan(val_labels)
    require_both_classes(labels[known], "a CT head")
    network = new_mlp(embeddings[known], 1, config, seed)
    train, val = labels[known], val_labels[val_known]
    loss, val_loss = (loss_of_labels(y, case_weights(y) if balance == "class-weights" else None) for y in (train, val))
    history = fit_mlp(
        network, embeddings[known], loss, val_embeddings[val_known], val_loss, config, seed,
        tensor(case_weights(train)) if balance == "sampler" else None,
    )  # fmt: skip
    return TeacherHead(network, config, tuple(history))


def require_both_classes(labels: Float[np.ndarray, " cases"], what: str) -> None:
    """Check that known labels hold both classes.

    Raises:
        OneClass: they do not; the message names ``what`` needs them.
    """
    classes = sorted({int(value) for value in labels})
    if len(classes) < 2:
        have = "none" if not classes else f"only class {classes[0]}"
        raise OneClass(f"{what} needs both classes; the {len(labels)} labelled CTs hold {have}.")


FORMAT = 2
"""2: ``teacher.json`` lists the checksums of all files, and its own."""
DESCRIPTION, SEQUENCE_WEIGHTS, SEQUENCE_SETTINGS = "teacher.json", "sequence.safetensors", "sequence.json"


@dataclass(frozen=True)
class Teacher:
    """A frozen CT classifier.

    Attributes:
        head: embedding → logit; the matching layer for generated embeddings.
        sequence: tokens → embedding; None when the embeddings come from an encoder.
        sequence_config: of ``sequence``.
        label: what it was trained for.
        cache: hash of the key of the cache it was trained on.
        patients: part (``train``, ``val``) → ids of the patients it has seen.
    """

    head: TeacherHead
    label: str
    cache: str
    patients: dict[str, list[str]]
    sequence: SequenceModel | None = None
    sequence_config: SequenceConfig | None = None

    def embed(self, exams: Sequence[Tokens]) -> Float[np.ndarray, "exams dim"]:
        """Return the CT embeddings of these exams' tokens.

        Raises:
            BadInput: it is a head alone, or the tokens are not as wide as those it was trained on.
        """
        if self.sequence is None:
            raise BadInput("this teacher is a head alone: it makes no embeddings. Allowed: kind 'sequence'.")
        width = self.sequence.mean.numel()
        for exam in exams:
            if exam.ndim != 2 or exam.shape[1] != width or not len(exam):
                raise BadInput(f"tokens of shape {exam.shape}. Allowed: (1 or more, {width}), as in training.")
        return embed(self.sequence, exams)

    def refuse_seen(self, patients: Iterable[str], part: str) -> None:
        """Check that none of these patients took part in the teacher's training or in its checkpoint choice.

        Raises:
            BadInput: some did; they are counted and the first is named.
        """
        seen = {patient for ids in self.patients.values() for patient in ids}
        both = sorted(seen & set(patients))
        if both:
            raise BadInput(
                f"the teacher was trained on {len(both)} patients of part '{part}' (such as '{both[0]}'). "
                "Next: train it on the training part of this split (embedprior train teacher)"
            )

    def save(self, folder: Path | str) -> None:
        """Write weights (safetensors), settings (JSON), then ``teacher.json``, which marks completion."""
        description = {
            "format": FORMAT,
            "kind": "head" if self.sequence is None else "sequence",
            "label": self.label,
            "cache": self.cache,
            "patients": {part: sorted(ids) for part, ids in self.patients.items()},
        }
        write_sealed(Path(folder), DESCRIPTION, description, self._write_files)

    def _write_files(self, folder: Path) -> None:
        self.head.save(folder)
        if self.sequence is not None:
            write_tensors(folder / SEQUENCE_WEIGHTS, contiguous(self.sequence.state_dict()))
            settings = {"inputs": self.sequence.mean.numel(), "config": self.sequence_config}
            write_json(folder / SEQUENCE_SETTINGS, settings)

    @classmethod
    def load(cls, folder: Path | str) -> Teacher:
        """Return the teacher saved in ``folder``; reads safetensors and JSON only, executes nothing.

        Raises:
            BadInput: no teacher there, a damaged one, or one of another format.
        """
        folder = Path(folder)
        if not (folder / DESCRIPTION).is_file():
            raise BadInput(f"{folder} holds no teacher ({DESCRIPTION} is missing). Next: embedprior train teacher")
        description = read_sealed(folder, DESCRIPTION, "teacher", FORMAT, "copy or train the teacher again")
        sequence = config = None
        try:
            head = TeacherHead.load(folder)
            if description["kind"] == "sequence":
                settings = read_json(folder / SEQUENCE_SETTINGS)
                config = parse_config(SequenceConfig, settings["config"], str(folder / SEQUENCE_SETTINGS))
                sequence = SequenceModel(int(settings["inputs"]), config)
                sequence.load_state_dict(load_file(folder / SEQUENCE_WEIGHTS))
                sequence.eval().requires_grad_(False)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise BadInput(f"the teacher in {folder} is damaged: {str(error)[:200]}. Next: train it again") from error
        return cls(head, description["label"], description["cache"], description["patients"], sequence, config)


def load_head(folder: Path | str) -> TeacherHead:
    """Return the frozen head in ``folder``: of a trained teacher, or a head saved alone.

    Raises:
        BadInput: there is none.
    """
    folder = Path(folder)
    if (folder / DESCRIPTION).is_file():
        return Teacher.load(folder).head
    refuse_damaged_artifact(folder)
    if not (folder / WEIGHTS).is_file():
        raise BadInput(f"{folder} holds no CT head ({WEIGHTS} is missing). Next: embedprior train teacher")
    return TeacherHead.load(folder)


def weights_hash(folder: Path, kind: str) -> str:
    """Return the sha256 of the weights that make what ``kind`` yields: ``"head"`` or ``"sequence"``."""
    return hash_file(folder / {"head": WEIGHTS, "sequence": SEQUENCE_WEIGHTS}[kind])


def refuse_seen_by_head(folder: Path | str, patients: Iterable[str], part: str) -> None:
    """Check that a head was trained on none of these patients; one saved alone doesn't know whom it saw.

    Raises:
        BadInput: it was; the patients are counted and the first is named.
    """
    if (Path(folder) / DESCRIPTION).is_file():
        Teacher.load(folder).refuse_seen(patients, part)
