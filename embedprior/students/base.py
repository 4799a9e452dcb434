"""What a method is: it is fitted on cases with CT and scores cases without.

``fit(data, seed) -> fitted; fitted.scores(cases)``. CT is taken away from the training data of a method that does not
declare ``uses_ct``, and from the cases to score of one that does not declare ``needs_ct``: a student that reads CT
all the same fails at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Float, UInt8

from embedprior.errors import BadInput, EmbedpriorError
from embedprior.runs import seed_for

Result = TypeVar("Result")
_GO_WITH_CT = ("ct_mirrored", "ct_pixels")
_OPTIONAL = ("ct", "tokens", "pixels", "ct_mirrored", "ct_pixels")


@dataclass(frozen=True)
class Cases:
    """Exams as a method sees them.

    Attributes:
        exam_ids: of the radiographs (or DRRs).
        patient_ids: one a case.
        label: 1, 0, or NaN where unknown.
        cxr: embedding of the radiograph or DRR.
        ct: embedding of the paired CT; None once it has been stripped.
        ct_label: label of the paired CT itself, where it has one of its own (NaN = unknown).
        source: what ``cxr`` was made from, ``"cxr"`` or ``"drr"``.
        tokens: patch tokens of the radiograph, for students that read tokens; NaN rows are padding.
        pixels: the radiograph itself (a ``pixels-128`` cache), for students that read pixels.
        ct_mirrored: embedding of the CT flipped left to right, for pixel students that flip; goes with the CT.
        ct_pixels: the CT itself where it is one slice (in the same cache as ``pixels``); goes with the CT.

    Example:
        >>> z_cxr, z_ct = np.zeros((2, 4), np.float32), np.ones((2, 3), np.float32)
        >>> cases = Cases(["x1", "x2"], ["p1", "p2"], np.array([1.0, np.nan]), z_cxr, z_ct, np.array([1.0, 0.0]))
        >>> cases.known.tolist(), cases.take([1]).exam_ids, cases.without_ct().ct is None
        ([True, False], ['x2'], True)
    """

    exam_ids: Sequence[str]
    patient_ids: Sequence[str]
    label: Float[np.ndarray, " cases"]
    cxr: Float[np.ndarray, "cases cxr_dim"]
    ct: Float[np.ndarray, "cases ct_dim"] | None
    ct_label: Float[np.ndarray, " cases"]
    source: str = "cxr"
    tokens: Float[np.ndarray, "cases tokens token_dim"] | None = None
    pixels: UInt8[np.ndarray, "cases height width"] | None = None
    ct_mirrored: Float[np.ndarray, "cases ct_dim"] | None = None
    ct_pixels: UInt8[np.ndarray, "cases height width"] | None = None

    def __len__(self) -> int:
        return len(self.exam_ids)

    def without_ct(self) -> Cases:
        """Return the same cases with nothing of CT in them."""
        return replace(self, ct=None, ct_label=np.full(len(self), np.nan), ct_mirrored=None, ct_pixels=None)

    def take(self, rows: Sequence[int] | np.ndarray) -> Cases:
        """Return some of the cases, in the order given."""
        index = np.asarray(rows, dtype=int)
        optional: dict[str, Any] = {
            name: None if (array := getattr(self, name)) is None else array[index] for name in _OPTIONAL
        }
        return replace(
            self,
            exam_ids=[self.exam_ids[i] for i in index],
            patient_ids=[self.patient_ids[i] for i in index],
            label=self.label[index],
            cxr=self.cxr[index],
            ct_label=self.ct_label[index],
            **optional,
        )

    @property
    def known(self) -> Bool[np.ndarray, " cases"]:
        """Which cases have a label."""
        return np.asarray(~np.isnan(self.label))

    def with_label(self) -> Cases:
        """Return the cases whose label is known."""
        return self if self.known.all() else self.take(np.flatnonzero(self.known))

    def paired_ct_pixels(self) -> UInt8[np.ndarray, "cases height width"]:
        """Return the CT slices as pictures.

        Raises:
            CtNotAvailable: the cases come without CT.
            CannotFit: there is CT, but no picture of it.
        """
        if self.ct_pixels is None and self.ct is None:
            raise CtNotAvailable("these cases carry no CT: a method that needs it must declare needs_ct (oracle)")
        if self.ct_pixels is None:
            raise CannotFit("no picture of the CT. Next: give a pixels-128 cache that holds the CT slices, too")
        return self.ct_pixels

    def paired_ct(self) -> Float[np.ndarray, "cases ct_dim"]:
        """Return the CT embeddings.

        Raises:
            CtNotAvailable: the cases come without CT.
        """
        if self.ct is None:
            raise CtNotAvailable("these cases carry no CT: a method that needs it must declare needs_ct (oracle)")
        return self.ct


def refuse_not_finite(cases: Cases, *names: str) -> None:
    """Check the embeddings that a method is about to read.

    Args:
        cases: to learn from.
        names: which of ``cxr``, ``ct``, ``ct_mirrored`` and ``tokens`` it reads; what the cases lack is passed over.

    Raises:
        BadInput: one holds NaN or infinity (a token of NaN alone is padding); the message names the first exam.
    """
    for name in names:
        values = getattr(cases, name)
        if values is None or not len(values):
            continue
        good = np.isfinite(values)
        if name == "tokens":
            good |= np.isnan(values).all(axis=-1, keepdims=True)
        bad = np.flatnonzero(~good.reshape(len(values), -1).all(axis=1))
        if len(bad):
            what = {"cxr": "radiograph's embedding", "tokens": "radiograph's tokens"}.get(name, "CT's embedding")
            raise BadInput(
                f"exam '{cases.exam_ids[bad[0]]}': its {what} holds a number that is not finite ({len(bad)} such "
                "exams). Next: embed these exams again"
            )


MAX_KEPT_BYTES = 2**31


class Recent(Generic[Result]):
    """The latest results of a computation, by key: what the fits of several labels have in common, in one process.

    Args:
        size: how many are kept, and of arrays no more than ``MAX_KEPT_BYTES`` together.

    Example:
        >>> squares = Recent[int](2)
        >>> [squares.get(str(n), lambda n=n: n * n) for n in (2, 3, 2)], sorted(squares.kept)
        ([4, 9, 4], ['2', '3'])
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: dict[str, Result] = {}

    def get(self, key: str, compute: Callable[[], Result]) -> Result:
        """Return the result of a key, computed unless it is one of the latest."""
        found = self.kept.pop(key) if key in self.kept else compute()
        self.kept[key] = found
        while len(self.kept) > self.size or sum(getattr(v, "nbytes", 0) for v in self.kept.values()) > MAX_KEPT_BYTES:
            del self.kept[next(iter(self.kept))]
        return found


class CtNotAvailable(EmbedpriorError):
    """A method asked for CT where only the radiograph is allowed."""


class CannotFit(EmbedpriorError):
    """This method can't be fitted on these cases (one class only, say); the reason goes into the report."""


@dataclass(frozen=True)
class Stage:
    """Cases of one training stage: pretraining on DRR–CT pairs, or fine-tuning on CXR–CT pairs.

    ``val`` chooses checkpoints and settings; it may be empty, and then fixed budgets are used.
    """

    train: Cases
    val: Cases

    @property
    def parts(self) -> tuple[Cases, Cases]:
        """Training and validation cases."""
        return self.train, self.val


class Head(Protocol):
    """A frozen CT classifier head (the matching layer)."""

    def logits(self, embeddings: Float[np.ndarray, "cases ct_dim"]) -> Float[np.ndarray, " cases"]:
        """Return one logit a case."""


@dataclass(frozen=True)
class FitData:
    """Everything a method may learn from.

    Attributes:
        stages: in training order; the last one is the real radiographs.
        teacher: the frozen CT head, or None when it could not be trained (``teacher_reason`` says why).
    """

    stages: tuple[Stage, ...]
    teacher: Head | None
    teacher_reason: str = ""

    @property
    def target(self) -> Stage:
        """The stage of real radiographs."""
        return self.stages[-1]

    def without_ct(self) -> FitData:
        """Return what is left without CT: no CT embedding or label, no CT head, and no DRRs (they are made from CT)."""
        kept = [s for s in self.stages if s.train.source != "drr"]
        stages = tuple(Stage(s.train.without_ct(), s.val.without_ct()) for s in kept)
        return FitData(stages, None, "it uses no CT")

    def head(self) -> Head:
        """Return the teacher head.

        Raises:
            CannotFit: there is none.
        """
        if self.teacher is None:
            raise CannotFit(f"no CT teacher: {self.teacher_reason}")
        return self.teacher


class Fitted(Protocol):
    """A fitted method."""

    def scores(self, cases: Cases) -> Float[np.ndarray, " cases"]:
        """Return the probability of a positive label, one a case."""


SCORING_BLOCK = 64
"""Cases that are scored at once."""


def score_in_blocks(fitted: Fitted, cases: Cases) -> Float[np.ndarray, " cases"]:
    """Return the scores of ``cases``, computed in blocks of ``SCORING_BLOCK`` cases.

    The last block is filled up with cases from the start. A matrix product of another number of rows may take another
    kernel and round otherwise; with blocks of one size, a score does not depend on how many cases are scored with it.
    """
    count = len(cases)
    blocks = np.resize(np.arange(count), (-(-count // SCORING_BLOCK), SCORING_BLOCK))
    found = [np.asarray(fitted.scores(cases.take(rows)), dtype=np.float64) for rows in blocks]
    whole = np.concatenate(found)
    return whole[:count] if whole.shape == (blocks.size,) else whole  # a wrong number is the caller's to refuse


class Method(Protocol):
    """A way to score a radiograph."""

    @property
    def name(self) -> str:
        """Registry name; the ``method`` column of a predictions table."""

    @property
    def needs_ct(self) -> bool:
        """Whether it needs CT at inference (an oracle: shown, never ranked with deployable methods)."""

    @property
    def uses_ct(self) -> bool:
        """Whether CT took part in its training."""

    def fit(self, data: FitData, seed: int) -> Fitted:
        """Fit it.

        Raises:
            CannotFit: these cases do not allow it.
        """


def training_data(method: Method, data: FitData) -> FitData:
    """Return what a method may learn from: everything, or nothing of CT when it declares ``uses_ct = False``."""
    return data if method.uses_ct else data.without_ct()


def visible_cases(method: Method, cases: Cases) -> Cases:
    """Return cases as a fitted method may see them: without CT unless it declares ``needs_ct = True``."""
    return cases if method.needs_ct else cases.without_ct()


def shuffled_stage(stage: Stage, seed: int) -> Stage:
    """Return the pairs with CT (and the CTs' own labels) permuted within each part: the null of every transfer.

    Raises:
        CtNotAvailable: there is no CT.
    """
    return Stage(_shuffled(stage.train, seed, "train"), _shuffled(stage.val, seed, "val"))


def _shuffled(cases: Cases, seed: int, part: str) -> Cases:
    order = np.random.default_rng(seed_for(seed, "shuffled pairs", cases.source, part)).permutation(len(cases))
    also: dict[str, Any] = {n: None if (v := getattr(cases, n)) is None else v[order] for n in _GO_WITH_CT}
    return replace(cases, ct=cases.paired_ct()[order], ct_label=cases.ct_label[order], **also)
