"""Feature losses on the predicted CT embedding: attention blocks, class prototypes, contrast. Pure functions.

All of them read standardised embeddings (0 = the training mean, 1 = one training standard deviation).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_blocks(embedding: Tensor, groups: int) -> Tensor:
    """Return (B, G, ceil(D/G)): the embedding cut into G blocks, each weighted by its share of the energy.

    A reconstruction of the "attentional and feature blocks" of AFT-KD (Yang et al. 2023, Sci Rep 13:18369), whose
    equations are not public: attention = normalise(sum over channels of |F|²), block = attention · F. An embedding
    has no positions, so runs of dimensions take their place (zeros fill the last). The published weighting of
    several network stages by their loss rates is void for the one stage there is here.
    """
    width = -(-embedding.shape[1] // groups)
    blocks: Tensor = F.pad(embedding, (0, groups * width - embedding.shape[1])).unflatten(1, (groups, width))
    attention: Tensor = F.normalize(blocks.square().sum(dim=2), dim=1)
    return attention[..., None] * blocks


def aft(predicted: Tensor, target: Tensor, groups: int) -> Tensor:
    """Return (B,): squared distance of the attention blocks, averaged over the D dimensions."""
    distance = attention_blocks(predicted, groups) - attention_blocks(target, groups)
    return distance.square().sum(dim=(1, 2)) / target.shape[1]


def class_prototypes(target: Tensor, labels: Tensor) -> Tensor:
    """Return (2, D): the mean embedding of the cases labelled 0 and of those labelled 1; NaN for a class without."""
    return torch.stack([target[labels == value].mean(dim=0) for value in (0, 1)])


def proto(predicted: Tensor, target: Tensor, prototypes: Tensor) -> Tensor:
    """Return (B,): squared difference of the cosines to the class prototypes, averaged over classes.

    ProtoKD (Wang et al. 2023, ICASSP) with M_k = cos(f, c_k). Student and teacher features live in one space here,
    so both are compared with the prototypes of the training fold's true CT embeddings, not with a batch's.
    """
    maps = [F.normalize(f, dim=1) @ F.normalize(prototypes, dim=1).T for f in (predicted, target)]
    return (maps[0] - maps[1]).square().mean(dim=1)


def contrast(predicted: Tensor, target: Tensor, rivals: Tensor, is_rival: Tensor, margin: float) -> Tensor:
    """Return (B,): d² to the own CT, plus the mean over other patients' CTs of max(0, margin - d)².

    Chopra et al. 2005 with d = ||f - g|| of l2-normalised embeddings. A rival may have the same label.

    Args:
        predicted, target: (B, D).
        rivals: (R, D) CT embeddings to keep away from.
        is_rival: (B, R) False where the rival is of the same patient; a case without rivals keeps its first part.
        margin: where repulsion ends; two unit vectors are at most 2 apart.
    """
    own = F.normalize(predicted, dim=1)
    attract = (own - F.normalize(target, dim=1)).square().sum(dim=1)
    # d² = 2 - 2cos; the floor keeps the root's gradient finite where both coincide.
    distance = (2.0 - 2.0 * own @ F.normalize(rivals, dim=1).T).clamp(min=1e-12).sqrt()
    repel = (margin - distance).clamp(min=0.0).square() * is_rival
    return attract + repel.sum(dim=1) / is_rival.sum(dim=1).clamp(min=1)
