"""Line integrals to grey values: each setting does what it says."""

from __future__ import annotations

import math

import pytest
import torch

from embedprior.imaging.drr import Appearance
from embedprior.imaging.drr.physics import gaussian_blur, to_radiograph

PLAIN = {"window": (0.0, 4.0)}


def _step() -> torch.Tensor:
    image = torch.full((1, 64, 64), 1.0, dtype=torch.float64)
    image[:, :, 32:] = 3.0
    return image


def test_open_field_beside_the_patient_does_not_set_the_exposure() -> None:
    patient = torch.linspace(1, 3, 60, dtype=torch.float64).expand(60, 60)
    ends = patient.clone()
    ends[:20] = 0.0
    made = Appearance(window=None, exposure_quantiles=(0.0, 1.0))
    whole, cut = (to_radiograph(image[None], made, 1.0)[0] for image in (patient, ends))
    assert torch.allclose(whole[20:], cut[20:])


def test_levels_are_the_greys_of_the_window_ends() -> None:
    ramp = torch.linspace(0, 4, 101, dtype=torch.float64).expand(1, 4, 101)
    shown = to_radiograph(ramp, Appearance(levels=(0.2, 0.7), **PLAIN), 1.0)[0, 0]
    assert float(shown[0]) == pytest.approx(0.2)
    assert float(shown[50]) == pytest.approx(0.45)
    assert float(shown[-1]) == pytest.approx(0.7)


def test_plain_appearance_is_the_windowed_line_integral() -> None:
    assert torch.allclose(to_radiograph(_step(), Appearance(**PLAIN), 1.0), _step() / 4)


def test_polarity_inverts() -> None:
    white = to_radiograph(_step(), Appearance(**PLAIN), 1.0)
    black = to_radiograph(_step(), Appearance(polarity="bone_black", **PLAIN), 1.0)
    assert torch.allclose(white + black, torch.ones_like(white))


def test_scatter_lowers_contrast_by_the_closed_form_of_a_uniform_field() -> None:
    uniform = torch.full((1, 32, 32), 2.0, dtype=torch.float64)
    grey = to_radiograph(uniform, Appearance(scatter_fraction=0.4, scatter_spread_mm=5.0, **PLAIN), 1.0)
    assert torch.allclose(grey * 4, torch.full_like(grey, 2.0 + math.log(1 - 0.4)))
    step = to_radiograph(_step(), Appearance(scatter_fraction=0.4, scatter_spread_mm=200.0, **PLAIN), 1.0)
    assert float(step[0, 32, 60] - step[0, 32, 4]) < 0.35 < 0.5


def test_noise_is_poisson_at_the_dose_and_seeded() -> None:
    uniform = torch.full((1, 200, 200), 1.0, dtype=torch.float64)
    made = Appearance(photons_per_mm2=3000.0, **PLAIN)
    one, again, other = (to_radiograph(uniform, made, 0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    quanta = 3000.0 * 0.5**2 * math.exp(-1.0)
    # the log of a Poisson count of mean q has standard deviation close to 1/sqrt(q); 40,000 pixels pin it to 1 %
    assert float(one.std() * 4) == pytest.approx(1 / math.sqrt(quanta), rel=0.02)


def test_halving_the_dose_raises_the_noise() -> None:
    uniform = torch.full((1, 100, 100), 1.0)
    full, half = (to_radiograph(uniform, Appearance(photons_per_mm2=p, **PLAIN), 1.0).std() for p in (1000.0, 500.0))
    assert float(half / full) == pytest.approx(math.sqrt(2), rel=0.05)


def test_blur_keeps_the_mean_and_has_the_stated_width() -> None:
    impulse = torch.zeros(1, 65, 65, dtype=torch.float64)
    impulse[0, 32, 32] = 1.0
    blurred = gaussian_blur(impulse, 3.0)[0]
    offsets = torch.arange(65, dtype=torch.float64) - 32
    assert float(blurred.sum()) == pytest.approx(1.0)
    assert float((blurred.sum(0) * offsets**2).sum()) == pytest.approx(9.0, rel=0.05)
    spread = to_radiograph(_step(), Appearance(blur_mm=2.0, **PLAIN), 1.0)
    assert float(spread[0, 32, 31]) > float(_step()[0, 32, 31]) / 4


def test_automatic_exposure_fills_the_range_whatever_the_patient() -> None:
    ramp = torch.linspace(1, 3, 60, dtype=torch.float64).expand(1, 60, 60)
    made = Appearance(window=None, exposure_quantiles=(0.0, 1.0))
    assert torch.allclose(to_radiograph(ramp, made, 1.0), to_radiograph(ramp * 2 + 1, made, 1.0))
    assert float(to_radiograph(ramp, made, 1.0)[:, 10:50, 10:50].amin()) == 0.0


def test_tone_curve_settings_bend_the_middle_and_keep_the_ends() -> None:
    ramp = torch.linspace(0, 4, 101, dtype=torch.float64).expand(1, 4, 101)
    bright = to_radiograph(ramp, Appearance(gamma=0.5, **PLAIN), 1.0)[0, 0]
    steep = to_radiograph(ramp, Appearance(contrast=4.0, **PLAIN), 1.0)[0, 0]
    for curve in (bright, steep):
        assert float(curve[0]) == pytest.approx(0.0, abs=1e-9)
        assert float(curve[-1]) == pytest.approx(1.0)
    assert float(bright[25]) == pytest.approx(0.5)
    assert float(steep[60] - steep[40]) > 0.3
