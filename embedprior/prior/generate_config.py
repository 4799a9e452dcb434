"""Settings of ``embedprior generate`` (torch-free)."""

from __future__ import annotations

from pydantic import Field

from embedprior.config import Config
from embedprior.prior.config import SamplerName, Source


class GenerateConfig(Config):
    """How CT-like embeddings are drawn and measured.

    Attributes:
        sampler: see ``docs/prior.md``.
        steps: network calls per sample.
        samples: drawn per exam for the mean. The Monte-Carlo noise of a mean over few samples reorders cases of like
            risk: 8 cost .01 AUC on a mixture with a known answer, against 64 (docs/generate.md).
        guidance: weight w; 1 is none. Any other voids the variance table, and with it the analytic samplers.
        source: what the exams are: ``cxr`` or ``drr``; each has its own scaler.
        seed: of the noise, and of the halves and intervals of the quality report.
        batch: exams per shard. It changes no number.
        halves: random halvings of the patients behind every distance.
        replicates: of the patient bootstrap.
    """

    sampler: SamplerName = "analytic"
    steps: int = Field(16, ge=1)
    samples: int = Field(64, ge=1)
    guidance: float = 1.0
    source: Source = "cxr"
    seed: int = Field(0, ge=0)
    batch: int = Field(256, ge=1)
    halves: int = Field(20, ge=2)
    replicates: int = Field(1000, ge=100)
