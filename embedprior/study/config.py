"""Settings of ``study run`` (torch-free)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from embedprior.config import Config
from embedprior.prior.config import NetworkConfig, PriorConfig, SamplerName, TrainingConfig
from embedprior.students.registry import METHODS
from embedprior.teachers.config import FitConfig

SOURCE_ONLY = "source-only"
"""Control row: the label guessed from where the picture was published."""

# What a target without CT can be scored with.
WITHOUT_CT = frozenset({"cxr-only", "same-modality-kd", SOURCE_ONLY})


class EncoderChoice(Config):
    """The frozen encoder of radiographs and CT key slices.

    Attributes:
        name: registry name; it must read 2D pictures of either modality.
        options: what it takes, such as ``geometry``, or ``weights`` (a local file).
    """

    name: str = "efficientnet-lite0"
    options: dict[str, str | bool] = Field(default_factory=dict)


class PriorChoice(Config):
    """How the row ``prior`` is trained and sampled."""

    training: PriorConfig = PriorConfig(network=NetworkConfig(preset="tiny"), training=TrainingConfig(steps=400))
    samples: int = Field(default=8, gt=0)
    sampler: SamplerName = "analytic"
    steps: int = Field(default=64, gt=0)


class Design(Config):
    """One set of held-out cases and the methods scored on it.

    Attributes:
        name: the ``design`` column of the split table.
        cases: ``paired`` = X-rays that have a CT; ``cxr`` = every labelled X-ray (no CT anywhere).
        split: ``resamples`` (patient-level, drawn by label), ``kfold`` (stratified, grouped) or ``fixed``.
        resamples: how many resamples.
        positives: positive patients held out in each, at most.
        negatives: negative patients held out in each, at most.
        folds: of ``kfold``.
        validation: k-fold: the next fold chooses the checkpoint; without it budgets are fixed.
        methods: registry names, or ``source-only``.
        reference: what every other method is compared with.
        question: one sentence, the heading in the report.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    cases: Literal["paired", "cxr"] = "paired"
    split: Literal["resamples", "kfold", "fixed"] = "kfold"
    resamples: int = Field(default=8, gt=0)
    positives: int = Field(default=4, gt=0)
    negatives: int = Field(default=1, gt=0)
    folds: int = Field(default=5, gt=1)
    validation: bool = False
    methods: tuple[str, ...] = Field(min_length=1)
    reference: str = "cxr-only"
    question: str = ""

    @model_validator(mode="after")
    def _rows_fit_the_cases(self) -> Self:
        from embedprior.errors import nearest

        known = [*METHODS, SOURCE_ONLY]
        for name in self.methods:
            if name not in known:
                raise ValueError(f"unknown method '{name}', allowed: {', '.join(sorted(known))}.{nearest(name, known)}")
            if self.cases == "cxr" and name not in WITHOUT_CT:
                raise ValueError(f"method '{name}' uses CT and can't be in design '{self.name}' (cases: cxr)")
        if len(set(self.methods)) != len(self.methods):
            raise ValueError(f"design '{self.name}' names a method twice")
        if self.reference not in self.methods:
            raise ValueError(f"reference '{self.reference}' is not among the methods of design '{self.name}'")
        if self.validation and self.split == "kfold" and self.folds < 3:
            raise ValueError("validation inside a k-fold needs at least 3 folds")
        return self


class Hypothesis(Config):
    """One pre-declared claim: method ``a`` scores higher than ``b`` in one design.

    ``missing`` says what the claim needs that this study does not run; then it is not testable.
    """

    name: str
    claim: str
    design: str
    a: str | None = None
    b: str | None = None
    missing: str = ""


class StudyConfig(Config):
    """One study: cohort, encoder, designs, budgets.

    Attributes:
        title: of the report.
        source: layout of the data folder (see ``cohort.sources``).
        label: ``label:NAME`` column to predict.
        missing_images: ``error``, or ``drop`` and count.
        duplicates: ``join`` the patients who share a picture into one group, or only ``report`` them.
        seed: of splits and fits.
        batch_size: pictures a forward pass.
        fit: network and budget of teacher head and students, the same for every row.
    """

    title: str
    source: str = "tables"
    label: str
    missing_images: Literal["error", "drop"] = "error"
    duplicates: Literal["join", "report"] = "join"
    seed: int = Field(default=42, ge=0)
    batch_size: int = Field(default=32, gt=0)
    encoder: EncoderChoice = EncoderChoice()
    fit: FitConfig = FitConfig()
    prior: PriorChoice = PriorChoice()
    designs: tuple[Design, ...] = Field(min_length=1)
    hypotheses: tuple[Hypothesis, ...] = ()
    caveats: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_meet(self) -> Self:
        designs = {d.name: d for d in self.designs}
        if len(designs) != len(self.designs):
            raise ValueError("two designs bear one name")
        for h in self.hypotheses:
            if h.design not in designs:
                raise ValueError(f"hypothesis {h.name}: no design '{h.design}'")
            for method in (h.a, h.b):
                if method is not None and method not in designs[h.design].methods:
                    raise ValueError(f"hypothesis {h.name}: design '{h.design}' does not run '{method}'")
            if (h.a is None or h.b is None) and not h.missing:
                raise ValueError(f"hypothesis {h.name}: give both methods, or say in 'missing' what is not run")
        return self
