"""Every setting of an alignment changes something: a field that nothing reads fails here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedprior.alignment.config import AlignmentConfig
from embedprior.alignment.planted import PlantedTriplesConfig, planted_triples
from embedprior.alignment.train import train_alignment
from embedprior.config import parse_config, settings_of

BASE: dict[str, Any] = {
    "train_sides": ["cxr", "ct", "report"], "dim": 4, "batch_size": 12, "steps": 6, "validate_every": 2,
    "patience": None,
    "tokens": {"cell": "transformer", "hidden": 4, "pool": "attention", "dropout": 0.0, "max_tokens": 3},
    "pixels": {"channels": [2, 3], "dropout": 0.0},
}  # fmt: skip
PRETRAINED: dict[str, Any] = {"pixels": {"encoder": "efficientnet-lite0", "side": 32}, "steps": 2, "validate_every": 2}
# field → (settings that both runs share, its other value)
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "alpha": ({}, 0.7), "beta": ({}, 0.4), "gamma": ({}, 0.4), "train_sides": ({"dim": 6}, ["cxr", "ct"]),
    "dim": ({}, 5), "hidden": ({}, 3), "dropout": ({}, 0.5), "temperature": ({}, 0.3), "learn_temperature": ({}, True),
    "batch_size": ({}, 7), "lr": ({}, 0.02), "weight_decay": ({"lr": 0.1}, 0.9), "steps": ({}, 8),
    "validate_every": ({}, 3), "patience": ({"lr": 0.5, "steps": 60}, 1), "seed": ({}, 1),
    "tokens.cell": ({}, "gru"), "tokens.hidden": ({}, 6), "tokens.layers": ({}, 2), "tokens.pool": ({}, "mean"),
    "tokens.dropout": ({}, 0.5), "tokens.max_tokens": ({}, 2), "pixels.channels": ({}, [3]), "pixels.grid": ({}, 1),
    "pixels.dropout": ({}, 0.6), "pixels.shift": ({}, 0), "pixels.encoder": ({}, "efficientnet-lite0"),
    "pixels.options": (PRETRAINED, {"random_init": True}), "pixels.lr": (PRETRAINED, 0.01),
    "pixels.batch_norm": (PRETRAINED, "trained"), "pixels.side": (PRETRAINED, 40),
}  # fmt: skip
READ = [setting.name for setting in settings_of(AlignmentConfig) if setting.name != "tokens.dim"]
"""The length of what the tokens' model yields is that of the space, as its description says."""


def outcome(settings: dict[str, Any]) -> list[Any]:
    """History and weights of a small training; the radiograph's side reads tokens where a token setting is tried."""
    kind = settings.pop("kind")
    train, val = (
        each.cases
        for each in planted_triples(PlantedTriplesConfig(cxr_dim=5, ct_dim=6, report_dim=6), (30, 14), seed=0)
    )
    if kind == "pixels":
        rng = np.random.default_rng(0)
        train, val = (replace(e, cxr=rng.integers(0, 255, (len(e), 256), dtype=np.uint8)) for e in (train, val))
    if kind == "tokens":
        train, val = (
            replace(each, cxr=[np.stack([row, 2 * row, row + 1, row - 1]) for row in np.asarray(each.cxr)])
            for each in (train, val)
        )
    found, history = train_alignment(train, val, parse_config(AlignmentConfig, settings, "test"), {})
    return [history, {name: value.tolist() for name, value in found.network.state_dict().items()}]


def changed(settings: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    section, _, name = field.rpartition(".")
    return settings | ({section: settings[section] | {name: value}} if section else {field: value})


@pytest.mark.parametrize("field", READ)
def test_every_setting_is_read(field: str) -> None:
    shared, value = CHANGES[field]
    first = BASE | shared | {"kind": field.split(".")[0]}
    second = changed(first, field, value)
    assert outcome(dict(first)) != outcome(dict(second))
