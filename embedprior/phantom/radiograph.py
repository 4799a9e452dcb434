"""Virtual patients under the X-ray tube, in two deliberately different styles, and pictures of them to look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedprior.errors import choose
from embedprior.imaging.drr import Appearance, Poses, chest_geometry, get_renderer, hu_to_mu, jittered, straight
from embedprior.phantom.config import PhantomConfig
from embedprior.phantom.patient import VirtualPatient, virtual_patient

if TYPE_CHECKING:
    import torch

FIELD_MM = 322.0
"""Detector side: at the isocentre a field of 286 mm, which shows both lungs and cuts the flanks as a film does."""

OVERHANG_MM = 40.0
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
    from embedprior.imaging.drr.display import to_radiograph

    integrals = line_integrals(patient, size, made, seed)
    grey = to_radiograph(integrals, made.appearance, FIELD_MM / size, seed=_stream(seed, patient.index, 1))
    return np.asarray((grey[0] * 255).round().clamp(0, 255).byte().numpy())


def line_integrals(patient: VirtualPatient, size: int, style: Style, seed: int) -> torch.Tensor:
    """The attenuation behind the image, (1, size, size)."""
    import torch

    hu = torch.from_numpy(patient.volume.astype(np.float32))
    margin = int(np.ceil(OVERHANG_MM / patient.spacing_mm[0]))
    first, last = hu[:1].expand(margin, -1, -1), hu[-1:].expand(margin, -1, -1)
    affine = patient.affine.copy()
    affine[:3, 3] -= margin * affine[:3, 2]
    poses: Poses = straight()
    if style.max_angle_deg > 0 or style.max_shift_mm > 0:
        poses = jittered(1, style.max_angle_deg, style.max_shift_mm, _stream(seed, patient.index, 0))
    mu = hu_to_mu(torch.cat([first, hu, last]), style.energy_kev)
    return get_renderer()(mu, affine, chest_geometry("PA", size, FIELD_MM), poses)


def _stream(seed: int, index: int, purpose: int) -> int:
    return int(np.random.SeedSequence([seed, index, purpose]).generate_state(1)[0])


def windowed(hu: NDArray[np.int16], low: float, high: float) -> NDArray[np.float64]:
    """Grey values in [0, 1] of HU between two limits."""
    return np.clip((hu.astype(np.float64) - low) / (high - low), 0, 1)


def slices(patient: VirtualPatient) -> list[tuple[str, NDArray[np.int16], float]]:
    """(title, picture with head or front up, aspect) of an axial and a coronal slice, through the lesion if any."""
    shape = np.array(patient.volume.shape)
    centre = np.zeros(3) if patient.lesion_centre_mm is None else np.array(patient.lesion_centre_mm)[::-1]
    z, y, _ = np.clip(np.rint(centre / patient.spacing_mm + (shape - 1) / 2).astype(int), 0, shape - 1)
    depth, row, column = patient.spacing_mm
    return [("axial CT", patient.volume[z], row / column), ("coronal CT", patient.volume[::-1, y], depth / column)]


def contact_sheet(config: PhantomConfig, seed: int, out_png: str | Path, patients: int = 6, size: int = 224) -> Path:
    """Draw CT slices, the DRR and the radiograph of the first patients of a population; returns the file's path."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.9 * patients), layout="constrained")
    axes = figure.subplots(patients, 4, squeeze=False)
    for index in range(patients):
        patient = virtual_patient(config, seed, index)
        words = [f"patient {index}", "lesion" if patient.label else "no lesion"]
        if patient.lesion is not None:
            words.append(f"{2 * patient.lesion.radius_mm:.0f} mm, {patient.lesion.zone}")
        if patient.secondary_sign:
            words.append("effusion")
        for axis, (title, picture, aspect) in zip(axes[index, :2], slices(patient), strict=True):
            axis.imshow(windowed(picture, -1000, 400), cmap="gray", vmin=0, vmax=1, aspect=aspect)
            axis.set_title(title, fontsize=9)
        for axis, style in zip(axes[index, 2:], ("drr", "cxr"), strict=True):
            axis.imshow(radiograph(patient, style, size, seed), cmap="gray", vmin=0, vmax=255)
            axis.set_title({"drr": "DRR", "cxr": "radiograph"}[style], fontsize=9)
        axes[index, 0].set_ylabel("\n".join(words), fontsize=9)
        for axis in axes[index]:
            axis.set_xticks([])
            axis.set_yticks([])
    target = Path(out_png)
    figure.savefig(target, dpi=90)
    return target
