"""The table of methods: every row that a study can have, named without importing its class (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class MethodRow:
    """One row that a study can have, named without importing its class.

    Attributes:
        name: registry name; the ``method`` column of a predictions table.
        summary: one line.
        source: paper or reason.
        build: import string of its class.
        role: ``row`` of a paper, or ``control``.
        options: settings of its class that make it this row.
        reconstruction: these options fill in a detail that the paper does not give.
    """

    name: str
    summary: str
    source: str
    build: str
    role: Literal["row", "control"] = "row"
    options: Mapping[str, Any] = field(default_factory=dict)
    reconstruction: bool = False


def _table(*rows: MethodRow) -> dict[str, MethodRow]:
    return {row.name: row for row in rows}


_HERE = "embedprior.students"
_PILOT = "pilot study, arXiv 2603.29167"
METHODS: dict[str, MethodRow] = _table(
    MethodRow(
        "cxr-only", "labels and radiographs only: the reference", "PE paper, CXR-only",
        f"{_HERE}.logit_kd:CxrOnly",
    ),
    MethodRow(
        "hinton-kd", "labels, and the CT teacher's softened output", "Hinton 2015, arXiv 1503.02531",
        f"{_HERE}.logit_kd:HintonKd",
    ),
    MethodRow(
        "discom-kd", "disentangled parts of both modalities, no teacher", "BMVC 2024, arXiv 2408.07080",
        f"{_HERE}.feature_kd:DiscomKd",
    ),
    MethodRow(
        "aft-kd", "attention ⊗ feature blocks of the CT embedding", "Yang 2023, Sci Rep 13:18369 (abstract)",
        f"{_HERE}.feature_kd:AftKd",
    ),
    MethodRow(
        "proto-kd", "cosines to the class prototypes", "ICASSP 2023, arXiv 2303.09830",
        f"{_HERE}.feature_kd:ProtoKd",
    ),
    MethodRow(
        "contrastive-kd", "near the own CT, a margin from other patients'", "Hadsell 2006; PE paper, contrastive",
        f"{_HERE}.feature_kd:ContrastiveKd",
    ),
    MethodRow(
        "fitnets", "a linear map of the student's features hits the CT embedding", "Romero 2015, arXiv 1412.6550",
        f"{_HERE}.feature_kd:FitNets",
    ),
    MethodRow(
        "rkd", "distances and angles between patients as in CT", "Park 2019, arXiv 1904.05068",
        f"{_HERE}.relational_kd:Rkd",
    ),
    MethodRow(
        "crd", "contrast of the batch's CTs in a learned space, and softened logits", "Tian 2020, arXiv 1910.10699",
        f"{_HERE}.relational_kd:CrdKd",
    ),
    MethodRow(
        "confidence-gate", "softened logits where the CT teacher is sure and right", "GAP-KD; pilot study",
        f"{_HERE}.gated_kd:ConfidenceGate",
    ),
    MethodRow(
        "pseudo-label", "the CT teacher's prediction as a label where it is sure", _PILOT,
        f"{_HERE}.gated_kd:PseudoLabel",
    ),
    MethodRow(
        "slice-kd", "labels, and the softened output of a network that reads the CT slice", _PILOT,
        f"{_HERE}.map_kd:SliceKd",
    ),
    MethodRow(
        "slice-attention", "the same, and attention maps as in the CT network", "Zagoruyko 2017; pilot study",
        f"{_HERE}.map_kd:SliceAttention",
    ),
    MethodRow(
        "slice-hint", "the same, and projected feature maps as in the CT network", "Romero 2015; pilot study",
        f"{_HERE}.map_kd:SliceHint",
    ),
    MethodRow(
        "slice-hallucination", "labels, and a guess of the CT network's features", "Hoffman 2016; pilot study",
        f"{_HERE}.map_kd:SliceHallucination",
    ),
    MethodRow(
        "slice-lung-mask", "the same, and attention on the radiograph's lungs", _PILOT,
        f"{_HERE}.map_kd:SliceLungMask",
    ),
    MethodRow(
        "slice-projected-attention", "attention transfer inside the lungs, gated, for projections of a CT", _PILOT,
        f"{_HERE}.map_kd:SliceProjectedAttention",
    ),
    MethodRow(
        "slice-gate", "softened logits where the CT network is sure and right", "GAP-KD; pilot study",
        f"{_HERE}.slice_kd:SliceGate",
    ),
    MethodRow(
        "slice-pseudo-label", "the CT network's prediction as a label where it is sure", _PILOT,
        f"{_HERE}.slice_kd:SlicePseudoLabel",
    ),
    MethodRow(
        "slice-prototype", "the same, and cosines to the CT classes' moving centroids", _PILOT,
        f"{_HERE}.slice_kd:SlicePrototype",
    ),
    MethodRow(
        "slice-crd", "contrast of the batch's CT slices in a learned space, and softened logits",
        "Tian 2020; pilot study", f"{_HERE}.slice_kd:SliceCrd",
    ),
    MethodRow(
        "slice-rkd", "distances and angles between patients as in the CT network", "Park 2019, arXiv 1904.05068",
        f"{_HERE}.slice_kd:SliceRkd",
    ),
    MethodRow(
        "jdcnet", "slice-kd with DPE and MHRA in the teacher, DFPN in the student, as published", _PILOT,
        f"{_HERE}.map_kd:SliceKd", options={"student": "pilot-dfpn", "teacher": "pilot-teacher-full"},
    ),
    MethodRow(
        "clip-alignment", "InfoNCE to frozen CT embeddings, then a linear probe", "X2CT-CLIP, arXiv 2503.02162",
        f"{_HERE}.relational_kd:ClipAlignment",
    ),
    MethodRow(
        "prior", "mean of the head over samples of p(z_CT | z_CXR)", "PE paper, L2",
        f"{_HERE}.prior_method:PriorMethod",
    ),
    MethodRow(
        "prior-l2-bce", "the prior with the head's cross-entropy (0.8 / 0.2)", "PE paper, L2 + BCE",
        f"{_HERE}.prior_method:PriorMethod", options={"objective": {"l2": 0.8, "bce": 0.2}},
    ),
    MethodRow(
        "prior-l2-aft", "the prior with attention blocks", "PE paper, L2 + AFT",
        f"{_HERE}.prior_method:PriorMethod", reconstruction=True,
        options={"objective": {"l2": 0.8, "aft": 0.2}},
    ),
    MethodRow(
        "prior-l2-proto", "the prior with cosines to the prototypes", "PE paper, L2 + Proto",
        f"{_HERE}.prior_method:PriorMethod", reconstruction=True,
        options={"objective": {"l2": 0.8, "proto": 0.2}},
    ),
    MethodRow(
        "prior-contrastive", "the prior with the margin loss in place of L2", "PE paper, contrastive",
        f"{_HERE}.prior_method:PriorMethod", reconstruction=True,
        options={"objective": {"l2": 0.0, "contrastive": 1.0}},
    ),
    MethodRow(
        "prior-no-pretraining", "the prior without the DRR stage", "PE paper, no pretraining",
        f"{_HERE}.prior_method:PriorMethod", options={"pretraining": False},
    ),
    MethodRow(
        "direct-head", "the teacher's probability regressed, no labels: what a prior must match", "control",
        f"{_HERE}.logit_kd:DirectHead", role="control",
    ),
    MethodRow(
        "ridge-head", "ridge regression of the CT embedding, then the head", "control",
        f"{_HERE}.regression_heads:RidgeHead", role="control",
    ),
    MethodRow(
        "kernel-ridge-head", "kernel ridge regression of the CT embedding, then the head", "control",
        f"{_HERE}.regression_heads:KernelRidgeHead", role="control",
    ),
    MethodRow(
        "mlp-head", "a network's regression of the CT embedding, then the head", "control",
        f"{_HERE}.regression_heads:MlpHead", role="control",
    ),
    MethodRow(
        "knn-head", "the head's mean over the CTs of the nearest radiographs", "control",
        f"{_HERE}.retrieval:KnnHead", role="control",
    ),
    MethodRow(
        "logistic", "logistic regression on the radiograph's embedding", "control",
        f"{_HERE}.controls:Logistic", role="control",
    ),
    MethodRow(
        "cxr-only-long", "cxr-only with the steps of two stages: is it longer training?", "control",
        f"{_HERE}.logit_kd:CxrOnly", role="control", options={"step_multiplier": 2},
    ),
    MethodRow(
        "cxr-only-drr", "labels of the DRRs too, no CT embedding: is it more pictures?", "control",
        f"{_HERE}.logit_kd:CxrAndDrr", role="control",
    ),
    MethodRow(
        "same-modality-kd", "a wider radiograph teacher: gains without any CT", _PILOT,
        f"{_HERE}.logit_kd:SameModalityKd", role="control",
    ),
    MethodRow(
        "direct-head-shuffled", "direct-head on pairs shuffled between patients", "control",
        f"{_HERE}.logit_kd:DirectHead", role="control", options={"shuffled": True},
    ),
    MethodRow(
        "ridge-head-shuffled", "ridge-head on pairs shuffled between patients", "control",
        f"{_HERE}.regression_heads:RidgeHead", role="control", options={"shuffled": True},
    ),
    MethodRow(
        "prior-shuffled", "the prior on pairs shuffled between patients", "control",
        f"{_HERE}.prior_method:PriorMethod", role="control", options={"shuffled": True},
    ),
    MethodRow(
        "label-permutation", "cxr-only on labels permuted between patients", "control",
        f"{_HERE}.controls:LabelPermutation", role="control",
    ),
    MethodRow(
        "constant", "the training share of positives, for everybody", "control",
        f"{_HERE}.controls:ConstantMethod", role="control",
    ),
    MethodRow(
        "ct-only", "the CT teacher on the true CT", "PE paper, CTPA-only",
        f"{_HERE}.controls:CtOnly",
    ),
    MethodRow(
        "late-fusion", "one network on both embeddings", _PILOT,
        f"{_HERE}.controls:LateFusion",
    ),
    MethodRow(
        "slice-ct-only", "the network that reads the CT slice: what CT itself knows", _PILOT,
        f"{_HERE}.slice_kd:SliceCtOnly",
    ),
    MethodRow(
        "slice-late-fusion", "radiograph and CT slice, an encoder each, fused", _PILOT,
        f"{_HERE}.slice_kd:SliceLateFusion",
    ),
)  # fmt: skip

DEGENERATE = {
    "dkd": "with two classes the non-target term of DKD is 0 and has no gradient: it is 'hinton-kd'",
    "dist": "with two classes DIST's inter-class correlation is ±1 for every case and has no gradient; only its "
    "intra-class term is left, a correlation of logits over the batch. Use 'hinton-kd'",
}
"""Methods that two classes reduce to another one: refused by name, with the reason (the losses' tests show it)."""
