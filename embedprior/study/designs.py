"""The targets of a design, the folds they are divided into, and who keeps labels and pairs in a smaller fraction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool

from embedprior.cohort.base import Cohort, FlowStep, flow_step
from embedprior.cohort.splits import (
    RESAMPLE_SEED,
    Fold,
    external_split,
    fixed_split,
    group_kfold,
    leave_one_site_out,
    multilabel_held_out,
    patient_labels,
    pilot_resamples,
    with_multilabel_validation,
    with_training,
    with_validation,
    without_held_out,
)
from embedprior.errors import BadInput
from embedprior.runs import seed_for
from embedprior.study.config import SOURCE_ONLY, Design

FIXED_SHARE = 0.2
"""Of the patients whom a fixed split holds out, as in the pilot study."""
TARGET_COLUMNS = ["exam_id", "patient_id", "group_id", "label", "source", "site", "ct_exam_id", "ct_label"]


def targets_of(cohort: Cohort, labels: pd.Series | pd.DataFrame, design: Design) -> pd.DataFrame:
    """Return the labelled X-rays of one design, in the order of the exam table.

    Args:
        cohort: all exams.
        labels: by exam; of a table of several labels, an X-ray takes part where any is known, and the columns
            ``label`` and ``ct_label`` wait for one of them (see ``of_label``).
        design: its settings.

    Raises:
        BadInput: there is none, one lies in two pairs, or ``source-only`` is asked for without a source column.
    """
    xrays = cohort.of("CXR")
    xrays = xrays[_known(labels).loc[xrays["exam_id"]].to_numpy(dtype=bool)]
    values = pd.Series(np.nan, index=labels.index) if isinstance(labels, pd.DataFrame) else labels
    xrays = xrays.assign(label=values.loc[xrays["exam_id"]].to_numpy())
    if design.cases == "paired":
        pairs = cohort.pairs[cohort.pairs["cxr_exam_id"].isin(xrays["exam_id"])]
        repeated = pairs.loc[pairs["cxr_exam_id"].duplicated(), "cxr_exam_id"]
        if len(repeated):
            raise BadInput(f"X-rays in more than one pair: {', '.join(repeated[:3])}. Next: keep one pair for each.")
        ct_of = pairs.set_index("cxr_exam_id")["ct_exam_id"]
        xrays = xrays[xrays["exam_id"].isin(ct_of.index)].assign(ct_exam_id=lambda f: f["exam_id"].map(ct_of))
        xrays = xrays.assign(ct_label=lambda f: values.loc[f["ct_exam_id"]].to_numpy())
    else:
        xrays = xrays.assign(ct_exam_id="", ct_label=np.nan)
    if xrays.empty:
        raise BadInput(f"design '{design.name}' has no labelled {'paired ' * (design.cases == 'paired')}X-ray.")
    if "source" not in xrays.columns and SOURCE_ONLY in design.methods:
        raise BadInput(f"'{SOURCE_ONLY}' needs a column 'source' in the exam table. Next: add it, or drop the row.")
    for column in ("source", "site"):
        text = xrays[column].astype(object).fillna("").astype(str) if column in xrays.columns else ""
        xrays = xrays.assign(**{column: text})
    if design.site_decides:
        xrays = xrays.assign(site=xrays[design.site_column])
    return xrays[TARGET_COLUMNS].reset_index(drop=True)


def _known(labels: pd.Series | pd.DataFrame) -> pd.Series:
    return labels.notna().any(axis=1) if isinstance(labels, pd.DataFrame) else labels.notna()


def of_label(targets: pd.DataFrame, labels: pd.Series) -> pd.DataFrame:
    """Return the targets of a study of several labels with the values of one: 1, 0 or NaN.

    Args:
        targets: see ``targets_of``.
        labels: of every exam, by ``exam_id``.
    """
    return targets.assign(
        label=labels.reindex(targets["exam_id"]).to_numpy(), ct_label=labels.reindex(targets["ct_exam_id"]).to_numpy()
    )


def too_few(targets: pd.DataFrame, folds: Sequence[Fold], monte_carlo: bool) -> str:
    """Say why one label can't be tested in a design: no pairs to compare, or a fold without a class to train on.

    Args:
        targets: with the values of the label.
        folds: of the design; the repeats of a k-fold hold out the same patients and count once.
        monte_carlo: whether each resample is judged by itself.

    Returns:
        The reason; empty when the label can be fitted and tested.
    """
    highest = targets.groupby("patient_id")["label"].max().dropna()
    positive, negative = set(highest[highest == 1].index), set(highest[highest == 0].index)
    counts = f"{len(positive)} positive and {len(negative)} negative patients"
    pairs: dict[int, list[tuple[int, int]]] = {}
    for one in folds:
        held, train = one.patients("test"), one.patients("train")
        both = len(held & positive), len(held & negative)
        pairs.setdefault(one.resample, []).append(both if min(both) else (0, 0))
        for name, members in (("positive", positive), ("negative", negative)):
            if not train & members:
                return f"{counts}: no {name} one trains in fold {one.fold}"
    for resample in pairs if monte_carlo else list(pairs)[:1]:
        held_pos, held_neg = map(sum, zip(*pairs[resample], strict=True))
        if min(held_pos, held_neg) < 2:
            return (
                f"{counts}; where both classes are held out, {held_pos} and {held_neg}: at least 2 of each are needed"
            )
    return ""


def design_flow(
    cohort: Cohort, labels: pd.Series | pd.DataFrame, design: Design, targets: pd.DataFrame, folds: Sequence[Fold],
    scored: Collection[str] | None = None,
) -> list[FlowStep]:  # fmt: skip
    """Return the steps from a cohort's exams to the cases that one design scores.

    Args:
        cohort: all exams.
        labels: by exam; of a table of several any known one counts.
        design: its settings.
        targets: see ``targets_of``; of an external cohort in another folder too.
        folds: of the design.
        scored: the exams that got a score; None before the study has run.
    """
    xrays = cohort.of("CXR")
    labelled = xrays[_known(labels).loc[xrays["exam_id"]].to_numpy(dtype=bool)]
    paired = labelled[labelled["exam_id"].isin(targets["exam_id"])]
    held_out = frozenset[str]().union(*(one.patients("test") for one in folds))
    held = targets[targets["patient_id"].isin(held_out)]
    steps = [
        ("X-rays", xrays, "CTs, DRRs and reports are not scored"),
        ("X-rays with a label", labelled, "the label is unknown"),
        ("X-rays in a pair", paired, "no CT is paired with it") if design.cases == "paired" else None,
        ("held out in some fold", held, "only trains or chooses"),
        None if scored is None else ("scored", held[held["exam_id"].isin(scored)], "no method gave a score"),
    ]
    found: list[FlowStep] = []
    before = len(cohort.exams)
    for name, exams, reason in filter(None, steps):
        # an external cohort is held out beside the cases that train
        found.append(flow_step(f"{design.name}: {name}", exams, max(0, before - len(exams)), reason))
        before = len(exams)
    return found


def make_folds(
    cohort: Cohort, labels: pd.Series | pd.DataFrame, targets: pd.DataFrame, design: Design, seed: int,
    seen: frozenset[str] = frozenset(),
) -> list[Fold]:  # fmt: skip
    """Return the folds of one design.

    Args:
        cohort: all exams, those of patients without a target included.
        labels: by exam; a table of several is balanced over the parts together.
        targets: see ``targets_of``.
        design: its settings.
        seed: of the splits.
        seen: patients who must not be held out (an encoder was trained on them). They train in every fold that
            does not hold out their site; so do the patients of their groups.

    Raises:
        BadInput: too few patients of one label.
    """
    seen_groups = set(cohort.exams.loc[cohort.exams["patient_id"].isin(seen), "group_id"])
    may_be_held = ~targets["group_id"].isin(seen_groups)
    eligible, others = targets[may_be_held], targets[~may_be_held]
    if eligible.empty:
        raise BadInput(f"design '{design.name}': the encoders were trained on every patient who could be held out.")
    if design.split == "kfold":
        folds = group_kfold(eligible, labels, design.name, design.folds, seed, design.validation, design.repeats)
    elif design.split == "fixed":
        folds = (
            [multilabel_held_out(eligible, eligible, labels, design.name, FIXED_SHARE, seed)]
            if isinstance(labels, pd.DataFrame)
            else fixed_split(eligible, patient_labels(eligible, labels), design.name, 1 - FIXED_SHARE, seed)
        )
    elif design.split == "resamples":
        with_ct = cohort.of("CT") if design.cases == "paired" else targets
        everyone = pd.concat([targets, with_ct[~with_ct["patient_id"].isin(targets["patient_id"])]])
        if isinstance(labels, pd.DataFrame):
            share, name = design.held_out_share or FIXED_SHARE, design.name
            folds = [
                multilabel_held_out(eligible, everyone, labels, name, share, RESAMPLE_SEED + k, k)
                for k in range(1, design.resamples + 1)
            ]
        else:
            folds = pilot_resamples(
                everyone, patient_labels(eligible, labels), design.name, design.resamples, design.positives,
                design.negatives, design.held_out_share,
            )  # fmt: skip
    else:
        return _site_folds(cohort, labels, eligible, design, seed, seen_groups)
    known = dict(zip(others["patient_id"], others["group_id"], strict=True))
    folds = [with_training(r, known) for r in folds]
    return folds if design.split == "kfold" else validated(folds, targets, labels, design, seed)


def _site_folds(
    cohort: Cohort, labels: pd.Series | pd.DataFrame, eligible: pd.DataFrame, design: Design, seed: int,
    seen_groups: set[str],
) -> list[Fold]:  # fmt: skip
    if design.site_column not in cohort.exams.columns:
        raise BadInput(
            f"design '{design.name}' needs a column '{design.site_column}' in the exam table. Next: add it, or "
            "choose another split."
        )
    taking_part = cohort.exams["group_id"].isin(eligible["group_id"]) | ~cohort.exams["modality"].eq("CXR")
    exams = cohort.exams[taking_part | cohort.exams["group_id"].isin(seen_groups)]
    if design.split == "site":
        folds = leave_one_site_out(exams, design.name, design.site_column)
        scored = [r for r in folds if r.patients("test") & set(eligible["patient_id"])]
    else:
        scored = external_split(exams, design.name, design.external, design.site_column)
    if not any(r.patients("test") & set(eligible["patient_id"]) for r in scored):
        raise BadInput(
            f"design '{design.name}': nobody who could be scored is left to hold out: all have exams of another "
            f"{design.site_column} too, or share a file or group with someone who has. Next: embedprior cohort check "
            "lists shared files."
        )
    scored = [without_held_out(r, seen_groups) for r in scored]
    return validated(scored, eligible, labels, design, seed)


def validated(
    folds: list[Fold], targets: pd.DataFrame, labels: pd.Series | pd.DataFrame, design: Design, seed: int
) -> list[Fold]:
    """Return the folds with a share of the training patients choosing, where the design asks for it."""
    if not design.validation:
        return folds
    if isinstance(labels, pd.DataFrame):
        return [with_multilabel_validation(r, targets, labels, design.validation_share, seed) for r in folds]
    highest = patient_labels(targets, labels)
    return [with_validation(r, highest, design.validation_share, seed) for r in folds]


def with_labels(patient_label: Mapping[str, int], fraction: float, seed: int) -> set[str]:
    """Return the patients whose labels stay known: the fraction of each class, and at least one patient of it.

    The order in which patients lose their labels depends on the seed and their ids only, so every method, fit and
    fraction of a study draws from the same order.
    """
    kept: set[str] = set()
    for value in (0, 1):
        members = _ordered([p for p, label in patient_label.items() if label == value], seed, "labels")
        kept |= set(members[: max(1, round(fraction * len(members)))])
    return kept


def with_pairs(patients: set[str], fraction: float, seed: int) -> set[str]:
    """Return the patients whose X-ray–CT pairs stay known: the fraction of them, and at least two."""
    return set(_ordered(list(patients), seed, "pairs")[: max(2, round(fraction * len(patients)))])


def _ordered(patients: list[str], seed: int, what: str) -> list[str]:
    return sorted(patients, key=lambda p: (seed_for(seed, what, p), p))


def may_train(design: Design, one: Fold, groups: pd.Series) -> Bool[np.ndarray, " exams"]:
    """Say whose CTs and DRRs may train: everyone's outside the held-out and the validation groups.

    In a design by site only groups whose part is ``train``: a patient of a held-out site and of another takes no part,
    and neither do the exams made there.
    """
    if design.site_decides:
        return groups.isin(one.groups("train")).to_numpy()
    return ~groups.isin(one.groups("val", "test")).to_numpy()


def part_counts(parts: Mapping[str, pd.DataFrame]) -> dict[str, int]:
    """Return the patients and images of each class in every part, and the held-out images that their CT contradicts."""
    counts: dict[str, int] = {}
    for part, name in (("test", "held_out"), ("train", "train"), ("val", "val")):
        frame = parts[part].dropna(subset="label")
        highest = frame.groupby("patient_id")["label"].max()
        counts |= {
            f"{name}_patients_pos": int((highest == 1).sum()),
            f"{name}_patients_neg": int((highest == 0).sum()),
            f"{name}_images_pos": int((frame["label"] == 1).sum()),
            f"{name}_images_neg": int((frame["label"] == 0).sum()),
        }
    both = parts["test"].dropna(subset=["label", "ct_label"])
    disagree = both["ct_label"] != both["label"]
    return {**counts, "held_out_images_ct_disagrees": int(disagree.sum())}
