"""Paired embeddings in memory, and the check that they can be learned from."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedprior.errors import BadInput
from embedprior.prior.config import Source

Array = NDArray[np.float32]


@dataclass(frozen=True)
class PairArrays:
    """Embeddings of the same pairs, row by row.

    Attributes:
        condition: (N, Dc) radiograph embeddings, or (N, C, Dc) for C condition tokens (views, slices, patches).
        target: (N, D) CT embeddings.
        ids: N pair ids.
        source: which radiograph the condition is: "drr" or "cxr".
        condition_mask: (N, C) bool, True where a condition token is real; None when all are.
        labels: (N,) 1 / 0 / NaN for hard-label losses and the teacher's AUC; None when there are none.
        patients: N patient ids; None when every pair has its own patient.
        encoders: encoder keys of condition and target; empty when unknown.
    """

    condition: Array
    target: Array
    ids: Sequence[str]
    source: Source
    condition_mask: NDArray[np.bool_] | None = None
    labels: NDArray[np.float64] | None = None
    encoders: tuple[str, str] = ("", "")
    patients: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> Array:
        """(N, C, Dc) condition tokens."""
        return self.condition if self.condition.ndim == 3 else self.condition[:, None]

    def check(self, name: str) -> None:
        """Refuse arrays that can't be trained on.

        Raises:
            BadInput: no rows, unequal lengths, wrong number of axes, a number that is not finite, or a label that
                is not 1, 0 or NaN.
        """
        rows = len(self.ids)
        if rows == 0:
            raise BadInput(f"{name} pairs: none given. Allowed: at least one.")
        if self.condition.ndim not in (2, 3) or self.target.ndim != 2:
            raise BadInput(
                f"{name} pairs: condition has shape {self.condition.shape}, target {self.target.shape}. "
                "Allowed: (N, Dc) or (N, C, Dc), and (N, D)."
            )
        for what, column in self._per_row().items():
            if len(column) != rows:
                raise BadInput(f"{name} pairs: {rows} ids, but {what} has {len(column)} rows. They must be equal.")
        if self.condition_mask is not None:
            if self.condition_mask.shape != self.tokens.shape[:2]:
                raise BadInput(
                    f"{name} pairs: condition_mask has shape {self.condition_mask.shape}, "
                    f"condition tokens {self.tokens.shape[:2]}. They must be equal."
                )
            empty = np.flatnonzero(~self.condition_mask.any(axis=1))
            if len(empty):
                raise BadInput(f"{name} pair '{self.ids[empty[0]]}' has no real condition token.")
        for what, array in (("condition", self.condition), ("target", self.target)):
            bad = np.flatnonzero(~np.isfinite(array.reshape(rows, -1)).all(axis=1))
            if len(bad):
                raise BadInput(
                    f"{name} pair '{self.ids[bad[0]]}': its {what} embedding holds a number that is not finite "
                    f"({len(bad)} such rows). Next: embed these exams again"
                )

        if self.labels is not None:
            odd = self.labels[~np.isin(self.labels, (0.0, 1.0)) & ~np.isnan(self.labels)]
            if len(odd):
                raise BadInput(f"{name} pairs: label {odd[0]:g} ({len(odd)} such). Allowed: 1, 0, NaN = unknown.")

    def patient_numbers(self) -> NDArray[np.int64]:
        """Return (N,) numbers that are equal where the patient is."""
        names = self.ids if self.patients is None else self.patients
        return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1].astype(np.int64)

    def _per_row(self) -> dict[str, Sized]:
        columns: dict[str, Sized | None] = {
            "condition": self.condition,
            "target": self.target,
            "condition_mask": self.condition_mask,
            "labels": self.labels,
            "patients": self.patients,
        }
        return {name: column for name, column in columns.items() if column is not None}
