"""No study puts one file on two sides of a split, whatever it starts from and however it divides its patients."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from embedprior.cache import write_cache
from embedprior.cli import main
from embedprior.config import parse_config
from embedprior.errors import BadInput
from embedprior.study.config import StudyConfig
from embedprior.study.prepare import read_study_data

from .conftest import BASE, SITES, spec

SPLITS: dict[str, dict[str, Any]] = {
    "kfold": {"split": "kfold", "folds": 3, "validation": True},
    "repeats": {"split": "kfold", "folds": 2, "repeats": 3},
    "resamples": {"split": "resamples", "resamples": 4, "held_out_share": 0.25, "validation": True},
    "fixed": {"split": "fixed"},
    "site": {"split": "site"},
    "external sites": {"split": "external", "external": ["C"]},
}


def digest(what: object) -> str:
    return hashlib.sha256(str(what).encode()).hexdigest()


def write(folder: Path, files: np.ndarray[Any, Any], prefix: str = "") -> dict[str, str]:
    """A cohort of as many patients as files, each with an X-ray of that file and a CT of its own; sha256 by exam."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    names = [f"{prefix}p{n:02d}" for n in range(len(files))]
    of = {f"x-{p}": digest(int(file)) for p, file in zip(names, files, strict=True)}
    of |= {f"ct-{p}": digest(f"CT of {p}") for p in names}
    rows, pairs = [], []
    for n, patient in enumerate(names):
        rows += [(f"x-{patient}", patient, "CXR", n % 2, SITES[n % 3]), (f"ct-{patient}", patient, "CT", n % 2, "A")]
        rows[-1] = (*rows[-1][:4], SITES[n % 3])
        pairs.append((f"pair-{patient}", patient, f"x-{patient}", f"ct-{patient}", 0, 1))
    columns = ["exam_id", "patient_id", "modality", "label:nodule", "site"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "exams.csv", index=False)
    columns = ["pair_id", "patient_id", "cxr_exam_id", "ct_exam_id", "offset_days", "label_agree"]
    pd.DataFrame(pairs, columns=columns).to_csv(folder / "pairs.csv", index=False)
    for name, modality, first in (("cxr", "CXR", "x-"), ("ct", "CT", "ct-")):
        ids = [first + p for p in names]
        matrix = rng.normal(size=(len(ids), 4)).astype(np.float32)
        write_cache(folder / "caches" / name, spec(f"{name}-net", modality, 4, None), ids, [of[i] for i in ids], matrix)
    return of


def config(**design: Any) -> StudyConfig:
    one = {"name": "d", "methods": ["cxr-only", "ridge-head"], **design}
    claim = {"name": "H1", "claim": "c", "design": "d", "a": "ridge-head", "b": "cxr-only"}
    return parse_config(StudyConfig, {**BASE, "designs": [one], "hypotheses": [claim]}, "test")


def sides(data: Any, of: dict[str, str], by_site: bool) -> list[dict[str, set[str]]]:
    """By fold: each part's files. Everything of a patient counts: what trains is chosen by group alone."""
    found = []
    for fold in data.folds("d"):
        exams = data.cohort.exams
        group = exams["group_id"]
        held, val = fold.groups("test"), fold.groups("val")
        train = group.isin(fold.groups("train")) if by_site else ~group.isin(held | val)
        parts = {"test": group.isin(held), "val": group.isin(val), "train": train}
        found.append({part: {of[i] for i in exams.loc[rows, "exam_id"]} for part, rows in parts.items()})
        for part in ("test", "val", "train"):  # and what the split table says of each patient
            chosen = exams["patient_id"].isin(fold.patients(part))
            assert {of[i] for i in exams.loc[chosen, "exam_id"]} <= found[-1][part]
    return found


@pytest.mark.parametrize("split", SPLITS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), kept=st.sampled_from(["join", "report"]))
def test_no_file_lies_on_two_sides_of_a_fold(split: str, seed: int, kept: str) -> None:
    """36 patients with 26 files: ten at least stand under two patient ids."""
    files = np.random.default_rng(seed).integers(10, 36, 36)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "cohort"
        of = write(folder, files)
        study = config(**SPLITS[split]).model_copy(update={"duplicates": kept})
        data = read_study_data(study, folder)
        for parts in sides(data, of, "site" in split):
            assert not parts["test"] & parts["train"]
            assert not parts["test"] & parts["val"]
            assert not parts["val"] & parts["train"]
        shared = data.cohort.exams.drop_duplicates("patient_id")["group_id"].nunique()
        assert shared == len(set(files.tolist()))  # one group a file, whoever bears it


def test_a_file_of_the_cohort_in_an_external_folder_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "own", np.arange(10, 30))
    write(tmp_path / "other", np.arange(29, 39), "b-")
    with pytest.raises(BadInput, match=r"1 of its files are the study's own, under other ids: x-p19 = x-b-p00"):
        read_study_data(config(split="external", data="../other"), tmp_path / "own")
    write(tmp_path / "third", np.array([30, 31, 30, 32, 33, 34]), "c-")
    data = read_study_data(config(split="external", data="../third"), tmp_path / "own")
    assert data.targets["d"].set_index("patient_id").loc[["c-p00", "c-p02"], "group_id"].nunique() == 1


def test_one_picture_under_two_ids_is_joined_on_the_road_of_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for n in range(12):
        picture = Image.fromarray(rng.integers(0, 256, (8, 8)).astype(np.uint8)).resize((160, 160))
        picture.save(tmp_path / f"x{n}.png")
        rows.append((f"x{n}", f"p{n}", "CXR", f"x{n}.png", n % 2))
    (tmp_path / "same.png").write_bytes((tmp_path / "x3.png").read_bytes())
    Image.open(tmp_path / "x6.png").crop((7, 7, 153, 153)).save(tmp_path / "cut.png")
    rows += [("same", "again3", "CXR", "same.png", 1), ("cut", "again6", "CXR", "cut.png", 0)]
    columns = ["exam_id", "patient_id", "modality", "path", "label:nodule"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "exams.csv", index=False)
    study = {
        "label": "nodule", "source": "tables", "encoder": {"name": "pixels-128", "options": {}},
        "designs": [{"name": "d", "split": "kfold", "folds": 2, "cases": "cxr", "methods": ["cxr-only", "logistic"]}],
        "title": "t", "seeds": [1], "as_published": "a test", "hypotheses": [],
    }  # fmt: skip
    for kept, joined in (("join", {"again3": "p3", "again6": "p6"}), ("report", {"again3": "p3"})):
        data = read_study_data(parse_config(StudyConfig, {**study, "duplicates": kept}, "test"), tmp_path)
        group = data.cohort.exams.set_index("patient_id")["group_id"]
        assert {p for p in group.index if (group == group[p]).sum() > 1} == {*joined, *joined.values()}
        assert data.duplicates["how"].tolist() == ["same file", "cropped picture"]


def test_plan_and_report_say_what_was_compared_and_what_was_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "own", np.array([*range(10, 40), 10, 11]))
    config_file = tmp_path / "study.yaml"
    config_file.write_text(yaml.safe_dump(BASE))
    words = ["--config", str(config_file), "--data", str(tmp_path / "own"), "--out", str(tmp_path / "out")]
    assert main(["study", "plan", *words]) == 0
    told = capsys.readouterr().out
    for sentence in (
        "Compared: the files of 64 of 64 exams by the checksums in the caches.",
        "Not compared: the embeddings of 32 CXR exams by cosine: 4 numbers are too few",
        "Not compared: pictures, as no cache holds them. Next: embedprior cohort check",
        "2 duplicates under two patient ids (2 same file). These patients form one group",
    ):
        assert sentence in told
    assert len(pd.read_csv(tmp_path / "out" / "cohort" / "duplicates.csv")) == 2
    flow = pd.read_csv(tmp_path / "out" / "cohort" / "flow.csv")
    assert flow["step"].iloc[-1] == "kfold: held out in some fold"
    assert main(["study", "run", *words]) == 0
    report = (tmp_path / "out" / "report.html").read_text()
    assert "Leakage between patients" in report
    assert "2 duplicates under two patient ids" in report
    flow = pd.read_csv(tmp_path / "out" / "cohort" / "flow.csv").set_index("step")
    scored = pd.read_csv(tmp_path / "out" / "predictions.csv").query("split == 'test'")["exam_id"].nunique()
    assert flow.loc["kfold: scored", "exams"] == scored == 32
    assert flow.loc["kfold: X-rays", ["exams", "dropped"]].tolist() == [32, 32]


def test_laterals_and_cut_scans_take_no_part_and_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "own", np.arange(10, 40))
    exams = pd.read_csv(tmp_path / "own" / "exams.csv", dtype={"exam_id": str})
    exams["view"] = ""
    exams["complete"] = ""
    views = {"x-p00": "LL", "x-p01": "Lateral", "x-p02": "AP Supine", "x-p03": "PA"}
    exams["view"] = exams["exam_id"].map(views).fillna("")
    exams["complete"] = exams["exam_id"].map({"ct-p04": False, "ct-p05": True}).astype(object).fillna("")
    exams.to_csv(tmp_path / "own" / "exams.csv", index=False)
    data = read_study_data(config(), tmp_path / "own")
    assert set(exams["exam_id"]) - set(data.cohort.exams["exam_id"]) == {"x-p00", "x-p01", "ct-p04"}
    flow = {step.step: step for step in data.cohort.flow}
    step = flow["views AP, PA (26 of unknown view stay)"]
    assert (step.dropped, step.reason) == (2, "2 LATERAL")
    assert flow["both lungs whole"].dropped == 1
    assert "x-p04" not in set(data.targets["d"]["exam_id"])  # its pair is gone with the CT
    every = config().model_copy(update={"views": (), "complete": False})
    assert len(read_study_data(every, tmp_path / "own").cohort.exams) == 60
    laterals = config().model_copy(update={"views": ("lateral",), "complete": False})
    assert "x-p03" not in set(read_study_data(laterals, tmp_path / "own").cohort.exams["exam_id"])


def test_an_unknown_view_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "own", np.arange(10, 40))
    with pytest.raises(BadInput, match=r"unknown view 'PAA'\. Allowed: PA, AP, LATERAL"):
        read_study_data(config().model_copy(update={"views": ("PAA",)}), tmp_path / "own")
