"""What a study reads beside the embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedprior.cache import write_cache
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput
from embedprior.study.inputs import Caches

IDS, SOURCES = ["a", "b"], ["0" * 64, "1" * 64]


def spec(dim: int, **changes: object) -> EncoderSpec:
    plain = {
        "name": "means", "modality": "CXR", "dim": dim, "source": "test", "weights_sha256": "none",
        "licence": "none", "profile": {}, "pooling": "none",
    }  # fmt: skip
    return EncoderSpec(**{**plain, **changes})


def test_pixels_are_squares_and_short_tokens_are_filled_with_nan(tmp_path: Path) -> None:
    cxr = write_cache(tmp_path / "cxr", spec(3), IDS, SOURCES, np.ones((2, 3), np.float32))
    grey = np.arange(32, dtype=np.uint8).reshape(2, 16)
    pixels = write_cache(tmp_path / "pixels", spec(16, dtype="uint8"), IDS, SOURCES, grey)
    each = [np.full((2, 4), 5.0, np.float32), np.full((1, 4), 7.0, np.float32)]
    tokens = write_cache(tmp_path / "tokens", spec(4, token_dim=4), IDS, SOURCES, each, tokens=True)
    caches = Caches(cxr, None, pixels, tokens)
    np.testing.assert_array_equal(caches.pixels_of(["b"]), grey[1].reshape(1, 4, 4))
    found = caches.tokens_of(["b", "a"])
    assert found is not None
    assert np.isnan(found[0, 1]).all()
    np.testing.assert_array_equal(found[0, 0], each[1][0])
    np.testing.assert_array_equal(found[1], each[0])
    assert Caches(cxr).pixels_of(IDS) is None
    with pytest.raises(BadInput, match="no tokens"):
        Caches(cxr, tokens=cxr).tokens_of(IDS)
