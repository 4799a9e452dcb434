"""The physics of the image: Hounsfield units → attenuation, and line integrals → exposure → displayed grey values.

Sources: Hubbell & Seltzer, NIST Standard Reference Database 126 (mass attenuation, liquid water and ICRU-44 cortical
bone); ICRU Report 44 (densities). The bilinear mapping is the one used for CT attenuation correction: mixtures of air
and water below 0 HU, of water and cortical bone above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Float

from embedprior.errors import BadInput
from embedprior.imaging.drr.config import CT_EFFECTIVE_KEV, ENERGIES_KEV, Appearance, DrrConfig
from embedprior.imaging.volume import Volume, canonical

if TYPE_CHECKING:
    from torch import Tensor

WATER_CM2_PER_G = (0.2683, 0.2269, 0.2059, 0.1837, 0.1707)
CORTICAL_BONE_CM2_PER_G = (0.6655, 0.4242, 0.3148, 0.2229, 0.1855)
WATER_G_PER_CM3 = 1.0
CORTICAL_BONE_G_PER_CM3 = 1.92

Values = TypeVar("Values", bound=Any)


def attenuation_per_mm(material: str, energy_kev: float) -> float:
    """Linear attenuation of "water" or "bone" (ICRU-44 cortical) in mm⁻¹, log-log interpolated between table rows.

    Raises:
        BadInput: the energy lies outside the table (40 to 100 keV).
    """
    if not ENERGIES_KEV[0] <= energy_kev <= ENERGIES_KEV[-1]:
        raise BadInput(f"energy_kev={energy_kev} is outside the table: {ENERGIES_KEV[0]} to {ENERGIES_KEV[-1]} keV.")
    table, density = {
        "water": (WATER_CM2_PER_G, WATER_G_PER_CM3),
        "bone": (CORTICAL_BONE_CM2_PER_G, CORTICAL_BONE_G_PER_CM3),
    }[material]
    upper = next(i for i in range(1, len(ENERGIES_KEV)) if energy_kev <= ENERGIES_KEV[i])
    low, high = ENERGIES_KEV[upper - 1], ENERGIES_KEV[upper]
    weight = math.log(energy_kev / low) / math.log(high / low)
    per_cm = density * math.exp((1 - weight) * math.log(table[upper - 1]) + weight * math.log(table[upper]))
    return per_cm / 10.0


def hu_to_mu(hu: Values, energy_kev: float = CT_EFFECTIVE_KEV) -> Values:
    """Linear attenuation in mm⁻¹ of Hounsfield units (a float torch tensor or numpy array of any shape).

    At the CT's own effective energy (the default) this is the definition of the Hounsfield unit,
    μ = μ_water (1 + HU/1000); at another beam energy bone and water scale by their own tables. Values below
    −1000 HU (padding) count as air.

    Raises:
        BadInput: the energy lies outside the table (40 to 100 keV).
    """
    water = attenuation_per_mm("water", energy_kev)
    bone = attenuation_per_mm("bone", energy_kev)
    bone_hu = 1000.0 * (
        attenuation_per_mm("bone", CT_EFFECTIVE_KEV) / attenuation_per_mm("water", CT_EFFECTIVE_KEV) - 1.0
    )
    below, above = hu.clip(-1000.0, 0.0), hu.clip(0.0, None)
    mu: Values = water + below * (water / 1000.0) + above * ((bone - water) / bone_hu)
    return mu


OPEN_FIELD = 0.3
"""Less attenuation than 16 mm of water: nothing of a chest."""


def to_radiograph(line_integrals: Tensor, appearance: Appearance, pitch_mm: float, seed: int = 0) -> Tensor:
    """Displayed grey values in [0, 1], (P, H, W), of line integrals (P, H, W).

    Primary exposure is exp(−L) (Beer and Lambert); scatter is the primary spread by a Gaussian, in the ratio
    SF/(1 − SF); the detector counts Poisson(photons · pitch²) quanta, and the tone curve acts on the negative log of
    the exposure.

    Args:
        line_integrals: from a renderer, dimensionless.
        appearance: the making.
        pitch_mm: detector pixel size.
        seed: of the quantum noise; unused when the appearance draws none.
    """
    return tone_curve(expose(line_integrals, appearance, pitch_mm, seed), appearance)


def expose(line_integrals: Tensor, appearance: Appearance, pitch_mm: float, seed: int = 0) -> Tensor:
    """Negative log exposure at the detector, (P, H, W): what the tone curve acts on. See `to_radiograph`."""
    import torch

    exposure = torch.exp(-line_integrals)
    if appearance.scatter_fraction > 0:
        ratio = appearance.scatter_fraction / (1 - appearance.scatter_fraction)
        exposure = exposure + ratio * gaussian_blur(exposure, appearance.scatter_spread_mm / pitch_mm)
    if appearance.blur_mm > 0:
        exposure = gaussian_blur(exposure, appearance.blur_mm / pitch_mm)
    quanta_floor = 1e-6
    if appearance.photons_per_mm2 is not None:
        per_pixel = appearance.photons_per_mm2 * pitch_mm**2
        generator = torch.Generator(device=exposure.device).manual_seed(seed)
        exposure = torch.poisson(exposure * per_pixel, generator=generator) / per_pixel
        quanta_floor = 0.5 / per_pixel
    return -torch.log(exposure.clamp_min(quanta_floor))


def tone_curve(attenuation: Tensor, appearance: Appearance) -> Tensor:
    """Grey values in [0, 1] of negative log exposure, (P, H, W), each image by itself."""
    import torch

    if appearance.window is None:
        shares = torch.tensor(appearance.exposure_quantiles, dtype=attenuation.dtype, device=attenuation.device)
        ends = torch.stack([torch.quantile(behind_patient(one), shares) for one in attenuation], dim=1)
        low, high = ends[:, :, None, None]
    else:
        low, high = (torch.as_tensor(edge, dtype=attenuation.dtype) for edge in appearance.window)
    exposed: Tensor = ((attenuation - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return tone(exposed, appearance)


Grey = TypeVar("Grey", "Tensor", "np.ndarray[Any, Any]")


def tone(exposed: Grey, appearance: Appearance) -> Grey:
    """Displayed grey values of windowed attenuation in [0, 1], any shape: gamma, S-curve, levels, polarity."""
    import torch

    grey = exposed**appearance.gamma
    if appearance.contrast > 0:
        hyperbolic = torch.tanh if isinstance(grey, torch.Tensor) else np.tanh
        end = math.tanh(appearance.contrast / 2)
        grey = 0.5 + hyperbolic(appearance.contrast * (grey - 0.5)) / (2 * end)
    black, white = appearance.levels
    grey = black + (white - black) * grey
    return 1 - grey if appearance.polarity == "bone_black" else grey


def behind_patient(attenuation: Tensor) -> Tensor:
    """Values (N,) of one image (H, W) that set its exposure: the middle, without the open field beside the patient.

    Where the scan ends, so does the patient of a DRR; empty rows would otherwise take half of the grey scale.
    """
    rows, columns = (slice(side // 6, side - side // 6) for side in attenuation.shape)
    middle = attenuation[rows, columns].flatten()
    inside = middle[middle > OPEN_FIELD]
    return inside if len(inside) >= 0.05 * len(middle) else middle


def gaussian_blur(images: Tensor, sigma_px: float) -> Tensor:
    """(P, H, W) blurred by a separable Gaussian cut off at 3 sigma; beyond the border the edge pixel goes on."""
    if sigma_px <= 0:
        return images
    import torch
    from torch.nn.functional import conv2d, pad

    radius = max(1, min(math.ceil(3 * sigma_px), *(2 * side for side in images.shape[-2:])))
    taps = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (taps / sigma_px) ** 2)
    kernel = kernel / kernel.sum()
    framed = pad(images[:, None], (radius, radius, radius, radius), mode="replicate")
    across = conv2d(framed, kernel[None, None, None, :])
    return conv2d(across, kernel[None, None, :, None])[:, 0]


def extend_volume(volume: Volume, edge_padding_mm: float) -> Volume:
    """Return the volume with its first and last slice towards head and feet repeated for this many mm."""
    if edge_padding_mm <= 0:
        return volume
    upright = canonical(volume)
    count = int(np.ceil(edge_padding_mm / upright.spacing_mm[2]))
    origin = (upright.affine @ np.array([0.0, 0.0, -count, 1.0]))[:3]
    hu = np.pad(upright.hu, ((count, count), (0, 0), (0, 0)), mode="edge")
    x, y, z = (float(v) for v in origin)
    return replace(upright, hu=hu, origin_mm=(x, y, z))


def attenuation(volume: Volume, energy_kev: float) -> Tensor:
    """Return the volume's attenuation in mm⁻¹, (z, y, x) float32: twice the int16 volume's memory, and a slice more.

    Slice by slice, so that what is computed in between stays in the processor's cache; the same numbers as
    ``hu_to_mu`` of the whole.

    Example:
        >>> water = Volume(np.zeros((8, 4, 4), np.int16), (1.0, 1.0, 1.0))
        >>> round(float(attenuation(water, 70.0)[0, 0, 0]), 5)
        0.01937
    """
    import torch

    mu = torch.empty(volume.shape, dtype=torch.float32)
    for plane, hu in zip(mu, volume.hu, strict=True):
        plane.copy_(hu_to_mu(torch.from_numpy(np.ascontiguousarray(hu)).float(), energy_kev))
    return mu


def to_display_image(
    integrals: Tensor, config: DrrConfig, noise_seeds: Sequence[int]
) -> Float[np.ndarray, "poses size size"]:
    """Return grey values in [0, 1] of line integrals; image k takes its quantum noise from seed k."""
    pitch = config.geometry.pitch
    images = [
        np.asarray(to_radiograph(one[None], config.appearance, pitch, seed))
        for one, seed in zip(integrals, noise_seeds, strict=True)
    ]
    return np.concatenate(images)
