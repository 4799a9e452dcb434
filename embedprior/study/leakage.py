"""One file or picture on two sides of a split: what a study compares, whom it joins, and what it says about both."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from embedprior.cache import EmbeddingCache
from embedprior.cohort.base import Cohort
from embedprior.cohort.duplicates import (
    Fingerprint,
    fingerprint,
    fingerprints,
    first_of_each,
    join_groups,
    near_duplicates,
    near_embeddings,
    same_files,
    union_find,
)
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam, source_hash
from embedprior.study.inputs import Caches, External

PICTURES = ("CXR", "CT")
NEXT_PICTURES = "embedprior cohort check compares pictures; so does a study with 'caches: {pixels: FOLDER}'"


@dataclass(frozen=True)
class Leakage:
    """What of a cohort's exams was found to be the same.

    Attributes:
        duplicates: pairs of exams (see ``cohort.duplicates.COLUMNS``).
        compared: sentences: what was compared, and what was not.
    """

    duplicates: pd.DataFrame
    compared: tuple[str, ...]

    def joined(self, cohort: Cohort, near_too: bool) -> Cohort:
        """Return the cohort with patients who share a file in one group, and those who share a picture if asked for.

        One file under two ids is joined in any case: no setting may put it on two sides of a split.
        """
        found = self.duplicates if near_too else self.duplicates[self.duplicates["how"] == "same file"]
        return replace(cohort, exams=join_groups(cohort.exams, found))


def shared_text(duplicates: pd.DataFrame, near_too: bool) -> str:
    """Return in words how many files and pictures stand under two patient ids, and what was done; empty for none."""
    across = duplicates[~duplicates["same_patient"].astype(bool)]
    if across.empty:
        return ""
    counts = across["how"].value_counts()
    parts = ", ".join(f"{count} {how}" for how, count in counts.items())
    near = across[across["how"] != "same file"]
    done = "These patients form one group, which is never divided between training and test."
    if len(near) and not near_too:
        done = (
            "Patients of one file form one group; the others were left as they are ('duplicates: report'), and may be "
            "in both training and test."
        )
    pairs = f"{len(across)} duplicate{'s'[: len(across) > 1]} under two patient ids ({parts}). {done}"
    largest = _largest_group(across)
    return pairs + (f" The largest group has {largest} patients: look at it." if largest > 4 else "")


def _largest_group(across: pd.DataFrame) -> int:
    edges = list(zip(across["patient_a"], across["patient_b"], strict=True))
    joined = union_find(sorted({name for edge in edges for name in edge}), edges)
    return max(Counter(joined.values()).values())


def in_pictures(cohort: Cohort) -> Leakage:
    """Compare the files and pictures of a cohort that is read from pictures."""
    pictures = cohort.exams[cohort.exams["modality"].isin(PICTURES)]
    sources = {}
    for exam_id, path in zip(pictures["exam_id"], pictures["path"], strict=True):
        try:
            sources[str(exam_id)] = source_hash(cohort.root, str(path))
        except (OSError, ValueError, IndexError, UnreadableExam):
            continue
    prints = fingerprints(pictures, cohort.root)
    return Leakage(
        first_of_each([same_files(pictures, sources), near_duplicates(pictures, prints)]),
        (
            f"Compared: the files of {len(sources)} exams by checksum; {len(prints)} pictures with each other "
            "(resized, compressed, brighter or darker copies, and copies cropped by up to 12 % a side).",
            f"Not compared: the looks of {len(pictures) - len(prints)} exams that can't be read as pictures. Mirrored "
            "or turned copies would not be found.",
        ),
    )


def in_caches(cohort: Cohort, caches: Caches) -> Leakage:
    """Compare the checksums, embeddings and, where there is a cache of pixels, the pictures of a cohort of caches."""
    exams = cohort.exams
    sources = sources_of(caches)
    known = sum(len(set(sources.get(str(i), ""))) > 1 for i in exams["exam_id"])
    tables = [same_files(exams, sources)]
    compared = [f"Compared: the files of {known} of {len(exams)} exams by the checksums in the caches."]
    if known < len(exams):
        compared.append(f"Not compared: the files of {len(exams) - known} exams, whose checksums the caches lack.")
    for modality, cache in (("CXR", caches.cxr), ("CT", caches.ct)):
        if cache is None or cache.has_tokens:
            continue
        rows = np.flatnonzero(pd.Series(cache.ids).isin(exams.loc[exams["modality"] == modality, "exam_id"]))
        ids = [cache.ids[row] for row in rows]
        if len(ids) < 2:
            continue
        near = near_embeddings(exams, ids, cache.read(rows))
        tables.append(near.pairs)
        compared.append(near.sentence(f"the embeddings of {len(ids)} {modality} exams by cosine"))
    if caches.pixels is not None:
        prints = _prints(caches.pixels, set(exams.loc[exams["modality"] == "CXR", "exam_id"]))
        tables.append(near_duplicates(exams, prints))
        compared.append(f"Compared: {len(prints)} pictures of the pixel cache with each other, cropped copies too.")
    else:
        compared.append(f"Not compared: pictures, as no cache holds them. Next: {NEXT_PICTURES}.")
    return Leakage(first_of_each(tables), tuple(compared))


def sources_of(caches: Caches) -> dict[str, str]:
    """Return the sha256 of the file of every exam that some cache holds."""
    found: dict[str, str] = {}
    for cache in caches.named().values():
        found |= dict(zip(cache.ids, cache.sources, strict=True))
    return found


def join_external(external: External, near_too: bool) -> External:
    """Return an external cohort whose patients who share a file or picture are one group."""
    cohort = in_caches(external.cohort, external.caches).joined(external.cohort, near_too)
    group = dict(zip(cohort.exams["patient_id"], cohort.exams["group_id"], strict=True))
    targets = external.targets.assign(group_id=external.targets["patient_id"].map(group))
    return replace(external, cohort=cohort, targets=targets)


def refuse_shared_files(cohort: Cohort, caches: Caches, external: External) -> None:
    """Check that no file of an external cohort is one of the study's own.

    Raises:
        BadInput: some are; the exams are named.
    """
    own = _by_source(cohort, caches)
    both = [f"{own[source]} = {exam_id}" for source, exam_id in _by_source(external.cohort, external.caches).items()
            if source in own]  # fmt: skip
    if both:
        more = f" and {len(both) - 5} more" if len(both) > 5 else ""
        raise BadInput(
            f"external cohort '{external.name}': {len(both)} of its files are the study's own, under other ids: "
            f"{', '.join(both[:5])}{more}. Next: take them out of one of the two folders."
        )


def near_copies_outside(cohort: Cohort, caches: Caches, external: External, near_too: bool) -> Leakage:
    """Compare the embeddings and, where both have pixel caches, the pictures of an external cohort with the study's.

    Args:
        cohort, caches: the study's own.
        external: the other.
        near_too: whether near-copies count as one picture (``duplicates: join``).

    Returns:
        Pairs of an own and an external exam, and what was compared.

    Raises:
        BadInput: there are such pairs, and near-copies count: an external patient would be scored by models that
            trained on the same picture.
    """
    own, outside = cohort.exams, external.cohort.exams
    both = pd.concat([own, outside], ignore_index=True)
    tables, compared = [], []
    for modality, a, b in (("CXR", caches.cxr, external.caches.cxr), ("CT", caches.ct, external.caches.ct)):
        if a is None or b is None or a.has_tokens:
            continue
        chosen = [i for i in own.loc[own["modality"] == modality, "exam_id"] if i in set(a.ids)]
        others = [i for i in outside.loc[outside["modality"] == modality, "exam_id"] if i in set(b.ids)]
        if not chosen or not others:
            continue
        near = near_embeddings(both, [*chosen, *others], np.concatenate([a.take(chosen), b.take(others)]))
        tables.append(near.pairs)
        what = f"{len(others)} {modality} embeddings of '{external.name}' with the study's own by cosine"
        compared.append(near.sentence(what))
    if caches.pixels is not None and external.caches.pixels is not None:
        theirs = _prints(external.caches.pixels, set(outside.loc[outside["modality"] == "CXR", "exam_id"]))
        prints = _prints(caches.pixels, set(own.loc[own["modality"] == "CXR", "exam_id"])) | theirs
        tables.append(near_duplicates(both, prints))
        compared.append(f"Compared: {len(theirs)} pictures of '{external.name}' with the study's own.")
    else:
        compared.append(f"Not compared: pictures of '{external.name}' with the study's own, as no cache holds them.")
    found = first_of_each(tables)
    mine = set(own["exam_id"])
    found = found[found["exam_a"].isin(mine) != found["exam_b"].isin(mine)]
    if len(found) and near_too:
        pairs = ", ".join(f"{row.exam_a} and {row.exam_b} ({row.how})" for row in found.head(5).itertuples())
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise BadInput(
            f"external cohort '{external.name}': {len(found)} of its exams look like the study's own: {pairs}{more}. "
            "Next: take them out of one of the two folders; or 'duplicates: report', if they are of other patients."
        )
    return Leakage(found.reset_index(drop=True), tuple(compared))


def _by_source(cohort: Cohort, caches: Caches) -> dict[str, str]:
    sources = sources_of(caches)
    exams = [str(i) for i in cohort.exams["exam_id"]]
    return {sources[i]: i for i in exams if len(set(sources.get(i, ""))) > 1}


def _prints(pixels: EmbeddingCache, exam_ids: set[str]) -> dict[str, Fingerprint]:
    found = {}
    for row, exam_id in enumerate(pixels.ids):
        if exam_id in exam_ids:
            flat = pixels.read([row])[0]
            side = round(len(flat) ** 0.5)
            found[exam_id] = fingerprint(np.asarray(flat, dtype=np.float32).reshape(side, side))
    return found
