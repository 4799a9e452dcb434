"""Before anything is written: expand sweeps, read the cohort, join shared pictures, split, refuse what is unusable."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.cohort.base import Cohort, of_views
from embedprior.cohort.duplicates import COLUMNS, first_of_each
from embedprior.cohort.sources import read_cohort
from embedprior.cohort.sources.tables import read_splits
from embedprior.cohort.splits import Fold, folds_of, splits_table
from embedprior.config import parse_config
from embedprior.encoders.base import Encoder
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput, nearest
from embedprior.imaging.files import UnreadableExam, source_hash
from embedprior.runs import hash_of
from embedprior.study.config import Design, StudyConfig
from embedprior.study.designs import make_folds, targets_of, validated
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
from embedprior.tables import EXAM_REQUIRED, PAIR_REQUIRED, check_splits, read_table

MAX_VARIANTS = 500
FIXED = ("sweep", "title", "caveats", "seconds_per_fit", "hypotheses", "seeds", "as_published")


@dataclass(frozen=True)
class Variant:
    """One combination.

    Attributes:
        label: its settings in words; empty without a sweep.
        settings: dotted field → value.
        config: the study with these settings, and no sweep.
    """

    label: str
    settings: dict[str, Any]
    config: StudyConfig

    def key(self, design: Design | str) -> str:
        """Return the name of a design in tables: its own, with the settings where there is a sweep."""
        name = design if isinstance(design, str) else design.name
        return f"{name}@{self.label}" if self.label else name


def variants(config: StudyConfig) -> list[Variant]:
    """Return the combinations of ``config.sweep``, the last field changing fastest; without a sweep the study itself.

    Raises:
        BadInput: a field that does not exist or can't be swept, a value it does not take, or too many combinations.
    """
    base = config.model_copy(update={"sweep": {}})
    if not config.sweep:
        return [Variant("", {}, base)]
    for name, values in config.sweep.items():
        first, *rest = name.split(".")
        if first in config.renamed:
            raise BadInput(f"sweep: '{name}' is now called '{'.'.join([config.renamed[first], *rest])}'.")
        if first in FIXED:
            why = "seeds are run anyway, claims stay as declared, texts change no number"
            raise BadInput(f"sweep: '{name}' can't be swept ({why}).")
        if not values or len({repr(v) for v in values}) != len(values):
            raise BadInput(f"sweep: '{name}' needs values, each once.")
    total = 1
    for values in config.sweep.values():
        total *= len(values)
    if total > MAX_VARIANTS:
        raise BadInput(f"sweep: {total} combinations; at most {MAX_VARIANTS} are run.")
    found = []
    for combination in itertools.product(*config.sweep.values()):
        settings = dict(zip(config.sweep, combination, strict=True))
        label = ",".join(f"{field}={_short(value)}" for field, value in settings.items())
        data = base.model_dump(mode="python", exclude_defaults=True)
        for name, value in settings.items():
            _set(data, base.model_dump(mode="python"), name, value)
        found.append(Variant(label, settings, parse_config(StudyConfig, data, f"sweep, {label}")))
    return found


def _set(data: dict[str, Any], whole: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value in place; what the path passes through is filled from the whole configuration.

    What lies under ``options`` is not known here: the method or the encoder that takes it refuses what it does not.
    """
    *parents, last = dotted.split(".")
    here: Any = data
    full: Any = whole
    free = False
    for depth, name in enumerate(parents):
        key: Any = name if free else _key(full, name, dotted)
        full = (full.get(key, {}) if isinstance(full, dict) else {}) if free else full[key]
        if full is None:
            path = ".".join(parents[: depth + 1])
            raise BadInput(f"sweep: '{dotted}': '{path}' is not set. Next: write it out in the configuration first.")
        child = here[key] if isinstance(here, list) else here.get(key)
        here[key] = _thawed(full if child is None else child)
        here = here[key]
        if not isinstance(here, (dict, list)):
            raise BadInput(f"sweep: '{'.'.join(parents[: depth + 1])}' holds no settings.")
        free = free or name == "options"
    here[last if free else _key(full, last, dotted)] = value


def _key(full: Any, name: str, dotted: str) -> str | int:
    """Return a field's name, or the place of a list's entry, which may be given by number or by its own name."""
    if isinstance(full, (list, tuple)):
        names = [str(entry["name"]) for entry in full if isinstance(entry, dict) and "name" in entry]
        if name in names:
            return names.index(name)
        if name.isdigit() and int(name) < len(full):
            return int(name)
        allowed = [*names, *(str(i) for i in range(len(full)))]
    else:
        if isinstance(full, dict) and name in full:
            return name
        allowed = sorted(full) if isinstance(full, dict) else []
    raise BadInput(
        f"sweep: unknown field '{dotted}': no '{name}'. Allowed: {', '.join(allowed) or '(nothing)'}."
        f"{nearest(name, allowed)}"
    )


def _thawed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _thawed(v) for k, v in value.items()}
    return [_thawed(v) for v in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(",", ";").replace(" ", "")


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
    return replace(found, unembedded=lacking)


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
    labels = cohort.labels(config.label)
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
