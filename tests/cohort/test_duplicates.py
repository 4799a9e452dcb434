from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from embedprior.cohort.duplicates import fingerprint, fingerprints, join_groups, near_duplicates, union_find
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
