"""YAML ↔ frozen pydantic models: unknown keys are errors, with the nearest match named.

Every field is also an option on the command line, dotted, over what its YAML file says (``cli.options``).
"""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from embedprior.errors import BadInput, nearest


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


def read_words(words: Sequence[str], kind: Any) -> Any:
    """Return the value that the words typed after an option stand for, read as YAML, as a setting of ``kind`` takes it.

    Several words make a list. What no reading makes acceptable is returned as YAML reads it, for the model to refuse.

    Example:
        >>> read_words(["1e-4"], float), read_words(["1"], str), read_words(["[3, 4]"], tuple[int, ...])
        ('1e-4', '1', [3, 4])
    """
    accepts = TypeAdapter(kind)
    read = [_yaml(word) for word in words]
    several = len(words) > 1
    nothing = [None] if list(words) == ["None"] else []
    # what YAML makes of the word, then the word itself ("1" where a text is asked for), then a list of one
    for value in [read] if several else [*nothing, read[0], words[0], read, list(words)]:
        try:
            accepts.validate_python(value)
        except ValidationError:
            continue
        return value
    return read if several else read[0]


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


def _yaml(word: str) -> Any:
    try:
        return safe_yaml(word)
    except yaml.YAMLError:
        return word


MAX_YAML_DEPTH, MAX_YAML_NODES = 32, 100_000
"""Of one document: lists and mappings inside each other, and values once every alias is written out."""


def safe_yaml(text: str) -> Any:
    """Return what a YAML text holds; no tag runs code, and neither depth nor aliases make it larger than its reader.

    Raises:
        yaml.YAMLError: not YAML, nested deeper than ``MAX_YAML_DEPTH``, or aliases that stand for more than
            ``MAX_YAML_NODES`` values.

    Example:
        >>> safe_yaml("a: &x [1, 2]\\nb: *x")
        {'a': [1, 2], 'b': [1, 2]}
    """
    # the parser yields events without recursion; only what is found small enough is built
    sizes: dict[str, int] = {}
    open_nodes: list[list[Any]] = [["", 0]]
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            open_nodes.append([event.anchor, 1])
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, count = open_nodes.pop()
            sizes |= {anchor: count} if anchor else {}
            open_nodes[-1][1] += count
        elif isinstance(event, yaml.AliasEvent):
            open_nodes[-1][1] += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.ScalarEvent):
            sizes |= {event.anchor: 1} if event.anchor else {}
            open_nodes[-1][1] += 1
        if len(open_nodes) > MAX_YAML_DEPTH + 1:
            raise yaml.YAMLError(f"it is nested more than {MAX_YAML_DEPTH} deep")
        if open_nodes[-1][1] > MAX_YAML_NODES:
            raise yaml.YAMLError(f"with its aliases written out it holds more than {MAX_YAML_NODES:,} values")
    return yaml.safe_load(text)


class Config(BaseModel):
    """Base of every configuration: immutable, and closed to keys it does not know.

    Attributes:
        renamed: former key → its present name, for the error of a file that still has the former one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    renamed: ClassVar[Mapping[str, str]] = {}


C = TypeVar("C", bound=Config)


def config_folder(folder: str) -> Path:
    """Return the shipped ``configs/<folder>``: inside the wheel, or beside the package in a checkout."""
    shipped = Path(str(resources.files("embedprior"))) / "configs" / folder
    return shipped if shipped.is_dir() else Path(__file__).parents[1] / "configs" / folder


def load_config(model: type[C], name_or_path: str | None, folder: str, overrides: dict[str, Any] | None = None) -> C:
    """Read a configuration by shipped name or by path, and apply dotted overrides (``{"train.lr": 1e-4}``).

    Without a name the overrides are all that is set.

    Raises:
        BadInput: no such configuration, not YAML, an unknown key, or a value of the wrong type.
    """
    if name_or_path is None:
        alone: dict[str, Any] = {}
        for dotted, value in (overrides or {}).items():
            _set(alone, dotted, value, model)
        return parse_config(model, alone, "the command line (without --config)")
    path = _find_config(name_or_path, folder)
    try:
        data = safe_yaml(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise BadInput(f"{path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text. Next: save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path}: expected a mapping of settings, got {type(data).__name__}.")
    for dotted, value in (overrides or {}).items():
        _set(data, dotted, value, model)
    return parse_config(model, data, f"{path} and the command line" if overrides else str(path))


def parse_config(model: type[C], data: dict[str, Any], where: str) -> C:
    """Validate a mapping.

    Raises:
        BadInput: one line naming every offending key, what it got, and the nearest allowed key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        parts = [_explain(model, item) for item in error.errors()]
        raise BadInput(f"{where}: {'; '.join(parts)}") from error


def _find_config(name_or_path: str, folder: str) -> Path:
    shipped = config_folder(folder)
    named = shipped / f"{name_or_path}.yaml"
    if named.is_file():
        return named
    path = Path(name_or_path)
    if path.is_file():
        return path
    names = sorted(p.stem for p in shipped.glob("*.yaml"))
    raise BadInput(
        f"no configuration '{name_or_path}': not a file, and not one of {', '.join(names) or '(none)'}."
        f"{nearest(name_or_path, names)}"
    )


def _set(data: dict[str, Any], dotted: str, value: Any, model: type[BaseModel]) -> None:
    """Put one value in its place; a section the file leaves out keeps what the model sets in it."""
    *parents, last = dotted.split(".")
    current: Any = model
    for key in parents:
        field = getattr(current, "model_fields", {}).get(key)
        if not isinstance(data.get(key), dict):
            held = None if field is None or data.get(key) is not None else field.default
            data[key] = held.model_dump(exclude_unset=True) if isinstance(held, BaseModel) else {}
        data = data[key]
        current = next(iter(sections(field.annotation)), None) if field is not None else None
    data[last] = value


def _explain(model: type[BaseModel], item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    dotted = ".".join(location)
    if item["type"] != "extra_forbidden":
        own = item["msg"].removeprefix("Value error, ")
        text = own if own != item["msg"] else own[:1].lower() + own[1:]
        # what a whole section holds is no help to whoever got one setting of it wrong
        if isinstance(item.get("input"), (dict, BaseModel)):
            return f"'{dotted}': {text}" if dotted else text
        return f"'{dotted}': {text} (got {item.get('input')!r:.80})"
    section = model_at(model, location[:-1])
    if location[-1] in getattr(section, "renamed", {}):
        return f"'{dotted}' is now called '{section.renamed[location[-1]]}'"
    allowed = sorted(section.model_fields)
    return f"unknown key '{dotted}'. Allowed: {', '.join(allowed)}.{nearest(location[-1], allowed)}"


def model_at(model: type[BaseModel], parents: list[str]) -> type[Config]:
    """Return the model of the section that a dotted place is in."""
    current: Any = model
    for name in parents:
        field = getattr(current, "model_fields", {}).get(name)
        current = next(iter(sections(field.annotation)), current) if field is not None else current
    return cast(type[Config], current if hasattr(current, "model_fields") else model)
