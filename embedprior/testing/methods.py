"""Every promise that a method makes: what it may see, what it returns, and that it is what its class says."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embedprior.errors import BadInput
from embedprior.nn.config import FitConfig
from embedprior.students.base import CannotFit, Cases, CtNotAvailable, FitData, Fitted, Head, Method, Stage
from embedprior.students.registry import Budget, MethodInfo, MethodRow, build_method, describe, describe_row
from embedprior.students.storage import Saveable, load_fitted, save_fitted
from embedprior.testing.promises import CheckFailed, Promises, furthest, random_streams, same

SEED = 7
WITHOUT_CT = "it scores radiographs without their CT (needs_ct = False)"
SAME_SCORE = 1e-5
"""Largest change of a score that another batch size may bring: a matrix product may be summed in another order."""
SMALL = FitConfig(hidden=16, steps=40, validate_every=20, batch_size=32)
QUICK: dict[str, Any] = {
    "fit": SMALL,
    "stages": [
        {
            "network": {"preset": "tiny", "dim": 16, "depth": 1, "inner": 16},
            "training": {
                "steps": 4, "batch": 8, "validate_every": 4, "validation_bins": 2, "variance_nodes": 3,
                "variance_draws": 1,
            },
        }
    ],
    "samples": 2,
    "steps": 3,
}  # fmt: skip


def check_method(method: str | type, budget: Budget | None = None, **options: Any) -> list[str]:
    """Run every promise of the method protocol (``embedprior.students.base``) on 48 made-up pairs.

    Args:
        method: registry name, or a class.
        budget: of the fits; None = a few steps, enough to run and not to learn.
        options: of the method.

    Returns:
        The promises that were kept, in words.

    Raises:
        CheckFailed: the first promise that was not kept.
        BadInput: unknown name, or an option that it does not take.

    Example:
        >>> from embedprior.students.controls import Logistic
        >>> len(check_method(Logistic)) > 10
        True
    """
    check = _Check(method, budget or Budget.model_validate(QUICK), options)
    check.facts()
    check.scores()
    check.ct()
    check.teacher()
    check.odd_cases()
    check.input_kinds()
    check.storage()
    return check.promises.kept


def made_up_pairs(count: int, seed: int, prefix: str, labelled: int | None = None) -> Cases:
    """Return cases whose label depends on the first of 8 CT numbers; 3 of 8 X-ray numbers show the CT's, with noise.

    Args:
        count: cases, one a patient.
        seed: of the draws.
        prefix: of the ids.
        labelled: cases with a label, the first ones; None = all.
    """
    rng = np.random.default_rng(seed)
    ct = rng.normal(size=(count, 8)).astype(np.float32)
    cxr = np.concatenate([ct[:, :3] + 0.7 * rng.normal(size=(count, 3)), rng.normal(size=(count, 5))], axis=1)
    label = (ct[:, 0] + 0.2 * rng.normal(size=count) > 0).astype(float)
    names = [f"{prefix}{i}" for i in range(count)]
    known = np.where(np.arange(count) < (count if labelled is None else labelled), label, np.nan)
    pixels = rng.integers(60, 90, size=(count, 16, 16)) + (30 * (ct[:, 0] > 0)).astype(int)[:, None, None]
    ct_pixels = rng.integers(60, 90, size=(count, 16, 16)) + (60 * (ct[:, 0] > 0)).astype(int)[:, None, None]
    tokens = np.repeat(cxr[:, None], 4, axis=1).astype(np.float32)
    tokens[:, 3] = np.nan
    return Cases(
        names, names, known, cxr.astype(np.float32), ct, label, tokens=tokens, pixels=pixels.astype(np.uint8),
        ct_pixels=ct_pixels.astype(np.uint8),
    )  # fmt: skip


def made_up_data() -> FitData:
    """Return 48 pairs, 24 of them labelled, 16 to validate on, 24 DRR pairs to pretrain on, and a CT head."""
    from embedprior.teachers.teacher import train_head

    drr = replace(made_up_pairs(24, 4, "d"), source="drr", tokens=None, pixels=None, ct_pixels=None)
    drrs = Stage(drr, replace(made_up_pairs(8, 5, "w"), source="drr", tokens=None, pixels=None, ct_pixels=None))
    target = Stage(made_up_pairs(48, 1, "t", labelled=24), made_up_pairs(16, 2, "v"))
    own = made_up_pairs(200, 3, "c")
    head: Head = train_head(own.paired_ct(), own.label, own.paired_ct()[:40], own.label[:40], SMALL, 0)
    return FitData((drrs, target), head)


class _Check:
    def __init__(self, method: str | type, budget: Budget, options: dict[str, Any]) -> None:
        self._method, self._budget, self._options = method, budget, options
        self.promises = Promises(method if isinstance(method, str) else method.__name__)
        self.data = made_up_data()
        self.held_out = made_up_pairs(12, 6, "h")
        self.info: MethodInfo
        self._first: Fitted

    def facts(self) -> None:
        """The class states what it is, and its instances are so."""
        promise = "its class states its facts"
        try:
            self.info = describe(self._method) if isinstance(self._method, str) else _describe_class(self._method)
            built = self._build()
        except BadInput as error:
            raise CheckFailed(f"{self.promises.subject}: not true that {promise}: {error}") from error
        self.promises.require(True, promise, "")
        kinds = ("embedding", "tokens", "pixels")
        known = bool(self.info.inputs) and all(kind in kinds for kind in self.info.inputs)
        self.promises.require(known, "it reads inputs that exist", f"{self.info.inputs}. Allowed: {', '.join(kinds)}")
        self.promises.require(self.info.version >= 1, "its version counts from 1", f"version {self.info.version}")
        for fact in ("needs_ct", "uses_ct"):
            seen = getattr(built, fact, None)
            self.promises.require(
                seen is getattr(self.info, fact), "an instance is what its class says",
                f"{fact}: the class says {getattr(self.info, fact)}, the instance {seen}",
            )  # fmt: skip
        self.promises.require(
            self.info.uses_ct or not self.info.needs_ct, "who needs CT at inference uses it in training",
            "needs_ct is True and uses_ct is False",
        )  # fmt: skip
        self.promises.require(
            self.info.uses_ct or not self.info.needs_teacher, "who needs a CT teacher uses CT",
            "needs_teacher is True and uses_ct is False",
        )  # fmt: skip

    def scores(self) -> None:
        """One probability a case, the same for the same seed, and of each case alone."""
        before = [np.array(array, copy=True) for array in _arrays(self.data)]
        streams = random_streams()
        self._first = self._fit(self.data)
        scores = self._scores(self._first, self.held_out)
        good = scores.shape == (len(self.held_out),) and bool(np.isfinite(scores).all())
        self.promises.require(good, "it returns one finite number a case", f"shape {scores.shape}: {scores[:3]} …")
        within = bool(((scores >= 0) & (scores <= 1)).all())
        self.promises.require(within, "a score is a probability", f"{scores.min():.3g} to {scores.max():.3g}")
        unchanged = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, _arrays(self.data), strict=True))
        self.promises.require(unchanged, "it leaves the data as they were", "an array was written to. Next: copy it")
        self.promises.require(
            streams == random_streams(), "it leaves the global random streams as they were",
            "numpy's or torch's moved. Next: draw from a generator of your own, seeded by 'seed'",
        )  # fmt: skip
        again = self._scores(self._fit(self.data), self.held_out)
        self.promises.require(same(scores, again), "the same seed gives the same scores", furthest(scores, again))
        order = [5, 0, 3]
        some = self._scores(self._first, self.held_out.take(order))
        self.promises.require(
            bool(np.abs(some - scores[order]).max() <= SAME_SCORE), "a score depends on its own case alone",
            f"{furthest(some, scores[order])} among fewer cases",
        )  # fmt: skip

    def ct(self) -> None:
        """CT is read where the class says so, and nowhere else."""
        bare = self.held_out.without_ct()
        if self.info.needs_ct:
            self.promises.require_error(
                lambda: self._first.scores(bare), CtNotAvailable, "an oracle says that it lacks the CT"
            )
        else:
            scores, seen = self._scores(self._first, bare), np.asarray(self._first.scores(self.held_out))
            self.promises.require(
                same(scores, seen), WITHOUT_CT, f"scores change with the CT: {furthest(scores, seen)}"
            )
        if not self.info.uses_ct:
            plain = self._scores(self._fit(self.data.without_ct()), self.held_out)
            given = self._scores(self._build().fit(self.data, SEED), self.held_out)
            self.promises.require(
                same(plain, given), "it learns nothing from CT (uses_ct = False)",
                f"{furthest(plain, given)} when the CT lies open. Next: uses_ct = True",
            )  # fmt: skip

    def teacher(self) -> None:
        """The CT head is needed where the class says so, and nowhere else."""
        bare = FitData(self.data.stages, None, "none was trained")
        if self.info.needs_teacher:
            self.promises.require_error(
                lambda: self._build().fit(bare, SEED), CannotFit, "without a CT teacher it says that it can't be fitted"
            )
        else:
            scores, seen = (self._scores(self._fit(d), self.held_out) for d in (bare, self.data))
            self.promises.require(
                same(scores, seen), "it reads no CT teacher (needs_teacher = False)",
                f"{furthest(scores, seen)} with one. Next: needs_teacher = True",
            )  # fmt: skip

    def odd_cases(self) -> None:
        """No validation cases, no DRRs, and labels of one class."""
        target = self.data.target
        for promise, stages in (
            ("it can be fitted without validation cases", (Stage(target.train, target.val.take([])),)),
            ("it can be fitted without DRRs", (target,)),
        ):
            fitted = self._fit(FitData(stages, self.data.teacher), promise)
            scores = self._scores(fitted, self.held_out)
            self.promises.require(bool(np.isfinite(scores).all()), promise, f"scores {scores[:3]} …")
        one = Stage(replace(target.train, label=np.ones(len(target.train))), target.val)
        promise = "labels of one class give CannotFit, or finite scores"
        try:
            fitted = self._build().fit(self._permitted(FitData((one,), self.data.teacher)), SEED)
            scores = self._scores(fitted, self.held_out)
        except CannotFit:
            scores = np.zeros(1)
        except Exception as error:
            self.promises.require(False, promise, f"{type(error).__name__}: {error}")
        self.promises.require(bool(np.isfinite(scores).all()), promise, f"scores {scores[:3]} …")

    def input_kinds(self) -> None:
        """Tokens and pixels are read where the class says so."""
        for kind in self.info.inputs:
            if kind == "embedding":
                continue
            promise = f"it reads {kind} alone when asked to"
            asked = {"inputs": kind} if len(self.info.inputs) > 1 else {}
            fitted = self._fit(FitData((self.data.target,), self.data.teacher), promise, **asked)
            blind = replace(self.held_out, cxr=np.full_like(self.held_out.cxr, np.nan))
            scores = self._scores(fitted, blind)
            self.promises.require(
                bool(np.isfinite(scores).all()), promise, "scores are not finite once the embedding is hidden"
            )

    def storage(self) -> None:
        """What can be saved is read back with the same scores, and without a pickle."""
        summary = getattr(self._first, "fit_summary", None)
        parameters = getattr(self._build(), "parameters", None)
        if summary is not None and parameters is not None:
            counted = parameters(self._permitted(self.data))
            self.promises.require(
                counted == (summary.trainable, summary.total), "its parameters are as announced",
                f"announced {counted}, trained {(summary.trainable, summary.total)}",
            )  # fmt: skip
        if not isinstance(self._first, Saveable):
            return
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / "fitted"
            try:
                save_fitted(self._first, folder, self.info.name)
            except BadInput as error:
                raise CheckFailed(f"{self.promises.subject}: not true that it can be saved: {error}") from error
            again = load_fitted(folder)
            pickled = [p.name for p in folder.rglob("*") if p.suffix in (".pt", ".pth", ".pkl", ".pickle", ".npy")]
            self.promises.require(not pickled, "it is saved without a pickle", f"it wrote {', '.join(pickled)}")
            saved, scores = (self._scores(fitted, self.held_out) for fitted in (again, self._first))
            self.promises.require(
                again.method == self.info.name and same(saved, scores), "read back, it scores as it did",
                furthest(saved, scores),
            )  # fmt: skip

    def _build(self, **options: Any) -> Method:
        if isinstance(self._method, str):
            return build_method(self._method, self._budget, **{**self._options, **options})
        built: Method = self._method(budget=self._budget, **{**self._options, **options})
        return built

    def _permitted(self, data: FitData) -> FitData:
        return data if self.info.uses_ct else data.without_ct()

    def _fit(self, data: FitData, promise: str = "it can be fitted", **options: Any) -> Fitted:
        return self.promises.attempt(lambda: self._build(**options).fit(self._permitted(data), SEED), promise)

    def _scores(self, fitted: Fitted, cases: Cases) -> np.ndarray[Any, Any]:
        given, promise = (cases, "it scores cases with CT") if self.info.needs_ct else (cases.without_ct(), WITHOUT_CT)
        return np.asarray(self.promises.attempt(lambda: fitted.scores(given), promise), dtype=np.float64)


def _describe_class(method: type) -> MethodInfo:
    name = str(getattr(method, "name", "") or method.__name__)
    return describe_row(MethodRow(name, "", "", f"{method.__module__}:{method.__qualname__}"), method)


def _arrays(data: FitData) -> Sequence[np.ndarray[Any, Any]]:
    cases = [c for s in data.stages for c in (s.train, s.val)]
    found = [getattr(c, n) for c in cases for n in ("label", "cxr", "ct", "ct_label", "tokens", "pixels")]
    return [array for array in found if array is not None]
