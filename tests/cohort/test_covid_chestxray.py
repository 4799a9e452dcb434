from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from embedprior.cohort.sources import read_cohort
from embedprior.errors import BadInput

COLUMNS = ["patientid", "offset", "finding", "view", "modality", "folder", "filename", "doi", "url", "location"]


def collection(root: Path, rows: list[tuple[object, ...]]) -> Path:
    """Write a small collection; rows are patientid, offset, finding, view, modality, filename, url."""
    (root / "images").mkdir(parents=True)
    table = pd.DataFrame(
        [[p, o, f, v, m, "images", name, "", url, ""] for p, o, f, v, m, name, url in rows], columns=COLUMNS
    )
    table.to_csv(root / "metadata.csv", index=False)
    for name in table["filename"].dropna().unique():
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(root / "images" / str(name))
    return root


def test_shared_subset_has_the_published_counts(shared_data):
    cohort = read_cohort("covid-chestxray", shared_data / "covid_chestxray")
    xrays, ct, y = cohort.of("CXR"), cohort.of("CT"), cohort.labels("covid19")
    assert (len(xrays), xrays["patient_id"].nunique()) == (467, 179)
    assert (int(y[xrays["exam_id"]].sum()), int((1 - y[xrays["exam_id"]]).sum())) == (371, 96)
    assert (len(ct), ct["patient_id"].nunique()) == (49, 17)
    assert (int(y[ct["exam_id"]].sum()), int((1 - y[ct["exam_id"]]).sum())) == (46, 3)
    pairs = cohort.pairs
    assert (len(pairs), pairs["patient_id"].nunique()) == (13, 11)
    assert (pairs["label:covid19"] == 1).sum() == 10
    assert int(pairs["offset_days"].notna().sum()) == 4


def test_every_negative_pair_of_the_shared_subset_is_positive_on_ct(shared_data):
    pairs = read_cohort("covid-chestxray", shared_data / "covid_chestxray").pairs
    disagree = pairs[pairs["label_agree"] == 0]
    assert sorted(disagree["patient_id"]) == ["210", "211", "214"]
    assert set(disagree["label:covid19"]) == {0}
    assert set(disagree["ct_label:covid19"]) == {1}


def test_sources_of_the_shared_subset(shared_data):
    xrays = read_cohort("covid-chestxray", shared_data / "covid_chestxray").of("CXR")
    negative = xrays[xrays["label:covid19"] == 0]["source"].value_counts().to_dict()
    assert xrays["source"].value_counts()["Hannover"] == 253
    assert negative == {"Eurorad": 49, "Radiopaedia": 37, "Hannover": 8, "other": 2}


def test_rows_are_kept_or_dropped_by_the_protocol_and_counted(tmp_path):
    root = collection(
        tmp_path / "c",
        [
            (1, 0, "COVID-19, ARDS", "PA", "X-ray", "a.png", "https://radiopaedia.org/x"),
            (1, 0, "todo", "PA", "X-ray", "b.png", ""),
            (2, 0, None, "PA", "X-ray", "c.png", ""),
            (2, 0, "Pneumonia", "PA", "X-ray", "d.png", "https://www.eurorad.org/case/1"),
            (2, 0, "COVID-19", "PA", "X-ray", "d.png", ""),
            (3, 0, "COVID-19", "Axial", "MRI", "e.png", ""),
        ],
    )
    cohort = read_cohort("covid-chestxray", root)
    assert list(cohort.exams["exam_id"]) == ["a.png", "d.png"]
    assert cohort.labels("covid19").to_dict() == {"a.png": 1.0, "d.png": 0.0}
    assert list(cohort.exams["source"]) == ["Radiopaedia", "Eurorad"]
    dropped = {s.reason: s.dropped for s in cohort.flow if s.dropped}
    assert dropped["another modality"] == 1
    assert dropped["finding empty or todo"] == 2
    assert dropped["file name repeated (first row kept)"] == 1
    assert [s.exams for s in cohort.flow[:-1]] == [6, 5, 3, 3, 2, 2]


def test_pairing_takes_the_nearest_ct_and_breaks_ties_by_view_then_name(tmp_path):
    root = collection(
        tmp_path / "c",
        [
            (1, 4, "COVID-19", "PA", "X-ray", "x1.png", ""),
            (1, 9, "COVID-19", "PA", "X-ray", "x2.png", ""),
            (1, 1, "COVID-19", "Axial", "CT", "near-before.png", ""),
            (1, 12, "No Finding", "Axial", "CT", "after.png", ""),
            (2, None, "No Finding", "PA", "X-ray", "x3.png", ""),
            (2, 30, "COVID-19", "Coronal", "CT", "a-coronal.png", ""),
            (2, 3, "COVID-19", "Axial", "CT", "z-axial.png", ""),
            (2, 90, "COVID-19", "Axial", "CT", "b-axial.png", ""),
            (3, 0, "COVID-19", "PA", "X-ray", "alone.png", ""),
        ],
    )
    pairs = read_cohort("covid-chestxray", root).pairs.set_index("cxr_exam_id")
    assert pairs["ct_exam_id"].to_dict() == {
        "x1.png": "near-before.png",
        "x2.png": "after.png",
        "x3.png": "b-axial.png",
    }
    assert pairs.loc["x1.png", "offset_days"] == -3
    assert np.isnan(pairs.loc["x3.png", "offset_days"])
    assert pairs["label_agree"].to_dict() == {"x1.png": 1, "x2.png": 0, "x3.png": 0}


def test_missing_images_are_refused_or_dropped_and_counted(tmp_path):
    rows = [(n, 0, "COVID-19", "PA", "X-ray", f"{n}.png", "") for n in range(6)]
    rows.append((0, 0, "COVID-19", "Axial", "CT", "ct.png", ""))
    root = collection(tmp_path / "c", rows)
    for gone in ("0.png", "1.png", "2.png", "3.png"):
        (root / "images" / gone).unlink()
    words = r"4 of 7 images do not exist .*0\.png, 1\.png, 2\.png and others.*missing_images: drop"
    with pytest.raises(BadInput, match=words):
        read_cohort("covid-chestxray", root)
    cohort = read_cohort("covid-chestxray", root, "drop")
    assert len(cohort.exams) == 3
    assert cohort.pairs.empty
    assert next(s for s in cohort.flow if s.step == "image exists").dropped == 4


def test_missing_column_and_missing_table_are_refused(tmp_path):
    root = collection(tmp_path / "c", [(1, 0, "COVID-19", "PA", "X-ray", "a.png", "")])
    table = pd.read_csv(root / "metadata.csv").rename(columns={"finding": "findings"})
    table.to_csv(root / "metadata.csv", index=False)
    with pytest.raises(BadInput, match=r"missing column 'finding'.*Did you mean 'findings'"):
        read_cohort("covid-chestxray", root)
    with pytest.raises(BadInput, match=r"metadata\.csv does not exist"):
        read_cohort("covid-chestxray", tmp_path)
    with pytest.raises(BadInput, match="Did you mean 'covid-chestxray'"):
        read_cohort("covid_chestxray", root)
