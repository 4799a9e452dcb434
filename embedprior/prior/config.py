"""Settings of the diffusion prior and of sampling from it (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from embedprior.config import Config

Prediction = Literal["edm", "x0", "epsilon", "v"]
Source = Literal["drr", "cxr"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class NetworkSize:
    """Sizes of the decoder: width, blocks, query heads, width of one head, SwiGLU inner width."""

    dim: int
    depth: int
    heads: int
    head_dim: int
    inner: int


SIZES: dict[str, NetworkSize] = {
    # The size the PE paper's code ships and its text counts (49 M parameters).
    "prior-49m": NetworkSize(dim=512, depth=12, heads=12, head_dim=64, inner=2048),
    # "width 2048, 24 layers" as the paper's text puts it: 1.3 billion parameters, not 49 million.
    "paper-text": NetworkSize(dim=2048, depth=24, heads=32, head_dim=64, inner=8192),
    "tiny": NetworkSize(dim=64, depth=3, heads=2, head_dim=32, inner=128),
}


class NetworkConfig(Config):
    """The decoder. A preset gives every size; a size set here replaces the preset's.

    Attributes:
        preset: ``prior-49m`` of the released size (``docs/prior.md`` lists what differs from the released network),
            ``paper-text`` as the text has it (1.3 billion parameters), ``tiny``.
        dim: width of a token.
        depth: layers.
        heads: query heads, which share one key and value head.
        head_dim: width of a head.
        inner: hidden width of the SwiGLU.

    Example:
        >>> NetworkConfig(preset="tiny", depth=4).size
        NetworkSize(dim=64, depth=4, heads=2, head_dim=32, inner=128)
    """

    preset: Literal["prior-49m", "paper-text", "tiny"] = "prior-49m"
    dim: int | None = Field(default=None, gt=1)
    depth: int | None = Field(default=None, gt=0)
    heads: int | None = Field(default=None, gt=0)
    head_dim: int | None = Field(default=None, gt=0)
    inner: int | None = Field(default=None, gt=0)

    @property
    def size(self) -> NetworkSize:
        """The preset with the sizes set here in place."""
        preset = SIZES[self.preset]
        return NetworkSize(
            dim=self.dim or preset.dim,
            depth=self.depth or preset.depth,
            heads=self.heads or preset.heads,
            head_dim=self.head_dim or preset.head_dim,
            inner=self.inner or preset.inner,
        )


class ProcessConfig(Config):
    """The noising process and what the network predicts.

    Attributes:
        schedule: of the noise.
        timesteps: of the forward process.
        prediction: what the network puts out. ``edm``: x0hat = c_skip · x_n + c_out · output (Karras et al. 2022), so
            that x0hat is exact where there is no noise. ``x0``: the embedding itself, as released; samples are then
            too narrow, because the network has to copy x_n. ``v`` (Salimans and Ho 2022), ``epsilon``: the noise.
        sigma_data: of ``edm``: the spread that c_skip takes the data to have. Standardised data have 1, and c_skip is
            then the best linear denoiser; a smaller one leaves it to the network, which learns two modes sooner.
        condition_dropout: share of training rows that see no condition; guidance needs some.
        condition_noise: while training, standard deviation of Gaussian noise on the standardised condition
            (conditioning augmentation, Ho et al. 2022, JMLR 23(47)). With a few hundred pairs it keeps the network
            from learning them by heart.
        regression: ``ridge``: a linear map of the condition is fitted in closed form, and what is noised and learned
            is what it leaves over. Guidance's branch without condition learns the embedding itself.
        whitening: what is noised is multiplied by the inverse square root of its covariance (that of what the
            regression leaves over, out of sample, shrunk as by Ledoit and Wolf 2004), so that noise reaches all
            directions alike and a Gaussian remainder is sampled exactly.
        null_branch: what guidance compares with. ``keeps_target``: the branch without condition still sees the noised
            target (twice the cost); ``drops_both``: it sees neither, as released.
        guidance: weight w; 1 samples the model itself, anything else voids the variance table and calibration.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "null": "null_branch (keep is keeps_target, both is drops_both)",
    }

    schedule: Literal["cosine", "linear"] = "cosine"
    timesteps: int = Field(default=1000, ge=2)
    prediction: Prediction = "edm"
    sigma_data: float = Field(default=0.5, gt=0.0, le=1.0)
    condition_dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    condition_noise: float = Field(default=0.0, ge=0.0)
    regression: Literal["none", "ridge"] = "none"
    whitening: bool = False
    null_branch: Literal["keeps_target", "drops_both"] = "keeps_target"
    guidance: float = 1.0

    @model_validator(mode="before")
    @classmethod
    def _former_null_key(cls, data: Any) -> Any:
        # YAML reads the bare word null as a key as "nothing"; here it can only be the former name of null_branch.
        if not isinstance(data, dict):
            return data
        return {"null" if key is None else key: value for key, value in data.items()}

    @model_validator(mode="after")
    def _null_branch_is_trained(self) -> Self:
        if self.guidance != 1.0 and self.condition_dropout == 0.0:
            raise ValueError("guidance other than 1 needs a trained null branch: set condition_dropout above 0")
        return self


class ObjectiveConfig(Config):
    """Weights of the named losses; each is logged as ``loss/NAME``.

    With any auxiliary weight above 0 the minimiser is no longer the posterior mean E[z|x].

    Attributes:
        l2: squared error of what the network predicts.
        bce: cross-entropy of the frozen teacher head on x0hat, in the embedding's own scale.
        bce_target: "teacher": the head's own probability of the true CT embedding. "labels": 0/1, unknown left out.
        bce_balanced: with ``labels``: weigh them by n / (2 · n_class), n the labelled training pairs.
        aft: distance of attention blocks, a reconstruction of AFT-KD.
        aft_groups: how many of these blocks.
        proto: distance of the cosines to the class prototypes (ProtoKD).
        contrastive: Chopra's margin loss against other patients' CT embeddings in the batch.
        contrastive_margin: distance of unit vectors at which repulsion ends.
        min_snr_gamma: min-SNR weighting of the L2 term (Hang et al. 2023); None weighs every timestep alike.
    """

    l2: float = Field(default=1.0, ge=0.0)
    bce: float = Field(default=0.0, ge=0.0)
    bce_target: Literal["teacher", "labels"] = "teacher"
    bce_balanced: bool = False
    aft: float = Field(default=0.0, ge=0.0)
    aft_groups: int = Field(default=8, gt=0)
    proto: float = Field(default=0.0, ge=0.0)
    contrastive: float = Field(default=0.0, ge=0.0)
    contrastive_margin: float = Field(default=1.0, gt=0.0, le=2.0)
    min_snr_gamma: float | None = Field(default=None, gt=0.0)

    @property
    def auxiliary_weights(self) -> dict[str, float]:
        """The terms on x0hat that are in use, with their weights."""
        weights = {"bce": self.bce, "aft": self.aft, "proto": self.proto, "contrastive": self.contrastive}
        return {name: weight for name, weight in weights.items() if weight > 0}

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.l2 == 0.0 and not self.auxiliary_weights:
            raise ValueError("every loss weight is 0: nothing would be learned")
        if self.bce_balanced and self.bce_target != "labels":
            raise ValueError("bce_balanced weighs labels: it needs bce_target 'labels'")
        return self


class TrainingConfig(Config):
    """The optimisation.

    Attributes:
        steps: of the optimiser.
        batch: pairs a step, over all processes.
        accumulate: parts in which each process computes its share of a batch, one after the other; their gradients
            add up to that of the whole, with less memory.
        lr: AdamW learning rate.
        weight_decay: AdamW weight decay.
        betas: of AdamW.
        warmup: steps of linear warm-up.
        clip: largest norm of the gradient.
        ema: decay of the averaged weights, which are the ones that are used.
        precision: of the arithmetic. ``fp16`` scales the loss so that small gradients do not vanish, and skips a step
            whose gradients overflow (Micikevicius et al. 2018, arXiv 1710.03740).
        validate_every: steps between two validations; the weights of the best one are kept.
        validation_bins: of timesteps, each with its own validation loss.
        patience: validations without a better one after which training stops; None trains all steps.
        checkpoint_every: steps between two checkpoints.
        variance_nodes: timesteps at which the error on the validation pairs is measured, for Analytic-DPM.
        variance_draws: noise drawn for each validation pair at each of them.
        seed: of initial weights, noise and order.
    """

    steps: int = Field(default=12_000, gt=0)
    batch: int = Field(default=64, gt=0)
    accumulate: int = Field(default=1, gt=0)
    lr: float = Field(default=1.1e-4, gt=0.0)
    weight_decay: float = Field(default=6.02e-2, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = Field(default=50, ge=0)
    clip: float = Field(default=0.5, gt=0.0)
    ema: float = Field(default=0.9999, ge=0.0, lt=1.0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    validate_every: int = Field(default=500, gt=0)
    validation_bins: int = Field(default=10, gt=0)
    patience: int | None = Field(default=None, gt=0)
    checkpoint_every: int = Field(default=1000, gt=0)
    variance_nodes: int = Field(default=64, ge=2)
    variance_draws: int = Field(default=4, gt=0)
    seed: int = Field(default=0, ge=0)


AUTO_KEEPS = frozenset({"steps", "batch", "accumulate", "precision", "seed"})
"""Of ``training``: what ``settings: auto`` leaves as it is given."""


class PriorConfig(Config):
    """Everything that decides what a prior becomes, given its pairs.

    Attributes:
        settings: ``auto``: a few candidates for network, process and training are compared on the validation pairs; the
            objective, and the training's steps, batch, precision and seed, are as given here. ``given``: everything is.
            Left out, it is ``auto`` where neither network, process nor training is set.

    Example:
        >>> PriorConfig().settings, PriorConfig(network=NetworkConfig(preset="tiny")).settings
        ('auto', 'given')
    """

    settings: Literal["auto", "given"] = "given"
    network: NetworkConfig = NetworkConfig()
    process: ProcessConfig = ProcessConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="before")
    @classmethod
    def _auto_where_nothing_is_set(cls, data: Any) -> Any:
        if not isinstance(data, dict) or {"settings", "network", "process", "training"} & set(data):
            return data
        return {**data, "settings": "auto"}

    @model_validator(mode="after")
    def _auto_leaves_nothing_unread(self) -> Self:
        if self.settings == "given":
            return self
        for group in ("network", "process", "training"):
            section = getattr(self, group)
            kept = AUTO_KEEPS if group == "training" else frozenset[str]()
            for name in type(section).model_fields:
                if name not in kept and getattr(section, name) != getattr(type(section)(), name):
                    raise ValueError(f"settings 'auto' chooses {group}.{name} itself: leave it out, or say 'given'")
        return self

    @model_validator(mode="after")
    def _nodes_fit_the_timesteps(self) -> Self:
        if self.training.validation_bins > self.process.timesteps:
            raise ValueError("validation_bins must not exceed timesteps")
        return self

    @model_validator(mode="after")
    def _x0hat_is_well_conditioned(self) -> Self:
        if self.objective.auxiliary_weights and self.process.prediction == "epsilon":
            term = next(iter(self.objective.auxiliary_weights))
            raise ValueError(
                f"objective.{term} needs prediction 'edm', 'x0' or 'v': an x0hat made from the noise is unknown at the "
                "last timesteps, where it would be divided by next to nothing"
            )
        return self


SamplerName = Literal["analytic", "analytic_diag", "ddpm_small", "ddpm_big", "ddim", "dpm_solver"]


class SamplerConfig(Config):
    """How a sample is drawn.

    ``family`` decides the forward family's lambda squared: DDPM's beta-tilde, or eta squared times it (DDIM).
    ``variance`` is what is added on the way back. ``dpm_solver`` (2M) is deterministic after its start.
    """

    family: Literal["ddpm", "ddim", "dpm_solver"] = "ddpm"
    variance: Literal["small", "big", "analytic", "analytic_diag"] = "analytic"
    trajectory: Literal["even", "log_snr", "optimal"] = "even"
    eta: float = Field(default=0.0, ge=0.0, le=1.0)
    steps: int = Field(default=64, gt=0)

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.family != "ddim" and self.eta != 0.0:
            raise ValueError("eta belongs to family 'ddim'")
        if self.family != "ddpm" and self.variance == "big":
            raise ValueError("variance 'big' belongs to family 'ddpm'")
        if self.family != "ddpm" and self.trajectory == "optimal":
            raise ValueError("trajectory 'optimal' is defined for family 'ddpm' only (its cost diverges elsewhere)")
        if self.family == "dpm_solver" and self.variance != "small":
            raise ValueError("family 'dpm_solver' adds no noise: set variance 'small'")
        return self


def named_sampler(name: SamplerName, steps: int) -> SamplerConfig:
    """Return the settings behind a sampler's short name.

    Example:
        >>> named_sampler("dpm_solver", 16).trajectory
        'log_snr'
    """
    if name == "ddim":
        return SamplerConfig(family="ddim", variance="small", steps=steps)
    if name == "dpm_solver":
        return SamplerConfig(family="dpm_solver", variance="small", trajectory="log_snr", steps=steps)
    if name in ("ddpm_small", "ddpm_big"):
        return SamplerConfig(variance="small" if name == "ddpm_small" else "big", steps=steps)
    return SamplerConfig(variance="analytic" if name == "analytic" else "analytic_diag", steps=steps)


class TrainPriorConfig(Config):
    """What ``train_prior.py`` reads: where the pairs are, and how the prior is made.

    Attributes:
        condition_cache, target_cache: embedding caches of the radiographs (or DRRs) and of the CTs. The first may
            hold tokens (slices, patches); exams with fewer are padded, and the padding is masked.
        pairs, splits: CSV tables, see ``docs/formats.md``.
        views: columns of the pair table with the exams that make up a condition; only the first must be filled.
        design: rows of the split table to use; may be left out when it has one design.
        resample, fold: likewise.
        source: what the conditions are; each source has its own scaler.
        teacher: folder of a trained CT teacher, for the BCE term and the teacher's AUC.
        exams: exam table. It keeps only the pairs whose radiograph is of the ``source``'s modality.
        label: one of its labels, for the teacher's AUC and for hard-label terms.
        label_of: whether the label of a pair is that of its CT or of its radiograph.
        init_from: folder of a prior to start from (second stage).
        out: folder of the training.
        trackers: packages that ``metrics.jsonl`` is also sent to, through accelerate.
        made_by: the command that makes the caches, named when they are missing.
    """

    condition_cache: str
    target_cache: str
    pairs: str
    splits: str
    out: str
    views: tuple[str, ...] = Field(default=("cxr_exam_id",), min_length=1)
    design: str | None = None
    resample: int = 0
    fold: int = 0
    source: Source = "cxr"
    teacher: str | None = None
    exams: str | None = None
    label: str | None = None
    label_of: Literal["ct", "cxr"] = "ct"
    init_from: str | None = None
    trackers: tuple[Tracker, ...] = ()
    made_by: str = "embedprior embed"
    prior: PriorConfig = PriorConfig()

    @model_validator(mode="after")
    def _labels_have_a_table(self) -> Self:
        if self.exams is None and self.label is not None:
            raise ValueError("label needs exams, the exam table that holds it")
        return self


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
