"""From a CT volume to an encoder's input: one frozen, hashed, versioned profile says every number of the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int16
from PIL import Image
from pydantic import Field, ValidationInfo, field_validator

from embedprior.config import Config, load_config
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.lungs import Lungs, find_lungs, lung_box
from embedprior.imaging.resampling import resample
from embedprior.imaging.volume import Volume, canonical
from embedprior.runs import hash_file, hash_of

FOLDER = "profile"
TRANSFORM_VERSION = 2
"""Raise it when the same profile gives other numbers; a golden test notices."""

WINDOWS: dict[str, tuple[float, float]] = {
    "pe": (-100.0, 900.0),
    "lung": (-1350.0, 150.0),
    "mediastinum": (-160.0, 240.0),
    "bone": (-450.0, 1050.0),
    "wide": (-1000.0, 1000.0),
}
"""Lowest and highest HU. ``pe``: the PE prior paper and PENet (level 400, width 1000); ``lung`` (−600, 1500) and
``mediastinum`` (40, 400): INSPECT's channels; ``bone`` (300, 1500); ``wide``: Merlin and CT-CLIP."""


class VolumeProfile(Config):
    """How a CT volume becomes an array.

    Attributes:
        spacing_mm: along x, y and z; null keeps the stored spacing.
        axes: where index x, y and z grow to: ``LPS`` (rows run from front to back, as a CT slice is shown) or ``RAS``.
        crop: ``lungs`` = the box around the lungs, or around a mask when one is given; ``none``.
        lungs: weight file of a lung U-Net (``lung_network``) that finds the lungs to crop to; null = the threshold
            method. A relative path is taken from the folder the command runs in.
        margin_mm: tissue kept around the lungs.
        windows: one output channel for each; names of ``WINDOWS``.
        side: rows and columns of the output; null keeps those of the grid.
        fit: how slices get that size. ``letterbox``: scaled whole, the short side padded with the window's low end;
            ``stretch``: each side scaled by itself; ``box``: cut or padded about the middle, not scaled.
        centre: rows and columns kept about the middle after that; null keeps all.
        slices: cut or padded about the middle to this number; null keeps every slice (a variable number).
        mean, std: subtracted from and divided into the [0, 1] values.
    """

    spacing_mm: tuple[float, float, float] | None = (1.0, 1.0, 1.0)
    axes: Literal["LPS", "RAS"] = "LPS"
    crop: Literal["lungs", "none"] = "lungs"
    lungs: Path | None = None
    margin_mm: float = Field(10.0, ge=0)
    windows: tuple[str, ...] = ("pe",)
    side: int | None = Field(128, ge=1)
    fit: Literal["letterbox", "stretch", "box"] = "letterbox"
    centre: int | None = Field(None, ge=1)
    slices: int | None = Field(None, ge=1)
    mean: float = 0.0
    std: float = Field(1.0, gt=0)

    @field_validator("windows")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("give at least one window")
        for name in names:
            if name not in WINDOWS:
                raise ValueError(f"unknown window '{name}', allowed: {', '.join(WINDOWS)}")
        return names

    @field_validator("lungs")
    @classmethod
    def _looked_for(cls, weights: Path | None, info: ValidationInfo) -> Path | None:
        if weights is not None and info.data.get("crop") != "lungs":
            raise ValueError("a weight file, but without 'crop: lungs' no lungs are looked for")
        return weights


def load_profile(name_or_path: str) -> VolumeProfile:
    """Return a shipped profile by name (``configs/profile``) or one of a YAML file.

    Raises:
        BadInput: no such profile, or a bad value in it.
    """
    return load_config(VolumeProfile, name_or_path, FOLDER)


def profile_record(profile: VolumeProfile) -> dict[str, object]:
    """Return what goes into a cache key: every setting, and the version of the code that applies it.

    A weight file enters by its sha256, not by its path.

    Raises:
        BadInput: the profile names a weight file that does not exist.
    """
    record = {"transform_version": TRANSFORM_VERSION, **profile.model_dump(mode="json")}
    if profile.lungs is not None:
        from embedprior.imaging.lung_network import lung_weights

        record["lungs"] = f"sha256:{hash_file(lung_weights(profile.lungs))}"
    return record


def profile_key(profile: VolumeProfile) -> str:
    """Return the profile's short hash."""
    return hash_of(profile_record(profile))[:16]


def prepare(
    volume: Volume, profile: VolumeProfile, mask: Volume | None = None
) -> Float[np.ndarray, "windows slices rows columns"]:
    """Return the encoder's input: float32, foot to head along ``slices``.

    Args:
        volume: as read, in any orientation.
        profile: see ``VolumeProfile``.
        mask: lung mask on the volume's own grid (above 0 = lung), taken before any other method.

    Raises:
        UnreadableExam: a lung crop was asked for and no lungs were found.
        BadInput: the mask lies on another grid, or is empty; the profile's weight file can't be used.
    """
    return normalised(on_grid(volume, profile, mask).hu, profile)


def on_grid(volume: Volume, profile: VolumeProfile, mask: Volume | None = None) -> Volume:
    """Return the reoriented, cropped and resampled volume in HU, always with LPS axes; raises as ``prepare``."""
    upright = canonical(volume)
    if profile.crop == "lungs":
        if mask is None:
            box = lung_box(upright, profile.margin_mm, profile_lungs(upright, profile))
        else:
            box = _mask_box(volume, mask, profile.margin_mm)
        if box is None:
            raise UnreadableExam("no lungs were found to crop to. Next: give a mask, or a profile with 'crop: none'")
        upright = upright.crop(box)
    return upright if profile.spacing_mm is None else resample(upright, profile.spacing_mm)


def profile_lungs(volume: Volume, profile: VolumeProfile) -> Lungs:
    """Return the lungs as the profile wants them found; raises as ``prepare``."""
    if profile.lungs is None:
        return find_lungs(volume)
    from embedprior.imaging.lung_network import find_lungs_by_network

    return find_lungs_by_network(volume, profile.lungs)


def normalised(
    hu: Int16[np.ndarray, "slices rows columns"], profile: VolumeProfile
) -> Float[np.ndarray, "windows slices rows columns"]:
    """Window, fit and normalise the HU of an LPS grid."""
    if profile.axes == "RAS":
        hu = hu[:, ::-1, ::-1]
    if profile.slices is not None:
        hu = _about_middle(hu, 0, profile.slices, -1024)
    if profile.side is not None and profile.fit == "box":
        hu = _about_middle(_about_middle(hu, 1, profile.side, -1024), 2, profile.side, -1024)
    channels = []
    for name in profile.windows:
        if profile.side is None or profile.fit == "box":
            shown = windowed(hu, *WINDOWS[name])
        else:
            shown = np.zeros((len(hu), profile.side, profile.side), np.float32)
            # slice by slice, while it is in the processor's cache
            for square, plane in zip(shown, hu, strict=True):
                _fit(windowed(plane, *WINDOWS[name]), square, profile.fit == "letterbox")
        if profile.centre is not None:
            shown = _about_middle(_about_middle(shown, 1, profile.centre, 0.0), 2, profile.centre, 0.0)
        if profile.mean != 0 or profile.std != 1:
            shown = (shown - np.float32(profile.mean)) / np.float32(profile.std)
        channels.append(shown)
    return channels[0][None] if len(channels) == 1 else np.stack(channels)


def windowed(hu: Int16[np.ndarray, "*shape"], low: float, high: float) -> Float[np.ndarray, "*shape"]:
    """Return (HU − low) / (high − low), clipped to [0, 1], as float32.

    Raises:
        BadInput: the window is empty.
    """
    if not low < high:
        raise BadInput(f"a window runs from a lower to a higher HU; got {low} to {high}.")
    values = hu.astype(np.float32)
    values -= low
    values /= high - low
    return np.clip(values, 0.0, 1.0, out=values)


def _mask_box(volume: Volume, mask: Volume, margin_mm: float) -> tuple[slice, slice, slice]:
    if mask.shape != volume.shape or not np.allclose(mask.affine, volume.affine, atol=1e-2):
        raise BadInput(
            f"the mask ({mask.shape}, {mask.orientation}) does not lie on the volume's grid ({volume.shape}, "
            f"{volume.orientation}). Next: resample it onto the volume, nearest neighbour"
        )
    upright = canonical(mask)
    box = []
    for axis in range(3):
        hit = np.flatnonzero((upright.hu > 0).any(axis=tuple(a for a in range(3) if a != axis)))
        if not hit.size:
            raise BadInput("the mask is empty.")
        margin = int(np.ceil(margin_mm / upright.spacing_mm[2 - axis]))
        box.append(slice(max(0, int(hit[0]) - margin), min(upright.shape[axis], int(hit[-1]) + 1 + margin)))
    return box[0], box[1], box[2]


def _fit(plane: Float[np.ndarray, "rows columns"], square: Float[np.ndarray, "side side"], letterbox: bool) -> None:
    """Scale a slice into the middle of a square with antialiasing (PIL's triangle filter, widened when shrinking)."""
    (rows, columns), side = plane.shape, len(square)
    scale = side / max(rows, columns)
    width, height = (max(1, round(columns * scale)), max(1, round(rows * scale))) if letterbox else (side, side)
    small = Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = small


def _about_middle(array: np.ndarray[Any, Any], axis: int, wanted: int, fill: float) -> np.ndarray[Any, Any]:
    have = array.shape[axis]
    if have >= wanted:
        start = (have - wanted) // 2
        return array[(slice(None),) * axis + (slice(start, start + wanted),)]
    before = (wanted - have) // 2
    widths = [(0, 0)] * array.ndim
    widths[axis] = (before, wanted - have - before)
    return np.pad(array, widths, constant_values=fill)
