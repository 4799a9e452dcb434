"""Methods by name: what each is, and how it is built. Torch-free; code is imported only when a method is built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field

from embedprior.config import Config
from embedprior.errors import BadInput, choose
from embedprior.prior.config import PriorConfig, SamplerName
from embedprior.students.base import Method
from embedprior.teachers.config import FitConfig

InputKind = Literal["embedding", "tokens", "pixels"]
Balance = Literal["none", "class-weights", "sampler"]
ENTRY_POINTS = "embedprior.methods"


class Budget(Config):
    """What every row of a comparison is given alike.

    Attributes:
        fit: size of the shared student network and of every other small network, and their optimisation.
        balance: of the labelled cases, the same for every method: ``class-weights`` weighs their loss by
            n / (2 · n_class), ``sampler`` draws both classes equally often.
        stages: settings of the prior in each training stage, first to last; the last one serves any further stage.
        artifacts: folder under which trained priors are kept; None keeps them for this process only.
        samples: CT embeddings a prior draws per case.
        sampler: see ``embedprior.prior``.
        steps: network calls per sample.
    """

    fit: FitConfig = FitConfig()
    balance: Balance = "none"
    stages: tuple[PriorConfig, ...] = Field(default=(PriorConfig(),), min_length=1)
    artifacts: Path | None = None
    samples: int = Field(default=8, gt=0)
    sampler: SamplerName = "analytic"
    steps: int = Field(default=64, gt=0)


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
        takes: which part of the budget it reads (both priors and students may be cut short by ``fit``).
        options: settings of its class that make it this row.
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


def _table(*infos: MethodInfo) -> dict[str, MethodInfo]:
    return {info.name: info for info in infos}


_HERE = "embedprior.students"
METHODS: dict[str, MethodInfo] = _table(
    MethodInfo(
        "cxr-only", "labels and radiographs only: the reference", "PE paper, CXR-only",
        f"{_HERE}.plain:CxrOnly", uses_ct=False, needs_teacher=False,
    ),
    MethodInfo(
        "ct-only", "the CT teacher on the true CT", "PE paper, CTPA-only",
        f"{_HERE}.oracles:CtOnly", needs_ct=True, role="oracle", takes="nothing",
    ),
    MethodInfo(
        "late-fusion", "one network on both embeddings", "pilot study (arXiv 2603.29167)",
        f"{_HERE}.oracles:LateFusion", needs_ct=True, needs_teacher=False, role="oracle",
    ),
    MethodInfo(
        "same-modality-kd", "a wider radiograph teacher: gains without any CT", "pilot study (arXiv 2603.29167)",
        f"{_HERE}.distil:SameModalityKd", uses_ct=False, needs_teacher=False, role="control",
    ),
    MethodInfo(
        "hinton-kd", "labels and the teacher's softened output", "Hinton 2015 (arXiv 1503.02531)",
        f"{_HERE}.distil:HintonKd",
    ),
    MethodInfo(
        "direct-head", "the teacher's probability regressed, no labels: what a prior must match", "control",
        f"{_HERE}.distil:DirectHead", role="control",
    ),
    MethodInfo(
        "ridge-head", "ridge regression of the CT embedding, then the head", "control",
        f"{_HERE}.regression:RidgeHead", role="control", takes="nothing",
    ),
    MethodInfo(
        "prior", "mean of the head over samples of p(z_CT | z_CXR)", "PE paper, L2",
        f"{_HERE}.prior_method:PriorMethod", takes="prior",
    ),
    MethodInfo(
        "prior-shuffled", "the prior trained on pairs shuffled between patients", "control",
        f"{_HERE}.prior_method:ShuffledPriorMethod", role="control", takes="prior",
    ),
)  # fmt: skip


def methods() -> dict[str, MethodInfo]:
    """Return every method: the package's own, and those of installed packages (entry points, see CONTRIBUTING).

    Raises:
        BadInput: a foreign entry is no ``MethodInfo``, or takes a name that is taken.
    """
    found = dict(METHODS)
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        info = entry.load()
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
        BadInput: unknown name, or an option it does not take.
    """
    info = choose("method", name, methods())
    share = _share(info, budget or Budget())
    return _made(info, {**share, **info.options, **options})


def create_method(name: str, **options: Any) -> Method:
    """Return a method from its own settings (no shared budget).

    Raises:
        BadInput: unknown name, or an option it does not take.
    """
    info = choose("method", name, methods())
    return _made(info, {**info.options, **options})


def _share(info: MethodInfo, budget: Budget) -> dict[str, Any]:
    if info.takes == "nothing":
        return {}
    if info.takes == "fit":
        return {"fit_config": budget.fit}
    return {
        "stages": budget.stages, "folder": budget.artifacts, "samples": budget.samples, "sampler": budget.sampler,
        "steps": budget.steps,
    }  # fmt: skip


def _made(info: MethodInfo, settings: Mapping[str, Any]) -> Method:
    module, _, attribute = info.build.partition(":")
    try:
        return cast(Method, getattr(importlib.import_module(module), attribute)(**settings))
    except TypeError as error:
        raise BadInput(f"method '{info.name}': {error}") from error
