from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from embedprior.cache import build_cache, open_cache
from embedprior.encoders.base import EncoderSpec, encoder_key
from embedprior.errors import BadInput
from embedprior.imaging.files import read_image


class MeanEncoder:
    """Means of the four quadrants: an encoder whose answer is known."""

    def __init__(self, **changes: Any) -> None:
        base = {
            "name": "means", "modality": "image", "dim": 4, "source": "test", "weights_sha256": "none",
            "licence": "none", "profile": {"transform_version": 1}, "pooling": "quadrants",
        }  # fmt: skip
        self.spec = EncoderSpec(**(base | changes))
        self.seen = 0

    def read(self, root: Path, path: str) -> np.ndarray:
        return read_image(root, path)

    def embed(self, batch: np.ndarray) -> np.ndarray:
        self.seen += len(batch)
        return np.stack([quadrants(picture) for picture in batch])


def quadrants(picture: np.ndarray) -> np.ndarray:
    return np.array([part.mean() for half in np.split(picture, 2) for part in np.split(half, 2, axis=1)], np.float32)


def make_exams(root: Path, count: int) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(root / f"{i}.png")
    return pd.DataFrame(
        {
            "exam_id": [f"e{i}" for i in range(count)], "patient_id": [f"p{i}" for i in range(count)],
            "modality": "CXR", "path": [f"{i}.png" for i in range(count)],
        }
    )  # fmt: skip


def test_cache_holds_what_the_encoder_says(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 7)
    cache, failures = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache", batch_size=3)
    assert failures == []
    assert sorted(cache.ids) == sorted(exams["exam_id"])
    expected = np.stack([quadrants(np.asarray(Image.open(tmp_path / f"{i}.png")) / np.float32(255)) for i in (6, 0)])
    np.testing.assert_allclose(cache.take(["e6", "e0"]), expected, atol=1e-6)


def test_second_run_embeds_nothing_and_a_changed_file_only_its_shard(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 4)
    build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache", batch_size=2)
    again = MeanEncoder()
    build_cache(exams, tmp_path, again, tmp_path / "cache")
    assert again.seen == 0
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "2.png")
    cache, _ = build_cache(exams, tmp_path, again, tmp_path / "cache")
    np.testing.assert_array_equal(cache.take(["e2"]), np.zeros((1, 4)))
    assert sorted(cache.ids) == ["e0", "e1", "e2", "e3"]


def test_one_damaged_exam_is_recorded_and_the_rest_go_on(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 3)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    cache, failures = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache")
    assert sorted(cache.ids) == ["e0", "e2"]
    assert [f["exam_id"] for f in failures] == ["e1"]
    assert str(tmp_path) not in failures[0]["reason"]
    with pytest.raises(BadInput, match="e1"):
        cache.take(["e0", "e1"])


@pytest.mark.parametrize(
    "change", [{"weights_sha256": "other"}, {"profile": {"transform_version": 2}}, {"dtype": "float16"}]
)
def test_another_origin_is_refused_with_the_field_named(tmp_path: Path, change: dict[str, Any]) -> None:
    cache, _ = build_cache(make_exams(tmp_path, 2), tmp_path, MeanEncoder(), tmp_path / "cache")
    with pytest.raises(BadInput, match=next(iter(change))):
        open_cache(cache.path, expect=encoder_key(MeanEncoder(**change).spec))


def test_damage_is_found(tmp_path: Path) -> None:
    cache, _ = build_cache(make_exams(tmp_path, 4), tmp_path, MeanEncoder(), tmp_path / "cache")
    shard = next(cache.path.glob("shard-*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert open_cache(cache.path).verify() == [shard.name]
    shard.write_bytes(whole[:-3])
    with pytest.raises(BadInput, match="damaged"):
        open_cache(cache.path)
    shard.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(BadInput, match="damaged"):
        open_cache(cache.path)


def test_folder_of_caches_opens_the_current_one_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 2)
    build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache")
    second, _ = build_cache(exams, tmp_path, MeanEncoder(weights_sha256="new"), tmp_path / "cache")
    assert open_cache(tmp_path / "cache").path == second.path
    with pytest.raises(BadInput, match="no embedding cache"):
        open_cache(tmp_path / "nowhere")
