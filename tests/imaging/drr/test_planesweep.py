"""The plane sweep against closed forms: where things land, how big, how dense, and its derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedprior.errors import BadInput
from embedprior.imaging.drr import Geometry, Poses, chest_geometry, identity_poses, lps_affine, random_poses
from embedprior.imaging.drr.physics import render_planesweep

SHAPE = (44, 52, 48)
SPACING_XYZ = (3.0, 2.5, 3.5)


def _centred(shape_zyx: tuple[int, int, int], spacing_xyz: tuple[float, float, float]) -> np.ndarray:
    counts = np.array(shape_zyx[::-1])
    origin = -(counts - 1) / 2 * np.array(spacing_xyz)
    return lps_affine(spacing_xyz, (float(origin[0]), float(origin[1]), float(origin[2])))


def _marker(world: tuple[float, float, float]) -> torch.Tensor:
    """A small blob whose centre of mass lies at world LPS mm, away from voxel centres."""
    z, y, x = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in SHAPE], indexing="ij")
    sx, sy, sz = SPACING_XYZ
    squared = (x * sx - world[0]) ** 2 + (y * sy - world[1]) ** 2 + (z * sz - world[2]) ** 2
    return torch.from_numpy(np.exp(-squared / (2 * 4.0**2)))


def _centre_of_mass(image: torch.Tensor) -> tuple[float, float]:
    """(row, column) in mm from the middle of the detector, in pixels of 1."""
    weights = image / image.sum()
    rows = torch.arange(image.shape[0], dtype=image.dtype) - (image.shape[0] - 1) / 2
    columns = torch.arange(image.shape[1], dtype=image.dtype) - (image.shape[1] - 1) / 2
    return float((weights.sum(1) * rows).sum()), float((weights.sum(0) * columns).sum())


def _expected(geometry: Geometry, world: np.ndarray) -> tuple[float, float]:
    """Similar triangles: lateral offset times source-to-detector over the point's own distance from the source."""
    x, y, z = world
    right, towards_detector = {"PA": (x, -y), "AP": (x, y), "LATERAL": (y, x)}[geometry.view]
    scale = geometry.source_to_detector / (geometry.source_to_isocentre + towards_detector) / geometry.pitch
    return -z * scale, right * scale


@pytest.mark.parametrize("view", ["PA", "AP", "LATERAL"])
@pytest.mark.parametrize("world", [(31.0, -22.0, 40.0), (-26.0, 33.0, -37.0)])
def test_point_lands_where_similar_triangles_say(view: str, world: tuple[float, float, float]) -> None:
    geometry = chest_geometry(view, size=160, field_mm=240.0)
    image = render_planesweep(_marker(world), _centred(SHAPE, SPACING_XYZ), geometry)[0]
    assert _centre_of_mass(image) == pytest.approx(_expected(geometry, np.array(world)), abs=0.05)


def test_frontal_views_show_patient_left_on_the_right_and_head_up() -> None:
    for view in ("PA", "AP"):
        image = render_planesweep(
            _marker((40.0, 0.0, 50.0)), _centred(SHAPE, SPACING_XYZ), chest_geometry(view, 64, 240.0)
        )[0]
        row, column = np.unravel_index(int(image.argmax()), image.shape)
        assert row < 32 < column


def test_pa_magnifies_the_back_and_ap_the_front() -> None:
    affine = _centred(SHAPE, SPACING_XYZ)

    def column(view: str, y: float) -> float:
        return _centre_of_mass(render_planesweep(_marker((40.0, y, 0.0)), affine, chest_geometry(view, 160, 240.0))[0])[
            1
        ]

    assert column("PA", 40.0) > column("PA", -40.0) + 1
    assert column("AP", 40.0) < column("AP", -40.0) - 1


def test_poses_move_the_machine_about_the_isocentre() -> None:
    world, geometry = np.array([20.0, -18.0, 30.0]), chest_geometry("PA", 160, 240.0)
    angles, shift = np.array([7.0, -9.0, 5.0]), np.array([12.0, -8.0, -15.0])
    poses = Poses(torch.from_numpy(angles)[None], torch.from_numpy(shift)[None])
    image = render_planesweep(_marker((20.0, -18.0, 30.0)), _centred(SHAPE, SPACING_XYZ), geometry, poses)[0]

    def about(axis: int, degrees: float) -> np.ndarray:
        turn, (i, j) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn[i, i], turn[j, j], turn[i, j], turn[j, i] = c, c, -s, s
        return turn

    machine = about(2, angles[2]) @ about(1, angles[1]) @ about(0, angles[0])
    seen_from_machine = machine.T @ (world - shift)
    assert _centre_of_mass(image) == pytest.approx(_expected(geometry, seen_from_machine), abs=0.05)


def test_line_integral_of_a_box_is_attenuation_times_path() -> None:
    volume = torch.full(SHAPE, 0.02, dtype=torch.float64)
    geometry = Geometry(1800.0, 1600.0, 33, 33, 2.0, "PA")
    image = render_planesweep(volume, _centred(SHAPE, SPACING_XYZ), geometry)[0]
    depth = SHAPE[1] * SPACING_XYZ[1]
    offsets = (torch.arange(33, dtype=torch.float64) - 16) * 2.0
    slant = torch.sqrt(1 + (offsets[:, None] ** 2 + offsets[None, :] ** 2) / 1800.0**2)
    assert torch.allclose(image, 0.02 * depth * slant, rtol=1e-9)


def test_rotating_grid_and_affine_together_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(*SHAPE, generator=generator, dtype=torch.float64)
    affine = _centred(SHAPE, SPACING_XYZ)
    turned = affine.copy()
    # array flipped along x and its axes x and z exchanged, with the affine telling so
    turned[:, 0], turned[:, 2] = affine[:, 2], -affine[:, 0]
    turned[:3, 3] = affine[:3, 3] + affine[:3, 0] * (SHAPE[2] - 1)
    flipped = volume.flip(2).permute(2, 1, 0)
    geometry, poses = chest_geometry("PA", 48, 240.0), random_poses(2, 10.0, 20.0, seed=3)
    assert torch.allclose(
        render_planesweep(volume, affine, geometry, poses),
        render_planesweep(flipped, turned, geometry, poses),
        rtol=1e-9,
        atol=1e-12,
    )


def test_shifted_origin_only_moves_the_isocentre() -> None:
    generator = torch.Generator().manual_seed(1)
    volume = torch.rand(*SHAPE, generator=generator, dtype=torch.float64)
    affine = _centred(SHAPE, SPACING_XYZ)
    moved = affine.copy()
    moved[:3, 3] += [100.0, -70.0, 1234.5]
    geometry = chest_geometry("PA", 32, 240.0)
    assert torch.allclose(
        render_planesweep(volume, affine, geometry), render_planesweep(volume, moved, geometry), rtol=1e-9
    )
    off = render_planesweep(volume, moved, geometry, isocentre=np.array([100.0, -70.0, 1214.5]))
    assert not torch.allclose(render_planesweep(volume, affine, geometry), off, rtol=1e-2)


def test_batch_equals_one_by_one_and_float32_keeps_accuracy() -> None:
    generator = torch.Generator().manual_seed(2)
    volume = torch.rand(*SHAPE, generator=generator, dtype=torch.float64)
    affine, geometry, poses = (
        _centred(SHAPE, SPACING_XYZ),
        chest_geometry("PA", 100, 240.0),
        random_poses(3, 10, 20, seed=5),
    )
    batch = render_planesweep(volume, affine, geometry, poses)
    singles = [
        render_planesweep(volume, affine, geometry, Poses(poses.angles_deg[i : i + 1], poses.shift_mm[i : i + 1]))
        for i in range(3)
    ]
    assert torch.equal(batch, torch.cat(singles))
    single_precision = render_planesweep(volume.float(), affine, geometry, poses).double()
    assert float((single_precision - batch).abs().max() / batch.max()) < 2e-5


def test_gradients_for_volume_and_pose() -> None:
    generator = torch.Generator().manual_seed(4)
    shape = (5, 6, 7)
    volume = torch.rand(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
    angles = torch.tensor([[3.1, -2.3, 4.7]], dtype=torch.float64, requires_grad=True)
    shift = torch.tensor([[1.3, 0.7, -2.1]], dtype=torch.float64, requires_grad=True)
    affine, geometry = _centred(shape, (9.0, 8.0, 10.0)), Geometry(1800.0, 1600.0, 4, 5, 11.0, "PA")

    def image(v: torch.Tensor, a: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return render_planesweep(v, affine, geometry, Poses(a, s))

    assert torch.autograd.gradcheck(image, (volume, angles, shift), eps=1e-6, atol=1e-5)


def test_hounsfield_integers_are_refused() -> None:
    with pytest.raises(BadInput, match="hu_to_mu"):
        render_planesweep(torch.zeros(4, 4, 4, dtype=torch.int16), np.eye(4), chest_geometry("PA", 8))


def test_unknown_view_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="Did you mean 'LATERAL'"):
        chest_geometry("LATRAL")


def test_straight_is_the_default_pose() -> None:
    volume = _marker((5.0, 6.0, 7.0))
    geometry = chest_geometry("PA", 16, 240.0)
    affine = _centred(SHAPE, SPACING_XYZ)
    assert torch.equal(
        render_planesweep(volume, affine, geometry), render_planesweep(volume, affine, geometry, identity_poses(1))
    )


@pytest.mark.parametrize("view", ["PA", "AP", "LATERAL"])
@pytest.mark.parametrize("layout", ["as it lies", "flipped", "axes exchanged"])
def test_straight_views_read_axis_by_axis_equal_readings_ray_by_ray(view: str, layout: str) -> None:
    """Asked for a gradient, every ray reads its own four voxels of each plane: another way to the same sums."""
    generator = torch.Generator().manual_seed(6)
    volume = torch.rand(*SHAPE, generator=generator, dtype=torch.float64)
    affine = _centred(SHAPE, SPACING_XYZ)
    if layout == "flipped":
        affine[:3, 3] += affine[:3, 1] * (SHAPE[1] - 1)
        affine[:, 1], volume = -affine[:, 1], volume.flip(1).contiguous()
    elif layout == "axes exchanged":
        affine, volume = affine[:, [2, 1, 0, 3]], volume.permute(2, 1, 0)
    # moved aside, so that part of the detector sees nothing; 420 mm, so that the borders of the volume are seen
    poses = Poses(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([[23.0, -11.0, 37.0]], dtype=torch.float64))
    geometry = chest_geometry(view, 61, 420.0)
    quick = render_planesweep(volume, affine, geometry, poses)
    slow = render_planesweep(volume.clone().requires_grad_(), affine, geometry, poses).detach()
    assert float(slow.max()) > 10
    assert float((slow == 0).double().mean()) > 0.1
    assert torch.allclose(quick, slow, rtol=1e-9, atol=1e-9)


def test_a_volume_a_tenth_of_a_degree_askew_is_read_ray_by_ray() -> None:
    generator = torch.Generator().manual_seed(7)
    volume = torch.rand(*SHAPE, generator=generator, dtype=torch.float64)
    affine, geometry = _centred(SHAPE, SPACING_XYZ), chest_geometry("PA", 48, 240.0)
    turn = np.eye(4)
    angle = np.radians(0.1)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    slow = render_planesweep(volume.clone().requires_grad_(), turn @ affine, geometry).detach()
    assert torch.equal(render_planesweep(volume, turn @ affine, geometry), slow)
    assert not torch.allclose(render_planesweep(volume, affine, geometry), slow, rtol=1e-3)
