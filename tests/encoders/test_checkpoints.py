"""Checkpoints built tensor by tensor from lists of the published files load strictly and run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput

from .golden import picture

pytest.importorskip("timm")
LISTS = Path(__file__).parents[3] / "shared" / "facts" / "checkpoints"
PUBLISHED = {
    "dinov2-vits14": ("dinov2_vits14", 384),
    "dinov2-vits14-reg": ("dinov2_vits14_reg", 384),
    "dinov2-vitb14": ("dinov2_vitb14", 768),
    "dinov2-vitb14-reg": ("dinov2_vitb14_reg", 768),
    "biomedclip": ("biomedclip_visual", 512),
    "radimagenet-resnet50": ("radimagenet_resnet50", 2048),
}
LARGE = ("dinov2-vitb14", "dinov2-vitb14-reg", "biomedclip")
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def published() -> Callable[[str], Tensors]:
    """Return small random tensors of the names and shapes of a published file."""

    def build(name: str) -> Tensors:
        if not LISTS.is_dir():
            pytest.skip("lists of published tensors (../shared/facts/checkpoints) are not here")
        generator, found = torch.Generator().manual_seed(0), {}
        for line in (LISTS / f"{name}.txt").read_text().splitlines():
            if line.startswith("#"):
                continue
            tensor, shape, kind = line.split("\t")
            sizes = [int(n) for n in shape.strip("()").split(",") if n.strip()]
            if kind == "int64":
                found[tensor] = torch.zeros(sizes, dtype=torch.int64)
            elif tensor.endswith(("running_var", "gamma")) or (tensor.endswith("weight") and len(sizes) == 1):
                found[tensor] = 1 + 0.1 * torch.rand(sizes, generator=generator)
            else:
                spread = (2 / np.prod(sizes[1:])) ** 0.5 if tensor.endswith("weight") else 0.1  # He et al. 2015
                found[tensor] = float(spread) * torch.randn(sizes, generator=generator)
        return found

    return build


def pictures() -> np.ndarray:
    square = picture(224, 224)
    return np.stack([square, square[::-1]])


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in PUBLISHED])
def test_a_published_checkpoint_loads_strictly_and_runs(name: str, published: Callable, tmp_path: Path) -> None:
    listed, dim = PUBLISHED[name]
    tensors = published(listed)
    torch.save(tensors, tmp_path / "own.pth")
    encoder = create_encoder(name, weights=tmp_path / "own.pth")
    assert encoder.spec.dim == dim
    found = encoder.embed(pictures())
    assert found.shape == (2, dim)
    assert np.isfinite(found).all()
    assert np.abs(found[0] - found[1]).max() > 1e-4
    first = next(iter(tensors))
    changed = {**tensors, first: tensors[first] + 0.5}
    torch.save({f"module.{n}": v for n, v in changed.items()}, tmp_path / "other.pth")
    assert not np.allclose(create_encoder(name, weights=tmp_path / "other.pth").embed(pictures()), found)
    half = create_encoder(name, weights=tmp_path / "own.pth", precision="bf16").embed(pictures())
    cosine = (half * found).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(found, axis=1)
    assert 0 < float((1 - cosine).max()) < 5e-3


@pytest.mark.parametrize("name", ["dinov2-vits14", "radimagenet-resnet50"])
def test_a_missing_an_unknown_and_a_misshapen_tensor_are_named(name: str, published: Callable, tmp_path: Path) -> None:
    tensors = published(PUBLISHED[name][0])
    victim = next(n for n in tensors if n.endswith("weight"))
    own = victim.removeprefix("backbone.")
    for changed, message in (
        ({n: v for n, v in tensors.items() if n != victim}, rf"lacks tensor '{own}'"),
        ({**tensors, f"{victim}_2": tensors[victim]}, rf"not known, '{own}_2'"),
        ({**tensors, victim: tensors[victim][:1].clone()}, rf"'{own}' has shape \(1, "),
    ):
        torch.save(changed, tmp_path / "own.pth")
        with pytest.raises(BadInput, match=message):
            create_encoder(name, weights=tmp_path / "own.pth")


def test_the_text_tower_of_biomedclip_is_left_out_and_a_stranger_is_not(published: Callable, tmp_path: Path) -> None:
    tensors = published("biomedclip_visual")
    text = {"text.transformer.embeddings.weight": torch.zeros(3, 4), "logit_scale": torch.zeros(())}
    torch.save(tensors | text, tmp_path / "whole.bin")
    assert create_encoder("biomedclip", weights=tmp_path / "whole.bin").spec.dim == 512
    torch.save(tensors | {"visual.odd": torch.zeros(3)}, tmp_path / "odd.bin")
    with pytest.raises(BadInput, match="not known, 'odd'"):
        create_encoder("biomedclip", weights=tmp_path / "odd.bin")


def test_radimagenet_s_scale_is_a_choice_and_part_of_the_key(published: Callable, tmp_path: Path) -> None:
    torch.save(published("radimagenet_resnet50"), tmp_path / "ResNet50.pt")
    half, other = (create_encoder("radimagenet-resnet50", weights=tmp_path / "ResNet50.pt", scale=s)
                   for s in ("half", "imagenet"))  # fmt: skip
    assert half.spec.profile["mean"] == [0.5, 0.5, 0.5]
    assert half.spec.profile != other.spec.profile
    assert not np.allclose(half.embed(pictures()), other.embed(pictures()))
    with pytest.raises(BadInput, match=r"scale 'none'\. Allowed: half, imagenet"):
        create_encoder("radimagenet-resnet50", random_init=True, scale="none")


@pytest.mark.parametrize("form", ["plain", "published", "older"])
def test_penet_loads_from_every_form_of_its_file_and_runs(form: str, published: Callable, tmp_path: Path) -> None:
    tensors = published("penet_classifier")
    if form == "older":
        tensors = {n.replace("penet_blocks", "xnet_blocks"): v for n, v in tensors.items()}
    content: dict = {f"module.{n}": v for n, v in tensors.items()} if form != "plain" else tensors
    if form != "plain":
        content = {"ckpt_info": {"epoch": 1}, "model_name": "PENetClassifier", "model_state": content, "optimizer": {}}
    torch.save(content, tmp_path / "penet_best.pth.tar")
    encoder = create_encoder("penet", weights=tmp_path / "penet_best.pth.tar")
    windows = np.random.default_rng(0).random((1, 2, 1, 8, 32, 32), dtype=np.float32) - 0.16
    (tokens,) = encoder.tokens(windows)  # type: ignore[attr-defined]
    assert tokens.shape == (2, 2048)
    assert np.isfinite(tokens).all()
    np.testing.assert_allclose(encoder.embed(windows)[0], tokens.mean(0), atol=1e-6)
    if form == "plain":
        tensors.pop("classifier.fc.bias")
        torch.save(tensors, tmp_path / "short.pth")
        with pytest.raises(BadInput, match=r"does not fit PENet: it lacks tensor 'classifier\.fc\.bias'"):
            create_encoder("penet", weights=tmp_path / "short.pth")


def test_dinov2_s_positions_are_those_of_the_grid_when_nothing_is_resized() -> None:
    from embedprior.encoders.dinov2 import resized

    grid = torch.arange(4 * 4 * 3, dtype=torch.float32).reshape(1, 16, 3)
    assert torch.equal(resized(grid, 4, registers=True), grid)
    rows = torch.linspace(0, 1, 37)[:, None].expand(37, 37).reshape(1, -1, 1)
    for registers in (False, True):
        small = resized(rows.contiguous(), 16, registers).reshape(16, 16)
        assert float((small - small[:, :1]).abs().max()) < 1e-5  # constant along columns, as it was
        assert bool((small[1:, 0] > small[:-1, 0]).all())
