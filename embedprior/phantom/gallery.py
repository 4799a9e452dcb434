"""Pictures of virtual patients, for a person to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .config import PhantomConfig
from .patient import VirtualPatient, virtual_patient
from .radiograph import radiograph


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
