"""Networks of other libraries by name: timm, a local torch.hub folder, an open_clip folder, torchxrayvision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from embedprior.encoders.base import differing_field, encoder_key
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput
from embedprior.testing import check_encoder

timm = pytest.importorskip("timm")
HUBCONF = """
dependencies = ["torch"]
import torch
class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_dim = 6
        self.net = torch.nn.Conv2d(3, 6, 14, 14)
    def forward_features(self, x):
        cells = self.net(x).flatten(2).transpose(1, 2)
        return {"x_norm_clstoken": cells.mean(1), "x_norm_patchtokens": cells}
    def forward(self, x):
        return self.forward_features(x)["x_norm_clstoken"]
def tiny(pretrained=True):
    return Tiny()
"""


def change(file: Path, part: str | None = None, **values: object) -> None:
    """Write other values into a JSON file, or into one part of it."""
    content = json.loads(file.read_text())
    (content if part is None else content[part]).update(values)
    file.write_text(json.dumps(content))


def differing(other: object, encoder: object) -> str:
    """Return the field of the cache key in which two encoders differ."""
    found = differing_field(encoder_key(other.spec), encoder_key(encoder.spec))  # type: ignore[attr-defined]
    return "" if found is None else found[0]


def batch(side: int = 224) -> np.ndarray:
    return np.random.default_rng(0).random((2, side, side), dtype=np.float32)


def test_any_timm_model_takes_its_own_numbers_and_a_local_checkpoint(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=5)
    torch.save({"model": {f"module.{n}": v for n, v in model.state_dict().items()}}, tmp_path / "own.pth")
    encoder = create_encoder("timm:vit_tiny_patch16_224", weights=tmp_path / "own.pth")
    config = timm.data.resolve_data_config({}, model=model)
    assert encoder.spec.profile["mean"] == list(config["mean"])
    assert (encoder.spec.name, encoder.spec.dim, encoder.spec.token_dim) == ("timm-vit_tiny_patch16_224", 192, 192)
    images = torch.from_numpy(batch())[:, None].expand(-1, 3, -1, -1)
    images = (images - torch.tensor(config["mean"])[:, None, None]) / torch.tensor(config["std"])[:, None, None]
    with torch.inference_mode():
        expected = model.eval().forward_features(images)
    np.testing.assert_allclose(encoder.embed(batch()), expected[:, 0], atol=1e-4)
    np.testing.assert_allclose(encoder.tokens(batch())[1], expected[1, 1:], atol=1e-4)  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match=r"timm has no model 'vit_tiny_patch16_242'\. Did you mean"):
        create_encoder("timm:vit_tiny_patch16_242", random_init=True)
    with pytest.raises(BadInput, match=r"unknown loader 'tim'\. Allowed: hf, .*timm.*Did you mean 'timm'"):
        create_encoder("tim:vit_tiny_patch16_224")


def test_a_convolutional_network_of_timm_keeps_every_promise() -> None:
    assert len(check_encoder("timm:resnet10t", random_init=True)) > 20


def test_a_local_hub_folder_runs_its_own_code_and_a_remote_one_must_be_pinned(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "hubconf.py").write_text(HUBCONF)
    name = f"torchhub:{tmp_path / 'repo'}/tiny"
    torch.manual_seed(3)
    net = torch.nn.Conv2d(3, 6, 14, 14)
    torch.save({f"net.{n}": v for n, v in net.state_dict().items()}, tmp_path / "own.pth")
    encoder = create_encoder(name, weights=tmp_path / "own.pth")
    assert (encoder.spec.name, encoder.spec.dim) == ("torchhub-repo-tiny", 6)
    assert str(tmp_path) not in encoder.spec.model_dump_json()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.inference_mode():
        expected = net((torch.from_numpy(batch())[:, None] - mean) / std).flatten(2)
    np.testing.assert_allclose(encoder.embed(batch()), expected.mean(2), atol=1e-5)
    np.testing.assert_allclose(encoder.tokens(batch())[0], expected[0].T, atol=1e-5)  # type: ignore[attr-defined]
    (tmp_path / "repo" / "hubconf.py").write_text(HUBCONF.replace("cells.mean(1)", "cells.amax(1)"))
    assert differing(create_encoder(name, weights=tmp_path / "own.pth"), encoder) == "profile.configuration"
    with pytest.raises(BadInput, match="pin the commit"):
        create_encoder("torchhub:facebookresearch/dinov2@main/dinov2_vits14", random_init=True)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A tiny open_clip model as a local folder: its configuration and its weights."""
    clip = pytest.importorskip("open_clip")
    model_cfg = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    numbers = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "size": [32, 32]}
    folder = tmp_path / "tiny-clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": numbers}))
    torch.manual_seed(5)
    model = clip.CLIP(12, model_cfg["vision_cfg"], model_cfg["text_cfg"])
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder


def test_an_open_clip_folder_brings_weights_and_numbers(clip_folder: Path) -> None:
    clip = pytest.importorskip("open_clip")
    encoder = create_encoder(f"open_clip:local-dir:{clip_folder}")
    assert (encoder.spec.name, encoder.spec.dim) == ("open_clip-tiny-clip", 12)
    assert (encoder.spec.profile["side"], encoder.spec.profile["mean"]) == (32, [0.4, 0.5, 0.6])
    theirs, _ = clip.create_model_from_pretrained(f"local-dir:{clip_folder}")
    images = torch.from_numpy(batch(32))[:, None].expand(-1, 3, -1, -1)
    images = (images - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.25, 0.3])[:, None, None]
    with torch.inference_mode():
        expected = theirs.eval().encode_image(images).numpy()
    np.testing.assert_allclose(encoder.embed(batch(32)), expected, atol=1e-5)
    change(clip_folder / "open_clip_config.json", "model_cfg", quick_gelu=True)
    other = create_encoder(f"open_clip:local-dir:{clip_folder}")
    assert differing(other, encoder) == "profile.configuration"
    (clip_folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(BadInput, match="needs weights"):
        create_encoder(f"open_clip:local-dir:{clip_folder}")


def test_torchxrayvision_s_densenet_gets_its_own_range(tmp_path: Path) -> None:
    xray = pytest.importorskip("torchxrayvision")
    torch.manual_seed(0)
    model = xray.models.DenseNet(weights=None, num_classes=18).eval()
    torch.save(model.state_dict(), tmp_path / "own.pt")
    encoder = create_encoder("txrv:densenet121-res224-all", weights=tmp_path / "own.pt")
    with torch.inference_mode():
        expected = model.features2(torch.from_numpy(batch())[:, None] * 2048 - 1024).numpy()
    np.testing.assert_allclose(encoder.embed(batch()), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(BadInput, match="txrv:resnet50"):
        create_encoder("txrv:resnet50-res512-all", random_init=True)


def test_a_hugging_face_folder_brings_its_own_numbers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                                       patch_size=14)  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Dinov2Model(config).eval()
    folder = tmp_path / "tiny-dino"
    model.save_pretrained(folder)
    numbers = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2], "crop_size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(numbers))
    encoder = create_encoder(f"hf:{folder}")
    assert (encoder.spec.name, encoder.spec.dim, encoder.spec.profile["side"]) == ("hf-tiny-dino", 24, 28)
    images = torch.from_numpy(batch(28))[:, None].expand(-1, 3, -1, -1)
    images = (images - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / 0.2
    with torch.inference_mode():
        expected = model(pixel_values=images)
    np.testing.assert_allclose(encoder.embed(batch(28)), expected.pooler_output, atol=1e-5)
    np.testing.assert_allclose(encoder.tokens(batch(28))[0], expected.last_hidden_state[0, 1:], atol=1e-5)  # type: ignore[attr-defined]
    change(folder / "config.json", layer_norm_eps=0.1)
    other = create_encoder(f"hf:{folder}")
    assert differing(other, encoder) == "profile.configuration"
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop("layernorm.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"missing keys, first 'layernorm\.weight'"):
        create_encoder(f"hf:{folder}")
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(BadInput, match="has no 'image_mean'"):
        create_encoder(f"hf:{folder}")
    with pytest.raises(BadInput, match="huggingface-cli download NAME --local-dir FOLDER"):
        create_encoder(f"hf:{tmp_path}")
