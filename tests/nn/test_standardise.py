"""One rule for every standardiser: arrays, networks, ragged tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.covariance import LedoitWolf

from embedprior.nn import standardise
from embedprior.nn.network import Standardised
from embedprior.nn.standardise import Standardiser, TargetSpace


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


def test_left_out_dimensions_are_zero_forward_and_their_mean_back() -> None:
    values = columns()
    scaler = Standardiser.fit(values, leave_out_constants=True)
    spread = values.astype(float).std(axis=0)
    np.testing.assert_allclose(scaler.scale, [spread[0], 0, 0, spread[3]], rtol=1e-12)
    far = np.array([[5.0, 2e4, -1.0, 1e-9]], np.float32)
    expected = (far[0, [0, 3]] - values.astype(float).mean(axis=0)[[0, 3]]) / spread[[0, 3]]
    np.testing.assert_allclose(scaler.forward(far)[0], [expected[0], 0, 0, expected[1]], rtol=1e-6)
    back = scaler.inverse(np.array([[1.0, 5.0, -5.0, 1.0]]))[0]
    np.testing.assert_allclose(back[1:3], [1e4, values[:, 2].astype(float).mean()], rtol=1e-7)


def test_whitening_leaves_out_what_the_scaler_does_and_is_that_of_the_rest() -> None:
    """By scikit-learn's estimate of the covariance, and SciPy's root of it."""
    rng = np.random.default_rng(3)
    residuals = rng.normal(size=(80, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 0.7, 0.2], [0.0, 0.0, 0.4]])
    with_constants = np.insert(residuals, [1, 3], 0.0, axis=1)  # at columns 1 and 4
    kept = [0, 2, 3]
    scaler = Standardiser(np.arange(5.0), np.array([1.0, 0.0, 1.0, 1.0, 0.0]))
    space = TargetSpace(scaler).whitened(with_constants)
    root = sqrtm(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
    expected = np.zeros((5, 5))
    expected[np.ix_(kept, kept)] = root
    np.testing.assert_allclose(space.unwhitening, expected, atol=1e-12)
    expected[np.ix_(kept, kept)] = np.linalg.inv(root)
    np.testing.assert_allclose(space.whitening, expected, atol=1e-9)
    back = space.inverse(rng.normal(size=(20, 5)).astype(np.float32))
    assert back[:, [1, 4]].tolist() == [[1.0, 4.0]] * 20
    nothing = TargetSpace(Standardiser(np.ones(2), np.zeros(2))).whitened(np.zeros((4, 2)))
    assert nothing.inverse(np.ones((3, 2), np.float32)).tolist() == [[1.0, 1.0]] * 3


@pytest.mark.parametrize("shape", [(7, 3, 4), (25, 4), (0, 4), (0, 3, 4)])
def test_the_way_back_in_parts_is_that_of_the_whole(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    space = TargetSpace(Standardiser(rng.normal(size=4), np.exp(rng.normal(size=4)))).whitened(rng.normal(size=(30, 4)))
    values = rng.normal(size=shape).astype(np.float32)
    monkeypatch.setattr(standardise, "NUMBERS_AT_ONCE", 24)
    assert space.unwhitening is not None
    whole = values.astype(float) @ space.unwhitening * space.scaler.scale + space.scaler.mean
    np.testing.assert_allclose(space.inverse(values), whole, rtol=1e-5, atol=1e-6)
    assert space.inverse(values).shape == shape
