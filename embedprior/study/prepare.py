"""Before anything is written: read the cohort, join shared pictures, split, refuse what is unusable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from embedprior.cohort.base import Cohort, of_views
from embedprior.cohort.duplicates import COLUMNS, first_of_each
from embedprior.cohort.label_sets import label_set, read_labels
from embedprior.cohort.sources import read_cohort
from embedprior.cohort.sources.tables import read_splits
from embedprior.cohort.splits import Fold, folds_of, splits_table
from embedprior.encoders.base import Encoder
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput, nearest
from embedprior.imaging.files import UnreadableExam, source_hash
from embedprior.runs import hash_of
from embedprior.study.config import StudyConfig
from embedprior.study.designs import make_folds, of_label, targets_of, too_few, validated
from embedprior.study.inputs import (
    Caches,
    External,
    cohort_of_caches,
    external_folds,
    open_caches,
    open_external,
    patients_seen,
)
from embedprior.study.leakage import (
    in_caches,
    in_pictures,
    join_external,
    near_copies_outside,
    refuse_shared_files,
)
from embedprior.tables import EXAM_REQUIRED, LABEL_PREFIX, PAIR_REQUIRED, check_splits, read_table

NO_DUPLICATES = pd.DataFrame(columns=COLUMNS)


@dataclass(frozen=True)
class StudyData:
    """The data of one variant, checked: everything that can be refused has been, and nothing was written.

    Attributes:
        cohort: with patients who share a picture in one group (unless they are only to be reported).
        duplicates: the shared pictures (see ``cohort.duplicates.near_duplicates``).
        targets: by design, the X-rays to score (see ``designs.targets_of``).
        splits: split table of all designs.
        user_splits: designs whose splits are the user's.
        encoder: of the pictures; None when the embeddings exist already.
        caches: embeddings that exist already; None when pictures are to be embedded.
        seen: what was trained before on patients of this cohort → these patients.
        externals: by design, the external cohort it is scored on, where that is another folder.
        compared: sentences: which files, pictures and embeddings were compared for copies, and which were not.
        unembedded: exams that the study would have read, had the caches an embedding of them.
        untestable: of a study of several labels, by design: why this label can't be tested there; no method is fitted.
        unknown_in: likewise: design, resample and fold of those that hold out nobody whose label is known.
        label_set: hash of the labels' definition; empty in a study of one label.
    """

    cohort: Cohort
    duplicates: pd.DataFrame
    targets: dict[str, pd.DataFrame]
    splits: pd.DataFrame
    user_splits: frozenset[str] = frozenset()
    encoder: Encoder | None = None
    caches: Caches | None = None
    seen: dict[str, frozenset[str]] | None = None
    externals: Mapping[str, External] = field(default_factory=dict)
    compared: tuple[str, ...] = ()
    unembedded: tuple[str, ...] = ()
    untestable: Mapping[str, str] = field(default_factory=dict)
    unknown_in: frozenset[tuple[str, int, int]] = frozenset()
    label_set: str = ""

    def for_label(self, config: StudyConfig) -> StudyData:
        """Return the data of one label of a study of several: the same exams and splits, with its values.

        Args:
            config: of the label's variant.
        """
        cohorts = [self.cohort, *(e.cohort for e in self.externals.values())]
        labels = pd.concat([cohort.labels(config.label) for cohort in cohorts])
        targets = {name: of_label(table, labels) for name, table in self.targets.items()}
        reasons = {d.name: too_few(targets[d.name], self.folds(d.name), d.split == "resamples") for d in config.designs}
        known = {name: set(table.dropna(subset="label")["patient_id"]) for name, table in targets.items()}
        empty = {
            (d.name, one.resample, one.fold)
            for d in config.designs
            for one in self.folds(d.name)
            if not one.patients("test") & known[d.name]
        }
        untestable = {name: why for name, why in reasons.items() if why}
        return replace(self, targets=targets, untestable=untestable, unknown_in=frozenset(empty))

    def folds(self, design: str) -> list[Fold]:
        """Return the folds of one design, by resample and fold."""
        return folds_of(self.splits[self.splits["design"] == design])

    def input_hashes(self) -> dict[str, str]:
        """Return the hashes of the tables and the embeddings the study starts from."""
        tables = {"exams": self.cohort.exams, "pairs": self.cohort.pairs, "splits": self.splits}
        found = {name: _hash(table) for name, table in tables.items()}
        if self.encoder is not None:
            found["encoder weights"] = self.encoder.spec.weights_sha256
            found["pictures"] = _hash_pictures(self.cohort)
        if self.caches is not None:
            found |= self.caches.hashes(self.cohort.exams)
        if self.label_set:
            found["label set"] = self.label_set
        for external in self.externals.values():
            for name, table in (("exams", external.cohort.exams), ("pairs", external.cohort.pairs)):
                found[f"{external.name}: {name}"] = _hash(table)
            hashes = external.caches.hashes(external.cohort.exams)
            found |= {f"{external.name}: {name}": value for name, value in hashes.items()}
        return found


def _hash_pictures(cohort: Cohort) -> str:
    """Return a hash of the contents of every picture; what can't be read counts as such."""
    pictures = cohort.exams[cohort.exams["modality"].isin(("CXR", "CT", "DRR"))]
    found = []
    for exam_id, path in zip(pictures["exam_id"], pictures["path"], strict=True):
        try:
            found.append((exam_id, source_hash(cohort.root, str(path))))
        except (OSError, ValueError, IndexError, UnreadableExam):
            found.append((exam_id, "unreadable"))
    return hash_of(found)


def _hash(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


def read_study_data(
    config: StudyConfig, data: Path, splits_file: Path | None = None, kept: frozenset[str] = frozenset()
) -> StudyData:
    """Read the cohort and make (or read) the splits.

    Args:
        config: of the study.
        data: folder of the cohort.
        splits_file: split table of the user.
        kept: patients who are not held out, besides those whom this configuration's encoders saw, where
            ``encoder_training_patients`` is ``train``.

    Raises:
        BadInput: whatever the cohort, the embeddings, the label, the designs or the split file are refused for; or
            a patient would be held out whom an encoder was trained on (the ids are named).
    """
    caches = open_caches(config.caches, data) if config.caches else None
    if caches is None:
        cohort = read_cohort(config.source, data, config.missing_images)
        cohort = of_views(cohort, config.views, config.complete, headers=True)
        encoder, seen = image_encoder(config), dict[str, frozenset[str]]()
        if encoder.spec.patients_seen is not None:
            seen["encoder"] = frozenset(encoder.spec.patients_seen)
        leakage = in_pictures(cohort)
    else:
        cohort = cohort_of_caches(data, caches, config)
        encoder, seen = None, patients_seen(caches)
        leakage = in_caches(cohort, caches)
    near_too = config.duplicates == "join"
    cohort = leakage.joined(cohort, near_too)
    duplicates, compared = [leakage.duplicates], list(leakage.compared)
    externals = {
        d.name: open_external(config, d, data, caches) for d in config.designs if d.data is not None and caches
    }
    if caches is not None:
        for external in externals.values():
            refuse_shared_files(cohort, caches, external)
            outside = near_copies_outside(cohort, caches, external, near_too)
            duplicates.append(outside.duplicates)
            compared += [text for text in outside.compared if text not in compared]
        externals = {name: join_external(external, near_too) for name, external in externals.items()}
    for external in externals.values():
        for what, patients in patients_seen(external.caches).items():
            seen[what] = seen.get(what, frozenset()) | patients
    lacking = unembedded_exams(config, data, caches) if caches is not None else ()
    found = split_cohort(
        config, cohort, first_of_each(duplicates), encoder, caches, seen, splits_file, externals=externals, kept=kept,
        compared=tuple(compared),
    )  # fmt: skip
    found = replace(found, unembedded=lacking)
    return _with_label_set(found, config) if config.labels else found


def _with_label_set(data: StudyData, config: StudyConfig) -> StudyData:
    """Return the data with a column of every label of the study; those that the table lacks are made of others.

    Raises:
        BadInput: a label that a table neither has nor can make.
    """

    def made(cohort: Cohort, where: str) -> Cohort:
        labels = read_labels(cohort.exams, config.labels, where)
        return replace(cohort, exams=cohort.exams.assign(**{LABEL_PREFIX + str(name): labels[name] for name in labels}))

    externals = {
        name: replace(e, cohort=made(e.cohort, f"external cohort '{e.name}'")) for name, e in data.externals.items()
    }
    definition = label_set(config.labels) if isinstance(config.labels, str) else list(config.labels)
    return replace(data, cohort=made(data.cohort, "exams.csv"), externals=externals, label_set=hash_of(definition))


def unembedded_exams(config: StudyConfig, data: Path, caches: Caches) -> tuple[str, ...]:
    """Return the exams of the study's views that were meant to be embedded, and are in no cache: unreadable, as a rule.

    Meant are the modalities of which a cache holds exams: radiographs and DRRs in the first, CTs in the second.
    """
    exams = read_table(data / "exams.csv", [c for c in EXAM_REQUIRED if c != "path"])
    held = [set(caches.cxr.ids), set(caches.ct.ids if caches.ct else ())]
    absent = []
    for modality, own in exams.groupby("modality"):
        there = own["exam_id"].isin(held[modality == "CT"])
        absent += list(own.loc[~there, "exam_id"]) if there.any() else []
    rows = exams[exams["exam_id"].isin(absent)].assign(path="")  # the table may lack it, and no file is looked for
    if rows.empty:
        return ()
    chosen = of_views(Cohort(data, rows, pd.DataFrame(columns=list(PAIR_REQUIRED)), ()), config.views, config.complete,
                      headers=False)  # fmt: skip
    return tuple(chosen.exams["exam_id"].astype(str))


def split_cohort(
    config: StudyConfig, cohort: Cohort, duplicates: pd.DataFrame, encoder: Encoder | None, caches: Caches | None,
    seen: dict[str, frozenset[str]], splits_file: Path | None = None, splits: pd.DataFrame | None = None,
    externals: Mapping[str, External] | None = None, kept: frozenset[str] = frozenset(),
    compared: tuple[str, ...] = (),
) -> StudyData:  # fmt: skip
    """Make (or check) the splits of a cohort that has been read; see ``read_study_data``.

    Args:
        splits: split table of the user, already read (instead of ``splits_file``).
        externals: by design, the external cohort in another folder.
        kept: see ``read_study_data``.
        compared: see ``StudyData``.
    """
    externals = externals or {}
    labels = labels_of(cohort, config)
    targets = {d.name: targets_of(cohort, labels, d) for d in config.designs}
    where = str(splits_file) if splits_file else "the split table"
    given = read_splits(splits_file) if splits_file else splits
    if given is not None:
        _refuse_unknown_designs(given, config, where)
    named = frozenset(given["design"].astype(str)) if given is not None else frozenset[str]()
    everyone_seen = kept.union(*seen.values())
    tables = []
    for design in config.designs:
        own = given[given["design"] == design.name] if given is not None else pd.DataFrame()
        if design.name in externals:
            if len(own):
                raise BadInput(f"{where}: design '{design.name}' is scored on another folder: it takes no split table.")
            external, trained = externals[design.name], targets[design.name]
            folds = validated(external_folds(external, cohort, trained, design), trained, labels, design, config.seed)
            targets[design.name] = pd.concat([trained, external.targets], ignore_index=True)
            tables.append(splits_table(folds, f"{design.name}, {design.split}"))
        elif len(own):
            tables.append(_checked(own, cohort, targets[design.name], where))
        else:
            never = everyone_seen if config.encoder_training_patients == "train" else frozenset[str]()
            folds = make_folds(cohort, labels, targets[design.name], design, config.seed, never)
            tables.append(splits_table(folds, f"{design.name}, {design.split}"))
    table = pd.concat(tables, ignore_index=True)
    exams = pd.concat([cohort.exams, *(e.cohort.exams for e in externals.values())])
    refuse_seen(table, exams, targets, seen)
    return StudyData(cohort, duplicates, targets, table, named, encoder, caches, seen, externals, compared)


def labels_of(cohort: Cohort, config: StudyConfig) -> pd.Series | pd.DataFrame:
    """Return the labels that decide which X-rays take part and how they are divided, by ``exam_id``.

    In a study of several labels these are all labels of the exam table, named in the plan or not: a label more in the
    plan moves no patient, and what was fitted for the others is used again.
    """
    return cohort.label_table() if config.labels else cohort.labels(config.label)


def image_encoder(config: StudyConfig) -> Encoder:
    """Return the frozen encoder of pictures.

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


def refuse_seen(
    splits: pd.DataFrame, exams: pd.DataFrame, targets: dict[str, pd.DataFrame], seen: dict[str, frozenset[str]]
) -> None:
    """Check that nothing that was trained before saw a held-out patient, or the partner of one.

    Raises:
        BadInput: with the ids, and what saw them.
    """
    group_of = dict(zip(exams["patient_id"], exams["group_id"], strict=True))
    scored = set().union(*(set(t["patient_id"]) for t in targets.values()))
    held = {p for p in splits.loc[splits["part"] == "test", "patient_id"] if p in scored}
    held_groups = {group_of[p]: p for p in held}
    for what, patients in seen.items():
        both = sorted({held_groups[g] for p in patients if (g := group_of.get(p)) in held_groups})
        if both:
            more = f" and {len(both) - 5} more" if len(both) > 5 else ""
            raise BadInput(
                f"the {what} was trained on {len(both)} held-out patients: {', '.join(both[:5])}{more}. Next: "
                "'encoder_training_patients: train' in the study's configuration holds out only the other patients; or "
                "train the encoder on others."
            )


def _refuse_unknown_designs(given: pd.DataFrame, config: StudyConfig, where: str) -> None:
    names = [d.name for d in config.designs]
    for name in given["design"].astype(str).unique():
        if name not in names:
            raise BadInput(f"{where}: unknown design '{name}'. Allowed: {', '.join(names)}.{nearest(name, names)}")


def _checked(own: pd.DataFrame, cohort: Cohort, targets: pd.DataFrame, where: str) -> pd.DataFrame:
    group = dict(zip(cohort.exams["patient_id"], cohort.exams["group_id"], strict=True))
    strangers = sorted(set(own["patient_id"]) - set(group))
    if strangers:
        raise BadInput(f"{where}: patients who are not in the cohort: {', '.join(strangers[:5])}.")
    joined = own.assign(group_id=own["patient_id"].map(group))
    return check_splits(joined, f"{where} (patients who share a picture are one group)", targets["patient_id"])
