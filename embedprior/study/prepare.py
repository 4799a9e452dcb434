"""Before anything is written: read the cohort, join shared pictures, split, refuse what can't be used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from embedprior.cohort.base import Cohort, flow_step
from embedprior.cohort.duplicates import fingerprints, join_groups, near_duplicates
from embedprior.cohort.sources import read_cohort
from embedprior.cohort.sources.tables import read_splits
from embedprior.cohort.splits import Round, rounds_of, splits_table
from embedprior.encoders.base import Encoder
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput, nearest
from embedprior.study.config import StudyConfig
from embedprior.study.designs import make_rounds, targets_of
from embedprior.study.embeddings import Caches, open_caches, patients_seen
from embedprior.tables import EXAM_REQUIRED, PAIR_REQUIRED, check_splits, read_table

NO_DUPLICATES = pd.DataFrame(
    columns=["exam_a", "exam_b", "patient_a", "patient_b", "hash_distance", "correlation", "same_patient"]
)


@dataclass(frozen=True)
class Prepared:
    """A study that may start: everything that can be refused has been looked at, and nothing was written.

    Attributes:
        cohort: with patients who share a picture in one group (unless they are only to be reported).
        duplicates: the shared pictures (see ``cohort.duplicates.near_duplicates``).
        targets: by design, the X-rays to score (see ``designs.targets_of``).
        splits: split table of all designs.
        given: designs whose splits are the user's.
        encoder: of the pictures; None when the embeddings exist already.
        caches: embeddings that exist already; None when pictures are to be embedded.
        seen: what was trained before on patients of this cohort → these patients.
    """

    cohort: Cohort
    duplicates: pd.DataFrame
    targets: dict[str, pd.DataFrame]
    splits: pd.DataFrame
    given: frozenset[str] = frozenset()
    encoder: Encoder | None = None
    caches: Caches | None = None
    seen: dict[str, frozenset[str]] | None = None

    def rounds(self, design: str) -> list[Round]:
        """Return the rounds of one design, by resample and fold."""
        return rounds_of(self.splits[self.splits["design"] == design])

    def input_hashes(self) -> dict[str, str]:
        """Return the hashes of the tables and the embeddings the study starts from."""
        tables = {"exams": self.cohort.exams, "pairs": self.cohort.pairs, "splits": self.splits}
        found = {name: hashlib.sha256(t.to_csv(index=False).encode()).hexdigest() for name, t in tables.items()}
        if self.encoder is not None:
            found["encoder weights"] = self.encoder.spec.weights_sha256
        if self.caches is not None:
            found |= {f"{name} cache": cache.path.name for name, cache in self.caches.named().items()}
        return found


def prepare(config: StudyConfig, data: Path, splits_file: Path | None = None) -> Prepared:
    """Read the cohort and make (or read) the splits.

    Raises:
        BadInput: whatever the cohort, the embeddings, the label, the designs or the split file are refused for; or
            a patient would be held out whom an encoder was trained on (the ids are named).
    """
    caches = open_caches(config.caches, data) if config.caches else None
    if caches is None:
        cohort = read_cohort(config.source, data, config.missing_images)
        encoder, seen = image_encoder(config), dict[str, frozenset[str]]()
        if encoder.spec.patients_seen is not None:
            seen["encoder"] = frozenset(encoder.spec.patients_seen)
        pictures = cohort.exams[cohort.exams["modality"].isin(("CXR", "CT"))]
        duplicates = near_duplicates(pictures, fingerprints(pictures, cohort.root))
        if config.duplicates == "join":
            joined = join_groups(cohort.exams, duplicates)
            cohort = Cohort(cohort.root, joined, cohort.pairs, cohort.flow)
    else:
        cohort = cohort_of_caches(data, caches)
        encoder, seen, duplicates = None, patients_seen(caches), NO_DUPLICATES
    return prepare_cohort(config, cohort, duplicates, encoder, caches, seen, splits_file)


def prepare_cohort(
    config: StudyConfig, cohort: Cohort, duplicates: pd.DataFrame, encoder: Encoder | None, caches: Caches | None,
    seen: dict[str, frozenset[str]], splits_file: Path | None = None, splits: pd.DataFrame | None = None,
) -> Prepared:  # fmt: skip
    """Make (or check) the splits of a cohort that has been read; see ``prepare``.

    Args:
        splits: split table of the user, already read (instead of ``splits_file``).
    """
    labels = cohort.labels(config.label)
    targets = {d.name: targets_of(cohort, labels, d) for d in config.designs}
    where = str(splits_file) if splits_file else "the split table"
    given = read_splits(splits_file) if splits_file else splits
    if given is not None:
        _refuse_unknown_designs(given, config, where)
    named = frozenset(given["design"].astype(str)) if given is not None else frozenset[str]()
    everyone_seen = frozenset[str]().union(*seen.values())
    tables = []
    for design in config.designs:
        own = given[given["design"] == design.name] if given is not None else pd.DataFrame()
        if len(own):
            tables.append(_checked(own, cohort, targets[design.name], where))
        else:
            never = everyone_seen if config.seen_patients == "train" else frozenset[str]()
            rounds = make_rounds(cohort, labels, targets[design.name], design, config.seed, never)
            tables.append(splits_table(rounds, f"{design.name}, {design.split}"))
    table = pd.concat(tables, ignore_index=True)
    refuse_seen(table, cohort, targets, seen)
    return Prepared(cohort, duplicates, targets, table, named, encoder, caches, seen)


def cohort_of_caches(data: Path, caches: Caches) -> Cohort:
    """Return the cohort of ``exams.csv`` and ``pairs.csv`` whose embeddings exist; no picture is looked for.

    The exam table may lack ``path``.

    Raises:
        BadInput: a table is missing or breaks a rule of its format, or no exam has an embedding.
    """
    source = data / "exams.csv"
    exams = read_table(source, [c for c in EXAM_REQUIRED if c != "path"])
    if "path" not in exams.columns:
        exams = exams.assign(path="")
    file = data / "pairs.csv"
    pairs = read_table(file, PAIR_REQUIRED) if file.is_file() else pd.DataFrame(columns=list(PAIR_REQUIRED))
    flow = (flow_step("rows of exams.csv", exams, 0),)
    cohort = Cohort(data, exams, pairs, flow).checked(str(source))
    embedded = set(caches.cxr.ids) | set(caches.ct.ids if caches.ct else ())
    absent = cohort.exams.loc[~cohort.exams["exam_id"].isin(embedded), "exam_id"]
    if len(absent) == len(exams):
        raise BadInput(
            f"{source}: none of its {len(exams)} exams has an embedding, e.g. {absent.iloc[0]}; the X-ray cache holds "
            f"{', '.join(caches.cxr.ids[:2])}, … Next: check that both use the same exam ids."
        )
    return cohort.drop(list(absent), "embedding exists", "no embedding in the caches") if len(absent) else cohort


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
    splits: pd.DataFrame, cohort: Cohort, targets: dict[str, pd.DataFrame], seen: dict[str, frozenset[str]]
) -> None:
    """Check that nothing that was trained before saw a held-out patient, or the partner of one.

    Raises:
        BadInput: with the ids, and what saw them.
    """
    group_of = dict(zip(cohort.exams["patient_id"], cohort.exams["group_id"], strict=True))
    scored = set().union(*(set(t["patient_id"]) for t in targets.values()))
    held = {p for p in splits.loc[splits["part"] == "test", "patient_id"] if p in scored}
    held_groups = {group_of[p]: p for p in held}
    for what, patients in seen.items():
        both = sorted({held_groups[g] for p in patients if (g := group_of.get(p)) in held_groups})
        if both:
            more = f" and {len(both) - 5} more" if len(both) > 5 else ""
            raise BadInput(
                f"the {what} was trained on {len(both)} held-out patients: {', '.join(both[:5])}{more}. Next: "
                "'seen_patients: train' in the study's configuration holds out the other patients only, or train the "
                "encoder on others."
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
