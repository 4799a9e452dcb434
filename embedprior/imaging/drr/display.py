"""Line integrals to a displayed radiograph: exposure, scatter, noise, blur, and a tone curve fitted to real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, pad

from embedprior.errors import BadInput
from embedprior.imaging.drr.config import Appearance
from embedprior.imaging.files import DICOM_SUFFIXES, UnreadableExam, read_image

OPEN_FIELD = 0.3
"""Less attenuation than 16 mm of water: nothing of a chest."""


def to_radiograph(line_integrals: Tensor, appearance: Appearance, pitch_mm: float, seed: int = 0) -> Tensor:
    """Displayed grey values in [0, 1], (P, H, W), of line integrals (P, H, W).

    Primary exposure is exp(−L) (Beer and Lambert); scatter is the primary spread by a Gaussian, in the ratio
    SF/(1 − SF); the detector counts Poisson(photons · pitch²) quanta, and the tone curve acts on the negative log of
    the exposure.

    Args:
        line_integrals: from a renderer, dimensionless.
        appearance: the making.
        pitch_mm: detector pixel size.
        seed: of the quantum noise; unused when the appearance draws none.
    """
    return tone_curve(expose(line_integrals, appearance, pitch_mm, seed), appearance)


def expose(line_integrals: Tensor, appearance: Appearance, pitch_mm: float, seed: int = 0) -> Tensor:
    """Negative log exposure at the detector, (P, H, W): what the tone curve acts on. See `to_radiograph`."""
    exposure = torch.exp(-line_integrals)
    if appearance.scatter_fraction > 0:
        ratio = appearance.scatter_fraction / (1 - appearance.scatter_fraction)
        exposure = exposure + ratio * gaussian_blur(exposure, appearance.scatter_spread_mm / pitch_mm)
    if appearance.blur_mm > 0:
        exposure = gaussian_blur(exposure, appearance.blur_mm / pitch_mm)
    quanta_floor = 1e-6
    if appearance.photons_per_mm2 is not None:
        per_pixel = appearance.photons_per_mm2 * pitch_mm**2
        generator = torch.Generator(device=exposure.device).manual_seed(seed)
        exposure = torch.poisson(exposure * per_pixel, generator=generator) / per_pixel
        quanta_floor = 0.5 / per_pixel
    return -torch.log(exposure.clamp_min(quanta_floor))


def tone_curve(attenuation: Tensor, appearance: Appearance) -> Tensor:
    """Grey values in [0, 1] of negative log exposure, (P, H, W), each image by itself."""
    if appearance.window is None:
        shares = torch.tensor(appearance.exposure_quantiles, dtype=attenuation.dtype, device=attenuation.device)
        ends = torch.stack([torch.quantile(behind_patient(one), shares) for one in attenuation], dim=1)
        low, high = ends[:, :, None, None]
    else:
        low, high = (torch.as_tensor(edge, dtype=attenuation.dtype) for edge in appearance.window)
    exposed: Tensor = ((attenuation - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return tone(exposed, appearance)


Grey = TypeVar("Grey", Tensor, "np.ndarray[Any, Any]")


def tone(exposed: Grey, appearance: Appearance) -> Grey:
    """Displayed grey values of windowed attenuation in [0, 1], any shape: gamma, S-curve, levels, polarity."""
    grey = exposed**appearance.gamma
    if appearance.contrast > 0:
        hyperbolic = torch.tanh if isinstance(grey, Tensor) else np.tanh
        end = math.tanh(appearance.contrast / 2)
        grey = 0.5 + hyperbolic(appearance.contrast * (grey - 0.5)) / (2 * end)
    black, white = appearance.levels
    grey = black + (white - black) * grey
    return 1 - grey if appearance.polarity == "bone_black" else grey


def behind_patient(attenuation: Tensor) -> Tensor:
    """Values (N,) of one image (H, W) that set its exposure: the middle, without the open field beside the patient.

    Where the scan ends, so does the patient of a DRR; empty rows would otherwise take half of the grey scale.
    """
    rows, columns = (slice(side // 6, side - side // 6) for side in attenuation.shape)
    middle = attenuation[rows, columns].flatten()
    inside = middle[middle > OPEN_FIELD]
    return inside if len(inside) >= 0.05 * len(middle) else middle


def gaussian_blur(images: Tensor, sigma_px: float) -> Tensor:
    """(P, H, W) blurred by a separable Gaussian cut off at 3 sigma; beyond the border the edge pixel goes on."""
    if sigma_px <= 0:
        return images
    radius = max(1, min(math.ceil(3 * sigma_px), *(2 * side for side in images.shape[-2:])))
    taps = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (taps / sigma_px) ** 2)
    kernel = kernel / kernel.sum()
    framed = pad(images[:, None], (radius, radius, radius, radius), mode="replicate")
    across = conv2d(framed, kernel[None, None, None, :])
    return conv2d(across, kernel[None, None, :, None])[:, 0]


LEVELS = np.linspace(0.02, 0.98, 49)
SUFFIXES = (".png", ".jpg", ".jpeg", *DICOM_SUFFIXES)
FRONTAL = {"PA", "AP", "AP SUPINE", "AP ERECT"}
MOST_REFERENCES = 200
FEWEST_REFERENCES = 5


@dataclass(frozen=True)
class Match:
    """A fitted tone curve.

    Attributes:
        appearance: with the fitted tone.
        references: radiographs it was fitted to.
        before, after: root mean square difference of the grey-value quantiles, with the tone given and fitted.
    """

    appearance: Appearance
    references: int
    before: float
    after: float


def reference_files(folder: Path, view: str) -> list[Path]:
    """Return the radiographs to fit to, in order of name, evenly thinned to at most 200.

    Where the folder or the one above it has a table (``exams.csv``, or ``metadata.csv`` of the COVID-19 Image Data
    Collection), its rows choose: radiographs of the same view; for PA and AP, any frontal one when the view itself
    has fewer than five. Without a table every picture counts.

    Raises:
        BadInput: no folder, or fewer than five such pictures.
    """
    if not folder.is_dir():
        raise BadInput(f"no folder {folder}. Allowed: a folder of radiographs (DICOM, PNG or JPEG).")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    views = _views(folder)
    if views is not None:
        wanted = [p for p in files if views.get(p.name) == view]
        if len(wanted) < FEWEST_REFERENCES and view in FRONTAL:
            wanted = [p for p in files if views.get(p.name) in FRONTAL]
        files = wanted
    if len(files) < FEWEST_REFERENCES:
        raise BadInput(f"{folder}: {len(files)} {view} radiographs to fit to; at least {FEWEST_REFERENCES} are needed.")
    picked = np.unique(np.linspace(0, len(files) - 1, min(len(files), MOST_REFERENCES)).round().astype(int))
    return [files[i] for i in picked]


def fit_tone(
    attenuations: Sequence[Float[np.ndarray, "height width"]],
    references: Sequence[Float[np.ndarray, "height width"]],
    appearance: Appearance,
) -> Match:
    """Return the appearance whose gamma, contrast and grey levels bring DRRs closest to real radiographs.

    Compared are grey-value quantiles over the middle of the picture: of each DRR after its own exposure
    (``exposure_quantiles``, as automatic exposure does), averaged; of the radiographs, the median at each quantile.
    A tone curve is monotone, so it maps quantiles to quantiles and the fit needs no picture.

    Args:
        attenuations: negative log exposures (``appearance.expose``) of several patients.
        references: grey values in [0, 1], bones white.
        appearance: everything else is kept; a fixed window gives way to automatic exposure.
    """
    import torch
    from scipy.optimize import least_squares

    target = np.median([_quantiles(image, LEVELS) for image in references], axis=0)
    low, high = appearance.exposure_quantiles
    exposed = []
    for image in attenuations:
        inside = np.asarray(behind_patient(torch.from_numpy(np.asarray(image))))
        black, white = np.quantile(inside, [low, high])
        exposed.append(np.clip((np.quantile(inside, LEVELS) - black) / max(white - black, 1e-6), 0, 1))

    def made(parameters: Float[np.ndarray, " 4"]) -> Appearance:
        gamma, contrast, black, white = (float(v) for v in parameters)
        fitted = {"window": None, "gamma": gamma, "contrast": contrast, "levels": (black, white)}
        return Appearance.model_validate(appearance.model_dump() | fitted | {"polarity": "bone_white"})

    def difference(parameters: Float[np.ndarray, " 4"]) -> Float[np.ndarray, " 49"]:
        shown = np.stack([tone(e, made(parameters)) for e in exposed])
        return np.asarray(shown.mean(axis=0) - target)

    start = np.array([1.0, 0.5, 0.05, 0.95])
    fit = least_squares(difference, start, bounds=([0.2, 0.0, 0.0, 0.55], [5.0, 8.0, 0.45, 1.0]))
    rounded = np.round(fit.x, 4)
    plain = np.array([appearance.gamma, appearance.contrast, *appearance.levels])
    errors = [float(np.sqrt(np.mean(difference(p) ** 2))) for p in (plain, rounded)]
    return Match(made(rounded), len(references), errors[0], errors[1])


def read_references(files: Sequence[Path]) -> list[Float[np.ndarray, "height width"]]:
    """Return the pictures that can be read.

    Raises:
        BadInput: fewer than five can.
    """
    pictures = []
    for file in files:
        try:
            pictures.append(read_image(file.parent, file.name))
        except UnreadableExam:
            continue
    if len(pictures) < FEWEST_REFERENCES:
        raise BadInput(f"{len(pictures)} of {len(files)} radiographs can be read; needed: {FEWEST_REFERENCES}.")
    return pictures


def _quantiles(image: Float[np.ndarray, "height width"], levels: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    rows, columns = (slice(side // 6, side - side // 6) for side in image.shape)
    return np.asarray(np.quantile(np.asarray(image, dtype=np.float64)[rows, columns], levels))


def _views(folder: Path) -> dict[str, str] | None:
    for place in (folder, folder.parent):
        if (place / "exams.csv").is_file():
            rows = pd.read_csv(place / "exams.csv", dtype=str)
            if {"path", "view", "modality"} <= set(rows.columns):
                rows = rows[rows["modality"] == "CXR"]
                return {Path(p).name: str(v).upper() for p, v in zip(rows["path"], rows["view"], strict=True)}
        if (place / "metadata.csv").is_file():
            rows = pd.read_csv(place / "metadata.csv", dtype=str)
            if {"filename", "view", "modality"} <= set(rows.columns):
                rows = rows[rows["modality"] == "X-ray"]
                return {str(f): str(v).upper() for f, v in zip(rows["filename"], rows["view"], strict=True)}
    return None
