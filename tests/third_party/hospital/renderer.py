"""A renderer: trilinear readings at equal steps along each ray."""

import numpy as np
import torch
from torch.nn.functional import grid_sample

from embedprior.imaging.drr import identity_poses, versioned, volume_centre
from embedprior.imaging.drr.physics import camera_to_world

STEPS = 400


@versioned(1)
def render(mu_volume, affine, geometry, poses=None, isocentre=None):
    """Return line integrals (poses, height, width) of attenuation (z, y, x) in mm⁻¹."""
    poses = identity_poses() if poses is None else poses
    matrix = torch.as_tensor(np.asarray(affine), dtype=torch.float64)
    middle = volume_centre(tuple(mu_volume.shape), matrix.numpy())
    centre = torch.as_tensor(middle if isocentre is None else isocentre, dtype=torch.float64)
    sizes = torch.tensor(mu_volume.shape[::-1], dtype=torch.float64)
    reach = float((matrix[:3, :3].norm(dim=0) * sizes).norm() / 2) + float(np.abs(middle - centre.numpy()).sum())
    rows = (torch.arange(geometry.height) - (geometry.height - 1) / 2) * geometry.pitch
    columns = (torch.arange(geometry.width) - (geometry.width - 1) / 2) * geometry.pitch
    share = (geometry.source_to_isocentre + torch.linspace(-reach, reach, STEPS)) / geometry.source_to_detector
    images = []
    for camera in camera_to_world(geometry, poses, centre):
        beam = camera[:, 2] * geometry.source_to_detector
        ray = camera[:, 0] * columns[:, None] + (camera[:, 1] * rows[:, None] + beam)[:, None]
        points = camera[:, 3] + share[:, None, None, None] * ray
        index = (points - matrix[:3, 3]) @ torch.linalg.inv(matrix[:3, :3]).T
        grid = (2 * index / (sizes - 1) - 1)[None].to(mu_volume.dtype)
        read = grid_sample(mu_volume[None, None], grid, align_corners=True)[0, 0].sum(0)
        images.append(read * ray.norm(dim=-1).to(read.dtype) * float(share[1] - share[0]))
    return torch.stack(images)
