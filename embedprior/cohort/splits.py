"""Who trains and who is held out. Pure: the same cohort and seed give the same rounds."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Self

import numpy as np
import pandas as pd
from pydantic import model_validator

from embedprior.config import Config
from embedprior.errors import BadInput
from embedprior.runs import seed_for
from embedprior.tables import SPLIT_REQUIRED, check_splits

RESAMPLE_SEED = 1000
Part = Literal["train", "val", "test"]


class Fold(Config):
    """One division into training, validation and held-out patients.

    A part belongs to a *group*, and a patient to one group: a patient, or two patients who share a picture, on two
    sides of a split can't be written down.

    Attributes:
        design: name of the design.
        resample: Monte-Carlo resample, or repeat of a repeated k-fold.
        fold: fold, or site.
        group_of: the patients who take part, each with its group. Whoever is left out (the partner of a held-out
            patient, say) neither trains nor is scored.
        part_of: the part of each group.
    """

    design: str
    resample: int = 0
    fold: int = 0
    group_of: dict[str, str]
    part_of: dict[str, Part]

    @model_validator(mode="after")
    def _every_group_has_a_part(self) -> Self:
        lacking = sorted(set(self.group_of.values()) - set(self.part_of))
        if lacking:
            raise ValueError(f"groups without a part: {', '.join(lacking[:5])}")
        return self

    def patients(self, part: Part) -> set[str]:
        """Return the patients of one part."""
        return {p for p, group in self.group_of.items() if self.part_of[group] == part}

    def groups(self, *parts: Part) -> set[str]:
        """Return the groups of some parts."""
        return {group for group, part in self.part_of.items() if part in parts}


def splits_table(rounds: Sequence[Fold], where: str) -> pd.DataFrame:
    """Return the split table of some rounds, checked (see ``tables.check_splits``)."""
    rows = [
        {
            "patient_id": p, "group_id": r.group_of[p], "design": r.design, "resample": r.resample, "fold": r.fold,
            "part": r.part_of[r.group_of[p]],
        }
        for r in rounds
        for p in sorted(r.group_of, key=natural)
    ]  # fmt: skip
    return check_splits(pd.DataFrame(rows, columns=list(SPLIT_REQUIRED)), where)


def folds_of(splits: pd.DataFrame, where: str = "split table") -> list[Fold]:
    """Return the rounds of a split table, by design, resample and fold.

    Raises:
        BadInput: see ``tables.check_splits``.
    """
    checked = check_splits(splits, where)
    found = []
    for design in dict.fromkeys(checked["design"]):
        own = checked[checked["design"] == design]
        for (resample, fold), rows in own.groupby(["resample", "fold"], sort=True):
            found.append(
                Fold(
                    design=str(design), resample=int(resample), fold=int(fold),
                    group_of=dict(zip(rows["patient_id"], rows["group_id"], strict=True)),
                    part_of=dict(zip(rows["group_id"], rows["part"], strict=True)),
                )
            )  # fmt: skip
    return found


def group_kfold(
    exams: pd.DataFrame, labels: pd.Series | pd.DataFrame, design: str, folds: int, seed: int,
    validation: bool = False, repeats: int = 1,
) -> list[Fold]:  # fmt: skip
    """Return a stratified k-fold in which no group is in two folds (``sklearn.StratifiedGroupKFold``).

    Args:
        exams: with ``exam_id, patient_id, group_id``; each exam counts once in the stratification.
        labels: 1 or 0 by ``exam_id``; or a table of several labels, 1, 0 or NaN, which are balanced over the folds
            together (see ``multilabel_parts``).
        design: name written to the rounds.
        folds: how many.
        seed: of the shuffle; repeat r > 0 takes its own stream of it.
        validation: while fold k is held out, the patients of fold k + 1 choose the checkpoint (part ``val``).
        repeats: how often the whole k-fold is drawn anew (``resample`` 0, 1, …).

    Raises:
        BadInput: fewer groups with one of the labels than folds; of several labels: fewer groups than folds.
    """
    group_of = _group_of(exams)
    found = []
    for repeat in range(repeats):
        state = seed if repeat == 0 else seed_for(seed, "repeat", repeat) % 2**32
        for fold, test in enumerate(held := _held_groups(exams, labels, folds, state)):
            parts: dict[str, Part] = dict.fromkeys(group_of.values(), "train")
            if validation:
                parts |= dict.fromkeys(held[(fold + 1) % folds], "val")
            parts |= dict.fromkeys(test, "test")
            found.append(Fold(design=design, resample=repeat, fold=fold, group_of=group_of, part_of=parts))
    return found


def _held_groups(exams: pd.DataFrame, labels: pd.Series | pd.DataFrame, folds: int, state: int) -> list[set[str]]:
    """Return the groups that each fold holds out."""
    from sklearn.model_selection import StratifiedGroupKFold

    if isinstance(labels, pd.DataFrame):
        parts = multilabel_parts(exams, labels, [1 / folds] * folds, state)
        if min(Counter(parts.values())[fold] for fold in range(folds)) == 0:
            raise BadInput(f"{folds} folds need {folds} groups of patients; there are {len(parts)}. Next: fewer folds")
        return [{group for group, part in parts.items() if part == fold} for fold in range(folds)]
    y = labels.loc[exams["exam_id"]].to_numpy(dtype=int)
    for value in (0, 1):
        groups = exams.loc[y == value, "group_id"].nunique()
        if groups < folds:
            raise BadInput(
                f"{folds} folds need {folds} groups of patients with label {value}; there are {groups}. "
                "Next: fewer folds in the study's configuration."
            )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=state)
    return [set(exams["group_id"].iloc[rows]) for _, rows in splitter.split(np.zeros(len(y)), y, exams["group_id"])]


def multilabel_parts(exams: pd.DataFrame, labels: pd.DataFrame, shares: Sequence[float], seed: int) -> dict[str, int]:
    """Return a part for every group, so that each part holds its share of the positives and negatives of every label.

    A group is positive where any of its exams is, negative where one is known and none is positive. Groups of the
    rarest class of any label are dealt out first (iterative stratification; Sechidis, Tsoumakas and Vlahavas, ECML
    PKDD 2011), so that a label of few positives is spread evenly even beside eighteen others.

    Args:
        exams: with ``exam_id, group_id``.
        labels: 1, 0 or NaN by ``exam_id``, one column each.
        shares: of the parts; they sum to 1.
        seed: of the order and of ties.

    Example:
        >>> exams = pd.DataFrame({"exam_id": list("abcdefgh"), "group_id": list("abcdefgh")})
        >>> table = pd.DataFrame({"x": [1, 1, 0, 0, 0, 0, 0, 0], "y": [0, 0, 1, 1, 0, 0, None, None]}, exams["exam_id"])
        >>> parts = multilabel_parts(exams, table, [0.5, 0.5], seed=0)
        >>> parts["a"] + parts["b"], parts["c"] + parts["d"], parts["g"] + parts["h"]
        (1, 1, 1)
    """
    from iterstrat.ml_stratifiers import IterativeStratification

    known = labels.loc[exams["exam_id"]].set_axis(exams["group_id"].to_numpy())
    highest = known.groupby(level=0).max()
    highest = highest.loc[sorted(highest.index, key=natural)]
    classes = np.concatenate([(highest == value).to_numpy() for value in (1, 0)], axis=1)
    generator = np.random.RandomState(seed % 2**32)
    order = generator.permutation(len(classes))
    found = IterativeStratification(labels=classes[order], r=np.asarray(shares, dtype=float), random_state=generator)
    return {str(highest.index[row]): int(part) for row, part in zip(order, found, strict=True)}


def multilabel_held_out(
    exams: pd.DataFrame, everyone: pd.DataFrame, labels: pd.DataFrame, design: str, share: float, seed: int,
    resample: int = 0,
) -> Fold:  # fmt: skip
    """Return a round that holds out a share of the groups, by several labels together.

    Args:
        exams: of those who may be held out.
        everyone: exams of all who take part, those who only train included.
        labels: see ``multilabel_parts``.
        design: name written to the round.
        share: of the groups.
        seed: see ``multilabel_parts``.
        resample: number of the round.
    """
    parts = multilabel_parts(exams, labels, [1 - share, share], seed)
    groups = {group for group, part in parts.items() if part == 1}
    if not groups or len(groups) == len(parts):
        raise BadInput(f"a share of {share:g} of {len(parts)} groups of patients holds out {len(groups)}.")
    held = exams.loc[exams["group_id"].isin(groups), "patient_id"]
    return _held_out(design, resample, 0, held, _group_of(everyone))


def pilot_resamples(
    exams: pd.DataFrame,
    patient_label: Mapping[str, int],
    design: str,
    resamples: int,
    positives: int = 4,
    negatives: int = 1,
    share: float | None = None,
) -> list[Fold]:
    """Return patient-level Monte-Carlo resamples by the pilot study's generator; its defaults are the pilot's own.

    For k = 1..resamples, ``numpy.random.default_rng(1000 + k)`` draws min(4, n₊ − 1) positive and then
    min(1, n₋ − 1) negative patients without replacement from the patients in ascending (integer) order.
    Everyone else trains, except patients of a held-out group, who take no part.

    Args:
        exams: with ``patient_id, group_id``: everyone who may train, CT-only patients included.
        patient_label: the patients who may be held out, the highest label of each one's target X-rays.
        design: name written to the rounds.
        resamples: how many.
        positives: positive patients to hold out, at most.
        negatives: negative patients to hold out, at most.
        share: hold out this share of each class instead (at least one patient).

    Raises:
        BadInput: fewer than two patients of one label.
    """
    ordered = sorted(patient_label, key=natural)
    classes = [[p for p in ordered if patient_label[p] == value] for value in (1, 0)]
    if min(map(len, classes)) < 2:
        raise BadInput(
            f"resampling by label needs two positive and two negative patients who may be held out; there are "
            f"{len(classes[0])} and {len(classes[1])}."
        )
    wanted_of = (positives, negatives) if share is None else tuple(max(1, round(share * len(c))) for c in classes)
    group_of = _group_of(exams)
    found = []
    for k in range(1, resamples + 1):
        generator = np.random.default_rng(RESAMPLE_SEED + k)
        held: set[str] = set()
        for members, wanted in zip(classes, wanted_of, strict=True):
            size = min(wanted, len(members) - 1)
            drawn = generator.choice(np.arange(len(members)), size=size, replace=False)
            held |= {members[i] for i in drawn}
        found.append(_held_out(design, k, 0, held, group_of))
    return found


def fixed_split(
    exams: pd.DataFrame, patient_label: Mapping[str, int], design: str, train: float = 0.8, seed: int = 42
) -> list[Fold]:
    """Return the pilot study's fixed split.

    Patients in string order, label 0 first; one ``random.Random(seed)`` shuffles each label's list; the first
    round(train · n) of each, at least 1 and at most n − 1, train. A training patient whose group is held out takes
    no part.

    Raises:
        BadInput: fewer than two patients of one label.
    """
    generator = random.Random(seed)
    held: set[str] = set()
    for value in (0, 1):
        members = sorted(p for p, label in patient_label.items() if label == value)
        if len(members) < 2:
            raise BadInput(f"a fixed split needs two patients of label {value}; there is {len(members)}.")
        generator.shuffle(members)
        cut = min(max(round(train * len(members)), 1), len(members) - 1)
        held |= set(members[cut:])
    group_of = {p: g for p, g in _group_of(exams).items() if p in patient_label}
    return [_held_out(design, 0, 0, held, group_of)]


def leave_one_site_out(exams: pd.DataFrame, design: str, column: str = "site") -> list[Fold]:
    """Return one round a site: its patients are held out, everyone else trains.

    A patient (or group) seen at several sites trains only while none of these is held out, and is never scored.

    Raises:
        BadInput: a site is not known, or there is only one.
    """
    sites = sorted(_sites(exams, column))
    if len(sites) < 2:
        raise BadInput(f"leaving one site out needs two sites; column '{column}' holds {', '.join(sites)} only.")
    sites_of = {str(g): set(part[column].astype(str)) for g, part in exams.groupby("group_id")}
    group_of = _group_of(exams)
    found = []
    for fold, site in enumerate(sites):
        kept = {p: g for p, g in group_of.items() if sites_of[g] == {site} or site not in sites_of[g]}
        parts: dict[str, Part] = {g: "test" if sites_of[g] == {site} else "train" for g in kept.values()}
        found.append(Fold(design=design, fold=fold, group_of=kept, part_of=parts))
    return found


def external_split(exams: pd.DataFrame, design: str, sites: Sequence[str], column: str = "site") -> list[Fold]:
    """Return one round: the patients of the external sites are held out, everyone else trains.

    A patient seen at an external site and elsewhere takes no part.

    Raises:
        BadInput: an external site that no exam has, or nobody is left to train or to hold out.
    """
    have = _sites(exams, column)
    absent = sorted(set(sites) - have)
    if absent:
        raise BadInput(f"no exam of site {', '.join(absent)}; column '{column}' holds {', '.join(sorted(have))}.")
    if have == set(sites):
        raise BadInput(f"every exam is of an external site ({', '.join(sorted(have))}): nobody is left to train.")
    outside = {str(g): set(part[column].astype(str)) for g, part in exams.groupby("group_id")}
    wanted = set(sites)
    kept = {p: g for p, g in _group_of(exams).items() if outside[g] <= wanted or not outside[g] & wanted}
    parts: dict[str, Part] = {g: "test" if outside[g] <= wanted else "train" for g in kept.values()}
    for part, does in (("test", "hold out"), ("train", "train")):
        if part not in parts.values():
            raise BadInput(
                f"external site {', '.join(sorted(wanted))}: every patient there has exams at another site too, or "
                f"shares a file or group with someone who has: nobody is left to {does}. Next: embedprior cohort check "
                "lists shared files; or hold out another site."
            )
    return [Fold(design=design, group_of=kept, part_of=parts)]


def held_out_cohort(exams: pd.DataFrame, external: pd.DataFrame, design: str) -> Fold:
    """Return one round of two cohorts without a common patient or group: the first trains, the second is held out."""
    parts: dict[str, Part] = dict.fromkeys(exams["group_id"], "train")
    parts |= dict.fromkeys(external["group_id"], "test")
    return Fold(design=design, group_of={**_group_of(exams), **_group_of(external)}, part_of=parts)


def with_validation(one: Fold, patient_label: Mapping[str, int], share: float, seed: int) -> Fold:
    """Return the round with a share of its training groups choosing checkpoints (part ``val``).

    Drawn by label, at least one group of each, and never the last training group of a class. Groups without a
    labelled target (CT-only patients) go on training.
    """
    label: dict[str, int] = {}
    for patient in sorted(one.patients("train") & set(patient_label), key=natural):
        group = one.group_of[patient]
        label[group] = max(label.get(group, 0), patient_label[patient])
    generator = np.random.default_rng(seed_for(seed, "validation", one.design, one.resample, one.fold))
    parts = dict(one.part_of)
    for value in (1, 0):
        members = [g for g, known in label.items() if known == value]
        size = min(max(1, round(share * len(members))), len(members) - 1)
        for i in generator.permutation(len(members))[: max(size, 0)]:
            parts[members[i]] = "val"
    return one.model_copy(update={"part_of": parts})


def with_multilabel_validation(
    one: Fold, exams: pd.DataFrame, labels: pd.DataFrame, share: float, seed: int
) -> Fold:  # fmt: skip
    """Return the round with a share of its training groups choosing checkpoints, by several labels together.

    Args:
        one: a round.
        exams: the X-rays that may be scored; groups without one go on training.
        labels: see ``multilabel_parts``.
        share: of the groups.
        seed: see ``with_validation``.
    """
    training = exams[exams["patient_id"].isin(one.patients("train"))]
    own_seed = seed_for(seed, "validation", one.design, one.resample, one.fold)
    chosen = multilabel_parts(training, labels, [1 - share, share], own_seed)
    val: dict[str, Part] = {group: "val" for group, part in chosen.items() if part == 1}
    return one.model_copy(update={"part_of": {**one.part_of, **val}})


def with_training(one: Fold, group_of: Mapping[str, str]) -> Fold:
    """Return the round with more patients who train, unless their group is held out or chooses checkpoints."""
    busy = one.groups("val", "test")
    more = {p: g for p, g in group_of.items() if g not in busy and p not in one.group_of}
    parts: dict[str, Part] = {**one.part_of, **dict.fromkeys(more.values(), "train")}
    return one.model_copy(update={"group_of": {**one.group_of, **more}, "part_of": parts})


def without_held_out(one: Fold, groups: set[str]) -> Fold:
    """Return the round in which none of these groups is held out: those that were take no part."""
    parts = {g: part for g, part in one.part_of.items() if g not in groups or part != "test"}
    return one.model_copy(update={"group_of": {p: g for p, g in one.group_of.items() if g in parts}, "part_of": parts})


def natural(patient_id: str) -> tuple[int, int, str]:
    """Return the sort key "ascending integer order": numbers by value, then everything else by text."""
    return (0, int(patient_id), "") if patient_id.isdigit() else (1, 0, patient_id)


def patient_labels(exams: pd.DataFrame, labels: pd.Series) -> dict[str, int]:
    """Return the highest known label of each patient's exams."""
    known = labels.loc[exams["exam_id"]].to_numpy()
    highest = pd.Series(known, index=exams["patient_id"].to_numpy()).groupby(level=0).max().dropna()
    return {str(patient): int(value) for patient, value in highest.items()}


def _held_out(design: str, resample: int, fold: int, held: Iterable[str], group_of: Mapping[str, str]) -> Fold:
    chosen = set(held)
    groups = {group_of[p] for p in chosen}
    kept = {p: g for p, g in group_of.items() if p in chosen or g not in groups}
    parts: dict[str, Part] = {g: "test" if g in groups else "train" for g in kept.values()}
    return Fold(design=design, resample=resample, fold=fold, group_of=kept, part_of=parts)


def _sites(exams: pd.DataFrame, column: str) -> set[str]:
    if column not in exams.columns:
        raise BadInput(f"the exam table has no column '{column}'. Next: add it, or choose another split.")
    unknown = exams.loc[exams[column].isna() | (exams[column].astype(str) == ""), "exam_id"]
    if len(unknown):
        raise BadInput(f"{len(unknown)} exams have no {column}: {', '.join(unknown[:5])}.")
    return set(exams[column].astype(str))


def _group_of(exams: pd.DataFrame) -> dict[str, str]:
    return dict(zip(exams["patient_id"], exams["group_id"], strict=True))
