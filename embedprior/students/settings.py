"""A method's own settings: which it has, and which values they take (torch-free)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from embedprior.errors import BadInput, nearest

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
    for name in options:
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
