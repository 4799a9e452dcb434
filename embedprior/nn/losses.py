"""Losses on labels that may be unknown (NaN), and what class imbalance does to them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def cross_entropy_of_known(
    logits: Float[Tensor, " cases"], label: Float[Tensor, " cases"], weight: Float[Tensor, " cases"] | None = None
) -> tuple[Float[Tensor, " cases"], Float[Tensor, " cases"]]:
    """Return each case's weighted binary cross-entropy, and the weights; both are 0 where the label is unknown.

    Args:
        logits: of the positive class.
        label: 1, 0, or NaN where unknown.
        weight: of each case; 1 without them.
    """
    known = ~label.isnan()
    counted = known.to(logits.dtype) if weight is None else known * weight
    each = F.binary_cross_entropy_with_logits(logits, label.nan_to_num(0.0), reduction="none")
    return each * counted, counted


def label_loss(
    logits: Float[Tensor, " cases"], label: Float[Tensor, " cases"], weight: Float[Tensor, " cases"] | None = None
) -> Tensor:
    """Return the weighted mean of binary cross-entropy over the cases whose label is known (0 when there is none).

    Args:
        logits: of the positive class.
        label: 1, 0, or NaN where unknown.
        weight: of each case; the sum of weights over the known cases is what the loss is divided by.

    Example:
        >>> label_loss(torch.tensor([0.0, 3.0]), torch.tensor([1.0, torch.nan]))  # ln 2: the second case is unknown
        tensor(0.6931)
    """
    losses, weights = cross_entropy_of_known(logits, label, weight)
    return losses.sum() / weights.sum().clamp(min=1e-6)


def weighed_loss(
    logits: Float[Tensor, " cases"], label: Float[Tensor, " cases"], weight: Float[Tensor, " cases"]
) -> Tensor:
    """Return the mean of the weighed cross-entropies, divided by the cases and not by their weights.

    In a batch of two, often both of one class, weights that the loss is divided by would cancel.
    """
    losses, _ = cross_entropy_of_known(logits, label, weight)
    return losses.mean()


def class_weights(labels: Float[np.ndarray, " cases"]) -> Float[np.ndarray, " 2"]:
    """Return n / (2 · n_class) of class 0 and class 1; n counts the labelled cases.

    Their mean over the labelled cases is 1. A class without a case has weight n / 2, which nothing is multiplied by.

    Example:
        >>> class_weights(np.array([1.0, 0.0, 0.0, 0.0, np.nan]))
        array([0.66666667, 2.        ])
    """
    counts = np.array([(labels == value).sum() for value in (0, 1)])
    return np.asarray(counts.sum() / (2 * np.maximum(counts, 1)))


def case_weights(labels: Float[np.ndarray, " cases"]) -> Float[np.ndarray, " cases"]:
    """Return the weight of every case's class, and 1 for a case without a label."""
    return np.where(np.isnan(labels), 1.0, class_weights(labels)[np.nan_to_num(labels).astype(int)])


def soft_cross_entropy(
    target: Float[np.ndarray, " cases"],
    probability: Float[np.ndarray, " cases"],
    weight: Float[np.ndarray, " cases"] | None = None,
) -> float:
    """Return the (weighted) mean cross-entropy of probabilities against labels or probabilities.

    A probability is taken to be within 1e-6 and 1 − 1e-6.
    """
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    return -float(np.average(target * np.log(p) + (1 - target) * np.log(1 - p), weights=weight))


def class_prototypes(features: Float[Tensor, "cases dim"], labels: Float[Tensor, " cases"]) -> Float[Tensor, "2 dim"]:
    """Return the mean feature of the cases labelled 0 and of those labelled 1; NaN for a class without a case.

    Example:
        >>> class_prototypes(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0.0, 1.0, 1.0])).tolist()
        [[1.0], [4.0]]
    """
    return torch.stack([features[labels == value].mean(dim=0) for value in (0, 1)])


def prototype_cosines(
    features: Float[Tensor, "cases dim"], prototypes: Float[Tensor, "classes dim"]
) -> Float[Tensor, "cases classes"]:
    """Return M_k(i) = cos(f_i, prototype_k), the map that ProtoKD compares (Wang 2023, arXiv 2303.09830)."""
    return F.normalize(features, dim=1) @ F.normalize(prototypes, dim=1).T


def info_nce(
    first: Float[Tensor, "cases dim"],
    second: Float[Tensor, "cases dim"],
    group: Int[Tensor, " cases"],
    scale: Tensor | float,
    present: Bool[Tensor, " cases"] | None = None,
) -> Tensor:
    """Return symmetric InfoNCE, ½[CE(s·AᵀB) + CE(s·BᵀA)] on unit vectors (X2CT-CLIP, arXiv 2503.02162).

    Cases of one group (a patient, or patients that belong together) are taken out of each other's denominators: a
    second radiograph, or a second reconstruction of one scan, is no negative. With fewer than two groups the loss is 0.

    Args:
        first, second: latents, normalised here; row i of one belongs to row i of the other.
        group: numbers.
        scale: of the cosines (inverse temperature).
        present: cases that have both, such as those with a report; the others take no part. None = all.

    Example:
        >>> latents = torch.eye(2)
        >>> info_nce(latents, latents, torch.tensor([0, 1]), 1.0)  # ln(1 + 1/e)
        tensor(0.3133)
    """
    if present is not None:
        first, second, group = first[present], second[present], group[present]
    if not len(group):
        return (first.sum() + second.sum()) * 0.0
    cosines = scale * F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    own = torch.eye(len(group), dtype=torch.bool, device=group.device)
    cosines = cosines.masked_fill((group[:, None] == group[None, :]) & ~own, -torch.inf)
    rows = torch.arange(len(group), device=group.device)
    return (F.cross_entropy(cosines, rows) + F.cross_entropy(cosines.T, rows)) / 2
