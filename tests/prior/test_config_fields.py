"""Every setting changes something: a field that nothing reads fails here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from embedprior.config import parse_config
from embedprior.errors import BadInput
from embedprior.prior.config import PriorConfig, SamplerConfig
from embedprior.prior.model import Prior
from embedprior.prior.trainer import train_prior

from .conftest import make_pairs, small_config

# field → (settings both runs share, its other value)
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "network.preset": ({"network.dim": None}, "tiny-without-sizes"),
    "network.dim": ({}, 24), "network.depth": ({}, 1), "network.heads": ({}, 3), "network.head_dim": ({}, 4),
    "network.inner": ({}, 20), "process.schedule": ({}, "linear"), "process.timesteps": ({}, 60),
    "process.prediction": ({}, "v"), "process.condition_dropout": ({}, 0.6), "process.condition_noise": ({}, 0.5),
    "process.null_branch": ({}, "drops_both"), "process.regression": ({}, "ridge"),
    "process.sigma_data": ({}, 1.0), "process.whitening": ({}, True), "training.accumulate": ({}, 4),
    "process.guidance": ({}, 1.5), "objective.l2": ({}, 0.5), "objective.bce": ({}, 0.3),
    "objective.bce_target": ({"objective.bce": 0.3}, "labels"), "objective.min_snr_gamma": ({}, 1.0),
    "objective.bce_balanced": ({"objective.bce": 0.3, "objective.bce_target": "labels"}, True),
    "objective.aft": ({"objective.aft_groups": 2}, 0.3),
    "objective.aft_groups": ({"objective.aft": 0.3, "objective.aft_groups": 2}, 3), "objective.proto": ({}, 0.3),
    "objective.contrastive": ({}, 0.3),
    "objective.contrastive_margin": ({"objective.contrastive": 0.3}, 0.5),
    "training.steps": ({}, 30), "training.batch": ({}, 4), "training.lr": ({}, 2e-3),
    "training.weight_decay": ({}, 5.0), "training.betas": ({}, (0.5, 0.9)), "training.warmup": ({}, 15),
    "training.clip": ({}, 1e-3), "training.ema": ({}, 0.0), "training.precision": ({}, "bf16"),
    "training.validate_every": ({}, 5), "training.validation_bins": ({}, 8),
    "training.patience": ({"training.lr": 0.1, "training.steps": 200}, 1), "training.checkpoint_every": ({}, 7),
    "training.variance_nodes": ({}, 5), "training.variance_draws": ({}, 3), "training.seed": ({}, 1),
}  # fmt: skip


class Head(nn.Module):
    def forward(self, embedding: Tensor) -> Tensor:
        return embedding.sum(dim=1)


def fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        names += fields(kind, f"{name}.") if nested else [prefix + name]  # type: ignore[arg-type]
    return names


def settings(changes: dict[str, Any]) -> PriorConfig:
    data = small_config().model_dump()
    data["process"]["condition_dropout"] = 0.3
    for dotted, value in changes.items():
        group, name = dotted.split(".")
        if value == "tiny-without-sizes":
            data["network"] |= {"preset": "prior-49m", "dim": None}
        else:
            data[group][name] = value
    return PriorConfig.model_validate(data)


def outcome(config: PriorConfig, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything a user gets: weights, table, samples, the validations, and which states were saved."""
    saved: list[int] = []
    import embedprior.prior.trainer as module

    real = module.save_state

    def spy(folder: Path, made_of: str, progress: Any, *rest: Any) -> None:
        saved.append(progress.step)
        real(folder, made_of, progress, *rest)

    monkeypatch.setattr(module, "save_state", spy)
    pairs = [make_pairs(40, 0), make_pairs(16, 1000)]
    labelled = [type(part)(**{**part.__dict__, "labels": (part.target[:, 0] > 3).astype(float)}) for part in pairs]
    prior: Prior = train_prior(*labelled, config, out, teacher=Head(), show_progress=False)
    monkeypatch.undo()
    assert prior.variance is not None
    metrics = [line for line in (out / "metrics.jsonl").read_text().splitlines() if "validation" in line]
    drawn = prior.sample(pairs[1].condition, 2, "ddpm_small", steps=4)
    return [*prior.network.state_dict().values(), prior.variance.error, drawn, metrics, saved]


def equal(a: list[Any], b: list[Any]) -> bool:
    if len(a) != len(b):
        return False
    for left, right in zip(a, b, strict=True):
        if isinstance(left, Tensor | np.ndarray):
            if left.shape != right.shape or not np.array_equal(np.asarray(left), np.asarray(right)):
                return False
        elif left != right:
            return False
    return True


def test_every_field_has_a_case_here() -> None:
    # ``settings`` decides who chooses the others: tests/prior/test_search.py.
    assert sorted(fields(PriorConfig)) == sorted([*CHANGES, "settings"])


@pytest.fixture(scope="module")
def bases() -> dict[str, list[Any]]:
    """What unchanged settings give, made once."""
    return {}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_the_field_changes_what_comes_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bases: dict[str, list[Any]]
) -> None:
    shared, value = CHANGES[name]
    key = repr(shared)
    if key not in bases:
        bases[key] = outcome(settings(shared), tmp_path / "base", monkeypatch)
    base = bases[key]
    changed = outcome(settings({**shared, name: value}), tmp_path / "changed", monkeypatch)
    assert not equal(base, changed)


def test_two_trainings_alike_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    first = outcome(settings({}), tmp_path / "a", monkeypatch)
    torch.manual_seed(2)
    assert equal(first, outcome(settings({}), tmp_path / "b", monkeypatch))


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"variance": "small"}),
        ({}, {"variance": "big"}),
        ({}, {"variance": "analytic_diag"}),
        ({}, {"trajectory": "log_snr"}),
        ({}, {"trajectory": "optimal"}),
        ({}, {"steps": 5}),
        ({"variance": "small"}, {"family": "ddim"}),
        ({"variance": "small", "family": "ddim"}, {"eta": 0.5}),
        ({"variance": "small", "family": "ddim"}, {"family": "dpm_solver"}),
    ],
)
def test_every_sampler_setting_changes_the_samples(
    base: dict[str, Any], change: dict[str, Any], trained: Prior
) -> None:
    condition = make_pairs(4, 9).condition
    a, b = (
        trained.sample(condition, 2, SamplerConfig.model_validate({"steps": 8, **base, **more}))
        for more in ({}, change)
    )
    assert np.abs(a - b).max() > 1e-4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Prior:
    pairs = make_pairs(40, 0), make_pairs(16, 1000)
    return train_prior(*pairs, small_config(steps=60), tmp_path_factory.mktemp("prior"), show_progress=False)


@pytest.mark.parametrize("key", ["null", None])
def test_the_former_name_of_the_null_branch_is_answered_with_the_present_one(key: str | None) -> None:
    """YAML reads a bare ``null:`` as a key without name."""
    with pytest.raises(BadInput, match=r"'process\.null' is now called 'null_branch \(keep is keeps_target"):
        parse_config(PriorConfig, {"process": {key: "both"}}, "a file")
