"""Fit every method of one fold and score the same held-out cases with each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from embedprior.errors import BadInput
from embedprior.runs import progress
from embedprior.students.base import CannotFit, Cases, FitData, Fitted, Method
from embedprior.tables import PREDICTION_REQUIRED


def score_fold(
    methods: Sequence[Method],
    data: FitData,
    scored: Mapping[str, Cases],
    seed: int,
    fold: int = 0,
    resample: int = 0,
    desc: str = "methods",
) -> tuple[pd.DataFrame, list[dict[str, str]], dict[str, Fitted]]:
    """Fit each method and score the cases.

    CT is taken away from the cases unless a method declares ``needs_ct``.

    Args:
        methods: what to compare.
        data: what they may learn from.
        scored: split name (``"test"``, ``"val"``) → cases to score.
        seed: of the fits.
        fold: number written to the table.
        resample: likewise.
        desc: text of the progress bar.

    Returns:
        A long predictions table, one record for every method that could not be fitted, and the fitted methods.

    Raises:
        BadInput: a held-out patient is among the training or validation patients (the ids are named).
    """
    refuse_seen_patients(data, scored["test"])
    frames, failures, fitted = [], [], {}
    for method in progress(methods, desc):
        try:
            fitted[method.name] = method.fit(data, seed)
        except CannotFit as error:
            failures.append(
                {"exam_id": "", "stage": f"{method.name}, resample {resample}, fold {fold}", "reason": str(error)}
            )
            continue
        for split, cases in scored.items():
            visible = cases if method.needs_ct else cases.without_ct()
            frames.append(
                pd.DataFrame(
                    {
                        "exam_id": list(cases.exam_ids),
                        "patient_id": list(cases.patient_ids),
                        "label": cases.label.astype(int),
                        "method": method.name,
                        "score": fitted[method.name].scores(visible),
                        "fold": fold,
                        "resample": resample,
                        "seed": seed,
                        "split": split,
                    }
                )
            )
    columns = [*PREDICTION_REQUIRED, "resample"]
    table = pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)
    return table, failures, fitted


def refuse_seen_patients(data: FitData, held_out: Cases) -> None:
    """Check that nothing was learned from a held-out patient.

    Raises:
        BadInput: with the ids.
    """
    seen = {p for stage in data.stages for cases in (stage.train, stage.val) for p in cases.patient_ids}
    both = sorted(seen & set(held_out.patient_ids))
    if both:
        raise BadInput(f"{len(both)} held-out patients took part in training: {', '.join(both[:5])}.")
