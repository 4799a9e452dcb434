"""Settings on the command line: every field of a configuration is an option, dotted, over what its YAML file says."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from embedprior.errors import BadInput, nearest

LEFT = 34
"""Columns of names and kinds in ``--help``."""
WIDEST = 120
PLAIN = {int: "INT", float: "FLOAT", str: "TEXT", bool: "BOOL", Path: "PATH"}


@dataclass(frozen=True)
class Setting:
    """One leaf of a configuration model.

    Attributes:
        name: dotted, as in ``--prior.training.steps``.
        kind: its annotation.
        default: ``required``, or its value in words.
        text: what the model's docstring says of it.
    """

    name: str
    kind: Any
    default: str
    text: str


def settings_of(model: type[BaseModel], given: BaseModel | None = None, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a model, sections entered; defaults are those of ``given``, or of the model."""
    texts = _texts(model)
    for name, field in model.model_fields.items():
        inside = sections(field.annotation)
        held = getattr(given, name, None)
        for section in inside:
            yield from settings_of(section, held if isinstance(held, section) else None, f"{prefix}{name}.")
        if not inside:
            required = given is None and field.is_required()
            value = held if given is not None else field.get_default(call_default_factory=True)
            yield Setting(prefix + name, field.annotation, "required" if required else _shown(value), texts[name])


def sections(kind: Any) -> list[type[BaseModel]]:
    """Return the models a field may hold: ``Section`` and ``Section | None`` are entered, lists of sections are not."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [k for k in kinds if inspect.isclass(k) and issubclass(k, BaseModel)]


def read_overrides(words: Sequence[str], model: type[BaseModel], prog: str) -> dict[str, Any]:
    """Return the settings typed as ``--name value`` or ``--name=value``: dotted name → value, read as YAML.

    Dashes and underscores are one. A list is typed as ``[1, 2]`` or as several words; a true-or-false setting needs
    no value.

    Raises:
        BadInput: a word that belongs to no option, an option without value, or an unknown one, with its nearest match.
    """
    known = {setting.name: setting.kind for setting in settings_of(model)}
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise BadInput(f"'{word}' was not expected: it follows no option. Next: {prog} --help")
        typed, equals, value = word[2:].partition("=")
        name, kind = _find(typed, known, prog)
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        found[name] = _read(f"--{typed}", values, kind)
    return found


def describe(model: type[BaseModel], given: BaseModel | None = None) -> str:
    """Return the help text of every setting: name and kind, what it is, and its default in brackets."""
    width = min(WIDEST, shutil.get_terminal_size((100, 24)).columns)
    lines = []
    for setting in settings_of(model, given):
        left = f"  --{setting.name.replace('_', '-')} {_kind_text(setting.kind)}"
        right = textwrap.wrap(f"{setting.text} ({setting.default})".strip(), max(30, width - LEFT))
        if len(left) >= LEFT:
            lines.append(left)
            left = ""
        lines += [f"{left if i == 0 else '':<{LEFT}}{part}" for i, part in enumerate(right)]
    return "\n".join(lines)


def _texts(model: type[BaseModel]) -> dict[str, str]:
    """Return what the ``Attributes:`` of a model's docstring say, by field; a parent's where the model says nothing."""
    found = {name: field.description or "" for name, field in model.model_fields.items()}
    for kind in reversed(model.__mro__):
        listed = inspect.cleandoc(kind.__dict__.get("__doc__") or "").partition("Attributes:\n")[2]
        names: list[str] = []
        for line in listed.splitlines():
            head = re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)
            if head:
                names = head[1].split(", ")
                found.update(dict.fromkeys(names, head[2]))
            elif line.startswith(" " * 8):
                found.update({name: f"{found[name]} {line.strip()}" for name in names})
            else:
                names = []
    return {name: text.replace("``", "").rstrip(".") for name, text in found.items()}


def _shown(value: Any) -> str:
    if value is None:
        return "default: none"
    if isinstance(value, BaseModel) or (isinstance(value, tuple) and any(isinstance(v, BaseModel) for v in value)):
        return "default: see the file"
    shown = list(value) if isinstance(value, tuple) else value
    return textwrap.shorten(f"default: {shown}", 80, placeholder=" ...") if shown != "" else "default: empty"


def _kind_text(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(str(choice) for choice in get_args(kind)) + "}"
    if get_origin(kind) in (Union, types.UnionType):
        return "|".join(_kind_text(k) for k in get_args(kind) if k is not type(None))
    if get_origin(kind) in (tuple, list):
        return f"[{_kind_text(get_args(kind)[0])}, ...]"
    if get_origin(kind) is dict:
        return "{NAME: VALUE}"
    return PLAIN.get(kind, "VALUE")


def _find(typed: str, known: dict[str, Any], prog: str) -> tuple[str, Any]:
    """Return the setting's name and kind; below a mapping setting, every further name is the user's own."""
    plain = typed.replace("-", "_")
    if plain in known:
        return plain, known[plain]
    parts = typed.split(".")
    for length in range(1, len(parts)):
        above = ".".join(parts[:length]).replace("-", "_")
        if get_origin(known.get(above)) is dict:
            return ".".join([above, *parts[length:]]), Any
    close = nearest(plain, known).replace("'", "'--", 1).replace("_", "-")
    raise BadInput(f"unknown option '--{typed}'.{close} Next: {prog} --help")


def _read(option: str, values: list[str], kind: Any) -> Any:
    accepts = TypeAdapter(kind)
    if not values:
        if kind is not bool:
            raise BadInput(f"{option} needs a value.")
        return True
    read = [_yaml(value) for value in values]
    several = len(values) > 1
    nothing = [None] if values == ["None"] else []
    # what YAML makes of the word, then the word itself ("1" where a text is asked for), then a list of one
    for value in [read] if several else [*nothing, read[0], values[0], read, values]:
        try:
            accepts.validate_python(value)
        except ValidationError:
            continue
        return value
    return read if several else read[0]


def _yaml(word: str) -> Any:
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word
