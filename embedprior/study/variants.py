"""The combinations of a study: the settings of its sweep, and its labels."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from embedprior.config import parse_config
from embedprior.errors import BadInput, nearest
from embedprior.study.config import Design, StudyConfig

MAX_VARIANTS = 500
FIXED = ("sweep", "labels", "title", "caveats", "seconds_per_fit", "hypotheses", "seeds", "as_published")


@dataclass(frozen=True)
class Variant:
    """One combination of a sweep, and one label of a study of several.

    Attributes:
        label: its settings in words; empty without a sweep and with one label.
        settings: dotted field → value.
        config: the study with these settings, and no sweep; of several labels, ``label`` is this one's.
        combination: the settings of the sweep alone, in words: what the labels of a combination share.
    """

    label: str
    settings: dict[str, Any]
    config: StudyConfig
    combination: str = ""

    @property
    def label_name(self) -> str | None:
        """The label, in a study of several."""
        return self.config.label if self.config.labels else None

    def key(self, design: Design | str) -> str:
        """Return the name of a design in tables: its own, with the settings where there is a sweep, and the label."""
        return _keyed(design, self.label)

    def shared_key(self, design: Design | str) -> str:
        """Return the same without the label: the name of what all labels share, such as the splits."""
        return _keyed(design, self.combination)

    def for_label(self, name: str) -> Variant:
        """Return the combination for one label, or for ``macro``, the mean over all."""
        label = ",".join(filter(None, [self.combination, f"label={name}"]))
        settings = {**self.settings, "label": name}
        return Variant(label, settings, self.config.model_copy(update={"label": name}), self.combination)

    def of_labels(self) -> list[Variant]:
        """Return the variant of each label; in a study of one label the variant itself.

        Raises:
            BadInput: a label set that does not exist.
        """
        return [self.for_label(name) for name in self.config.label_names] if self.config.labels else [self]


def _keyed(design: Design | str, settings: str) -> str:
    name = design if isinstance(design, str) else design.name
    return f"{name}@{settings}" if settings else name


def variants(config: StudyConfig) -> list[Variant]:
    """Return the combinations of ``config.sweep``, the last field changing fastest; without a sweep the study itself.

    In a study of several labels each combination is followed by itself for every further label.

    Raises:
        BadInput: a field that does not exist or can't be swept, a value it does not take, or too many combinations.
    """
    base = config.model_copy(update={"sweep": {}})
    if not config.sweep:
        return Variant("", {}, base).of_labels()
    if config.labels and "label" in config.sweep:
        raise BadInput("sweep: 'label' can't be swept beside 'labels'. Next: name all of them in 'labels'.")
    for name, values in config.sweep.items():
        first, *rest = name.split(".")
        if first in config.renamed:
            raise BadInput(f"sweep: '{name}' is now called '{'.'.join([config.renamed[first], *rest])}'.")
        if first in FIXED:
            why = "seeds are run anyway, claims stay as declared, texts change no number"
            raise BadInput(f"sweep: '{name}' can't be swept ({why}).")
        if not values or len({repr(v) for v in values}) != len(values):
            raise BadInput(f"sweep: '{name}' needs values, each once.")
    total = 1
    for values in config.sweep.values():
        total *= len(values)
    if total > MAX_VARIANTS:
        raise BadInput(f"sweep: {total} combinations; at most {MAX_VARIANTS} are run.")
    found = []
    for combination in itertools.product(*config.sweep.values()):
        settings = dict(zip(config.sweep, combination, strict=True))
        label = ",".join(f"{field}={_short(value)}" for field, value in settings.items())
        data = base.model_dump(mode="python", exclude_defaults=True)
        for name, value in settings.items():
            _set(data, base.model_dump(mode="python"), name, value)
        swept = Variant(label, settings, parse_config(StudyConfig, data, f"sweep, {label}"), label)
        found += swept.of_labels()
    return found


def _set(data: dict[str, Any], whole: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value in place; what the path passes through is filled from the whole configuration.

    What lies under ``options`` is not known here: the method or the encoder that takes it refuses what it does not.
    """
    *parents, last = dotted.split(".")
    here: Any = data
    full: Any = whole
    free = False
    for depth, name in enumerate(parents):
        key: Any = name if free else _key(full, name, dotted)
        full = (full.get(key, {}) if isinstance(full, dict) else {}) if free else full[key]
        if full is None:
            path = ".".join(parents[: depth + 1])
            raise BadInput(f"sweep: '{dotted}': '{path}' is not set. Next: write it out in the configuration first.")
        child = here[key] if isinstance(here, list) else here.get(key)
        here[key] = _thawed(full if child is None else child)
        here = here[key]
        if not isinstance(here, (dict, list)):
            raise BadInput(f"sweep: '{'.'.join(parents[: depth + 1])}' holds no settings.")
        free = free or name == "options"
    here[last if free else _key(full, last, dotted)] = value


def _key(full: Any, name: str, dotted: str) -> str | int:
    """Return a field's name, or the place of a list's entry, which may be given by number or by its own name."""
    if isinstance(full, (list, tuple)):
        names = [str(entry["name"]) for entry in full if isinstance(entry, dict) and "name" in entry]
        if name in names:
            return names.index(name)
        if name.isdigit() and int(name) < len(full):
            return int(name)
        allowed = [*names, *(str(i) for i in range(len(full)))]
    else:
        if isinstance(full, dict) and name in full:
            return name
        allowed = sorted(full) if isinstance(full, dict) else []
    raise BadInput(
        f"sweep: unknown field '{dotted}': no '{name}'. Allowed: {', '.join(allowed) or '(nothing)'}."
        f"{nearest(name, allowed)}"
    )


def _thawed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _thawed(v) for k, v in value.items()}
    return [_thawed(v) for v in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(",", ";").replace(" ", "")
