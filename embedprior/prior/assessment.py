"""Has a prior learned? Its error, spread and head scores on the validation pairs, beside those of plain regressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from embedprior.nn.ridge import fit_ridge
from embedprior.nn.stages import standard_error
from embedprior.nn.standardise import Standardiser
from embedprior.prior.data import PairArrays
from embedprior.prior.losses import Head
from embedprior.prior.model import Prior
from embedprior.prior.regression import pooled

CASES, SAMPLES, STEPS = 100, 16, 16
"""At most so many validation pairs are sampled, with so many samples of so many steps."""
TOLERANCE, BRIER_LEAST = 0.05, 0.001
"""Share by which a prior's error may exceed a regression's before that is said; Brier scores, by that much at least."""
SPREAD_RANGE, SPREAD_OFF = (0.8, 1.25), 0.1
"""A spread ratio outside the range is said, and one further off 1 than that where chance does not explain it."""
INTERVAL_SAMPLES, RANK = 19, 2
COVERAGE = 1 - 2 * RANK / (INTERVAL_SAMPLES + 1)
"""Between the second and the last but one of 19 samples lie 80 % of the draws of any distribution."""
COVERAGE_OFF, STANDARD_ERRORS = 0.03, 2.0
"""A coverage that is further off is said where it is further off than so many standard errors, too."""
FAR = 1000.0
"""Robust standard deviations beyond which an embedding's value is an outlier, or of another unit."""
Floats = NDArray[np.float64]


def assess(prior: Prior, train: PairArrays, val: PairArrays, teacher: Head | None) -> dict[str, Any]:
    """Return the figures of a prior on its validation pairs, JSON types; in ``warnings`` what it lost, in words.

    ``error``: squared error of the one-step prediction (of the mean of samples where the network predicts the noise),
    of ridge regression (fitted here on the training pairs) and of the training mean, in standardised units.
    ``spread_ratio``: standard deviation of samples over the root mean square error of the prediction: 1 for a faithful
    posterior. ``coverage``: share of the real CTs' values inside the samples' 80 % intervals, over the dimensions that
    vary. ``standard_errors`` of both, over pairs; None of a single pair. ``brier`` and ``auc``, with a head: of the
    mean over samples of its probability, of the head on the ridge prediction, and of ridge regression of the
    probability itself (``direct``); Brier against the probability of the real CT, AUC against the labels.
    ``constant``: how many dimensions of condition and target do not vary over the training pairs, and of how many; in
    ``notes``, in words.

    Args:
        prior: trained, with its variance table.
        train, val: the pairs it was trained and chosen on; the validation pairs chose its checkpoint, so these figures
            are a little too good.
        teacher: frozen head, if there is one.
    """
    few = slice(0, CASES)
    condition, mask = val.condition[few], None if val.condition_mask is None else val.condition_mask[few]
    units = prior.target_scaler
    real = units.forward(val.target[few])
    steps = min(STEPS, prior.schedule.timesteps)

    def sampled(count: int, cases: list[int] | None) -> NDArray[np.float32]:
        return prior.sample(condition, count, "analytic", steps, 0, val.source, mask, guidance=1.0, cases=cases)

    # Intervals need a noise of each case's own: one that happens to be narrow would be so for all cases.
    own_noise = sampled(INTERVAL_SAMPLES, None)
    drawn = own_noise[:, :SAMPLES] if teacher is None else sampled(SAMPLES, [0] * len(real))
    samples = units.forward(drawn)
    # One step of a network that predicts noise says nothing of the condition (see ``Prior.caveats``).
    one_step = prior.config.process.prediction != "epsilon"
    predicted = units.forward(prior.one_step(condition, val.source, mask)) if one_step else samples.mean(axis=1)

    scaler = prior.condition_scaler(train.source)
    inputs, val_inputs = (pooled(scaler.forward(pairs.tokens), pairs.condition_mask) for pairs in (train, val))
    target = units.forward(train.target)
    ridge = fit_ridge(inputs, target, val_inputs, units.forward(val.target))(val_inputs[few])
    error = {"prior": _square(predicted - real), "ridge": _square(ridge - real), "mean": _square(real)}
    figures: dict[str, Any] = {"pairs": len(real), "error": error}
    variance = samples.astype(np.float64).var(axis=1, ddof=1).mean(axis=1)
    squared = np.square((predicted - real).astype(np.float64)).mean(axis=1)
    # Where no target varies, nothing has a spread, and nothing needs one.
    exact = error["prior"] == 0 and not variance.any()
    figures["spread_ratio"] = 1.0 if exact else float(np.sqrt(variance.mean()) / max(np.sqrt(error["prior"]), 1e-12))
    inside = covered(own_noise, val.target[few], units.scale > 0)
    figures["coverage"] = None if inside is None else float(inside.mean())
    figures["standard_errors"] = None
    if len(real) > 1:
        # To first order, the log of a root of a ratio of means moves by half the difference of the relative changes.
        apart = variance / max(variance.mean(), 1e-12) - squared / max(error["prior"], 1e-12)
        figures["standard_errors"] = {
            "spread_ratio": 0.5 * figures["spread_ratio"] * standard_error(apart),
            "coverage": None if inside is None else standard_error(inside),
        }
    figures["constant"] = constant_dimensions(train)
    figures["notes"] = constant_sentences(figures["constant"])
    if teacher is not None:
        own = units.inverse(ridge.astype(np.float32))
        figures |= _by_head(teacher, drawn, own, train, val, inputs, val_inputs, few, prior.device)
    figures["warnings"] = [*warnings(figures), *outliers(train)]
    return figures


def covered(drawn: NDArray[np.float32], real: NDArray[np.float32], varies: NDArray[np.bool_]) -> Floats | None:
    """Return each case's share of values inside the interval between two order statistics of its samples.

    Args:
        drawn: (cases, ``INTERVAL_SAMPLES``, D) samples.
        real: (cases, D).
        varies: (D,) which dimensions count; None is returned where none does.

    Example:
        >>> drawn = np.arange(19.0, dtype=np.float32)[None, :, None] * np.ones(3, np.float32)
        >>> covered(drawn, np.array([[0.5, 1.0, 17.0]], np.float32), np.array([True, True, True])).round(3)
        array([0.667])
    """
    if not varies.any():
        return None
    ordered = np.sort(drawn[..., varies], axis=1)
    inside = (real[:, varies] >= ordered[:, RANK - 1]) & (real[:, varies] <= ordered[:, -RANK])
    return np.asarray(inside.mean(axis=1))


def constant_dimensions(train: PairArrays) -> dict[str, list[int]]:
    """Return for ``condition`` and ``target`` how many dimensions do not vary over the pairs, and of how many."""
    real = train.tokens if train.condition_mask is None else train.tokens[train.condition_mask]
    scales = [Standardiser.fit(rows, leave_out_constants=True).scale for rows in (real, train.target)]
    return {
        name: [int((scale == 0).sum()), len(scale)] for name, scale in zip(("condition", "target"), scales, strict=True)
    }


def constant_sentences(constant: Mapping[str, Sequence[int]]) -> list[str]:
    """Return in words which dimensions do not vary over the training pairs, and what follows.

    Args:
        constant: see ``constant_dimensions``.

    Example:
        >>> constant_sentences({"condition": [0, 27], "target": [2, 26]})
        ['2 of 26 dimensions of the target do not vary over the training pairs: samples have the training value there']
    """
    follows = {"condition": "nothing is learned from them", "target": "samples have the training value there"}
    return [
        f"{count:,} of {dims:,} dimensions of the {name} do not vary over the training pairs: {follows[name]}"
        for name, (count, dims) in constant.items()
        if count
    ]


def outliers(train: PairArrays) -> list[str]:
    """Return in words where a training embedding lies so far out that it alone sets its dimension's scale.

    Far: more than ``FAR`` times the scaled median absolute deviation of its dimension from the median. Dimensions of
    which half the values are equal have no such deviation and are left out.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
        >>> z[3, 2] = 1e6
        >>> outliers(PairArrays(z, z + 1, [f"t{i}" for i in range(30)], "cxr"))[0][:66]
        "the condition embedding of pair 't3' has a value of 1e+06 in dimen"
    """
    found = []
    for name, values in (("condition", train.tokens), ("target", train.target[:, None])):
        wide = values.astype(np.float64)
        real = (
            np.ones(wide.shape[:2], bool) if name == "target" or train.condition_mask is None else train.condition_mask
        )
        middle = np.median(wide[real], axis=0)
        away = np.abs(wide - middle)
        deviation = 1.4826 * np.median(away[real], axis=0)
        share = np.where(real[..., None] & (deviation > 0), away / np.where(deviation > 0, deviation, 1.0), 0.0)
        case, token, dimension = map(int, np.unravel_index(share.argmax(), share.shape))
        if share[case, token, dimension] > FAR:
            found.append(
                f"the {name} embedding of pair '{train.ids[case]}' has a value of "
                f"{wide[case, token, dimension]:.3g} in dimension {dimension}, where the median is "
                f"{middle[dimension]:.3g} and the spread {deviation[dimension]:.3g}: an outlier sets the scale"
            )
    return found


def warnings(figures: dict[str, Any]) -> list[str]:
    """Return in words where a prior lost to a plain regression, or its samples have another spread than the truth.

    Example:
        >>> warnings({"error": {"prior": 1.1, "ridge": 0.5, "mean": 1.0}, "spread_ratio": 1.0})
        ['it has not learned: its squared error on the validation pairs is 1.100, that of the training mean 1.000']
    """
    error, found = figures["error"], list[str]()
    if error["prior"] >= error["mean"] and error["ridge"] < error["mean"]:
        found.append(
            f"it has not learned: its squared error on the validation pairs is {error['prior']:.3f}, that of the "
            f"training mean {error['mean']:.3f}"
        )
    elif error["prior"] > (1 + TOLERANCE) * error["ridge"]:
        found.append(
            f"it has learned less than a linear map: its squared error on the validation pairs is {error['prior']:.3f},"
            f" that of ridge regression {error['ridge']:.3f}"
        )
    low, high = SPREAD_RANGE
    ratio, off = figures["spread_ratio"], figures.get("standard_errors") or {}
    if not low <= ratio <= high or _beyond(ratio - 1, SPREAD_OFF, off.get("spread_ratio")):
        found.append(f"its samples have {ratio:.2f} times the spread that its error on the validation pairs asks for")
    coverage = figures.get("coverage")
    if coverage is not None and _beyond(coverage - COVERAGE, COVERAGE_OFF, off.get("coverage")):
        found.append(
            f"its {100 * COVERAGE:.0f} % intervals hold {coverage:.1%} of the real values on the validation pairs"
        )
    scores = figures.get("brier")
    if scores is None:
        return found
    best = min(("direct", "ridge"), key=lambda name: float(scores[name]))
    if scores["prior"] > max((1 + TOLERANCE) * scores[best], scores[best] + BRIER_LEAST):
        other = {"direct": "regression of the head's probability", "ridge": "the head on the ridge prediction"}[best]
        numbers = f"{scores[best]:.4f} to {scores['prior']:.4f}"
        found.append(f"{other} has the lower Brier score on the validation pairs: {numbers}")
    return found


def _beyond(off: float, allowed: float, error: float | None) -> bool:
    """Return whether a figure is off by more than what is allowed, and by more than chance explains."""
    return error is not None and abs(off) > max(allowed, STANDARD_ERRORS * error)


def _by_head(
    teacher: Head,
    drawn: NDArray[np.float32],
    ridge: NDArray[np.float32],
    train: PairArrays,
    val: PairArrays,
    inputs: Floats,
    val_inputs: Floats,
    few: slice,
    device: torch.device,
) -> dict[str, Any]:
    def chance(embeddings: NDArray[np.float32]) -> Floats:
        with torch.no_grad():
            logits = teacher(torch.from_numpy(embeddings).to(device)).reshape(-1)
        return np.asarray(logits.double().sigmoid().cpu().numpy())

    flat = chance(rearrange(drawn, "cases samples d -> (cases samples) d"))
    real, val_real = chance(val.target[few]), chance(val.target)
    direct = fit_ridge(inputs, chance(train.target)[:, None], val_inputs, val_real[:, None])(val_inputs[few])[:, 0]
    scores = {
        "prior": rearrange(flat, "(cases samples) -> cases samples", samples=drawn.shape[1]).mean(axis=1),
        "ridge": chance(ridge),
        "direct": np.clip(direct, 0.0, 1.0),
    }
    figures: dict[str, Any] = {"brier": {name: float(((p - real) ** 2).mean()) for name, p in scores.items()}}
    labels = np.full(len(real), np.nan) if val.labels is None else val.labels[few]
    known = np.isfinite(labels)
    if len(np.unique(labels[known])) < 2:
        return figures | {"auc": None, "auc_reason": "the validation pairs do not hold both classes"}
    return figures | {"auc": {name: float(roc_auc_score(labels[known], p[known])) for name, p in scores.items()}}


def _square(values: NDArray[np.floating]) -> float:
    return float(np.square(values.astype(np.float64)).mean())
