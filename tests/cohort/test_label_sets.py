"""Label sets as data files: their counts as published, and labels made of another set's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from embedprior.cohort.label_sets import LabelSet, label_set_names, read_labels
from embedprior.config import load_config
from embedprior.errors import BadInput


def test_the_shipped_sets_have_their_published_sizes_and_map_to_known_labels() -> None:
    sets = {name: load_config(LabelSet, name, "labels") for name in label_set_names()}
    assert {name: len(found.labels) for name, found in sets.items()} == {
        "ct-rate-18": 18, "mimic-ct-11": 11, "rad-chestct-15": 15, "rad-chestct-9": 9,
    }  # fmt: skip
    assert set(sets["mimic-ct-11"].labels) < set(sets["ct-rate-18"].labels)
    assert set(sets["rad-chestct-9"].labels) < set(sets["rad-chestct-15"].labels)
    assert all(found.name == name and found.source for name, found in sets.items())
    for found in sets.values():
        for other, table in found.made_of.items():
            used = [source for sources in table.values() for source in sources]
            assert set(used) <= set(sets[other].labels)
            assert len(used) == len(set(used))
    used = {s for sources in sets["rad-chestct-15"].made_of["ct-rate-18"].values() for s in sources}
    assert set(sets["ct-rate-18"].labels) - used == {"Medical material", "Mosaic attenuation pattern"}


def exams() -> pd.DataFrame:
    names = load_config(LabelSet, "ct-rate-18", "labels").labels
    table = pd.DataFrame({f"label:{name}": [0.0, 0.0, 0.0] for name in names})
    table["label:Arterial wall calcification"] = [1.0, np.nan, 0.0]
    table["label:Coronary artery wall calcification"] = [np.nan, 0.0, 0.0]
    return table


def test_labels_of_another_set_are_made_with_unknowns() -> None:
    found = read_labels(exams(), "rad-chestct-15", "exams.csv")
    assert list(found.columns)[:2] == ["calcification", "cardiomegaly"]
    np.testing.assert_array_equal(found["calcification"], [1.0, np.nan, 0.0])
    assert len(read_labels(exams(), "mimic-ct-11", "exams.csv").columns) == 11
    assert len(read_labels(exams(), "all", "exams.csv").columns) == 18


def test_missing_labels_are_named() -> None:
    with pytest.raises(BadInput, match=r"no label 'emphysem' \(1 of 1 missing\).*Did you mean"):
        read_labels(exams(), "emphysem", "exams.csv")
    with pytest.raises(BadInput, match=r"label set 'ct-rate-18': no label 'Medical material' \(1 of 18 missing\)"):
        read_labels(exams().drop(columns="label:Medical material"), "ct-rate-18", "exams.csv")
