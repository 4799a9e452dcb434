"""Settings of the demo (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from embedprior.config import Config
from embedprior.encoders.config import CnnConfig
from embedprior.nn.config import FitConfig
from embedprior.phantom.findings import PhantomConfig
from embedprior.prior.config import PriorConfig, SamplerName


class CohortConfig(Config):
    """How many virtual patients play which part.

    Attributes:
        pretrain_train: with a CT only; their radiograph is a DRR. They train encoders, teacher and pretraining.
        pretrain_val: likewise, for choosing checkpoints.
        train: with CT and radiograph.
        val: likewise, for choosing checkpoints.
        test: held out; nothing is fitted or chosen on them.
        radiograph_size: pixels along each side.
    """

    pretrain_train: int = Field(500, ge=2)
    pretrain_val: int = Field(80, ge=2)
    train: int = Field(300, ge=2)
    val: int = Field(100, ge=2)
    test: int = Field(300, ge=4)
    radiograph_size: int = Field(96, ge=16)


class CtEncoderConfig(CnnConfig):
    """Slice encoder and its preprocessing.

    Attributes:
        window: HU that become black and white.
        slab: slices of which the maximum is taken.
        slabs_per_patient: slabs without lesion that each training CT gives, beside those with.
        slices: as in ``CnnConfig``.
    """

    window: tuple[float, float] = (-1000.0, 400.0)
    slab: int = Field(2, ge=1)
    slabs_per_patient: int = Field(4, ge=1)
    slices: Literal["mean", "mean and max"] = "mean and max"
    dim: int = Field(32, ge=1)


class PriorStages(Config):
    """The prior's two stages, and how it is sampled.

    Attributes:
        pretrain: on DRR–CT pairs.
        finetune: on radiograph–CT pairs.
        samples: CT embeddings drawn per held-out case.
        sampler: see ``docs/prior.md``.
        steps: network calls per sample.
    """

    pretrain: PriorConfig = PriorConfig()
    finetune: PriorConfig = PriorConfig()
    samples: int = Field(8, ge=1)
    sampler: SamplerName = "analytic"
    steps: int = Field(64, ge=2)


class CxrEncoderConfig(CnnConfig):
    """Radiograph encoder: where something is matters, so the grid is finer."""

    grid: int = Field(6, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)


class DemoConfig(Config):
    """Everything that decides the demo's numbers, beside the seed."""

    renamed: ClassVar[Mapping[str, str]] = {"fits": "num_seeds"}

    cohort: CohortConfig = CohortConfig()
    phantom: PhantomConfig = PhantomConfig()
    ct_encoder: CtEncoderConfig = CtEncoderConfig()
    cxr_encoder: CxrEncoderConfig = CxrEncoderConfig()
    teacher: FitConfig = FitConfig()
    student: FitConfig = FitConfig()
    prior: PriorStages = PriorStages()
    num_seeds: int = Field(
        3, ge=1, description="how often everything after the caches is fitted, each with its own seed"
    )
