"""The caches a study reads, its own and an external cohort's, and which patients their encoders were trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt8

from embedprior.cache import EmbeddingCache
from embedprior.cache.format import read_manifest
from embedprior.cache.verify import open_verified
from embedprior.cohort.base import Cohort, flow_step
from embedprior.cohort.splits import Fold, held_out_cohort
from embedprior.errors import BadInput
from embedprior.runs import hash_of
from embedprior.students.tables import pixels_of, tokens_of
from embedprior.study.config import CacheChoice, Design, StudyConfig, method_infos
from embedprior.study.designs import targets_of
from embedprior.tables import EXAM_REQUIRED, PAIR_REQUIRED, read_table


@dataclass(frozen=True)
class Caches:
    """Open caches of one study.

    Attributes:
        cxr: radiographs and DRRs.
        ct: CTs; None in a study without CT.
        pixels: the radiographs themselves.
        tokens: patch tokens of the radiographs.
    """

    cxr: EmbeddingCache
    ct: EmbeddingCache | None = None
    pixels: EmbeddingCache | None = None
    tokens: EmbeddingCache | None = None

    def named(self) -> dict[str, EmbeddingCache]:
        """Return the caches there are."""
        every = {"cxr": self.cxr, "ct": self.ct, "pixels": self.pixels, "tokens": self.tokens}
        return {name: cache for name, cache in every.items() if cache is not None}

    def hashes(self, exams: pd.DataFrame) -> dict[str, str]:
        """Return, by cache, hashes of the embeddings of the exams it holds, and of what is known of their encoder."""
        found = {}
        for name, cache in self.named().items():
            held = set(cache.ids)
            found[f"{name} cache"] = cache.path.name
            found[f"{name} embeddings"] = cache.digest([i for i in exams["exam_id"] if i in held])
            found[f"{name} encoder"] = hash_of(read_manifest(cache.path).get("spec", {}))
        return found

    def without_data(self) -> Caches:
        """Return the same caches with nothing of them in memory: small enough to send to another process."""
        return Caches(**{name: replace(cache) for name, cache in self.named().items()})

    def require_ct(self) -> EmbeddingCache:
        """Return the CT cache.

        Raises:
            BadInput: there is none.
        """
        if self.ct is None:
            raise BadInput("this study names no CT cache. Next: caches: {ct: FOLDER} in its configuration.")
        return self.ct

    def pixels_of(self, exam_ids: list[str]) -> UInt8[np.ndarray, "cases height width"] | None:
        """Return the square pictures of some exams, or None without a pixel cache."""
        return None if self.pixels is None else pixels_of(self.pixels, exam_ids)

    def tokens_of(self, exam_ids: list[str]) -> Float[np.ndarray, "cases tokens dim"] | None:
        """Return the patch tokens of some exams, shorter sequences padded with NaN, or None without a token cache."""
        return None if self.tokens is None else tokens_of(self.tokens, exam_ids)


def open_caches(choice: CacheChoice, data: Path, like: Caches | None = None) -> Caches:
    """Open the caches a study names.

    Args:
        choice: their places.
        data: what these are relative to.
        like: caches whose encoders these must be of.

    Raises:
        BadInput: one does not exist or is damaged, or is of another encoder (the field that differs is named).
    """
    places = {"cxr": choice.cxr, "ct": choice.ct, "pixels": choice.pixels, "tokens": choice.tokens}
    keys = {name: cache.key for name, cache in like.named().items()} if like else {}
    return Caches(**{n: open_verified(data / path, keys.get(n)) for n, path in places.items() if path is not None})


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


def patients_seen(caches: Caches) -> dict[str, frozenset[str]]:
    """Return, for each cache whose encoder was trained by this package, the patients its training saw."""
    return {
        f"{name} encoder": seen for name, cache in caches.named().items() if (seen := cache.patients_seen) is not None
    }


@dataclass(frozen=True)
class External:
    """The cases of one external cohort. Nothing of it trains, chooses, scales or balances anything.

    Attributes:
        name: of its folder.
        cohort: its exams; its groups bear its name, so that they are never taken for groups of the study's cohort.
        caches: its embeddings, of the same encoders.
        targets: the X-rays to score, with ``site`` = ``name``.
        paired: whether they come with CT, which only methods that need CT at inference are given.
    """

    name: str
    cohort: Cohort
    caches: Caches
    targets: pd.DataFrame
    paired: bool

    def without_data(self) -> External:
        """Return the same with nothing of the caches in memory."""
        return replace(self, caches=self.caches.without_data())


def open_external(config: StudyConfig, design: Design, data: Path, caches: Caches) -> External:
    """Return the external cohort that a design names.

    CT is read only where a method of the design needs it at inference; else every labelled X-ray is scored.

    Args:
        config: whose ``caches`` name the same places in the other folder.
        design: with ``data``.
        data: folder of the study's own cohort.
        caches: of the study's own cohort.

    Raises:
        BadInput: no such folder, a table or cache that can't be read, embeddings of another encoder (the field that
            differs is named), no label of that name, or no X-ray to score.
    """
    assert design.data is not None
    assert config.caches is not None
    folder, infos = data / design.data, method_infos(config)
    if not (folder / "exams.csv").is_file():
        raise BadInput(
            f"design '{design.name}': no external cohort at {folder} (exams.csv is missing). Next: 'data' is a folder "
            "like that of --data, and relative to it."
        )
    needing = [m for m in design.methods if infos[m].needs_ct]
    choice = config.caches if needing else config.caches.model_copy(update={"ct": None})
    name = folder.resolve().name
    try:
        own = open_caches(choice, folder, caches)
        cohort = cohort_of_caches(folder, own)
        cohort = replace(cohort, exams=cohort.exams.assign(group_id=name + "/" + cohort.exams["group_id"]))
        cases = design if needing else design.model_copy(update={"cases": "cxr"})
        targets = targets_of(cohort, cohort.labels(config.label), cases).assign(site=name)
    except BadInput as error:
        because = f" ({needing[0]} needs CT at inference)" if needing else ""
        raise BadInput(f"external cohort '{name}'{because}: {error}") from error
    return External(name, cohort, own, targets, bool(needing))


def external_folds(external: External, cohort: Cohort, targets: pd.DataFrame, design: Design) -> list[Fold]:
    """Return the one fold of a design: the study's own cohort trains, the external one is held out.

    Raises:
        BadInput: a patient or an exam is in both cohorts; the ids are named.
    """
    both = sorted(set(cohort.exams["exam_id"]) & set(external.cohort.exams["exam_id"]))
    if both:
        raise BadInput(
            f"external cohort '{external.name}': {len(both)} exam ids are the study's own too: {', '.join(both[:5])}. "
            "Next: rename them in one of the two folders (exams, pairs and caches)."
        )
    everyone = external.cohort.exams
    shared = sorted(set(cohort.exams["patient_id"]) & set(everyone["patient_id"]))
    if shared:
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        raise BadInput(
            f"external cohort '{external.name}': {len(shared)} patients are in the study's own cohort too: "
            f"{', '.join(shared[:5])}{more}. Next: take them out of one of the two, or rename them if they are others."
        )
    return [held_out_cohort(targets, external.targets, design.name)]
