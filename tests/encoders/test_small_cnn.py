from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from embedprior.encoders.config import CnnConfig
from embedprior.encoders.registry import create_encoder
from embedprior.encoders.small_cnn import (
    ct_profile,
    ct_slabs,
    radiograph_picture,
    radiograph_profile,
    save_small_cnn,
    train_small_cnn,
)
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam

SMALL = CnnConfig(channels=(4, 8), dim=5, epochs=8, batch_size=8, shift=1, dropout=0.1)


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, with a bright square where the label is 1."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 60, (count, 16, 16), dtype=np.uint8)
    labels = rng.integers(0, 2, count).astype(float)
    for i in np.flatnonzero(labels):
        row, column = rng.integers(2, 10, 2)
        pictures[i, row : row + 4, column : column + 4] = 220
    return pictures, labels


def test_slabs_are_windowed_maxima() -> None:
    volume = np.full((5, 2, 2), -1000, np.int16)
    volume[1, 0, 0], volume[2, 1, 1], volume[4] = 400, -300, 3000
    slabs = ct_slabs(volume, (-1000.0, 400.0), 2)
    assert slabs.shape == (2, 2, 2)  # the fifth slice fills no slab
    assert slabs[0, 0, 0] == 255
    assert slabs[1, 1, 1] == round(255 * 700 / 1400)
    assert slabs[0, 1, 1] == 0


def test_picture_is_stretched_between_its_percentiles() -> None:
    ramp = np.linspace(0.3, 0.7, 10_000, dtype=np.float32).reshape(100, 100)
    picture = radiograph_picture(ramp)
    assert picture.shape == (1, 100, 100)
    assert (picture.min(), picture.max()) == (0, 255)
    assert abs(int(picture[0, 50, 0]) - 128) <= 2


def test_training_learns_and_is_reproducible(tmp_path: Path) -> None:
    train, label = squares(64, 1)
    val, val_label = squares(32, 2)
    first, history = train_small_cnn(train, label, val, val_label, SMALL, 7, "test")
    second, _ = train_small_cnn(train, label, val, val_label, SMALL, 7, "test")
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert min(h["val_loss"] for h in history) < 0.5 < np.log(2)
    assert not any(p.requires_grad for p in first.parameters())


def test_saved_encoder_embeds_as_the_trained_network_does(tmp_path: Path) -> None:
    train, label = squares(16, 1)
    network, _ = train_small_cnn(train, label, train, label, SMALL, 7, "test")
    save_small_cnn(network, SMALL, radiograph_profile((16, 16)), tmp_path)
    encoder = create_encoder("radiograph-cnn", weights=tmp_path)
    expected = network.features(torch.tensor(train[:3]).float() / 127.5 - 1).numpy()
    np.testing.assert_allclose(encoder.embed(train[:3, None]), expected, atol=1e-6)
    assert encoder.spec.dim == 5
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(UnreadableExam, match="size"):
        encoder.read(tmp_path, "x.npy#0")


def test_slice_encoder_reads_volumes(tmp_path: Path) -> None:
    train, label = squares(16, 1)
    both = SMALL.model_copy(update={"slices": "mean and max"})
    network, _ = train_small_cnn(train, label, train, label, both, 7, "test")
    save_small_cnn(network, both, ct_profile((-1000, 400), 2), tmp_path)
    volumes = np.random.default_rng(0).integers(-1000, 400, (2, 6, 16, 16)).astype(np.int16)
    np.save(tmp_path / "v.npy", volumes)
    encoder = create_encoder("slice-cnn", weights=tmp_path)
    batch = np.stack([encoder.read(tmp_path, f"v.npy#{i}") for i in range(2)])
    assert batch.shape == (2, 3, 16, 16)
    each = network.features(torch.tensor(batch[0]).float() / 127.5 - 1).numpy()
    np.testing.assert_allclose(encoder.embed(batch)[0], np.concatenate([each.mean(0), each.max(0)]), atol=1e-5)
    assert encoder.spec.dim == 10
    alone = np.concatenate([encoder.embed(batch[:1]), encoder.embed(batch[1:])])
    np.testing.assert_allclose(encoder.embed(batch), alone, atol=1e-6)


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no trained encoder"):
        create_encoder("slice-cnn", weights=tmp_path)
    with pytest.raises(BadInput, match="Did you mean 'slice-cnn'"):
        create_encoder("slice-cn")
