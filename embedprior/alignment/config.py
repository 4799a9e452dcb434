"""Settings of the contrastive alignment (torch-free)."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from embedprior.config import Config
from embedprior.nn.config import SequenceShape

Side = Literal["cxr", "ct", "report"]
SIDES: tuple[Side, ...] = get_args(Side)
MODALITIES: dict[Side, tuple[str, ...]] = {"cxr": ("CXR", "DRR"), "ct": ("CT",), "report": ("REPORT",)}
Weight = Annotated[float, Field(ge=0)]


class PixelShape(Config):
    """The network that reads the radiograph itself: a pretrained encoder, or a small one from random weights.

    Attributes:
        encoder: registry name of a pretrained encoder of radiographs (embedprior encoders), all of which is trained on,
            as X2CT-CLIP does; none: a small convolutional network from random weights.
        options: of that encoder, such as weights, a local file.
        lr: AdamW learning rate of that encoder's weights; its projection takes the alignment's lr.
        batch_norm: frozen keeps that encoder's batch statistics, which small batches would spoil; trained updates them.
        side: pixels per side of the picture that encoder is given; none: as in the cache.
        channels: of the small network's stride-2 convolutions, first to last.
        grid: cells per side that its average pooling keeps; 1 forgets where in the picture something was.
        dropout: before the last layer while training.
        shift: largest random shift of a batch while training, in pixels.
    """

    encoder: str | None = None
    options: dict[str, str | bool] = Field(default_factory=dict)
    lr: float = Field(5e-5, gt=0)
    batch_norm: Literal["frozen", "trained"] = "frozen"
    side: int | None = Field(None, ge=32)
    channels: tuple[int, ...] = (16, 32, 48)
    grid: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    shift: int = Field(3, ge=0)


class AlignmentConfig(Config):
    """L = alpha · L(CT, report) + beta · L(CXR, report) + gamma · L(CXR, CT).

    X2CT-CLIP (arXiv 2503.02162): alpha 0, beta = gamma = 1, and only the radiograph's side is trained.

    Attributes:
        alpha: weight of CT against report; above 0 one of both sides must be trained.
        beta: weight of radiograph against report; 0 without reports.
        gamma: weight of radiograph against CT.
        train_sides: sides that get a projection of their own; the others are used as they are, and give the space its
            length.
        dim: length of the common space; none: that of the sides that are not trained, else 512.
        hidden: width of a hidden layer in each projection; 0 = a linear map without bias, as published.
        dropout: on the input of each projection while training.
        tokens: the model of the radiograph's patch tokens, where its cache holds tokens; its dim is not read.
        pixels: the network of the radiograph's pixels, where its cache holds those (encoder pixels-128).
        temperature: similarities are divided by it.
        learn_temperature: train it too, from this value on; never below 0.01.
        batch_size: patients a step, one pair of each.
        lr: AdamW learning rate.
        weight_decay: AdamW weight decay.
        steps: optimiser steps.
        validate_every: steps between two validations; the step with the lowest validation loss is kept.
        patience: validations in a row without a lower loss after which the training ends; none = never.
        seed: of weights, batches and dropout.
    """

    alpha: Weight = 0.0
    beta: Weight = 1.0
    gamma: Weight = 1.0
    train_sides: tuple[Side, ...] = ("cxr",)
    dim: int | None = Field(None, ge=1)
    hidden: int = Field(0, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    tokens: SequenceShape = SequenceShape(cell="transformer", hidden=64, pool="attention", dropout=0.1)
    pixels: PixelShape = PixelShape()
    temperature: float = Field(0.07, gt=0)
    learn_temperature: bool = False
    batch_size: int = Field(360, ge=2)
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    steps: int = Field(2000, ge=1)
    validate_every: int = Field(50, ge=1)
    patience: int | None = Field(25, ge=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _something_is_learned(self) -> Self:
        if len(set(self.train_sides)) != len(self.train_sides):
            raise ValueError(f"train_sides names a side twice: {', '.join(self.train_sides)}")
        if "cxr" not in self.train_sides:
            raise ValueError("train_sides must hold cxr: the radiograph's side is what is aligned")
        if self.beta == 0 and self.gamma == 0:
            raise ValueError("beta and gamma are both 0: the radiograph would be aligned with nothing")
        if self.alpha > 0 and not {"ct", "report"} & set(self.train_sides):
            raise ValueError("alpha above 0 trains nothing while CT and report are not in train_sides")
        return self

    @property
    def reads_reports(self) -> bool:
        """Whether a term of the objective needs reports."""
        return self.alpha > 0 or self.beta > 0


class TrainAlignmentConfig(Config):
    """What ``embedprior train alignment`` reads, and where it writes.

    Attributes:
        cxr_cache: of the radiographs (or DRRs): embeddings or patch tokens.
        ct_cache: of the CTs.
        report_cache: of the reports; none: the objective must have alpha = beta = 0.
        exams: exam table.
        pairs: pair table; its column report_exam_id, where there is one, names the report of a CT.
        splits: split table.
        out: folder of the alignment.
        design: rows of the split table to use; may be left out when it has one design.
        resample: likewise.
        fold: likewise.
        alignment: objective, projections and budget.
    """

    cxr_cache: str
    ct_cache: str
    report_cache: str | None = None
    exams: str
    pairs: str
    splits: str
    out: str
    design: str | None = None
    resample: int = 0
    fold: int = 0
    alignment: AlignmentConfig = AlignmentConfig()

    @model_validator(mode="after")
    def _reports_where_they_are_read(self) -> Self:
        if self.alignment.reads_reports and self.report_cache is None:
            raise ValueError(
                "alpha or beta is above 0 and no report_cache is given. Next: --report-cache DIR, or --alignment.alpha "
                "0 --alignment.beta 0"
            )
        return self
