"""What every encoder sees and says, by transform_version.

A change of preprocessing, weights or arithmetic that moves these numbers needs a new transform_version, a new entry
here, and thereby new caches.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from embedprior.encoders import pixels
from embedprior.encoders.base import TokenEncoder
from embedprior.encoders.registry import ENCODERS, create_encoder, encoder_card
from embedprior.errors import BadInput

from .golden import digest, make_encoder, write_inputs

# (name, transform_version): digests of what `read` gives, and of the embedding of it
GOLDEN = {
    ("efficientnet-lite0", 2): (
        [-1.0, -0.3652, -0.5758, 0.1104, 0.5721, -0.4231, -0.0177, -1.0, -0.2468, 0.6029],
        [0.0, 0.0089, 0.0, 0.0, 0.0, 2.653, 0.0, 0.0, 0.1579, 0.4216],
    ),
    ("pixels-128", 2): (
        [0.0, 153.0, 146.0, 138.0, 163.0, 110.0, 105.0, 0.0, 95.5845, 76.9311],
        [0.0, 153.0, 146.0, 138.0, 163.0, 110.0, 105.0, 0.0, 95.5845, 76.9311],
    ),
    ("radiograph-cnn", 2): (
        [65.0, 172.0, 244.0, 97.0, 201.0, 25.0, 136.0, 230.0, 145.8231, 75.8671],
        [0.0348, 0.3434, -0.278, 0.5935, 0.0348, 0.3434, -0.278, 0.5935, 0.0512, 0.3387],
    ),
    ("slice-cnn", 1): (
        [231.0, 221.0, 204.0, 133.0, 226.0, 181.0, 144.0, 190.0, 165.1346, 46.5211],
        [-0.0013, 0.4039, -0.31, 0.6542, 0.0021, 0.4091, -0.3068, 0.6594, 0.0524, 0.3767],
    ),
    ("vit-b16", 2): (
        [0.0, 0.3174, 0.2121, 0.5552, 0.786, 0.2884, 0.4911, 0.0, 0.3766, 0.3015],
        [-1.6025, 1.7581, -0.9743, -0.0179, 0.5166, -0.8143, 0.7536, -0.6827, -0.0003, 1.003],
    ),
}


ELSEWHERE = {
    **dict.fromkeys(
        ("biomedclip", "dinov2-vitb14", "dinov2-vitb14-reg", "dinov2-vits14", "dinov2-vits14-reg", "penet",
         "radimagenet-resnet50", "dinov2-vitl14", "dinov2-vitl14-reg", "dinov2-vitg14", "dinov2-vitg14-reg"),
        "test_checkpoints.py",
    ),
    **dict.fromkeys(("chest-ct-resnet152", "merlin"), "test_volumes.py"),
}  # fmt: skip
"""Encoders whose weights are not here, or are too large to be read in every test run."""


def found(name: str, folder: Path) -> tuple[int, list[float], list[float]]:
    paths, encoder = write_inputs(folder), make_encoder(name, folder)
    seen = encoder.read(folder, paths[encoder.spec.modality])
    said = encoder.embed(seen[None])[0]
    return encoder.spec.profile["transform_version"], digest(seen), digest(said)


def test_every_encoder_has_golden_values_here_or_published_tensors_in_another_test() -> None:
    named = {name for name, _ in GOLDEN}
    assert named | set(ELSEWHERE) == set(ENCODERS)


@pytest.mark.parametrize("name", sorted({name for name, _ in GOLDEN}))
def test_encoder_has_the_golden_values_of_its_transform_version(name: str, tmp_path: Path) -> None:
    if name in ("vit-b16", "efficientnet-lite0"):
        pytest.importorskip("timm")
    version, seen, said = found(name, tmp_path)
    assert (name, version) in GOLDEN, "a new encoder or transform_version needs its golden values here"
    np.testing.assert_allclose(seen, GOLDEN[name, version][0], atol=2e-3)
    np.testing.assert_allclose(said, GOLDEN[name, version][1], atol=4e-3)


def test_one_changed_number_leaves_the_golden_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "SIDE", 127)
    version, seen, _ = found("pixels-128", tmp_path)
    assert not np.allclose(seen, GOLDEN["pixels-128", version][0], atol=2e-3)


@pytest.mark.parametrize("name", sorted({name for name, _ in GOLDEN} - {"vit-b16"}))
def test_tokens_are_as_many_and_as_long_as_the_spec_says(name: str, tmp_path: Path) -> None:
    if name == "efficientnet-lite0":
        pytest.importorskip("timm")
    paths, encoder = write_inputs(tmp_path), make_encoder(name, tmp_path)
    assert (encoder.spec.token_dim is not None) == isinstance(encoder, TokenEncoder)
    if not isinstance(encoder, TokenEncoder):
        return
    batch = encoder.read(tmp_path, paths[encoder.spec.modality])[None]
    (tokens,) = encoder.tokens(np.concatenate([batch, batch]))[:1]
    assert tokens.shape[1] == encoder.spec.token_dim
    if name == "efficientnet-lite0":
        np.testing.assert_allclose(tokens.mean(0), encoder.embed(batch)[0], atol=1e-4)
    else:
        pooled = np.concatenate([tokens.mean(0), tokens.max(0)])
        np.testing.assert_allclose(pooled, encoder.embed(batch)[0], atol=1e-5)


@pytest.mark.parametrize("name", sorted({name for name, _ in GOLDEN} - {"vit-b16"}))
def test_card_agrees_with_the_spec(name: str, tmp_path: Path) -> None:
    if name == "efficientnet-lite0":
        pytest.importorskip("timm")
    card, encoder = encoder_card(name), make_encoder(name, tmp_path)
    assert card is not None
    assert card.modality == encoder.spec.modality
    assert bool(card.tokens) == (encoder.spec.token_dim is not None)
    assert card.dim in (encoder.spec.dim, "by its weights")
    if "cnn" in name:
        assert encoder.spec.patients_seen == ("p1", "p2")


def test_unknown_and_missing_options_are_named() -> None:
    from embedprior.encoders.registry import create_encoder

    with pytest.raises(BadInput, match=r"no option 'geometri'.*Did you mean 'geometry'"):
        create_encoder("pixels-128", geometri="crop")
    with pytest.raises(BadInput, match="needs 'weights'"):
        create_encoder("slice-cnn")
    with pytest.raises(BadInput, match=r"unknown geometry 'letter'.*letterbox"):
        create_encoder("pixels-128", geometry="letter")


@pytest.mark.parametrize("name", ["efficientnet-lite0", pytest.param("chest-ct-resnet152", marks=pytest.mark.slow)])
def test_real_weights_are_checked_against_their_golden_embedding_after_loading(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedprior.encoders.registry import REGISTRY
    from embedprior.errors import EmbedpriorError

    made = REGISTRY.load(name)
    pytest.importorskip(made.card.module)
    pytest.importorskip("timm")
    assert create_encoder(name).spec.weights_sha256 == made.golden.weights_sha256
    moved = dataclasses.replace(made.golden, numbers=(*made.golden.numbers[:-1], 7.0))
    monkeypatch.setattr(made, "golden", moved)
    with pytest.raises(EmbedpriorError, match=r"for a fixed input, not .*7\.0.*its network has changed"):
        create_encoder(name)
    assert create_encoder(name, random_init=True).spec.weights_sha256.startswith("random")  # nothing to compare with


def test_the_listing_says_which_weights_are_here_and_what_gets_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from embedprior.cli import main
    from embedprior.encoders.registry import weights_status

    monkeypatch.setenv("EMBEDPRIOR_HOME", str(tmp_path))
    assert weights_status("pixels-128") == "none needed"
    assert weights_status("dinov2-vits14") == "not here"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "dinov2-vits14.pth").write_bytes(b"")
    assert weights_status("dinov2-vits14") == "here (dinov2-vits14.pth)"
    assert main(["encoders", "dinov2-vits14*"]) == 0
    said = capsys.readouterr().out
    assert "wget https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_reg4_pretrain.pth" in said
    assert "dinov2_vits14/dinov2_vits14_pretrain.pth" not in said
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert weights_status("efficientnet-lite0") == "not here"
