"""One step of learning: the network, its average, its optimiser, and the noise they see."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from embedprior.prior.checkpoint import State
from embedprior.prior.data import PairArrays
from embedprior.prior.diffusion import add_noise
from embedprior.prior.model import Prior
from embedprior.prior.network import PriorNetwork
from embedprior.prior.noise import TRAINING, KeyedNoise, batch_at, training_draws
from embedprior.prior.objectives import Head, Noised, Objective, Rivals
from embedprior.prior.setup import PairTensors, ema_update, parameter_groups, to_tensors


class Learner:
    """What changes while a prior is trained.

    Args:
        prior: as training begins.
        train: pairs to learn from.
        accelerator: decides device and processes.
        teacher: frozen head, or None.
        found: a stopped training to go on with.

    Attributes:
        network: the weights being learned.
        average: torch's ``AveragedModel`` of them (EMA); what is validated, kept and sampled.
        optimiser: AdamW.
        objective: the named losses.
        data: the whole training set on the device.
    """

    def __init__(
        self, prior: Prior, train: PairArrays, accelerator: Accelerator, teacher: Head | None, found: State | None
    ) -> None:
        self._process, self._settings = prior.config.process, prior.config.training
        self._accelerator, self._schedule = accelerator, prior.schedule
        self.data: PairTensors = to_tensors(train, prior, accelerator.device)
        self.objective = Objective(
            prior.config.objective, self._process, self._schedule, prior.target_scaler, teacher,
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
        if found is not None:
            self.network.load_state_dict(found.weights["network"])
            self.average.load_state_dict(found.weights["ema"])
            self.optimiser.load_state_dict(found.optimiser)
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

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return this process's weighted losses of a step by name, with their graph."""
        batch, condition, visible, drop = self._noised(step)
        device = self._accelerator.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._settings.precision == "bf16"):
            output = self._model(batch.x, batch.n, condition, visible, drop[:, 0], drop[:, 1])
        return self.objective.losses(output.float(), batch)

    def learn(self, step: int) -> dict[str, Tensor]:
        """Take one optimiser step; return this process's weighted losses by name, detached."""
        named = self.losses(step)
        for group in self.optimiser.param_groups:
            group["lr"] = self._settings.lr * min(1.0, (step + 1) / max(self._settings.warmup, 1))
        self._wrapped_optimiser.zero_grad()
        self._accelerator.backward(torch.stack(list(named.values())).sum())
        self._accelerator.clip_grad_norm_(self.network.parameters(), self._settings.clip)
        self._wrapped_optimiser.step()
        self.average.update_parameters(self.network)
        return {name: value.detach() for name, value in named.items()}

    def _noised(self, step: int) -> tuple[Noised, Tensor, Tensor | None, Tensor]:
        """Return this process's share of the batch: noised targets, conditions, their mask, and what is dropped."""
        process, data, device = self._process, self.data, self._accelerator.device
        world, rank = self._accelerator.num_processes, self._accelerator.process_index
        everyone = self.batch(step)
        share = len(everyone) // world
        mine = everyone[rank * share : (rank + 1) * share]
        shape = tuple(data.given.tokens.shape[1:]) if process.condition_noise > 0 else None
        draws = training_draws(self._noise, step, mine, data.target.shape[1], process.timesteps, shape)
        rows = torch.from_numpy(mine).to(device)
        noise, n = torch.from_numpy(draws.noise).to(device), torch.from_numpy(draws.timestep).to(device)
        drop = torch.from_numpy(draws.drop < process.condition_dropout).to(device)
        # Without its condition a case has no regression either: the null branch learns the embedding itself.
        centre = None if data.given.centre is None else data.given.centre[rows] * ~drop[:, :1]
        x0 = data.target[rows] if centre is None else data.target[rows] - centre
        # Contrasted with the whole batch: the loss is then the same on any number of processes.
        rivals = torch.from_numpy(everyone).to(device)
        batch = Noised(
            x0, noise, add_noise(self._schedule, x0, noise, n), n, data.labels[rows],
            data.patient[rows], Rivals(data.target[rivals], data.patient[rivals]), centre,
        )  # fmt: skip
        condition = data.given.tokens[rows]
        if draws.condition is not None:
            condition = condition + process.condition_noise * torch.from_numpy(draws.condition).to(device)
        visible = None if data.given.mask is None else data.given.mask[rows]
        return batch, condition, visible, drop
