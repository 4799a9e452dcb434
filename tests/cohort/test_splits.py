from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from embedprior.cohort.sources import read_cohort
from embedprior.cohort.splits import (
    Fold,
    external_split,
    fixed_split,
    folds_of,
    group_kfold,
    leave_one_site_out,
    natural,
    patient_labels,
    pilot_resamples,
    splits_table,
    with_training,
    with_validation,
)
from embedprior.errors import BadInput
from embedprior.tables import check_splits


def cohort(n_groups: int, seed: int) -> tuple[pd.DataFrame, pd.Series]:
    rng = np.random.default_rng(seed)
    rows = []
    for g in range(n_groups):
        for p in range(rng.integers(1, 3)):
            for e in range(rng.integers(1, 4)):
                rows.append((f"e{g}-{p}-{e}", f"{10 * g + p}", f"g{g}", int(rng.random() < 0.5)))
    frame = pd.DataFrame(rows, columns=["exam_id", "patient_id", "group_id", "y"])
    return frame, frame.set_index("exam_id")["y"].astype(float)


@settings(max_examples=20, deadline=None)
@given(st.integers(25, 60), st.integers(0, 10_000), st.booleans())
def test_no_group_is_on_two_sides_and_everyone_is_held_out_once(n_groups, seed, validation):
    exams, y = cohort(n_groups, seed)
    splits = splits_table(group_kfold(exams, y, "d", 5, seed, validation), "k-fold")
    for _, fold in splits.groupby("fold"):
        sides = {part: set(rows["group_id"]) for part, rows in fold.groupby("part")}
        names = sorted(sides)
        assert names == (["test", "train", "val"] if validation else ["test", "train"])
        assert not any(sides[a] & sides[b] for a in names for b in names if a < b)
        assert set(fold["patient_id"]) == set(exams["patient_id"])
    held = splits[splits["part"] == "test"]
    assert sorted(held["patient_id"]) == sorted(exams["patient_id"].unique())


def test_kfold_is_stratified_and_the_same_for_the_same_seed():
    exams, y = cohort(60, 3)
    first, again, other = (splits_table(group_kfold(exams, y, "d", 5, seed), "k-fold") for seed in (7, 7, 8))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    for _, fold in first[first["part"] == "test"].groupby("fold"):
        share = y[exams.loc[exams["patient_id"].isin(fold["patient_id"]), "exam_id"]].mean()
        assert abs(share - y.mean()) < 0.15


def test_too_few_groups_of_a_label_are_refused():
    exams, y = cohort(30, 0)
    y[:] = 1.0
    y[exams["exam_id"].iloc[0]] = 0.0
    with pytest.raises(BadInput, match="5 folds need 5 groups of patients with label 0; there are 1"):
        group_kfold(exams, y, "d", 5, 0)


def published_draw(labels: dict[int, int], k: int) -> tuple[set[int], set[int]]:
    """The protocol's words, on integer ids: positives drawn before negatives from one generator."""
    generator = np.random.default_rng(1000 + k)
    positive = sorted(p for p in labels if labels[p] == 1)
    negative = sorted(p for p in labels if labels[p] == 0)
    first = generator.choice(positive, size=min(4, len(positive) - 1), replace=False)
    second = generator.choice(negative, size=min(1, len(negative) - 1), replace=False)
    return set(map(int, first)), set(map(int, second))


def test_pilot_resamples_are_the_published_draws(shared_data):
    collection = read_cohort("covid-chestxray", shared_data / "covid_chestxray")
    y = collection.labels("covid19")
    targets = collection.exams[collection.exams["exam_id"].isin(collection.pairs["cxr_exam_id"])]
    labels = patient_labels(targets, y)
    with_ct = collection.exams[collection.exams["patient_id"].isin(collection.of("CT")["patient_id"])]
    splits = splits_table(pilot_resamples(with_ct, labels, "pilot", 8), "pilot")
    assert set(splits["resample"]) == set(range(1, 9))
    for k, rows in splits.groupby("resample"):
        positive, negative = published_draw({int(p): v for p, v in labels.items()}, k)
        assert (len(positive), len(negative)) == (4, 1)
        held = set(rows.loc[rows["part"] == "test", "patient_id"].astype(int))
        assert held == positive | negative
        assert set(rows["patient_id"]) == set(with_ct["patient_id"])


def test_pilot_order_is_by_number_not_by_text():
    labels = {str(i): int(i % 3 > 0) for i in (2, 10, 9, 100, 21, 33, 4, 5, 6, 7)}
    exams = pd.DataFrame({"patient_id": list(labels), "group_id": list(labels)})
    splits = splits_table(pilot_resamples(exams, labels, "pilot", 8), "pilot")
    for k, rows in splits.groupby("resample"):
        positive, negative = published_draw({int(p): v for p, v in labels.items()}, k)
        assert set(rows.loc[rows["part"] == "test", "patient_id"].astype(int)) == positive | negative
    assert sorted(labels, key=natural) == sorted(labels, key=int)


def test_partner_of_a_held_out_patient_neither_trains_nor_is_held_out():
    labels = {str(i): int(i > 3) for i in range(1, 11)}
    exams = pd.DataFrame({"patient_id": [*labels, "99"], "group_id": ["4" if p == "5" else p for p in labels] + ["6"]})
    splits = splits_table(pilot_resamples(exams, labels, "pilot", 30), "pilot")
    group = dict(zip(exams["patient_id"], exams["group_id"], strict=True))
    seen = 0
    for _, rows in splits.groupby("resample"):
        parts = dict(zip(rows["patient_id"], rows["part"], strict=True))
        held = {group[p] for p, part in parts.items() if part == "test"}
        assert not {group[p] for p, part in parts.items() if part == "train"} & held
        seen += "99" not in parts
    assert seen > 0


def test_resampling_by_label_needs_two_patients_of_each():
    exams = pd.DataFrame({"patient_id": ["1", "2", "3"], "group_id": ["1", "2", "3"]})
    with pytest.raises(BadInput, match="there are 2 and 1"):
        pilot_resamples(exams, {"1": 1, "2": 1, "3": 0}, "pilot", 8)


def test_fixed_split_is_the_published_one():
    labels = {str(i): int(i % 4 > 0) for i in range(3, 40)}
    exams = pd.DataFrame({"patient_id": list(labels), "group_id": list(labels)})
    splits = splits_table(fixed_split(exams, labels, "fixed"), "fixed").set_index("patient_id")["part"]
    generator = random.Random(42)
    for value in (0, 1):
        ids = sorted(p for p in labels if labels[p] == value)
        generator.shuffle(ids)
        cut = min(max(round(0.8 * len(ids)), 1), len(ids) - 1)
        assert set(splits[ids[:cut]]) == {"train"}
        assert set(splits[ids[cut:]]) == {"test"}


def test_patient_label_is_the_highest_known_label():
    exams = pd.DataFrame({"exam_id": list("abcd"), "patient_id": ["1", "1", "2", "3"]})
    y = pd.Series([0.0, 1.0, 0.0, np.nan], index=list("abcd"))
    assert patient_labels(exams, y) == {"1": 1, "2": 0}


def test_split_table_with_a_shared_group_on_two_sides_is_refused():
    rows = [["1", "g", "d", 0, 0, "test"], ["2", "g", "d", 0, 0, "train"]]
    table = pd.DataFrame(rows, columns=["patient_id", "group_id", "design", "resample", "fold", "part"])
    with pytest.raises(BadInput, match="group_id on two sides of one fold: g"):
        check_splits(table, "splits.csv")


def test_a_patient_or_a_group_on_two_sides_can_not_be_expressed():
    one = Fold(design="d", group_of={"a": "g", "b": "g", "c": "h"}, part_of={"g": "test", "h": "train"})
    assert one.patients("test") == {"a", "b"}
    assert not one.patients("test") & one.patients("train")
    # parts are given to groups; nothing in the model takes a part of a patient, and a group takes one part
    assert set(Fold.model_fields) == {"design", "resample", "fold", "group_of", "part_of"}
    with pytest.raises(ValidationError, match="Input should be a valid string"):
        Fold(design="d", group_of={"a": ["g", "h"]}, part_of={"g": "test", "h": "train"})
    with pytest.raises(ValidationError, match="part_of"):
        Fold(design="d", group_of={"a": "g"}, part_of={"g": ("train", "test")})
    with pytest.raises(ValidationError, match="groups without a part: h"):
        Fold(design="d", group_of={"a": "h"}, part_of={"g": "test"})


def test_rounds_survive_the_table_and_a_table_with_two_sides_is_refused():
    exams, y = cohort(30, 1)
    rounds = group_kfold(exams, y, "d", 3, 0, validation=True, repeats=2)
    table = splits_table(rounds, "k-fold")
    again = folds_of(table)
    assert [(r.resample, r.fold) for r in again] == [(r, f) for r in range(2) for f in range(3)]
    for before, after in zip(rounds, again, strict=True):
        assert all(before.patients(part) == after.patients(part) for part in ("train", "val", "test"))
    table.loc[1, "part"] = "train" if table.loc[1, "part"] == "test" else "test"
    table.loc[1, "group_id"] = table.loc[0, "group_id"]
    table.loc[0, "part"] = "train" if table.loc[1, "part"] == "test" else "test"
    with pytest.raises(BadInput, match="group_id on two sides"):
        folds_of(table)


def test_repeats_are_different_k_folds_and_the_first_is_the_plain_one():
    exams, y = cohort(40, 2)
    rounds = group_kfold(exams, y, "d", 4, 5, repeats=3)
    assert splits_table(rounds[:4], "k-fold").equals(splits_table(group_kfold(exams, y, "d", 4, 5), "k-fold"))
    held = [[frozenset(r.patients("test")) for r in rounds if r.resample == k] for k in range(3)]
    assert len({frozenset(folds) for folds in held}) == 3
    for folds in held:
        assert sorted(p for fold in folds for p in fold) == sorted(exams["patient_id"].unique())


def test_any_number_of_resamples_by_share():
    labels = {str(i): int(i % 4 == 0) for i in range(1, 41)}
    exams = pd.DataFrame({"patient_id": list(labels), "group_id": list(labels)})
    rounds = pilot_resamples(exams, labels, "mc", 25, share=0.2)
    assert len(rounds) == 25
    for r in rounds:
        held = [labels[p] for p in r.patients("test")]
        assert (held.count(1), held.count(0)) == (2, 6)
    with pytest.raises(BadInput, match="there are 10 and 0"):
        pilot_resamples(exams, {p: 1 for p, v in labels.items() if v}, "mc", 2, share=0.2)


def by_site() -> pd.DataFrame:
    rows = [("a1", "a", "a", "A"), ("b1", "b", "b", "A"), ("c1", "c", "c", "B"), ("d1", "d", "d", "B")]
    rows += [("e1", "e", "e", "A"), ("e2", "e", "e", "B"), ("f1", "f", "f", "C"), ("g1", "g", "f", "C")]
    return pd.DataFrame(rows, columns=["exam_id", "patient_id", "group_id", "site"])


def test_each_site_is_held_out_in_turn_and_a_patient_of_two_sites_takes_no_part_in_either():
    rounds = leave_one_site_out(by_site(), "sites")
    assert [sorted(r.patients("test")) for r in rounds] == [["a", "b"], ["c", "d"], ["f", "g"]]
    assert [sorted(r.patients("train")) for r in rounds] == [
        ["c", "d", "f", "g"],
        ["a", "b", "f", "g"],
        ["a", "b", "c", "d", "e"],
    ]
    with pytest.raises(BadInput, match="needs two sites"):
        leave_one_site_out(by_site().assign(site="A"), "sites")
    with pytest.raises(BadInput, match="1 exams have no site: a1"):
        leave_one_site_out(by_site().assign(site=[None, *"ABBABCC"]), "sites")


def test_external_sites_are_held_out_together_and_unknown_ones_refused():
    (only,) = external_split(by_site(), "ext", ("B", "C"))
    assert sorted(only.patients("test")) == ["c", "d", "f", "g"]
    assert sorted(only.patients("train")) == ["a", "b"]
    assert "e" not in only.group_of
    with pytest.raises(BadInput, match="no exam of site Z"):
        external_split(by_site(), "ext", ("Z",))
    with pytest.raises(BadInput, match="nobody is left to train"):
        external_split(by_site(), "ext", ("A", "B", "C"))
    everywhere = by_site().assign(group_id="one")
    with pytest.raises(BadInput, match="nobody is left to hold out"):
        external_split(everywhere, "ext", ("B",))


def test_validation_is_drawn_by_label_from_the_training_groups_only():
    labels = {f"p{i}": int(i % 3 == 0) for i in range(60)}
    exams = pd.DataFrame({"patient_id": list(labels), "group_id": [f"g{i // 2}" for i in range(60)]})
    (before,) = fixed_split(exams, labels, "fixed")
    after = with_validation(before, labels, 0.25, 0)
    assert after.patients("test") == before.patients("test")
    assert after.patients("train") | after.patients("val") == before.patients("train")
    assert {labels[p] for p in after.patients("val")} == {0, 1}
    assert after == with_validation(before, labels, 0.25, 0)
    assert after != with_validation(before, labels, 0.25, 1)


def test_the_last_training_group_of_a_class_never_chooses():
    one = Fold(design="d", group_of={p: p for p in "abc"}, part_of={"a": "train", "b": "train", "c": "test"})
    assert with_validation(one, {"a": 1, "b": 0, "c": 1}, 0.5, 0) == one


def test_patients_added_to_training_never_join_a_held_out_group():
    one = Fold(design="d", group_of={"a": "g", "b": "h"}, part_of={"g": "test", "h": "val"})
    more = with_training(one, {"c": "g", "d": "h", "e": "k"})
    assert more.patients("train") == {"e"}
    assert set(more.group_of) == {"a", "b", "e"}
