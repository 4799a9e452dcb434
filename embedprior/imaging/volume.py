"""One type for every CT volume: Hounsfield units in int16, with the millimetres they belong to.

Its axes can be turned to left, posterior, superior, and slices of a tilted gantry put on a straight grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int16

from embedprior.errors import BadInput

if TYPE_CHECKING:
    import SimpleITK as sitk

AIR_HU = -1024
"""The value that stands for air, padding and everything outside the scan: the lowest a 12-bit CT stores."""

MAX_VOXELS = 2**31
"""4 GiB of int16: more than any chest CT; a damaged header that asks for more is refused before memory is taken."""

Triple = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT volume. Index order is (z, y, x), as SimpleITK and numpy have it; world millimetres are DICOM's LPS.

    ``spacing_mm``, ``origin_mm`` and the columns of ``direction`` are in (x, y, z) order, as SimpleITK and DICOM
    write them. With the identity as direction, index x grows to the patient's left, y to the back, z to the head.

    Attributes:
        hu: Hounsfield units, (slices, rows, columns), never below −1024.
        spacing_mm: voxel size along index x, y and z.
        origin_mm: LPS position of the centre of voxel ``hu[0, 0, 0]``.
        direction: 3 × 3; columns are the LPS directions of growing index x, y and z.
        patient_id: of the header, or empty. For joining tables in memory: never print or write it.
        series_id: of the header, or empty; the same care.

    Raises:
        BadInput: no three-dimensional int16 array, a spacing that is not positive, or columns of ``direction`` that are
            not perpendicular unit vectors.

    Example:
        >>> import numpy as np
        >>> from embedprior import Volume
        >>> volume = Volume(np.full((10, 20, 30), -1000, np.int16), spacing_mm=(0.7, 0.7, 2.5))
        >>> volume.size_mm == (30 * 0.7, 20 * 0.7, 10 * 2.5)     # x, y, z
        True
        >>> (volume.affine @ [0, 0, 1, 1])[:3].tolist()          # the second slice lies 2.5 mm towards the head
        [0.0, 0.0, 2.5]
    """

    hu: Int16[np.ndarray, "z y x"] = field(repr=False)
    spacing_mm: Triple
    origin_mm: Triple = (0.0, 0.0, 0.0)
    direction: Float[np.ndarray, "3 3"] = field(default_factory=lambda: np.eye(3))
    patient_id: str = field(default="", repr=False)
    series_id: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.hu.ndim != 3 or self.hu.dtype != np.int16 or 0 in self.hu.shape:
            raise BadInput(
                f"a Volume holds int16 Hounsfield units of shape (z, y, x); got {self.hu.dtype} {self.hu.shape}."
            )
        if len(self.spacing_mm) != 3 or not all(np.isfinite(s) and s > 0 for s in self.spacing_mm):
            raise BadInput(f"spacing must be three positive numbers of mm; got {self.spacing_mm}.")
        turn = np.asarray(self.direction, dtype=np.float64)
        if not is_rotation(turn):
            raise BadInput("the direction must be a 3 x 3 matrix of perpendicular unit columns.")
        object.__setattr__(self, "direction", turn)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y and x."""
        z, y, x = self.hu.shape
        return z, y, x

    @property
    def size_mm(self) -> Triple:
        """Extent along index x, y and z, outer edge to outer edge."""
        z, y, x = self.shape
        return x * self.spacing_mm[0], y * self.spacing_mm[1], z * self.spacing_mm[2]

    @property
    def affine(self) -> Float[np.ndarray, "4 4"]:
        """Map of voxel index (x, y, z, 1) to LPS millimetres."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.direction * np.asarray(self.spacing_mm)
        matrix[:3, 3] = self.origin_mm
        return matrix

    @property
    def orientation(self) -> str:
        """Where index x, y and z grow to, such as ``"LPS"`` (left, posterior, superior)."""
        return orientation_code(self.direction)

    def with_hu(self, hu: Int16[np.ndarray, "z y x"]) -> Volume:
        """Return the same grid with other values.

        Args:
            hu: int16 Hounsfield units of the same shape (z, y, x).

        Raises:
            BadInput: another shape.
        """
        if hu.shape != self.hu.shape:
            raise BadInput(f"with_hu() was given shape {hu.shape}; the grid has {self.hu.shape}.")
        return replace(self, hu=hu)

    def crop(self, box: tuple[slice, slice, slice]) -> Volume:
        """Return the voxels of a box as a view, with the origin moved along.

        Args:
            box: slices along z, y and x, in voxels.

        Raises:
            BadInput: a slice has a step, or the box is empty.
        """
        found = [part.indices(count) for part, count in zip(box, self.shape, strict=True)]
        if any(step != 1 or start >= stop for start, stop, step in found):
            raise BadInput(f"the box {box} is empty or has a step; the volume has shape {self.shape}.")
        z, y, x = (start for start, _, _ in found)
        origin = (self.affine @ np.array([x, y, z, 1.0]))[:3]
        return replace(self, hu=self.hu[box], origin_mm=_triple(origin))


def is_rotation(direction: np.ndarray[Any, Any]) -> bool:
    """Return whether the columns are three perpendicular directions of length 1 (mirrored ones too).

    Example:
        >>> is_rotation(np.eye(3)), is_rotation(np.ones((3, 3)))
        (True, False)
    """
    # float32 headers leave rounding of a few 1e-4 in the cosines
    return direction.shape == (3, 3) and bool(np.allclose(direction.T @ direction, np.eye(3), atol=2e-3))


def orientation_code(direction: Float[np.ndarray, "3 3"]) -> str:
    """Return the letters (L/R, P/A, S/I) that the three columns of a direction matrix point to most."""
    letters = []
    for column in np.asarray(direction).T:
        axis = int(np.abs(column).argmax())
        letters.append("RAI"[axis] if column[axis] < 0 else "LPS"[axis])
    return "".join(letters)


def to_sitk(volume: Volume) -> sitk.Image:
    """Return the volume as a SimpleITK image (int16; copies the voxels)."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.hu))
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(volume.origin_mm)
    image.SetDirection(volume.direction.ravel().tolist())
    return image


def _triple(values: Any) -> Triple:
    x, y, z = (float(v) for v in values)
    return x, y, z


def canonical(volume: Volume) -> Volume:
    """Return the volume with index x growing to the left, y to the back and z to the head, as far as whole turns go.

    Axes are swapped and flipped, the voxels are a view of the same memory, and every voxel keeps its place in the
    world. What remains of a small obliqueness stays in ``direction``.
    """
    # the index axis (x, y, z order) that runs most along each world axis; greedy from the clearest, so that a volume
    # turned by about 45 degrees still gets three different axes
    cosines = np.abs(volume.direction)
    source = [-1, -1, -1]
    for flat in np.argsort(-cosines, axis=None, kind="stable"):
        world, index = divmod(int(flat), 3)
        if source[world] < 0 and index not in source:
            source[world] = index
    signs = np.array([np.sign(volume.direction[world, source[world]]) for world in range(3)])
    if source == [0, 1, 2] and (signs > 0).all():
        return volume
    direction = volume.direction[:, source] * signs
    far = [volume.shape[2 - source[world]] - 1 if signs[world] < 0 else 0 for world in range(3)]
    corner = np.zeros(4)
    corner[source] = far
    corner[3] = 1.0
    origin = (volume.affine @ corner)[:3]
    # array axes are (z, y, x), index axes (x, y, z)
    hu = volume.hu.transpose([2 - source[2], 2 - source[1], 2 - source[0]])
    hu = hu[tuple(slice(None, None, int(signs[world])) for world in (2, 1, 0))]
    x, y, z = (volume.spacing_mm[index] for index in source)
    left, back, up = (float(v) for v in origin)
    return replace(volume, hu=hu, spacing_mm=(x, y, z), origin_mm=(left, back, up), direction=direction)


def correct_tilt(volume: Volume, shear_mm: float) -> Volume:
    """Return the volume on the grid its ``direction`` spans, every value at its own place in the world.

    The grid gets as many rows more as the slices are spread; what no slice covers is −1024 HU. Values between two rows
    are linearly interpolated and rounded to whole HU.

    Args:
        volume: slices as stored, the first one where ``origin_mm`` says, each next one ``shear_mm`` further along index
            y than ``spacing_mm`` and ``direction`` would have it.
        shear_mm: of either sign; 0 returns the volume itself.
    """
    if shear_mm == 0:
        return volume
    count, rows, columns = volume.shape
    starts = np.arange(count) * shear_mm / volume.spacing_mm[1]
    first = int(np.floor(min(0.0, starts[-1])))
    wide = int(np.ceil(max(0.0, starts[-1]))) + rows - first
    hu = np.full((count, wide, columns), AIR_HU, np.int16)
    for k, start in enumerate(starts):
        place = np.arange(first, first + wide) - start
        inside = np.flatnonzero((place >= -0.5) & (place <= rows - 0.5))
        held = np.clip(place[inside], 0, rows - 1)
        near = np.minimum(held.astype(np.intp), max(0, rows - 2))
        weight = (held - near).astype(np.float32)[:, None]
        plane = volume.hu[k].astype(np.float32)
        hu[k, inside] = np.rint(plane[near] * (1 - weight) + plane[np.minimum(near + 1, rows - 1)] * weight)
    x, y, z = (float(v) for v in (volume.affine @ np.array([0.0, first, 0.0, 1.0]))[:3])
    return replace(volume, hu=hu, origin_mm=(x, y, z))
