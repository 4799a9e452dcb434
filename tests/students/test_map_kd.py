"""Rows in which a network of CT slices teaches one of radiographs, by labels, logits and feature maps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from embedprior.errors import BadInput
from embedprior.nn.config import FitConfig
from embedprior.students.base import CannotFit, Cases, CtNotAvailable, FitData, Stage
from embedprior.students.config import Augmentation
from embedprior.students.map_kd import (
    AttentionMaps,
    HallucinatedMean,
    HintMaps,
    SliceKd,
    attention_transfer,
    ct_as_radiograph,
)
from embedprior.students.network import StudentNetwork, new_student
from embedprior.students.registry import Budget, build_method
from embedprior.students.training import Batch, Objective, to_tensors, train_student

from .conftest import SIDE, slice_pairs

BUDGET = Budget(fit=FitConfig(steps=40, batch_size=16, lr=3e-3, validate_every=10, hidden=16), balance="class-weights")
ROWS = ("slice-kd", "slice-attention", "slice-hint", "slice-hallucination", "jdcnet")


def data(count: int = 32, labelled: int | None = None) -> FitData:
    return FitData((Stage(slice_pairs(count, 1, labelled), slice_pairs(16, 2)),), None, "none")


@pytest.mark.parametrize(
    ("method", "options", "parameters"),
    [
        ("cxr-only", {"inputs": "pixels", "student": "pilot"}, 93_954),
        ("cxr-only", {"inputs": "pixels", "student": "pilot-dfpn"}, 566_530),
        ("slice-kd", {}, 93_954 + 389_890),
        ("jdcnet", {}, 566_530 + 719_619),
        ("same-modality-kd", {"inputs": "pixels", "student": "pilot-dfpn", "teacher": "pilot-teacher-full"},
         566_530 + 719_619),
        ("slice-hint", {}, 93_954 + 389_890 + 128 * (128 + 256)),
    ],
)  # fmt: skip
def test_a_row_trains_the_published_number_of_parameters(method: str, options: dict[str, str], parameters: int) -> None:
    quick = BUDGET.model_copy(update={"fit": BUDGET.fit.model_copy(update={"steps": 1})})
    row: Any = build_method(method, quick, **options)
    assert row.parameters(data(8))[0] == parameters


@pytest.mark.parametrize("name", ROWS)
def test_a_row_learns_and_reads_no_ct_when_it_scores(name: str) -> None:
    fitted, test = build_method(name, BUDGET).fit(data(), 3), slice_pairs(60, 9)
    scores = fitted.scores(test.without_ct())
    np.testing.assert_array_equal(scores, fitted.scores(test))
    assert roc_auc_score(test.label, scores) > 0.8
    assert test.without_ct().ct_pixels is None


@pytest.mark.parametrize("name", ["slice-ct-only", "slice-late-fusion"])
def test_an_oracle_needs_the_ct_slice(name: str) -> None:
    method = build_method(name, BUDGET)
    assert method.needs_ct
    fitted, test = method.fit(data(), 3), slice_pairs(40, 9)
    assert roc_auc_score(test.label, fitted.scores(test)) > 0.95
    with pytest.raises(CtNotAvailable):
        fitted.scores(test.without_ct())


def test_a_swapped_teacher_hurts() -> None:
    """What the student learns without labels it has from the CT network, right or wrong."""
    right, test = data(48), slice_pairs(80, 9)
    swapped = Stage(*(replace(cases, ct_label=1 - cases.ct_label) for cases in right.target.parts))
    aucs = []
    for stage in (right.target, swapped):
        fitted = build_method("slice-kd", BUDGET, soft_share=1.0).fit(FitData((stage,), None), 3)
        aucs.append(roc_auc_score(test.label, fitted.scores(test)))
    assert aucs[0] > 0.9
    assert aucs[1] < 0.1


def test_the_ct_network_learns_the_cts_labels_or_the_radiographs() -> None:
    cases = slice_pairs(8, 1)
    other = replace(cases, ct_label=np.where(np.arange(8) == 0, np.nan, 1 - cases.label))
    stage = FitData((Stage(other, other),), None)
    ct = ct_as_radiograph(stage, "ct").target.train
    assert ct.label.tolist() == [cases.label[0], *(1 - cases.label[1:])]  # the radiograph's where the CT has none
    assert ct_as_radiograph(stage, "radiograph").target.train.label.tolist() == cases.label.tolist()
    assert ct.pixels is cases.ct_pixels
    assert ct.ct is None


def test_attention_transfer_by_hand() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(3, 5, 4, 4)), rng.normal(size=(3, 7, 4, 4))
    q = [np.square(maps).mean(axis=1).reshape(3, 16) for maps in (student, teacher)]
    q = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in q]
    found = attention_transfer(torch.from_numpy(student), torch.from_numpy(teacher))
    assert float(found) == pytest.approx(np.square(q[0] - q[1]).mean())


def batch(network: StudentNetwork, cases: Cases) -> Batch:
    tensors = to_tensors(cases, "pixels", None, "none")
    features, logits, maps = network.outputs(tensors.inputs)
    return Batch(
        features, logits, tensors.inputs, tensors.label, tensors.weight, tensors.ct, tensors.ct_label, tensors.teacher,
        tensors.patient, maps, tensors.ct_pixels,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["attention", "hint", "hallucination"])
def test_the_losses_of_a_row_by_hand(kind: str) -> None:
    cases = slice_pairs(6, 1)
    student = new_student(cases, "pixels", BUDGET.fit, 1, student="pilot").eval()
    teacher = new_student(cases, "pixels", BUDGET.fit, 2, student="pilot-teacher").eval()
    made: Any = {
        "attention": lambda: AttentionMaps((teacher, 0.0), 4.0, 0.6, 0.2),
        "hint": lambda: HintMaps(128, 16, (teacher, 0.0), 4.0, 0.6, 0.2),
        "hallucination": lambda: HallucinatedMean(128, (teacher, 0.0), 1.0),
    }[kind]()
    rows = batch(student, cases)
    named = {name: float(value) for name, value in made.eval().losses(rows, rows).items()}
    assert cases.ct_pixels is not None
    with torch.no_grad():
        _, logits_t, maps_t = teacher.outputs(torch.from_numpy(cases.ct_pixels))
        z_s, z_t, maps_s = rows.logits.double().numpy(), logits_t.double().numpy(), rows.maps
        assert maps_s is not None
        assert maps_t is not None
        big = torch.nn.functional.interpolate(maps_t, size=maps_s.shape[2:], mode="bilinear")
        if kind == "hallucination":
            expected = (made.guess(maps_s.mean((2, 3))) - maps_t.mean((2, 3))).square().mean()
        elif kind == "hint":
            sides = [
                torch.einsum("oc,nchw->nohw", projection.weight[:, :, 0, 0], maps)
                for projection, maps in ((made.student_map, maps_s), (made.teacher_map, big))
            ]
            sides = [side / side.norm(dim=1, keepdim=True) for side in sides]
            expected = (sides[0] - sides[1]).square().mean()
        else:
            energy = torch.nn.functional.interpolate(
                maps_t.square().mean(1, keepdim=True), size=maps_s.shape[2:], mode="bilinear"
            )
            q = [each.flatten(1) for each in (maps_s.square().mean(1), energy)]
            q = [each / each.norm(dim=1, keepdim=True) for each in q]
            expected = (q[0] - q[1]).square().mean()
    assert named[kind] == pytest.approx(float(expected), rel=1e-4)
    temperature = 1.0 if kind == "hallucination" else 4.0
    p, q_s = expit(z_t / temperature), expit(z_s / temperature)
    kl = p * np.log(p / q_s) + (1 - p) * np.log((1 - p) / (1 - q_s))
    assert named["kd"] == pytest.approx(temperature**2 * kl.mean(), rel=1e-3, abs=1e-6)
    y = cases.label
    assert named["label"] == pytest.approx(-np.mean(y * np.log(expit(z_s)) + (1 - y) * np.log(expit(-z_s))), rel=1e-4)
    share = 0.0 if kind == "hallucination" else 0.6
    assert (made.weights["label"], made.weights["kd"]) == (1 - share, share)
    assert not any(parameter.requires_grad for parameter in made.teacher.parameters())


class Spy(Objective):
    """Remembers the pictures it is shown."""

    reads_ct = False

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def losses(self, labelled: Batch, pairs: Batch) -> dict[str, torch.Tensor]:
        self.seen.append((pairs.inputs, pairs.ct_pixels))
        return {"label": pairs.logits.square().mean()}


@pytest.mark.parametrize("independent", [False, True])
def test_a_ct_slice_is_flipped_with_its_radiograph_unless_each_has_a_coin_of_its_own(independent: bool) -> None:
    ramp = np.tile(np.arange(SIDE, dtype=np.uint8), (8, SIDE, 1))
    cases = replace(slice_pairs(8, 1), pixels=ramp, ct_pixels=ramp)
    budget = BUDGET.model_copy(update={"augment": Augmentation(flip=True, independent=independent)})
    tensors, spy = to_tensors(cases, "pixels", None, "none"), Spy()
    network = new_student(cases, "pixels", BUDGET.fit, 0, student="pilot")
    train_student(network, spy, tensors, tensors.take(np.arange(0)), budget, 0)
    flips = [(x[:, 0, 0] > 0, ct[:, 0, 0] > 0) for x, ct in spy.seen if ct is not None]
    radiograph, slices = (torch.cat(each) for each in zip(*flips, strict=True))
    assert 0.3 < float(radiograph.float().mean()) < 0.7
    agree = float((radiograph == slices).float().mean())
    assert 0.3 < agree < 0.7 if independent else agree == 1.0


def test_a_ct_without_a_picture_is_refused_with_the_way_out() -> None:
    bare = replace(slice_pairs(8, 1), ct_pixels=None)
    with pytest.raises(CannotFit, match=r"no picture of the CT\. Next: give a pixels-128 cache"):
        SliceKd(BUDGET).fit(FitData((Stage(bare, bare),), None), 0)


def test_a_pilot_student_of_embeddings_is_refused() -> None:
    with pytest.raises(BadInput, match="student 'pilot' reads pixels, inputs is 'embedding'"):
        build_method("cxr-only", BUDGET, student="pilot")


def test_rows_share_one_ct_network_and_score_as_if_each_had_trained_its_own(tmp_path: Path) -> None:
    kept = BUDGET.model_copy(update={"artifacts": tmp_path})
    test, made = slice_pairs(20, 9).without_ct(), {}
    for name in ("slice-kd", "slice-hint"):
        alone: Any = build_method(name, BUDGET).fit(data(), 3)
        shared: Any = build_method(name, kept).fit(data(), 3)
        np.testing.assert_array_equal(alone.scores(test), shared.scores(test))
        assert alone.fit_summary.shared_seconds == 0
        assert alone.fit_summary.trainable == shared.fit_summary.trainable
        made[name] = shared.fit_summary.shared_seconds
    folders = list((tmp_path / "network").glob("[!.]*"))
    assert len(folders) == 1
    spent = json.loads((folders[0] / "cost.json").read_text())["seconds"]
    assert made == {"slice-kd": 0.0, "slice-hint": spent}
    assert spent > 0


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"teacher": "pilot-teacher-mhra"}},
        {"seed": 4},
        {"budget": {"fit": BUDGET.fit.model_copy(update={"steps": 41})}},
        {"pictures": True},
        {"labels": True},
    ],
)
def test_a_ct_network_of_other_data_or_settings_is_not_shared(tmp_path: Path, change: dict[str, Any]) -> None:
    first = data(16)
    kept = BUDGET.model_copy(update={"artifacts": tmp_path})
    build_method("slice-kd", kept).fit(first, 3)
    train = first.target.train
    if "pictures" in change:
        assert train.ct_pixels is not None
        train = replace(train, ct_pixels=255 - train.ct_pixels)
    if "labels" in change:
        train = replace(train, ct_label=1 - train.ct_label)
    before = len(list((tmp_path / "network").glob("[!.]*")))
    budget = kept.model_copy(update=change.get("budget", {}))
    other = FitData((Stage(train, first.target.val),), None, "none")
    build_method("slice-kd", budget, **change.get("options", {})).fit(other, change.get("seed", 3))
    assert len(list((tmp_path / "network").glob("[!.]*"))) == before + 1
