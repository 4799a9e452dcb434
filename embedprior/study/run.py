"""``study run``: cohort → groups → splits → embeddings → methods on the same held-out cases → predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.cache import EmbeddingCache, build_cache
from embedprior.cohort.base import Cohort
from embedprior.encoders.base import Encoder
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput, EmbedpriorError
from embedprior.runs import artifacts_root, one_thread, seed_for
from embedprior.students.base import Cases, FitData, Head, Method, Stage
from embedprior.students.registry import create_method
from embedprior.study.config import SOURCE_ONLY, Design, StudyConfig
from embedprior.study.controls import SourceOnly
from embedprior.study.prepare import Prepared
from embedprior.study.runner import score_fold
from embedprior.tables import PARTS

FITTED = frozenset({"cxr-only", "late-fusion", "same-modality-kd", "hinton-kd", "direct-head"})
PRIORS = frozenset({"prior", "prior-shuffled"})


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        cohort: after unreadable images were dropped.
        targets: by design, likewise.
        predictions: long table with ``design`` and ``resample``.
        support: one row a design, resample and fold: held-out and training counts.
        failures: unreadable images (``exam_id, stage, reason``).
        unfitted: methods that could not be fitted somewhere (same columns, and ``design, method``).
        needs_ct: by method: does it need CT at inference.
        uses_ct: by method: did CT take part in its training.
    """

    cohort: Cohort
    targets: dict[str, pd.DataFrame]
    predictions: pd.DataFrame
    support: pd.DataFrame
    failures: list[dict[str, str]]
    unfitted: list[dict[str, str]]
    needs_ct: dict[str, bool]
    uses_ct: dict[str, bool]


def image_encoder(config: StudyConfig) -> Encoder:
    """Return the frozen encoder.

    Raises:
        BadInput: unknown name, missing weights, an option it does not take, or it can't read both modalities.
    """
    try:
        encoder = create_encoder(config.encoder.name, **config.encoder.options)
    except TypeError as error:
        raise BadInput(f"encoder '{config.encoder.name}': {error}") from error
    if encoder.spec.modality != "image":
        raise BadInput(
            f"encoder '{config.encoder.name}' reads {encoder.spec.modality} only; a study of X-rays and CT key slices "
            "needs one that reads pictures. Next: encoder: {name: efficientnet-lite0}"
        )
    return encoder


def plan(config: StudyConfig, prepared: Prepared) -> str:
    """Return what ``run_study`` would do, in a few lines."""
    needed = _needed_exams(config, prepared)
    size = sum((prepared.cohort.root / str(path)).stat().st_size for path in needed["path"])
    rounds = prepared.splits.groupby("design")[["resample", "fold"]].apply(lambda f: len(f.drop_duplicates()))
    lines = [f"{len(needed)} images to embed with {config.encoder.name} ({size / 1e6:.1f} MB)"]
    for design in config.designs:
        targets = prepared.targets[design.name]
        lines.append(
            f"{design.name}: {len(targets)} X-rays of {targets['patient_id'].nunique()} patients, "
            f"{len(design.methods)} methods × {rounds[design.name]} rounds"
        )
    return "\n".join(lines)


def run_study(
    config: StudyConfig, prepared: Prepared, encoder: Encoder, out: Path, stage: Callable[..., None]
) -> StudyResult:
    """Embed what is not in the cache yet, fit and score.

    Args:
        config: settings.
        prepared: see ``prepare``.
        encoder: see ``image_encoder``.
        out: folder of the run; the cache and trained priors lie under it, or under ``$EMBEDPRIOR_HOME``.
        stage: called with the name and the counts of each stage when it ends.

    Raises:
        EmbedpriorError: no image could be read.
    """
    needed = _needed_exams(config, prepared)
    cache, failures = build_cache(
        needed, prepared.cohort.root, encoder, artifacts_root(out) / "caches", config.batch_size, "embedding images"
    )
    unreadable = {f["exam_id"] for f in failures}
    if len(unreadable) == len(needed):
        raise EmbedpriorError(f"none of the {len(needed)} images could be read; the first: {failures[0]['reason']}")
    cohort = prepared.cohort
    if unreadable:
        cohort = cohort.drop(sorted(unreadable), "image readable", "image damaged (see failures.csv)")
    stage("embed", exams=len(needed), unreadable=len(unreadable), cache=cache.path.name)
    predictions, support, unfitted = [], [], []
    readable: dict[str, pd.DataFrame] = {}
    methods: dict[str, Method] = {}
    for design in config.designs:
        targets = prepared.targets[design.name]
        gone = targets["exam_id"].isin(unreadable) | targets["ct_exam_id"].isin(unreadable)
        readable[design.name] = targets[~gone].reset_index(drop=True)
        own = build_methods(config, design, targets, artifacts_root(out))
        methods |= {m.name: m for m in own}
        with one_thread():
            scored = _score_design(config, design, own, cohort, readable[design.name], prepared.splits, cache)
        stage(design.name, predictions=sum(map(len, scored[0])), unfitted=len(scored[2]))
        predictions += scored[0]
        support += scored[1]
        unfitted += scored[2]
    table = pd.concat(predictions, ignore_index=True) if predictions else pd.DataFrame()
    if table.empty:
        reasons = sorted({u["reason"] for u in unfitted})
        raise EmbedpriorError(f"no method could be fitted: {'; '.join(reasons)}")
    return StudyResult(
        cohort, readable, table, pd.DataFrame(support), failures, unfitted,
        needs_ct={name: m.needs_ct for name, m in methods.items()},
        uses_ct={name: m.uses_ct for name, m in methods.items()},
    )  # fmt: skip


def _needed_exams(config: StudyConfig, prepared: Prepared) -> pd.DataFrame:
    exams = prepared.cohort.exams
    wanted = {i for t in prepared.targets.values() for i in t["exam_id"]}
    if any(d.cases == "paired" for d in config.designs):
        wanted |= set(prepared.cohort.of("CT")["exam_id"])
    return exams[exams["exam_id"].isin(wanted)]


def _score_design(
    config: StudyConfig, design: Design, methods: list[Method], cohort: Cohort, targets: pd.DataFrame,
    splits: pd.DataFrame, cache: EmbeddingCache,
) -> tuple[list[pd.DataFrame], list[dict[str, Any]], list[dict[str, str]]]:  # fmt: skip
    needs_head = design.cases == "paired" and any(m.uses_ct for m in methods)
    own = splits[splits["design"] == design.name]
    frames, support, unfitted = [], [], []
    rounds = own[["resample", "fold"]].drop_duplicates().sort_values(["resample", "fold"]).astype(int)
    for number, (resample, fold) in enumerate(rounds.itertuples(index=False), 1):
        rows = own[(own["resample"] == resample) & (own["fold"] == fold)]
        parts = {p: targets[targets["patient_id"].isin(rows.loc[rows["part"] == p, "patient_id"])] for p in PARTS}
        cases = {part: cases_of(frame, cache, design.cases == "paired") for part, frame in parts.items()}
        head: Head | None = None
        reason, ct_counts = "no method of this design uses it", dict[str, int]()
        if needs_head:
            head, reason, ct_counts = train_teacher(config, cohort, rows, cache)
        support.append({"design": design.name, "resample": resample, "fold": fold, **_counts(parts), **ct_counts})
        if parts["test"].empty or parts["train"].empty:
            continue
        data = FitData((Stage(cases["train"], cases["val"]),), head, reason)
        table, failed, _ = score_fold(
            methods, data, {"test": cases["test"]}, config.seed, fold, resample,
            desc=f"{design.name} {number}/{len(rounds)}",
        )  # fmt: skip
        frames.append(table.assign(design=design.name))
        unfitted += [
            {**f, "stage": f"{design.name}: {f['stage']}", "design": design.name, "method": f["stage"].split(",")[0]}
            for f in failed
        ]
    return frames, support, unfitted


def build_methods(config: StudyConfig, design: Design, targets: pd.DataFrame, artifacts: Path) -> list[Method]:
    """Return the methods of one design, all with the same network and budget."""
    chosen = config.prior
    methods: list[Method] = []
    for name in design.methods:
        if name == SOURCE_ONLY:
            methods.append(SourceOnly(dict(zip(targets["exam_id"], targets["source"].fillna(""), strict=True))))
        elif name in FITTED:
            methods.append(create_method(name, fit_config=config.fit))
        elif name in PRIORS:
            methods.append(
                create_method(
                    name, stages=(chosen.training,), folder=artifacts, samples=chosen.samples,
                    sampler=chosen.sampler, steps=chosen.steps,
                )
            )  # fmt: skip
        else:
            methods.append(create_method(name))
    return methods


def train_teacher(
    config: StudyConfig, cohort: Cohort, rows: pd.DataFrame, cache: EmbeddingCache
) -> tuple[Head | None, str, dict[str, int]]:
    """Train the CT head of one fold on the CTs' own labels.

    It learns from every labelled CT of a patient outside the held-out (and validation) groups, CT-only patients
    included; CTs of the validation patients choose the step.

    Returns:
        The head, or None with the reason, and the counts of training CTs.
    """
    from embedprior.teachers.head import OneClass, train_head

    ct = cohort.of("CT")
    y = cohort.labels(config.label).loc[ct["exam_id"]].to_numpy(copy=True)
    groups = {part: set(rows.loc[rows["part"] == part, "group_id"]) for part in ("val", "test")}
    in_val = ct["group_id"].isin(groups["val"]).to_numpy() & ~np.isnan(y)
    in_train = ~ct["group_id"].isin(groups["val"] | groups["test"]).to_numpy() & ~np.isnan(y)
    counts = {
        "teacher_ct_pos": int((y[in_train] == 1).sum()),
        "teacher_ct_neg": int((y[in_train] == 0).sum()),
        "teacher_patients": int(ct.loc[in_train, "patient_id"].nunique()),
    }
    try:
        head = train_head(
            cache.take(list(ct.loc[in_train, "exam_id"])), y[in_train],
            cache.take(list(ct.loc[in_val, "exam_id"])), y[in_val], config.fit, seed_for(config.seed, "teacher"),
        )  # fmt: skip
    except OneClass as error:
        return None, str(error), counts
    return head, "", counts


def cases_of(targets: pd.DataFrame, cache: EmbeddingCache, paired: bool) -> Cases:
    """Return targets with their embeddings; CT is None in a design without CT."""
    return Cases(
        exam_ids=list(targets["exam_id"]),
        patient_ids=list(targets["patient_id"]),
        label=targets["label"].to_numpy(dtype=float, copy=True),
        cxr=cache.take(list(targets["exam_id"])),
        ct=cache.take(list(targets["ct_exam_id"])) if paired else None,
        ct_label=targets["ct_label"].to_numpy(dtype=float, copy=True),
    )


def _counts(parts: dict[str, pd.DataFrame]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for part, name in (("test", "held_out"), ("train", "train"), ("val", "val")):
        frame = parts[part]
        highest = frame.groupby("patient_id")["label"].max()
        counts |= {
            f"{name}_patients_pos": int((highest == 1).sum()),
            f"{name}_patients_neg": int((highest == 0).sum()),
            f"{name}_images_pos": int((frame["label"] == 1).sum()),
            f"{name}_images_neg": int((frame["label"] == 0).sum()),
        }
    disagree = parts["test"]["ct_label"].notna() & (parts["test"]["ct_label"] != parts["test"]["label"])
    return {**counts, "held_out_images_ct_disagrees": int(disagree.sum())}
