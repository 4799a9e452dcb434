"""Training, saving and applying an alignment; what it gains on a planted cohort, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from scipy import stats
from sklearn.metrics import roc_auc_score

from embedprior.alignment.config import AlignmentConfig
from embedprior.alignment.model import Alignment, new_network
from embedprior.alignment.planted import LABELS, PlantedTriplesConfig, planted_triples
from embedprior.alignment.train import batch_loss, train_alignment
from embedprior.cache import open_cache, write_cache
from embedprior.cli import main
from embedprior.encoders.base import EncoderSpec
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput
from embedprior.evidence.retrieval import rank_targets
from embedprior.nn.standardise import Standardiser
from embedprior.nn.training import Resume
from embedprior.students.controls import probe

SIDES = ("cxr", "ct", "report")
FIT = {"dim": 8, "batch_size": 256, "steps": 400, "validate_every": 50, "lr": 0.01, "temperature": 0.2}


def settings(**changes: object) -> AlignmentConfig:
    return AlignmentConfig(**{"train_sides": SIDES, **FIT, **changes})


def few_label_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Logistic regression on few labelled radiographs, half of them to choose the penalty: (labels, test cases)."""
    scaler, cut = Standardiser.fit(train), len(train) // 2
    x, z = scaler.wide(train), scaler.wide(test)
    found = [probe(x[cut:], y[cut:], x[:cut], y[:cut], "none") for y in labels.T]
    return np.array([z @ weights + bias for weights, bias in found])


def planted_aucs(draws: range) -> dict[str, np.ndarray]:
    """AUC by way of embedding, (draws, labels): of a probe on 60 labelled patients, and of the best score there is."""
    found: dict[str, list[list[float]]] = {}
    for draw in draws:
        for reports, carried in (("reports", (0, 1, 2)), ("noise", ())):
            truth = PlantedTriplesConfig(report_labels=carried)
            train, val, labelled, test = planted_triples(truth, (2000, 300, 60, 1500), seed=draw)

            def add(name: str, scores: np.ndarray, labels: np.ndarray = test.labels) -> None:
                aucs = [roc_auc_score(y, own) for y, own in zip(labels.T, scores, strict=True)]
                found.setdefault(name, []).append(aucs)

            def aligned(config: AlignmentConfig, sets: tuple = (train, val, labelled, test)) -> np.ndarray:
                fitted, _ = train_alignment(sets[0].cases, sets[1].cases, config, {})
                left, right = (fitted.embed("cxr", each.cases.cxr) for each in sets[2:])
                return few_label_scores(left, sets[2].labels, right)

            add(reports, aligned(settings(seed=draw)))
            if reports == "reports":
                add("pairs", aligned(settings(seed=draw, beta=0.0)))
                add("unaligned", few_label_scores(labelled.cases.cxr, labelled.labels, test.cases.cxr))
                add("best", test.best.T)
    return {name: np.array(rows) for name, rows in found.items()}


def limits(gains: np.ndarray) -> tuple[float, float]:
    """95 % interval (t over draws) of a mean gain; a draw has its own population, labelled patients and weights."""
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    return float(gains.mean() - half), float(gains.mean() + half)


# draws named beforehand: the five first, and twenty that were never looked at while the test was written
@pytest.fixture(scope="module", params=[range(5), pytest.param(range(100, 120), marks=pytest.mark.slow)], ids=str)
def aucs(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    return planted_aucs(request.param)


def test_the_aligned_probe_beats_the_unaligned_on_every_label_that_ct_carries(aucs: dict[str, np.ndarray]) -> None:
    for label in (0, 1):
        assert limits((aucs["pairs"] - aucs["unaligned"])[:, label])[0] > 0, LABELS[label]
        assert limits((aucs["best"] - aucs["pairs"])[:, label])[0] > 0  # nothing beats what the radiograph shows


def test_reports_help_where_they_carry_more_than_the_pairs_do(aucs: dict[str, np.ndarray]) -> None:
    # the third finding, that no CT embedding carries
    assert limits((aucs["reports"] - aucs["pairs"])[:, 2])[0] > 0
    assert limits((aucs["reports"] - aucs["unaligned"])[:, 2])[0] > 0


def test_reports_of_noise_do_not_help(aucs: dict[str, np.ndarray]) -> None:
    low, high = limits((aucs["noise"] - aucs["pairs"]).mean(axis=1))
    assert low < 0
    assert high < limits((aucs["reports"] - aucs["pairs"])[:, 2])[0] / 4  # far from what true reports give
    assert limits((aucs["reports"] - aucs["noise"])[:, 2])[0] > 0


def test_an_alignment_retrieves_and_reads_back_as_it_was(tmp_path: Path) -> None:
    train, val, test = planted_triples(PlantedTriplesConfig(signal=2.0), (600, 100, 200), seed=1)
    fitted, history = train_alignment(train.cases, val.cases, settings(steps=200), {"cxr": "a", "ct": "b"})
    fitted.save(tmp_path)
    again = Alignment.load(tmp_path)
    cxr, ct = again.embed("cxr", test.cases.cxr), again.embed("ct", test.cases.ct)
    assert (cxr == fitted.embed("cxr", test.cases.cxr)).all()
    assert np.linalg.norm(cxr, axis=1) == pytest.approx(np.ones(200), abs=1e-5)
    ranks = rank_targets(cxr, ct, test.cases.patients, test.cases.patients)
    assert ranks.hits(10).mean() > 3 * ranks.chance(10).mean()
    assert {"val_loss", "val_cxr-ct", "val_cxr-report", "temperature"} <= set(history[0])
    assert again.patients == {"train": sorted(train.cases.patients), "val": sorted(val.cases.patients)}
    assert main(["verify", str(tmp_path)]) == 0
    weights = tmp_path / "alignment.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(BadInput, match="damaged"):
        Alignment.load(tmp_path)
    assert main(["verify", str(tmp_path)]) == 3


def test_sides_that_are_not_trained_are_used_as_they_are() -> None:
    """As published: CT and report come from one frozen model, alpha is 0, and only the radiograph's side learns."""
    train, val = planted_triples(PlantedTriplesConfig(ct_dim=10, report_dim=10), (80, 40), seed=0)
    fitted, _ = train_alignment(train.cases, val.cases, AlignmentConfig(steps=5, validate_every=5), {})
    assert (fitted.dim, list(fitted.network.sides)) == (10, ["cxr"])
    ct = train.cases.ct / np.linalg.norm(train.cases.ct, axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.embed("ct", train.cases.ct), ct, atol=1e-6)
    odd = planted_triples(PlantedTriplesConfig(), (20,), seed=9)[0].cases
    with pytest.raises(BadInput, match="side 'report' is used as it is, with 10 numbers; the space has 12"):
        train_alignment(odd, val.cases, AlignmentConfig(steps=1), {})


def test_patch_tokens_of_the_radiograph_are_read() -> None:
    train, val = planted_triples(PlantedTriplesConfig(cxr_dim=8, ct_dim=6, signal=3.0), (200, 60), seed=0)
    rng = np.random.default_rng(0)

    def as_tokens(rows: np.ndarray) -> list[np.ndarray]:
        """The embedding is one of several tokens, the others are noise."""
        made = [0.3 * rng.normal(size=(int(rng.integers(2, 6)), 8)).astype(np.float32) for _ in rows]
        for tokens, row in zip(made, rows, strict=True):
            tokens[int(rng.integers(len(tokens)))] = row
        return made

    cases, others = (replace(each.cases, cxr=as_tokens(np.asarray(each.cases.cxr))) for each in (train, val))
    config = settings(
        steps=150,
        batch_size=64,
        lr=3e-3,
        beta=0.0,
        tokens={"cell": "transformer", "hidden": 8, "pool": "attention", "dropout": 0.0},
    )
    fitted, _ = train_alignment(cases, others, config, {})
    ranks = rank_targets(
        fitted.embed("cxr", others.cxr), fitted.embed("ct", others.ct), others.patients, others.patients
    )
    assert ranks.hits(10).mean() > 1.5 * ranks.chance(10).mean()


def test_an_encoder_of_pixels_is_trained_with_the_projections(tmp_path: Path) -> None:
    """The picture shows two findings as bright corners, of which the CT knows; its brightness is of no use."""
    train, val, test = planted_triples(PlantedTriplesConfig(ct_labels=(0, 1), anatomy=0), (300, 60, 100), seed=0)
    rng = np.random.default_rng(0)

    def pictures(labels: np.ndarray) -> np.ndarray:
        grey = rng.integers(60, 120, (len(labels), 1, 1)) + rng.normal(0, 10, (len(labels), 32, 32))
        grey[:, 4:12, 4:12] += 80 * labels[:, 0, None, None]
        grey[:, 20:28, 20:28] += 80 * labels[:, 1, None, None]
        return np.clip(grey, 0, 255).astype(np.uint8).reshape(len(labels), -1)

    cases, others = (replace(each.cases, cxr=pictures(each.labels)) for each in (train, val))
    config = settings(beta=0.0, steps=150, batch_size=64, lr=3e-3, pixels={"channels": [8, 16], "dropout": 0.0})
    fitted, _ = train_alignment(cases, others, config, {"cxr": "a", "ct": "b"})
    fitted.save(tmp_path)
    shown = pictures(test.labels)
    found = Alignment.load(tmp_path).embed("cxr", shown)
    np.testing.assert_array_equal(found, fitted.embed("cxr", shown))
    side = found @ found[(test.labels[:, :2] == [1, 0]).all(axis=1)].mean(axis=0)
    own, opposite = (side[(test.labels[:, :2] == pair).all(axis=1)].mean() for pair in ([1, 0], [0, 1]))
    assert own > opposite + 0.2
    with pytest.raises(BadInput, match="no square picture"):
        train_alignment(replace(cases, cxr=shown[:1].repeat(300, axis=0)[:, :1000]), others, config, {})


def test_a_pretrained_encoder_is_trained_on_from_pixels(tmp_path: Path) -> None:
    train, val, _ = planted_triples(PlantedTriplesConfig(), (24, 8, 1), seed=0)
    rng = np.random.default_rng(0)
    cases, others = (
        replace(each.cases, cxr=rng.integers(0, 255, (len(each.labels), 48 * 48), dtype=np.uint8))
        for each in (train, val)
    )
    pixels = {"encoder": "efficientnet-lite0", "lr": 1e-4, "side": 64, "dropout": 0.0, "shift": 0}
    config = settings(beta=0.0, steps=2, batch_size=8, validate_every=1, lr=1e-2, weight_decay=0.0, pixels=pixels)
    published = create_encoder("efficientnet-lite0").backbone
    weights = {name: value.clone() for name, value in published.module.state_dict().items()}
    network = new_network(cases.sides, config)
    side = network.sides["cxr"]
    for name, value in side.module.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0)
    # before the first step its features are the published encoder's own, of the same picture
    grey = torch.from_numpy(np.asarray(cases.cxr)[:3]).reshape(3, 1, 48, 48).float() / 255
    grey = torch.nn.functional.interpolate(grey, (64, 64), mode="bilinear", antialias=True).repeat(1, 3, 1, 1)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (published.mean, published.std))
    with torch.no_grad():
        expected = published.features((grey - mean) / std) @ side.head[1].weight.T
        found = network.eval()("cxr", torch.from_numpy(np.asarray(cases.cxr)[:3]))
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    fitted, _ = train_alignment(cases, others, config, {"cxr": "a", "ct": "b"})
    after = fitted.network.sides["cxr"].module.state_dict()
    moved = {name: float((after[name] - weights[name]).abs().max()) for name in after}
    statistics = [n for n in moved if "running" in n or "num_batches" in n]
    assert statistics
    assert not any(moved[n] for n in statistics)  # batch norm keeps its statistics
    learned = [n for n in moved if n not in statistics]
    assert sum(moved[n] > 0 for n in learned) > 0.9 * len(learned)  # the gradient reaches every layer
    assert max(moved[n] for n in learned) < 2.2e-4  # two steps of AdamW at the encoder's own rate
    head = fitted.network.sides["cxr"].head[1].weight - side.head[1].weight
    assert 5e-3 < float(head.detach().abs().max()) < 2.2e-2  # and at the alignment's
    fitted.save(tmp_path)
    again = Alignment.load(tmp_path)
    np.testing.assert_array_equal(again.embed("cxr", others.cxr), fitted.embed("cxr", others.cxr))
    assert again.start["weights_sha256"] == published.weights_sha256
    with pytest.raises(BadInput, match="reads radiographs, and the radiographs' cache holds embeddings"):
        train_alignment(train.cases, val.cases, config, {})
    with pytest.raises(BadInput, match="encoder 'pixels-128' has no option 'random_init'"):
        train_alignment(cases, others, settings(beta=0.0, pixels={"encoder": "pixels-128"}), {})


def stopping_at(call: int) -> Callable[..., object]:
    """Return ``batch_loss``, which ends the training at that call as Ctrl-C does."""
    calls = count(1)

    def loss(*args: object) -> object:
        if next(calls) == call:
            raise KeyboardInterrupt
        return batch_loss(*args)

    return loss


def test_a_stopped_training_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val, _ = planted_triples(PlantedTriplesConfig(), (60, 20, 1), seed=0)
    config = settings(steps=12, batch_size=16, validate_every=3, dropout=0.2)
    whole, history = train_alignment(train.cases, val.cases, config, {})
    made_of = {"cases": "planted"}
    monkeypatch.setattr("embedprior.alignment.train.batch_loss", stopping_at(8))
    with pytest.raises(KeyboardInterrupt):
        train_alignment(train.cases, val.cases, config, {}, resume=Resume(tmp_path, made_of))
    calls = 100
    resumed, lines = train_alignment(train.cases, val.cases, config, {}, resume=Resume(tmp_path, made_of))
    assert calls - 100 < 12 + 4 * 2  # steps and validations: the first were not done again
    assert lines == history
    for name, value in whole.network.state_dict().items():
        torch.testing.assert_close(resumed.network.state_dict()[name], value, rtol=0, atol=0, msg=name)
    with pytest.raises(BadInput, match="cases"):
        train_alignment(train.cases, val.cases, config, {}, resume=Resume(tmp_path, {"cases": "others"}))


def write_cohort(folder: Path, people: int = 60) -> None:
    """Caches and tables of planted patients, the first with two reconstructions; every fifth has no report."""
    planted = planted_triples(PlantedTriplesConfig(cxr_dim=16, signal=2.0), (people,), seed=2)[0]
    rows = {"cxr": np.asarray(planted.cases.cxr), "ct": planted.cases.ct, "report": planted.cases.report}
    ids = {side: [f"{side}{i}" for i in range(people)] for side in rows}
    ids["ct"].append("ct0b")
    rows["ct"] = np.vstack([rows["ct"], rows["ct"][:1] + 0.01])
    patients = [f"P-{i:03}" for i in range(people)]
    for side, modality in (("cxr", "CXR"), ("ct", "CT"), ("report", "REPORT")):
        spec = EncoderSpec(
            name=f"frozen-{side}", modality=modality, dim=rows[side].shape[1], source="test", weights_sha256="none",
            licence="none", profile={}, pooling="none",
        )  # fmt: skip
        write_cache(folder / side, spec, ids[side], ids[side], rows[side])
    tables = [
        pd.DataFrame({"exam_id": ids[side], "patient_id": [*patients, "P-000"][: len(ids[side])], "modality": modality})
        for side, modality in (("cxr", "CXR"), ("ct", "CT"), ("report", "REPORT"))
    ]
    for name, values in zip(LABELS, planted.labels.T, strict=True):
        tables[0][f"label:{name}"] = values
    pd.concat(tables).assign(path="x").to_csv(folder / "exams.csv", index=False)
    pairs = pd.DataFrame(
        {"pair_id": [f"pair{i}" for i in range(people)], "patient_id": patients, "cxr_exam_id": ids["cxr"],
         "ct_exam_id": ids["ct"][:people], "offset_days": 0, "label_agree": 1,
         "report_exam_id": [name if i % 5 else "" for i, name in enumerate(ids["report"])]}
    )  # fmt: skip
    extra = pairs.iloc[:1].assign(pair_id="again", ct_exam_id="ct0b")
    pd.concat([pairs, extra]).to_csv(folder / "pairs.csv", index=False)
    part = (["train"] * 3 + ["val", "test"]) * (people // 5)
    pd.DataFrame(
        {"patient_id": patients, "group_id": patients, "design": "fixed", "resample": 0, "fold": 0, "part": part}
    ).to_csv(folder / "splits.csv", index=False)


def train_command(folder: Path, *more: str) -> list[str]:
    words = ["train", "alignment", "--config", "trimodal", "--out", str(folder / "alignment"), *more]
    for side in SIDES:
        words += [f"--{side}-cache", str(folder / side)]
    for name in ("exams", "pairs", "splits"):
        words += [f"--{name}", str(folder / f"{name}.csv")]
    return [*words, "--alignment.dim", "6", "--alignment.steps", "40", "--alignment.validate-every", "20"]


def test_the_commands_train_and_apply_an_alignment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cohort(tmp_path)
    assert main(train_command(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "train: 37 pairs of 36 patients in 36 groups, " in said
    alignment = Alignment.load(tmp_path / "alignment")
    for side in SIDES:
        out = tmp_path / "aligned" / side
        words = ["align", "--alignment", str(tmp_path / "alignment"), "--side", side, "--cache", str(tmp_path / side)]
        assert main([*words, "--out", str(out)]) == 0
        found, source = open_cache(out), open_cache(tmp_path / side)
        assert found.ids == source.ids
        np.testing.assert_array_equal(found.matrix, alignment.embed(side, source.matrix))
        assert found.key["encoder"] == f"aligned-{side}"
        assert found.patients_seen == set(alignment.patients["train"]) | set(alignment.patients["val"])
    assert main([*words[:4], "ct", "--cache", str(tmp_path / "cxr"), "--out", str(tmp_path / "x")]) == 2
    assert "another cache key" in capsys.readouterr().err


def test_what_can_not_be_trained_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cohort(tmp_path, 20)
    words = train_command(tmp_path)
    without = [w for n, w in enumerate(words) if w != "--report-cache" and words[n - 1] != "--report-cache"]
    for changed, message in (
        ([*without, "--report-cache", "null"], "no report_cache is given"),
        ([*words, "--alignment.train-sides", "[cxr]", "--alignment.alpha", "1"], "alpha above 0 trains nothing"),
        ([*words, "--alignment.train-sides", "[ct]"], "train_sides must hold cxr"),
        ([*words, "--alignment.beta", "0", "--alignment.gamma", "0"], "aligned with nothing"),
    ):
        assert main(changed) == 2
        assert message in capsys.readouterr().err
    pairs = pd.read_csv(tmp_path / "pairs.csv")
    pairs.loc[1, "report_exam_id"] = "report2"
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    assert main(words) == 2
    assert "belongs to another patient" in capsys.readouterr().err
    pairs.drop(columns="report_exam_id").to_csv(tmp_path / "pairs.csv", index=False)
    assert main(words) == 2
    assert "no column 'report_exam_id'" in capsys.readouterr().err
    assert not (tmp_path / "alignment").exists()


def test_a_stopped_command_leaves_a_state_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cohort(tmp_path)
    once = train_command(tmp_path)
    assert main(once) == 0
    expected = (tmp_path / "alignment" / "alignment.safetensors").read_bytes()
    again = [w.replace(str(tmp_path / "alignment"), str(tmp_path / "again")) for w in once]
    with monkeypatch.context() as patched:
        patched.setattr("embedprior.alignment.train.batch_loss", stopping_at(30))
        with pytest.raises(KeyboardInterrupt):
            main(again)
    assert (tmp_path / "again" / "state").is_dir()
    assert not (tmp_path / "again" / "alignment.json").exists()
    assert main(again) == 0
    assert (tmp_path / "again" / "alignment.safetensors").read_bytes() == expected
    assert not (tmp_path / "again" / "state").exists()


@pytest.mark.slow
def test_two_processes_of_the_command_train_what_one_does(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    words = train_command(tmp_path)
    assert main(words) == 0
    two = [w.replace(str(tmp_path / "alignment"), str(tmp_path / "two")) for w in words]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "embedprior",
         *two],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, cwd=Path(__file__).parents[2],
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (load_file(tmp_path / name / "alignment.safetensors") for name in ("alignment", "two"))
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_allclose(other[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
