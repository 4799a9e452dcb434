"""Training a prior from embeddings in memory, on one process or many, with the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor
from torch.amp import GradScaler
from torch.optim.swa_utils import AveragedModel

from embedprior.errors import BadInput
from embedprior.nn.checkpoint import Progress, State, clone, drop_later_metrics, load_state, save_state
from embedprior.prior.assessment import assess
from embedprior.prior.config import PriorConfig, Tracker
from embedprior.prior.data import PairArrays
from embedprior.prior.diffusion import TRAINING, KeyedNoise, add_noise, batch_at, training_draws
from embedprior.prior.losses import Head, Negatives, NoisyBatch, Objective
from embedprior.prior.metrics import Validator, measure_variance
from embedprior.prior.model import Prior
from embedprior.prior.network import PriorNetwork
from embedprior.prior.search import Candidate, train_best
from embedprior.prior.setup import (
    Fitted,
    PairTensors,
    check_launch,
    check_pairs,
    ema_update,
    fingerprint,
    initial_prior,
    parameter_groups,
    refuse_nan,
    require_tracker,
    to_tensors,
)
from embedprior.runs import MetricsLog, one_thread
from embedprior.runs import progress as progress_bar


class Learner:
    """What changes while a prior is trained.

    Args:
        prior: as training begins.
        train: pairs to learn from.
        accelerator: decides device and processes.
        teacher: frozen head, or None.
        resumed: a stopped training to go on with.

    Attributes:
        network: the weights being learned.
        average: torch's ``AveragedModel`` of them (EMA); what is validated, kept and sampled.
        optimiser: AdamW.
        loss_scale: of fp16; does nothing in another precision.
        objective: the named losses.
        data: the whole training set on the device.
    """

    def __init__(
        self, prior: Prior, train: PairArrays, accelerator: Accelerator, teacher: Head | None, resumed: State | None
    ) -> None:
        self._process, self._settings = prior.config.process, prior.config.training
        self._accelerator, self._schedule = accelerator, prior.schedule
        self.data: PairTensors = to_tensors(train, prior, accelerator.device)
        self.objective = Objective(
            prior.config.objective, self._process, self._schedule, prior.target_space(train.source), teacher,
            self.data.target, self.data.labels,
        )  # fmt: skip
        self.network = prior.network.to(accelerator.device).train()
        self.average = AveragedModel(self.network, multi_avg_fn=ema_update(self._settings.ema))
        self.optimiser = torch.optim.AdamW(
            parameter_groups(self.network, self._settings.weight_decay),
            lr=self._settings.lr,
            betas=self._settings.betas,
            fused=True,
        )
        self.loss_scale = GradScaler(accelerator.device.type, enabled=self._settings.precision == "fp16")
        if resumed is not None:
            self.network.load_state_dict(resumed.weights["network"])
            self.average.load_state_dict(resumed.weights["ema"])
            self.optimiser.load_state_dict(resumed.optimiser)
            self.loss_scale.load_state_dict(resumed.loss_scale)
        self._model, self._wrapped_optimiser = accelerator.prepare(self.network, self.optimiser)
        self._noise = KeyedNoise(self._settings.seed, TRAINING)

    @property
    def averaged(self) -> PriorNetwork:
        """The averaged network."""
        network = self.average.module
        assert isinstance(network, PriorNetwork)
        return network

    def batch(self, step: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the rows of the whole batch of a step, over all processes."""
        return batch_at(self._settings.seed, step, self._settings.batch, len(self.data))

    def losses(self, step: int, part: int = 0) -> dict[str, Tensor]:
        """Return the weighted losses of one part of this process's share of a batch by name, with their graph."""
        batch, condition, visible, drop = self._noised(step, part)
        device = self._accelerator.device
        with torch.autocast(device.type, AUTOCAST.get(self._settings.precision), self._settings.precision in AUTOCAST):
            output = self._model(batch.x, batch.n, condition, visible, drop[:, 0], drop[:, 1])
        return self.objective.losses(output.float(), batch)

    def learn(self, step: int) -> dict[str, Tensor]:
        """Take one optimiser step; return this process's weighted losses by name, detached."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._settings.lr * min(1.0, (step + 1) / max(self._settings.warmup, 1))
        self._wrapped_optimiser.zero_grad()
        parts, means = self._settings.accumulate, dict[str, Tensor]()
        for part in range(parts):
            # Processes add their gradients up once, at the last part.
            alone = self._accelerator.no_sync(self._model) if part < parts - 1 else nullcontext()
            with alone:
                named = self.losses(step, part)
                total = torch.stack(list(named.values())).sum() / parts
                self._accelerator.backward(self.loss_scale.scale(total))
            for name, value in named.items():
                means[name] = means.get(name, torch.zeros_like(value)) + value.detach() / parts
        self.loss_scale.unscale_(self.optimiser)
        self._accelerator.clip_grad_norm_(self.network.parameters(), self._settings.clip)
        if self._stepped():
            self.average.update_parameters(self.network)
        return means

    def _stepped(self) -> bool:
        """Take the optimiser's step; return False where a gradient overflowed in fp16 and it was skipped."""
        if not self.loss_scale.is_enabled():
            self._wrapped_optimiser.step()
            return True
        before = self.loss_scale.get_scale()
        self.loss_scale.step(self.optimiser)
        self.loss_scale.update()
        return self.loss_scale.get_scale() >= before

    def _noised(self, step: int, part: int) -> tuple[NoisyBatch, Tensor, Tensor | None, Tensor]:
        """Return a part of this process's share of a batch: noised targets, conditions, their mask, what is dropped."""
        process, data, device = self._process, self.data, self._accelerator.device
        world, rank = self._accelerator.num_processes, self._accelerator.process_index
        everyone = self.batch(step)
        size = len(everyone) // (world * self._settings.accumulate)
        first = (rank * self._settings.accumulate + part) * size
        mine = everyone[first : first + size]
        shape = tuple(data.conditions.tokens.shape[1:]) if process.condition_noise > 0 else None
        draws = training_draws(self._noise, step, len(everyone), data.target.shape[1], process.timesteps, shape)
        draws = draws.rows(slice(first, first + size))
        rows = torch.from_numpy(mine).to(device)
        noise, n = torch.from_numpy(draws.noise).to(device), torch.from_numpy(draws.timestep).to(device)
        drop = torch.from_numpy(draws.drop < process.condition_dropout).to(device)
        # Without its condition a case has no regression either: the null branch learns the embedding itself.
        ridge = data.conditions.ridge_prediction
        ridge = None if ridge is None else ridge[rows] * ~drop[:, :1]
        x0 = data.target[rows] if ridge is None else data.target[rows] - ridge
        # Contrasted with the whole batch: the loss is then the same on any number of processes.
        negatives = torch.from_numpy(everyone).to(device)
        batch = NoisyBatch(
            x0, noise, add_noise(self._schedule, x0, noise, n), n, data.labels[rows],
            data.patient[rows], Negatives(data.target[negatives], data.patient[negatives]), ridge,
        )  # fmt: skip
        condition = data.conditions.tokens[rows]
        if draws.condition is not None:
            condition = condition + process.condition_noise * torch.from_numpy(draws.condition).to(device)
        visible = None if data.conditions.mask is None else data.conditions.mask[rows]
        return batch, condition, visible, drop


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
METRICS = "metrics.jsonl"
LAST_STEP = "the last step was kept: no validation pair has a label, and nothing but labels is learned from"
LOG_EVERY = 50
ONE_THREAD_BELOW = 1_000_000
"""Parameters. In smaller networks a step is so short that handing it to several threads costs more than it saves."""


def train_prior(
    train: PairArrays,
    val: PairArrays,
    config: PriorConfig,
    out: Path | str,
    init_from: Path | str | None = None,
    teacher: Head | None = None,
    stop_after: int | None = None,
    show_progress: bool = True,
    trackers: Sequence[Tracker] = (),
) -> Prior:
    """Train a prior, or go on with the training that was stopped in ``out``; return the best one by validation loss.

    Writes ``prior.safetensors`` and ``prior.json`` (the prior), ``resume.*`` (the training's state) and
    ``metrics.jsonl`` into ``out``. N steps equal k steps, a stop, and the rest, bit for bit on one device; a finished
    training goes on when ``training.steps`` is raised.

    Args:
        train: pairs that are learned from; scalers are fitted on them.
        val: pairs of other patients: checkpoint choice, early stopping and the variance table.
        config: every setting, or ``settings: auto``, see ``search``.
        out: folder of the training.
        init_from: folder of a prior to start from (second stage): weights, target scaler and other sources' condition
            scalers are kept; the condition scaler of ``train.source`` is fitted anew.
        teacher: frozen teacher head, embeddings (B, D) in their own scale ↦ logits (B,): for the BCE term, and for
            the teacher's AUC, Brier score and calibration slope on labelled validation pairs.
        stop_after: stop at this step as if killed just after a checkpoint; None trains to the end.
        show_progress: a progress bar on standard error.
        trackers: where the lines of ``metrics.jsonl`` are also sent, through accelerate.

    Raises:
        BadInput: pairs that can't be learned from, that do not fit ``init_from`` or the objective, ``out`` holding
            another training, or a tracker that is not installed.
        EmbedpriorError: the loss is not a number; the message names the step and its pairs.

    Example:
        >>> import tempfile
        >>> from embedprior.prior.config import NetworkConfig, TrainingConfig
        >>> def pairs(count, prefix):
        ...     z = np.random.default_rng(count).normal(size=(count, 8)).astype(np.float32)
        ...     return PairArrays(z[:, :6], z, [f"{prefix}{i}" for i in range(count)], "cxr")
        >>> settings = PriorConfig(
        ...     network=NetworkConfig(preset="tiny"),
        ...     training=TrainingConfig(steps=2, batch=16, variance_nodes=2, variance_draws=1),
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prior = train_prior(pairs(40, "t"), pairs(20, "v"), settings, Path(folder), show_progress=False)
        >>> prior.sample(pairs(20, "v").condition, samples=4, steps=2).shape
        (20, 4, 8)
    """
    out = Path(out)
    init_from = None if init_from is None else Path(init_from)
    if config.settings == "auto":
        start = None if init_from is None else Prior.load(init_from)
        made_of, fitted = fingerprint(train, val, config, init_from, teacher), Fitted()

        def candidate(tried: Candidate, folder: Path, stop: int | None) -> Prior:
            first = init_from if tried.goes_on else None
            # The bar is that of the chosen candidate's last part.
            bar = show_progress and stop is None
            return _train(train, val, tried.config, folder, first, teacher, stop, bar, trackers, fitted)

        return train_best(config, val, out, start, teacher, made_of, candidate)
    return _train(train, val, config, out, init_from, teacher, stop_after, show_progress, trackers, {})


def _train(
    train: PairArrays,
    val: PairArrays,
    config: PriorConfig,
    out: Path,
    init_from: Path | None,
    teacher: Head | None,
    stop_after: int | None,
    show_progress: bool,
    trackers: Sequence[Tracker],
    fitted: Fitted,
) -> Prior:
    """Train with given settings; arguments as of ``train_prior``, ``fitted`` as of ``initial_prior``."""
    start = None if init_from is None else Prior.load(init_from)
    check_pairs(train, val, config, start)
    for name in trackers:
        require_tracker(name)
    check_launch(config.training)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        gradient_accumulation_steps=1,
        log_with=list(trackers) or None,
        project_dir=out if trackers else None,
    )
    parts = accelerator.num_processes * config.training.accumulate
    if config.training.batch % parts:
        raise BadInput(
            f"training.batch {config.training.batch} on {accelerator.num_processes} processes, each in "
            f"{config.training.accumulate} parts. Allowed: a multiple of {parts}."
        )
    made_of = fingerprint(train, val, config, init_from, teacher)
    resumed = load_state(out, made_of, config.training.steps)
    initial = initial_prior(train, val, config, start, fitted)
    training = _Training(train, val, initial, out, accelerator, teacher, made_of, resumed)
    if trackers:
        accelerator.init_trackers("embedprior-prior", config=_flat(config))
    small = initial.network.parameter_count() < ONE_THREAD_BELOW
    with one_thread() if small else nullcontext():
        prior = training.run(stop_after, show_progress)
    if trackers:
        accelerator.end_training()
    return prior


class _Training:
    """The course of one training; see ``train_prior``."""

    def __init__(
        self,
        train: PairArrays,
        val: PairArrays,
        prior: Prior,
        out: Path,
        accelerator: Accelerator,
        teacher: Head | None,
        made_of: Mapping[str, str],
        resumed: State | None,
    ) -> None:
        self._settings, self._out, self._ids = prior.config.training, out, train.ids
        self._accelerator, self._prior, self._made_of = accelerator, prior, made_of
        self._learner = Learner(prior, train, accelerator, teacher, resumed)
        held_out = to_tensors(val, prior, accelerator.device)
        self._pairs, self._teacher = (train, val), teacher
        self._left_out = {} if self._learner.objective.measurable(val.labels) else {"checkpoint": LAST_STEP}
        self._validator = Validator(held_out, prior.schedule, self._learner.objective, self._settings)
        self._progress = Progress() if resumed is None else resumed.progress
        self._best = clone(self._learner.network.state_dict()) if resumed is None else resumed.weights["best"]
        self._pending: list[tuple[int, dict[str, Tensor]]] = []

    def run(self, stop_after: int | None, show_progress: bool) -> Prior:
        """Train to the end, to early stopping, or to ``stop_after``; return the best prior so far."""
        main = self._accelerator.is_main_process
        if main and self._progress.step == 0:
            (self._out / METRICS).unlink(missing_ok=True)  # of one that was stopped before its first state
        elif main:
            drop_later_metrics(self._out / METRICS, self._progress.step)
        self._log = MetricsLog(self._out / METRICS)
        if main and self._progress.step == 0:
            parameters = self._prior.network.parameter_count()
            self._log.write(event="start", step=0, parameters=parameters, no_teacher_figures=self._validator.reason)
        if self._progress.step == 0:
            # Untrained, the network adds nothing to regression and linear denoiser: that may be the best there is.
            self._validate(0)
        last = self._settings.steps if stop_after is None else min(stop_after, self._settings.steps)
        steps: Iterable[int] = range(self._progress.step, last)
        if main and show_progress:
            steps = progress_bar(steps, "prior", len(range(self._progress.step, last)))
        for step in steps:
            if self._exhausted():
                break
            self._pending.append((step, self._learner.learn(step)))
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
        return self._finish(assessed=stop_after is None)

    def _flush(self) -> None:
        """Log the mean losses since the last call; reading them only now keeps an accelerator busy."""
        if not self._pending:
            return
        names = list(self._pending[0][1])
        table = torch.stack([torch.stack([losses[name] for name in names]) for _, losses in self._pending])
        table = self._accelerator.reduce(table, reduction="mean").cpu()
        refuse_nan(table, [step for step, _ in self._pending], self._pairs_of)
        means = {f"loss/{name}": value for name, value in zip(names, table.mean(dim=0).tolist(), strict=True)}
        self._write("train", self._progress.step, lr=self._learner.optimiser.param_groups[0]["lr"], **means)
        self._pending.clear()

    def _validate(self, step: int) -> None:
        averaged = self._learner.averaged
        figures = self._validator.figures(replace(self._prior, network=averaged.eval()))
        # One decision for all processes, whatever their rounding.
        score = float(broadcast(torch.tensor([figures["val/score"]], device=self._accelerator.device))[0])
        best = self._progress.best_score is None or score < self._progress.best_score
        # Where nothing that is learned can be measured on these pairs, the last step is as good a choice as any.
        best = best or bool(self._left_out)
        if best:
            self._progress.best_score, self._progress.best_step = score, step
            self._best = clone(averaged.state_dict())
        self._write("validation", step, best=best, **figures)

    def _write(self, event: str, step: int, **figures: float) -> None:
        """Log one line, here and in the trackers."""
        if self._accelerator.is_main_process:
            self._log.write(event=event, step=step, **figures)
        # Without trackers this does nothing.
        self._accelerator.log(figures, step=step)

    def _exhausted(self) -> bool:
        patience, progress = self._settings.patience, self._progress
        if patience is None or progress.best_score is None:
            return False
        return progress.step - progress.best_step >= patience * self._settings.validate_every

    def _save(self) -> None:
        if self._accelerator.is_main_process:
            weights = {
                "network": self._learner.network.state_dict(),
                "ema": self._learner.average.state_dict(),
                "best": self._best,
            }
            optimiser, loss_scale = (x.state_dict() for x in (self._learner.optimiser, self._learner.loss_scale))
            save_state(self._out, self._made_of, self._progress, weights, optimiser, loss_scale)
        self._accelerator.wait_for_everyone()

    def _pairs_of(self, step: int) -> list[str]:
        return [str(self._ids[int(i)]) for i in self._learner.batch(step)]

    def _finish(self, assessed: bool) -> Prior:
        network = self._learner.averaged
        if self._progress.best_score is not None:
            network.load_state_dict(self._best)
        prior = replace(self._prior, network=network.eval())
        prior = replace(prior, variance=measure_variance(prior, self._learner.data.target, self._validator.data))
        if assessed:
            record = {"validation": assess(prior, *self._pairs, self._teacher), **self._left_out}
            prior = replace(prior, record=record)
        if self._accelerator.is_main_process:
            prior.save(self._out)
        self._accelerator.wait_for_everyone()
        return prior


def _flat(config: PriorConfig) -> dict[str, str]:
    groups = config.model_dump(exclude={"settings"})
    return {f"{group}.{k}": str(v) for group, values in groups.items() for k, v in values.items()}
