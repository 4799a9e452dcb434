"""A damaged prior folder is refused in one line that names the damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embedprior.errors import BadInput
from embedprior.nn.standardise import Standardiser
from embedprior.prior.model import Prior, new_network
from embedprior.prior.storage import DESCRIPTION, WEIGHTS
from embedprior.runs.integrity import file_records, with_checksum

from .conftest import small_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = small_config()
    scalers = {"cxr": Standardiser(np.zeros(5), np.ones(5))}
    prior = Prior(config, new_network(config, 5, 6, 1), Standardiser(np.zeros(6), np.ones(6)), scalers, None)
    prior.save(tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the tensors and note their new hash, as another program that writes priors would."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    description = json.loads((folder / DESCRIPTION).read_text())
    description["files"] = file_records(folder, [folder / WEIGHTS])
    (folder / DESCRIPTION).write_text(json.dumps(with_checksum(description)))


def test_one_flipped_bit_of_the_weights_is_refused(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-3] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(BadInput, match=rf"damaged: {WEIGHTS} no longer has the contents"):
        Prior.load(folder)


def test_a_weight_that_is_not_a_number_is_refused_by_name(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors["network.query"].__setitem__(2, np.nan))
    with pytest.raises(BadInput, match=r"'network\.query' holds a number that is not finite"):
        Prior.load(folder)


@pytest.mark.parametrize("name", ["network.query", "scaler.target.mean", "scaler.cxr.scale"])
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    rewrite(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(BadInput, match=f"lacks {name} "):
        Prior.load(folder)


@pytest.mark.parametrize(
    ("file", "length", "message"),
    [
        (WEIGHTS, 100, "has 100 bytes"),
        (DESCRIPTION, 40, "is not valid JSON"),
        (DESCRIPTION, 0, "is not valid JSON"),
    ],
)
def test_a_file_cut_short_is_refused(folder: Path, file: str, length: int, message: str) -> None:
    (folder / file).write_bytes((folder / file).read_bytes()[:length])
    with pytest.raises(BadInput, match=message):
        Prior.load(folder)


def test_a_prior_of_another_format_is_refused(folder: Path) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps({**description, "format": 1}))
    with pytest.raises(BadInput, match="of format 1, of an earlier version"):
        Prior.load(folder)


@pytest.mark.parametrize("content", ["[1]", "{}", '{"format": 4}', "[" * 200_000], ids=["list", "{}", "format", "deep"])
def test_a_description_of_another_shape_is_refused_in_one_line(folder: Path, content: str) -> None:
    (folder / DESCRIPTION).write_text(content)
    with pytest.raises(BadInput, match=DESCRIPTION if content != "{}" else "of format None") as refused:
        Prior.load(folder)
    assert "\n" not in str(refused.value)


def test_a_changed_description_is_refused(folder: Path) -> None:
    description = json.loads((folder / DESCRIPTION).read_text())
    (folder / DESCRIPTION).write_text(json.dumps({**description, "encoders": ["another", ""]}))
    with pytest.raises(BadInput, match="no longer has the contents it was written with"):
        Prior.load(folder)


def test_a_folder_may_be_given_as_text(folder: Path) -> None:
    assert Prior.load(str(folder)).network.target_dim == 6
