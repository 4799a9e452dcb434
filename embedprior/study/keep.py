"""What a study keeps of its fits beside their scores: the fitted models, each with what a later user must know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.cache.format import read_manifest
from embedprior.runs import Artifact, artifact, artifacts_root, read_json
from embedprior.students.base import FitData, Fitted, Method, training_data
from embedprior.students.reference import Reference
from embedprior.students.registry import MethodInfo
from embedprior.students.storage import DESCRIPTION, save_fitted
from embedprior.study.config import SOURCE_ONLY, StudyConfig, method_infos
from embedprior.study.inputs import StudyInputs

MODEL_TAG = "model-2"
COLUMNS = ["design", "method", "resample", "fold", "seed", "model", "bytes"]


def keeps(config: StudyConfig, info: MethodInfo, fold: tuple[int, int], folds: Iterable[tuple[int, int]]) -> bool:
    """Return whether the model of a fit is kept: never one that needs CT at inference, or reads no picture.

    Args:
        config: of the study.
        info: of the method.
        fold: resample and fold of the fit.
        folds: all of its design.
    """
    if config.keep == "none" or info.needs_ct or info.name == SOURCE_ONLY:
        return False
    return config.keep == "all" or fold == max(folds)


def planned_models(
    config: StudyConfig, fits: Mapping[str, Sequence[tuple[str, int, int]]], out: Path
) -> dict[str, Any] | None:
    """Return how many models a study will keep and how large they are; None when it keeps none.

    Args:
        config: of the study.
        fits: name of a design → method, resample and fold of each of its fits.
        out: folder of the run; models kept there (or under ``$EMBEDPRIOR_HOME``) give the size.
    """
    if config.keep == "none":
        return None
    infos = method_infos(config)
    sizes: dict[str, list[int]] = {}
    for description in (artifacts_root(out) / "model").glob(f"*/{DESCRIPTION}"):
        size = sum(file.stat().st_size for file in description.parent.rglob("*") if file.is_file())
        sizes.setdefault(str(read_json(description)["about"]["name"]), []).append(size)
    count, total, unknown = 0, 0.0, set()
    for own in fits.values():
        folds = {(resample, fold) for _, resample, fold in own}
        for method, resample, fold in own:
            if keeps(config, infos[method], (resample, fold), folds):
                count += 1
                total += float(np.mean(sizes[method])) if method in sizes else 0.0
                unknown |= set() if method in sizes else {method}
    return {"keep": config.keep, "models": count, "bytes": round(total), "unknown": sorted(unknown)}


def keep_model(
    inputs: StudyInputs, place: Mapping[str, Any], method: Method, data: FitData, fit: str, fitted: Fitted | None
) -> Artifact:
    """Save the model of a fit, unless that was done before.

    Args:
        inputs: of the study.
        place: design, resample, fold, seed and the method's name in the study.
        method: what was fitted.
        data: what it was fitted on.
        fit: key of the fit's artifact.
        fitted: the model; None fits it again, where the scores were there and the model was not.
    """

    def build(work: Path) -> None:
        model = fitted if fitted is not None else method.fit(training_data(method, data), int(place["seed"]))
        save_fitted(model, work, method.name, about_model(inputs, place, method, data) | {"fit": fit})
        Reference.fit(data.target.train.cxr, data.target.val.cxr).save(work)

    return artifact("model", {"fit": fit}, dict(place), MODEL_TAG, build, inputs.artifacts)


def about_model(inputs: StudyInputs, place: Mapping[str, Any], method: Method, data: FitData) -> dict[str, Any]:
    """Return what is written beside a model: its inputs, encoder, label, fold, and the patients it has seen."""
    config, cache = inputs.config, inputs.caches.cxr
    spec = {k: v for k, v in read_manifest(cache.path).get("spec", {}).items() if k != "patients_seen"}
    seen = {part: sorted({p for s in data.stages for p in getattr(s, part).patient_ids}) for part in ("train", "val")}
    return {
        **place,
        "inputs": str(getattr(method, "inputs", "embedding")),
        "cxr_dim": int(data.target.train.cxr.shape[1]),
        "label": config.label,
        "encoder": cache.key,
        "encoder_spec": spec,
        "encoder_name": None if config.caches is not None else config.encoder.name,
        "encoder_options": None if config.caches is not None else config.encoder.options,
        "patients_seen": seen,
    }


def kept_models(inputs: Sequence[StudyInputs], fits: Mapping[str, str]) -> pd.DataFrame:
    """Return the models kept of a study's fits, one row each; ``model`` is the folder below the artifacts.

    Args:
        inputs: of the study, by variant.
        fits: key of a fit's artifact → name of its design in tables.
    """
    rows = []
    for root in dict.fromkeys(one.artifacts for one in inputs):
        for description in sorted((root / "model").glob(f"*/{DESCRIPTION}")):
            about = read_json(description)["about"]
            if about["fit"] in fits:
                size = sum(file.stat().st_size for file in description.parent.rglob("*") if file.is_file())
                named = {"design": fits[about["fit"]], "method": about["name"]}
                numbers = {key: about[key] for key in ("resample", "fold", "seed")}
                rows.append({**named, **numbers, "model": f"model/{description.parent.name}", "bytes": size})
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.sort_values(COLUMNS[:5], ignore_index=True)
