"""The physics of a DRR: Hounsfield units → attenuation → perspective line integrals → exposure → displayed grey values.

Attenuation: Hubbell & Seltzer, NIST Standard Reference Database 126 (mass attenuation, liquid water and ICRU-44
cortical bone); ICRU Report 44 (densities). The bilinear mapping is the one used for CT attenuation correction: mixtures
of air and water below 0 HU, of water and cortical bone above.

Line integrals sweep planes of voxels, in plain torch, and are differentiable: along each ray the volume is read once
per plane perpendicular to the voxel axis the beam follows best, bilinearly within the plane, and the readings are
summed times the ray's length between planes (Joseph, "An improved algorithm for reprojecting rays through pixel
images", IEEE TMI 1(3), 1982). A voxel beyond the border counts as zero, so the outermost planes count in full.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag, grid_sample

from embedprior.errors import BadInput
from embedprior.imaging.drr.config import (
    CT_EFFECTIVE_KEV,
    ENERGIES_KEV,
    Appearance,
    DrrConfig,
    Geometry,
    Poses,
    identity_poses,
    versioned,
    volume_centre,
)
from embedprior.imaging.volume import Volume, canonical

PLANES_PER_BLOCK = 16
PIXELS_PER_BLOCK = 4096
"""A block's sampling grid (16 planes, 4096 pixels: 512 KiB) stays in a CPU's second-level cache; a GPU takes it all."""
SEPARABLE_VOXELS = 1e-4


def rotation(angles_deg: Tensor) -> Tensor:
    """(P, 3) degrees about x, y, z → (P, 3, 3) matrices Rz Ry Rx."""
    cos, sin = torch.cos(torch.deg2rad(angles_deg)), torch.sin(torch.deg2rad(angles_deg))
    one, zero = torch.ones_like(cos[:, 0]), torch.zeros_like(cos[:, 0])

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, dim=-1).reshape(-1, 3, 3)

    about_x = matrix(one, zero, zero, zero, cos[:, 0], -sin[:, 0], zero, sin[:, 0], cos[:, 0])
    about_y = matrix(cos[:, 1], zero, sin[:, 1], zero, one, zero, -sin[:, 1], zero, cos[:, 1])
    about_z = matrix(cos[:, 2], -sin[:, 2], zero, sin[:, 2], cos[:, 2], zero, zero, zero, one)
    return about_z @ about_y @ about_x


def camera_to_world(geometry: Geometry, poses: Poses, isocentre: Tensor) -> Tensor:
    """(P, 3, 4) float64 maps [R | t] from camera to world mm.

    The camera's origin is the source; its axes are image column, image row and beam. R has determinant −1 for PA:
    a radiograph is read facing the patient, whichever side the tube stood on.
    """
    axes = torch.as_tensor(geometry.axes(), device=isocentre.device)
    turned = rotation(poses.angles_deg.to(isocentre)) @ axes
    source = isocentre + poses.shift_mm.to(isocentre) - geometry.source_to_isocentre * turned[:, :, 2]
    return torch.cat([turned, source[:, :, None]], dim=2)


@dataclass(frozen=True)
class _Sweep:
    """One pose in voxel terms: where the rays cross plane `middle`, their slopes, and mm travelled per plane."""

    axis: int
    middle: float
    start: Tensor  # (2, H, W) crossing of the middle plane along the two in-plane axes
    slope: Tensor  # (2, H, W) in-plane voxels per plane
    step_mm: Tensor  # (H, W)


def _sweep(
    geometry: Geometry, camera: Tensor, affine: Tensor, shape_xyz: tuple[int, int, int], dtype: torch.dtype
) -> _Sweep:
    """Ray maps in float64, re-centred on the middle plane so that float32 keeps sub-voxel accuracy, then cast."""
    height, width, pitch = geometry.height, geometry.width, geometry.pitch
    columns = (torch.arange(width, dtype=torch.float64, device=affine.device) - (width - 1) / 2) * pitch
    rows = (torch.arange(height, dtype=torch.float64, device=affine.device) - (height - 1) / 2) * pitch
    beam = camera[:, 2] * geometry.source_to_detector
    ray = camera[:, 0, None, None] * columns + camera[:, 1, None, None] * rows[:, None] + beam[:, None, None]

    to_voxel = torch.linalg.inv(affine[:3, :3])
    source = to_voxel @ (camera[:, 3] - affine[:3, 3])
    direction = torch.einsum("ij,jhw->ihw", to_voxel, ray)
    index_axes = affine[:3, :3] / affine[:3, :3].norm(dim=0)
    axis = int((index_axes.T @ camera[:, 2]).abs().argmax())
    # the in-plane axis that is contiguous in memory comes last, so that neighbouring rays read neighbouring voxels
    first, second = (b for b in (2, 1, 0) if b != axis)
    if not bool((direction[axis].sign() == direction[axis, 0, 0].sign()).all()) or bool((direction[axis] == 0).any()):
        raise BadInput("Some rays run along the voxel planes they should cross; narrow the field or turn the volume.")

    slope = torch.stack([direction[first], direction[second]]) / direction[axis]
    middle = (shape_xyz[axis] - 1) / 2
    start = torch.stack([source[first], source[second]])[:, None, None] + (middle - source[axis]) * slope
    step_mm = ray.norm(dim=0) / direction[axis].abs()
    return _Sweep(axis, middle, start.to(dtype), slope.to(dtype), step_mm.to(dtype))


def _project(planes: Tensor, sweep: _Sweep, whole: bool) -> Tensor:
    """Sum over planes (N, B, C) of the bilinear reading at each ray's crossing → (H, W).

    A block of planes meets a strip of detector rows in a band of voxel rows. The band is copied before it is read:
    planes lie a power of two apart in most volumes, so that their rows would push each other out of the cache.
    """
    count, first, second = planes.shape
    height, width = sweep.step_mm.shape
    row_step, plane_step = (height, count) if whole else (max(1, PIXELS_PER_BLOCK // width), PLANES_PER_BLOCK)
    strips = [slice(top, min(top + row_step, height)) for top in range(0, height, row_step)]
    nears = list(range(0, count, plane_step))
    offsets = torch.arange(count, dtype=planes.dtype, device=planes.device) - sweep.middle
    bands, rows, seen = _bands(sweep, strips, [(near, min(near + plane_step, count) - 1) for near in nears], first)
    size = torch.tensor([second, rows], dtype=planes.dtype, device=planes.device)
    # grid_sample wants (column, row) in [−1, 1] with half-voxel borders: (2p + 1)/n − 1
    start = (2 * sweep.start.flip(0).permute(1, 2, 0) / size).contiguous()
    slope = (2 * sweep.slope.flip(0).permute(1, 2, 0) / size).contiguous()
    totals = [torch.zeros_like(start[strip, :, 0]) for strip in strips]
    for block, near in enumerate(nears):
        depth = offsets[near : near + plane_step, None, None, None]
        for number, strip in enumerate(strips):
            if not seen[block][number]:
                continue
            top = bands[block][number]
            band = planes[near : near + plane_step, None, top : top + rows].contiguous()
            origin = torch.tensor([1 / second - 1, (1 - 2 * top) / rows - 1], dtype=size.dtype, device=size.device)
            grid = torch.addcmul(start[strip] + origin, depth, slope[strip])
            read = grid_sample(band, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            totals[number] = totals[number] + read.sum(dim=(0, 1))
    return torch.cat(totals)


def _bands(
    sweep: _Sweep, strips: list[slice], blocks: list[tuple[int, int]], count: int
) -> tuple[list[list[int]], int, list[list[bool]]]:
    """Return, for every block and strip, the first voxel row it reads; how many rows hold any one's readings; and
    whether it reads any. A crossing moves along its plane without turning back, so a strip's corners bound it."""
    edges = torch.tensor([[strip.start, strip.stop - 1] for strip in strips])
    corner = sweep.start[0].detach()[edges][:, :, [0, -1]].flatten(1).double()
    slope = sweep.slope[0].detach()[edges][:, :, [0, -1]].flatten(1).double()
    depths = (torch.tensor(blocks, dtype=torch.float64) - sweep.middle).to(corner.device)
    crossings = (corner[None, :, None] + depths[:, None, :, None] * slope[None, :, None]).flatten(2)
    # one voxel more on each side: the maps were rounded to the volume's precision
    low, high = crossings.amin(-1).floor() - 1, crossings.amax(-1).floor() + 2
    rows = int(min(count, float((high - low).max()) + 1))
    bands = low.clamp(0, count - rows).long().tolist()
    return bands, rows, ((high >= 0) & (low <= count - 1)).tolist()


def _wants_gradient(volume: Tensor, sweep: _Sweep) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in (volume, sweep.start, sweep.slope, sweep.step_mm))


def _is_separable(sweep: _Sweep, count: int) -> bool:
    """Whether detector rows cross every plane along one voxel axis and columns along the other, to 1e-4 voxels: true of
    straight poses and volumes that lie straight."""
    for start, slope, across in zip(sweep.start, sweep.slope, (1, 0), strict=True):
        aside = (start - start.narrow(across, 0, 1)).abs() + count / 2 * (slope - slope.narrow(across, 0, 1)).abs()
        if float(aside.max()) >= SEPARABLE_VOXELS:
            return False
    return True


def _project_separably(planes: Tensor, sweep: _Sweep) -> Tensor:
    """``_project`` where `_is_separable`: each plane is read along its first axis, then along its second → (H, W).

    Both readings are weighted sums of whole rows of memory, two multiplications in place of a reading of four scattered
    voxels; the second one sums over the planes too.
    """
    count, first, second = planes.shape
    offsets = torch.arange(count, dtype=planes.dtype, device=planes.device)[:, None] - sweep.middle
    rows, row_weights = _neighbours(sweep.start[0, :, 0] + offsets * sweep.slope[0, :, 0], first)
    columns, column_weights = _neighbours(sweep.start[1, 0] + offsets * sweep.slope[1, 0], second)
    height, width = sweep.step_mm.shape
    # a volume whose rows lie one after the other is a table of rows as it is
    whole = planes.stride(2) == 1 and planes.stride(0) % second == planes.stride(1) % second == 0
    between = (planes.stride(0) // second, planes.stride(1) // second) if whole else (first, 1)
    length = (count - 1) * between[0] + (first - 1) * between[1] + 1
    table = planes.as_strided((length, second), (second, 1)) if whole else planes
    total = planes.new_zeros(width, height)
    for near in range(0, count, PLANES_PER_BLOCK):
        far = min(near + PLANES_PER_BLOCK, count)
        number = torch.arange(far - near)[:, None, None]
        block = table if whole else planes[near:far].reshape(-1, second)
        place = (number + (near if whole else 0)) * between[0] + rows[near:far] * between[1]
        read = _weighted_rows(block, place.flatten(0, 1), row_weights[near:far].flatten(0, 1))
        # column by column, all planes of the block; torch copies a matrix turned over in blocks that stay in cache
        turned = read.t().contiguous().view(-1, height)
        place = (columns[near:far] * (far - near) + number).transpose(0, 1).flatten(1)
        total += _weighted_rows(turned, place, column_weights[near:far].transpose(0, 1).flatten(1))
    return total.T


def _neighbours(crossing: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The two voxels beside each crossing and their linear weights, (..., 2); beyond the border the weight is 0."""
    low = crossing.floor()
    index = torch.stack([low, low + 1], dim=-1)
    weight = torch.stack([1 - (crossing - low), crossing - low], dim=-1)
    return index.clamp(0, count - 1).long(), weight * ((index >= 0) & (index <= count - 1))


def _weighted_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """(N, K) rows of a table (R, C) and their weights → (N, C) weighted sums."""
    return embedding_bag(rows.int(), table, mode="sum", per_sample_weights=weights)


@versioned(2)
def render_planesweep(
    mu_volume: Tensor,
    affine: np.ndarray | Tensor,
    geometry: Geometry,
    poses: Poses | None = None,
    isocentre: np.ndarray | Tensor | None = None,
) -> Tensor:
    """Line integrals of attenuation, (P, H, W), dimensionless (mm⁻¹ · mm), rows from head to foot.

    Differentiable in the volume, the poses and the isocentre; computed in the volume's dtype on its device, with ray
    maps in float64.

    Args:
        mu_volume: (Z, Y, X) attenuation in mm⁻¹ (`physics.hu_to_mu`), float32 or float64; a strided view is not copied.
        affine: 4 x 4 voxel index (x, y, z) → LPS mm (`geometry.lps_affine`), any orientation.
        geometry: source, detector and view.
        poses: motions of source and detector; one straight pose by default.
        isocentre: (3,) world mm; the middle of the volume by default.

    Raises:
        BadInput: not a 3-D float volume, or rays that run along the planes.
    """
    if mu_volume.ndim != 3 or not mu_volume.is_floating_point():
        raise BadInput(
            f"render() was given a {mu_volume.dtype} volume of shape {tuple(mu_volume.shape)}; "
            "allowed: float32 or float64 of shape (Z, Y, X). Convert Hounsfield units with hu_to_mu first."
        )
    poses = identity_poses() if poses is None else poses
    device = mu_volume.device
    matrix = torch.as_tensor(affine, dtype=torch.float64, device=device)
    if isocentre is None:
        isocentre = volume_centre(tuple(mu_volume.shape), matrix.detach().cpu().numpy())
    centre = torch.as_tensor(isocentre, dtype=torch.float64, device=device)
    depth, rows, columns = mu_volume.shape
    images = []
    for camera in camera_to_world(geometry, poses, centre):
        sweep = _sweep(geometry, camera, matrix, (columns, rows, depth), mu_volume.dtype)
        planes = mu_volume.movedim(2 - sweep.axis, 0)
        if device.type == "cpu" and not _wants_gradient(mu_volume, sweep) and _is_separable(sweep, len(planes)):
            images.append(_project_separably(planes, sweep) * sweep.step_mm)
        else:
            images.append(_project(planes, sweep, whole=device.type != "cpu") * sweep.step_mm)
    return torch.stack(images)


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
