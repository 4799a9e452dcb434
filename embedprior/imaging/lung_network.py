"""Where the lungs are, by a U-Net whose weights lie in a local file: the layout that the lungmask project publishes.

The threshold method of ``lungs`` misses lungs that hold little air (large effusions, consolidation); a trained network
finds most of them. Read here: the ``.pth`` files of R231, R231CovidWeb and LTRCLobes (Hofmanninger et al., European
Radiology Experimental 2020, 4:50), or the same tensors as ``.safetensors``. A file is read without running code of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int16
from scipy import ndimage
from torch import nn

from embedprior.errors import BadInput
from embedprior.imaging.lungs import COARSE_MM, TISSUE_HU, Lungs, large_parts, largest_part
from embedprior.imaging.volume import Volume, canonical
from embedprior.weights import read_tensors

DEPTH = 5
SIDE, BODY_SIDE = 256, 128
HU_RANGE = (-1024, 600)
BODY_HU = -500
AT_ONCE = 4
NEXT = "Next: give the file of a release of the lungmask project, such as unet_r231-d5d2fc3d.pth"

Plane = Int16[np.ndarray, "rows columns"]
Box = tuple[slice, slice]


class LungUNet(nn.Module):
    """The network: (batch, 1, 256, 256) values in [0, 1] → class scores of the same size; class 0 is no lung.

    Five levels of two 3 × 3 convolutions, each followed by ReLU and then batch normalisation; average pooling down,
    bilinear interpolation and a 1 × 1 convolution up, joined to the level's own maps. Parameter names are the published
    ones.

    Args:
        width: filters of the first level (64 in the published files); every level doubles it.
        classes: 3 in R231 (none, right, left), 6 in LTRCLobes.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(DEPTH)]
        self.down_path = nn.ModuleList(
            _level("block", before, after) for before, after in zip([1, *widths], widths, strict=False)
        )
        self.up_path = nn.ModuleList()
        for after in widths[-2::-1]:
            narrower = nn.Conv2d(2 * after, after, 1)
            interpolated = nn.Upsample(scale_factor=2, mode="bilinear")
            step = nn.ModuleDict({"up": nn.Sequential(interpolated, narrower)})
            step["conv_block"] = _level("block", 2 * after, after)
            self.up_path.append(step)
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        for level in self.down_path:
            if kept:
                pixels = nn.functional.avg_pool2d(kept[-1], 2)
            kept.append(level["block"](pixels))  # type: ignore[index]
        pixels = kept.pop()
        for step in self.up_path:
            joined = torch.cat([step["up"](pixels), kept.pop()], dim=1)  # type: ignore[index]
            pixels = step["conv_block"]["block"](joined)  # type: ignore[index]
        scores: torch.Tensor = self.last(pixels)
        return scores


def find_lungs_by_network(volume: Volume, weights: Path | str) -> Lungs:
    """Segment the lungs of a volume in any of the axis-aligned orientations, on slices about 4 mm apart.

    In a slice the body is cut out, scaled to 256 × 256 pixels, and HU from −1024 to 600 become 0 to 1. Any class but 0
    is lung; parts as small as ``lungs.find_lungs`` leaves out are left out.

    Args:
        volume: as read.
        weights: the file, see above.

    Raises:
        BadInput: no such file, or other tensors than the network has.
    """
    network = load_lung_network(weights)
    upright = canonical(volume)
    step = min(upright.shape[0], max(1, round(COARSE_MM / upright.spacing_mm[2])))
    planes = upright.hu[step // 2 :: step][: upright.shape[0] // step]
    found = np.zeros(planes.shape, np.bool_)
    with torch.inference_mode():
        for start in range(0, len(planes), AT_ONCE):
            some = planes[start : start + AT_ONCE]
            boxes = [body_box(plane) for plane in some]
            pictures = torch.from_numpy(np.stack([network_input(p, box) for p, box in zip(some, boxes, strict=True)]))
            labels = network(pictures[:, None]).argmax(dim=1).numpy()
            for number, box in enumerate(boxes):
                region = found[start + number][box]
                region[:] = _zoomed(labels[number].astype(np.uint8), region.shape, order=0) > 0
    x, y, z = upright.spacing_mm
    voxel_mm = (z * step, y, x)
    return Lungs(large_parts(found, voxel_mm), (step, 1, 1), voxel_mm, planes > TISSUE_HU)


def body_box(plane: Plane) -> Box:
    """Return rows and columns of the largest thing above −500 HU, holes filled; the whole slice if there is none.

    Found at 128 × 128 pixels: closed by one pixel, filled, opened by two.
    """
    body = ndimage.binary_closing(_zoomed(plane, (BODY_SIDE, BODY_SIDE), order=0) > BODY_HU)
    body = ndimage.binary_fill_holes(body, structure=np.ones((3, 3), np.bool_))
    body = ndimage.binary_erosion(body, iterations=2)
    if not body.any():
        return slice(0, plane.shape[0]), slice(0, plane.shape[1])
    body = _zoomed(ndimage.binary_dilation(largest_part(body), iterations=2), plane.shape, order=0)
    rows, columns = (np.flatnonzero(body.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def network_input(plane: Plane, box: Box) -> Float[np.ndarray, "256 256"]:
    """Return what the network sees of a slice: the box at 256 × 256 pixels, −1024 to 600 HU as 0 to 1."""
    low, high = HU_RANGE
    shown = _zoomed(np.clip(plane, low, high)[box], (SIDE, SIDE), order=1)
    return (shown.astype(np.float32) - low) / (high - low)


@lru_cache(maxsize=1)
def load_lung_network(weights: Path | str) -> LungUNet:
    """Read a weight file and return the network, ready to run.

    Width and number of classes are read off the tensors. Published files carry layers that the network never
    runs (``residual_…``); they may be there or not.

    Raises:
        BadInput: no such file, not a file of tensors, or names or shapes that this network does not have.
    """
    file = lung_weights(weights)
    given = read_tensors(file, NEXT)
    first, last = given.get("down_path.0.block.0.weight"), given.get("last.weight")
    if first is None or last is None or first.ndim != 4 or last.ndim != 4 or len(last) < 2:
        raise BadInput(
            f"{file.name} holds no lung U-Net: expected tensors such as 'down_path.0.block.0.weight' and "
            f"'last.weight', got {', '.join(sorted(given)[:3]) or 'none'} …. {NEXT}"
        )
    width = len(first)
    network = LungUNet(width, len(last))
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    unused = dict(_unused(width))
    missing = [name for name in wanted if name not in given]
    foreign = [name for name in given if name not in wanted and name not in unused]
    other_shape = [
        f"{name} {tuple(value.shape)} instead of {shape}"
        for name, value in given.items()
        if (shape := wanted.get(name, unused.get(name))) is not None and tuple(value.shape) != shape
    ]
    for what, names in (("lacks", missing), ("has unknown", foreign), ("has", other_shape)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise BadInput(f"{file.name} {what} {', '.join(names[:3])}{more}: not this lung U-Net. {NEXT}")
    network.load_state_dict({name: given[name] for name in wanted})
    return network.eval().requires_grad_(False)


def lung_weights(weights: Path | str) -> Path:
    """Return the path of a weight file that exists.

    Raises:
        BadInput: it does not.
    """
    file = Path(weights).expanduser()
    if not file.is_file():
        raise BadInput(f"no lung weights at '{weights}'. {NEXT}, or leave 'lungs' out for the threshold method")
    return file


def _level(name: str, before: int, after: int) -> nn.ModuleDict:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(after)]
    return nn.ModuleDict({name: nn.Sequential(*layers)})


def _unused(width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the tensors that published files carry for another kind of this network."""
    places = [(f"down_path.{i}", max(1, width * 2**i // 2) if i else 1, width * 2**i) for i in range(DEPTH)]
    for i in range(DEPTH - 1):
        after = width * 2 ** (DEPTH - 2 - i)
        places += [(f"up_path.{i}", 2 * after, after), (f"up_path.{i}.conv_block", 2 * after, after)]
    for place, before, after in places:
        yield f"{place}.residual_input_conv.weight", (after, before, 1, 1)
        yield f"{place}.residual_input_conv.bias", (after,)
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{place}.residual_batchnorm.{part}", (after,)
        yield f"{place}.residual_batchnorm.num_batches_tracked", ()


def _zoomed(plane: np.ndarray[Any, Any], shape: tuple[int, ...], order: Literal[0, 1]) -> np.ndarray[Any, Any]:
    """Scale with corner centres on corner centres, as the published network was trained (not an exact grid)."""
    factors = [new / old for new, old in zip(shape, plane.shape, strict=True)]
    result: np.ndarray[Any, Any] = ndimage.zoom(plane, factors, order=order)
    return result
