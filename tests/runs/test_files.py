"""Weights and tables are whole or absent, readable as the umask says, and say when there is no room."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from embedprior.errors import BadInput
from embedprior.runs import DiskFull, make_folder, read_record, write_tensors

ROWS = np.arange(4000, dtype=np.float32)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_weights_have_the_mode_that_the_umask_gives(
    tmp_path: Path, make: Callable[[np.ndarray], object], umask: int
) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "w.safetensors", {"w": make(ROWS)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o666 & ~umask
    assert (load_file(tmp_path / "w.safetensors")["w"] == ROWS).all()


def test_weights_that_find_no_room_leave_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"w": ROWS[:10]})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        with pytest.raises(DiskFull, match=r"no room for w\.safetensors"):
            write_tensors(path, {"w": ROWS})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_folder_that_is_a_dangling_link_is_refused_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="is a link to what does not exist"):
        make_folder(tmp_path / "out")


@pytest.mark.parametrize(("content", "said"), [("[1]", "holds a list"), ("{}", "lacks 'key'"), ("{", "not valid JSON")])
def test_a_record_is_an_object_with_its_entries(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(BadInput, match=said):
        read_record(tmp_path / "r.json", "key")
