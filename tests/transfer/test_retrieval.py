"""``evaluate-embeddings retrieval`` on caches: several exams of a patient, several systems, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom

from embedprior.cache import write_cache
from embedprior.cli import main
from embedprior.encoders.base import EncoderSpec

DIM = 6


def cache(folder: Path, ids: list[str], rows: np.ndarray, modality: str, seen: tuple[str, ...] | None = None) -> Path:
    spec = EncoderSpec(
        name=folder.name, modality=modality, dim=rows.shape[1], source="test", weights_sha256="none", licence="none",
        profile={}, pooling="none", patients_seen=seen,
    )  # fmt: skip
    write_cache(folder, spec, ids, ids, rows.astype(np.float32))
    return folder


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """30 patients; every third has two CTs (two scans), each with a radiograph. System ``good`` knows the patient."""
    rng = np.random.default_rng(0)
    patients = [f"P-{i:02}" for i in range(30)]
    scans = [(p, n) for i, p in enumerate(patients) for n in range(2 if i % 3 == 0 else 1)]
    cts, cxrs = ([f"{kind}-{p}-{n}" for p, n in scans] for kind in ("ct", "cxr"))
    of_patient = {p: rng.normal(size=DIM) for p in patients}
    ct = np.array([of_patient[p] + 0.1 * rng.normal(size=DIM) for p, _ in scans])
    cache(tmp_path / "ct", cts, ct, "CT")
    cache(tmp_path / "good", cxrs, ct + 0.1 * rng.normal(size=ct.shape), "CXR")
    cache(tmp_path / "blind", cxrs, np.ones_like(ct), "CXR")
    label = rng.integers(0, 2, (len(scans), 2))
    exams = pd.DataFrame(
        {"exam_id": [*cts, *cxrs], "patient_id": [p for p, _ in scans] * 2, "path": "x",
         "modality": ["CT"] * len(cts) + ["CXR"] * len(cxrs),
         "label:a": np.tile(label[:, 0], 2), "label:b": np.tile(label[:, 1], 2)}
    )  # fmt: skip
    exams.to_csv(tmp_path / "exams.csv", index=False)
    pd.DataFrame(
        {"pair_id": cts, "patient_id": [p for p, _ in scans], "cxr_exam_id": cxrs, "ct_exam_id": cts,
         "offset_days": 0, "label_agree": 1}
    ).to_csv(tmp_path / "pairs.csv", index=False)  # fmt: skip
    return tmp_path


def run(cohort: Path, *more: str) -> int:
    words = ["evaluate-embeddings", "retrieval", "--exams", str(cohort / "exams.csv"), "--out", str(cohort / "out")]
    if "--pairs" not in more:
        words += ["--pairs", str(cohort / "pairs.csv")]
    return main([*words, *more])


def value(cohort: Path, **where: object) -> dict:
    rows = json.loads((cohort / "out" / "retrieval.json").read_text())["rows"]
    (found,) = [row for row in rows if all(row[name] == wanted for name, wanted in where.items())]
    return found


def test_a_cache_that_knows_nothing_gets_exactly_chance(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"good={cohort / 'good'}", f"blind={cohort / 'blind'}"]
    assert run(cohort, "--cxr", names[0], "--cxr", names[1], "--ct", str(cohort / "ct"), "--k", "1", "--k", "5") == 0
    # all 40 radiographs are equal to any CT; 10 patients have two of them, 20 have one
    expected = (10 * hypergeom(40, 2, 5).sf(0) + 20 * hypergeom(40, 1, 5).sf(0)) / 30
    blind = value(cohort, system="blind", direction="ct to cxr", metric="recall", k=5)
    assert blind["value"] == pytest.approx(expected, rel=1e-9)
    assert blind["chance"] == pytest.approx(expected, rel=1e-9)
    good = value(cohort, system="good", direction="ct to cxr", metric="recall", k=1)
    assert good["value"] > 0.95
    assert good["chance"] == pytest.approx((10 * 2 / 40 + 20 / 40) / 30)
    difference = json.loads((cohort / "out" / "retrieval.json").read_text())["differences"]
    assert all(row["reference"] == "good" and row["system"] == "blind" for row in difference)
    assert {row["metric"] for row in difference} == {"recall", "label overlap"}
    said = capsys.readouterr().out
    assert "40 radiographs and 40 CTs of 30 patients" in said
    assert "how well they do" in said
    ranks = pd.read_csv(cohort / "out" / "ranks.csv")
    blind = ranks[(ranks["system"] == "blind") & (ranks["direction"] == "ct to cxr")]
    assert set(blind["tied"]) == {40}


def test_a_scan_of_the_same_patient_is_found_only_where_patients_are_matched(cohort: Path) -> None:
    """The radiograph of the first scan of P-00 lies on the CT of the second."""
    from embedprior.cache import open_cache

    ct = open_cache(cohort / "ct")
    rows = ct.matrix.copy()
    swapped = {"ct-P-00-0": "ct-P-00-1", "ct-P-00-1": "ct-P-00-0"}
    rows = np.stack([ct.take([swapped.get(i, i)])[0] for i in ct.ids])
    crossed = cache(cohort / "crossed", [i.replace("ct-", "cxr-", 1) for i in ct.ids], rows, "CXR")
    for match, expected in (("patient", 1.0), ("scan", 29 / 30)):
        assert run(cohort, "--cxr", str(crossed), "--ct", str(cohort / "ct"), "--k", "1", "--match", match) == 0
        assert value(cohort, direction="cxr to ct", metric="recall", k=1)["value"] == pytest.approx(expected)


def test_only_the_held_out_part_takes_part_and_seen_patients_are_refused(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patients = [f"P-{i:02}" for i in range(30)]
    part = ["train"] * 20 + ["test"] * 10
    pd.DataFrame(
        {"patient_id": patients, "group_id": patients, "design": "d", "resample": 0, "fold": 0, "part": part}
    ).to_csv(cohort / "splits.csv", index=False)
    words = ["--ct", str(cohort / "ct"), "--splits", str(cohort / "splits.csv"), "--k", "1"]
    assert run(cohort, "--cxr", str(cohort / "good"), *words) == 0
    assert "13 radiographs and 13 CTs of 10 patients" in capsys.readouterr().out
    from embedprior.cache import open_cache

    good = open_cache(cohort / "good")
    seen = cache(cohort / "seen", good.ids, good.matrix, "CXR", seen=("P-25",))
    assert run(cohort, "--cxr", str(seen), *words) == 2
    assert "was trained on 1 patients of part 'test'" in capsys.readouterr().err


def test_exams_without_embedding_are_left_out_for_every_system(cohort: Path) -> None:
    from embedprior.cache import open_cache

    good = open_cache(cohort / "good")
    few = cache(cohort / "few", good.ids[3:], good.matrix[3:], "CXR")
    words = ["--cxr", f"all={cohort / 'good'}", "--cxr", f"few={few}", "--ct", str(cohort / "ct"), "--k", "1"]
    assert run(cohort, *words) == 3
    counts = json.loads((cohort / "out" / "retrieval.json").read_text())["counts"]
    assert (counts["radiographs"], counts["cts"]) == (37, 37)
    assert set(pd.read_csv(cohort / "out" / "failures.csv")["exam_id"]) == set(good.ids[:3])


def test_spaces_that_differ_and_names_that_do_not_fit_are_refused(
    cohort: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = cache(cohort / "wide", ["x"], np.ones((1, 9)), "CXR")
    for words, message in (
        (["--cxr", str(wide), "--ct", str(cohort / "ct")], "lie in different spaces"),
        (["--cxr", f"a={cohort / 'good'}", "--cxr", f"a={cohort / 'good'}", "--ct", str(cohort / "ct")], "once"),
        (["--cxr", f"a={cohort / 'good'}", "--ct", f"b={cohort / 'ct'}", "--ct", f"c={cohort / 'ct'}"], "--ct names b"),
    ):
        assert run(cohort, *words) == 2
        assert message in capsys.readouterr().err
    assert not (cohort / "out").exists()
