"""Virtual patients under the X-ray tube, in two deliberately different styles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedprior.errors import choose
from embedprior.imaging.drr import (
    Appearance,
    Poses,
    chest_geometry,
    get_renderer,
    identity_poses,
    random_poses,
)
from embedprior.phantom.patient import VirtualPatient

if TYPE_CHECKING:
    import torch

FIELD_MM = 322.0
"""Detector side: at the isocentre a field of 286 mm, which shows both lungs and cuts the flanks as a film does."""

EDGE_PADDING_MM = 40.0
"""Tissue beyond the CT's first and last slice is taken to continue it, so the film does not end where the scan did."""


@dataclass(frozen=True)
class Style:
    """Exposure and appearance of one kind of image; poses vary within the two limits."""

    appearance: Appearance
    energy_kev: float
    max_angle_deg: float
    max_shift_mm: float


STYLES = {
    "drr": Style(Appearance(window=(0.8, 6.0)), energy_kev=70.0, max_angle_deg=0.0, max_shift_mm=0.0),
    "cxr": Style(
        Appearance(
            scatter_fraction=0.35,
            scatter_spread_mm=30.0,
            photons_per_mm2=15000.0,
            blur_mm=1.2,
            window=None,
            exposure_quantiles=(0.005, 0.998),
            gamma=0.6,
            contrast=1.5,
        ),
        energy_kev=62.0,
        max_angle_deg=4.0,
        max_shift_mm=8.0,
    ),
}
"""drr: clean line integrals at the CT's energy, straight pose, fixed window: the simulated pretraining image.
cxr: a softer beam, scatter behind a grid, quantum noise, focal blur, automatic exposure with an S-shaped curve, and a
patient who does not stand quite straight: stands in for the real radiograph."""


def radiograph(patient: VirtualPatient, style: str, size: int, seed: int) -> NDArray[np.uint8]:
    """A PA chest radiograph (H, W) of a patient, bones white, heart to the viewer's right, head up.

    Args:
        patient: from `virtual_patient`.
        style: "drr" or "cxr".
        size: pixels along each side.
        seed: of pose and quantum noise; "drr" has neither.

    Raises:
        BadInput: unknown style.
    """
    made = choose("radiograph style", style, STYLES)
    from embedprior.imaging.drr.physics import to_radiograph

    integrals = line_integrals(patient, size, made, seed)
    grey = to_radiograph(integrals, made.appearance, FIELD_MM / size, seed=_stream(seed, patient.index, 1))
    return np.asarray((grey[0] * 255).round().clamp(0, 255).byte().numpy())


def line_integrals(patient: VirtualPatient, size: int, style: Style, seed: int) -> torch.Tensor:
    """The attenuation behind the image, (1, size, size)."""
    import torch

    from embedprior.imaging.drr.physics import hu_to_mu

    hu = torch.from_numpy(patient.volume.astype(np.float32))
    margin = int(np.ceil(EDGE_PADDING_MM / patient.spacing_mm[0]))
    first, last = hu[:1].expand(margin, -1, -1), hu[-1:].expand(margin, -1, -1)
    affine = patient.affine.copy()
    affine[:3, 3] -= margin * affine[:3, 2]
    poses: Poses = identity_poses()
    if style.max_angle_deg > 0 or style.max_shift_mm > 0:
        poses = random_poses(1, style.max_angle_deg, style.max_shift_mm, _stream(seed, patient.index, 0))
    mu = hu_to_mu(torch.cat([first, hu, last]), style.energy_kev)
    return get_renderer()(mu, affine, chest_geometry("PA", size, FIELD_MM), poses)


def _stream(seed: int, index: int, purpose: int) -> int:
    return int(np.random.SeedSequence([seed, index, purpose]).generate_state(1)[0])
