"""One rule for every standardiser: arrays, networks, ragged tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedprior.nn.network import Standardised
from embedprior.nn.standardise import Standardiser


def columns(count: int = 50) -> np.ndarray:
    """Ordinary, constant and large, constant up to float32 rounding, and of a tiny unit."""
    rng = np.random.default_rng(0)
    rounded = np.where(np.arange(count) % 2, np.float32(1234.5), np.nextafter(np.float32(1234.5), np.float32(2e3)))
    return np.stack(
        [rng.normal(3, 2, count), np.full(count, 1e4), rounded, 1e-9 * rng.normal(1, 1, count)], axis=1
    ).astype(np.float32)


def test_constant_columns_keep_spread_one_and_small_units_do_not() -> None:
    values = columns()
    expected = [values[:, 0].astype(float).std(), 1, 1, values[:, 3].astype(float).std()]
    np.testing.assert_allclose(Standardiser.fit(values).scale, expected, rtol=1e-12)
    layer = Standardised(4)
    layer.fit_scale(torch.from_numpy(values))
    np.testing.assert_allclose(layer.scale.numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(layer.mean.numpy(), values.astype(float).mean(0), rtol=1e-5)
    standard = layer.standardise(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(standard[:, [0, 3]].std(0), 1, rtol=1e-5)
    assert np.abs(standard[:, 1:3]).max() < 1e-2


def test_a_case_far_from_a_nearly_constant_dimension_is_not_blown_up() -> None:
    """1e-3 with a spread of 1e-9: ten units in the last place of float32."""
    train = (1e-3 + 1e-9 * np.random.default_rng(0).normal(size=(30, 1))).astype(np.float32)
    other = np.full((1, 1), 2e-3, np.float32)
    assert len(np.unique(train)) > 5
    assert abs(float(Standardiser.fit(train).forward(other)[0, 0])) < 0.01
    layer = Standardised(1)
    layer.fit_scale(torch.from_numpy(train))
    assert abs(float(layer.standardise(torch.from_numpy(other))[0, 0])) < 0.01
    wide = (1e-3 + 1e-7 * np.random.default_rng(0).normal(size=(30, 1))).astype(np.float32)
    assert float(np.std(Standardiser.fit(wide).forward(wide))) == pytest.approx(1, rel=1e-3)


def test_several_parts_are_measured_as_one() -> None:
    values = columns()
    parts, whole = Standardiser.fit([values[:7], values[7:20], values[20:]]), Standardiser.fit(values)
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(parts.scale, whole.scale, rtol=1e-12)


def test_inverse_undoes_forward() -> None:
    values = columns()
    scaler = Standardiser.fit(values)
    np.testing.assert_allclose(scaler.inverse(scaler.forward(values)), values, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_layer_measures_one_number_or_one_per_dimension(shape: tuple[int, ...]) -> None:
    values = torch.from_numpy(np.random.default_rng(1).normal(5, 3, (40, *shape)))
    layer = Standardised(*shape)
    layer.fit_scale(values)
    np.testing.assert_allclose(layer.standardise(values).numpy().std(0), np.ones(shape), rtol=1e-5)
