"""Probes for several labels on caches: evidence per label and macro, few patients, another cohort, prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.alignment.config import AlignmentConfig
from embedprior.alignment.model import Alignment, new_network
from embedprior.alignment.planted import LABELS, PlantedTriplesConfig, planted_triples
from embedprior.cache import write_cache
from embedprior.cli import main
from embedprior.encoders.base import EncoderSpec, encoder_key
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput
from embedprior.evidence import delong, holm
from embedprior.runs import hash_of
from embedprior.transfer.cases import MultiCases
from embedprior.transfer.probes import Probe, drawn_rows, few_shot, linear_probe
from embedprior.transfer.zero_shot import zero_shot, zero_shot_scores

from ..encoders.test_text import bert  # noqa: F401


def write_side(folder: Path, ids: list[str], rows: np.ndarray, modality: str, name: str = "") -> None:
    spec = EncoderSpec(
        name=name or folder.name, modality=modality, dim=rows.shape[1], source="test", weights_sha256="none",
        licence="none", profile={}, pooling="none",
    )  # fmt: skip
    write_cache(folder, spec, ids, ids, rows.astype(np.float32))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 patients with three labels, a tenth of one unknown; ``plain`` shows them, ``noise`` does not; CTs beside."""
    folder = tmp_path_factory.mktemp("probes")
    truth = PlantedTriplesConfig(cxr_dim=8, ct_labels=(0, 1, 2), signal=2.0)
    planted = planted_triples(truth, (240,), seed=1)[0]
    rng = np.random.default_rng(0)
    patients = [f"P-{i:03}" for i in range(240)]
    ids = {"cxr": [f"x{i}" for i in range(240)], "ct": [f"c{i}" for i in range(240)]}
    write_side(folder / "plain", ids["cxr"], np.asarray(planted.cases.cxr), "CXR")
    write_side(folder / "noise", ids["cxr"], rng.normal(size=(240, 8)), "CXR")
    write_side(folder / "ct", ids["ct"], planted.cases.ct, "CT")
    tables = [
        pd.DataFrame({"exam_id": ids[side], "patient_id": patients, "modality": side.upper(), "path": "x"})
        for side in ids
    ]
    for name, values in zip(LABELS, planted.labels.T, strict=True):
        tables[0][f"label:{name}"] = values
    tables[0].loc[::10, "label:nodule"] = np.nan
    pd.concat(tables).to_csv(folder / "exams.csv", index=False)
    pd.DataFrame(
        {"pair_id": ids["cxr"], "patient_id": patients, "cxr_exam_id": ids["cxr"], "ct_exam_id": ids["ct"],
         "offset_days": 0, "label_agree": 1}
    ).to_csv(folder / "pairs.csv", index=False)  # fmt: skip
    part = ["train"] * 100 + ["val"] * 40 + ["test"] * 100
    pd.DataFrame(
        {"patient_id": patients, "group_id": patients, "design": "fixed", "resample": 0, "fold": 0, "part": part}
    ).to_csv(folder / "splits.csv", index=False)
    return folder


def run(verb: str, cohort: Path, out: Path, *more: str) -> int:
    words = ["evaluate-embeddings", verb, "--exams", str(cohort / "exams.csv"), "--out", str(out)]
    words += [] if verb == "few-shot" else ["--bootstrap", "20"]
    return main([*words, "--splits", str(cohort / "splits.csv"), "--pairs", str(cohort / "pairs.csv"), *more])


def test_probes_are_compared_per_label_and_as_a_mean_with_one_holm_family(cohort: Path, tmp_path: Path) -> None:
    systems = ["--cxr", f"noise={cohort / 'noise'}", "--cxr", f"plain={cohort / 'plain'}"]
    assert run("linear-probe", cohort, tmp_path / "out", *systems, "--oracle", f"ct={cohort / 'ct'}") == 0
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_text())
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    test = table[table["split"] == "test"]
    assert len(test) == 3 * (90 + 100 + 100)  # the label that is unknown for ten of the test patients
    rows = {(row["label_name"], row["method"]): row for row in evidence["methods"]}
    for label in LABELS:
        for method in ("noise", "plain", "ct"):
            own = test[(test["label_name"] == label) & (test["method"] == method)]
            expected = delong(own["label"].to_numpy(), own["score"].to_numpy()).auc[0]
            assert rows[label, method]["auc"] == pytest.approx(expected)
    macro = np.mean([rows[label, "plain"]["auc"] for label in LABELS])
    assert rows["macro", "plain"]["auc"] == pytest.approx(macro)
    assert rows["macro", "ct"]["oracle"]
    family = [row for row in evidence["comparisons"] if row["in_family"]]
    assert {(row["a"], row["label_name"]) for row in family} == {("plain", name) for name in (*LABELS, "macro")}
    assert [row["p_holm"] for row in family] == pytest.approx(list(holm([row["p"] for row in family])))
    assert all(row["p_holm"] < 0.05 and row["delta"] > 0.1 for row in family)


def test_a_student_and_its_teacher_go_through_the_same_verb(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--cxr", str(cohort / "plain"), "--method", "logistic", "--method", "direct-head", "--labels", "effusion"]
    assert run("linear-probe", cohort, tmp_path / "no", *words) == 2
    assert "method 'direct-head' learns from CT. Next: --ct-cache DIR" in capsys.readouterr().err
    assert run("linear-probe", cohort, tmp_path / "out", *words, "--ct-cache", str(cohort / "ct"), "--steps", "60") == 0
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert [row["method"] for row in evidence["methods"]] == ["plain", "plain · direct-head"]
    assert all(row["auc"] > 0.7 for row in evidence["methods"])
    assert run("linear-probe", cohort, tmp_path / "no", "--cxr", str(cohort / "plain"), "--method", "ct-only") == 2
    assert "needs CT at inference" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def cases(count: int = 300, seed: int = 0) -> MultiCases:
    planted = planted_triples(PlantedTriplesConfig(cxr_dim=6, signal=2.0), (count,), seed=seed)[0]
    ids = [f"x{i}" for i in range(count)]
    part = ["train"] * (count // 2) + ["val"] * (count // 6)
    part += ["test"] * (count - len(part))
    return MultiCases(
        ids, [f"p{i}" for i in range(count)], part, planted.labels, LABELS, {"plain": np.asarray(planted.cases.cxr)}
    )


def test_smaller_shares_are_part_of_larger_ones_and_draws_differ() -> None:
    many = cases()
    shares = {f: set(drawn_rows(many, f, seed=1).tolist()) for f in (0.1, 0.5, 1.0)}
    assert shares[0.1] < shares[0.5] < shares[1.0]
    assert shares[1.0] == set(many.rows("train")) | set(many.rows("val"))
    assert [len(shares[f] & set(many.rows("train").tolist())) for f in shares] == [15, 75, 150]
    assert [len(shares[f] & set(many.rows("val").tolist())) for f in shares] == [5, 25, 50]
    assert shares[0.1] != set(drawn_rows(many, 0.1, seed=2).tolist())


def test_auc_rises_with_the_share_and_draws_count_as_seeds() -> None:
    found = few_shot(cases(), [Probe("plain")], (0.05, 1.0), draws=5)
    rows = {
        name: next(r for r in each.evidence["methods"] if r["label_name"] == "macro") for name, each in found.items()
    }
    assert list(found) == ["5 %", "100 %"]
    assert (rows["5 %"]["n_seeds"], rows["100 %"]["n_seeds"]) == (5, 1)
    assert rows["5 %"]["auc"] < rows["100 %"]["auc"]
    few = found["5 %"].predictions
    assert set(few["split"]) == {"test"}
    first = few[few["label_name"] == LABELS[0]]
    each = [delong(g["label"].to_numpy(), g["score"].to_numpy()).auc[0] for _, g in first.groupby("seed")]
    own = next(r for r in found["5 %"].evidence["methods"] if r["label_name"] == LABELS[0])
    assert own["auc"] == pytest.approx(np.mean(each))
    least = few_shot(cases(), [Probe("plain")], (0.001, 1.0))
    assert list(least) == ["100 %"]
    (lost,) = least["100 %"].skipped
    assert lost["label"] == "every label at 0.1 %"
    assert "the 1 labelled training cases hold fewer than two classes" in lost["reason"]
    with pytest.raises(BadInput, match="5 or more"):
        few_shot(cases(), [Probe("plain")], (0.05,), draws=3)
    with pytest.raises(BadInput, match=r"share 1\.5"):
        few_shot(cases(), [Probe("plain")], (1.5,))


def test_a_label_without_both_classes_is_left_out_with_its_reason() -> None:
    few = cases()
    labels = few.labels.copy()
    labels[few.rows("test"), 2] = 0
    found = linear_probe(replace(few, labels=labels), [Probe("plain")])
    assert found.skipped == [
        {"label": "emphysema", "reason": "the 100 labelled test cases hold fewer than two classes"}
    ]
    assert set(found.predictions["label_name"]) == {"nodule", "effusion"}


def test_another_cohort_is_scored_with_mapped_labels(
    cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set.yaml").write_text(
        "name: mine\nsource: test\nlabels: [fluid, air]\n"
        "made_of: {other: {fluid: [effusion], air: [emphysema, nodule]}}\n"
    )
    planted = planted_triples(PlantedTriplesConfig(cxr_dim=8, ct_labels=(0, 1, 2), signal=2.0), (240, 60), seed=1)[1]
    ids = [f"y{i}" for i in range(60)]
    write_side(tmp_path / "other", ids, np.asarray(planted.cases.cxr), "CXR", name="plain")
    exams = pd.DataFrame({"exam_id": ids, "patient_id": [f"Q-{i}" for i in range(60)], "modality": "CXR", "path": "x"})
    exams["label:fluid"] = planted.labels[:, 1]
    exams["label:air"] = planted.labels[:, [0, 2]].max(axis=1)
    exams.to_csv(tmp_path / "exams.csv", index=False)
    words = ["--cxr", str(cohort / "plain"), "--to-exams", str(tmp_path / "exams.csv")]
    words += ["--labels", str(tmp_path / "set.yaml")]
    assert run("external", cohort, tmp_path / "out", *words, "--to-cxr", str(tmp_path / "other")) == 0
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    test = table[table["split"] == "test"]
    assert set(test["exam_id"]) == set(ids)
    assert set(test["label_name"]) == {"fluid", "air"}
    evidence = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert all(row["auc"] > 0.7 for row in evidence["methods"])
    write_side(tmp_path / "foreign", ids, np.asarray(planted.cases.cxr), "CXR", name="another")
    assert run("external", cohort, tmp_path / "no", *words, "--to-cxr", str(tmp_path / "foreign")) == 2
    assert "Embeddings of different origin are never mixed" in capsys.readouterr().err
    exams.assign(patient_id=[f"P-{i:03}" for i in range(60)]).to_csv(tmp_path / "exams.csv", index=False)
    assert run("external", cohort, tmp_path / "no", *words, "--to-cxr", str(tmp_path / "other")) == 2
    assert "60 patient ids stand in both cohorts" in capsys.readouterr().err


def test_a_near_copy_of_a_training_radiograph_is_refused_or_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(80, 40)).astype(np.float32) for name in ("own", "other")}
    rows["other"][7] = rows["own"][3] * 1.0001  # of a training patient
    rows["other"][9] = rows["own"][79]  # of a held-out patient, whom nothing learned from
    pixels = {name: rng.integers(0, 255, (80, 128 * 128), dtype=np.uint8) for name in rows}
    part = np.repeat(["train", "val", "test"], [50, 15, 15])
    for name, letter in (("own", "x"), ("other", "y")):
        ids = [f"{letter}{i}" for i in range(80)]
        (tmp_path / name).mkdir()
        write_side(tmp_path / name / "cache", ids, rows[name], "CXR", name="plain")
        write_side(tmp_path / name / "pixels", ids, pixels[name], "CXR", name="pixels-128")
        table = pd.DataFrame({"exam_id": ids, "patient_id": [f"{letter}p{i}" for i in range(80)], "modality": "CXR"})
        label = (rows[name][:, 0] + rng.normal(size=80) > 0).astype(int)
        table.assign(path="x", **{"label:a": label}).to_csv(tmp_path / name / "exams.csv", index=False)
        splits = {"patient_id": table["patient_id"], "group_id": table["patient_id"], "design": "fixed"}
        splits |= {"resample": 0, "fold": 0, "part": part}
        pd.DataFrame(splits).to_csv(tmp_path / name / "splits.csv", index=False)
    words = ["evaluate-embeddings", "external", "--cxr", str(tmp_path / "own" / "cache"), "--bootstrap", "50"]
    words += ["--exams", str(tmp_path / "own" / "exams.csv"), "--splits", str(tmp_path / "own" / "splits.csv")]
    words += ["--to-cxr", str(tmp_path / "other" / "cache"), "--to-exams", str(tmp_path / "other" / "exams.csv")]
    assert main([*words, "--out", str(tmp_path / "no")]) == 2
    assert "1 of its exams look like the study's own: x3 and y7 (same embedding)" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    listed = [*words, "--duplicates", "report", "--out"]
    assert main([*listed, str(tmp_path / "out")]) == 0
    found = pd.read_csv(tmp_path / "out" / "near_copies.csv")
    assert found[["exam_a", "exam_b"]].to_numpy().tolist() == [["x3", "y7"]]
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "Near-copies listed in near_copies.csv: 1." in summary
    assert "Compared: 80 CXR embeddings of 'other' with the study's own by cosine" in summary
    assert main([*listed, str(tmp_path / "x"), "--pixels", str(tmp_path / "own" / "pixels")]) == 2
    assert "--pixels and --to-pixels go together" in capsys.readouterr().err
    pictures = ["--pixels", str(tmp_path / "own" / "pixels"), "--to-pixels", str(tmp_path / "other" / "pixels")]
    assert main([*listed, str(tmp_path / "pictures"), *pictures]) == 0
    assert (
        "Compared: 80 pictures of 'other' with the study's own." in (tmp_path / "pictures" / "summary.md").read_text()
    )


def test_zero_shot_scores_are_the_softmax_share_of_the_positive_prompt() -> None:
    rng = np.random.default_rng(0)
    x, p, n = rng.normal(size=(5, 4)), rng.normal(size=4), rng.normal(size=4)
    p, n = p / np.linalg.norm(p), n / np.linalg.norm(n)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    weights = np.exp(np.stack([unit @ p, unit @ n]) / 0.3)
    assert zero_shot_scores(x, {"a": (p, n)}, 0.3)[:, 0] == pytest.approx(weights[0] / weights.sum(axis=0))


def test_prompts_at_the_findings_directions_score_the_findings() -> None:
    """The prompts of each label lie where reports with and without it lie on average."""
    planted = planted_triples(PlantedTriplesConfig(cxr_dim=10, report_dim=10, signal=2.0), (2000, 500), seed=3)
    known, test = planted
    vectors = {}
    for j, label in enumerate(LABELS):
        sides = [np.asarray(known.cases.cxr)[known.labels[:, j] == value].mean(axis=0) for value in (1, 0)]
        vectors[label] = tuple(side / np.linalg.norm(side) for side in sides)
    many = MultiCases(
        test.cases.patients, test.cases.patients, ["test"] * 500, test.labels, LABELS,
        {"plain": np.asarray(test.cases.cxr)},
    )  # fmt: skip
    evidence = zero_shot(many, vectors, 0.1).evidence
    assert min(row["auc"] for row in evidence["methods"]) > 0.75


def test_the_command_reads_prompts_with_the_reports_own_encoder(
    cohort: Path,
    tmp_path: Path,
    bert: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = create_encoder(f"hf-text:{bert}")
    rng = np.random.default_rng(0)
    rows = {"cxr": rng.normal(size=(9, 8)).astype(np.float32), "report": rng.normal(size=(9, 16)).astype(np.float32)}
    rows["ct"] = rows["cxr"]
    network = new_network(rows, AlignmentConfig(train_sides=("cxr", "ct", "report"), dim=8))
    caches = {"cxr": "a", "ct": "b", "report": hash_of(encoder_key(text.spec))}
    Alignment(network, caches, {"train": [], "val": []}).save(tmp_path / "alignment")
    (tmp_path / "prompts.yaml").write_text(
        "template: {positive: ['{} zebra'], negative: ['no {}']}\nlabels: {effusion: {positive: [large effusion, "
        "effusion], negative: [no effusion]}}\n"
    )
    words = ["--cxr", str(cohort / "plain"), "--alignment", str(tmp_path / "alignment"), "--text-encoder",
             f"hf-text:{bert}", "--prompts", str(tmp_path / "prompts.yaml")]  # fmt: skip
    assert run("zero-shot", cohort, tmp_path / "out", *words) == 0
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert set(table["label_name"]) == set(LABELS)
    assert table["score"].between(0, 1).all()
    written = b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert b"zebra" not in written
    assert run("zero-shot", cohort, tmp_path / "no", *words, "--encoder-option", "pool=mean") == 2
    assert "is not the encoder that the alignment's reports were embedded with" in capsys.readouterr().err
