from __future__ import annotations

import pytest
import torch

from embedprior.prior.config import SIZES, NetworkConfig
from embedprior.prior.network import PriorNetwork, time_features

SMALL = NetworkConfig(preset="tiny", dim=16, depth=3, heads=2, head_dim=8, inner=24).size


def network(**extra: int) -> PriorNetwork:
    torch.manual_seed(0)
    made = PriorNetwork(SMALL, condition_dim=5, target_dim=7, null_target=True, **extra).eval()
    torch.nn.init.normal_(made.out.weight, std=0.1)
    return made


def test_presets_have_their_published_sizes() -> None:
    counts = {}
    for name in ("prior-49m", "paper-text"):
        with torch.device("meta"):
            counts[name] = PriorNetwork(SIZES[name], 512, 512).parameter_count()
    assert 48e6 < counts["prior-49m"] < 50e6
    assert 1.25e9 < counts["paper-text"] < 1.45e9


def test_the_parts_are_all_there_is() -> None:
    made = network(condition_tokens=3)
    parts = made.parameter_parts()
    assert sum(parts.values()) == made.parameter_count()
    assert parts["condition"] == 5 * 16 + 16
    # Three slots, the null condition, the null target, the query.
    assert parts["learned tokens"] == 6 * 16


def test_a_size_set_in_the_config_replaces_the_presets() -> None:
    assert NetworkConfig(preset="prior-49m", depth=2).size.depth == 2
    assert NetworkConfig(preset="prior-49m", depth=2).size.dim == 512


def test_encoded_condition_gives_the_same_prediction_as_one_pass() -> None:
    made = network(condition_tokens=3)
    condition, x, n = torch.randn(4, 3, 5), torch.randn(4, 7), torch.tensor([1, 30, 500, 1000])
    visible = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 1]]).bool()
    drop = torch.tensor([True, False, True, False])
    for mask in (None, visible):
        whole = made(x, n, condition, mask, drop, drop)
        stepped = made.step(made.encode(condition, mask, drop), x, n, drop)
        torch.testing.assert_close(stepped, whole, rtol=1e-5, atol=1e-5)


def test_repeated_prefix_rows_are_the_samples_of_one_case() -> None:
    made = network()
    condition, x = torch.randn(2, 1, 5), torch.randn(6, 7)
    n = torch.full((6,), 10)
    prefix = made.encode(condition).repeat(3)
    torch.testing.assert_close(made.step(prefix, x, n), made(x, n, condition.repeat_interleave(3, dim=0)))
    torch.testing.assert_close(made.step(prefix.rows(3, 6), x[3:], n[3:]), made.step(prefix, x, n)[3:])


@pytest.mark.parametrize("padded", [False, True])
def test_samples_that_share_their_timestep_get_the_same_prediction(padded: bool) -> None:
    made = network(condition_tokens=3)
    condition, x, n = torch.randn(2, 3, 5), torch.randn(6, 7), torch.tensor([300])
    visible = torch.tensor([[1, 1, 0], [0, 1, 0]]).bool() if padded else None
    shared = made.step(made.at_time(made.encode(condition, visible), n).repeat(3), x, None)
    repeated = None if visible is None else visible.repeat_interleave(3, dim=0)
    whole = made(x, n.expand(6), condition.repeat_interleave(3, dim=0), repeated)
    torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-6)


def test_appended_padding_changes_nothing() -> None:
    made = network(condition_tokens=6)
    condition, x, n = torch.randn(4, 2, 5), torch.randn(4, 7), torch.tensor([1, 30, 500, 1000])
    plain = made(x, n, condition)
    padded = torch.cat([condition, 1e3 * torch.randn(4, 4, 5)], dim=1)
    visible = torch.tensor([True, True, False, False, False, False]).expand(4, 6)
    torch.testing.assert_close(made(x, n, padded, visible), plain, rtol=0, atol=1e-6)
    stepped = made.step(made.encode(padded, visible), x, n)
    torch.testing.assert_close(stepped, plain, rtol=0, atol=1e-6)


def test_every_input_reaches_the_prediction() -> None:
    made = network(condition_tokens=2)
    condition, x, n = torch.randn(1, 2, 5), torch.randn(1, 7), torch.tensor([400])
    base = made(x, n, condition)
    for changed in (
        made(x + 1, n, condition),
        made(x, n + 1, condition),
        made(x, n, condition + 1),
        made(x, n, condition.flip(1)),
    ):
        assert (changed - base).abs().max() > 1e-4


def test_dropped_tokens_are_forgotten() -> None:
    made = network()
    yes, n = torch.tensor([True]), torch.tensor([400])
    x, condition = torch.randn(2, 1, 7), torch.randn(2, 1, 1, 5)
    assert torch.equal(made(x[0], n, condition[0], None, yes), made(x[0], n, condition[1], None, yes))
    both = [made(x[i], n, condition[i], None, yes, yes) for i in (0, 1)]
    assert torch.equal(*both)
    assert not torch.equal(both[0], made(x[0], n, condition[0], None, yes))


def test_time_features_span_the_same_clock_for_any_number_of_timesteps() -> None:
    torch.testing.assert_close(time_features(torch.tensor([50]), 16, 100), time_features(torch.tensor([500]), 16, 1000))


@pytest.mark.parametrize("dim", [16, 17])
def test_time_features_tell_all_timesteps_apart(dim: int) -> None:
    features = time_features(torch.arange(1, 1001), dim, 1000)
    assert features.shape == (1000, dim)
    assert torch.cdist(features, features).fill_diagonal_(1.0).min() > 1e-3
