"""One CT to its images: what the pixels, the sidecar and the facts say, and that they stay the same."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from embedprior.errors import BadInput
from embedprior.imaging.drr import Poses, chest_geometry, get_renderer, physics, renderer_version
from embedprior.imaging.drr.config import RENDERERS, DrrConfig
from embedprior.imaging.drr.physics import extend_volume, hu_to_mu
from embedprior.imaging.drr.render import CODE_TAG, Scanned, draw_poses, isocentre, project, render_exam, scan
from embedprior.imaging.image_files import write_npz
from embedprior.imaging.readers import CtExam, read_volume
from embedprior.imaging.volume import Volume, to_sitk
from embedprior.phantom import PhantomConfig, virtual_patient
from embedprior.runs import read_json

from ..conftest import from_sitk

SMALL = DrrConfig(size=64, poses=2)


def _chest(index: int = 0) -> Volume:
    patient = virtual_patient(PhantomConfig(noise_hu=0), 3, index)
    x, y, z = (float(v) for v in patient.affine[:3, 3])
    return Volume(patient.volume, (5.25, 5.25, 5.5), (x, y, z))


def _scanned(folder: Path, volume: Volume) -> Scanned:
    write_npz(volume, folder / "ct.npz")
    return scan([CtExam("ct", "p", folder / "ct.npz")])[0][0]


def test_pixels_are_the_windowed_line_integrals_and_the_sidecar_says_how(tmp_path: Path) -> None:
    item = _scanned(tmp_path, _chest())
    made = render_exam(item, SMALL, tmp_path / "artifacts")
    assert made.folder is not None
    assert made.complete
    said = read_json(made.folder / "pose-001.json")
    volume, _ = read_volume(item.exam.path)
    pose = Poses(torch.tensor([said["pose"]["angles_deg"]]).double(), torch.tensor([said["pose"]["shift_mm"]]).double())
    assert float(pose.angles_deg.abs().max()) > 0.5
    integrals = get_renderer(said["renderer"])(
        hu_to_mu(torch.from_numpy(volume.hu).float(), said["hu_to_mu"]["energy_kev"]), volume.affine,
        chest_geometry("PA", 64), pose, np.array(said["geometry"]["isocentre_lps_mm"]),
    )[0]  # fmt: skip
    low, high = said["appearance"]["window"]
    with Image.open(made.folder / "pose-001.png") as image:
        assert image.mode.startswith("I")
        pixels = np.asarray(image).astype(float) / 65535
    assert pixels == pytest.approx(np.clip((integrals.numpy() - low) / (high - low), 0, 1), abs=2e-5)
    assert said["source_sha256"] == item.digest == hashlib.sha256(item.exam.path.read_bytes()).hexdigest()
    assert said["seed"] == 42


def test_first_pose_is_straight_and_others_do_not_depend_on_their_number() -> None:
    few, many = (draw_poses(DrrConfig(poses=n, max_angle_deg=6, max_shift_mm=12), "abc") for n in (3, 5))
    assert float(few.angles_deg[0].abs().max()) == float(few.shift_mm[0].abs().max()) == 0
    assert bool((few.angles_deg == many.angles_deg[:3]).all())
    assert 0.1 < float(many.angles_deg[1:].abs().max()) <= 6
    assert 0.1 < float(many.shift_mm[1:].abs().max()) <= 12
    assert not bool((draw_poses(DrrConfig(poses=3), "another").angles_deg[1] == few.angles_deg[1]).any())


def test_central_beam_goes_through_the_middle_of_the_lungs() -> None:
    volume = _chest()
    cut = volume.crop((slice(None), slice(None), slice(8, None)))
    lungs = isocentre(volume, "lungs")
    # cropping one flank moves the volume's middle by 4 voxels, and the lungs not at all
    assert isocentre(cut, "volume")[0] - isocentre(volume, "volume")[0] == pytest.approx(4 * 5.25)
    assert isocentre(cut, "lungs") == pytest.approx(lungs, abs=3)
    air = np.argwhere((volume.hu > -970) & (volume.hu < -400))
    world = (volume.affine @ np.array([*((air.min(0) + air.max(0)) / 2)[::-1], 1]))[:3]
    assert lungs == pytest.approx(world, abs=25)
    nothing = dataclasses.replace(volume, hu=np.full_like(volume.hu, -1000))
    assert isocentre(nothing, "lungs") == pytest.approx(isocentre(volume, "volume"))


def test_edge_padding_repeats_the_end_slices_in_place() -> None:
    volume = _chest()
    longer = extend_volume(volume, 20.0)
    assert longer.shape == (volume.shape[0] + 8, *volume.shape[1:])
    assert (longer.hu[:4] == volume.hu[0]).all()
    assert (longer.hu[-4:] == volume.hu[-1]).all()
    assert (longer.affine @ [3, 5, 4, 1]) == pytest.approx(volume.affine @ [3, 5, 0, 1])
    assert extend_volume(volume, 0.0) is volume


@pytest.mark.parametrize("code", ["RPS", "RAS", "LAI", "SRA", "PIR"])
@pytest.mark.parametrize("padding", [0.0, 40.0])
def test_how_the_voxels_are_stored_changes_no_image(code: str, padding: float) -> None:
    volume = _chest()
    config = DrrConfig(size=48, poses=2, edge_padding_mm=padding)
    turned = from_sitk(sitk.DICOMOrient(to_sitk(volume), code))
    assert turned.orientation == code
    plain, other = (project(v, config, draw_poses(config, "x"), isocentre(v, "lungs")) for v in (volume, turned))
    assert float((plain - other).abs().max()) < 1e-3
    # and the chest is not symmetric, so that a mirrored image would not pass
    assert float((plain - plain.flip(-1)).abs().max()) > 1


def test_oblique_scan_gives_the_image_of_the_straight_one() -> None:
    volume = _chest()
    a, b = np.radians(12), np.radians(8)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    direction, size, spacing = about_z @ about_x, np.array([100, 90, 80]), np.array([5.0, 4.5, 5.0])
    middle = isocentre(volume, "volume")
    oblique = sitk.Resample(
        to_sitk(volume), size.tolist(), sitk.Transform(), sitk.sitkLinear,
        (middle - direction @ ((size - 1) / 2 * spacing)).tolist(), spacing.tolist(), direction.ravel().tolist(), -1000,
    )  # fmt: skip
    config = DrrConfig(size=48, poses=2)
    plain, other = (project(v, config, draw_poses(config, "x"), middle).numpy() for v in (volume, from_sitk(oblique)))
    assert np.corrcoef(plain.ravel(), other.ravel())[0, 1] > 0.999
    assert np.corrcoef(plain[..., ::-1].ravel(), other.ravel())[0, 1] < 0.98


def test_an_unreadable_ct_is_an_outcome_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 not a zip")
    item = scan([CtExam("broken", "p", tmp_path / "broken.npz")])[0][0]
    made = render_exam(item, SMALL, tmp_path / "artifacts")
    assert made.folder is None
    assert made.reason.startswith("damaged, or not an .npz of numbers")
    assert str(tmp_path) not in made.reason


def test_same_ct_and_settings_still_give_the_pixels_of_this_version(tmp_path: Path) -> None:
    """Golden: when this fails because the images were meant to change, raise CODE_TAG and write the new values."""
    z, y, x = np.meshgrid(*[np.arange(n) for n in (24, 28, 32)], indexing="ij")
    hu = (((x * 7 + y * 5 + z * 3) % 41) * 20 - 700).astype(np.int16)
    item = _scanned(tmp_path, Volume(hu, (9.0, 10.0, 11.0), (-140.0, -135.0, -120.0)))
    # the poses of a CT come from its hash, and that of an .npz file is numpy's affair
    item = dataclasses.replace(item, digest="golden")
    made = render_exam(item, DrrConfig(size=32, poses=2, centre="volume", seed=1), tmp_path / "artifacts")
    assert made.folder is not None
    points = [(16, 16), (10, 20), (25, 6)]
    found = []
    for k in range(2):
        with Image.open(made.folder / f"pose-{k:03d}.png") as image:
            pixels = np.asarray(image)
        found += [int(pixels[p]) for p in points]
    assert CODE_TAG == "drr-2"
    assert found == pytest.approx(GOLDEN, abs=3)


GOLDEN = [36878, 35337, 35810, 36377, 36425, 37178]


OTHER = {
    "renderer": "diffdrr-siddon", "view": "AP", "poses": 3, "size": 32, "field_mm": 300.0, "centre": "volume",
    "edge_padding_mm": 60.0, "max_angle_deg": 1.0, "max_shift_mm": 1.0, "energy_kev": 60.0, "series": "most-slices",
    "seed": 5, "appearance": {"gamma": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("name", list(DrrConfig.model_fields))
def test_every_setting_changes_the_images_or_what_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "renderer":
        pytest.importorskip("diffdrr")
    item = _scanned(tmp_path, _chest().crop((slice(None), slice(None), slice(6, None))))
    asked: list[str] = []

    def reading(path: Path, series: str) -> object:
        asked.append(series)
        return read_volume(path)

    monkeypatch.setattr("embedprior.imaging.drr.render.read_volume", reading)
    plain = DrrConfig(size=24, poses=2)
    other = DrrConfig.model_validate(plain.model_dump() | {name: OTHER[name]})
    one, two = (render_exam(item, c, tmp_path / "artifacts").folder for c in (plain, other))
    assert one is not None
    assert two is not None

    def pixels(folder: Path) -> list[bytes]:
        return [f.read_bytes() for f in sorted(folder.glob("*.png"))]

    assert pixels(one) != pixels(two) or asked == ["only", "most-slices"]


def test_another_version_of_a_renderer_renders_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item, calls = _scanned(tmp_path, _chest()), []

    def mine(*given: object) -> torch.Tensor:
        calls.append(given)
        return physics.render_planesweep(*given)

    monkeypatch.setitem(RENDERERS, "mine", "own_renderer:render")
    monkeypatch.setitem(sys.modules, "own_renderer", types.SimpleNamespace(render=mine))
    config = DrrConfig(size=32, renderer="mine")
    first = render_exam(item, config, tmp_path / "artifacts")
    assert render_exam(item, config, tmp_path / "artifacts").reused
    mine.version = 2  # type: ignore[attr-defined]
    second = render_exam(item, config, tmp_path / "artifacts")
    assert (second.reused, len(calls)) == (False, 2)
    assert second.folder != first.folder
    assert second.folder is not None
    assert read_json(second.folder / "pose-000.json")["code"] == "drr-2/mine-2"


def test_a_renderer_without_a_version_is_known_by_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_renderer.py"
    monkeypatch.setitem(RENDERERS, "edited", "edited_renderer:render")
    file.write_text("def render(*given): return 1\n")
    before = renderer_version("edited")
    file.write_text("def render(*given): return 2\n")
    assert before != renderer_version("edited")
    assert before == "source " + hashlib.sha256(b"def render(*given): return 1\n").hexdigest()[:16]
    monkeypatch.setitem(RENDERERS, "edited", "math:sin")
    with pytest.raises(BadInput, match="'edited' states no version, and its source can't be read"):
        renderer_version("edited")
