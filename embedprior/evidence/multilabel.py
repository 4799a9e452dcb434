"""Several labels at once: the macro mean over labels, and the micro pool with its warning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from embedprior.evidence.coding import renumber
from embedprior.evidence.delong import Delong, Floats, influence
from embedprior.evidence.predictions import Block
from embedprior.evidence.rows import Joint, joint_aucs

MICRO_WARNING = (
    "micro-averaged AUC ranks one label's positives against another label's negatives: it rewards telling common "
    "findings from rare ones. Its variance is clustered by patient; read the macro mean first."
)


def macro(blocks: Sequence[Block], joints: Sequence[Joint]) -> tuple[Block, Joint]:
    """Average the AUC over labels, with the covariance between labels of the same patients.

    DeLong's form needs one set of positives, which labels do not share; across labels the covariance is the sum
    over patients of products of influence values, each label scaled to its own (clustered) DeLong variance.
    """
    first = blocks[0]
    n_cells = joints[0].result.auc.size
    patients, _ = renumber(np.concatenate([b.patients for b in blocks]))
    summed = np.zeros((n_cells, patients.size))
    for block, joint in zip(blocks, joints, strict=True):
        if joint.result.reason is None:
            summed += _scaled_influence(block, joint.result, patients) / len(blocks)
    reasons = [
        f"label {b.label_name!r}: {j.result.reason}" for b, j in zip(blocks, joints, strict=True) if j.result.reason
    ]
    covariance = summed @ summed.T if not reasons else np.full((n_cells, n_cells), np.nan)
    result = Delong(
        auc=np.mean([j.result.auc for j in joints], axis=0),
        covariance=covariance,
        positive_part=np.full_like(covariance, np.nan),
        negative_part=np.full_like(covariance, np.nan),
        n_pos=sum(j.result.n_pos for j in joints),
        n_neg=sum(j.result.n_neg for j in joints),
        n_clusters=patients.size,
        independent_pairs=min(j.result.independent_pairs for j in joints),
        reason="; ".join(reasons) or None,
    )
    pooled = replace(first, label_name="macro", patients=patients, n_unknown=sum(b.n_unknown for b in blocks))
    return pooled, replace(
        joints[0], result=result, test=f"influence over patients, macro mean of {len(blocks)} labels"
    )


def micro_pool(blocks: Sequence[Block]) -> tuple[Block, Joint]:
    """Pool all (case, label) pairs into one AUC, clustered by patient."""
    first = blocks[0]
    folds = None
    if any(b.folds is not None for b in blocks):
        names = [
            np.array(b.fold_names)[np.zeros(b.labels.size, dtype=np.int64) if b.folds is None else b.folds]
            for b in blocks
        ]
        folds = np.unique(np.concatenate(names), return_inverse=True)[1].astype(np.int64)
    pooled = replace(
        first,
        label_name="micro",
        case_ids=np.concatenate([b.case_ids for b in blocks]),
        patients=np.concatenate([b.patients for b in blocks]),
        labels=np.concatenate([b.labels for b in blocks]),
        folds=folds,
        scores={m: np.concatenate([b.scores[m] for b in blocks], axis=1) for m in first.methods},
        n_unknown=sum(b.n_unknown for b in blocks),
    )
    return pooled, joint_aucs(pooled, clustered=True)


def _scaled_influence(block: Block, result: Delong, patients: np.ndarray) -> Floats:
    scores = np.concatenate([block.scores[m] for m in block.methods])
    psi = influence(block.labels, scores, block.folds)
    at = np.searchsorted(patients, block.patients)
    per_patient = np.stack([np.bincount(at, weights=row, minlength=patients.size) for row in psi])
    raw = (per_patient**2).sum(axis=1)
    wanted = np.clip(np.diag(result.covariance), 0, None)
    scale = np.sqrt(np.divide(wanted, raw, out=np.zeros_like(raw), where=raw > 0))
    scaled: Floats = per_patient * scale[:, None]
    return scaled
