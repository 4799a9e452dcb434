from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.lung_network import body_box, find_lungs_by_network, load_lung_network, network_input
from embedprior.imaging.lungs import find_lungs, lung_box
from embedprior.imaging.preprocess import VolumeProfile, load_profile, on_grid, profile_key, profile_record
from embedprior.imaging.volume import Volume

from .conftest import chest

Tensors = dict[str, torch.Tensor]
Edit = Callable[[Tensors], Any]


def published(width: int, classes: int = 3, seed: int = 0) -> Tensors:
    """Random tensors under the names, in the order and of the shapes of the published files (64 filters there)."""
    chance = torch.Generator().manual_seed(seed)
    made: Tensors = {}

    def convolution(name: str, after: int, before: int, side: int) -> None:
        scale = (2 / (before * side * side)) ** 0.5
        made[f"{name}.weight"] = torch.randn(after, before, side, side, generator=chance) * scale
        made[f"{name}.bias"] = torch.randn(after, generator=chance) * 0.1

    def normalisation(name: str, channels: int) -> None:
        made[f"{name}.weight"] = 1 + 0.2 * torch.randn(channels, generator=chance)
        made[f"{name}.bias"] = 0.2 * torch.randn(channels, generator=chance)
        made[f"{name}.running_mean"] = 0.2 * torch.randn(channels, generator=chance)
        made[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=chance)
        made[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def block(name: str, before: int, after: int) -> None:
        convolution(f"{name}.residual_input_conv", after, before, 1)
        normalisation(f"{name}.residual_batchnorm", after)
        for place, channels in ((0, before), (3, after)):
            convolution(f"{name}.block.{place}", after, channels, 3)
            normalisation(f"{name}.block.{place + 2}", after)

    widths = [width * 2**level for level in range(5)]
    for level, (before, after) in enumerate(zip([1, *widths[:4]], widths, strict=True)):
        block(f"down_path.{level}", before, after)
    for step, after in enumerate(reversed(widths[:4])):
        convolution(f"up_path.{step}.residual_input_conv", after, 2 * after, 1)
        normalisation(f"up_path.{step}.residual_batchnorm", after)
        convolution(f"up_path.{step}.up.1", after, 2 * after, 1)
        block(f"up_path.{step}.conv_block", 2 * after, after)
    convolution("last", classes, width, 1)
    return made


def by_hand(t: Tensors, pixels: torch.Tensor) -> torch.Tensor:
    """The same network straight from the tensors."""

    def block(name: str, x: torch.Tensor) -> torch.Tensor:
        for place in (0, 3):
            x = F.relu(F.conv2d(x, t[f"{name}.{place}.weight"], t[f"{name}.{place}.bias"], padding=1))
            mean, var, gain, shift = (
                t[f"{name}.{place + 2}.{part}"].view(1, -1, 1, 1)
                for part in ("running_mean", "running_var", "weight", "bias")
            )
            x = (x - mean) / (var + 1e-5).sqrt() * gain + shift
        return x

    bridges = []
    for level in range(5):
        if level:
            pixels = pixels.reshape(*pixels.shape[:2], pixels.shape[2] // 2, 2, -1, 2).mean(dim=(3, 5))
        pixels = block(f"down_path.{level}.block", pixels)
        bridges.append(pixels)
    pixels = bridges[4]
    for step in range(4):
        wide = F.interpolate(pixels, scale_factor=2, mode="bilinear", align_corners=False)
        narrow = F.conv2d(wide, t[f"up_path.{step}.up.1.weight"], t[f"up_path.{step}.up.1.bias"])
        pixels = block(f"up_path.{step}.conv_block.block", torch.cat([narrow, bridges[3 - step]], dim=1))
    return F.conv2d(pixels, t["last.weight"], t["last.bias"])


def threshold_network(below: float) -> Tensors:
    """Tensors that pass the picture through the topmost bridge and call lung what is darker than ``below``."""
    made = {name: torch.zeros_like(value) for name, value in published(2).items()}
    for name in made:
        if name.endswith("running_var") or (name.endswith("weight") and made[name].ndim == 1):
            made[name] += 1
    made["down_path.0.block.0.weight"][0, 0, 1, 1] = 1
    made["down_path.0.block.3.weight"][0, 0, 1, 1] = 1
    made["up_path.3.conv_block.block.0.weight"][0, 2, 1, 1] = 1  # the bridge comes after what came up
    made["up_path.3.conv_block.block.3.weight"][0, 0, 1, 1] = 1
    made["last.weight"][0, 0] = 1
    made["last.bias"][1], made["last.bias"][2] = below, -1
    return made


@pytest.fixture(scope="module")
def volume() -> Volume:
    return Volume(chest(), (5.0, 5.0, 6.0), (-160.0, -160.0, -100.0))


def saved(path: Path, tensors: Tensors) -> Path:
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize("width, classes", [(64, 3), (4, 6)])
def test_published_layout_gives_the_scores_computed_by_hand(tmp_path: Path, width: int, classes: int) -> None:
    tensors = published(width, classes)
    if width == 64:
        # counted in the published definition of the network
        assert len(tensors) == 227
        assert sum(value.numel() for value in tensors.values()) == 31_073_890
    pixels = torch.rand(1, 1, 32, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = load_lung_network(saved(tmp_path / "unet.pth", tensors))(pixels)
        expected = by_hand(tensors, pixels)
    assert found.shape == (1, classes, 32, 48)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_safetensors_and_files_without_the_unused_layers_are_the_same_network(tmp_path: Path) -> None:
    tensors = published(2)
    bare = {name: value for name, value in tensors.items() if "residual" not in name}
    save_file(bare, tmp_path / "bare.safetensors")
    pixels = torch.rand(1, 1, 32, 32)
    one = load_lung_network(saved(tmp_path / "all.pth", tensors))(pixels)
    other = load_lung_network(tmp_path / "bare.safetensors")(pixels)
    assert torch.equal(one, other)


def test_picture_is_cut_to_the_body_and_scaled_from_its_range_of_hu() -> None:
    plane = np.full((200, 300), -1000, np.int16)
    plane[60:140, 100:220] = 40
    plane[90:100, 120:140] = -900
    plane[5:12, 5:12] = 300  # smaller than the body
    rows, columns = body_box(plane)
    # within one pixel of the 128 x 128 grid on which the body is found
    assert (rows.start, rows.stop) == pytest.approx((60, 140), abs=200 / 128)
    assert (columns.start, columns.stop) == pytest.approx((100, 220), abs=300 / 128)
    assert body_box(np.full((50, 60), -1000, np.int16)) == (slice(0, 50), slice(0, 60))
    ramp = np.linspace(-2000, 1600, 256).astype(np.int16)
    shown = network_input(np.tile(ramp, (256, 1)), (slice(0, 256), slice(0, 256)))
    np.testing.assert_allclose(shown[7], (np.clip(ramp, -1024, 600) + 1024) / 1624, atol=1e-6)


def test_lungs_of_the_network_lie_where_the_threshold_has_them(volume: Volume, tmp_path: Path) -> None:
    weights = saved(tmp_path / "dark.pth", threshold_network((-500 + 1024) / 1624))
    # in a body that fills the slice, so that the air around it can't be taken for lung
    padded = np.where(volume.hu < -950, 40, volume.hu).astype(np.int16)
    volume = volume.with_hu(padded)
    found = find_lungs_by_network(volume, weights)
    assert found.factors == (1, 1, 1)
    truth = padded < -500
    overlap = 2 * (found.mask & truth).sum() / (found.mask.sum() + truth.sum())
    assert overlap > 0.97
    assert found.ml == pytest.approx(truth.sum() * 0.15, rel=0.05)


def test_thin_slices_are_taken_four_millimetres_apart(volume: Volume, tmp_path: Path) -> None:
    weights = saved(tmp_path / "dark.pth", threshold_network((-500 + 1024) / 1624))
    padded = np.where(volume.hu < -950, 40, volume.hu).astype(np.int16)
    thin = Volume(np.repeat(padded, 3, axis=0)[:-1], (5.0, 5.0, 2.0), (-160.0, -160.0, -102.0))
    found = find_lungs_by_network(thin, weights)
    assert found.factors == (2, 1, 1)
    assert len(found.mask) == len(thin.hu) // 2
    box = lung_box(thin, 0.0, found)
    assert box is not None
    hit = np.flatnonzero((thin.hu < -500).sum(axis=(1, 2)) > 20)
    assert box[0].start <= hit[0] <= box[0].start + 8
    assert box[0].stop - 8 <= hit[-1] + 1 <= box[0].stop


def test_profile_crops_to_what_its_network_finds_and_carries_the_weights_in_its_key(
    volume: Volume, tmp_path: Path
) -> None:
    padded = volume.with_hu(np.where(volume.hu < -950, 40, volume.hu).astype(np.int16))
    weights = saved(tmp_path / "dark.pth", threshold_network((-500 + 1024) / 1624))
    (tmp_path / "mine.yaml").write_text(f"lungs: {weights}\nspacing_mm: null\nmargin_mm: 0\n")
    profile = load_profile(str(tmp_path / "mine.yaml"))
    plain = VolumeProfile(spacing_mm=None, margin_mm=0.0)
    cropped = on_grid(padded, profile)
    box = lung_box(padded, 0.0, find_lungs_by_network(padded, weights))
    assert box is not None
    assert cropped.shape == padded.crop(box).shape
    assert find_lungs(cropped).ml > 0.9 * find_lungs(padded).ml
    copied = saved(tmp_path / "elsewhere.pth", torch.load(weights, weights_only=True))
    copied.write_bytes(weights.read_bytes())
    assert profile_key(profile) == profile_key(profile.model_copy(update={"lungs": copied})) != profile_key(plain)
    assert str(tmp_path) not in str(profile_record(profile))
    blind = saved(tmp_path / "blind.pth", threshold_network(-0.5))
    assert profile_key(profile) != profile_key(profile.model_copy(update={"lungs": blind}))
    with pytest.raises(UnreadableExam, match="no lungs"):
        on_grid(padded, profile.model_copy(update={"lungs": blind}))


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda t: t.pop("up_path.2.up.1.bias"), r"lacks up_path\.2\.up\.1\.bias"),
        (lambda t: t.update({"down_path.5.block.0.weight": torch.ones(1)}), r"unknown down_path\.5\.block\.0\.weight"),
        (
            lambda t: t.update({"down_path.3.block.0.weight": torch.ones(16, 8, 1, 1)}),
            r"down_path\.3\.block\.0\.weight \(16, 8, 1, 1\) instead of \(16, 8, 3, 3\)",
        ),
        (lambda t: t.pop("last.weight"), "holds no lung U-Net"),
        (lambda t: t.update({"epoch": 3}), "no table of tensors"),
    ],
)
def test_other_tensors_are_refused_by_name(tmp_path: Path, edit: Edit, words: str) -> None:
    tensors = published(2)
    edit(tensors)
    with pytest.raises(BadInput, match=words):
        load_lung_network(saved(tmp_path / "other.pth", tensors))


class Spy:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def test_weight_file_runs_no_code_and_damage_is_named(
    volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"last.weight": Spy()}, tmp_path / "spy.pth")
    (tmp_path / "noise.pth").write_bytes(b"not weights")
    for name in ("spy.pth", "noise.pth"):
        with pytest.raises(BadInput, match=f"{name} can't be read as weights"):
            load_lung_network(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    missing = VolumeProfile(lungs=tmp_path / "gone.pth")
    for use in (profile_key, lambda profile: on_grid(volume, profile)):
        with pytest.raises(BadInput, match=r"no lung weights at .*gone\.pth.*unet_r231-d5d2fc3d\.pth"):
            use(missing)
    with pytest.raises(ValueError, match="no lungs are looked for"):
        VolumeProfile(lungs=tmp_path / "spy.pth", crop="none")
