"""Phase A of the PE paper: an encoder is trained on labels, compared with what it was before, and frozen.

A network is trained whole, on radiographs or volumes; or it is kept, and a sequence model is trained over its slice
tokens. What both start from is measured too: a head on the frozen embedding (the mean of the slices), on the same
labels.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from embedprior.cache.build import default_batch, fill_cache
from embedprior.cache.loading import read_ahead
from embedprior.cache.plan import READABLE
from embedprior.cache.reader import open_view
from embedprior.encoders.base import Encoder, TokenEncoder, encoder_key, refuse_seen_patients
from embedprior.encoders.config import LabelTrainingConfig, TrainEncoderConfig
from embedprior.encoders.frozen import FrozenEncoder, autocast
from embedprior.encoders.registry import SETTINGS
from embedprior.encoders.small_cnn import shift_pictures
from embedprior.encoders.trained import base_encoder, read_trained, trained_encoder, write_trained
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.evidence import delong
from embedprior.nn.config import FitConfig
from embedprior.nn.losses import case_weights, weighed_loss
from embedprior.nn.sequence import Tokens, new_sequence, pad
from embedprior.nn.training import Resume, ValidationHistory, generator, minimise, seeded, tensor
from embedprior.runs import hash_file, hash_of, one_thread, seed_for
from embedprior.tables import (
    EXAM_REQUIRED,
    PARTS,
    SPLIT_REQUIRED,
    check_exams,
    check_splits,
    fold_parts,
    label_column,
    read_table,
    write_table,
)
from embedprior.teachers.teacher import require_both_classes, train_head

START, TRAINED = "start", "trained"
"""Names of the rows of the predictions table: a head on the frozen embedding, and the encoder that was trained."""
STATE = "training"
AUC_ERROR = "val_1_minus_auc"
AMP = {"fp32": "fp32", "bf16": "bf16-autocast", "fp16": "fp16-autocast"}


@dataclass(frozen=True)
class LabelledExams:
    """Labelled exams of one part.

    Attributes:
        exam_ids, patient_ids, paths: one an exam.
        label: 1 or 0.
        start: embedding of each by the encoder that training starts from.
        tokens: of each, for a sequence model; empty for a network.
    """

    exam_ids: list[str]
    patient_ids: list[str]
    paths: list[str]
    label: Float[np.ndarray, " exams"]
    start: Float[np.ndarray, "exams dim"]
    tokens: list[Tokens]

    def __len__(self) -> int:
        return len(self.exam_ids)


@dataclass(frozen=True)
class Prepared:
    """Everything that can be refused has been: what is trained, and on what.

    Attributes:
        config: settings.
        encoder: the network to start from.
        exams: exam table of the labelled exams, with the column ``part``.
        column: of the label.
        fingerprint: data and settings by name.
        device: of training.
    """

    config: TrainEncoderConfig
    encoder: Encoder
    exams: pd.DataFrame
    column: str
    fingerprint: dict[str, str]
    device: torch.device

    @property
    def device_option(self) -> str | None:
        """What ``create_encoder`` is asked for: encoders without a network take no device."""
        return None if self.device.type == "cpu" else str(self.device)

    @property
    def finished(self) -> bool:
        """Whether the very same training was finished in the folder before."""
        return (Path(self.config.out) / SETTINGS).is_file()


@dataclass(frozen=True)
class Outcome:
    """What a training gave.

    Attributes:
        encoder: the frozen encoder, as it was read back from its folder.
        predictions: of the validation and held-out exams, by the encoder and by a head on what it started from.
        history: one record an epoch.
        counts: part → exams.
        failures: one record for every exam that could not be read.
    """

    encoder: Encoder
    predictions: pd.DataFrame
    history: ValidationHistory
    counts: dict[str, int]
    failures: list[dict[str, str]]


def prepare_training(config: TrainEncoderConfig, device: str) -> Prepared:
    """Check everything that can be refused before the work begins; nothing is written.

    Raises:
        BadInput: a missing or broken table, an unknown label or encoder, an encoder that can't be trained in this way,
            a part without both classes, fp16 without a GPU, ``out`` holding another encoder, or held-out patients whom
            the network it starts from was trained on.
    """
    out, where = Path(config.out), torch.device(device)
    exams = check_exams(read_table(config.exams, EXAM_REQUIRED), config.exams)
    column = label_column(exams, config.label, config.exams)
    splits = check_splits(read_table(config.splits, SPLIT_REQUIRED), config.splits)
    parts = fold_parts(splits, config.design, config.resample, config.fold, config.splits)
    if config.training.precision == "fp16" and where.type != "cuda":
        raise BadInput(f"training.precision fp16 on {device}. Allowed there: fp32, bf16; fp16 needs --device cuda")
    encoder = base_encoder(config.encoder, config.options, False, {"device": None if where.type == "cpu" else device})
    _refuse_unsuitable(config, encoder)
    kinds = READABLE.get(encoder.spec.modality, (encoder.spec.modality,))
    chosen = exams[exams["modality"].isin(kinds) & exams[column].notna()]
    chosen = chosen.assign(part=chosen["patient_id"].map(parts))
    for part in ("train", "val"):
        labels = chosen.loc[chosen["part"] == part, column].to_numpy(dtype=np.float64)
        require_both_classes(labels, f"part '{part}' (the weights are learned on train, the epoch is chosen on val)")
    settings = config.model_dump(exclude={"out", "workers", "exams", "splits"})
    fingerprint = {
        "exams": hash_file(Path(config.exams)), "splits": hash_file(Path(config.splits)),
        "encoder": hash_of(encoder_key(encoder.spec)), "settings": hash_of(settings),
    }  # fmt: skip
    if (out / SETTINGS).is_file():
        before = read_trained(out).fingerprint
        other = [name for name, value in fingerprint.items() if before.get(name) != value]
        if other:
            raise BadInput(f"{out} holds an encoder that was trained on other {', '.join(other)}. Next: another --out")
    rows = chosen[chosen["part"].isin(PARTS)].reset_index(drop=True)
    held_out = rows.loc[rows["part"] == "test", "patient_id"]
    refuse_seen_patients(f"encoder '{config.encoder}'", encoder.spec.patients_seen, held_out, "test")
    return Prepared(config, encoder, rows, column, fingerprint, where)


def _refuse_unsuitable(config: TrainEncoderConfig, encoder: Encoder) -> None:
    name = config.encoder
    if config.kind == "sequence":
        if encoder.spec.modality != "CT" or not isinstance(encoder, TokenEncoder) or encoder.spec.token_dim is None:
            raise BadInput(
                f"encoder '{name}' gives no slice tokens of a CT, which kind 'sequence' is trained on. "
                "Next: --options reader=slices, or --kind network"
            )
        return
    if not isinstance(encoder, FrozenEncoder) or encoder.reader.parts:
        raise BadInput(
            f"encoder '{name}' can't be trained whole: kind 'network' takes networks that read a radiograph or a whole "
            "volume at once. Next: --kind sequence for slices, or another encoder (embedprior encoders)"
        )
    if encoder.spec.precision != "fp32":
        raise BadInput(f"options.precision {encoder.spec.precision}. Next: training.precision bf16, and leave it out")
    base_encoder(name, config.options, True)  # what it is read back with must exist


Steps = Iterable[Sequence[int]]
Inputs = Callable[[Steps], Iterator[tuple[list[int], tuple[Tensor, ...]]]]
"""Row numbers of each step → the same row numbers, and what the network takes of these exams."""


def train_encoder(prepared: Prepared, root: Path | str | None = None) -> Outcome:
    """Train, freeze, read back and compare; a training that was stopped in ``out`` goes on after its last epoch.

    Args:
        prepared: of ``prepare_training``.
        root: folder that the exams' paths are relative to; None = that of the exam table.

    Raises:
        BadInput: too few exams can be read.
        EmbedpriorError: the loss is not a number, or the encoder that is read back embeds differently.
    """
    config, out = prepared.config, Path(prepared.config.out)
    root = Path(config.exams).parent if root is None else Path(root)
    cases, failures = _labelled(prepared, root)
    network, inputs = _trainable(prepared, cases, root)
    history = _fit(prepared, network, cases, inputs)
    scores = {part: _logits(prepared, network, inputs[part], len(cases[part])) for part in ("val", "test")}
    ((_, first),) = inputs["val"]([[0]])
    expected = network.embeddings(first)
    record = {
        "kind": config.kind, "encoder": config.encoder, "options": config.options, "base": prepared.encoder.spec,
        "label": config.label, "sequence": config.sequence if config.kind == "sequence" else None,
        "patients": {part: tuple(sorted(set(cases[part].patient_ids))) for part in ("train", "val")},
        "fingerprint": prepared.fingerprint,
    }  # fmt: skip
    predictions = _predictions(config, cases, scores)
    write_table(predictions, out / "predictions.csv")
    write_trained(out, record, network.body.state_dict(), network.head.state_dict())
    frozen = trained_encoder(str(out), device=prepared.device_option)
    again = frozen.embed(frozen.read(root, cases["val"].paths[0])[None])
    if not np.allclose(again, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()):
        raise EmbedpriorError(f"the encoder read back from {out} embeds differently from the one that was trained.")
    shutil.rmtree(out / STATE, ignore_errors=True)
    return Outcome(frozen, predictions, history, {part: len(each) for part, each in cases.items()}, failures)


def _labelled(prepared: Prepared, root: Path) -> tuple[dict[str, LabelledExams], list[dict[str, str]]]:
    """Embed every exam with the encoder as it is: what can't be read is left out, and the start is there to compare."""
    sequence = prepared.config.kind == "sequence"
    filled = fill_cache(
        prepared.exams[["exam_id", "path"]], root, prepared.encoder, Path(prepared.config.out) / START, tokens=sequence,
        workers=prepared.config.workers,
    )  # fmt: skip
    cache = open_view(filled.location.folder, filled.view)
    there = prepared.exams["exam_id"].isin(cache.ids)
    found = {}
    for part in PARTS:
        rows = prepared.exams[(prepared.exams["part"] == part) & there]
        ids = rows["exam_id"].tolist()
        tokens = [np.asarray(cache.tokens(exam), dtype=np.float32) for exam in ids] if sequence else []
        start = np.array([one.mean(0) for one in tokens]) if sequence else cache.take(ids)
        label = rows[prepared.column].to_numpy(dtype=np.float64, copy=True)
        found[part] = LabelledExams(ids, rows["patient_id"].tolist(), rows["path"].tolist(), label, start, tokens)
        if part != "test" and filled.failures:
            first = f"{filled.failures[0]['exam_id']}, {filled.failures[0]['reason']}"
            left_out = f"{len(filled.failures)} exams that can't be read left out (the first: {first}),"
            require_both_classes(label, f"part '{part}', {left_out}")
    return found, filled.failures


class Classifier(nn.Module):
    """What is trained (``body``) → dropout → one logit.

    Args:
        body: the network or the sequence model.
        features: inputs → (exams, dim).
        dim: of the features.
        settings: dropout, and whether batch normalisation keeps its statistics.
        seed: of the head's weights.
    """

    def __init__(
        self, body: nn.Module, features: Callable[..., Tensor], dim: int, settings: LabelTrainingConfig, seed: int
    ) -> None:
        super().__init__()
        self.body = body.requires_grad_(True)
        self._features: Callable[..., Tensor] = lambda *inputs: features(*inputs)  # a module would be registered twice
        self._frozen_statistics = settings.batch_norm == "frozen"
        self.dropout = nn.Dropout(settings.dropout)
        with seeded(seed, "initial weights", "encoder head"):
            self.head = nn.Linear(dim, 1)

    def train(self, mode: bool = True) -> Classifier:
        """Set training or evaluation mode; frozen batch normalisation stays in the latter."""
        super().train(mode)
        if self._frozen_statistics:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def forward(self, *inputs: Tensor) -> Float[Tensor, " exams"]:
        """Return one logit an exam."""
        out: Tensor = self.head(self.dropout(self._features(*inputs)))[:, 0]
        return out

    @torch.no_grad()
    def embeddings(self, inputs: tuple[Tensor, ...]) -> Float[np.ndarray, "exams dim"]:
        """Return the features of some exams, as the frozen encoder gives them."""
        return np.asarray(self.eval()._features(*inputs).float().cpu())


KEPT_BYTES = 2**31
"""Of exams that stay in memory once they were read; some ten thousand radiographs."""


class _Exams(Dataset[tuple[list[int], Tensor]]):
    """Reads the exams of a step; keeps what it has read, as long as it is not too much."""

    def __init__(self, encoder: Encoder, root: Path, paths: Sequence[str], most: int) -> None:
        self._encoder, self._root, self._paths, self._left = encoder, root, paths, most
        self._kept: dict[int, np.ndarray[Any, Any]] = {}

    def __getitem__(self, rows: Sequence[int]) -> tuple[list[int], Tensor]:
        return list(rows), torch.from_numpy(np.stack([self._read(row) for row in rows]))

    def _read(self, row: int) -> np.ndarray[Any, Any]:
        if row in self._kept:
            return self._kept[row]
        array = self._encoder.read(self._root, self._paths[row])
        if array.nbytes <= self._left:
            self._left -= array.nbytes
            self._kept[row] = array
        return array


def _trainable(prepared: Prepared, cases: dict[str, LabelledExams], root: Path) -> tuple[Classifier, dict[str, Inputs]]:
    """Return what is trained, and for every part what it is trained or scored on."""
    config, encoder, device = prepared.config, prepared.encoder, prepared.device
    if config.kind == "sequence":
        model = new_sequence(cases["train"].tokens, config.sequence, config.seed)
        network = Classifier(model, model, config.sequence.dim, config.training, config.seed)

        def tokens_of(part: str) -> Inputs:
            def inputs(steps: Steps) -> Iterator[tuple[list[int], tuple[Tensor, ...]]]:
                for rows in steps:
                    tokens, lengths = pad([cases[part].tokens[i] for i in rows], config.sequence.max_tokens)
                    yield list(rows), (tokens.to(device), lengths)

            return inputs

        return network.to(device), {part: tokens_of(part) for part in PARTS}
    assert isinstance(encoder, FrozenEncoder)
    backbone = encoder.backbone
    network = Classifier(backbone.module, backbone.features, backbone.dim, config.training, config.seed)

    def pictures_of(part: str) -> Inputs:
        exams = _Exams(encoder, root, cases[part].paths, KEPT_BYTES // (len(PARTS) * max(1, config.workers)))

        def inputs(steps: Steps) -> Iterator[tuple[list[int], tuple[Tensor, ...]]]:
            for rows, arrays in read_ahead(exams, steps, config.workers):
                yield rows, (encoder.prepare(arrays.numpy()),)

        return inputs

    return network.to(device), {part: pictures_of(part) for part in PARTS}


def _fit(
    prepared: Prepared, network: Classifier, cases: dict[str, LabelledExams], inputs: dict[str, Inputs]
) -> ValidationHistory:
    config, settings, device = prepared.config, prepared.config.training, prepared.device
    train, val = cases["train"], cases["val"]
    per_epoch = -(-len(train) // settings.batch_size)
    label = tensor(train.label).to(device)
    weighed = settings.balance == "class-weights"
    weight = tensor(case_weights(train.label) if weighed else np.ones(len(train))).to(device)
    stream: Iterator[tuple[list[int], tuple[Tensor, ...]]] | None = None

    def loss(step: int) -> Tensor:
        nonlocal stream
        if stream is None:
            stream = inputs["train"](rows_of_steps(len(train), settings.batch_size, config.seed, step))
        rows, batch = next(stream)
        torch.manual_seed(seed_for(config.seed, "step", step))  # so that a resumed training draws the same
        if config.kind == "network":
            batch = (shift_pictures(batch[0], settings.shift),)
        with autocast(device, AMP[settings.precision]):
            logits = network(*batch)
        return weighed_loss(logits.float(), label[rows], weight[rows])

    def validate() -> float:
        return 1 - float(delong(val.label, _logits(prepared, network, inputs["val"], len(val))).auc[0])

    def noted(record: dict[str, float]) -> None:
        record |= {"epoch": record["step"] / per_epoch, "val_auc": 1 - record[AUC_ERROR]}

    state = Path(config.out) / STATE
    state.mkdir(parents=True, exist_ok=True)
    with seeded(config.seed, "train encoder"):
        return minimise(
            network, loss, settings.epochs * per_epoch, lr=settings.lr, weight_decay=settings.weight_decay,
            validate=validate, validate_every=per_epoch, after_validation=noted, progress_bar="train encoder",
            criterion=AUC_ERROR, patience=settings.patience,
            scaler=torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16"),
            resume=Resume(state, prepared.fingerprint),
        )  # fmt: skip


def rows_of_steps(count: int, size: int, seed: int, first: int = 1) -> Iterator[list[int]]:
    """Yield the rows of step ``first``, ``first`` + 1 ... without end: every row once an epoch, in an order of its own.

    Example:
        >>> steps = rows_of_steps(5, 2, seed=0)
        >>> sorted(next(steps) + next(steps) + next(steps))
        [0, 1, 2, 3, 4]
    """
    per_epoch = -(-count // size)
    for epoch in itertools.count((first - 1) // per_epoch):
        order = torch.randperm(count, generator=generator(seed, "epoch", str(epoch))).split(size)
        done = (first - 1) % per_epoch if epoch == (first - 1) // per_epoch else 0
        yield from (rows.tolist() for rows in order[done:])


@torch.no_grad()
def _logits(prepared: Prepared, network: Classifier, inputs: Inputs, count: int) -> Float[np.ndarray, " exams"]:
    size = max(prepared.config.training.batch_size, default_batch(prepared.encoder))
    network.eval()
    found = [np.empty(0)]
    for _, batch in inputs([range(i, min(i + size, count)) for i in range(0, count, size)]):
        with autocast(prepared.device, AMP[prepared.config.training.precision]):
            found.append(network(*batch).double().cpu().numpy())
    return np.concatenate(found)


def _predictions(
    config: TrainEncoderConfig, cases: dict[str, LabelledExams], scores: dict[str, Float[np.ndarray, " exams"]]
) -> pd.DataFrame:
    train, val = cases["train"], cases["val"]
    with one_thread():
        head = train_head(train.start, train.label, val.start, val.label, FitConfig(), config.seed)
    tables = []
    for part, own in scores.items():
        logits = {TRAINED: own, START: head.logits(cases[part].start) if len(own) else own}
        for method, values in logits.items():
            tables.append(
                pd.DataFrame(
                    {
                        "exam_id": cases[part].exam_ids, "patient_id": cases[part].patient_ids,
                        "label": cases[part].label.astype(int), "method": method,
                        "score": 1 / (1 + np.exp(-values.astype(np.float64))), "fold": config.fold,
                        "seed": config.seed, "split": part,
                    }
                )
            )  # fmt: skip
    return pd.concat(tables, ignore_index=True)
