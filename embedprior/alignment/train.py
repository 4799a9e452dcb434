"""Train an alignment: batches of different patients, the checkpoint chosen on validation patients, any processes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from embedprior.alignment.config import AlignmentConfig, Side
from embedprior.alignment.data import Triples
from embedprior.alignment.model import (
    Alignment,
    AlignmentNetwork,
    PretrainedPixels,
    inputs_of,
    new_network,
    start_of,
)
from embedprior.alignment.objective import average_gradients, gathered, objective
from embedprior.errors import BadInput
from embedprior.nn.training import Resume, ValidationHistory, minimise, seeded
from embedprior.runs import seed_for
from embedprior.runs.distributed import ProcessGroup


class GroupBatches:
    """Row numbers of each step: one row of each of ``size`` different groups, every group once an epoch.

    Which row of a group is taken is drawn anew every time. The same on every process: it depends on seed and step.

    Args:
        groups: of the training cases.
        size: groups a batch.
        seed: of the order.
        multiple_of: the batch is cut to a multiple of this.

    Example:
        >>> batches = GroupBatches(np.array([0, 0, 0, 1, 2]), 3, seed=0)
        >>> sorted(np.array([0, 0, 0, 1, 2])[batches(1)].tolist())
        [0, 1, 2]
    """

    def __init__(self, groups: Int[np.ndarray, " cases"], size: int, seed: int, multiple_of: int = 1) -> None:
        self._rows = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        self.size = min(size, len(self._rows)) // multiple_of * multiple_of
        self._seed = seed
        self._steps_an_epoch = max(1, len(self._rows) // max(self.size, 1))

    def __call__(self, step: int) -> Int[np.ndarray, " size"]:
        """Return the rows of a step, counted from 1."""
        epoch, place = divmod(step - 1, self._steps_an_epoch)
        generator = np.random.default_rng(seed_for(self._seed, "alignment batches", epoch))
        order = generator.permutation(len(self._rows))
        picks = generator.random(len(self._rows))
        chosen = order[place * self.size : (place + 1) * self.size]
        return np.array([self._rows[g][int(picks[g] * len(self._rows[g]))] for g in chosen], dtype=np.int64)


def train_alignment(
    train: Triples,
    val: Triples,
    config: AlignmentConfig,
    caches: dict[str, str],
    processes: ProcessGroup | None = None,
    device: str = "cpu",
    progress_bar: str | None = None,
    resume: Resume | None = None,
) -> tuple[Alignment, ValidationHistory]:
    """Minimise the objective on ``train``; the step with the lowest loss on ``val`` is kept (without any, the last).

    With several processes each projects its part of every batch, and all see the negatives of the whole batch: the
    weights are those of one process (dropout apart).

    Args:
        train, val: cases of different patients.
        config: objective and budget.
        caches: side → hash of the cache's key, kept with the alignment.
        processes: of a launcher; None = one.
        device: where it is trained; the alignment comes back on the CPU.
        progress_bar: its text; None shows none.
        resume: where the state is kept: a training that was stopped there goes on after its last validation.

    Returns:
        The frozen alignment, and one record a validation: ``step, loss, val_loss`` and each term on ``val``.

    Raises:
        BadInput: a patient in both parts, sides that do not fit (see ``AlignmentNetwork``), no report at all, or fewer
            than two groups of patients for each process.
        EmbedpriorError: see ``nn.training.minimise``.
    """
    both = sorted(set(train.patients) & set(val.patients))
    if both:
        raise BadInput(f"patient '{both[0]}' is in training and in validation ({len(both)} such patients).")
    if config.reads_reports and (train.report is None or not train.has_report.any()):
        raise BadInput("no training pair has a report. Next: --alignment.alpha 0 --alignment.beta 0")
    processes = processes or ProcessGroup()
    batches = GroupBatches(train.groups, config.batch_size, config.seed, processes.world_size)
    if batches.size < 2 * processes.world_size:
        raise BadInput(
            f"{len(np.unique(train.groups))} groups of training patients and batch_size {config.batch_size} on "
            f"{processes.world_size} processes: a process needs 2 or more a batch, else there is nothing to contrast."
        )
    network = new_network(train.sides, config).to(device)
    start = {} if config.pixels.encoder is None else start_of(config.pixels)
    average_gradients([p for p in network.parameters() if p.requires_grad])

    def loss(step: int) -> Tensor:
        torch.manual_seed(seed_for(config.seed, "alignment step", step))  # a resumed training draws the same dropout
        return batch_loss(network, train, batches(step), config, device, processes)[0]

    chunks = _validation_chunks(val, config.batch_size)
    terms: dict[str, float] = {}

    def validate() -> float:
        total = 0.0
        terms.clear()
        for rows in chunks:
            share = len(rows) / sum(map(len, chunks))
            value, named = batch_loss(network, val, rows, config, device)
            total += share * float(value)
            for name, term in named.items():
                terms[name] = terms.get(name, 0.0) + share * float(term)
        return total

    def keep_terms(record: dict[str, float]) -> None:
        record |= {f"val_{name}": value for name, value in terms.items()}
        record["temperature"] = float(1 / network.scale.detach())

    pretrained = [side for side in network.sides.values() if isinstance(side, PretrainedPixels)]
    if resume is not None and resume.writes:
        resume.folder.mkdir(parents=True, exist_ok=True)
    with seeded(config.seed, "dropout", "alignment"):
        history = minimise(
            network, loss, config.steps, lr=config.lr, weight_decay=config.weight_decay,
            validate=validate if chunks else None, validate_every=config.validate_every, after_validation=keep_terms,
            progress_bar=progress_bar, patience=config.patience, resume=resume,
            own_lr={side.module: config.pixels.lr for side in pretrained},
        )  # fmt: skip
    network.cpu().eval().requires_grad_(False)
    seen = {"train": sorted(set(train.patients)), "val": sorted(set(val.patients))}
    return Alignment(network, caches, seen, start), history


def batch_loss(
    network: AlignmentNetwork, cases: Triples, rows: Int[np.ndarray, " some"], config: AlignmentConfig, device: str,
    processes: ProcessGroup | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """Return the loss of some cases and its terms; with ``processes``, each projects its own part of the rows."""
    own, gather = rows, _alone
    if processes is not None and processes.world_size > 1:
        part = len(rows) // processes.world_size
        own, gather = rows[processes.rank * part : (processes.rank + 1) * part], gathered
    sides: dict[Side, Tensor] = {}
    for side, values in cases.sides.items():
        trained = side in network.sides
        chosen, lengths = inputs_of(values, own if trained else rows, config.tokens.max_tokens)
        projected = network(side, chosen.to(device), None if lengths is None else lengths.to(device))
        sides[side] = gather(projected) if trained else projected
    groups, has_report = (torch.from_numpy(array[rows]).to(device) for array in (cases.groups, cases.has_report))
    return objective(sides, network.scale, groups, has_report, config)


def _alone(rows: Tensor) -> Tensor:
    return rows


def _validation_chunks(val: Triples, size: int) -> Sequence[Int[np.ndarray, " some"]]:
    """One row of each group, in chunks of the batch's size; a chunk of one group has nothing to contrast."""
    if not len(val):
        return []
    first = np.sort(np.unique(val.groups, return_index=True)[1])
    if len(first) < 2:
        return []
    return np.array_split(first, max(1, round(len(first) / size)))
