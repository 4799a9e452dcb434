"""What the fits of one fold read: cases by part, pretraining pairs, and the CTs of the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from embedprior.cohort.base import Cohort
from embedprior.cohort.splits import Fold, Part, patient_labels
from embedprior.students.base import Cases, Stage
from embedprior.students.registry import MethodInfo
from embedprior.study.caches import Caches, External
from embedprior.study.config import Design, StudyConfig
from embedprior.study.designs import with_labels, with_pairs


@dataclass(frozen=True)
class StudyInputs:
    """What the fits of one variant of a study read.

    Attributes:
        config: its settings.
        cohort: exams whose embedding exists.
        targets: by design (see ``designs.targets_of``), likewise.
        folds: by design, resample and fold.
        caches: open caches.
        artifacts: folder of all artifacts.
        infos: what is known of each method (see ``config.method_infos``).
        teacher_stream: name of the random stream of the CT head's fit; empty = the seed of the fit itself.
        externals: by design, the external cohort that it is scored on.
    """

    config: StudyConfig
    cohort: Cohort
    targets: dict[str, pd.DataFrame]
    folds: dict[tuple[str, int, int], Fold]
    caches: Caches
    artifacts: Path
    infos: dict[str, MethodInfo]
    teacher_stream: str = "teacher"
    externals: Mapping[str, External] = field(default_factory=dict)

    def without_data(self) -> StudyInputs:
        """Return the same with no embedding in memory: small enough to send to another process."""
        return replace(
            self, caches=self.caches.without_data(), externals={k: e.without_data() for k, e in self.externals.items()}
        )

    def design(self, name: str) -> Design:
        """Return a design by its name."""
        return next(d for d in self.config.designs if d.name == name)


@dataclass(frozen=True)
class TeacherData:
    """Labelled CTs of one fold.

    Attributes:
        train, train_label: embeddings and labels of the CTs that train the head.
        val, val_label: of the CTs that choose its step.
        patients: who they are of, by part.
    """

    train: Float[np.ndarray, "cts dim"]
    train_label: Float[np.ndarray, " cts"]
    val: Float[np.ndarray, "others dim"]
    val_label: Float[np.ndarray, " others"]
    patients: dict[str, list[str]]


@dataclass(frozen=True)
class FoldData:
    """Everything that the fits of one fold read and score.

    Attributes:
        stages: pretraining pairs (where there are any), then the X-rays of the design.
        paired_stages: the same for methods that use CT: pairs only.
        scored: ``val`` (where validation patients exist) and ``test``, with CT.
        teacher: None in a design where no method needs a CT head.
        counts: support of the fold, for the report.
    """

    stages: tuple[Stage, ...]
    paired_stages: tuple[Stage, ...]
    scored: dict[str, Cases]
    teacher: TeacherData | None
    counts: dict[str, int]

    def stages_for(self, info: MethodInfo) -> tuple[Stage, ...]:
        """Return what a method may learn from."""
        return self.paired_stages if info.uses_ct else self.stages


def fold_data(inputs: StudyInputs, design: Design, one: Fold) -> FoldData:
    """Return the cases of one fold."""
    targets, config = inputs.targets[design.name], inputs.config
    paired = design.cases == "paired"
    parts = {p: targets[targets["patient_id"].isin(one.patients(p))] for p in get_args(Part)}
    cases = {part: cases_of(frame, inputs.caches, paired) for part, frame in parts.items() if part != "test"}
    outside = inputs.externals.get(design.name)
    cases["test"] = (
        cases_of(parts["test"], outside.caches, outside.paired)
        if outside
        else cases_of(parts["test"], inputs.caches, paired)
    )
    known = _patients_with_labels(inputs, one, set(targets["patient_id"]))
    train, val = (_only_labels(cases[part], known) for part in ("train", "val"))
    target = Stage(train, val)
    pretraining = _pretraining(inputs, design, one, known) if paired else ()
    kept_pairs = target
    if paired and config.pair_fraction < 1:
        pairs = with_pairs(set(train.patient_ids), config.pair_fraction, config.seed)
        kept_pairs = Stage(train.take([i for i, p in enumerate(train.patient_ids) if p in pairs]), val)
    teacher = None
    if paired and any(inputs.infos[m].uses_ct for m in design.methods):
        teacher = _teacher_data(inputs, design, one, known)
    scored = {part: cases[part] for part in ("val", "test") if len(cases[part])}
    counts = _counts(parts)
    if config.label_fraction < 1:
        counts |= {"train_images_labelled": int(train.known.sum())}
    if config.pair_fraction < 1:
        counts |= {"train_pairs": len(kept_pairs.train)}
    if pretraining:
        counts |= {"pretraining_pairs": len(pretraining[0].train)}
    if teacher is not None:
        counts |= {
            "teacher_ct_pos": int((teacher.train_label == 1).sum()),
            "teacher_ct_neg": int((teacher.train_label == 0).sum()),
            "teacher_patients": len(teacher.patients["train"]),
        }
    return FoldData((*pretraining, target), (*pretraining, kept_pairs), scored, teacher, counts)


def cases_of(targets: pd.DataFrame, caches: Caches, paired: bool, source: str = "cxr") -> Cases:
    """Return targets with their embeddings; CT is None in a design without CT."""
    exam_ids = list(targets["exam_id"])
    return Cases(
        exam_ids=exam_ids,
        patient_ids=list(targets["patient_id"]),
        label=targets["label"].to_numpy(dtype=float, copy=True),
        cxr=caches.cxr.take(exam_ids),
        ct=caches.require_ct().take(list(targets["ct_exam_id"])) if paired else None,
        ct_label=targets["ct_label"].to_numpy(dtype=float, copy=True),
        source=source,
        pixels=caches.pixels_of(exam_ids),
        tokens=caches.tokens_of(exam_ids),
    )


def _may_train(design: Design, one: Fold, groups: pd.Series) -> Bool[np.ndarray, " exams"]:
    """Say whose CTs and DRRs may train: everyone's outside the held-out and the validation groups.

    In a design by site only groups whose part is ``train``: a patient of a held-out site and of another takes no part,
    and neither do the exams made there.
    """
    if design.site_decides:
        return groups.isin(one.groups("train")).to_numpy()
    return ~groups.isin(one.groups("val", "test")).to_numpy()


def _pretraining(inputs: StudyInputs, design: Design, one: Fold, known: set[str] | None) -> tuple[Stage, ...]:
    """DRR–CT pairs of everyone outside the held-out groups; those of the validation groups choose."""
    exams = inputs.cohort.exams.set_index("exam_id")
    pairs = inputs.cohort.pairs
    pairs = pairs[(exams.loc[pairs["cxr_exam_id"], "modality"] == "DRR").to_numpy()]
    if pairs.empty:
        return ()
    y = inputs.cohort.labels(inputs.config.label)
    frame = pd.DataFrame(
        {
            "exam_id": pairs["cxr_exam_id"], "patient_id": pairs["patient_id"], "ct_exam_id": pairs["ct_exam_id"],
            "label": y.loc[pairs["cxr_exam_id"]].to_numpy(), "ct_label": y.loc[pairs["ct_exam_id"]].to_numpy(),
        }
    )  # fmt: skip
    group = exams.loc[pairs["cxr_exam_id"], "group_id"]
    in_val = group.isin(one.groups("val")).to_numpy()
    in_train = _may_train(design, one, group)
    caches = replace(inputs.caches, pixels=None, tokens=None)
    train, val = (_only_labels(cases_of(frame[rows], caches, True, "drr"), known) for rows in (in_train, in_val))
    return (Stage(train, val),) if len(train) else ()


def _teacher_data(inputs: StudyInputs, design: Design, one: Fold, known: set[str] | None) -> TeacherData:
    """Labelled CTs of every patient outside the held-out (and validation) groups, CT-only patients included."""
    ct = inputs.cohort.of("CT")
    y = inputs.cohort.labels(inputs.config.label).loc[ct["exam_id"]].to_numpy(copy=True)
    usable = ~np.isnan(y)
    if known is not None:
        usable &= ct["patient_id"].isin(known).to_numpy()
    in_val = ct["group_id"].isin(one.groups("val")).to_numpy() & usable
    in_train = _may_train(design, one, ct["group_id"]) & usable
    cache = inputs.caches.require_ct()
    return TeacherData(
        cache.take(list(ct.loc[in_train, "exam_id"])), y[in_train],
        cache.take(list(ct.loc[in_val, "exam_id"])), y[in_val],
        {
            "train": sorted(set(ct.loc[in_train, "patient_id"])),
            "val": sorted(set(ct.loc[in_val, "patient_id"])),
        },
    )  # fmt: skip


def _patients_with_labels(inputs: StudyInputs, one: Fold, with_target: set[str]) -> set[str] | None:
    """Patients whose labels are known in this fold; None = everyone's.

    The share is taken of those who choose, of those who train with an X-ray, and of all others (CT only, DRR), each
    for itself: else the few X-rays with a label might all be of one class.
    """
    config, exams = inputs.config, inputs.cohort.exams
    if config.label_fraction == 1:
        return None
    held, val = one.groups("test"), one.groups("val")
    highest = patient_labels(exams, inputs.cohort.labels(config.label))
    group_of = dict(zip(exams["patient_id"], exams["group_id"], strict=True))
    known: set[str] = set()
    for part in (
        {p: v for p, v in highest.items() if group_of[p] in val},
        {p: v for p, v in highest.items() if group_of[p] not in held | val and p in with_target},
        {p: v for p, v in highest.items() if group_of[p] not in held | val and p not in with_target},
    ):
        known |= with_labels(part, config.label_fraction, config.seed)
    return known


def _only_labels(cases: Cases, known: set[str] | None) -> Cases:
    if known is None:
        return cases
    hidden = np.array([p not in known for p in cases.patient_ids], dtype=bool)
    return replace(
        cases, label=np.where(hidden, np.nan, cases.label), ct_label=np.where(hidden, np.nan, cases.ct_label)
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
