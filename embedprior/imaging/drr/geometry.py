"""Where source, detector and patient stand: world millimetres are DICOM's LPS (x to the left, y to the back, z up)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from embedprior.errors import BadInput, nearest

if TYPE_CHECKING:
    import torch

VIEWS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "PA": ((1, 0, 0), (0, 0, -1), (0, -1, 0)),
    "AP": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "LATERAL": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
}
"""World directions of increasing image column, of increasing image row, and of the beam.

Both frontal views show the patient's left on the viewer's right; LATERAL is a left lateral (left side at the detector)
shown facing the viewer's left."""


@dataclass(frozen=True)
class Geometry:
    """A flat detector facing a point source; lengths in mm, detector pixels square."""

    source_to_detector: float
    source_to_isocentre: float
    height: int
    width: int
    pitch: float
    view: str = "PA"

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise BadInput(f"Unknown view {self.view!r}; allowed: {', '.join(VIEWS)}.{nearest(self.view, VIEWS)}")
        if not 0 < self.source_to_isocentre < self.source_to_detector:
            raise BadInput(
                f"source_to_isocentre={self.source_to_isocentre} must lie between 0 and source_to_detector="
                f"{self.source_to_detector}."
            )
        if min(self.height, self.width) < 1 or self.pitch <= 0:
            raise BadInput(f"Detector of {self.height} x {self.width} pixels of {self.pitch} mm has no area.")

    def axes(self) -> np.ndarray:
        """3 x 3, columns are the world directions of image column, image row and beam (float64)."""
        return np.array(VIEWS[self.view], dtype=np.float64).T


def chest_geometry(view: str = "PA", size: int = 224, field_mm: float = 403.2) -> Geometry:
    """An upright chest stand: 1.8 m source to detector, 1.6 m to the isocentre (magnification 1.125).

    Args:
        view: "PA", "AP" or "LATERAL".
        size: pixels along each side of the square image.
        field_mm: side of the detector.
    """
    return Geometry(1800.0, 1600.0, size, size, field_mm / size, view)


@dataclass(frozen=True)
class Poses:
    """Rigid motions of source and detector together about the isocentre, one per image.

    angles_deg: (P, 3) tensor, rotations about the world x, y and z axes, applied in that order.
    shift_mm: (P, 3) tensor, world translation after the rotation.
    The patient seen from the machine moves the opposite way.
    """

    angles_deg: torch.Tensor
    shift_mm: torch.Tensor

    def __post_init__(self) -> None:
        for name, value in (("angles_deg", self.angles_deg), ("shift_mm", self.shift_mm)):
            if value.ndim != 2 or value.shape[1] != 3:
                raise BadInput(f"Poses.{name} has shape {tuple(value.shape)}; allowed: (P, 3).")
        if self.angles_deg.shape != self.shift_mm.shape:
            raise BadInput(
                f"Poses has {self.angles_deg.shape[0]} rotations but {self.shift_mm.shape[0]} shifts; they must match."
            )

    def __len__(self) -> int:
        return int(self.angles_deg.shape[0])


def straight(count: int = 1) -> Poses:
    """Poses without any motion."""
    import torch

    zeros = torch.zeros(count, 3, dtype=torch.float64)
    return Poses(zeros, zeros)


def jittered(count: int, max_angle_deg: float, max_shift_mm: float, seed: int) -> Poses:
    """Poses drawn uniformly within ±max_angle_deg about and ±max_shift_mm along each axis, reproducible by seed."""
    import torch

    draws = np.random.default_rng(seed).uniform(-1.0, 1.0, size=(2, count, 3))
    return Poses(torch.from_numpy(draws[0] * max_angle_deg), torch.from_numpy(draws[1] * max_shift_mm))


def lps_affine(
    spacing_mm: tuple[float, float, float],
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    direction: np.ndarray | None = None,
) -> np.ndarray:
    """4 x 4 map of voxel index (x, y, z, 1) to LPS millimetres, in SimpleITK's and DICOM's terms (x, y, z order).

    Args:
        spacing_mm: voxel size along the array's x, y and z index.
        origin_mm: centre of voxel (0, 0, 0).
        direction: 3 x 3, columns are the world directions of the three index axes; identity by default.
    """
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if direction is None else np.asarray(direction, float)) * np.asarray(spacing_mm, float)
    affine[:3, 3] = origin_mm
    return affine


def volume_centre(shape_zyx: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """World position (3,) of the middle of a (Z, Y, X) array: the default isocentre."""
    z, y, x = shape_zyx[-3:]
    middle = np.array([(x - 1) / 2, (y - 1) / 2, (z - 1) / 2, 1.0])
    return np.asarray((np.asarray(affine, float) @ middle)[:3])
