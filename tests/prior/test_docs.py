"""The Python of docs/prior.md runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import embedprior.prior.config
from embedprior.prior import search
from embedprior.prior.config import SIZES
from embedprior.prior.network import PriorNetwork

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


def test_the_list_of_what_differs_from_the_released_network_accounts_for_every_parameter() -> None:
    """48,832,912 were counted in the released code at its own configuration."""
    text = PAGE.read_text(encoding="utf-8")
    table = text[text.index("| released network |") :].split("\n\n")[0]
    more = [int(row.split("|")[3].replace("−", "-")) for row in table.splitlines()[2:]]
    assert len(more) >= 12
    with torch.device("meta"):
        ours = PriorNetwork(SIZES["prior-49m"], 512, 512, condition_tokens=1, null_target=True).parameter_count()
    assert ours - 48_832_912 == sum(more)
