"""Rows that a network of CT slices teaches by gates, labels, centroids, contrast, relations and lung fields."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp
from sklearn.metrics import roc_auc_score

from embedprior.errors import BadInput
from embedprior.nn.config import FitConfig
from embedprior.students.base import FitData, Stage
from embedprior.students.map_kd import (
    LungMask,
    ProjectedAttention,
    SliceProjectedAttention,
    attention,
    lung_field,
    otsu,
)
from embedprior.students.network import StudentNetwork, new_student
from embedprior.students.pilot_networks import MapOutput, TrunkNetwork
from embedprior.students.registry import Budget, build_method
from embedprior.students.slice_kd import (
    CentroidCosines,
    GatedLogits,
    PseudoLabels,
    SliceContrast,
    SliceCrd,
    SliceGate,
    SlicePrototype,
    SlicePseudoLabel,
    SliceRelations,
    SliceRkd,
)
from embedprior.students.student import LogitStudent
from embedprior.students.training import Batch

from .conftest import slice_pairs

ROWS = (
    "slice-lung-mask", "slice-projected-attention", "slice-gate", "slice-pseudo-label", "slice-prototype", "slice-crd",
    "slice-rkd",
)  # fmt: skip
BUDGET = Budget(fit=FitConfig(steps=40, batch_size=16, lr=3e-3, validate_every=10, hidden=16), balance="class-weights")
QUICK = BUDGET.model_copy(update={"fit": BUDGET.fit.model_copy(update={"steps": 1})})


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def a_batch(
    label: list[float], features: Any = None, logits: Any = None, maps: Any = None, inputs: Any = None
) -> Batch:
    count = len(label)
    blank = torch.zeros(count, 0)
    return Batch(
        torch.from_numpy(features if features is not None else rng(1).normal(size=(count, 5))),
        torch.from_numpy(logits if logits is not None else rng(2).normal(size=count)),
        inputs if inputs is not None else torch.zeros(count, 8, 8, dtype=torch.uint8),
        torch.tensor(label, dtype=torch.float64), torch.ones(count, dtype=torch.float64), blank,
        torch.tensor(label, dtype=torch.float64), torch.full((count,), torch.nan, dtype=torch.float64),
        torch.arange(count), None if maps is None else torch.from_numpy(maps), torch.zeros(count, 8, 8),
    )  # fmt: skip


class Stub(StudentNetwork):
    """Gives what it was told, whatever the pictures: the terms are then functions of known numbers."""

    def __init__(self, features: Any, logits: Any, maps: Any) -> None:
        torch.nn.Module.__init__(self)
        self.given = [torch.from_numpy(one) for one in (features, logits, maps)]
        self.config, self.channels = FitConfig(hidden=features.shape[1]), maps.shape[1]

    def outputs(self, inputs: torch.Tensor) -> Any:
        return tuple(self.given)


def taught(count: int, dim: int = 7) -> tuple[Stub, Any, Any, Any]:
    features, logits, maps = (rng(5).normal(size=size) for size in ((count, dim), count, (count, 6, 4, 4)))
    logits = 3 * logits
    return Stub(features, logits, maps), features, logits, maps


LABEL = [1.0, 0.0, 1.0, 0.0, 1.0, float("nan")]


def kl(z_t: Any, z_s: Any, temperature: float) -> Any:
    p, q = expit(z_t / temperature), expit(z_s / temperature)
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def test_the_gate_and_the_pseudo_labels_by_hand() -> None:
    network, _, z_t, _ = taught(6)
    rows = a_batch(LABEL)
    z_s = rows.logits.numpy()
    p = expit(z_t)
    sure, positive = np.maximum(p, 1 - p), p >= 0.5
    wrong = ~np.isnan(LABEL) & (positive != (np.array(LABEL) == 1))
    weight = np.where((sure >= 0.7) & ~wrong, sure, 0)
    assert 0 < (weight > 0).sum() < 6
    found = GatedLogits((network, 0.0), SliceGate()).losses(rows, rows)
    assert float(found["kd"]) == pytest.approx(16 * (weight * kl(z_t, z_s, 4.0)).sum() / max(weight.sum(), 1))
    chosen = sure > 0.8
    for kind in ("soft", "hard"):
        method = SlicePseudoLabel(threshold=0.8, kind=kind, weight=1.5)
        objective = PseudoLabels((network, 0.0), method)
        named = objective.losses(rows, rows)
        hard = -np.where(positive, np.log(expit(z_s)), np.log(expit(-z_s)))
        expected = (kl(z_t, z_s, 1.0) if kind == "soft" else hard)[chosen].mean()
        assert float(named["pseudo"]) == pytest.approx(expected)
        assert (objective.weights["pseudo"], objective.weights["kd"], objective.weights["label"]) == (1.5, 0, 1)


def test_centroids_follow_the_batches_and_only_in_training() -> None:
    network, features, _, _ = taught(6)
    objective = CentroidCosines(5, (network, 0.0), SlicePrototype(momentum=0.9)).double()
    rows = a_batch(LABEL)
    label, ours = np.array(LABEL), rows.features.numpy()
    assert float(objective.eval().losses(rows, rows)["prototype"]) == 0  # no batch has shown a class yet
    means = np.stack([features[label == value].mean(0) for value in (0, 1)])
    objective.train().losses(rows, rows)
    np.testing.assert_allclose(objective.get_buffer("centroids"), means)
    network.given[0] = network.given[0] + 1
    loss = float(objective.losses(rows, rows)["prototype"])
    centroids = 0.9 * means + 0.1 * (means + 1)
    np.testing.assert_allclose(objective.get_buffer("centroids"), centroids)
    projected = ours @ objective.project.weight.detach().numpy().T + objective.project.bias.detach().numpy()
    known = ~np.isnan(label)
    unit = projected[known] / np.linalg.norm(projected[known], axis=1, keepdims=True)
    cosines = unit @ (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).T / 0.1
    own = cosines[np.arange(known.sum()), label[known].astype(int)]
    assert loss == pytest.approx((logsumexp(cosines, axis=1) - own).mean())
    objective.eval().losses(rows, rows)
    np.testing.assert_allclose(objective.get_buffer("centroids"), centroids)


def test_contrast_and_relations_by_hand() -> None:
    network, theirs, _, _ = taught(5)
    rows = a_batch(LABEL[:5])
    ours = rows.features.numpy()
    contrast = SliceContrast(5, (network, 0.0), SliceCrd(width=3)).double()
    a, b = (
        side @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        for side, layer in ((ours, contrast.student_projection), (theirs, contrast.ct_projection))
    )
    cosines = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T / 0.07
    own = np.diag(cosines)
    expected = ((logsumexp(cosines, axis=1) - own).mean() + (logsumexp(cosines, axis=0) - own).mean()) / 2
    assert float(contrast.losses(rows, rows)["crd"]) == pytest.approx(expected)
    named = SliceRelations((network, 0.0), SliceRkd()).losses(rows, rows)

    def smooth(x: Any) -> Any:
        return np.where(np.abs(x) < 1, x**2 / 2, np.abs(x) - 0.5)

    def distances(z: Any) -> Any:
        d = np.linalg.norm(z[:, None] - z[None], axis=2)
        return d / d[d > 0].mean()

    def angles(z: Any) -> Any:
        found = np.zeros((5, 5, 5))
        for i in range(5):
            for j in range(5):
                for k in range(5):
                    if i not in (j, k):
                        u, v = z[j] - z[i], z[k] - z[i]
                        found[i, j, k] = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        return found

    assert float(named["distance"]) == pytest.approx(smooth(distances(ours) - distances(theirs)).mean())
    assert float(named["angle"]) == pytest.approx(smooth(angles(ours) - angles(theirs)).mean())


def thorax(shift: int = 0) -> np.ndarray:
    """A bright body in dark air, with two dark lungs in it."""
    picture = np.full((64, 64), 5)
    picture[4:, 6:58] = 200
    picture[14:50, 12 + shift : 26 + shift] = picture[14:50, 36 + shift : 50 + shift] = 60
    return picture.astype(np.uint8)


def test_a_lung_field_is_the_dark_parts_inside_the_body() -> None:
    cropped = np.where(thorax() == 60, 60, 200).astype(np.uint8)[10:54, 12:50]
    field = lung_field(torch.from_numpy(thorax()[None]))[0].numpy()
    lungs = thorax() == 60
    assert (field & lungs).sum() / (field | lungs).sum() > 0.9
    assert not field[:, :6].any()  # air beside the patient is as dark
    assert not lung_field(torch.from_numpy(cropped[None])).any()  # its lungs touch the edge
    assert not lung_field(torch.full((1, 64, 64), 90, dtype=torch.uint8)).any()


def test_otsus_threshold_maximises_the_variance_between_two_classes() -> None:
    picture = rng(3).integers(0, 256, size=(20, 20)).astype(np.float32)

    def between(threshold: float) -> float:
        low, high = picture[picture < threshold], picture[picture >= threshold]
        share = low.size / picture.size
        return float(share * (1 - share) * (low.mean() - high.mean()) ** 2) if low.size and high.size else 0.0

    best = max(between(t) for t in range(257))
    assert between(otsu(picture)) == pytest.approx(best)


def resized(field: Any) -> Any:
    return field.reshape(-1, 4, 16, 4, 16).mean((2, 4)).reshape(-1, 16)


def test_attention_on_the_lungs_by_hand() -> None:
    network, _, z_t, maps_t = taught(3)
    inputs = torch.from_numpy(np.stack([thorax(), thorax(2), np.full((64, 64), 90, np.uint8)]))
    maps = rng(6).normal(size=(3, 2, 4, 4))
    rows = a_batch(LABEL[:3], maps=maps, inputs=inputs)
    field = resized(lung_field(inputs).numpy().astype(float))
    q, q_t = (np.square(each).mean(1).reshape(3, 16) for each in (maps, maps_t))
    q, q_t = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (q, q_t))
    np.testing.assert_allclose(attention(torch.from_numpy(maps)), q)
    unit = field[:2] / np.linalg.norm(field[:2], axis=1, keepdims=True)
    expected = np.square(q[:2] - unit).mean()  # the third picture has no field, and takes no part
    found = LungMask((network, 0.0), 4.0, 0.6, 0.2).losses(rows, rows)["lung"]
    assert float(found) == pytest.approx(expected, rel=1e-5)
    weights = np.where(field.sum(1, keepdims=True) > 0, field, 1)
    each = (weights * np.square(q - q_t)).sum(1) / weights.sum(1)
    p = expit(z_t)
    sure = np.maximum(p, 1 - p)
    right = (p >= 0.5) == (np.array(LABEL[:3]) == 1)
    gate = np.where((sure >= 0.6) & right, sure, 0)
    assert 0 < (gate > 0).sum() < 3
    method = SliceProjectedAttention(threshold_positive=0.6, threshold_negative=0.6)
    found = ProjectedAttention((network, 0.0), method).transfer(rows, MapOutput(*network.given))
    assert float(found) == pytest.approx((gate * each).sum() / max(gate.sum(), 1), rel=1e-5)
    plain = SliceProjectedAttention(mask=False, gate=False)
    found = ProjectedAttention((network, 0.0), plain).transfer(rows, MapOutput(*network.given))
    assert float(found) == pytest.approx(np.square(q - q_t).mean(), rel=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_learns_from_the_ct_network_and_reads_no_ct_when_it_scores(name: str) -> None:
    data = FitData((Stage(slice_pairs(32, 1), slice_pairs(16, 2)),), None, "none")
    fitted, test = build_method(name, BUDGET).fit(data, 3), slice_pairs(60, 9)
    scores = fitted.scores(test.without_ct())
    np.testing.assert_array_equal(scores, fitted.scores(test))
    assert roc_auc_score(test.label, scores) > 0.75


def test_notes_count_the_open_pairs_and_the_lung_fields() -> None:
    cases = slice_pairs(8, 1)
    data = FitData((Stage(cases, cases.take([])),), None, "none")
    gate: Any = build_method("slice-gate", QUICK, threshold_positive=1.0, threshold_negative=1.0).fit(data, 0)
    assert gate.fit_summary.notes == ("the gate is open for 0 of 8 training pairs",)
    pictures = np.stack([*(thorax() for _ in range(3)), *np.full((5, 64, 64), 90, np.uint8)])
    with_lungs = replace(cases, pixels=pictures, ct_pixels=pictures)
    data = FitData((Stage(with_lungs, with_lungs.take([])),), None, "none")
    mask: Any = build_method("slice-lung-mask", QUICK).fit(data, 0)
    assert mask.fit_summary.notes == ("a lung field was found in 3 of 8 training radiographs",)


def test_a_pretrained_trunk_stands_in_for_the_pilots_networks(tmp_path: Any) -> None:
    from embedprior.encoders.registry import create_encoder

    cases = slice_pairs(8, 1)
    data = FitData((Stage(cases, cases.take([])),), None, "none")
    trunk = {"student": "efficientnet-lite0", "teacher": "efficientnet-lite0"}
    fitted: Any = build_method("slice-hint", QUICK, **trunk).fit(data, 3)
    fitted.save(tmp_path)
    again = LogitStudent.load(tmp_path)
    np.testing.assert_array_equal(again.scores(cases), fitted.scores(cases))
    start = new_student(cases, "pixels", BUDGET.fit, 0, student="efficientnet-lite0").eval()
    encoder: Any = create_encoder("efficientnet-lite0")
    images = torch.from_numpy(cases.pixels).float().div(255).sub(0.5).div(0.5)[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        features, _, maps = start.outputs(torch.from_numpy(cases.pixels))
        expected = encoder.backbone.features(images)
    torch.testing.assert_close(features, expected)
    assert maps is not None
    assert maps.shape[:2] == (8, 1280)
    trained = sum(p.numel() for p in fitted.network.parameters())
    assert fitted.fit_summary.trainable == 2 * trained + 2 * 128 * 1280


def test_a_trunk_without_its_weights_is_refused(monkeypatch: Any) -> None:
    monkeypatch.delenv("EMBEDPRIOR_HOME", raising=False)
    cases = slice_pairs(8, 1)
    data = FitData((Stage(cases, cases.take([])),), None, "none")
    with pytest.raises(BadInput, match="resnet18"):
        build_method("slice-kd", QUICK, student="timm:resnet18").fit(data, 0)
    with torch.no_grad():
        found = TrunkNetwork("timm:resnet18")(torch.zeros(2, 64, 64, dtype=torch.uint8))
    assert (found.maps.shape, found.features.shape) == ((2, 512, 2, 2), (2, 512))
    assert math.isfinite(float(found.logits.sum()))
