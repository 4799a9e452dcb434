"""Pictures of cases: which are chosen, that they are those of the case, and that no id is shown."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

from embedprior.report.embedding_map import stages_figure
from embedprior.report.gallery import cases_figure, chosen_cases, exam_picture, neighbours_figure


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Ten radiographs, DRRs and CTs whose grey is their number."""
    rows = []
    for i in range(10):
        Image.fromarray(np.tile(np.linspace(0, 10 * i + 60, 64, dtype=np.uint8), (64, 1))).save(tmp_path / f"x{i}.png")
        base = {"patient_id": f"SECRET^NAME{i}", "label:pe": i % 2}
        rows.append({"exam_id": f"x{i}", "modality": "CXR", "path": f"x{i}.png", **base})
        rows.append({"exam_id": f"d{i}", "modality": "DRR", "path": f"x{i}.png", **base})
        rows.append({"exam_id": f"c{i}", "modality": "CT", "path": f"ct.npy#{i}", **base})
    np.save(tmp_path / "ct.npy", np.stack([np.full((5, 32, 32), 100 * i - 1000, np.int16) for i in range(10)]))
    pairs = pd.DataFrame({"cxr_exam_id": [f"x{i}" for i in range(10)], "ct_exam_id": [f"c{i}" for i in range(10)]})
    return pd.DataFrame(rows), pairs


def test_the_surest_case_of_each_outcome_comes_first() -> None:
    scores = pd.DataFrame(
        {"exam_id": list("abcdef") * 2, "label": [1, 1, 1, 0, 0, 0] * 2,
         "score": [0.9, 0.8, 0.1, 0.6, 0.7, 0.2, 0.7, 0.8, 0.3, 0.6, 0.9, 0.0]}
    )  # fmt: skip
    found = {outcome: [(c["exam_id"], round(c["score"], 2)) for c in cases] for outcome, cases in chosen_cases(scores)}
    assert found == {
        "true positive": [("a", 0.8), ("b", 0.8)], "false negative": [("c", 0.2)],
        "false positive": [("e", 0.8), ("d", 0.6)], "true negative": [("f", 0.1)],
    }  # fmt: skip


def test_a_ct_is_its_middle_slice_in_one_window_and_a_missing_file_is_none(
    tmp_path: Path, cohort: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    grey = exam_picture(tmp_path, "ct.npy#7", "CT")
    assert grey is not None
    assert grey.shape == (32, 32)
    np.testing.assert_allclose(grey, (-300 + 1000) / 1400, atol=1e-3)
    assert exam_picture(tmp_path, "nowhere.png", "CXR") is None
    assert exam_picture(tmp_path, "", "CXR") is None
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert exam_picture(tmp_path, "broken.png", "CXR") is None


def test_the_grid_shows_scores_and_no_id(tmp_path: Path, cohort: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    exams, pairs = cohort
    rng = np.random.default_rng(0)
    ids = [f"x{i}" for i in range(10)]
    scores = pd.DataFrame({"exam_id": ids, "label": np.arange(10) % 2, "score": rng.random(10)})
    figure = cases_figure(tmp_path, exams, pairs, scores, "prior", "pe")
    assert figure is not None
    assert set(figure.data.columns) == {"outcome", "score"}
    for text in (figure.caption, figure.alt, figure.data.to_csv(), figure.png.decode("latin-1")):
        assert "SECRET" not in text
        assert "x3" not in text.split()
    assert "radiograph | DRR | CT slice" in figure.caption
    assert np.asarray(Image.open(io.BytesIO(figure.png)).convert("L")).std() > 20
    assert cases_figure(tmp_path / "gone", exams, pairs, scores, "prior", "pe") is None
    assert cases_figure(tmp_path, exams.drop(columns="path"), pairs, scores, "prior", "pe") is None


def test_the_place_of_the_own_ct_is_counted_in_scaled_distance(
    tmp_path: Path, cohort: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    exams, pairs = cohort
    rng = np.random.default_rng(1)
    real = rng.normal(size=(10, 4)) * [1, 50, 1, 1]
    made = real + rng.normal(size=(10, 4)) * [1.2, 60, 1.2, 1.2]
    figure = neighbours_figure(
        tmp_path, exams, {f"x{i}": made[i] for i in range(10)}, {f"c{i}": real[i] for i in range(10)},
        dict(zip(pairs["cxr_exam_id"], pairs["ct_exam_id"], strict=True)), "label:pe",
    )  # fmt: skip
    assert figure is not None
    scaled = cdist(made / real.std(axis=0), real / real.std(axis=0))
    expected = [int((scaled[i] < scaled[i, i]).sum()) + 1 for i in (1, 0, 3, 2)]  # positive and negative in turn
    assert figure.data["place of the own CT"].tolist() == expected


def test_a_map_of_stages_holds_the_noise_and_every_stage_or_is_not_drawn() -> None:
    rng = np.random.default_rng(2)
    real, label = rng.normal(size=(12, 3)), np.arange(12) % 2.0
    figure = stages_figure(real, {"after pairs": real + 0.1}, label, "pe")
    assert figure is not None
    assert figure.data["cloud"].value_counts().to_dict() == {
        "real CT": 12, "before training: noise": 12, "after pairs": 12
    }  # fmt: skip
    assert stages_figure(real[:5], {"after pairs": real[:5]}, label[:5], "pe") is None
