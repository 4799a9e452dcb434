from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from embedprior.nn.config import FitConfig
from embedprior.students.base import Cases, FitData, Stage
from embedprior.students.registry import Budget
from embedprior.teachers.teacher import train_head

torch.set_num_threads(1)
SMALL = FitConfig(hidden=16, steps=40, validate_every=20, batch_size=32)


def pairs(count: int, seed: int, prefix: str = "p", labelled: int | None = None) -> Cases:
    """Cases whose label depends on the first CT dimension, which the radiograph shows with noise."""
    rng = np.random.default_rng(seed)
    ct = rng.normal(size=(count, 8)).astype(np.float32)
    cxr = np.concatenate([ct[:, :3] + 0.7 * rng.normal(size=(count, 3)), rng.normal(size=(count, 5))], axis=1)
    label = (ct[:, 0] + 0.2 * rng.normal(size=count) > 0).astype(float)
    ct_label = label.copy()
    if labelled is not None:
        label[labelled:] = np.nan
    names = [f"{prefix}{i}" for i in range(count)]
    return Cases(names, names, label, cxr.astype(np.float32), ct, ct_label)


SIDE = 32


def slice_pairs(count: int, seed: int, labelled: int | None = None) -> Cases:
    """A square on the left shows the finding: plainly in the CT slice, faintly in the radiograph."""
    rng = np.random.default_rng(seed)
    label = (np.arange(count) % 2).astype(float)
    cxr, ct = (rng.normal(100, 25, size=(count, SIDE, SIDE)) for _ in range(2))
    ct[:, 8:24, 2:14] += 80 * label[:, None, None]
    cxr[:, 8:24, 2:14] += 12 * label[:, None, None]
    known = np.where(np.arange(count) < (count if labelled is None else labelled), label, np.nan)
    names = [f"{seed}-{i}" for i in range(count)]
    blank = np.zeros((count, 2), np.float32)
    cxr, ct = (np.clip(pictures, 0, 255).astype(np.uint8) for pictures in (cxr, ct))
    return Cases(names, names, known, blank, blank, label.copy(), pixels=cxr, ct_pixels=ct)


@pytest.fixture(scope="session")
def small() -> FitData:
    """48 pairs, 24 of them labelled, and a teacher."""
    stage = Stage(add_pixels(pairs(48, 1, "t", labelled=24)), add_pixels(pairs(16, 2, "v")))
    own = pairs(200, 3, "c")
    head = train_head(own.paired_ct(), own.label, own.paired_ct()[:40], own.label[:40], SMALL, 0)
    return FitData((stage,), head)


@pytest.fixture
def budget() -> Budget:
    """Of a few steps: enough to run, not to learn."""
    return Budget.model_validate(
        {
            "fit": SMALL,
            "stages": [
                {
                    "network": {"preset": "tiny", "dim": 16, "depth": 1, "inner": 16},
                    "training": {
                        "steps": 4, "batch": 8, "validate_every": 4, "validation_bins": 2, "variance_nodes": 3,
                        "variance_draws": 1,
                    },
                }
            ],
            "samples": 2,
            "steps": 3,
        }
    )  # fmt: skip


@pytest.fixture
def with_pixels() -> Callable[[Cases], Cases]:
    """Give cases tokens and pictures, whose left half shows the first CT dimension."""
    return add_pixels


def add_pixels(cases: Cases, size: int = 16) -> Cases:
    rng = np.random.default_rng(len(cases))
    pixels = rng.integers(60, 90, size=(len(cases), size, size))
    pixels[:, :, : size // 2] += (30 * (cases.paired_ct()[:, 0] > 0)).astype(int)[:, None, None]
    tokens = np.repeat(cases.cxr[:, None], 4, axis=1)
    tokens[:, 3] = np.nan
    ct_pixels = np.clip(2 * pixels - 60, 0, 255)
    return replace(cases, pixels=pixels.astype(np.uint8), tokens=tokens, ct_pixels=ct_pixels.astype(np.uint8))
