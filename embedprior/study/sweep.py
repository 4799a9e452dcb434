"""Sweeps: every combination of some settings, each a study of its own on the same cases."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from embedprior.config import parse_config
from embedprior.errors import BadInput, nearest
from embedprior.study.config import Design, StudyConfig

MOST_VARIANTS = 500
FIXED = ("sweep", "title", "hypotheses", "seeds", "as_published")


@dataclass(frozen=True)
class Variant:
    """One combination.

    Attributes:
        label: its settings in words; empty without a sweep.
        settings: dotted field → value.
        config: the study with these settings, and no sweep.
    """

    label: str
    settings: dict[str, Any]
    config: StudyConfig

    def key(self, design: Design | str) -> str:
        """Return the name of a design in tables: its own, with the settings where there is a sweep."""
        name = design if isinstance(design, str) else design.name
        return f"{name}@{self.label}" if self.label else name


def variants(config: StudyConfig) -> list[Variant]:
    """Return the combinations of ``config.sweep``, the last field changing fastest; without a sweep the study itself.

    Raises:
        BadInput: a field that does not exist or can't be swept, a value it does not take, or too many combinations.
    """
    base = config.model_copy(update={"sweep": {}})
    if not config.sweep:
        return [Variant("", {}, base)]
    for field, values in config.sweep.items():
        if field.split(".")[0] in FIXED:
            raise BadInput(f"sweep: '{field}' can't be swept (seeds are run anyway; claims stay as declared).")
        if not values or len({repr(v) for v in values}) != len(values):
            raise BadInput(f"sweep: '{field}' needs values, each once.")
    total = 1
    for values in config.sweep.values():
        total *= len(values)
    if total > MOST_VARIANTS:
        raise BadInput(f"sweep: {total} combinations; at most {MOST_VARIANTS} are run.")
    found = []
    for combination in itertools.product(*config.sweep.values()):
        settings = dict(zip(config.sweep, combination, strict=True))
        label = ",".join(f"{field}={_short(value)}" for field, value in settings.items())
        data = base.model_dump(mode="python", exclude_defaults=True)
        for field, value in settings.items():
            _set(data, base.model_dump(mode="python"), field, value)
        found.append(Variant(label, settings, parse_config(StudyConfig, data, f"sweep, {label}")))
    return found


def _set(data: dict[str, Any], whole: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value in place; what the path passes through is filled from the whole configuration."""
    *parents, last = dotted.split(".")
    here: Any = data
    full: Any = whole
    for depth, name in enumerate(parents):
        full = _child(full, name, dotted)
        key: Any = int(name) if isinstance(here, list) else name
        child = here[key] if isinstance(here, list) else here.get(key)
        if child is None:
            child = _thawed(full)
        elif not isinstance(child, (dict, list)):
            child = _thawed(child)
        here[key] = child
        here = child
        if not isinstance(here, (dict, list)):
            raise BadInput(f"sweep: '{'.'.join(parents[: depth + 1])}' holds no settings.")
    _child(full, last, dotted)
    here[int(last) if isinstance(here, list) else last] = value


def _child(full: Any, name: str, dotted: str) -> Any:
    if isinstance(full, (list, tuple)) and name.isdigit() and int(name) < len(full):
        return full[int(name)]
    if isinstance(full, dict) and name in full:
        return full[name]
    allowed = [str(i) for i in range(len(full))] if isinstance(full, (list, tuple)) else sorted(full or ())
    raise BadInput(
        f"sweep: unknown field '{dotted}': no '{name}'. Allowed: {', '.join(allowed)}.{nearest(name, allowed)}"
    )


def _thawed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _thawed(v) for k, v in value.items()}
    return [_thawed(v) for v in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(",", ";").replace(" ", "")
