"""Methods by name. Torch-free: a class is imported when its facts are asked for, or when it is built.

A row of a study is a class with options. ``rows`` names them; what a class is (whether it needs CT at
inference, uses it in training, needs a teacher, what it reads, its version) is said by the class alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from embedprior.errors import BadInput
from embedprior.registry import Registry, resolve
from embedprior.students.config import Augmentation, Balance, Budget, InputKind
from embedprior.students.rows import DEGENERATE, METHODS, MethodRow

if TYPE_CHECKING:  # arrays would double the time that --help takes
    from embedprior.students.base import Method

__all__ = [
    "DEGENERATE", "METHODS", "Augmentation", "Balance", "Budget", "InputKind", "MethodInfo", "MethodRow",
    "build_method", "describe", "describe_row", "method_names", "methods",
]  # fmt: skip
GROUP = "embedprior.methods"
BudgetPart = Literal["fit", "prior", "nothing"]


@dataclass(frozen=True)
class MethodInfo:
    """A row with the facts that its class states.

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
        budget_part: which part of the budget it reads: the student's (``fit``), the prior's, or none.
        options: settings of its class that make it this row.
        version: raised when its numbers change; part of every fit's code tag.
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
    budget_part: BudgetPart = "fit"
    options: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1


def method_names() -> list[str]:
    """Return the names of every method: the package's own, and those of installed packages; no class is imported.

    Raises:
        BadInput: a name is registered twice.
    """
    return _registry().names()


def methods() -> Mapping[str, MethodInfo]:
    """Return every method by name; a class is imported when its entry is looked up.

    Raises:
        BadInput: a name is registered twice; on look-up, see ``describe``.
    """
    return _Methods(method_names())


def describe(name: str) -> MethodInfo:
    """Return what a method is, as its class says.

    Raises:
        BadInput: unknown name, a class that can't be imported or lacks a fact, or an entry that contradicts its class.
    """
    return _resolve(name)[0]


def describe_row(row: MethodRow, built: type | None = None) -> MethodInfo:
    """Return a row that is in no registry, with the facts of its class.

    Args:
        row: names it.
        built: its class; None = that of ``row.build``.

    Raises:
        BadInput: its class lacks a fact.
    """
    return _described(row, resolve(row.build) if built is None else built)[0]


def build_method(name: str, budget: Budget | None = None, **options: Any) -> Method:
    """Return a method with its share of the budget.

    Args:
        name: one of ``method_names()``.
        budget: the same for every row; None = the defaults.
        options: settings of the method itself, over those of its registry entry.

    Raises:
        BadInput: unknown or degenerate name, an input the method can't read, an option or a value that it does not
            take, or a method that is not what its class says (see ``describe``).

    Example:
        >>> build_method("hinton-kd", temperature=2.0).needs_ct
        False
    """
    if name in DEGENERATE:
        raise BadInput(f"method '{name}': {DEGENERATE[name]}. Next: embedprior methods")
    from embedprior.students.config import checked

    info, built = _resolve(name)
    kind = options.get("inputs", info.inputs[0])
    if kind not in info.inputs:
        raise BadInput(f"method '{name}' can't read {kind}. Allowed: {', '.join(info.inputs)}.")
    if len(info.inputs) == 1:
        options.pop("inputs", None)
    own = checked(name, built, {**info.options, **options})
    try:
        method = cast("Method", built(name=info.name, budget=budget or Budget(), **own))
    except TypeError as error:
        raise BadInput(f"method '{name}': {error}") from error
    for fact in REQUIRED_FACTS:
        if getattr(method, fact, None) is not getattr(info, fact):
            raise _contradiction(name, f"its class {built.__name__}", fact, getattr(info, fact), "once built it",
                                 getattr(method, fact, None))  # fmt: skip
    return method


REQUIRED_FACTS = ("needs_ct", "uses_ct")
"""Facts that every class must state; the others have defaults (see ``_facts``)."""


class _Methods(Mapping[str, MethodInfo]):
    """Every method by name; an entry is described when it is looked up."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def __getitem__(self, name: str) -> MethodInfo:
        if name not in self._names:
            raise KeyError(name)
        return describe(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _registry() -> Registry:
    return Registry("method", GROUP, {name: row.build for name, row in METHODS.items()})


def _resolve(name: str) -> tuple[MethodInfo, Any]:
    """Return what a method is, and its class."""
    registry = _registry()
    if name in METHODS:
        return _described(METHODS[name], registry.load(name))
    declared = registry.load(name)
    if isinstance(declared, (MethodRow, MethodInfo)):
        if declared.name != name:
            raise BadInput(f"method '{name}': its entry point of {GROUP} gives a row called '{declared.name}'. Next: "
                           "give both one name.")  # fmt: skip
        return _described(declared, resolve(declared.build))
    if not isinstance(declared, type):
        raise BadInput(f"method '{name}': its entry point of {GROUP} gives a {type(declared).__name__}. Allowed: a "
                       "class with fit(data, seed), or a MethodRow.")  # fmt: skip
    entry, text = registry.entry(name), inspect.getdoc(declared) or ""
    source = str(getattr(declared, "source", entry.package))
    return _described(MethodRow(name, text.partition("\n")[0].rstrip("."), source, entry.target), declared)


def _described(row: MethodRow | MethodInfo, built: type) -> tuple[MethodInfo, Any]:
    """Put a row together with the facts of its class."""
    facts = _facts(row.name, built)
    if isinstance(row, MethodInfo):
        _refuse_contradiction(row, built, facts)
        facts["inputs"] = row.inputs  # a row may read less than its class can
    facts["reconstruction"] |= row.reconstruction
    role: Literal["row", "control", "oracle"] = "oracle" if facts["needs_ct"] else row.role
    return MethodInfo(row.name, row.summary, row.source, row.build, role=role, options=row.options, **facts), built


def _facts(name: str, built: Any) -> dict[str, Any]:
    """Return the facts that a class states."""
    for fact in REQUIRED_FACTS:
        if not isinstance(getattr(built, fact, None), bool):
            raise BadInput(
                f"method '{name}': its class {built.__name__} states no {fact}. Next: give the class {fact} = True "
                "or False."
            )
    return {
        "inputs": tuple(getattr(built, "input_kinds", ("embedding",))),
        "needs_ct": built.needs_ct, "uses_ct": built.uses_ct,
        "needs_teacher": bool(getattr(built, "needs_teacher", built.uses_ct)),
        "reconstruction": bool(getattr(built, "reconstruction", False)),
        "budget_part": getattr(built, "budget_part", "fit"),
        "version": int(getattr(built, "version", 1)),
    }  # fmt: skip


def _refuse_contradiction(declared: MethodInfo, built: type, facts: Mapping[str, Any]) -> None:
    one, other = "its registry entry", f"its class {built.__name__}"
    for fact in ("needs_ct", "uses_ct", "needs_teacher"):
        stated, value = getattr(declared, fact), facts[fact]
        if stated != value:
            raise _contradiction(declared.name, one, fact, stated, other, value)
    if not set(declared.inputs) <= set(facts["inputs"]):
        raise _contradiction(declared.name, one, "inputs", declared.inputs, other, facts["inputs"])
    if declared.role == "oracle" and not facts["needs_ct"]:
        raise _contradiction(declared.name, one, "role", "oracle", other, "needs_ct = False")


def _contradiction(name: str, one: str, fact: str, stated: object, other: str, value: object) -> BadInput:
    return BadInput(
        f"method '{name}' contradicts itself: {one} says {fact} = {stated}, {other} says {value}. Next: state it once, "
        "in the class, and register the class (or a MethodRow) as the entry point."
    )
