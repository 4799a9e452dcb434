"""An external cohort: a second folder of tables and caches, scored by models that the study's own cohort trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from embedprior.cohort.base import Cohort
from embedprior.cohort.splits import Round, held_out_cohort
from embedprior.errors import BadInput
from embedprior.study.config import Design, StudyConfig, rows_of
from embedprior.study.designs import targets_of
from embedprior.study.embeddings import Caches, cohort_of_caches, open_caches


@dataclass(frozen=True)
class External:
    """The cases of one external cohort. Nothing of it trains, chooses, scales or balances anything.

    Attributes:
        name: of its folder.
        cohort: its exams; its groups bear its name, so that they are never taken for groups of the study's cohort.
        caches: its embeddings, of the same encoders.
        targets: the X-rays to score, with ``site`` = ``name``.
        paired: whether they come with CT, which only rows that need CT at inference are given.
    """

    name: str
    cohort: Cohort
    caches: Caches
    targets: pd.DataFrame
    paired: bool

    def unread(self) -> External:
        """Return the same with nothing of the caches in memory."""
        return replace(self, caches=self.caches.unread())


def open_external(config: StudyConfig, design: Design, data: Path, caches: Caches) -> External:
    """Return the external cohort that a design names.

    CT is read only where a row of the design needs it at inference; else every labelled X-ray is scored.

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
    folder, infos = data / design.data, rows_of(config)
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


def external_rounds(external: External, cohort: Cohort, targets: pd.DataFrame, design: Design) -> list[Round]:
    """Return the one round of a design: the study's own cohort trains, the external one is held out.

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
