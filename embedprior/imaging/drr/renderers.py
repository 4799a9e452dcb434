"""DiffDRR (Gopalakrishnan & Golland, 2022) and nanodrr behind the renderer protocol, for comparison.

Attenuation is passed as given: DiffDRR's own density, scaled by each volume's maximum, is overwritten. Poses and axes
are translated to its conventions (RAS mm, volume centred, tube and detector turned by its own "PA" and "AP" frames), so
the renderers share nothing but the volume and the numbers of the geometry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedprior.errors import require_extra
from embedprior.imaging.drr.config import VIEWS, Geometry, Poses, identity_poses, versioned, volume_centre
from embedprior.imaging.drr.physics import camera_to_world

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@versioned(1)
def render_siddon(
    mu_volume: Tensor,
    affine: np.ndarray | Tensor,
    geometry: Geometry,
    poses: Poses | None = None,
    isocentre: np.ndarray | Tensor | None = None,
    patch_size: int | None = 32,
) -> Tensor:
    """Exact radiological paths through constant voxels (Siddon 1985), (P, H, W); see `physics.render_planesweep`.

    patch_size: side of the square of rays traced at once; None traces the whole image, as DiffDRR does by default.
    """
    return prepare_diffdrr("siddon", mu_volume, affine, geometry, poses, isocentre, patch_size)()


@versioned(1)
def render_trilinear(
    mu_volume: Tensor,
    affine: np.ndarray | Tensor,
    geometry: Geometry,
    poses: Poses | None = None,
    isocentre: np.ndarray | Tensor | None = None,
    patch_size: int | None = 32,
    samples: int = 500,
) -> Tensor:
    """Trilinear readings at equal steps along each ray, (P, H, W); see `physics.render_planesweep`."""
    return prepare_diffdrr("trilinear", mu_volume, affine, geometry, poses, isocentre, patch_size, n_points=samples)()


def base_view(view: str) -> str:
    """The one of DiffDRR's and nanodrr's frontal frames whose handedness a view shares."""
    return "AP" if view == "AP" else "PA"


def pose_in_ras(geometry: Geometry, poses: Poses, isocentre: np.ndarray) -> Tensor:
    """(P, 4, 4) float64 motions, in RAS mm about the isocentre, of a frontal frame that stands at the source."""
    camera = camera_to_world(geometry, poses, torch.as_tensor(isocentre, dtype=torch.float64))
    flip = torch.as_tensor(LPS_TO_RAS)
    frame = torch.as_tensor(np.array(VIEWS[base_view(geometry.view)], dtype=np.float64).T)
    matrix = torch.eye(4, dtype=torch.float64).repeat(len(poses), 1, 1)
    matrix[:, :3, :3] = flip @ camera[:, :, :3] @ torch.linalg.inv(frame) @ flip
    matrix[:, :3, 3] = (camera[:, :, 3] - torch.as_tensor(isocentre)) @ flip
    return matrix


def centred_ras(affine: np.ndarray | Tensor, isocentre: np.ndarray) -> np.ndarray:
    """4 x 4 voxel index (x, y, z) → RAS mm about the isocentre."""
    centred = np.array(torch.as_tensor(affine).detach().cpu().numpy(), dtype=np.float64)
    centred[:3, 3] -= isocentre
    centred[:3] = LPS_TO_RAS @ centred[:3]
    return centred


def resolve_isocentre(
    mu_volume: Tensor, affine: np.ndarray | Tensor, isocentre: np.ndarray | Tensor | None
) -> np.ndarray:
    """The isocentre as float64 numpy; the middle of the volume by default."""
    if isocentre is None:
        return volume_centre(tuple(mu_volume.shape), torch.as_tensor(affine).detach().cpu().numpy())
    return np.asarray(torch.as_tensor(isocentre).detach().cpu().numpy(), dtype=np.float64)


def prepare_diffdrr(
    kind: str,
    mu_volume: Tensor,
    affine: np.ndarray | Tensor,
    geometry: Geometry,
    poses: Poses | None = None,
    isocentre: np.ndarray | Tensor | None = None,
    patch_size: int | None = None,
    **renderer_options: Any,
) -> Callable[[], Tensor]:
    """Set DiffDRR's "siddon" or "trilinear" module up; the returned function renders, so the two can be timed apart."""
    drr = require_extra("diffdrr.drr", "drr")
    data = require_extra("diffdrr.data", "drr")
    transforms = require_extra("diffdrr.pose", "drr")
    torchio = require_extra("torchio", "drr")
    poses = identity_poses() if poses is None else poses
    centre = resolve_isocentre(mu_volume, affine, isocentre)
    by_index = mu_volume.permute(2, 1, 0)[None].float().contiguous()
    # the reader derives a density of its own, and fails on a volume without soft tissue: give it zeros, then set ours
    image = torchio.ScalarImage(tensor=torch.zeros_like(by_index), affine=centred_ras(affine, centre))
    subject = data.read(image, orientation=base_view(geometry.view), center_volume=False)
    subject.density.set_data(by_index)
    module = drr.DRR(
        subject,
        sdd=geometry.source_to_detector,
        height=geometry.height,
        width=geometry.width,
        delx=geometry.pitch,
        renderer=kind,
        patch_size=patch_size if geometry.height * geometry.width >= (patch_size or 0) ** 2 else None,
    ).to(mu_volume.device)
    motions = pose_in_ras(geometry, poses, centre).float().to(mu_volume.device)

    def render() -> Tensor:
        return torch.stack([module(transforms.RigidTransform(one), **renderer_options)[0, 0] for one in motions])

    return render


@versioned(1)
def render_nanodrr(
    mu_volume: Tensor,
    affine: np.ndarray | Tensor,
    geometry: Geometry,
    poses: Poses | None = None,
    isocentre: np.ndarray | Tensor | None = None,
    samples: int = 500,
    rays_at_once: int | None = 4096,
) -> Tensor:
    """Trilinear readings at equal steps inside the volume, (P, H, W); see `physics.render_planesweep`.

    rays_at_once: rays traced together on a CPU; None traces the whole image, as nanodrr does by default.
    """
    return prepare_nanodrr(mu_volume, affine, geometry, poses, isocentre, samples, rays_at_once)()


def prepare_nanodrr(
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
    poses = identity_poses() if poses is None else poses
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
