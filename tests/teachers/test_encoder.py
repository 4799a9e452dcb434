"""Phase A: an encoder trained on labels reaches what the untrained one does not, is frozen, resumed, and guarded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import torch
import yaml
from PIL import Image
from sklearn.metrics import roc_auc_score

from embedprior.cache import open_cache, write_cache
from embedprior.cli import main
from embedprior.config import config_folder, load_config
from embedprior.encoders.base import EncoderSpec
from embedprior.encoders.config import TrainEncoderConfig
from embedprior.encoders.registry import create_encoder, list_encoders
from embedprior.encoders.trained import base_encoder
from embedprior.errors import BadInput
from embedprior.evidence import delong_test
from embedprior.nn import training
from embedprior.nn.config import FitConfig, SequenceConfig
from embedprior.nn.losses import case_weights, weighed_loss
from embedprior.runs import hash_file, hash_of
from embedprior.runs.integrity import with_checksum
from embedprior.teachers import encoder as phase_a
from embedprior.teachers.config import TeacherConfig
from embedprior.teachers.encoder import rows_of_steps
from embedprior.teachers.train import CtCases, train_teacher, write_embeddings

COUNT, SIDE = 160, 64
PARTS = ["train"] * 70 + ["val"] * 20 + ["test"] * 70
HUBCONF = """
dependencies = ["torch"]
from torch import nn
class Tiny(nn.Module):
    embed_dim = 12
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 8, stride=8), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 12, 3, stride=2), nn.ReLU()
        )
    def forward(self, x):
        return self.net(x).amax((2, 3))
def tiny(pretrained=True):
    return Tiny()
"""


def hub(folder: Path) -> None:
    (folder / "hub").mkdir()
    (folder / "hub" / "hubconf.py").write_text(HUBCONF)


def tables(folder: Path, modality: str, paths: list[str], labels: np.ndarray) -> None:
    people = [f"p{i:02}" for i in range(len(paths))]
    pd.DataFrame(
        {"exam_id": [f"e{i}" for i in range(len(paths))], "patient_id": people, "modality": modality, "path": paths,
         "label:sign": labels.astype(float)}
    ).to_csv(folder / "exams.csv", index=False)  # fmt: skip
    pd.DataFrame(
        {"patient_id": people, "group_id": people, "design": "fixed", "resample": 0, "fold": 0, "part": PARTS}
    ).to_csv(folder / "splits.csv", index=False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise; a positive has a wide bar somewhere, a negative a tall one of the same size and grey."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    labels = np.arange(COUNT) % 2
    for i, label in enumerate(labels):
        grey = 90 + rng.normal(0, 12, (SIDE, SIDE))
        row, column = rng.integers(4, SIDE - 28, 2)
        height, width = (6, 24) if label else (24, 6)
        grey[row : row + height, column : column + width] += 40
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    hub(folder)
    tables(folder, "CXR", [f"{i}.png" for i in range(COUNT)], labels)
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CTs of 12 to 20 slices of air, tissue and noise, each with one slice of bone: in a positive among the last ones.

    Where a slice lies is nothing that the mean of the slices knows.
    """
    folder, rng = tmp_path_factory.mktemp("volumes"), np.random.default_rng(1)
    labels = np.arange(COUNT) % 2
    for i, label in enumerate(labels):
        count = int(rng.integers(12, 21))
        hu = rng.normal(-900, 20, (count, 24, 24))
        hu[:, 6:18] += 940
        hu[int(rng.integers(count - 3, count) if label else rng.integers(0, 3)), 6:18] += 700
        image = sitk.GetImageFromArray(hu.astype(np.int16))
        image.SetSpacing((5.0, 5.0, 8.0))
        sitk.WriteImage(image, str(folder / f"{i}.nii"))
    hub(folder)
    tables(folder, "CT", [f"{i}.nii" for i in range(COUNT)], labels)
    profile = {"spacing_mm": None, "crop": "none", "windows": ["wide"], "side": 32, "fit": "stretch"}
    (folder / "profile.yaml").write_text(yaml.safe_dump(profile))
    return folder


def train(folder: Path, out: str, *more: str, config: str = "cxr") -> int:
    return main(
        ["train", "encoder", "--config", config, "--encoder", f"torchhub:{folder / 'hub'}/tiny", "--exams",
         str(folder / "exams.csv"), "--splits", str(folder / "splits.csv"), "--label", "sign",
         "--out", str(folder / out), *more]
    )  # fmt: skip


NETWORK = (
    "--options.random_init", "true", "--training.epochs", "20", "--training.lr", "2e-2", "--training.batch-norm",
    "trained", "--training.dropout", "0", "--training.patience", "30", "--training.shift", "0",
)  # fmt: skip


def sequence_of(volumes: Path) -> tuple[str, ...]:
    return (
        "--options", f"{{random_init: true, reader: slices, profile: {volumes / 'profile.yaml'}}}",
        "--sequence.hidden", "16", "--sequence.layers", "1", "--sequence.dim", "8", "--sequence.dropout", "0",
        "--sequence.pool", "attention and max", "--training.epochs", "40", "--training.lr", "5e-3",
        "--training.patience", "60",
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(pictures: Path) -> Path:
    assert train(pictures, "trained", *NETWORK) == 0
    return pictures / "trained"


@pytest.fixture(scope="module")
def sequence(volumes: Path) -> Path:
    assert train(volumes, "trained", *sequence_of(volumes), config="ct_slices") == 0
    return volumes / "trained"


def held_out(folder: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    table = pd.read_csv(folder / "predictions.csv")
    table = table[table["split"] == "test"]
    scores = {name: rows["score"].to_numpy() for name, rows in table.groupby("method")}
    return table.loc[table["method"] == "start", "label"].to_numpy(), scores


@pytest.mark.parametrize("kind", ["trained", "sequence"])
def test_training_reaches_what_the_untrained_encoder_does_not(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    labels, scores = held_out(folder)
    result = delong_test(labels, scores["trained"], scores["start"])
    assert result.auc[0] > 0.9
    assert result.ci[0] > 0
    assert f"ΔAUC +{result.delta:.3f}" in (folder / "summary.md").read_text()


SHIPPED = (
    "--sequence.hidden",
    "64",
    "--sequence.layers",
    "2",
    "--sequence.dim",
    "128",
    "--sequence.pool",
    "class token",
)
"""The shape of the preset ``ct_slices``; its dropout and learning rate come from it too."""


@pytest.mark.parametrize(("shape", "count", "least"), [("small", 8, 0.9), ("shipped", 4, 0.8)])
def test_a_sequence_model_learns_where_a_slice_lies_whatever_the_seed(
    shape: str, count: int, least: float, volumes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chance is .5, and so is the mean of the slices: which end of the scan the bone is at is all there is to learn."""
    embed_exams, found = phase_a._labelled, []

    def embedded_once(*given: Any) -> Any:
        found.extend([] if found else [embed_exams(*given)])
        return found[0]

    monkeypatch.setattr(phase_a, "_labelled", embedded_once)
    small = sequence_of(volumes)
    more = small if shape == "small" else small[:2]  # the encoder's options, and all the rest as in ct_slices
    aucs = []
    for seed in range(count):
        out = f"{shape}-{seed}"
        assert train(volumes, out, *more, "--training.epochs", "12", "--seed", str(seed), config="ct_slices") == 0
        labels, scores = held_out(volumes / out)
        aucs.append(roc_auc_score(labels, scores["trained"]))
    assert min(aucs) > least, aucs


@pytest.mark.parametrize("kind", ["trained", "sequence"])
def test_the_folder_is_an_encoder_that_says_whose_exams_it_saw(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    assert main(["embed", "--cohort", str(folder.parent / "exams.csv"), "--encoder", str(folder), "--limit", "6",
                 "--out", str(folder.parent / f"cache-{kind}")]) == 0  # fmt: skip
    cache = open_cache(folder.parent / f"cache-{kind}")
    # the patients of the training and of the validation part, and no other
    assert cache.patients_seen == {f"p{i:02}" for i in range(90)}
    assert cache.key["weights_sha256"] == hash_file(folder / "encoder.safetensors")
    encoder = create_encoder(str(folder / "encoder.json"))
    path = pd.read_csv(folder.parent / "exams.csv")["path"][5]
    one = encoder.embed(encoder.read(folder.parent, path)[None])
    np.testing.assert_allclose(one[0], cache.take(["e5"])[0], atol=1e-5)
    untrained = create_encoder(json.loads((folder / "encoder.json").read_text())["encoder"], random_init=True)
    assert untrained.spec.weights_sha256 != encoder.spec.weights_sha256
    assert not (folder / "training").exists()


def test_a_head_is_trained_on_the_trained_encoder(trained: Path) -> None:
    folder, part = trained.parent, pd.read_csv(trained.parent / "splits.csv")
    cache = folder / "cache-head"
    assert main(["embed", "--cohort", str(folder / "exams.csv"), "--encoder", str(trained), "--out", str(cache)]) == 0
    table = pd.read_csv(folder / "exams.csv").assign(modality="CT")
    table.to_csv(folder / "as-ct.csv", index=False)
    assert main(["train", "teacher", "--cache", str(cache), "--exams", str(folder / "as-ct.csv"), "--splits",
                 str(folder / "splits.csv"), "--label", "sign", "--out", str(folder / "teacher")]) == 0  # fmt: skip
    assert json.loads((folder / "teacher" / "teacher_auc.json").read_text())["test"]["auc"] > 0.9
    # the same patients, the other way round: the encoder has seen those who would be held out
    turned = part.assign(part=part["part"].map({"train": "test", "val": "val", "test": "train"}))
    turned.to_csv(folder / "turned.csv", index=False)
    assert main(["train", "teacher", "--cache", str(cache), "--exams", str(folder / "as-ct.csv"), "--splits",
                 str(folder / "turned.csv"), "--label", "sign", "--out", str(folder / "other")]) == 2  # fmt: skip
    assert not (folder / "other").exists()


def test_a_stopped_training_goes_on_to_the_same_weights(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = (*NETWORK[:2], "--training.epochs", "4", *NETWORK[4:], "--training.dropout", "0.3")
    assert train(pictures, "whole", *short) == 0
    saved, count = training.save_state, iter(range(2))

    def killed(*given: object) -> None:
        saved(*given)  # type: ignore[arg-type]
        if next(count) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        train(pictures, "stopped", *short)
    monkeypatch.undo()
    assert not (pictures / "stopped" / "encoder.json").exists()
    assert train(pictures, "stopped", *short) == 0
    weights = [hash_file(pictures / name / "encoder.safetensors") for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
    lines = [(pictures / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    assert [json.loads(line)["epoch"] for line in lines[1]] == [1, 2, 3, 4]
    assert lines[0] == lines[1]


def test_another_training_in_the_same_folder_is_refused_and_the_same_is_not_repeated(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hash_file(trained / "encoder.safetensors")
    assert train(trained.parent, "trained", *NETWORK) == 0
    assert "trained already" in capsys.readouterr().out
    assert train(trained.parent, "trained", *NETWORK, "--seed", "1") == 2
    assert "trained on other settings" in capsys.readouterr().err
    assert hash_file(trained / "encoder.safetensors") == before


def test_what_can_t_be_trained_is_refused_before_anything_is_written(
    volumes: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sliced = ("--options", f"{{random_init: true, reader: slices, profile: {volumes / 'profile.yaml'}}}")
    for more, config, what in (
        (sliced, "cxr", "can't be trained whole"),
        (("--options", "{random_init: true}"), "ct_slices", "gives no slice tokens of a CT"),
        ((*NETWORK, "--training.precision", "fp16"), "cxr", "fp16 needs --device cuda"),
        ((*NETWORK, "--label", "sing"), "cxr", "Did you mean 'sign'?"),
    ):
        folder = volumes if more is sliced else pictures
        assert train(folder, "refused", *more, config=config) == 2
        assert what in capsys.readouterr().err
    one = pd.read_csv(pictures / "exams.csv").assign(**{"label:sign": 1.0})
    one.to_csv(pictures / "one.csv", index=False)
    assert train(pictures, "refused", *NETWORK, "--exams", str(pictures / "one.csv")) == 2
    assert "needs both classes" in capsys.readouterr().err
    assert not (pictures / "refused").exists()
    assert not (volumes / "refused").exists()


def test_a_network_that_saw_held_out_patients_is_no_start(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """p10 trains and p95 is held out."""

    def seen_by(*patients: str) -> Callable[..., object]:
        def base(*given: object) -> object:
            encoder = base_encoder(*given)  # type: ignore[arg-type]
            encoder.spec = encoder.spec.model_copy(update={"patients_seen": patients})  # type: ignore[misc]
            return encoder

        return base

    monkeypatch.setattr(phase_a, "base_encoder", seen_by("p10", "p95"))
    assert train(pictures, "seen", *NETWORK) == 2
    assert "was trained on 1 patients of part 'test' (such as 'p95')" in capsys.readouterr().err
    assert not (pictures / "seen").exists()
    monkeypatch.setattr(phase_a, "base_encoder", seen_by("p10"))
    assert train(pictures, "seen", *NETWORK, "--training.epochs", "1") == 0


def test_a_damaged_or_changed_encoder_is_refused(trained: Path, sequence: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(trained, damaged)
    (damaged / "encoder.safetensors").write_bytes((trained / "encoder.safetensors").read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"the encoder in .* is damaged: encoder.safetensors"):
        create_encoder(str(damaged))
    moved = tmp_path / "moved"
    shutil.copytree(sequence, moved)
    record = json.loads((moved / "encoder.json").read_text())
    record["patients"]["train"] = ["nobody"]
    (moved / "encoder.json").write_text(json.dumps(record))
    with pytest.raises(BadInput, match=r"no longer has the contents it was written with"):
        create_encoder(str(moved))
    record = json.loads((sequence / "encoder.json").read_text())
    record["base"]["profile"]["every"] = 2
    (moved / "encoder.json").write_text(json.dumps(with_checksum(record)))
    with pytest.raises(BadInput, match=r"is not what this encoder was trained on: every is 1, was 2"):
        create_encoder(str(moved))
    with pytest.raises(BadInput, match="no trained encoder"):
        create_encoder(f"trained:{tmp_path}")


def test_class_weights_count_in_batches_of_one_class_too() -> None:
    """By hand: of 1 positive and 3 negatives they weigh 2 and 2/3; at logit 0 each case loses ln 2."""
    label = np.array([1.0, 0.0, 0.0, 0.0])
    weight, truth = (torch.tensor(v, dtype=torch.float32) for v in (case_weights(label), label))
    alone, others = (weighed_loss(torch.zeros(len(truth[rows])), truth[rows], weight[rows]) for rows in ([0], [1, 2]))
    assert alone.item() == pytest.approx(2 * np.log(2))
    assert others.item() == pytest.approx(2 / 3 * np.log(2))


def test_every_exam_is_seen_once_an_epoch_and_a_resumed_order_is_the_same() -> None:
    steps = rows_of_steps(7, 3, seed=4)
    whole = [next(steps) for _ in range(9)]
    assert [sorted(row for rows in whole[i : i + 3] for row in rows) for i in (0, 3, 6)] == [list(range(7))] * 3
    later = rows_of_steps(7, 3, seed=4, first=6)
    assert [next(later) for _ in range(4)] == whole[5:]
    assert whole[:3] != whole[3:6]


def test_embeddings_of_a_sequence_teacher_name_the_patients_of_its_slice_encoder_too(tmp_path: Path) -> None:
    rng, ids = np.random.default_rng(0), [f"e{i}" for i in range(12)]
    tokens = [rng.standard_normal((3, 4)).astype(np.float32) for _ in ids]
    spec = EncoderSpec(
        name="slices", modality="CT", dim=4, token_dim=4, source="test", weights_sha256="none", licence="none",
        profile={}, pooling="none", patients_seen=("earlier",),
    )  # fmt: skip
    cache = write_cache(tmp_path / "tokens", spec, ids, ids, tokens, tokens=True)
    people = [f"p{i}" for i in range(12)]
    cases = CtCases(ids[:8], people[:8], np.arange(8.0) % 2, tokens[:8])
    rest = CtCases(ids[8:10], people[8:10], np.arange(2.0), tokens[8:10])
    config = TeacherConfig(
        kind="sequence", fit=FitConfig(steps=2, validate_every=1, hidden=4), sequence=SequenceConfig(hidden=4, dim=5)
    )
    teacher, _ = train_teacher(cases, rest, config, "sign", hash_of(cache.key))
    teacher.save(tmp_path / "teacher")
    made = write_embeddings(teacher, tmp_path / "teacher", cache, tmp_path / "ct")
    assert made.patients_seen == {*people[:10], "earlier"}


def test_shipped_presets_name_encoders_that_exist_and_the_paper_s_numbers() -> None:
    names = {path.stem for path in config_folder("encoder").glob("*.yaml")}
    found = {name: load_config(TrainEncoderConfig, name, "encoder") for name in names}
    assert {config.encoder for config in found.values()} <= set(list_encoders())
    paper = found["pe_paper"]
    assert (paper.training.batch_size, paper.training.lr, paper.training.balance) == (2, 1e-6, "class-weights")
    assert (paper.kind, paper.encoder, paper.sequence.cell, paper.sequence.pool) == (
        "sequence", "penet", "transformer", "class token",
    )  # fmt: skip
