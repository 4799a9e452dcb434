"""What every row of a comparison is given alike (torch-free)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from embedprior.config import Config
from embedprior.prior.config import PriorConfig, SamplerName
from embedprior.teachers.config import FitConfig

InputKind = Literal["embedding", "tokens", "pixels"]
Balance = Literal["none", "class-weights", "sampler"]


class Augmentation(Config):
    """Random changes of a radiograph while a pixel student trains.

    Attributes:
        flip: left to right, half of the time. A method that uses CT then needs the embedding of the flipped CT too
            (``Cases.ct_mirrored``): a flipped radiograph is never set beside a CT that is not.
        shift: pixels by which it moves at most along each axis; a frozen CT embedding is taken to be the same.
    """

    flip: bool = False
    shift: int = Field(default=0, ge=0)


class Budget(Config):
    """The same for every row of a comparison.

    Attributes:
        fit: size of the shared student network and of every other small network, and their optimisation.
        balance: of the labelled cases, the same for every method: ``class-weights`` weighs their loss by
            n / (2 · n_class), ``sampler`` draws both classes equally often.
        augment: of the radiographs of pixel students.
        stages: settings of the prior in each training stage, first to last; the last one serves any further stage.
        artifacts: folder under which trained priors are kept; None keeps them for this process only.
        samples: CT embeddings a prior draws per case.
        sampler: see ``embedprior.prior``.
        steps: network calls per sample.
    """

    fit: FitConfig = FitConfig()
    balance: Balance = "none"
    augment: Augmentation = Augmentation()
    stages: tuple[PriorConfig, ...] = Field(default=(PriorConfig(),), min_length=1)
    artifacts: Path | None = None
    samples: int = Field(default=64, gt=0)
    sampler: SamplerName = "analytic"
    steps: int = Field(default=16, gt=0)
