"""What happens before the first step: the pairs are checked, scaled and put on the device; the network is made."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embedprior.errors import BadInput, EmbedpriorError
from embedprior.nn.standardise import Standardiser, TargetSpace
from embedprior.prior.config import PriorConfig, Tracker, TrainingConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.losses import Head, module_of
from embedprior.prior.model import Prior, new_network
from embedprior.prior.regression import Regression, fit_regression, pooled
from embedprior.prior.samplers import Conditions
from embedprior.prior.storage import DESCRIPTION, WEIGHTS
from embedprior.runs import canonical, hash_array, hash_file, hash_of, seed_for


@dataclass(frozen=True)
class PairTensors:
    """Pairs on the device, scaled.

    Attributes:
        conditions: (N, C, Dc) tokens, their mask, and what the ridge regression predicts from them.
        target: (N, D), in the units that are noised.
        labels: (N,) 1 / 0 / NaN.
        patient: (N,) patient numbers.
    """

    conditions: Conditions
    target: Tensor
    labels: Tensor
    patient: Tensor

    def __len__(self) -> int:
        return len(self.target)


def to_tensors(pairs: PairArrays, prior: Prior, device: torch.device) -> PairTensors:
    """Return the whole set, scaled as ``prior`` scales it."""
    labels = np.full(len(pairs), np.nan) if pairs.labels is None else pairs.labels
    return PairTensors(
        conditions=prior.standardise_conditions(pairs.tokens, pairs.condition_mask, pairs.source).to(
            device, torch.float32
        ),
        target=torch.from_numpy(prior.target_space(pairs.source).forward(pairs.target)).to(device),
        labels=torch.from_numpy(np.asarray(labels, dtype=np.float32)).to(device),
        patient=torch.from_numpy(pairs.patient_numbers()).to(device),
    )


def check_pairs(train: PairArrays, val: PairArrays, config: PriorConfig, start: Prior | None) -> None:
    """Refuse pairs that can't be learned from, or that do not fit the prior to start from.

    Raises:
        BadInput: naming what differs.
    """
    train.check("training")
    val.check("validation")
    shared = sorted(set(train.ids) & set(val.ids))
    if shared:
        raise BadInput(f"pair '{shared[0]}' is in training and in validation ({len(shared)} such pairs).")
    if train.patients is not None and val.patients is not None:
        both = sorted(set(train.patients) & set(val.patients))
        if both:
            raise BadInput(f"patient '{both[0]}' is in training and in validation ({len(both)} such patients).")
    facts = ["condition dimension", "target dimension", "source", "condition encoder", "target encoder"]
    ours = (train.condition.shape[-1], train.target.shape[-1], train.source, *train.encoders)
    theirs = (val.condition.shape[-1], val.target.shape[-1], val.source, *val.encoders)
    for fact, mine, other in zip(facts, ours, theirs, strict=True):
        if mine != other:
            raise BadInput(f"{fact}: '{mine}' in training, '{other}' in validation. They must be equal.")
    if start is None:
        return
    facts = ["condition dimension", "target dimension", "condition encoder", "target encoder", "network size"]
    facts += ["schedule", "timesteps", "prediction", "sigma_data", "regression", "whitening", "null_branch"]
    process, earlier = config.process, start.config.process
    ours_all: list[Any] = [train.condition.shape[-1], train.target.shape[-1], *train.encoders, config.network.size]
    theirs_all: list[Any] = [start.network.condition_dim, start.network.target_dim, *start.encoders]
    theirs_all += [start.config.network.size]
    for name in facts[5:]:
        ours_all.append(getattr(process, name))
        theirs_all.append(getattr(earlier, name))
    for fact, mine, other in zip(facts, ours_all, theirs_all, strict=True):
        # An encoder key that one side does not know can't be compared.
        if mine != other and "" not in (mine, other):
            raise BadInput(f"{fact}: '{mine}' here, '{other}' in the prior to start from. They must be equal.")
    if train.tokens.shape[1] > len(start.network.slots):
        raise BadInput(
            f"{train.tokens.shape[1]} condition tokens here, at most {len(start.network.slots)} in the prior "
            "to start from."
        )


Units = tuple[Mapping[str, Regression], Mapping[str, TargetSpace]]
"""A prior's regressions and whitened spaces, by source."""
Fitted = dict[tuple[str, bool, bool], Units]
"""Units by regression, whitening, and whether they go on from an earlier stage."""


def initial_prior(
    train: PairArrays, val: PairArrays, config: PriorConfig, start: Prior | None, fitted: Fitted | None = None
) -> Prior:
    """Return the prior that training begins with: scalers fitted on ``train``, weights new or those of ``start``.

    A regression is fitted on ``train``, its penalty chosen on ``val``; from ``start`` it goes on from that of the same
    source, or else of the other one.

    Args:
        train, val: the pairs.
        config: settings.
        start: the prior to go on from; None begins anew.
        fitted: what was fitted for other settings on the same pairs, and from the same ``start``; read and added to.
    """
    initial, process = _scaled(train, config, start), config.process
    fitted = {} if fitted is None else fitted
    key = (process.regression, process.whitening, start is not None)
    if key not in fitted:
        fitted[key] = _units(train, val, initial)
    return replace(initial, regressions=fitted[key][0], spaces=fitted[key][1])


def _units(train: PairArrays, val: PairArrays, prior: Prior) -> Units:
    """Fit the regression and the whitening of the source of ``train``; those of other sources are kept."""
    process, space = prior.config.process, TargetSpace(prior.target_scaler)
    if process.regression == "none":
        if not process.whitening:
            return prior.regressions, prior.spaces
        return prior.regressions, {**prior.spaces, train.source: space.whitened(space.forward(train.target))}
    scaler, earlier = prior.condition_scaler(train.source), prior.regressions
    inputs, val_inputs = (pooled(scaler.forward(pairs.tokens), pairs.condition_mask) for pairs in (train, val))
    target, val_target = (prior.target_scaler.forward(pairs.target) for pairs in (train, val))
    before = earlier.get(train.source, next(iter(earlier.values()), None))
    regression, residuals = fit_regression(inputs, target, val_inputs, val_target, before)
    spaces = {**prior.spaces, train.source: space.whitened(residuals)} if process.whitening else prior.spaces
    return {**earlier, train.source: regression}, spaces


def _scaled(train: PairArrays, config: PriorConfig, start: Prior | None) -> Prior:
    tokens = train.tokens
    real = tokens if train.condition_mask is None else tokens[train.condition_mask]
    scalers: dict[str, Standardiser] = {train.source: Standardiser.fit(real)}
    if start is not None:
        return Prior(
            config,
            start.network,
            start.target_scaler,
            {**start.condition_scalers, **scalers},
            None,
            (train.encoders[0] or start.encoders[0], train.encoders[1] or start.encoders[1]),
            start.regressions,
            start.spaces,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.training.seed, "prior-weights"))
        network = new_network(config, tokens.shape[-1], train.target.shape[-1], tokens.shape[1])
    # A target that does not vary is left out: it would be sampled with noise in a unit that the data do not have.
    target_scaler = Standardiser.fit(train.target, leave_out_constants=True)
    return Prior(config, network, target_scaler, scalers, None, train.encoders)


EXTENDABLE = frozenset({"training.steps", "training.patience", "training.checkpoint_every"})
"""Settings that a stopped or finished training may go on with changed: no number of the steps done depends on them."""


def fingerprint(
    train: PairArrays, val: PairArrays, config: PriorConfig, init_from: Path | None, teacher: Head | None
) -> dict[str, str]:
    """Return everything that decides the training's numbers, by name, so that a resume can't mix two."""
    groups = {group: values for group, values in canonical(config).items() if group != "settings"}
    parts = {f"{group}.{name}": str(value) for group, values in groups.items() for name, value in values.items()}
    parts = {name: value for name, value in parts.items() if name not in EXTENDABLE}
    parts["settings"] = config.settings
    parts["teacher"] = hash_of(_teacher_hash(teacher))
    for part, pairs in (("training", train), ("validation", val)):
        arrays: dict[str, NDArray[Any] | None] = {"condition": pairs.condition, "target": pairs.target}
        arrays |= {"mask": pairs.condition_mask, "labels": pairs.labels}
        for name, array in arrays.items():
            parts[f"{part} pairs: {name}"] = "" if array is None else hash_array(array)
        patients = None if pairs.patients is None else list(pairs.patients)
        parts[f"{part} pairs: ids"] = hash_of([list(pairs.ids), patients])
        parts[f"{part} pairs: source"] = hash_of([pairs.source, *pairs.encoders])
    parts["init_from"] = ""
    if init_from is not None:
        parts["init_from"] = hash_of([hash_file(init_from / WEIGHTS), hash_file(init_from / DESCRIPTION)])
    return parts


PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
ENGINES = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed", "MEGATRON_LM": "Megatron-LM", "PARALLELISM_CONFIG": "parallelism"}


def check_launch(settings: TrainingConfig) -> None:
    """Refuse what ``accelerate launch`` was asked for and the training would not do: its settings are the YAML file's.

    Raises:
        BadInput: another precision or accumulation than the configuration's, a compiler, or another engine than DDP.
    """
    asked = {name: os.environ.get(f"ACCELERATE_{name}", "no").lower() for name in ("MIXED_PRECISION", "DYNAMO_BACKEND")}
    precision, accumulate = asked["MIXED_PRECISION"], _accumulation_asked_for()
    if precision not in ("no", PRECISIONS[settings.precision]):
        known = precision in PRECISIONS.values()
        allowed = f"{precision}: --prior.training.precision {precision}" if known else ", ".join(PRECISIONS)
        raise BadInput(
            f"accelerate launch asks for mixed precision {precision}, training.precision is {settings.precision}. "
            f"Allowed: {allowed}."
        )
    if accumulate not in ("1", str(settings.accumulate)):
        raise BadInput(
            f"accelerate launch asks for {accumulate} accumulation steps, training.accumulate is "
            f"{settings.accumulate}. Next: --prior.training.accumulate {accumulate}"
        )
    if asked["DYNAMO_BACKEND"] != "no":
        raise BadInput(f"accelerate launch asks for the compiler {asked['DYNAMO_BACKEND']}. Allowed: none.")
    for name, engine in ENGINES.items():
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise BadInput(f"accelerate launch asks for {engine}. Allowed: plain data parallelism (DDP).")


def _accumulation_asked_for() -> str:
    """Return ``--gradient_accumulation_steps`` of the launcher, which passes it on under DeepSpeed alone."""
    found = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    if found is not None:
        return found
    for words in launcher_command_lines():
        for here, word in enumerate(words):
            name, _, value = word.replace("-", "_").partition("=")
            if name == "__gradient_accumulation_steps":
                return value or words[here + 1]
    return "1"


def launcher_command_lines() -> list[list[str]]:
    """Return the command lines of ``accelerate launch`` among the processes that started this one."""
    found = []
    for parent in psutil.Process().parents():
        with suppress(psutil.Error):  # one that has ended, or is another user's
            words = parent.cmdline()
            if any("accelerate" in word for word in words[:4]):
                found.append(words)
    return found


def _teacher_hash(teacher: Head | None) -> dict[str, str] | str:
    if teacher is None:
        return ""
    module = module_of(teacher)
    if module is None:
        # A plain function has no weights to hash; its name is all there is.
        return getattr(teacher, "__qualname__", type(teacher).__qualname__)
    return {name: hash_array(value.detach().cpu().numpy()) for name, value in module.state_dict().items()}


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW groups: matrices decay; vectors, gains and learned tokens do not."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            (matrices if isinstance(module, nn.Linear) and name == "weight" else others).append(parameter)
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def ema_update(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return the averaging rule for ``AveragedModel``: decay min(decay, (1 + k)/(10 + k)) at update k.

    The ramp lets a short training leave its random start behind; a plain 0.9999 would keep it for 10,000 steps.
    """

    @torch.no_grad()
    def update(averaged: Iterable[Tensor], current: Iterable[Tensor], count: Tensor | int) -> None:
        k = float(count)
        torch._foreach_lerp_(list(averaged), list(current), 1.0 - min(decay, (1.0 + k) / (10.0 + k)))

    return update


def refuse_nan(losses: Tensor, steps: list[int], pairs_of: Callable[[int], list[str]]) -> None:
    """Stop when a loss is not finite.

    Args:
        losses: (steps, terms).
        steps: the step of each row.
        pairs_of: step ↦ ids of its batch.

    Raises:
        EmbedpriorError: naming the first such step and its pairs.
    """
    bad = (~losses.isfinite().all(dim=1)).nonzero().flatten()
    if len(bad):
        step = steps[int(bad[0])]
        raise EmbedpriorError(
            f"the loss at step {step} is not a number; nothing was saved after it. "
            f"Its pairs: {', '.join(pairs_of(step))}. Next: check these embeddings, or lower training.lr"
        )


def require_tracker(name: Tracker) -> None:
    """Refuse a tracker whose package is missing: accelerate would leave it out without a word.

    Raises:
        BadInput: with the pip line.
    """
    if importlib.util.find_spec(name) is None:
        raise BadInput(f"tracker '{name}' is not installed. Next: pip install {name}")
