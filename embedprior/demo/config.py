"""Settings of the demo (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from embedprior.config import Config
from embedprior.encoders.config import CnnConfig
from embedprior.nn.config import FitConfig
from embedprior.phantom.findings import PhantomConfig
from embedprior.prior.config import PriorConfig, SamplerName


class CohortConfig(Config):
    """How many virtual patients play which part, and who has a label.

    Attributes:
        pretrain_train: with a labelled CT and no radiograph but a DRR of it. They train CT encoder, CT head and
            pretraining.
        pretrain_val: likewise, for choosing checkpoints.
        train: pairs, with CT and radiograph.
        val: likewise, for choosing checkpoints.
        test: held out; nothing is fitted or chosen on them.
        few_labels: labelled radiographs of the training pairs in the world of few labels; as large a share of the
            validation pairs is labelled. None: there is no such world.
        label_counts: others to draw the label curve with, of the methods that read labels.
        pair_ct_labels: the CTs of the pairs bear a label of their own, too, and train CT encoder and CT head.
        radiograph_size: pixels along each side.
    """

    pretrain_train: int = Field(400, ge=2)
    pretrain_val: int = Field(60, ge=2)
    train: int = Field(500, ge=2)
    val: int = Field(100, ge=2)
    test: int = Field(300, ge=4)
    few_labels: int | None = Field(32, ge=4)
    label_counts: tuple[int, ...] = (64, 128)
    pair_ct_labels: bool = False
    radiograph_size: int = Field(112, ge=16)

    @model_validator(mode="after")
    def _counts_are_of_training_pairs(self) -> Self:
        counts = [c for c in (self.few_labels, *self.label_counts) if c is not None]
        wrong = [c for c in counts if not max(4, 0.01 * self.train) <= c < self.train]
        if wrong or len(set(counts)) != len(counts):
            raise ValueError(
                f"few_labels and label_counts are {', '.join(map(str, counts))}; allowed: different numbers from "
                f"{max(4, -(-self.train // 100))} to {self.train - 1} of the {self.train} training pairs"
            )
        return self

    def label_share(self, count: int) -> float:
        """Return the share of the training pairs that a number of labelled radiographs is.

        Example:
            >>> CohortConfig(train=500).label_share(32)
            0.064
        """
        return count / self.train


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
    """The prior's two stages, and how it is sampled, where the settings are not the default ones.

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
    """Everything that decides the demo's numbers, beside the seed.

    Attributes:
        cohort: how many patients of which kind.
        phantom: the population.
        ct_encoder: trained on the slices of labelled CTs, then frozen.
        cxr_encoder_name: of radiographs and DRRs, frozen: ``efficientnet-lite0`` has seen none of their labels;
            ``radiograph-cnn`` is trained on all of those of the training pairs.
        cxr_encoder: how ``radiograph-cnn`` is trained.
        teacher: of the CT head; None = as ``student``.
        student: network and budget of the students; None = each method chooses among a few on the validation pairs.
        prior: None = the prior's default settings.
        num_seeds: how often everything after the caches is fitted.
    """

    renamed: ClassVar[Mapping[str, str]] = {"fits": "num_seeds"}

    cohort: CohortConfig = CohortConfig()
    phantom: PhantomConfig = PhantomConfig()
    ct_encoder: CtEncoderConfig = CtEncoderConfig()
    cxr_encoder_name: Literal["efficientnet-lite0", "radiograph-cnn"] = "efficientnet-lite0"
    cxr_encoder: CxrEncoderConfig = CxrEncoderConfig()
    teacher: FitConfig | None = None
    student: FitConfig | None = None
    prior: PriorStages | None = None
    num_seeds: int = Field(
        3, ge=1, description="how often everything after the caches is fitted, each with its own seed"
    )
