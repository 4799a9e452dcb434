from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embedprior.cache.verify import quantization_error
from embedprior.encoders.base import encoder_key, key8
from embedprior.encoders.pictures import IMAGENET, VitB16
from embedprior.errors import BadInput

from .golden import picture

timm = pytest.importorskip("timm")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code on ViT-Ti/16, a fifteenth of the weights; the golden test has ViT-B/16 itself."""
    monkeypatch.setattr(VitB16, "architecture", "vit_tiny_patch16_224")


@pytest.fixture
def encoder(tiny: None) -> VitB16:
    return VitB16(random_init=True)


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    square = picture(224, 224)
    return np.stack([square, square[::-1], square.T])


def test_embedding_is_the_class_token_and_tokens_are_the_patches(encoder: VitB16, batch: np.ndarray) -> None:
    model, (mean, std) = encoder.backbone.module["trunk"], IMAGENET
    pixels = torch.from_numpy(batch.copy())[:, None].expand(-1, 3, -1, -1)
    pixels = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.inference_mode():
        expected = model(pixels).numpy()
        features = model.forward_features(pixels).numpy()
    np.testing.assert_allclose(encoder.embed(batch), expected, atol=1e-4)
    tokens = encoder.tokens(batch)
    assert [t.shape for t in tokens] == [(196, 192)] * 3
    np.testing.assert_allclose(tokens[1], features[1, 1:], atol=1e-4)


def test_weights_decide_and_are_stamped(encoder: VitB16, batch: np.ndarray, tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in encoder.backbone.module["trunk"].state_dict().items()}
    state["head.weight"] = torch.zeros(10, 192)
    state["cls_token"] += 0.5
    save_file(state, tmp_path / "own.safetensors")
    torch.save(state, tmp_path / "own.pth")
    own, same = VitB16(tmp_path / "own.safetensors"), VitB16(tmp_path / "own.pth")
    np.testing.assert_array_equal(own.embed(batch[:1]), same.embed(batch[:1]))
    assert not np.allclose(own.embed(batch[:1]), encoder.embed(batch[:1]))
    assert encoder.spec.weights_sha256 == "random-init-0"
    assert len({key8(encoder_key(e.spec)) for e in (own, same, encoder)}) == 3
    state.pop("cls_token")
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(BadInput, match="cls_token"):
        VitB16(tmp_path / "short.safetensors")


class Payload:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (Path(self.marker),))


@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors"])
def test_pickle_in_place_of_weights_is_refused_and_not_executed(tmp_path: Path, name: str) -> None:
    torch.save({"cls_token": Payload(str(tmp_path / "executed"))}, tmp_path / name)
    with pytest.raises(BadInput, match="can't be read as weights"):
        VitB16(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_missing_weights_are_an_error_and_random_ones_need_the_word(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--random-init"):
        VitB16()
    with pytest.raises(BadInput, match="no weights at"):
        VitB16(tmp_path / "absent.pth")


def test_bf16_drifts_little_and_has_a_key_of_its_own(encoder: VitB16, batch: np.ndarray) -> None:
    half = VitB16(random_init=True, precision="bf16")
    moved = quantization_error(encoder.embed(batch), half.embed(batch))
    assert 0 < float(moved["one_minus_cos_max"] or 0) < 1e-3
    assert half.embed(batch).dtype == np.float32
    assert key8(encoder_key(half.spec)) != key8(encoder_key(encoder.spec))
    with pytest.raises(BadInput, match="precision"):
        VitB16(random_init=True, precision="fp8")  # type: ignore[arg-type]
