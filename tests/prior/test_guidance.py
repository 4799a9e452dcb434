from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from embedprior.nn.standardise import Standardiser
from embedprior.prior import samplers
from embedprior.prior.config import PriorConfig, ProcessConfig
from embedprior.prior.model import Prior, new_network
from embedprior.prior.samplers import Conditions

from .conftest import small_config


def prior_with(process: ProcessConfig) -> Prior:
    torch.manual_seed(0)
    config: PriorConfig = small_config().model_copy(update={"process": process})
    network = new_network(config, 5, 6, 1).eval()
    torch.nn.init.normal_(network.out.weight, std=0.3)
    one = Standardiser(np.zeros(6), np.ones(6))
    return Prior(config, network, one, {"cxr": Standardiser(np.zeros(5), np.ones(5))}, None)


@pytest.mark.parametrize("null", ["keeps_target", "drops_both"])
@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_guidance_is_null_plus_weight_times_the_difference(null: str, weight: float) -> None:
    prior = prior_with(ProcessConfig(timesteps=50, prediction="x0", null_branch=null))  # type: ignore[arg-type]
    tokens, x, n = torch.randn(3, 1, 5), torch.randn(6, 6), 20
    clock, yes = torch.full((6,), n), torch.ones(6, dtype=torch.bool)
    with torch.no_grad():
        repeated = tokens.repeat_interleave(2, dim=0)
        conditional = prior.network(x, clock, repeated)
        base = prior.network(x, clock, repeated, None, yes, yes if null == "drops_both" else None)
    expected = base + weight * (conditional - base)
    torch.testing.assert_close(prior.denoiser(Conditions(tokens), 2, weight)(x, n), expected, rtol=1e-5, atol=1e-5)


def test_the_released_null_branch_depends_on_the_timestep_alone() -> None:
    prior = prior_with(ProcessConfig(timesteps=50, prediction="x0", null_branch="drops_both"))
    null = [prior.denoiser(Conditions(torch.randn(2, 1, 5)), 1, 0.0)(torch.randn(2, 6), 20) for _ in range(2)]
    torch.testing.assert_close(null[0], null[1])
    torch.testing.assert_close(null[0][0], null[0][1])


def test_guidance_of_the_velocity_is_guidance_of_x0() -> None:
    prior = prior_with(ProcessConfig(timesteps=50, prediction="v"))
    tokens, x = torch.randn(3, 1, 5), torch.randn(3, 6)
    conditional, null, guided = (prior.denoiser(Conditions(tokens), 1, w)(x, 30) for w in (1.0, 0.0, 3.0))
    torch.testing.assert_close(guided, null + 3.0 * (conditional - null), rtol=1e-4, atol=1e-5)


def test_guidance_without_a_trained_null_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a trained null branch"):
        ProcessConfig(guidance=2.0, condition_dropout=0.0)


def test_samples_do_not_depend_on_how_many_go_through_the_network_together(monkeypatch: pytest.MonkeyPatch) -> None:
    prior = prior_with(ProcessConfig(timesteps=50))
    condition = np.random.default_rng(3).standard_normal((7, 5)).astype(np.float32)
    together = prior.sample(condition, 4, "ddpm_small", 6)
    passes: list[int] = []
    real = samplers.run

    def counted(*given: Any) -> torch.Tensor:
        found = real(*given)
        passes.append(len(found))
        return found

    monkeypatch.setattr(samplers, "run", counted)
    monkeypatch.setattr(samplers, "ROWS_AT_ONCE", 9)
    np.testing.assert_allclose(prior.sample(condition, 4, "ddpm_small", 6), together, atol=1e-5)
    assert passes == [8, 8, 8, 4]
