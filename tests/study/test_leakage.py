"""No study puts one file on two sides of a split, whatever it starts from and however it divides its patients."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from embedprior.cache import write_cache
from embedprior.cli import main
from embedprior.config import parse_config
from embedprior.errors import BadInput
from embedprior.study.config import CacheChoice, StudyConfig
from embedprior.study.inputs import fold_data, open_caches
from embedprior.study.prepare import read_study_data
from embedprior.study.run import inputs_of
from embedprior.study.variants import Variant

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


def write(
    folder: Path, files: np.ndarray[Any, Any], prefix: str = "", scans: bool = False, dim: int = 4
) -> dict[str, str]:
    """A cohort of as many patients as files, each with an X-ray of that file and a CT of its own; sha256 by exam.

    With ``scans`` the CT is of that file, and the X-ray is the patient's own.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    names = [f"{prefix}p{n:02d}" for n in range(len(files))]
    shared, own = ("ct", "x") if scans else ("x", "ct")
    of = {f"{shared}-{p}": digest(int(file)) for p, file in zip(names, files, strict=True)}
    of |= {f"{own}-{p}": digest(f"{own} of {p}") for p in names}
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
        matrix = rng.normal(size=(len(ids), dim)).astype(np.float32)
        net = spec(f"{name}-net", modality, dim, None)
        write_cache(folder / "caches" / name, net, ids, [of[i] for i in ids], matrix)
    return of


def config(**design: Any) -> StudyConfig:
    one = {"name": "d", "methods": ["cxr-only", "ridge-head"], **design}
    claim = {"name": "H1", "claim": "c", "design": "d", "a": one["methods"][1], "b": one["methods"][0]}
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


def read_by_fits(study: StudyConfig, data: Any, folder: Path, of: dict[str, str]) -> list[dict[str, set[str]]]:
    """By fold: the files whose embeddings the fits of it are given to train on, to choose by, and to score."""
    inputs = inputs_of(Variant("", {}, study), data, data.caches, frozenset(), folder)
    found = []
    for fold in inputs.folds.values():
        given = fold_data(inputs, study.designs[0], fold)
        parts = {"train": set(), "val": set(), "test": {of[i] for i in given.scored["test"].exam_ids}}
        for stage in (*given.stages, *given.paired_stages):
            parts["train"] |= {of[i] for i in stage.train.exam_ids}
            parts["val"] |= {of[i] for i in stage.val.exam_ids}
        ct = data.cohort.exams.query("modality == 'CT'")
        for part, patients in given.teacher.patients.items():
            parts[part] |= {of[i] for i in ct.loc[ct["patient_id"].isin(patients), "exam_id"]}
        pairs = data.cohort.pairs.set_index("cxr_exam_id")["ct_exam_id"]
        parts["test"] |= {of[pairs[i]] for i in given.scored["test"].exam_ids}
        found.append(parts)
    return found


def apart(parts: dict[str, set[str]]) -> bool:
    return not (parts["test"] & parts["train"] or parts["test"] & parts["val"] or parts["val"] & parts["train"])


@pytest.mark.parametrize("split", SPLITS)
@example(seed=341, kept="join", share=1.0, scans=False)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000), kept=st.sampled_from(["join", "report"]), share=st.sampled_from([1.0, 0.3]),
    scans=st.booleans(),
)  # fmt: skip
def test_no_file_lies_on_two_sides_of_a_fold(split: str, seed: int, kept: str, share: float, scans: bool) -> None:
    """36 patients with 26 files: ten at least stand under two patient ids; radiographs or, of as many, CTs."""
    files = np.random.default_rng(seed).integers(10, 36, 36)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "cohort"
        of = write(folder, files, scans=scans)
        study = config(**SPLITS[split]).model_copy(update={"duplicates": kept, "label_fraction": share})
        sites = [{number % 3 for number in np.flatnonzero(files == file)} for file in files]
        if split == "external sites" and {2} not in sites:  # everyone of site C shares a file with another site
            with pytest.raises(BadInput, match="nobody is left to hold out"):
                read_study_data(study, folder)
            return
        data = read_study_data(study, folder)
        assert all(apart(parts) for parts in sides(data, of, "site" in split))
        given_to_fits = read_by_fits(study, data, folder, of)
        assert all(apart(parts) for parts in given_to_fits)
        assert all(parts["train"] and parts["test"] for parts in given_to_fits)
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


def test_what_looks_like_the_cohorts_own_in_an_external_folder_is_refused_or_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Embeddings alone; no checksum is the same."""
    write(tmp_path / "own", np.arange(10, 40), dim=64)
    write(tmp_path / "other", np.arange(50, 62), "b-", dim=64)
    rng = np.random.default_rng(8)
    ids = [f"x-b-p{n:02d}" for n in range(12)]
    matrix = rng.normal(size=(12, 64)).astype(np.float32)
    own = open_caches(CacheChoice(cxr="caches/cxr"), tmp_path / "own").cxr
    matrix[4] = own.take(["x-p07"])[0] + 0.02 * rng.normal(size=64)
    shutil.rmtree(tmp_path / "other" / "caches" / "cxr")
    net = spec("cxr-net", "CXR", 64, None)
    write_cache(tmp_path / "other" / "caches" / "cxr", net, ids, [digest(f"again {i}") for i in ids], matrix)
    study = config(split="external", data="../other", cases="cxr", methods=["cxr-only", "logistic"])
    said = r"'other': 1 of its exams look like the study's own: x-p07 and x-b-p04 \(same embedding\)"
    with pytest.raises(BadInput, match=said):
        read_study_data(study, tmp_path / "own")
    data = read_study_data(study.model_copy(update={"duplicates": "report"}), tmp_path / "own")
    assert data.duplicates[["exam_a", "exam_b", "how"]].to_numpy().tolist() == [["x-p07", "x-b-p04", "same embedding"]]
    what = "Compared: 12 CXR embeddings of 'other' with the study's own by cosine (a copy from 0.95 on)."
    assert what in data.compared
    assert any(text.startswith("Not compared: pictures of 'other'") for text in data.compared)


@pytest.mark.parametrize("split", ["kfold", "repeats", "resamples", "fixed"])
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), kept=st.sampled_from(["join", "report"]))
def test_no_picture_lies_on_two_sides_on_the_road_of_pictures(split: str, seed: int, kept: str) -> None:
    """24 patients with 14 pictures, of which some are saved as they are and some compressed again."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 14, 24)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows, of = [], {}
        for n, number in enumerate(pictures):
            scene = np.random.default_rng(int(number)).integers(0, 256, (8, 8)).astype(np.uint8)
            image = Image.fromarray(scene).resize((128, 128), Image.Resampling.BICUBIC)
            again = bool(rng.integers(2))
            name = f"x{n}.{'jpg' if again else 'png'}"
            image.save(folder / name, **({"quality": 60} if again else {}))
            rows.append((f"x{n}", f"p{n}", "CXR", name, n % 2))
            of[f"x{n}"] = digest(int(number) if kept == "join" else (int(number), again))
        columns = ["exam_id", "patient_id", "modality", "path", "label:nodule"]
        pd.DataFrame(rows, columns=columns).to_csv(folder / "exams.csv", index=False)
        design = {"name": "d", **SPLITS[split], "cases": "cxr", "methods": ["cxr-only", "logistic"]}
        study = {
            "label": "nodule", "source": "tables", "encoder": {"name": "pixels-128", "options": {}}, "title": "t",
            "designs": [design], "seeds": [1], "as_published": "a test", "hypotheses": [], "duplicates": kept,
        }  # fmt: skip
        data = read_study_data(parse_config(StudyConfig, study, "test"), folder)
        assert all(apart(parts) for parts in sides(data, of, False))
        assert data.cohort.exams["group_id"].nunique() == len(set(of.values()))


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


def test_exams_that_could_not_be_embedded_are_dropped_counted_and_need_attention(tmp_path: Path) -> None:
    """A radiograph and a CT are in no cache, as after ``embed`` left them out; a lateral was never to be embedded."""
    write(tmp_path / "own", np.arange(10, 40))
    exams = pd.read_csv(tmp_path / "own" / "exams.csv").assign(view="PA")
    more = [("x-bad", "p00", "CXR", 0, "A", "PA"), ("x-side", "p00", "CXR", 0, "A", "LL")]
    more.append(("ct-bad", "q", "CT", 1, "A", ""))
    exams = pd.concat([exams, pd.DataFrame(more, columns=exams.columns)])
    exams.to_csv(tmp_path / "own" / "exams.csv", index=False)
    pairs = pd.read_csv(tmp_path / "own" / "pairs.csv")
    pairs.loc[len(pairs)] = ["bad", "p00", "x-bad", "ct-p00", 1, 1]
    pairs.to_csv(tmp_path / "own" / "pairs.csv", index=False)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(BASE))
    words = ["--config", str(tmp_path / "study.yaml"), "--data", str(tmp_path / "own"), "--out", str(tmp_path / "out")]
    assert main(["study", "run", *words]) == 3
    failures = pd.read_csv(tmp_path / "out" / "failures.csv")
    assert sorted(failures["exam_id"]) == ["ct-bad", "x-bad"]
    assert failures["reason"].str.startswith("no embedding in the caches").all()
    flow = pd.read_csv(tmp_path / "out" / "cohort" / "flow.csv").set_index("step")
    assert flow.loc["embedding exists", "dropped"] == 3
    assert "x-bad" not in set(pd.read_csv(tmp_path / "out" / "predictions.csv")["exam_id"])


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
