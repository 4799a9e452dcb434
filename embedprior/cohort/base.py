"""What a cohort is, and how files that are not there are met."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from embedprior.errors import BadInput
from embedprior.imaging.files import exam_file
from embedprior.imaging.radiographs import normal_view, parse_views, stated_view
from embedprior.tables import LABEL_PREFIX, check_exams, check_pairs, label_columns

MissingImages = Literal["error", "drop", "keep"]


@dataclass(frozen=True)
class FlowStep:
    """One step of the flow diagram.

    Attributes:
        step: what was done.
        exams: exams left after it.
        patients: patients left after it.
        dropped: exams that it removed.
        reason: why, in words; empty when nothing can be dropped by it.
    """

    step: str
    exams: int
    patients: int
    dropped: int
    reason: str


@dataclass(frozen=True)
class Cohort:
    """Exams, pairs and the count of what was dropped on the way to them.

    Attributes:
        root: folder the exams' paths are relative to.
        exams: exam table (see ``tables.check_exams``); ``group_id`` names the patients that belong together.
        pairs: pair table; may be empty.
        flow: the steps in order.
    """

    root: Path
    exams: pd.DataFrame
    pairs: pd.DataFrame
    flow: tuple[FlowStep, ...]

    def checked(self, where: str) -> Cohort:
        """Return the same cohort with its tables checked and ``group_id`` filled (own patient where empty).

        Raises:
            BadInput: see ``tables.check_exams`` and ``tables.check_pairs``; or one patient in two groups.
        """
        exams = check_exams(self.exams, where)
        own = exams["patient_id"].astype(str)
        group = exams["group_id"].fillna(own).astype(str) if "group_id" in exams.columns else own
        exams = exams.assign(patient_id=own, group_id=group)
        several = exams.groupby("patient_id")["group_id"].nunique()
        if (several > 1).any():
            first = ", ".join(several[several > 1].index[:5])
            raise BadInput(f"{where}: patients with more than one group_id: {first}.")
        return replace(self, exams=exams, pairs=check_pairs(self.pairs, exams, where))

    def of(self, modality: str) -> pd.DataFrame:
        """Return the exams of one modality."""
        return self.exams[self.exams["modality"] == modality]

    def drop(self, exam_ids: Sequence[str], step: str, reason: str) -> Cohort:
        """Return the cohort without these exams and the pairs they are in, with one flow step more."""
        gone = set(exam_ids)
        exams = self.exams[~self.exams["exam_id"].isin(gone)].reset_index(drop=True)
        left = ~self.pairs["cxr_exam_id"].isin(gone) & ~self.pairs["ct_exam_id"].isin(gone)
        return replace(
            self,
            exams=exams,
            pairs=self.pairs[left].reset_index(drop=True),
            flow=(*self.flow, flow_step(step, exams, len(self.exams) - len(exams), reason)),
        )

    def labels(self, name: str) -> pd.Series:
        """Return one label of every exam, indexed by ``exam_id``: 1, 0 or NaN.

        Raises:
            BadInput: there is no such label.
        """
        from embedprior.errors import nearest

        have = label_columns(self.exams)
        if name not in have:
            raise BadInput(f"no label '{name}'. Labels here: {', '.join(have) or '(none)'}.{nearest(name, have)}")
        return self.exams.set_index("exam_id")[LABEL_PREFIX + name].astype(float)

    def label_table(self) -> pd.DataFrame:
        """Return all labels of every exam, one column each, indexed by ``exam_id``: 1, 0 or NaN."""
        names = label_columns(self.exams)
        table = self.exams.set_index("exam_id")[[LABEL_PREFIX + name for name in names]]
        return table.set_axis(names, axis=1).astype(float)


def flow_step(step: str, exams: pd.DataFrame, dropped: int, reason: str = "") -> FlowStep:
    """Count what a step left."""
    return FlowStep(step, len(exams), int(exams["patient_id"].nunique()), dropped, reason if dropped else "")


def flow_table(flow: Sequence[FlowStep]) -> pd.DataFrame:
    """Return the flow as a table: ``step, exams, patients, dropped, reason``."""
    columns = ["step", "exams", "patients", "dropped", "reason"]
    return pd.DataFrame([[getattr(s, c) for c in columns] for s in flow], columns=columns)


def of_views(cohort: Cohort, views: Collection[str], complete: bool, headers: bool) -> Cohort:
    """Return the cohort without radiographs of other views and, where asked for, without CTs and DRRs that lack lung.

    An exam of unknown view or completeness stays; how many do is said in the step's name.

    Args:
        cohort: its exams may have the columns ``view`` and ``complete``.
        views: ``PA``, ``AP``, ``LATERAL`` in any known spelling; none: every view stays.
        complete: leave out exams whose column ``complete`` is false.
        headers: look for a radiograph's view in its DICOM header where the table is silent.

    Raises:
        BadInput: a word that is no view.
    """
    wanted = parse_views(",".join(views))
    exams = cohort.exams
    if wanted:
        rows = exams[exams["modality"] == "CXR"]
        stated = rows["view"].astype(object).fillna("") if "view" in rows.columns else pd.Series("", index=rows.index)
        found = [
            stated_view(cohort.root / str(path), view) if headers and str(path) else normal_view(view)
            for path, view in zip(rows["path"], stated, strict=True)
        ]
        other = rows[[bool(view) and view not in wanted for view in found]]
        counts = Counter(view for view in found if view and view not in wanted)
        unknown = sum(not view for view in found)
        step = f"views {', '.join(sorted(wanted))}" + (f" ({unknown} of unknown view stay)" if unknown else "")
        reason = ", ".join(f"{count} {view}" for view, count in sorted(counts.items()))
        cohort = cohort.drop(list(other["exam_id"]), step, reason)
    if complete and "complete" in exams.columns:
        said = cohort.exams["complete"].astype(str).str.lower()
        cut = cohort.exams[said.isin(["false", "0", "0.0"]) & cohort.exams["modality"].isin(["CT", "DRR"])]
        cohort = cohort.drop(list(cut["exam_id"]), "both lungs whole", "the scan lacks part of the lungs")
    return cohort


def missing_files(exams: pd.DataFrame, root: Path) -> list[str]:
    """Return the paths, as the table has them, of the exams whose file does not exist."""
    return [str(p) for p in exams["path"] if not exam_file(root, str(p)).exists()]


def without_missing(exams: pd.DataFrame, root: Path, policy: MissingImages, where: str) -> tuple[pd.DataFrame, int]:
    """Return the exams whose file exists (all with ``"keep"``), and how many were dropped.

    Raises:
        BadInput: the policy is ``"error"`` and a file is missing.
    """
    gone = missing_files(exams, root)
    if policy == "keep":
        return exams, 0
    if gone and policy == "error":
        named = ", ".join(Path(p).name for p in gone[:3]) + (" and others" if len(gone) > 3 else "")
        raise BadInput(
            f"{where}: {len(gone)} of {len(exams)} images do not exist under {root}: {named}. "
            "Next: put them there, or set 'missing_images: drop' in the study's configuration (they are counted)."
        )
    return exams[~exams["path"].astype(str).isin(set(gone))].reset_index(drop=True), len(gone)
