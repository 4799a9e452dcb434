"""YAML ↔ frozen pydantic models. Unknown keys are errors, with the nearest match named."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from embedprior.errors import BadInput, nearest
from embedprior.options import sections


class Config(BaseModel):
    """Base of every configuration: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


C = TypeVar("C", bound=Config)


def config_folder(folder: str) -> Path:
    """Return the shipped ``configs/<folder>``: inside the wheel, or beside the package in a checkout."""
    shipped = Path(str(resources.files("embedprior"))) / "configs" / folder
    return shipped if shipped.is_dir() else Path(__file__).parents[1] / "configs" / folder


def load_config(model: type[C], name_or_path: str, folder: str, overrides: dict[str, Any] | None = None) -> C:
    """Read a configuration by shipped name or by path, and apply dotted overrides (``{"train.lr": 1e-4}``).

    Raises:
        BadInput: no such configuration, not YAML, an unknown key, or a value of the wrong type.
    """
    path = _find(name_or_path, folder)
    try:
        data = yaml.safe_load(path.read_text()) or {}
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


def _find(name_or_path: str, folder: str) -> Path:
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
    allowed = _fields_at(model, location[:-1])
    close = difflib.get_close_matches(location[-1], allowed, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"unknown key '{dotted}'. Allowed: {', '.join(allowed)}.{hint}"


def _fields_at(model: type[BaseModel], parents: list[str]) -> list[str]:
    current: Any = model
    for name in parents:
        field = getattr(current, "model_fields", {}).get(name)
        current = next(iter(sections(field.annotation)), current) if field is not None else current
    fields = getattr(current, "model_fields", model.model_fields)
    return sorted(fields)
