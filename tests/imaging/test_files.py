from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embedprior.imaging.files import UnreadableExam, read_array, source_hash, split_path
from embedprior.imaging.radiographs import read_image


def test_rows_of_an_array_file(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    np.save(tmp_path / "v.npy", array)
    assert split_path("v.npy#1") == ("v.npy", 1)
    np.testing.assert_array_equal(read_array(tmp_path, "v.npy#1"), array[1])
    assert source_hash(tmp_path, "v.npy#1") == hashlib.sha256(array[1].tobytes()).hexdigest()
    with pytest.raises(UnreadableExam):
        read_array(tmp_path, "v.npy#2")


def test_folder_hash_follows_contents_and_not_names(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").write_bytes(b"one")
    (tmp_path / "a" / "2").write_bytes(b"two")
    before = source_hash(tmp_path, "a")
    (tmp_path / "a" / "1").rename(tmp_path / "a" / "renamed")
    assert source_hash(tmp_path, "a") == before
    (tmp_path / "a" / "2").write_bytes(b"TWO")
    assert source_hash(tmp_path, "a") != before


def test_pickled_array_is_never_executed(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableExam):
        read_array(tmp_path, "evil.npy#0")


def test_eight_and_sixteen_bit_and_colour_pictures_share_one_scale(tmp_path: Path) -> None:
    grey = np.array([[0, 51], [102, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(np.repeat(grey[..., None], 3, axis=2)).save(tmp_path / "rgb.png")
    for name in ("8.png", "16.png", "rgb.png"):
        np.testing.assert_allclose(read_image(tmp_path, name), grey / 255, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\nrest"])
def test_damaged_picture_is_unreadable_and_says_no_folder(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(UnreadableExam) as caught:
        read_image(tmp_path, "x.png")
    assert str(tmp_path) not in str(caught.value)
