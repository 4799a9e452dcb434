from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedprior.cache.format import (
    finite,
    from_stored,
    map_rows,
    read_header,
    shard_corruption,
    shard_name,
    to_stored,
    write_shard,
)
from embedprior.errors import BadInput

IDS, SOURCES = ["e1", "e2", "é3"], ["a" * 64, "b" * 64, "c" * 64]
VALUES = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "uint8": torch.uint8}


def shard(folder: Path, dtype: str = "float32", values: np.ndarray = VALUES) -> Path:
    path = folder / shard_name(4, IDS, SOURCES)
    write_shard(path, "0123abcd", dtype, IDS, SOURCES, to_stored(values, dtype))
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8"])
def test_the_safetensors_library_reads_the_numbers_that_were_meant(tmp_path: Path, dtype: str) -> None:
    values = (VALUES * 50).astype(np.uint8) if dtype == "uint8" else VALUES
    path = shard(tmp_path, dtype, values)
    loaded = load_file(path)["embeddings"]
    assert loaded.dtype == TORCH[dtype]
    assert torch.equal(loaded, torch.from_numpy(values).to(TORCH[dtype]))
    header = read_header(path)
    ours = from_stored(map_rows(path, header), dtype)
    np.testing.assert_array_equal(ours, loaded.float().numpy() if dtype != "uint8" else loaded.numpy())
    assert (header.exam_ids, header.sources) == (IDS, SOURCES)


def test_bfloat16_rounds_as_torch_does_ties_included() -> None:
    bits = np.random.default_rng(1).integers(0, 2**31 - 2**24, 20_000, dtype=np.uint32)
    bits[:5000] = (bits[:5000] & 0xFFFF0000) | 0x8000  # exactly between two bfloat16
    values = bits.view(np.float32)
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(from_stored(to_stored(values, "bfloat16"), "bfloat16"), expected)


def test_float16_overflow_is_not_finite_and_floats_are_no_bytes() -> None:
    assert not finite(to_stored(np.array([1e6], np.float32), "float16"), "float16")
    assert finite(to_stored(np.array([1e6], np.float32), "bfloat16"), "bfloat16")
    with pytest.raises(BadInput, match="uint8 is for encoders that return bytes"):
        to_stored(VALUES, "uint8")


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first = shard(tmp_path).read_bytes()
    (tmp_path / "again").mkdir()
    assert shard(tmp_path / "again").read_bytes() == first


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path) -> None:
    path = shard(tmp_path)
    whole = path.read_bytes()
    assert shard_corruption(path, "0123abcd") == ""
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
        assert shard_corruption(path, "0123abcd"), f"bit in byte {position}"
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert shard_corruption(path, "0123abcd"), f"cut at {length}"
        with pytest.raises(BadInput, match="damaged or no shard"):
            read_header(path)


def test_shard_of_another_cache_or_under_another_name_is_found(tmp_path: Path) -> None:
    path = shard(tmp_path)
    assert "another cache" in shard_corruption(path, "ffffffff")
    path.rename(tmp_path / shard_name(4, ["x"], ["y"]))
    assert "name" in shard_corruption(tmp_path / shard_name(4, ["x"], ["y"]), "0123abcd")


class Payload:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (Path(self.marker),))


def test_pickle_in_place_of_a_shard_is_refused_and_not_executed(tmp_path: Path) -> None:
    path, marker = shard(tmp_path), tmp_path / "executed"
    for evil in (pickle.dumps(Payload(str(marker))), b"\x80\x04K\x01."):
        path.write_bytes(evil)
        with pytest.raises(BadInput, match="damaged or no shard"):
            read_header(path)
        assert shard_corruption(path, "0123abcd")
    torch.save({"embeddings": Payload(str(marker))}, path)
    with pytest.raises(BadInput, match="damaged or no shard"):
        read_header(path)
    assert not marker.exists()


def test_header_that_lies_about_its_rows_is_refused(tmp_path: Path) -> None:
    path = shard(tmp_path)
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["embeddings"]["shape"] = [2, 5]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    with pytest.raises(BadInput, match="damaged"):
        read_header(path)
