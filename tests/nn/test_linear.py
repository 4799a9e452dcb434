"""The linear layer by oneDNN equals PyTorch's, forwards and backwards, and is used only where it pays."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import profile

from embedprior.nn.linear import Linear, wide_vectors

needs_avx512 = pytest.mark.skipif(not wide_vectors(), reason="no oneDNN, or a processor without AVX-512")


def layer_and_rows(inputs: int, outputs: int, bias: bool = True) -> tuple[Linear, torch.Tensor]:
    torch.manual_seed(3)
    return Linear(inputs, outputs, bias=bias), torch.randn(5, 7, inputs, requires_grad=True)


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_the_product_in_double_precision(bias: bool) -> None:
    layer, x = layer_and_rows(256, 384, bias)
    upstream = torch.randn(5, 7, 384)
    found = layer(x)
    found.backward(upstream)
    rows, weight, above = (t.detach().double().numpy() for t in (x, layer.weight, upstream))
    rows, above = rows.reshape(35, 256), above.reshape(35, 384)
    target = rows @ weight.T + (layer.bias.detach().double().numpy() if bias else 0.0)
    assert np.allclose(found.detach().reshape(35, 384).numpy(), target, atol=2e-5)
    expected = {"x": above @ weight, "weight": above.T @ rows} | ({"bias": above.sum(axis=0)} if bias else {})
    for name, tensor in {"x": x, **dict(layer.named_parameters())}.items():
        assert tensor.grad is not None, name
        assert np.allclose(tensor.grad.flatten().numpy(), expected[name].flatten(), atol=2e-4), name


def by_onednn(layer: Linear, x: torch.Tensor) -> bool:
    with profile() as recorded:
        layer(x)
    return any("mkldnn_linear" in event.key for event in recorded.key_averages())


@needs_avx512
def test_large_float32_layers_alone_are_computed_by_onednn() -> None:
    large, x = layer_and_rows(256, 384)
    small, few = layer_and_rows(64, 64)
    assert by_onednn(large, x)
    assert not by_onednn(small, few)
    assert not by_onednn(copy.deepcopy(large).bfloat16(), x.bfloat16())


def test_autocast_and_other_types_go_the_usual_way() -> None:
    layer, x = layer_and_rows(256, 384)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    plain = nn.Linear(256, 384).double()
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(copy.deepcopy(layer).double()(x.double()), plain(x.double()))
    assert layer(x[:0]).shape == (0, 7, 384)
