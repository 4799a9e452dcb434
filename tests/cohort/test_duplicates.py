from __future__ import annotations

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedprior.cohort.duplicates import (
    fingerprint,
    fingerprints,
    join_groups,
    near_duplicates,
    near_embeddings,
    same_files,
    union_find,
)
from embedprior.cohort.sources import read_cohort


def scene(seed: int, size: int = 256) -> np.ndarray:
    """A smooth random picture, 8-bit."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray((255 * rng.random((9, 9))).astype(np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def table(ids, patients, modality="CXR") -> pd.DataFrame:
    return pd.DataFrame(
        {"exam_id": ids, "patient_id": patients, "group_id": patients, "modality": modality, "path": ids}
    )


def test_resized_recompressed_and_brightened_copies_are_found(tmp_path):
    original = scene(0)
    Image.fromarray(original).save(tmp_path / "a.png")
    Image.fromarray(original).resize((190, 190)).save(tmp_path / "small.jpg", quality=60)
    Image.fromarray((original * 0.8 + 20).astype(np.uint8)).save(tmp_path / "bright.png")
    for k in range(1, 6):
        Image.fromarray(scene(k)).save(tmp_path / f"other{k}.png")
    ids = ["a.png", "small.jpg", "bright.png", *(f"other{k}.png" for k in range(1, 6))]
    exams = table(ids, [str(i) for i in range(len(ids))])
    found = near_duplicates(exams, fingerprints(exams, tmp_path))
    pairs = {tuple(sorted(p)) for p in zip(found["exam_a"], found["exam_b"], strict=True)}
    assert pairs == {("a.png", "small.jpg"), ("a.png", "bright.png"), ("bright.png", "small.jpg")}


def test_a_copy_with_black_and_white_exchanged_is_found(tmp_path):
    flat = scene(0).copy()
    flat[:40] = 0  # a uniform border, in whose cells neither neighbour is darker
    for name, grey in (("a.png", flat), ("inverted.png", 255 - flat), ("other.png", scene(1))):
        Image.fromarray(grey).save(tmp_path / name)
    exams = table(["a.png", "inverted.png", "other.png"], ["1", "2", "3"])
    found = near_duplicates(exams, fingerprints(exams, tmp_path))
    assert found[["exam_a", "exam_b", "how"]].to_numpy().tolist() == [["a.png", "inverted.png", "inverted picture"]]


def test_mirrored_picture_and_other_modality_are_not_duplicates(tmp_path):
    Image.fromarray(scene(0)).save(tmp_path / "a.png")
    Image.fromarray(scene(0)[:, ::-1].copy()).save(tmp_path / "mirrored.png")
    Image.fromarray(scene(0)).save(tmp_path / "ct.png")
    exams = pd.concat([table(["a.png", "mirrored.png"], ["1", "2"]), table(["ct.png"], ["3"], "CT")])
    assert near_duplicates(exams, fingerprints(exams, tmp_path)).empty


def test_unreadable_pictures_are_left_out(tmp_path):
    Image.fromarray(scene(0)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no")
    exams = table(["a.png", "broken.png", "absent.png"], ["1", "2", "3"])
    assert set(fingerprints(exams, tmp_path)) == {"a.png"}


def test_patients_who_share_a_picture_become_one_group():
    exams = table(["a", "b", "c", "d"], ["4", "3", "2", "9"])
    rows = [("4", "3", False), ("3", "2", False), ("9", "9", True)]
    duplicates = pd.DataFrame(rows, columns=["patient_a", "patient_b", "same_patient"])
    joined = join_groups(exams, duplicates)
    assert joined["group_id"].tolist() == ["2", "2", "2", "9"]
    assert joined["patient_id"].tolist() == exams["patient_id"].tolist()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=12))
def test_union_find_agrees_with_scipy(edges):
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names = [str(i) for i in range(8)]
    found = union_find(names, [(str(a), str(b)) for a, b in edges])
    a, b = (np.array([e[k] for e in edges], dtype=int) for k in (0, 1))
    _, component = connected_components(coo_matrix((np.ones(len(edges)), (a, b)), shape=(8, 8)), directed=False)
    for i in range(8):
        assert found[str(i)] == str(min(j for j in range(8) if component[j] == component[i]))


def test_blank_picture_has_a_finite_fingerprint():
    assert np.isfinite(fingerprint(np.full((20, 20), 0.5, np.float32)).thumbnail).all()


def test_real_collection_holds_one_patient_under_two_ids(shared_data):
    """Four admission-to-day-3 X-rays stand under patient 97 (Radiopaedia) and 178 (Eurorad)."""
    cohort = read_cohort("covid-chestxray", shared_data / "covid_chestxray")
    found = near_duplicates(cohort.exams, fingerprints(cohort.exams, cohort.root))
    across = found[~found["same_patient"].astype(bool)]
    assert {tuple(sorted(p)) for p in zip(across["patient_a"], across["patient_b"], strict=True)} == {("178", "97")}
    assert len(across) == 4
    joined = join_groups(cohort.exams, found)
    assert joined.loc[joined["patient_id"].isin(["97", "178"]), "group_id"].nunique() == 1


def test_one_file_under_several_ids_is_found_whatever_its_modality():
    exams = pd.concat([table(["a", "b", "c"], ["1", "2", "1"]), table(["d", "e", "f"], ["3", "4", "5"], "CT")])
    sources = {"a": "9f", "b": "9f", "c": "9f", "d": "9f", "e": "0" * 64, "f": "0" * 64}
    found = same_files(exams, sources)
    assert found[["exam_a", "exam_b", "same_patient"]].to_numpy().tolist() == [
        ["a", "b", False], ["a", "c", True], ["a", "d", False],
    ]  # fmt: skip
    assert join_groups(exams, found)["group_id"].tolist() == ["1", "1", "1", "1", "4", "5"]


def test_patients_whose_reports_say_the_same_are_not_joined():
    exams = pd.concat([table(["a", "b"], ["1", "2"], "REPORT"), table(["c", "d"], ["1", "2"])])
    assert same_files(exams, {"a": "9f", "b": "9f", "c": "8e", "d": "7d"}).empty


def test_nearly_equal_embeddings_are_found_and_correlated_ones_are_not():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 64))
    values[7] = values[3] + rng.normal(size=64) * 0.05
    values[9] = values[5] * 0.7 + rng.normal(size=64) * 0.7
    values += 5  # what all have in common counts for nothing
    ids = [f"e{n}" for n in range(40)]
    exams = table(ids, [f"p{n}" for n in range(40)])
    near = near_embeddings(exams, ids, values.astype(np.float32))
    found = near.pairs
    assert (near.reason, near.cosine) == ("", 0.95)
    assert found[["exam_a", "exam_b"]].to_numpy().tolist() == [["e3", "e7"]]
    assert found["correlation"].iloc[0] == pytest.approx(0.9988, abs=0.002)  # 1 / sqrt(1 + .05 ** 2)


@pytest.mark.parametrize(("dim", "spread", "said"), [(8, 1.0, "8 numbers"), (64, 0.001, "hardly tells exams apart")])
def test_embeddings_that_tell_nobody_apart_join_nobody(dim, spread, said):
    rng = np.random.default_rng(0)
    ids = [f"e{n}" for n in range(60)]
    values = rng.normal(size=(60, dim)) * spread + np.repeat(rng.normal(size=(2, dim)), 30, axis=0)
    near = near_embeddings(table(ids, ids), ids, values.astype(np.float32))
    assert near.pairs.empty
    assert said in near.reason


@pytest.mark.parametrize("seed", range(4))
def test_an_encoder_that_puts_patients_near_one_another_joins_copies_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(400, 5)) @ rng.normal(size=(5, 64)) + 0.1 * rng.normal(size=(400, 64))
    values[1::20] = values[::20] * (1 + 1e-6)  # twenty pictures under two ids
    ids = [f"e{n:03d}" for n in range(400)]
    unit = values - values.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert (np.triu(unit @ unit.T, 1) > 0.95).sum() > 80  # a fixed limit would join many others
    near = near_embeddings(table(ids, ids), ids, values.astype(np.float32))
    assert near.pairs[["exam_a", "exam_b"]].to_numpy().tolist() == [
        [f"e{n:03d}", f"e{n + 1:03d}"] for n in range(0, 400, 20)
    ]
    assert "only pictures show altered copies" in near.sentence("them")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_altered_copies_are_found_however_many_exams_have_one(share: float) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(200, 64))
    copied = rng.choice(200, round(200 * share), replace=False)
    values = np.concatenate([values, values[copied] + 0.2 * rng.normal(size=(len(copied), 64))])
    ids = [f"e{n:03d}" for n in range(len(values))]
    found = near_embeddings(table(ids, ids), ids, values.astype(np.float32)).pairs
    pairs = {(f"e{first:03d}", f"e{200 + n:03d}") for n, first in enumerate(copied)}
    assert set(found[["exam_a", "exam_b"]].itertuples(index=False, name=None)) == pairs


def copies_of(picture: np.ndarray, rng: np.random.Generator) -> dict[str, Image.Image]:
    """Near-copies as files travel: compressed again, cut at one side or at all, brighter, darker."""
    height, width = picture.shape
    image = Image.fromarray(picture)
    memory = BytesIO()
    image.resize((max(64, width * 2 // 3), max(64, height * 2 // 3))).save(memory, "JPEG", quality=50)
    cut = [round(0.05 * width), round(0.05 * height), round(0.95 * width), round(0.95 * height)]
    side = int(rng.integers(4))
    one_side = [0, 0, width, height]
    one_side[side] = cut[side]
    return {
        "compressed again": Image.open(memory).convert("L"),
        "cut by 5 % at each side": image.crop(cut),
        "cut by 5 % at one side": image.crop(one_side),
        "10 % brighter": Image.fromarray(np.clip(picture * 1.1, 0, 255).astype(np.uint8)),
        "10 % darker": Image.fromarray((picture * 0.9).astype(np.uint8)),
    }


def test_near_copies_of_real_radiographs_are_found_and_other_patients_are_not(shared_data):
    """Of 467 radiographs every pair of different patients is compared; 24 of them are copied in five ways."""
    cohort = read_cohort("covid-chestxray", shared_data / "covid_chestxray")
    exams = cohort.exams[cohort.exams["modality"] == "CXR"]
    assert len(exams) == 467
    prints = fingerprints(exams, cohort.root)
    rng = np.random.default_rng(0)
    chosen = [str(exams["exam_id"].iloc[n]) for n in rng.choice(467, 24, replace=False)]
    path = dict(zip(exams["exam_id"], exams["path"], strict=True))
    rows = []
    for exam_id in chosen:
        picture = np.asarray(Image.open(cohort.root / path[exam_id]).convert("L"))
        for how, image in copies_of(picture, rng).items():
            name = f"{exam_id}, {how}"
            prints[name] = fingerprint(np.asarray(image, dtype=np.float32) / 255)
            rows.append({"exam_id": name, "patient_id": name, "group_id": name, "modality": "CXR", "path": ""})
    found = near_duplicates(pd.concat([exams, pd.DataFrame(rows)]), prints)
    across = found[~found["same_patient"].astype(bool)]
    pairs = {frozenset(pair) for pair in zip(across["exam_a"], across["exam_b"], strict=True)}
    for how in copies_of(np.zeros((80, 80), np.uint8), rng):
        share = np.mean([frozenset((exam_id, f"{exam_id}, {how}")) in pairs for exam_id in chosen])
        assert share >= 0.9, how
    # of the originals, only the four pictures that stand under two patients are one
    originals = across[across["exam_a"].isin(path) & across["exam_b"].isin(path)]
    assert len(originals) == 4
    # a copy is like nothing but its original, that one's other copies, and what equals the original
    patient = dict(zip(exams["exam_id"], exams["patient_id"], strict=True))
    of = {name: name.split(", ")[0] for name in (*path, *(row["exam_id"] for row in rows))}
    twins = {"97": "97/178", "178": "97/178"}
    who = {name: twins.get(patient[first], patient[first]) for name, first in of.items()}
    assert sum(who[a] != who[b] for a, b in zip(across["exam_a"], across["exam_b"], strict=True)) <= 0.01 * len(across)
