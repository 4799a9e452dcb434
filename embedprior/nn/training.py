"""The one loop that small networks are trained by: AdamW, a checkpoint chosen on validation cases, NaN refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from embedprior.errors import EmbedpriorError
from embedprior.nn.checkpoint import Progress, load_state, save_state
from embedprior.runs import progress, seed_for

ValidationHistory = list[dict[str, float]]
"""One record a validation: ``step``, ``loss`` (mean since the record before), ``val_loss`` where there are cases."""


@dataclass(frozen=True)
class Resume:
    """Where a training keeps its state, so that it goes on after a stop.

    Attributes:
        folder: that ``nn.checkpoint`` writes into after every validation.
        fingerprint: data and settings by name; a training of others is refused.
        writes: whether this process writes the state; of several that train together, one does.
    """

    folder: Path
    fingerprint: Mapping[str, str]
    writes: bool = True


def minimise(
    network: nn.Module,
    loss: Callable[[int], Tensor],
    steps: int,
    *,
    lr: float,
    weight_decay: float,
    validate: Callable[[], float] | None,
    validate_every: int,
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
    after_validation: Callable[[dict[str, float]], None] | None = None,
    progress_bar: str | None = None,
    criterion: str = "val_loss",
    patience: int | None = None,
    scaler: torch.amp.GradScaler | None = None,
    resume: Resume | None = None,
    own_lr: Mapping[nn.Module, float] | None = None,
) -> ValidationHistory:
    """Minimise ``loss`` by AdamW; the network ends as it was at its lowest validation loss, in evaluation mode.

    Random numbers (dropout, draws) come from torch's global generator and from what ``loss`` draws itself: seed them
    with ``seeded``, or in ``loss`` by the number of the step where the training is to be resumed.

    Args:
        network: changed in place; its parameters that require a gradient are trained.
        loss: number of the step (1 to ``steps``) → loss of a batch.
        steps: how many.
        lr, weight_decay: of AdamW.
        validate: the validation loss, computed without gradient and dropout; None keeps the last step.
        validate_every: steps between two validations. The last step is validated too.
        schedule: of the learning rate, stepped after every step; None keeps it.
        after_validation: called with every record before it is kept; may add to it.
        progress_bar: its text; None shows none.
        criterion: name of what ``validate`` returns, in the records; the lowest is kept, of equal ones the first.
        patience: validations in a row without a lower criterion after which the training ends; None never ends early.
        scaler: of the loss, for gradients in float16.
        resume: where the state is kept; a training that was stopped there goes on after its last validation. Not
            together with ``schedule``.
        own_lr: parts of the network with a learning rate of their own.

    Returns:
        One record for every validation, and for every ``validate_every`` steps where nothing is validated.

    Raises:
        BadInput: ``resume`` names a training of other data or settings.
        EmbedpriorError: a loss, or every validation loss, was not a finite number; the message names the step.
        ValueError: a schedule of a training that is to be resumed.
    """
    if schedule is not None and resume is not None:
        raise ValueError("a learning rate schedule keeps no state: leave out schedule or resume")
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(_groups(trained, own_lr or {}), lr=lr, weight_decay=weight_decay)
    scheduler = None if schedule is None else schedule(optimiser)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    state = None if resume is None else load_state(resume.folder, resume.fingerprint, steps)
    done = Progress() if state is None else state.progress
    if state is not None:
        network.load_state_dict(state.weights["network"])
        optimiser.load_state_dict(state.optimiser)
        scaler.load_state_dict(dict(state.loss_scale))
    best = _copied(network) if state is None else state.weights["best"]
    pending: list[Tensor] = []
    numbers: Iterable[int] = range(done.step + 1, steps + 1)
    for step in numbers if progress_bar is None else progress(numbers, progress_bar, total=steps - done.step):
        if patience is not None and validate is not None and done.step - done.best_step >= patience * validate_every:
            break
        network.train()
        value = loss(step)
        optimiser.zero_grad()
        scaler.scale(value).backward()
        scaler.step(optimiser)
        scaler.update()
        if scheduler is not None:
            scheduler.step()
        pending.append(value.detach())
        if step % validate_every and step != steps:
            continue
        done.step = step
        record = {"step": step, "loss": _finite_mean(pending, step)}
        pending.clear()
        if validate is not None:
            network.eval()
            with torch.no_grad():
                record[criterion] = validate()
            if record[criterion] < (float("inf") if done.best_score is None else done.best_score):
                done.best_score, done.best_step, best = record[criterion], step, _copied(network)
        if after_validation is not None:
            after_validation(record)
        done.history.append(record)
        if resume is not None and resume.writes:
            weights = {"network": network.state_dict(), "best": best}
            save_state(resume.folder, resume.fingerprint, done, weights, optimiser.state_dict(), scaler.state_dict())
    if validate is not None and done.step:
        if done.best_score is None:
            raise EmbedpriorError(
                "the validation loss was never a number. Next: look for numbers that are not finite among the inputs, "
                "or lower lr"
            )
        network.load_state_dict(best)
    network.eval()
    return done.history


def _groups(trained: list[nn.Parameter], own_lr: Mapping[nn.Module, float]) -> list[Any]:
    """Return what AdamW optimises: the parameters, or groups of them where parts have a learning rate of their own."""
    if not own_lr:
        return list(trained)
    parts = [{"params": [p for p in part.parameters() if p.requires_grad], "lr": rate} for part, rate in own_lr.items()]
    taken = {id(p) for part in parts for p in part["params"]}  # type: ignore[attr-defined]
    return [{"params": [p for p in trained if id(p) not in taken]}, *parts]


@contextmanager
def seeded(seed: int, *purpose: str) -> Iterator[None]:
    """Seed torch's global generator for a block; it goes on afterwards as if nothing had been drawn.

    Args:
        seed: of the whole fit.
        purpose: what the numbers are for; another purpose gets other numbers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, *purpose))
        yield


def generator(seed: int, *purpose: str) -> torch.Generator:
    """Return a generator of its own, seeded for a purpose."""
    return torch.Generator().manual_seed(seed_for(seed, *purpose))


def tensor(array: Float[np.ndarray, ...]) -> Tensor:
    """Return a float32 tensor of a NumPy array."""
    return torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32)


def contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict as safetensors takes it."""
    return {name: value.contiguous() for name, value in state.items()}


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def _finite_mean(losses: list[Tensor], step: int) -> float:
    """Return the mean of the last losses up to ``step``; read only now, to keep an accelerator busy."""
    values = torch.stack(losses).double()
    bad = torch.nonzero(~values.isfinite()).flatten()
    if len(bad):
        first = step - len(losses) + 1 + int(bad[0])
        raise EmbedpriorError(
            f"the loss at step {first} is not a number, so nothing of this fit is kept. "
            "Next: look for numbers that are not finite among the embeddings (embedprior cache verify), or lower lr"
        )
    return float(values.mean())
