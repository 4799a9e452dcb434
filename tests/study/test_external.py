"""An external cohort in a folder of its own: scored by models that never saw anything of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.cache import open_cache, write_cache

from .conftest import change, refusal, spec, write_other

CLAIM = [{"name": "H1", "claim": "c", "design": "out", "a": "ridge-head", "b": "cxr-only"}]


def design(**changes):
    base = {"name": "out", "split": "external", "data": "../hospital-b", "methods": ["cxr-only", "ridge-head"]}
    return {"designs": [{**base, **changes}], "hypotheses": CLAIM}


@pytest.fixture
def other(cohort: Path) -> Path:
    return write_other(cohort.parent / "hospital-b")


def test_external_folder_is_scored_by_models_of_the_whole_cohort(run, cohort, other):
    code, out = run(**design(validation=True))
    assert code == 0
    table = pd.read_csv(out / "predictions.csv")
    theirs = pd.read_csv(other / "exams.csv")
    own = pd.read_csv(cohort / "exams.csv")
    test, val = (table[table["split"] == part] for part in ("test", "val"))
    assert set(test["exam_id"]) == set(theirs.loc[theirs["modality"] == "CXR", "exam_id"])
    assert set(val["patient_id"]) < set(own["patient_id"])
    splits = pd.read_csv(out / "cohort" / "splits.csv")
    trained = splits[splits["part"] != "test"]
    assert set(trained["patient_id"]) == set(own.loc[own["modality"] == "CXR", "patient_id"])
    for record in (out / "artifacts" / "fit").glob("*/fit.json"):
        seen = json.loads(record.read_text())["patients_seen"]
        assert not [p for ids in seen.values() for p in ids if p.startswith("b-")]
    report = (out / "report.html").read_text()
    assert "the external cohort" in report
    assert "20 X-rays of 20 patients, 10 positive and 10 negative" in report
    assert "Who was included: hospital-b" in report
    assert pd.read_csv(out / "support.csv")["site"].tolist() == ["hospital-b"]


def test_scores_of_a_case_do_not_depend_on_the_other_external_cases(run, cohort, other):
    """Nothing is fitted, scaled or chosen on the external cohort: fewer cases of it, the same scores."""
    _, out = run(out="all", **design(validation=True))
    whole = pd.read_csv(out / "predictions.csv").set_index(["method", "exam_id"])["score"]
    exams = pd.read_csv(other / "exams.csv")
    few = exams["patient_id"].isin([f"b-p{p:02d}" for p in range(4)])
    exams[few].to_csv(other / "exams.csv", index=False)
    pairs = pd.read_csv(other / "pairs.csv")
    pairs[pairs["patient_id"].isin(exams.loc[few, "patient_id"])].to_csv(other / "pairs.csv", index=False)
    _, out = run(out="few", **design(validation=True))
    part = pd.read_csv(out / "predictions.csv").set_index(["method", "exam_id"])["score"]
    assert len(part) < len(whole)
    np.testing.assert_array_equal(part.to_numpy(), whole.loc[part.index].to_numpy())


@pytest.mark.slow
def test_two_processes_score_an_external_folder_alike(run, other):
    _, alone = run(out="alone", **design())
    _, both = run("--workers", "2", out="both", **design())
    assert (alone / "predictions.csv").read_bytes() == (both / "predictions.csv").read_bytes()


def test_external_radiographs_need_no_ct_unless_a_row_does(run, cohort, capsys):
    write_other(cohort.parent / "hospital-b", ct=False)
    code, out = run(**design())
    assert code == 0
    assert len(pd.read_csv(out / "predictions.csv")) == 2 * 20
    code, _ = run(out="oracle", **design(methods=["cxr-only", "ridge-head", "ct-only"]))
    assert "external cohort 'hospital-b' (ct-only needs CT at inference): no embedding cache" in refusal(capsys, code)


def test_oracle_reads_the_external_ct(run, other):
    code, out = run(**design(methods=["cxr-only", "ridge-head", "ct-only"]))
    assert code == 0
    assert set(pd.read_csv(out / "predictions.csv")["method"]) == {"cxr-only", "ridge-head", "ct-only"}


def test_patients_of_both_cohorts_are_refused_with_the_ids(run, cohort, other, capsys):
    own = pd.read_csv(cohort / "exams.csv")
    # A patient with a CT only trains the CT head: as much in the way as one with an X-ray.
    change(other, patient_id=lambda f: f["patient_id"].replace({"b-p02": own["patient_id"].iloc[-1]}))
    pairs = pd.read_csv(other / "pairs.csv")
    pairs["patient_id"] = pairs["patient_id"].replace({"b-p02": own["patient_id"].iloc[-1]})
    pairs.to_csv(other / "pairs.csv", index=False)
    code, out = run(**design())
    assert "1 patients are in the study's own cohort too: p45" in refusal(capsys, code)
    assert not out.exists()


def test_external_embeddings_of_another_encoder_are_refused_by_the_field(run, cohort, other, capsys):
    cache = open_cache(other / "caches" / "cxr")
    rows = cache.take(list(cache.ids))
    shutil.rmtree(other / "caches" / "cxr")
    write_cache(other / "caches" / "cxr", spec("other-net", "CXR", 3, None), list(cache.ids), ["0" * 64] * 20, rows)
    code, _ = run(**design())
    error = refusal(capsys, code)
    assert "external cohort 'hospital-b'" in error
    assert "other-net" in error
    assert "cxr-net" in error


def test_encoder_that_saw_an_external_patient_is_refused_with_the_id(run, cohort, capsys):
    write_other(cohort.parent / "hospital-b", seen=("b-p03", "someone"))
    code, _ = run(encoder_training_patients="train", **design())
    assert "was trained on 1 held-out patients: b-p03" in refusal(capsys, code)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"external": ["A"]}, "one of the two"),
        ({"data": None}, "one of the two"),
        ({"split": "kfold"}, "one of the two"),
        ({"data": "../nowhere"}, "no external cohort at"),
    ],
)
def test_unfit_settings_are_refused(run, other, capsys, changes, message):
    code, _ = run(**design(**changes))
    assert message in refusal(capsys, code)
