from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import embedprior
from embedprior.cache import write_cache
from embedprior.cli import main
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput
from embedprior.students.base import Cases
from embedprior.study.config import StudyConfig

CONFIG: dict[str, Any] = {
    "title": "effusion", "label": "effusion", "caches": {"cxr": "caches"}, "seeds": [1], "as_published": "a test",
    "fit": {"hidden": 8, "steps": 20, "validate_every": 10},
    "designs": [
        {"name": "all", "cases": "cxr", "folds": 2, "methods": ["cxr-only", "logistic"], "reference": "logistic"}
    ],
}  # fmt: skip


def spec(name: str = "toy", dim: int = 4) -> EncoderSpec:
    return EncoderSpec(
        name=name, modality="CXR", dim=dim, source="test", weights_sha256="none", licence="none", profile={},
        pooling="none",
    )  # fmt: skip


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 labelled X-rays: embeddings, exam table and split."""
    monkeypatch.delenv("EMBEDPRIOR_HOME", raising=False)
    folder, rng, n = tmp_path / "cohort", np.random.default_rng(0), 40
    folder.mkdir()
    names, patients, label = [f"x{i}" for i in range(n)], [f"p{i}" for i in range(n)], np.arange(n) % 2
    exams = {"exam_id": names, "patient_id": patients, "modality": "CXR", "path": "", "label:effusion": label}
    pd.DataFrame(exams).to_csv(folder / "exams.csv", index=False)
    parts = ["train"] * 24 + ["val"] * 8 + ["test"] * 8
    split = {"patient_id": patients, "group_id": patients, "design": "d", "resample": 0, "fold": 0, "part": parts}
    pd.DataFrame(split).to_csv(folder / "splits.csv", index=False)
    write_cache(folder / "caches", spec(), names, names, (rng.normal(size=(n, 4)) + label[:, None]).astype(np.float32))
    return folder


def test_a_study_from_python_is_the_commands_study(cohort: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    words = ["study", "run", "--config", str(file), "--data", str(cohort), "--out", str(tmp_path / "command")]
    assert main(words) == 0
    for number, config in enumerate((CONFIG, str(file), file, StudyConfig.model_validate(CONFIG))):
        out = tmp_path / f"python-{number}"
        study = embedprior.run_study(config, str(cohort) if number else cohort, str(out) if number else out)
        for name in ("predictions.csv", "evidence.json", "plan.json", "cohort/splits.csv"):
            assert (out / name).read_bytes() == (tmp_path / "command" / name).read_bytes(), name
    assert study.report.is_file()
    assert set(study.predictions["method"]) == {"cxr-only", "logistic"}
    assert study.failures.empty
    assert study.summary() == (out / "summary.md").read_text()
    assert study.to_dict()["designs"]["all"]["reference"] == "logistic"
    study.to_dict()["designs"].clear()
    assert study.evidence["designs"]


def test_a_study_goes_on_where_it_stopped_and_keeps_to_its_plan(cohort: Path, tmp_path: Path) -> None:
    first = embedprior.run_study(CONFIG, cohort, tmp_path / "out")
    fits = sorted((tmp_path / "out" / "artifacts" / "fit").iterdir())
    again = embedprior.run_study(CONFIG, cohort, tmp_path / "out")
    pd.testing.assert_frame_equal(first.predictions, again.predictions)
    assert sorted((tmp_path / "out" / "artifacts" / "fit").iterdir()) == fits
    with pytest.raises(BadInput, match="holds results of another plan"):
        embedprior.run_study({**CONFIG, "seed": 7}, cohort, tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ("demo_kfolds", {}, r"no configuration 'demo_kfolds'.*Did you mean 'demo_kfold'\?"),
        (7, {}, "run_study was given a int as configuration. Allowed: a name, a path, a mapping or a StudyConfig"),
        ({**CONFIG, "lable": "x"}, {}, r"unknown key 'lable'.*Did you mean 'label'\?"),
        (CONFIG, {"overrides": {"seed": 3}}, "change the mapping itself"),
        (CONFIG, {"workers": 0}, "starts at 1; got 0"),
        ({**CONFIG, "label": "efusion"}, {}, "efusion"),
    ],
)
def test_a_study_that_can_not_be_run_is_refused_and_writes_nothing(
    cohort: Path, tmp_path: Path, config: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        embedprior.run_study(config, cohort, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_overrides_change_a_file(cohort: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    study = embedprior.run_study(file, cohort, tmp_path / "out", overrides={"fit.hidden": 4, "seeds": [5]})
    assert set(study.predictions["seed"]) == {5}


@pytest.fixture
def student(cohort: Path, tmp_path: Path) -> Path:
    out = tmp_path / "student"
    files = {name: str(cohort / f"{name}.csv") for name in ("exams", "splits")}
    config = {"method": "cxr-only", "label": "effusion", "cxr_cache": str(cohort / "caches"), "out": str(out), **files}
    file = tmp_path / "student.yaml"
    file.write_text(yaml.safe_dump({**config, "budget": {"fit": CONFIG["fit"]}}))
    words = ["train", "student", "--config", str(file)]
    assert main(words) == 0
    return out


def test_a_trained_student_scores_arrays_caches_and_cases_alike(student: Path, cohort: Path) -> None:
    written = pd.read_csv(student / "predictions.csv").query("split == 'test'")
    cache = embedprior.open_cache(str(cohort / "caches"))
    rows = cache.take(written["exam_id"])
    for folder in (student, str(student)):
        fitted = embedprior.load_fitted(folder)
        assert (fitted.method, fitted.about["label"], fitted.about["cxr_dim"]) == ("cxr-only", "effusion", 4)
        np.testing.assert_array_equal(fitted.scores(rows), fitted.scores(rows.astype(np.float64).tolist()))
        np.testing.assert_allclose(fitted.scores(rows), written["score"], atol=1e-6)
        whole = pd.Series(fitted.scores(cache), index=cache.ids)
        np.testing.assert_allclose(whole[written["exam_id"]], written["score"], atol=1e-6)
        names, unknown = list(written["exam_id"]), np.full(len(rows), np.nan)
        cases = Cases(names, names, unknown, rows, None, unknown)
        np.testing.assert_array_equal(fitted.scores(cases), fitted.scores(rows))


def test_a_student_refuses_what_it_was_not_fitted_on(student: Path, tmp_path: Path) -> None:
    fitted = embedprior.load_fitted(student)
    other = write_cache(tmp_path / "other", spec("another"), ["a"], ["a"], np.zeros((1, 4), np.float32))
    for given, message in (
        (np.zeros((2, 7)), r"'cxr-only' was given shape \(2, 7\). Allowed: \(N, 4\)"),
        (np.zeros(4), r"was given shape \(4,\).*x\[None\] for one case"),
        ([[0, 0, 0, np.nan]], r"not finite in rows \[0\]"),
        ([["a", "b", "c", "d"]], "no array of numbers"),
        (other, r"made with another encoder: 'another', not 'toy'.*embed with 'toy'"),
    ):
        with pytest.raises(BadInput, match=message):
            fitted.scores(given)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no fitted method in nowhere"):
        embedprior.load_fitted("nowhere")
