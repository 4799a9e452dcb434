"""Settings of methods: what every row of a comparison is given alike, and a method's own options (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from embedprior.config import Config
from embedprior.errors import BadInput, nearest
from embedprior.nn.config import Balance as Balance
from embedprior.nn.config import FitConfig
from embedprior.prior.config import PriorConfig, SamplerName

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]
Positives = Annotated[tuple[Positive, ...], Field(min_length=1)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]

FIXED = frozenset({"budget", "name", "needs_ct", "uses_ct"})
"""What a row is, or is given like all others: never an option of one row."""


def checked(method: str, built: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as the types that the method's class declares.

    Args:
        method: registry name, for messages.
        built: its class; one that is no dataclass is left to check its options itself.
        options: by name.

    Raises:
        BadInput: it has no such option, or the option does not take this value.
    """
    if not is_dataclass(built):
        return dict(options)
    allowed = sorted(f.name for f in fields(built) if f.init and f.name not in FIXED)
    former = getattr(built, "renamed", {})
    for name in options:
        if name in former:
            raise BadInput(f"method '{method}': option '{name}' is now called '{former[name]}'")
        if name not in allowed:
            listed = ", ".join(allowed) or "(it has none)"
            raise BadInput(f"method '{method}': unknown option '{name}'. Allowed: {listed}.{nearest(name, allowed)}")
    try:
        hints = get_type_hints(built, include_extras=True)
    except NameError:  # a foreign class whose types are imported for type checkers only
        return dict(options)
    found = {}
    for name, value in options.items():
        try:
            found[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            why = error.errors()[0]["msg"]
            raise BadInput(f"method '{method}': option '{name}': {why[0].lower()}{why[1:]} (got {value!r})") from error
    return found


InputKind = Literal["embedding", "tokens", "pixels"]
TrunkKind = Literal["efficientnet-lite0", "timm:resnet18"]
"""A pretrained encoder of the registry, all of it trained on."""
TeacherKind = (
    Literal[
        "pilot-teacher", "pilot-teacher-dpe", "pilot-teacher-dpe-rescaled", "pilot-teacher-mhra", "pilot-teacher-full",
        "pilot-teacher-full-rescaled",
    ]
    | TrunkKind
)  # fmt: skip
NetworkKind = Literal["shared", "pilot", "pilot-dfpn", "pilot-fusion"] | TeacherKind
"""The network that learns: the one of all methods, or one that reads pixels: the pilot study's, or a trunk."""


class Augmentation(Config):
    """Random changes of a radiograph while a pixel student trains.

    Attributes:
        flip: left to right, half of the time. A method that uses CT then needs the embedding of the flipped CT too
            (``Cases.ct_mirrored``): a flipped radiograph is never set beside a CT that is not.
        shift: pixels by which it moves at most along each axis; a frozen CT embedding is taken to be the same.
        independent: flip the picture of the CT by a coin of its own, as the pilot's code does: half of the pairs are
            then mirrored against each other. Otherwise both are flipped together.
    """

    flip: bool = False
    shift: int = Field(default=0, ge=0)
    independent: bool = False


class Budget(Config):
    """The same for every row of a comparison.

    Attributes:
        fit: size of the shared student network and of every other small network, and their optimisation.
        settings: ``given`` uses ``fit`` as it is; ``auto`` compares it with a few others on the validation cases, each
            row for itself and at the same cost (see ``students.search``). Where no ``fit`` is given: ``auto``.
        balance: of the labelled cases, the same for every method: ``class-weights`` weighs their loss by
            n / (2 · n_class), ``sampler`` draws both classes equally often.
        augment: of the radiographs of pixel students.
        stages: settings of the prior in each training stage, first to last; the last one serves any further stage.
        artifacts: folder under which trained priors are kept; None keeps them for this process only.
        samples: CT embeddings a prior draws per case.
        sampler: see ``embedprior.prior``.
        steps: network calls per sample.
        shared_by_labels: one prior, one regression of the CT embedding, serves the heads of several labels. Candidate
            settings of a prior are then compared by the energy score of its samples, which no label enters, instead of
            one head's Brier score; and what several heads read is computed once.
    """

    fit: FitConfig = FitConfig()
    settings: Literal["given", "auto"] = "given"
    balance: Balance = "none"
    augment: Augmentation = Augmentation()
    stages: tuple[PriorConfig, ...] = Field(default=(PriorConfig(),), min_length=1)
    artifacts: Path | None = None
    samples: int = Field(default=64, gt=0)
    sampler: SamplerName = "analytic"
    steps: int = Field(default=16, gt=0)
    shared_by_labels: bool = False

    @model_validator(mode="before")
    @classmethod
    def _auto_where_no_fit_is_given(cls, data: Any) -> Any:
        if isinstance(data, dict) and "fit" not in data:
            return {"settings": "auto", **data}
        return data


class TrainStudentConfig(Config):
    """What ``embedprior train student`` reads, and where it writes.

    Attributes:
        method: registry name (``embedprior methods``).
        options: settings of the method itself.
        inputs: what its student reads.
        cxr_cache: embedding cache of the radiographs, and of the DRRs where there are pretraining pairs.
        ct_cache: embedding cache of the CTs; None for methods that use no CT.
        pixels, tokens: ``pixels-128`` and token caches of the same radiographs, for ``inputs``.
        exams: exam table with the label.
        pairs: pair table; None takes every radiograph of the exam table, without CT.
        splits: split table.
        label: name of the label, without the ``label:`` prefix.
        design, resample, fold: rows of the split table to use; the design may be left out when there is one.
        teacher: folder of a trained CT teacher; None trains a head on the labelled training CTs.
        teacher_fit: of that head.
        budget: the same for every method that is to be compared.
        seed: of everything random.
        out: folder of the student.
        made_by: the command that makes the inputs, named when they are missing.
    """

    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    inputs: InputKind = "embedding"
    cxr_cache: str
    ct_cache: str | None = None
    pixels: str | None = None
    tokens: str | None = None
    exams: str
    pairs: str | None = None
    splits: str
    label: str
    design: str | None = None
    resample: int = 0
    fold: int = 0
    teacher: str | None = None
    teacher_fit: FitConfig = FitConfig()
    budget: Budget = Field(default_factory=Budget)
    seed: int = Field(default=0, ge=0)
    out: str
    made_by: str = "embedprior embed"

    @model_validator(mode="after")
    def _pairs_have_a_cache(self) -> Self:
        if self.pairs is not None and self.ct_cache is None:
            raise ValueError("pairs need ct_cache, the embeddings of their CTs")
        return self

    def refuse_missing_ct(self, uses_ct: bool) -> None:
        """Refuse a method that learns from CT where no CT is given.

        Raises:
            BadInput: what is missing, and the options that give it.
        """
        missing = [name for name, path in (("CT cache", self.ct_cache), ("pair table", self.pairs)) if path is None]
        if uses_ct and missing:
            raise BadInput(
                f"method '{self.method}' learns from CT, and no {' and no '.join(missing)} is given. Next: "
                "--ct-cache DIR --pairs FILE, or a method without CT (embedprior methods)"
            )
