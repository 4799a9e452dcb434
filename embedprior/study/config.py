"""Settings of a study (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from embedprior.config import Config
from embedprior.errors import nearest
from embedprior.nn.config import FitConfig
from embedprior.prior.config import PriorConfig, SamplerName
from embedprior.students.registry import (
    Augmentation,
    Balance,
    MethodInfo,
    MethodRow,
    describe_row,
    method_names,
    methods,
)

if TYPE_CHECKING:
    from embedprior.evidence import Claim

SOURCE_ONLY = "source-only"
"""Control method: the label guessed from where the picture was published."""

SOURCE_ONLY_ROW = MethodRow(
    SOURCE_ONLY, "the label guessed from where the picture was published", "control",
    "embedprior.study.confounding:SourceOnly", role="control",
)  # fmt: skip
MIN_SEEDS = 3
MACRO = "macro"
"""Name of the mean over labels, in place of a label's."""


class EncoderChoice(Config):
    """The frozen encoder of radiographs and CT key slices.

    Attributes:
        name: registry name; it must read 2D pictures of either modality.
        options: what it takes, such as ``geometry``, or ``weights`` (a local file).
    """

    name: str = "efficientnet-lite0"
    options: dict[str, str | bool] = Field(default_factory=dict)


class CacheChoice(Config):
    """Embeddings that exist already (paths relative to the cohort's folder); then no picture is read.

    Attributes:
        cxr: cache of the radiographs, and of the DRRs where there are pretraining pairs.
        ct: cache of the CTs; needed by designs of paired cases.
        pixels: ``pixels-128`` cache of the radiographs, for students that read pixels.
        tokens: cache of patch tokens of the radiographs, for students that read tokens.
    """

    cxr: str
    ct: str | None = None
    pixels: str | None = None
    tokens: str | None = None


class PriorChoice(Config):
    """How the prior methods are trained and sampled.

    Attributes:
        training: on X-ray–CT pairs (and on DRR–CT pairs, unless ``pretrain`` is given). Left out, settings are chosen
            on the validation pairs (``prior.search``).
        pretrain: on DRR–CT pairs, where the cohort has any.
        samples: CT embeddings drawn per case; the chance of few reorders cases of like risk (docs/generate.md).
        sampler: see ``docs/prior.md``.
        steps: network calls per sample.
    """

    training: PriorConfig = PriorConfig()
    pretrain: PriorConfig | None = None
    samples: int = Field(default=64, gt=0)
    sampler: SamplerName = "analytic"
    steps: int = Field(default=16, gt=0)


class MethodConfig(Config):
    """A method under another name, with settings of its own.

    Attributes:
        method: registry name.
        options: what its class takes, beside the budget that all methods share.
    """

    method: str
    options: dict[str, Any] = Field(default_factory=dict)


class Design(Config):
    """One set of held-out cases and the methods scored on it.

    Attributes:
        name: the ``design`` column of every table.
        cases: ``paired`` = X-rays that have a CT; ``cxr`` = every labelled X-ray (no CT anywhere).
        split: ``fixed``; ``kfold`` (stratified, grouped); ``resamples`` (patient-level Monte Carlo, drawn by label);
            ``site`` (each site held out in turn); ``external`` (the sites in ``external``, or the folder ``data``).
        resamples: how many resamples.
        positives: positive patients held out in each, at most.
        negatives: negative patients held out in each, at most.
        held_out_share: hold out this share of each class in each resample instead.
        folds: of ``kfold``.
        repeats: how often the whole k-fold is drawn anew.
        external: sites of the external cohort, in the same tables.
        data: or its folder, relative to the study's own, with tables and caches at the same places: the whole of the
            study's cohort trains, that folder's X-rays are scored.
        site_column: column of the exam table that names the site.
        validation: some of the training patients choose checkpoints and thresholds: the next fold of a k-fold,
            else ``validation_share``. Without it budgets are fixed. Held-out patients never choose anything.
        validation_share: share of the training groups that choose, by label (not for ``kfold``).
        cxr_label_fraction: the study's, for this design alone.
        methods: registered names, names of the study's ``methods``, or ``source-only``.
        reference: what every other method is compared with.
        seeds: of this design's fits; none = the study's.
        balance: of this design's labelled training cases; None = the study's.
        question: one sentence, the heading in the report.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    cases: Literal["paired", "cxr"] = "paired"
    split: Literal["fixed", "kfold", "resamples", "site", "external"] = "kfold"
    resamples: int = Field(default=8, gt=0)
    positives: int = Field(default=4, gt=0)
    negatives: int = Field(default=1, gt=0)
    held_out_share: float | None = Field(default=None, gt=0, lt=1)
    folds: int = Field(default=5, gt=1)
    repeats: int = Field(default=1, gt=0)
    external: tuple[str, ...] = ()
    data: str | None = None
    site_column: Literal["site", "source"] = "site"
    validation: bool = False
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    cxr_label_fraction: float | None = Field(default=None, ge=0.01, le=1)
    methods: tuple[str, ...] = Field(min_length=1)
    reference: str = "cxr-only"
    seeds: tuple[int, ...] = ()
    balance: Balance | None = None
    question: str = ""

    @property
    def site_decides(self) -> bool:
        """Whether sites of the exam table decide who is held out."""
        return self.split == "site" or bool(self.external)

    @model_validator(mode="after")
    def _settings_fit_the_split(self) -> Self:
        if len(set(self.methods)) != len(self.methods):
            raise ValueError(f"design '{self.name}' names a method twice")
        if self.reference not in self.methods:
            raise ValueError(f"reference '{self.reference}' is not among the methods of design '{self.name}'")
        if self.validation and self.split == "kfold" and self.folds < 3:
            raise ValueError("validation inside a k-fold needs at least 3 folds")
        if (self.split == "external") != (bool(self.external) + (self.data is not None) == 1):
            raise ValueError(
                f"design '{self.name}': a split 'external', and only that, names sites in 'external' or a folder in "
                "'data', one of the two"
            )
        if self.repeats > 1 and self.split != "kfold":
            raise ValueError(f"design '{self.name}': 'repeats' belongs to split kfold, not {self.split}")
        return self


class Hypothesis(Config):
    """One pre-declared claim about two methods of one design.

    Attributes:
        name: short, such as ``H1``.
        claim: one sentence.
        design: in which it is tested.
        a: the method that is claimed to score higher (or not lower, by ``kind``).
        b: than this one.
        kind: ``superior``; ``non-inferior`` = a is not worse than b by ``margin`` or more; ``equivalent`` = they differ
            by less than ``margin``.
        margin: of AUC, for the last two kinds.
        missing: what the claim needs that this study does not run; then it is not testable.
    """

    name: str
    claim: str
    design: str
    a: str | None = None
    b: str | None = None
    kind: Literal["superior", "non-inferior", "equivalent"] = "superior"
    margin: float | None = Field(default=None, gt=0, lt=0.5)
    missing: str = ""

    @property
    def declared(self) -> Claim | None:
        """The claim to be tested; None when a method is not named."""
        if self.a is None or self.b is None:
            return None
        from embedprior.evidence import Claim  # numpy and pandas, which ``--help`` can do without

        return Claim(self.a, self.b, self.kind, self.margin)

    @model_validator(mode="after")
    def _is_a_claim(self) -> Self:
        if self.kind == "superior" and self.margin is None and self.a != self.b:
            return self  # nothing to refuse: ``--help`` need not load what judges claims
        try:
            _ = self.declared
        except ValueError as error:
            raise ValueError(f"hypothesis {self.name}: {error}") from error
        return self


class InferenceConfig(Config):
    """How claims are tested, declared before any score is seen.

    Attributes:
        unit: what an AUC counts; ``exam`` clusters the variance by patient.
        alpha: family-wise error rate.
        relevant_delta: the smallest difference of AUCs worth claiming.
        power: chance of finding a true difference, for the detectable difference.
        bootstrap: patient replicates for metrics without a closed-form interval; 0 leaves those undefined.
    """

    unit: Literal["exam", "patient"] = "exam"
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    relevant_delta: float = Field(default=0.05, gt=0, lt=0.5)
    power: float = Field(default=0.8, ge=0.5, lt=1)
    bootstrap: int = Field(default=0, ge=0)


class Assumed(Config):
    """What the plan assumes to say which difference the study could detect.

    Attributes:
        auc: AUC that the weaker method is thought to have.
        correlation: of the two AUC estimates on the same cases.
    """

    auc: float = Field(default=0.8, ge=0.5, lt=1)
    correlation: float = Field(default=0.5, gt=-1, lt=1)


class StudyConfig(Config):
    """One study: cohort, embeddings, designs, budgets, statistical inference.

    Attributes:
        title: of the report.
        source: layout of the data folder (see ``cohort.sources``).
        label: ``label:NAME`` column to predict.
        labels: or several of them: a list of columns, or a label set (its name in ``configs/labels``, or a YAML file).
            Patients are held out for all labels together, and a prior is trained once for all of them.
        missing_images: ``error``, or ``drop`` and count.
        views: of the X-rays that take part (an X-ray of unknown view stays); an empty list takes every view.
        complete: leave out CTs and DRRs whose column ``complete`` says that they lack part of the lungs.
        duplicates: ``join`` the patients who share a picture into one group, or only ``report`` them.
        seed: of splits.
        seeds: of fits; by default ``seed`` and the two after it. At least three, unless ``as_published``.
        as_published: the published protocol that fixes fewer seeds.
        batch_size: pictures a forward pass.
        encoder: of the pictures.
        pixels: keep the pictures themselves at 128 × 128, too, for methods that read pixels.
        caches: embeddings that exist already, instead of pictures.
        encoder_training_patients: patients on whom an encoder was trained: ``refuse`` a study that would hold one out,
            or let them ``train`` in every fold and hold out only the others.
        fit: network and budget of the students, the same for every method.
        teacher: the same for the CT head; None = as ``fit``.
        balance: of the labelled training cases, the same for every method.
        augment: of the pictures of students that read pixels, the same for every method.
        prior: training and sampling of the prior methods.
        label_fraction: share of the training (and validation) patients whose labels are known.
        cxr_label_fraction: the same for the labels of their radiographs alone; CTs and DRRs keep ``label_fraction``.
        pair_fraction: share of the training patients whose CT is known; methods that use CT train on these.
        methods: methods with settings of their own, by their name in this study.
        designs: sets of held-out cases.
        hypotheses: declared claims; those of all designs (and of all combinations of a sweep) are one family. Without
            any, every method of a design that is no oracle and no control is compared with the reference.
        inference: intervals, tests and error rate.
        assumed: what the plan's detectable differences rest on.
        metrics: shown beside the AUC.
        thresholds: at each of which every method's balanced accuracy is shown; none is chosen.
        keep: fitted models that are kept for ``embedprior bundle``, beside their scores: ``none``, those of each
            design's ``last`` fold, or ``all``; never one that needs CT. It changes no number.
        seconds_per_fit: declared seconds of one fit by method, for the plan's cost; measured ones come first.
        sweep: settings to vary, each with its values (``label_fraction: [0.01, 0.1, 1]``); every combination is run
            on the same cases.
        caveats: sentences for the report.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "rows": "methods", "decision": "inference", "unit_seconds": "seconds_per_fit",
        "seen_patients": "encoder_training_patients",
    }  # fmt: skip

    title: str
    source: str = "tables"
    label: str = ""
    labels: str | tuple[str, ...] = ()
    missing_images: Literal["error", "drop"] = "error"
    views: tuple[str, ...] = ("PA", "AP")
    complete: bool = True
    duplicates: Literal["join", "report"] = "join"
    seed: int = Field(default=42, ge=0)
    seeds: tuple[int, ...] = ()
    as_published: str = ""
    batch_size: int = Field(default=32, gt=0)
    encoder: EncoderChoice = EncoderChoice()
    pixels: bool = False
    caches: CacheChoice | None = None
    encoder_training_patients: Literal["refuse", "train"] = "refuse"
    fit: FitConfig = FitConfig()
    teacher: FitConfig | None = None
    balance: Balance = "none"
    augment: Augmentation = Augmentation()
    prior: PriorChoice = PriorChoice()
    label_fraction: float = Field(default=1.0, ge=0.01, le=1)
    cxr_label_fraction: float | None = Field(default=None, ge=0.01, le=1)
    pair_fraction: float = Field(default=1.0, gt=0, le=1)
    methods: dict[str, MethodConfig] = Field(default_factory=dict)
    designs: tuple[Design, ...] = Field(min_length=1)
    hypotheses: tuple[Hypothesis, ...] = ()
    inference: InferenceConfig = InferenceConfig()
    assumed: Assumed = Assumed()
    metrics: tuple[str, ...] = ()
    thresholds: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    keep: Literal["none", "last", "all"] = "none"
    seconds_per_fit: dict[str, float] = Field(default_factory=dict)
    sweep: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    @property
    def fit_seeds(self) -> tuple[int, ...]:
        """Seeds of the fits, where a design does not name its own."""
        return self.seeds or tuple(self.seed + i for i in range(MIN_SEEDS))

    def label_share(self, design: Design) -> float:
        """Return the share of the training patients of a design whose radiographs' labels are known.

        Example:
            >>> few = Design(name="few", methods=("cxr-only",), cxr_label_fraction=0.1)
            >>> StudyConfig(title="", label="pe", cxr_label_fraction=0.5, designs=(few,)).label_share(few)
            0.1
        """
        given = (design.cxr_label_fraction, self.cxr_label_fraction, self.label_fraction)
        return next(share for share in given if share is not None)

    def seeds_of(self, design: Design) -> tuple[int, ...]:
        """Return the seeds of a design's fits."""
        return design.seeds or self.fit_seeds

    def balance_of(self, design: Design) -> Balance:
        """Return how a design balances its labelled training cases."""
        return self.balance if design.balance is None else design.balance

    @property
    def label_names(self) -> tuple[str, ...]:
        """Return the labels that the study predicts, in their order.

        Raises:
            BadInput: no such label set.
        """
        if not self.labels:
            return (self.label,)
        if not isinstance(self.labels, str):
            return self.labels
        from embedprior.cohort.label_sets import label_set  # pandas, which ``--help`` can do without

        return label_set(self.labels).labels

    @model_validator(mode="after")
    def _one_label_or_several(self) -> Self:
        if bool(self.label) == bool(self.labels):
            raise ValueError("give 'label', one label, or 'labels', several: a list or the name of a label set")
        named = () if isinstance(self.labels, str) else self.labels
        if len(set(named)) != len(named):
            raise ValueError("'labels' holds a label twice")
        if MACRO in named:
            raise ValueError(f"'labels': '{MACRO}' is the name of the mean over labels; rename the column")
        for design in self.designs:
            if self.labels and design.split == "resamples" and design.held_out_share is None:
                raise ValueError(
                    f"design '{design.name}': with several labels, resamples hold out a share of the patients: give "
                    "'held_out_share'"
                )
        return self

    @model_validator(mode="after")
    def _names_meet(self) -> Self:
        designs = {d.name: d for d in self.designs}
        if len(designs) != len(self.designs):
            raise ValueError("two designs bear one name")
        for where, seeds in (("", self.fit_seeds), *((f"design '{d.name}': ", d.seeds) for d in self.designs)):
            if len(set(seeds)) != len(seeds):
                raise ValueError(f"{where}'seeds' holds a seed twice")
            if 0 < len(seeds) < MIN_SEEDS and not self.as_published:
                raise ValueError(
                    f"{where}{len(seeds)} seeds: give at least {MIN_SEEDS}, or say in 'as_published' which protocol "
                    "fixes them"
                )
        known = _registered_names(self)
        for design in self.designs:
            _refuse_unknown_methods(design, known, self.caches)
        for h in self.hypotheses:
            if h.design not in designs:
                raise ValueError(f"hypothesis {h.name}: no design '{h.design}'")
            for method in (h.a, h.b):
                if method is not None and method not in designs[h.design].methods:
                    raise ValueError(f"hypothesis {h.name}: design '{h.design}' does not run '{method}'")
            if (h.a is None or h.b is None) and not h.missing:
                raise ValueError(f"hypothesis {h.name}: give both methods, or say in 'missing' what is not run")
        return self


def method_infos(config: StudyConfig) -> dict[str, MethodInfo]:
    """Return what is known of every method that the study fits: registered ones, its own ``methods``, ``source-only``.

    The classes of these methods are imported: they state the facts.

    Raises:
        ValueError: one of its own ``methods`` is of an unknown method, or its name is taken.
        BadInput: see ``registry.describe``.
    """
    known, infos = _registered_names(config), methods()
    fitted = dict.fromkeys([*(m for d in config.designs for m in d.methods), *config.methods])
    return {
        name: describe_row(SOURCE_ONLY_ROW) if known[name] == SOURCE_ONLY else infos[known[name]] for name in fitted
    }


def _registered_names(config: StudyConfig) -> dict[str, str]:
    """Return the registered name behind every name that a design may give; no method's class is imported."""
    names = [*method_names(), SOURCE_ONLY]
    found = {name: name for name in names}
    for name, own in config.methods.items():
        if name in names:
            raise ValueError(f"methods: '{name}' is the name of a registered method; choose another")
        if own.method not in names:
            raise ValueError(f"methods: '{name}': unknown method '{own.method}'.{nearest(own.method, names)}")
        found[name] = own.method
    return found


def _refuse_unknown_methods(design: Design, known: dict[str, str], caches: CacheChoice | None) -> None:
    for name in design.methods:
        if name not in known:
            allowed = ", ".join(sorted(known))
            raise ValueError(f"unknown method '{name}', allowed: {allowed}.{nearest(name, known)}")
    if design.data is not None and caches is None:
        raise ValueError(f"design '{design.name}': 'data' needs 'caches', embeddings of both cohorts")
