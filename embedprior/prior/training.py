"""Training a prior from embeddings in memory, on one process or many, with the same numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from embedprior.errors import BadInput
from embedprior.prior.checkpoint import Progress, State, clone, drop_later_metrics, load_state, save_state
from embedprior.prior.config import PriorConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.diffusion import add_noise, make_schedule
from embedprior.prior.model import Prior
from embedprior.prior.network import PriorNetwork
from embedprior.prior.noise import TRAINING, KeyedNoise, batch_at, training_draws
from embedprior.prior.objectives import Head, Noised, Objective
from embedprior.prior.setup import (
    check_pairs,
    ema_update,
    fingerprint,
    parameter_groups,
    refuse_nan,
    to_tensors,
    untrained,
)
from embedprior.prior.validation import Validator, measure_variance
from embedprior.runs import MetricsLog
from embedprior.runs import progress as progress_bar

METRICS = "metrics.jsonl"
LOG_EVERY = 50


def train_prior(
    train: PairArrays,
    val: PairArrays,
    config: PriorConfig,
    out: Path,
    init_from: Path | None = None,
    head: Head | None = None,
    stop_after: int | None = None,
    show_progress: bool = True,
) -> Prior:
    """Train a prior, or go on with the training begun in ``out``; return the best one by validation loss.

    Writes ``prior.safetensors`` and ``prior.json`` (the prior), ``resume.*`` (the training's state) and
    ``metrics.jsonl`` into ``out``. N steps equal k steps, a stop, and the rest, bit for bit on one device.

    Args:
        train: pairs that are learned from; scalers are fitted on them.
        val: pairs of other patients: checkpoint choice, early stopping and the variance table.
        config: every setting.
        out: folder of the training.
        init_from: folder of a prior to start from (second stage): weights, target scaler and other sources' condition
            scalers are kept; the condition scaler of ``train.source`` is fitted anew.
        head: frozen teacher head, embeddings (B, D) in their own scale ↦ logits (B,).
        stop_after: stop at this step as if killed just after a checkpoint; None trains to the end.
        show_progress: a progress bar on standard error.

    Raises:
        BadInput: pairs that can't be learned from, that do not fit ``init_from``, or ``out`` holding another training.
        EmbedpriorError: the loss is not a number; the message names the step and its pairs.
    """
    start = None if init_from is None else Prior.load(init_from)
    check_pairs(train, val, config, start)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if config.training.batch % accelerator.num_processes:
        raise BadInput(
            f"training.batch {config.training.batch} on {accelerator.num_processes} processes. "
            "Allowed: a multiple of the number of processes."
        )
    made_of = fingerprint(train, val, config, init_from)
    found = load_state(out, made_of)
    training = _Training(train, val, untrained(train, config, start), out, accelerator, head, made_of, found)
    return training.run(stop_after, show_progress)


class _Training:
    """The state of one training; see ``train_prior``."""

    def __init__(
        self,
        train: PairArrays,
        val: PairArrays,
        prior: Prior,
        out: Path,
        accelerator: Accelerator,
        head: Head | None,
        made_of: str,
        found: State | None,
    ) -> None:
        self._config, self._settings, self._out = prior.config, prior.config.training, out
        self._accelerator, self._prior, self._made_of = accelerator, prior, made_of
        device, scaler = accelerator.device, prior.target_scaler
        known = 0.0 if train.labels is None else float(np.isfinite(train.labels).mean())
        process = self._config.process
        self._schedule = make_schedule(process)
        self._objective = Objective(self._config.objective, process, self._schedule, scaler, head, known, device)
        self._ids = train.ids
        self._data = to_tensors(train, prior, device)
        self._validator = Validator(to_tensors(val, prior, device), self._schedule, self._objective, self._settings)
        network = prior.network.to(device).train()
        self._average = AveragedModel(network, multi_avg_fn=ema_update(self._settings.ema))
        self._network = network
        self._optimiser = torch.optim.AdamW(
            parameter_groups(network, self._settings.weight_decay),
            lr=self._settings.lr,
            betas=self._settings.betas,
            fused=True,
        )
        self._progress = Progress()
        self._best = clone(network.state_dict())
        if found is not None:
            self._restore(found)
        self._model, self._wrapped_optimiser = accelerator.prepare(network, self._optimiser)
        self._noise = KeyedNoise(self._settings.seed, TRAINING)
        self._pending: list[tuple[int, dict[str, Tensor]]] = []

    def run(self, stop_after: int | None, show_progress: bool) -> Prior:
        """Train to the end, to early stopping, or to ``stop_after``; return the best prior so far."""
        main = self._accelerator.is_main_process
        if main:
            drop_later_metrics(self._out / METRICS, self._progress.step)
        self._log = MetricsLog(self._out / METRICS)
        last = self._settings.steps if stop_after is None else min(stop_after, self._settings.steps)
        steps: Iterable[int] = range(self._progress.step, last)
        if main and show_progress:
            steps = progress_bar(steps, "prior", len(range(self._progress.step, last)))
        for step in steps:
            if self._exhausted():
                break
            self._step(step)
            done = self._progress.step = step + 1
            if done % LOG_EVERY == 0:
                self._flush()
            if done % self._settings.validate_every == 0 or done == self._settings.steps:
                self._flush()
                self._validate(done)
            if done % self._settings.checkpoint_every == 0:
                self._save()
        self._flush()
        self._save()
        return self._finish()

    def _step(self, step: int) -> None:
        settings, process = self._settings, self._config.process
        world, rank = self._accelerator.num_processes, self._accelerator.process_index
        share = settings.batch // world
        mine = batch_at(settings.seed, step, settings.batch, len(self._ids))[rank * share : (rank + 1) * share]
        condition_shape = tuple(self._data.condition.shape[1:]) if process.condition_noise > 0 else None
        draws = training_draws(
            self._noise, step, mine, self._data.target.shape[1], process.timesteps, condition_shape
        )
        device = self._accelerator.device
        rows = torch.from_numpy(mine).to(device)
        noise, n = torch.from_numpy(draws.noise).to(device), torch.from_numpy(draws.timestep).to(device)
        x0 = self._data.target[rows]
        batch = Noised(x0, noise, add_noise(self._schedule, x0, noise, n), n, self._data.labels[rows])
        drop = torch.from_numpy(draws.drop < process.condition_dropout).to(device)
        for group in self._optimiser.param_groups:
            group["lr"] = settings.lr * min(1.0, (step + 1) / max(settings.warmup, 1))
        condition = self._data.condition[rows]
        if draws.condition is not None:
            condition = condition + process.condition_noise * torch.from_numpy(draws.condition).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            visible = None if self._data.visible is None else self._data.visible[rows]
            output = self._model(batch.x, n, condition, visible, drop[:, 0], drop[:, 1])
        named = self._objective.losses(output.float(), batch)
        self._wrapped_optimiser.zero_grad()
        self._accelerator.backward(torch.stack(list(named.values())).sum())
        self._accelerator.clip_grad_norm_(self._network.parameters(), settings.clip)
        self._wrapped_optimiser.step()
        self._average.update_parameters(self._network)
        self._pending.append((step, {name: value.detach() for name, value in named.items()}))

    def _flush(self) -> None:
        """Log the mean losses since the last call; reading them only now keeps an accelerator busy."""
        if not self._pending:
            return
        names = list(self._pending[0][1])
        table = torch.stack([torch.stack([losses[name] for name in names]) for _, losses in self._pending])
        table = self._accelerator.reduce(table, reduction="mean").cpu()
        refuse_nan(table, [step for step, _ in self._pending], self._pairs_of)
        if self._accelerator.is_main_process:
            means = {f"loss/{name}": value for name, value in zip(names, table.mean(dim=0).tolist(), strict=True)}
            self._log.write(event="train", step=self._progress.step, lr=self._optimiser.param_groups[0]["lr"], **means)
        self._pending.clear()

    def _validate(self, step: int) -> None:
        averaged = self._averaged()
        figures = self._validator.figures(replace(self._prior, network=averaged.eval()))
        # One decision for all processes, whatever their rounding.
        loss = float(broadcast(torch.tensor([figures["val/loss"]], device=self._accelerator.device))[0])
        best = self._progress.best_loss is None or loss < self._progress.best_loss
        if best:
            self._progress.best_loss, self._progress.best_step = loss, step
            self._best = clone(averaged.state_dict())
        if self._accelerator.is_main_process:
            self._log.write(event="validation", step=step, best=best, **figures)

    def _exhausted(self) -> bool:
        patience, progress = self._settings.patience, self._progress
        if patience is None or progress.best_loss is None:
            return False
        return progress.step - progress.best_step >= patience * self._settings.validate_every

    def _averaged(self) -> PriorNetwork:
        network = self._average.module
        assert isinstance(network, PriorNetwork)
        return network

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            weights = {
                "network": self._network.state_dict(),
                "ema": self._average.state_dict(),
                "best": self._best,
            }
            save_state(self._out, self._made_of, self._progress, weights, self._optimiser.state_dict())
        self._accelerator.wait_for_everyone()

    def _restore(self, found: State) -> None:
        self._progress, self._best = found.progress, found.weights["best"]
        self._network.load_state_dict(found.weights["network"])
        self._average.load_state_dict(found.weights["ema"])
        self._optimiser.load_state_dict(found.optimiser)

    def _pairs_of(self, step: int) -> list[str]:
        batch = batch_at(self._settings.seed, step, self._settings.batch, len(self._ids))
        return [str(self._ids[int(i)]) for i in batch]

    def _finish(self) -> Prior:
        network = self._averaged()
        if self._progress.best_loss is not None:
            network.load_state_dict(self._best)
        prior = replace(self._prior, network=network.eval())
        prior = replace(prior, variance=measure_variance(prior, self._data.target, self._validator.data))
        if self._accelerator.is_main_process:
            prior.save(self._out)
        self._accelerator.wait_for_everyone()
        return prior
