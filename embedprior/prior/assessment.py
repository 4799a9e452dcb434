"""Has a prior learned? Its error, spread and head scores on the validation pairs, beside those of plain regressions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from embedprior.nn.ridge import fit_ridge
from embedprior.prior.data import PairArrays
from embedprior.prior.losses import Head
from embedprior.prior.model import Prior
from embedprior.prior.regression import pooled

CASES, SAMPLES, STEPS = 100, 16, 16
"""At most so many validation pairs are sampled, with so many samples of so many steps."""
TOLERANCE = 0.05
"""Share by which a prior's error may exceed a regression's before that is said."""
SPREAD_RANGE = (0.8, 1.25)
FAR = 1000.0
"""Robust standard deviations beyond which an embedding's value is an outlier, or of another unit."""
Floats = NDArray[np.float64]


def assess(prior: Prior, train: PairArrays, val: PairArrays, teacher: Head | None) -> dict[str, Any]:
    """Return the figures of a prior on its validation pairs, JSON types, and in ``warnings`` what it lost, in words.

    ``error``: squared error of the one-step prediction (of the mean of samples where the network predicts the noise),
    of ridge regression (fitted here on the training pairs) and of the training mean, in standardised units.
    ``spread_ratio``: standard deviation of samples over the root mean square error of the prediction: 1 for a faithful
    posterior. ``brier`` and ``auc``, with a head: of the mean over samples of its probability, of the head on the ridge
    prediction, and of ridge regression of the probability itself (``direct``); Brier against the probability of the
    real CT, AUC against the labels.

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
    shared = None if teacher is None else [0] * len(real)
    steps = min(STEPS, prior.schedule.timesteps)
    drawn = prior.sample(condition, SAMPLES, "analytic", steps, 0, val.source, mask, guidance=1.0, cases=shared)
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
    within = float(np.sqrt(samples.astype(np.float64).var(axis=1, ddof=1).mean()))
    figures["spread_ratio"] = within / max(np.sqrt(error["prior"]), 1e-12)
    if teacher is not None:
        own = units.inverse(ridge.astype(np.float32))
        figures |= _by_head(teacher, drawn, own, train, val, inputs, val_inputs, few, prior.device)
    figures["warnings"] = [*warnings(figures), *outliers(train)]
    return figures


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
    if not low <= figures["spread_ratio"] <= high:
        found.append(
            f"its samples have {figures['spread_ratio']:.2f} times the spread that its error on the validation pairs "
            "asks for"
        )
    scores = figures.get("brier")
    if scores is not None and scores["prior"] > (1 + TOLERANCE) * min(scores["direct"], scores["ridge"]):
        best = min(("direct", "ridge"), key=lambda name: scores[name])
        other = {"direct": "regression of the head's probability", "ridge": "the head on the ridge prediction"}[best]
        numbers = f"{scores[best]:.4f} to {scores['prior']:.4f}"
        found.append(f"{other} has the lower Brier score on the validation pairs: {numbers}")
    return found


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
