"""Two score vectors, or a whole predictions table, to a result object that can be read, printed and saved."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from embedprior.evidence.decision import Claim
from embedprior.evidence.delong import Bools, Floats, Ints, delong
from embedprior.evidence.errors import EvidenceError, nearest
from embedprior.evidence.evaluate import evaluate_predictions, evaluation
from embedprior.evidence.intervals import Interval, auc_interval
from embedprior.evidence.predictions import held_out_blocks
from embedprior.evidence.reading import from_wide, read_predictions, renamed, with_positive
from embedprior.evidence.tables import markdown
from embedprior.evidence.tests import Estimate, Sample, is_constant, paired_test

Pair = tuple[float, float]
Names = tuple[str, str]


@dataclass(frozen=True)
class AucComparison:
    """Two AUCs on the same cases and the test of their difference. NaN where undefined; ``reason`` says why.

    Attributes:
        auc: of ``scores_a`` and of ``scores_b``.
        auc_ci: their confidence intervals (logit-t; a one-sided bound where an AUC is exactly 0 or 1).
        delta: AUC of ``scores_a`` minus AUC of ``scores_b``.
        se: standard error of ``delta``.
        ci: confidence interval of ``delta``; it holds 0 exactly when ``p`` is above ``alpha``.
        z: ``delta / se``.
        p: two-sided p value of "both AUCs are equal", by the test in ``method``.
        p_delong, p_permutation: of DeLong's test (Student's t) and of the rank-swap permutation.
        n_pos, n_neg: cases of each class.
        n_groups: independent units (patients); the number of cases without ``groups``.
        alpha: the intervals cover with probability 1 − ``alpha``.
        method: name of the test that gave ``p``: the permutation below 50 independent cases of a class, else DeLong's.
        reason: why a number is NaN, or why ``p`` is 1; None when there is nothing to say.

    Example: see ``delong_test``.
    """

    auc: Pair
    auc_ci: tuple[Pair, Pair]
    delta: float
    se: float
    ci: Pair
    z: float
    p: float
    p_delong: float
    p_permutation: float
    n_pos: int
    n_neg: int
    n_groups: int
    alpha: float
    method: str
    reason: str | None

    def summary(self) -> str:
        """Return the result in a few lines of plain text."""
        level = f"{100 * (1 - self.alpha):g} % CI"
        lines = [f"{self.n_pos + self.n_neg} cases, {self.n_pos} positive and {self.n_neg} negative"]
        lines += [
            f"AUC {name}: {_number(auc)} ({level} {_number(low)} to {_number(high)})"
            for name, auc, (low, high) in zip("ab", self.auc, self.auc_ci, strict=True)
        ]
        lines.append(
            f"difference a - b: {_number(self.delta)} ({level} {_number(self.ci[0])} to {_number(self.ci[1])})"
        )
        p = "p < 0.001" if self.p < 0.001 else f"p = {_number(self.p)}"
        lines.append(f"{self.method}: {p}" + (f" ({self.reason})" if self.reason else ""))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values: None in place of NaN."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def delong_test(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    folds: ArrayLike | None = None,
    alpha: float = 0.05,
) -> AucComparison:
    """Test whether two models scored on the same cases have the same AUC.

    Args:
        labels: (N,) 0/1, 0.0/1.0 or bool.
        scores_a, scores_b: (N,) finite scores of the two models, higher = more positive; any scale.
        groups: (N,) patient of each case, where a patient may have several: the variance is then clustered by patient.
        folds: (N,) fold of each case, for scores of several models of a cross-validation: positives are compared with
            negatives of their own fold only. A patient must lie in one fold.
        alpha: 1 − confidence of the intervals.

    Returns:
        The AUCs, their difference, its interval and p value; NaN and a ``reason`` where the cases do not allow it
        (one class only, a single positive case).

    Raises:
        EvidenceError: unequal lengths, labels other than 0 and 1, NaN or infinite scores, a missing group or fold,
            pandas Series whose indexes differ, or ``alpha`` outside (0, 0.5).

    Source: DeLong, DeLong and Clarke-Pearson, Biometrics 1988; mid-ranks as in Sun and Xu, IEEE Signal Processing
    Letters 2014; clusters as in Obuchowski, Biometrics 1997.

    Example:
        >>> import embedprior
        >>> labels = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
        >>> with_ct = [.1, .2, .3, .5, .4, .6, .35, .8, .9, .7]
        >>> cxr_only = [.2, .6, .3, .5, .4, .1, .7, .8, .45, .55]
        >>> result = embedprior.delong_test(labels, with_ct, cxr_only)
        >>> print(f"AUC {result.auc[0]:.2f} and {result.auc[1]:.2f}, difference {result.delta:.2f}")
        AUC 0.92 and 0.68, difference 0.24
        >>> low, high = result.ci
        >>> low < 0 < high and result.p > 0.05
        True
        >>> print(result.summary().splitlines()[0])
        10 cases, 5 positive and 5 negative
    """
    if not 0 < alpha < 0.5:
        raise EvidenceError(f"alpha must be in (0, 0.5), e.g. 0.05; got {alpha}.")
    _same_index({"labels": labels, "scores_a": scores_a, "scores_b": scores_b, "groups": groups, "folds": folds})
    truth = _labels(labels)
    scores = np.stack([_scores("scores_a", scores_a, truth.size), _scores("scores_b", scores_b, truth.size)])
    patients, strata = _codes("groups", groups, truth.size), _codes("folds", folds, truth.size)
    joint = delong(truth, scores, clusters=patients, strata=strata)
    estimates = [
        Estimate(float(joint.auc[k]), joint.variance(np.eye(2)[k]), joint.independent_pairs, is_constant(row, strata))
        for k, row in enumerate(scores)
    ]
    intervals = [
        auc_interval(e.auc, e.variance, e.independent_pairs, alpha=alpha, reason=joint.reason) for e in estimates
    ]
    name = "DeLong, t" + (", patient-clustered (Obuchowski)" if groups is not None else "")
    name += ", fold-stratified" if folds is not None else ""
    sample = Sample(truth, scores[:1], scores[1:], patients, strata)
    test = paired_test(estimates[0], estimates[1], joint.variance(np.array([1.0, -1.0])), sample, joint, name)
    return AucComparison(
        auc=(estimates[0].auc, estimates[1].auc),
        auc_ci=(_ends(intervals[0]), _ends(intervals[1])),
        delta=test.delta,
        se=test.se,
        ci=test.limits(alpha) if test.limits is not None else (math.nan, math.nan),
        z=test.statistic,
        p=test.p,
        p_delong=test.p_delong,
        p_permutation=test.p_permutation,
        n_pos=joint.n_pos,
        n_neg=joint.n_neg,
        n_groups=joint.n_clusters,
        alpha=alpha,
        method=test.name,
        reason=test.reason or joint.reason,
    )


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found: the content of ``evidence.json``, as tables, as text and as a dictionary.

    Attributes:
        evidence: plain JSON values, described by ``docs/evidence.md``.

    Example: see ``evaluate``.
    """

    evidence: dict[str, Any]

    @property
    def methods(self) -> pd.DataFrame:
        """One row a method: AUC, interval, counts, and the reason where a number is missing."""
        return pd.DataFrame(self.evidence["methods"])

    @property
    def comparisons(self) -> pd.DataFrame:
        """One row a comparison "a scores higher than b": difference, interval, p, Holm's p and verdict."""
        return pd.DataFrame(self.evidence["comparisons"])

    @property
    def warnings(self) -> list[str]:
        """What a reader must know beside the numbers."""
        return list(self.evidence["warnings"])

    def summary(self) -> str:
        """Return the tables and warnings as Markdown."""
        return markdown(self.evidence)

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of the evidence: None wherever a number is undefined, with a ``reason`` beside it."""
        return copy.deepcopy(self.evidence)

    def _repr_markdown_(self) -> str:
        return self.summary()


def evaluate(
    predictions: pd.DataFrame | Path | str,
    reference: str | None = None,
    *,
    family: Sequence[Claim | str | Names] | None = None,
    oracles: Sequence[str] = (),
    method_columns: bool | Sequence[str] = False,
    positive: str | None = None,
    **settings: Any,
) -> Evaluation:
    """Evaluate a table of predictions: AUCs, paired tests against a reference, intervals, verdicts.

    Args:
        predictions: a DataFrame, or the path of a CSV: one row a score, columns ``exam_id, patient_id, label, method,
            score`` and, where they apply, ``fold, resample, seed, split, label_name``. ``label`` is 1, 0 or missing.
        reference: the method every other one is compared with; None = the first one that is no oracle.
        family: claims declared beforehand, for Holm's correction: texts such as ``"prior > cxr-only"``, ``"prior >=
            direct-head - .03"`` (not worse) and ``"a = b ± .03"`` (equivalent), or pairs (a, b) for "a scores higher
            than b"; None = every method that is no oracle against ``reference``.
        oracles: methods that need CT at inference: shown, never ranked with the others.
        method_columns: the table has one row a case: ``patient_id``, ``label``, and one column of scores a method; or
            the names of these columns, where there are others.
        positive: the label that means 1, where labels are words.
        settings: of ``evidence.evaluate_predictions``: ``unit``, ``patient_label``, ``ci``, ``alpha``, ``margin``,
            ``threshold``, ``bootstrap``, ``subgroups`` and more.

    Returns:
        The evaluation, with ``summary()``, ``to_dict()``, ``methods`` and ``comparisons``.

    Raises:
        EvidenceError: the table, a name or a setting can't be used; rows are named.

    Source: see ``delong_test``; Holm, Scandinavian Journal of Statistics 1979. Every number: ``docs/evidence.md``.

    Example:
        >>> import embedprior
        >>> import pandas as pd
        >>> frame = pd.DataFrame({
        ...     "patient_id": range(10), "label": [0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
        ...     "cxr-only": [.2, .6, .3, .5, .4, .1, .7, .8, .45, .55],
        ...     "prior": [.1, .2, .3, .5, .4, .6, .35, .8, .9, .7],
        ... })
        >>> result = embedprior.evaluate(frame, reference="cxr-only", method_columns=True)
        >>> result.methods[["method", "auc"]].round(2).values.tolist()
        [['cxr-only', 0.68], ['prior', 0.92]]
        >>> result.comparisons[["a", "b", "verdict"]].values.tolist()
        [['prior', 'cxr-only', 'not testable at this size']]
        >>> print(result.summary().splitlines()[0])
        ### AUC
    """
    takes = [
        name for name in inspect.signature(evaluation).parameters
        if name not in ("frame", "reference", "family", "oracles", "blocks")
    ]  # fmt: skip
    for name in settings:
        if name not in takes:
            raise EvidenceError(f"evaluate has no setting {name!r}. Allowed: {', '.join(takes)}.{nearest(name, takes)}")
    frame = _table(predictions, method_columns, tuple(settings.get("subgroups", ())), positive)
    unit, patient_label = settings.get("unit", "patient"), settings.get("patient_label")
    blocks = held_out_blocks(frame, unit, patient_label)
    chosen = _first_method(blocks[0].methods, oracles) if reference is None else reference
    evidence = evaluate_predictions(frame, chosen, family, oracles=oracles, blocks=blocks, **settings)
    if reference is None:
        evidence["warnings"].append(f"no reference was given: {chosen}, the first method of the table, was taken")
    return Evaluation(evidence)


def _table(
    predictions: pd.DataFrame | Path | str, columns: bool | Sequence[str], not_methods: tuple[str, ...],
    positive: str | None,
) -> pd.DataFrame:  # fmt: skip
    wide, methods = bool(columns), () if isinstance(columns, bool) else tuple(columns)
    if isinstance(predictions, (str, Path)):
        path = Path(predictions)
        return read_predictions(path, wide=wide, not_methods=not_methods, methods=methods, positive=positive)
    if not isinstance(predictions, pd.DataFrame):
        raise EvidenceError(
            f"evaluate was given a {type(predictions).__name__}. Allowed: a DataFrame or the path of a CSV. "
            "Next: pandas.DataFrame(...), or delong_test for two score vectors."
        )
    # rows are named by their place: an index with gaps or repeats would name them twice or wrongly
    frame = renamed(predictions.reset_index(drop=True), wide)
    frame = frame if positive is None else with_positive(frame, positive)
    return from_wide(frame, not_methods, methods) if wide else frame


def _first_method(methods: Sequence[str], oracles: Sequence[str]) -> str:
    for method in methods:
        if method not in oracles:
            return method
    raise EvidenceError("every method is an oracle: name one as reference.")


def _same_index(given: dict[str, Any]) -> None:
    """Refuse pandas Series that pandas itself would align in another order than position."""
    series = {name: value for name, value in given.items() if isinstance(value, pd.Series)}
    names = list(series)
    for name in names[1:]:
        if not series[name].index.equals(series[names[0]].index):
            raise EvidenceError(
                f"{names[0]} and {name} are pandas Series with different indexes: it is unclear which case is which. "
                f"Next: {name}.loc[{names[0]}.index] to align them, or .to_numpy() when their order is the same."
            )


def _labels(values: ArrayLike) -> Bools:
    array = _vector("labels", values)
    try:
        numbers: Floats = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError):
        raise EvidenceError(f"labels must be 0 or 1; got {array.dtype} values such as {array.flat[0]!r}.") from None
    bad = np.flatnonzero((numbers != 0) & (numbers != 1))
    if bad.size:
        raise EvidenceError(
            f"labels must be 0 or 1; case position {int(bad[0])} has {numbers[bad[0]]:g} ({bad.size} such). "
            "Next: leave cases with an unknown label out, of the scores too."
        )
    return np.asarray(numbers == 1, dtype=np.bool_)


def _scores(name: str, values: ArrayLike, n: int) -> Floats:
    array = _vector(name, values)
    try:
        numbers: Floats = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError):
        raise EvidenceError(f"{name} must be numbers; got {array.dtype} values such as {array.flat[0]!r}.") from None
    if numbers.size != n:
        raise EvidenceError(f"{name} has {numbers.size} values, but there are {n} labels: one a case, in one order.")
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        raise EvidenceError(f"{name} must be finite; NaN or infinite at case positions {bad[:5].tolist()}.")
    return numbers


def _codes(name: str, values: ArrayLike | None, n: int) -> Ints | None:
    """Return (N,) numbers that are equal where the values are; ids may be texts, numbers, or both."""
    if values is None:
        return None
    array = _vector(name, values)
    if array.size != n:
        raise EvidenceError(f"{name} has {array.size} values, but there are {n} labels.")
    code = pd.factorize(array)[0].astype(np.int64)
    missing = np.flatnonzero(code < 0)
    if missing.size:
        raise EvidenceError(f"{name} must name every case; missing at case positions {missing[:5].tolist()}.")
    return code


def _vector(name: str, values: ArrayLike) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.asarray(values)
    except ValueError:
        raise EvidenceError(f"{name} is a ragged list. Allowed: one value a case, shape (N,).") from None
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    if array.ndim != 1:
        hint = " Next: predict_proba(...)[:, 1]." if array.ndim == 2 and array.shape[1] == 2 else ""
        raise EvidenceError(f"{name} has shape {array.shape}. Allowed: one value a case, shape (N,).{hint}")
    return array


def _ends(interval: Interval) -> Pair:
    return interval.low, interval.high


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
