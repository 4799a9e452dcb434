"""The pilot's networks have the published sizes, and its modules do what their formulas say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from embedprior.students.pilot_networks import (
    STUDENT_WIDTHS,
    TEACHER_WIDTHS,
    Encoder,
    FusionNetwork,
    GatedAttention,
    MapNetwork,
    PositionWeighting,
    Pyramid,
    two_class_logit,
)

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("network", "published"),
    [
        (MapNetwork(TEACHER_WIDTHS, dpe="published", mhra=True), 719_619),
        (MapNetwork(TEACHER_WIDTHS), 389_890),
        (MapNetwork(STUDENT_WIDTHS, dfpn=True), 566_530),
        (MapNetwork(STUDENT_WIDTHS), 93_954),
        (FusionNetwork(), 220_546),
    ],
    ids=["teacher with DPE and MHRA", "teacher", "student with DFPN", "student", "late fusion"],
)
def test_parameter_counts_are_the_published_ones(network: nn.Module, published: int) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == published


def test_maps_have_the_published_shapes_and_grey_values_run_from_0_to_1() -> None:
    pictures = torch.randint(0, 256, (2, 128, 128), dtype=torch.uint8)
    assert MapNetwork(TEACHER_WIDTHS)(pictures).maps.shape == (2, 256, 8, 8)
    assert MapNetwork(STUDENT_WIDTHS, dfpn=True)(pictures).maps.shape == (2, 128, 16, 16)
    encoder = Encoder((4,)).eval()
    conv = encoder.blocks[0][0]  # type: ignore[index]
    assert isinstance(conv, nn.Conv2d)
    expected = F.conv2d(torch.stack([pictures.float() / 255] * 3, dim=1), conv.weight, conv.bias, padding=1)
    expected = F.max_pool2d(expected.div((1 + 1e-5) ** 0.5).relu(), 2)  # batch norm as it begins: mean 0, variance 1
    torch.testing.assert_close(encoder(pictures)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [4, 8])
def test_dpe_as_published_shrinks_a_map_by_its_number_of_places_and_rescaling_undoes_it(size: int) -> None:
    torch.manual_seed(0)
    maps = torch.randn(64, 16, size, size)
    published, rescaled = PositionWeighting(16, False), PositionWeighting(16, True)
    rescaled.load_state_dict(published.state_dict())
    with torch.no_grad():
        for weighting in (published, rescaled):
            weighting.score.weight.mul_(0.1)  # nearly even weights: the shrinkage alone
        shrunk, kept = published(maps), rescaled(maps)
    rms = maps.square().mean().sqrt()
    assert float(rms / shrunk.square().mean().sqrt()) == pytest.approx(size * size, rel=0.05)
    assert float(kept.square().mean().sqrt() / rms) == pytest.approx(1.0, abs=0.05)
    w = np.exp(s := published.score(maps)[3, 0].detach().double().numpy())
    np.testing.assert_allclose(shrunk[3].numpy(), maps[3].numpy() * (w / w.sum()), rtol=1e-4, atol=1e-6)
    assert s.shape == (size, size)


def test_dpe_as_published_leaves_a_teacher_its_bias() -> None:
    """A head of the same weights: its logits spread 64 times less over pictures."""
    torch.manual_seed(0)
    plain, published, rescaled = (
        MapNetwork(TEACHER_WIDTHS, dpe=dpe).eval() for dpe in ("none", "published", "rescaled")
    )
    for other in (published, rescaled):
        missing, _ = other.load_state_dict(plain.state_dict(), strict=False)
        assert missing == ["dpe.score.weight", "dpe.score.bias"]
    pictures = torch.randint(0, 256, (8, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        features = [network(pictures).features.square().mean().sqrt() for network in (plain, published, rescaled)]
    assert float(features[0] / features[1]) == pytest.approx(64, rel=0.2)
    assert float(features[2] / features[0]) == pytest.approx(1, rel=0.2)


def test_mhra_gates_what_the_places_gather_and_adds_it() -> None:
    torch.manual_seed(0)
    module, maps = GatedAttention(8), torch.randn(2, 8, 3, 4)
    tokens = maps.flatten(2).transpose(1, 2)
    normed = F.layer_norm(tokens, (8,), module.norm.weight, module.norm.bias)
    projected = normed @ module.attention.in_proj_weight.T + module.attention.in_proj_bias
    q, k, v = (part.reshape(2, 12, 4, 2).transpose(1, 2) for part in projected.chunk(3, dim=2))
    mixed = ((q @ k.transpose(2, 3)) / 2**0.5).softmax(dim=3) @ v
    gathered = module.attention.out_proj(mixed.transpose(1, 2).reshape(2, 12, 8))
    expected = tokens + gathered * (normed @ module.gate.weight.T + module.gate.bias).sigmoid()
    torch.testing.assert_close(module(maps), expected.transpose(1, 2).reshape(2, 8, 3, 4), atol=1e-5, rtol=1e-4)


def test_dfpn_goes_down_from_the_deepest_level_and_averages_all() -> None:
    torch.manual_seed(0)
    module = Pyramid((2, 3, 4)).eval()
    levels = [torch.randn(2, 2, 8, 8), torch.randn(2, 3, 4, 4), torch.randn(2, 4, 2, 2)]
    third = module.smooth[2](module.lateral[2](levels[2]))
    second = module.smooth[1](module.lateral[1](levels[1]) + third.repeat_interleave(2, 2).repeat_interleave(2, 3))
    first = module.smooth[0](module.lateral[0](levels[0]) + second.repeat_interleave(2, 2).repeat_interleave(2, 3))
    expected = (first.mean((2, 3)) + second.mean((2, 3)) + third.mean((2, 3))) / 3
    torch.testing.assert_close(module(levels), expected)


def test_the_logit_of_two_outputs_has_their_cross_entropy_at_any_temperature() -> None:
    outputs, target = torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 0])
    for temperature in (1.0, 4.0):
        ours = F.binary_cross_entropy_with_logits(two_class_logit(outputs) / temperature, target.float())
        torch.testing.assert_close(ours, F.cross_entropy(outputs / temperature, target))
