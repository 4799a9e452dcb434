"""The Python of docs/prior.md runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embedprior.prior.config
from embedprior.prior import search

from .conftest import make_pairs

PAGE = Path(__file__).parents[2] / "docs" / "prior.md"


class Head:
    """Reads the first dimension."""

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        assert embeddings.ndim == 2
        return embeddings[:, 0] - 3.0


def test_the_snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "STEPS", 8)
    train, val = make_pairs(40, 0), make_pairs(16, 1000)
    names: dict[str, Any] = {"train": train, "val": val, "z_cxr": val.condition, "head": Head()}
    names |= {"z_ct": val.target, "patients": val.patients}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["mean"].shape == (16, 6)
    assert names["chance"].shape == (16,)
    drawn = names["prior"].sample(val.condition, 64, steps=16, cases=[0] * 16).astype(float)
    expected = (1 / (1 + np.exp(3.0 - drawn[..., 0]))).mean(axis=1)
    np.testing.assert_allclose(names["chance"], expected, rtol=1e-5)
    assert embedprior.prior.config.PriorConfig().settings == "auto"
