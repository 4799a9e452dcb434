"""Fit the displayed tone of DRRs to a folder of real radiographs, by their grey-value quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from embedprior.errors import BadInput
from embedprior.imaging.drr.config import Appearance, DrrConfig
from embedprior.imaging.drr.physics import behind_patient, expose, tone
from embedprior.imaging.drr.render import Scanned, draw_poses, isocentre, project
from embedprior.imaging.files import DICOM_SUFFIXES, UnreadableExam
from embedprior.imaging.radiographs import read_image
from embedprior.imaging.readers import read_volume
from embedprior.runs import one_thread, progress

LEVELS = np.linspace(0.02, 0.98, 49)
SUFFIXES = (".png", ".jpg", ".jpeg", *DICOM_SUFFIXES)
FRONTAL = {"PA", "AP", "AP SUPINE", "AP ERECT"}
MAX_REFERENCES = 200
MIN_REFERENCES = 5


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
        if len(wanted) < MIN_REFERENCES and view in FRONTAL:
            wanted = [p for p in files if views.get(p.name) in FRONTAL]
        files = wanted
    if len(files) < MIN_REFERENCES:
        raise BadInput(f"{folder}: {len(files)} {view} radiographs to fit to; at least {MIN_REFERENCES} are needed.")
    picked = np.unique(np.linspace(0, len(files) - 1, min(len(files), MAX_REFERENCES)).round().astype(int))
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

    # loaded here: every rendering would wait for it
    from scipy.optimize import least_squares

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
    if len(pictures) < MIN_REFERENCES:
        raise BadInput(f"{len(pictures)} of {len(files)} radiographs can be read; needed: {MIN_REFERENCES}.")
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


FIT_CTS, FIT_SIZE = 12, 112


def fit_tone_to_folder(items: Sequence[Scanned], config: DrrConfig, references: Path) -> Match:
    """Fit the tone curve of a run to a folder of radiographs, on small straight images of its first CTs.

    Raises:
        BadInput: see ``matching.reference_files`` and ``read_references``; or no CT can be read.
    """
    pictures = read_references(reference_files(references, config.view))
    small = config.model_copy(update={"size": FIT_SIZE, "poses": 1})
    made = []
    with one_thread():
        for item in progress(items[:FIT_CTS], "tone", total=min(len(items), FIT_CTS)):
            try:
                volume, _ = read_volume(item.exam.path, config.series)
            except UnreadableExam:
                continue  # its failure is recorded when its turn to be rendered comes
            integrals = project(volume, small, draw_poses(small, item.digest), isocentre(volume, config.centre))
            # noise changes no quantile that matters, and one seed must not depend on the order of the CTs
            still = config.appearance.model_copy(update={"photons_per_mm2": None})
            made.append(expose(integrals, still, small.geometry.pitch)[0].numpy())
    if not made:
        raise BadInput("--match-style: none of the first CTs can be read. Next: run without it to see why.")
    return fit_tone(made, pictures, config.appearance)
