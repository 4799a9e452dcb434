"""Sets of labels as data files (``configs/labels``), and how the labels of one set are made of another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from embedprior.config import Config, config_folder, load_config
from embedprior.errors import BadInput, nearest
from embedprior.tables import LABEL_PREFIX, label_columns


class LabelSet(Config):
    """Labels of a public set.

    Attributes:
        name: of the file.
        source: where the labels are defined.
        labels: in their order.
        made_of: other set → label of this set → labels of the other it stands for: 1 where any of them is, 0 where all
            are 0, else unknown.
    """

    name: str
    source: str
    labels: tuple[str, ...] = Field(min_length=1)
    made_of: dict[str, dict[str, tuple[str, ...]]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _each_label_once_and_mapped(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label stands twice")
        for other, table in self.made_of.items():
            odd = set(table) ^ set(self.labels)
            if odd or not all(table.values()):
                raise ValueError(f"made_of {other} must say of each label what it is made of; see {sorted(odd)[:3]}")
        return self


def label_set_names() -> list[str]:
    """Return the shipped sets."""
    return sorted(file.stem for file in config_folder("labels").glob("*.yaml"))


def label_set(name: str) -> LabelSet:
    """Return a label set by its name in ``configs/labels``, or the path of a YAML file.

    Raises:
        BadInput: there is none of that name; the shipped ones are named.
    """
    return load_config(LabelSet, name, "labels")


def read_labels(exams: pd.DataFrame, wanted: str | Sequence[str], where: str) -> pd.DataFrame:
    """Return the labels of every exam, one column each: 1, 0, or NaN where unknown.

    Args:
        exams: exam table.
        wanted: names in a list or with commas, ``all`` (the table's own), a shipped set, or the YAML file of one. A
            set's labels are taken where the table has them all, or made of the set that it has.
        where: the table, for messages.

    Raises:
        BadInput: labels that the table neither has nor can make; what is missing and the nearest are named.

    Example:
        >>> exams = pd.DataFrame({"label:a": [1, 0], "label:b": [0, np.nan]})
        >>> read_labels(exams, "b, a", "exams.csv").to_numpy().tolist()
        [[0.0, 1.0], [nan, 0.0]]
    """
    have = label_columns(exams)
    if not isinstance(wanted, str):
        names = list(wanted)
    elif wanted in label_set_names() or wanted.endswith((".yaml", ".yml")):
        return _of_set(exams, label_set(wanted), where)
    else:
        names = have if wanted == "all" else [name.strip() for name in wanted.split(",") if name.strip()]
    if not names:
        raise BadInput(f"{where}: no label column. Allowed: columns label:NAME with 1, 0 or empty.")
    _refuse_missing(names, have, where)
    return _columns(exams, names)


def _of_set(exams: pd.DataFrame, chosen: LabelSet, where: str) -> pd.DataFrame:
    have = label_columns(exams)
    if set(chosen.labels) <= set(have):
        return _columns(exams, list(chosen.labels))
    for table in chosen.made_of.values():
        if {source for sources in table.values() for source in sources} <= set(have):
            return made_labels(_columns(exams, have), {name: table[name] for name in chosen.labels})
    _refuse_missing(list(chosen.labels), have, f"{where}, label set '{chosen.name}'")
    raise AssertionError  # the line before raises


def made_labels(labels: pd.DataFrame, table: Mapping[str, tuple[str, ...]]) -> pd.DataFrame:
    """Return labels made of others: 1 where any is 1, 0 where all are 0, else NaN.

    Example:
        >>> labels = pd.DataFrame({"a": [0, 0, 1], "b": [0, np.nan, np.nan]})
        >>> made_labels(labels, {"any": ("a", "b")})["any"].tolist()
        [0.0, nan, 1.0]
    """
    found = {}
    for name, sources in table.items():
        values = labels[list(sources)].to_numpy(dtype=np.float64)
        any_positive, all_negative = (values == 1).any(axis=1), (values == 0).all(axis=1)
        found[name] = np.where(any_positive, 1.0, np.where(all_negative, 0.0, np.nan))
    return pd.DataFrame(found, index=labels.index)


def _columns(exams: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    found = exams[[LABEL_PREFIX + name for name in names]].astype(np.float64)
    return found.set_axis(names, axis=1)


def _refuse_missing(names: list[str], have: list[str], where: str) -> None:
    missing = [name for name in names if name not in have]
    if missing:
        close = nearest(missing[0], [*have, *label_set_names()])
        raise BadInput(
            f"{where}: no label '{missing[0]}' ({len(missing)} of {len(names)} missing). The table has "
            f"{', '.join(have) or 'none'}; shipped sets: {', '.join(label_set_names())}.{close}"
        )
