"""nanodrr (ray marching, fused GPU kernels) behind the renderer protocol."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from embedprior.errors import require_extra

from .diffdrr_backend import base_view, centred_ras, pose_in_ras, resolve_isocentre
from .geometry import Geometry, Poses, straight


def render(
    mu_volume: Tensor,
    affine: np.ndarray | Tensor,
    geometry: Geometry,
    poses: Poses | None = None,
    isocentre: np.ndarray | Tensor | None = None,
    samples: int = 500,
    rays_at_once: int | None = 4096,
) -> Tensor:
    """Trilinear readings at equal steps inside the volume, (P, H, W); see `planesweep.render`.

    rays_at_once: rays traced together on a CPU; None traces the whole image, as nanodrr does by default.
    """
    return prepare(mu_volume, affine, geometry, poses, isocentre, samples, rays_at_once)()


def prepare(
    mu_volume: Tensor,
    affine: np.ndarray | Tensor,
    geometry: Geometry,
    poses: Poses | None = None,
    isocentre: np.ndarray | Tensor | None = None,
    samples: int = 500,
    rays_at_once: int | None = None,
) -> Callable[[], Tensor]:
    """Set nanodrr's subject and cameras up; the returned function renders, so the two can be timed apart."""
    data = require_extra("nanodrr.data", "drr")
    camera = require_extra("nanodrr.camera", "drr")
    engine = require_extra("nanodrr.drr", "drr")
    torchio = require_extra("torchio", "drr")
    poses = straight() if poses is None else poses
    centre = resolve_isocentre(mu_volume, affine, isocentre)
    device = mu_volume.device
    image = torchio.ScalarImage(
        tensor=mu_volume.permute(2, 1, 0)[None].float().cpu().contiguous(), affine=centred_ras(affine, centre)
    )
    subject = data.Subject.from_images(image, convert_to_mu=False).to(device)
    nothing = torch.zeros(1, 3, dtype=torch.float64)
    frame = camera.make_rt_inv(nothing, nothing, orientation=base_view(geometry.view))
    stands = (pose_in_ras(geometry, poses, centre) @ frame).float().to(device)
    height, width, pitch = geometry.height, geometry.width, geometry.pitch
    pixels = camera.make_k_inv(geometry.source_to_detector, pitch, pitch, 0.0, 0.0, height, width).float().to(device)
    distance = torch.tensor([geometry.source_to_detector], device=device)
    strip_rows = height if rays_at_once is None or device.type != "cpu" else max(1, rays_at_once // width)

    def strip(stand: Tensor, top: int) -> Tensor:
        # moving the strip's first row to the top of the image: pixel (u, v) of the strip is (u, v + top)
        shifted = pixels.clone()
        shifted[:, :, 2] += shifted[:, :, 1] * top
        rows = min(strip_rows, height - top)
        image: Tensor = engine.render(subject, shifted, stand[None], distance, rows, width, n_samples=samples)
        return image[0, 0]

    def render() -> Tensor:
        return torch.stack([torch.cat([strip(one, top) for top in range(0, height, strip_rows)]) for one in stands])

    return render
