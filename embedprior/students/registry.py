"""Methods by name: what each is, and how it is built. Torch-free; code is imported only when a method is built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, cast

from embedprior.errors import BadInput, choose
from embedprior.students.config import Augmentation, Balance, Budget, InputKind

if TYPE_CHECKING:  # arrays would double the time that --help takes
    from embedprior.students.base import Method

__all__ = [
    "DEGENERATE", "METHODS", "Augmentation", "Balance", "Budget", "InputKind", "MethodInfo", "build_method",
    "methods",
]  # fmt: skip
ENTRY_POINTS = "embedprior.methods"


@dataclass(frozen=True)
class MethodInfo:
    """What a method is, for tables and for checks that must not import it.

    Attributes:
        name: registry name; the ``method`` column of a predictions table.
        summary: one line.
        source: paper or reason.
        build: import string of its class.
        inputs: what its student can read.
        needs_ct: CT at inference (an oracle: shown, never ranked with deployable rows).
        uses_ct: CT takes part in its training.
        needs_teacher: it can't be fitted without a CT teacher head.
        reconstruction: a detail that its paper does not give was filled in (the docstring says which).
        role: ``row`` of a paper, ``control``, or ``oracle``.
        takes: which part of the budget it reads: the student's (``fit``), the prior's, or none.
        options: settings of its class that make it this row.
        version: raised when its numbers change; part of every fit's code tag.
    """

    name: str
    summary: str
    source: str
    build: str
    inputs: tuple[InputKind, ...] = ("embedding",)
    needs_ct: bool = False
    uses_ct: bool = True
    needs_teacher: bool = True
    reconstruction: bool = False
    role: Literal["row", "control", "oracle"] = "row"
    takes: Literal["fit", "prior", "nothing"] = "fit"
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


def _table(*infos: MethodInfo) -> dict[str, MethodInfo]:
    return {info.name: info for info in infos}


_HERE = "embedprior.students"
_ANY: tuple[InputKind, ...] = ("embedding", "tokens", "pixels")
_PILOT = "pilot study, arXiv 2603.29167"
METHODS: dict[str, MethodInfo] = _table(
    MethodInfo(
        "cxr-only", "labels and radiographs only: the reference", "PE paper, CXR-only",
        f"{_HERE}.logit_kd:CxrOnly", _ANY, uses_ct=False, needs_teacher=False,
    ),
    MethodInfo(
        "hinton-kd", "labels, and the CT teacher's softened output", "Hinton 2015, arXiv 1503.02531",
        f"{_HERE}.logit_kd:HintonKd", _ANY,
    ),
    MethodInfo(
        "discom-kd", "disentangled parts of both modalities, no teacher", "BMVC 2024, arXiv 2408.07080",
        f"{_HERE}.feature_kd:DiscomKd", _ANY, needs_teacher=False,
    ),
    MethodInfo(
        "aft-kd", "attention ⊗ feature blocks of the CT embedding", "Yang 2023, Sci Rep 13:18369 (abstract)",
        f"{_HERE}.feature_kd:AftKd", _ANY, reconstruction=True,
    ),
    MethodInfo(
        "proto-kd", "cosines to the class prototypes", "ICASSP 2023, arXiv 2303.09830",
        f"{_HERE}.feature_kd:ProtoKd", _ANY,
    ),
    MethodInfo(
        "contrastive-kd", "near the own CT, a margin from other patients'", "Hadsell 2006; PE paper, contrastive",
        f"{_HERE}.feature_kd:ContrastiveKd", _ANY, needs_teacher=False, reconstruction=True,
    ),
    MethodInfo(
        "fitnets", "a linear map of the student's features hits the CT embedding", "Romero 2015, arXiv 1412.6550",
        f"{_HERE}.feature_kd:FitNets", _ANY, needs_teacher=False,
    ),
    MethodInfo(
        "rkd", "distances between patients as in CT", "Park 2019, arXiv 1904.05068",
        f"{_HERE}.relational_kd:Rkd", _ANY, needs_teacher=False,
    ),
    MethodInfo(
        "clip-alignment", "InfoNCE to frozen CT embeddings, then a linear probe", "X2CT-CLIP, arXiv 2503.02162",
        f"{_HERE}.relational_kd:ClipAlignment", _ANY, needs_teacher=False,
    ),
    MethodInfo(
        "prior", "mean of the head over samples of p(z_CT | z_CXR)", "PE paper, L2",
        f"{_HERE}.prior_method:PriorMethod", takes="prior", version=2,
    ),
    MethodInfo(
        "prior-l2-bce", "the prior with the head's cross-entropy (0.8 / 0.2)", "PE paper, L2 + BCE",
        f"{_HERE}.prior_method:PriorMethod", takes="prior", version=2, options={"objective": {"l2": 0.8, "bce": 0.2}},
    ),
    MethodInfo(
        "prior-l2-aft", "the prior with attention blocks", "PE paper, L2 + AFT",
        f"{_HERE}.prior_method:PriorMethod", reconstruction=True, takes="prior", version=2,
        options={"objective": {"l2": 0.8, "aft": 0.2}},
    ),
    MethodInfo(
        "prior-l2-proto", "the prior with cosines to the prototypes", "PE paper, L2 + Proto",
        f"{_HERE}.prior_method:PriorMethod", reconstruction=True, takes="prior", version=2,
        options={"objective": {"l2": 0.8, "proto": 0.2}},
    ),
    MethodInfo(
        "prior-contrastive", "the prior with the margin loss in place of L2", "PE paper, contrastive",
        f"{_HERE}.prior_method:PriorMethod", reconstruction=True, takes="prior", version=2,
        options={"objective": {"l2": 0.0, "contrastive": 1.0}},
    ),
    MethodInfo(
        "prior-no-pretraining", "the prior without the DRR stage", "PE paper, no pretraining",
        f"{_HERE}.prior_method:PriorMethod", takes="prior", version=2, options={"pretraining": False},
    ),
    MethodInfo(
        "direct-head", "the teacher's probability regressed, no labels: what a prior must match", "control",
        f"{_HERE}.logit_kd:DirectHead", _ANY, role="control",
    ),
    MethodInfo(
        "ridge-head", "ridge regression of the CT embedding, then the head", "control",
        f"{_HERE}.regression_heads:RidgeHead", role="control", takes="nothing",
    ),
    MethodInfo(
        "kernel-ridge-head", "kernel ridge regression of the CT embedding, then the head", "control",
        f"{_HERE}.regression_heads:KernelRidgeHead", role="control", takes="nothing",
    ),
    MethodInfo(
        "mlp-head", "a network's regression of the CT embedding, then the head", "control",
        f"{_HERE}.regression_heads:MlpHead", role="control",
    ),
    MethodInfo(
        "knn-head", "the head's mean over the CTs of the nearest radiographs", "control",
        f"{_HERE}.retrieval:KnnHead", role="control", takes="nothing",
    ),
    MethodInfo(
        "logistic", "logistic regression on the radiograph's embedding", "control",
        f"{_HERE}.controls:Logistic", uses_ct=False, needs_teacher=False, role="control", takes="nothing",
    ),
    MethodInfo(
        "cxr-only-long", "cxr-only with the steps of two stages: is it longer training?", "control",
        f"{_HERE}.logit_kd:CxrOnly", _ANY, uses_ct=False, needs_teacher=False, role="control",
        options={"step_multiplier": 2},
    ),
    MethodInfo(
        "cxr-only-drr", "labels of the DRRs too, no CT embedding: is it more pictures?", "control",
        f"{_HERE}.logit_kd:CxrAndDrr", _ANY, needs_teacher=False, role="control",
    ),
    MethodInfo(
        "same-modality-kd", "a wider radiograph teacher: gains without any CT", _PILOT,
        f"{_HERE}.logit_kd:SameModalityKd", _ANY, uses_ct=False, needs_teacher=False, role="control",
    ),
    MethodInfo(
        "direct-head-shuffled", "direct-head on pairs shuffled between patients", "control",
        f"{_HERE}.logit_kd:DirectHead", _ANY, role="control", options={"shuffled": True},
    ),
    MethodInfo(
        "ridge-head-shuffled", "ridge-head on pairs shuffled between patients", "control",
        f"{_HERE}.regression_heads:RidgeHead", role="control", takes="nothing", options={"shuffled": True},
    ),
    MethodInfo(
        "prior-shuffled", "the prior on pairs shuffled between patients", "control",
        f"{_HERE}.prior_method:PriorMethod", role="control", takes="prior", version=2, options={"shuffled": True},
    ),
    MethodInfo(
        "label-permutation", "cxr-only on labels permuted between patients", "control",
        f"{_HERE}.controls:LabelPermutation", _ANY, uses_ct=False, needs_teacher=False, role="control", version=2,
    ),
    MethodInfo(
        "constant", "the training share of positives, for everybody", "control",
        f"{_HERE}.controls:ConstantMethod", uses_ct=False, needs_teacher=False, role="control", takes="nothing",
    ),
    MethodInfo(
        "ct-only", "the CT teacher on the true CT", "PE paper, CTPA-only",
        f"{_HERE}.controls:CtOnly", needs_ct=True, role="oracle", takes="nothing",
    ),
    MethodInfo(
        "late-fusion", "one network on both embeddings", _PILOT,
        f"{_HERE}.controls:LateFusion", needs_ct=True, needs_teacher=False, role="oracle",
    ),
)  # fmt: skip

DEGENERATE = {
    "dkd": "with two classes the non-target term of DKD is 0 and has no gradient: it is 'hinton-kd'",
    "dist": "with two classes DIST's inter-class correlation is ±1 for every case and has no gradient; only its "
    "intra-class term is left, a correlation of logits over the batch. Use 'hinton-kd'",
}
"""Methods that two classes reduce to another one: refused by name, with the reason (the losses' tests show it)."""


def methods() -> dict[str, MethodInfo]:
    """Return every method: the package's own, and those of installed packages (entry points, see CONTRIBUTING).

    Raises:
        BadInput: a foreign entry can't be loaded, is no ``MethodInfo``, or takes a name that is taken.
    """
    found = dict(METHODS)
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            info = entry.load()
        except Exception as error:  # whatever a foreign module raises while it is imported
            raise BadInput(
                f"entry point '{entry.value}' of {ENTRY_POINTS} can't be loaded ({type(error).__name__}: {error}). "
                "Next: mend the package that declares it, or uninstall it"
            ) from error
        if not isinstance(info, MethodInfo):
            raise BadInput(f"entry point '{entry.value}' of {ENTRY_POINTS} is a {type(info).__name__}, no MethodInfo.")
        if info.name in found:
            raise BadInput(f"entry point '{entry.value}' of {ENTRY_POINTS}: the name '{info.name}' is taken.")
        found[info.name] = info
    return found


def build_method(name: str, budget: Budget | None = None, **options: Any) -> Method:
    """Return a method with its share of the budget.

    Args:
        name: one of ``methods()``.
        budget: the same for every row; None = the defaults.
        options: settings of the method itself, over those of its registry entry.

    Raises:
        BadInput: unknown or degenerate name, an input the method can't read, or an option or a value that it does
            not take.
    """
    if name in DEGENERATE:
        raise BadInput(f"method '{name}': {DEGENERATE[name]}. Next: embedprior methods")
    from embedprior.students.config import checked

    info = choose("method", name, methods())
    kind = options.get("inputs", "embedding")
    if kind not in info.inputs:
        raise BadInput(f"method '{name}' can't read {kind}. Allowed: {', '.join(info.inputs)}.")
    if info.inputs == ("embedding",):
        options.pop("inputs", None)
    module, _, attribute = info.build.partition(":")
    built = getattr(importlib.import_module(module), attribute)
    own = checked(name, built, {**info.options, **options})
    try:
        return cast("Method", built(name=info.name, budget=budget or Budget(), **own))
    except TypeError as error:
        raise BadInput(f"method '{name}': {error}") from error
