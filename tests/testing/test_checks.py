"""The public checks: every implementation of ours keeps every promise, and each broken promise is caught by name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from embedprior.cohort.base import Cohort, flow_step, without_missing
from embedprior.cohort.sources.tables import read_tables
from embedprior.encoders.base import EncoderCard
from embedprior.encoders.pixels import Pixels128
from embedprior.imaging.drr import versioned
from embedprior.imaging.drr.config import RENDERERS
from embedprior.imaging.drr.physics import render_planesweep
from embedprior.students.base import Cases, FitData, Fitted
from embedprior.students.config import Budget
from embedprior.tables import PAIR_REQUIRED
from embedprior.testing import CheckFailed, check_encoder, check_method, check_renderer, check_source


@dataclass(frozen=True)
class Share:
    """The share of positives, moved by the first number of the radiograph."""

    budget: Budget = field(default_factory=Budget)
    name: str = "share"
    needs_ct: bool = False
    uses_ct: bool = False

    def fit(self, data: FitData, seed: int) -> Fitted:
        return Scorer(float(np.nanmean(data.target.train.label)))


@dataclass(frozen=True)
class Scorer:
    share: float

    def scores(self, cases: Cases) -> np.ndarray:
        return np.clip(self.share + 0.01 * cases.cxr[:, 0], 0, 1)


def method(fit: Any = None, scores: Any = None, **facts: Any) -> type:
    """Return a method as ``Share`` with one thing changed."""
    scorer = type("Changed", (Scorer,), {"scores": scores} if scores else {})
    own = fit or (lambda self, data, seed: scorer(float(np.nanmean(data.target.train.label))))
    return dataclass(frozen=True)(
        type("Mine", (Share,), {"fit": own, **facts, "__annotations__": dict.fromkeys(facts, bool)})
    )


def test_an_honest_method_keeps_every_promise() -> None:
    kept = check_method(Share)
    assert len(kept) >= 15
    assert "it learns nothing from CT (uses_ct = False)" in kept


def peeks(self: Any, data: FitData, seed: int) -> Fitted:
    ct = data.target.train.ct
    return Scorer(0.5 if ct is None else float(0.5 + 0.01 * np.sign(ct.sum())))


def reads_head(self: Any, data: FitData, seed: int) -> Fitted:
    return Scorer(0.5 if data.teacher is None else 0.6)


def draws(self: Any, data: FitData, seed: int) -> Fitted:
    return Scorer(float(np.random.default_rng().random()) / 2)


def moves_stream(self: Any, data: FitData, seed: int) -> Fitted:
    torch.manual_seed(seed)
    return Scorer(0.5)


def writes(self: Any, data: FitData, seed: int) -> Fitted:
    data.target.train.cxr[0, 0] = 0
    return Scorer(0.5)


def needs_val(self: Any, data: FitData, seed: int) -> Fitted:
    return Scorer(float(data.target.val.cxr[:, 0].max() > 0) / 2)


def fails_on_one_class(self: Any, data: FitData, seed: int) -> Fitted:
    if len(np.unique(data.target.train.label[data.target.train.known])) < 2:
        raise ZeroDivisionError("no negatives")
    return Scorer(0.5)


def ct_scores(self: Any, cases: Cases) -> np.ndarray:
    return (cases.paired_ct()[:, 0] > 0).astype(float)


def ct_when_there(self: Any, cases: Cases) -> np.ndarray:
    return np.full(len(cases), 0.2) if cases.ct is None else (cases.ct[:, 0] > 0).astype(float)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (method(scores=ct_scores), "it scores radiographs without their CT"),
        (method(scores=ct_when_there), "it scores radiographs without their CT"),
        (
            method(scores=ct_when_there, needs_ct=True, uses_ct=True, needs_teacher=False),
            "an oracle says that it lacks",
        ),
        (method(peeks), "it learns nothing from CT"),
        (method(reads_head, uses_ct=True, needs_teacher=False), "it reads no CT teacher"),
        (method(reads_head, uses_ct=True, needs_teacher=True), "without a CT teacher it says"),
        (method(needs_ct=True, scores=ct_scores), "who needs CT at inference uses it in training"),
        (method(draws), "the same seed gives the same scores"),
        (method(moves_stream), "it leaves the global random streams"),
        (method(writes), "it leaves the data as they were"),
        (method(needs_val), "it can be fitted without validation cases"),
        (method(fails_on_one_class), "labels of one class give CannotFit"),
        (method(scores=lambda s, c: c.cxr[:, 0]), "a score is a probability"),
        (method(scores=lambda s, c: np.full((len(c), 1), 0.5)), "it returns one finite number a case"),
        (method(scores=lambda s, c: np.full(len(c), np.nan)), "it returns one finite number a case"),
        (method(scores=lambda s, c: c.cxr[:, 0].argsort().argsort() / 99), "a score depends on its own case alone"),
        (method(input_kinds=("pixels",)), "it reads pixels alone"),
        (method(input_kinds=("sound",)), "it reads inputs that exist"),
        (method(version=0), "its version counts from 1"),
        (type("Silent", (), {"needs_ct": False}), "its class states its facts"),
    ],
)
def test_a_method_that_breaks_a_promise_is_caught(broken: type, promise: str) -> None:
    with pytest.raises(CheckFailed, match=promise):
        check_method(broken)


@pytest.mark.parametrize("name", RENDERERS)
def test_every_renderer_of_ours_keeps_every_promise(name: str) -> None:
    if name != "planesweep":
        pytest.importorskip("nanodrr" if name == "nanodrr" else "diffdrr")
    assert len(check_renderer(name)) == 13


def changed(change: Any) -> Any:
    return versioned(1)(lambda *given: change(render_planesweep(*given), *given))


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (lambda *given: render_planesweep(*given), "it states its version"),
        (changed(lambda image, *_: image.flip(2)), r"a ball's shadow lies where it belongs \(PA\)"),
        (changed(lambda image, *_: image.flip(1)), r"a ball's shadow lies where it belongs \(PA\)"),
        (changed(lambda image, *_: 10 * image), "a slab gives attenuation"),
        (changed(lambda image, *_: image + 0.01), "an empty volume gives zeros"),
        (changed(lambda image, *_: torch.where(image > 1.63, 1.63, image)), "it is linear in the attenuation"),
        (changed(lambda image, *_: image[:1]), "it returns one image a pose"),
        (changed(lambda image, *_: image[0]), "it returns floats of shape"),
        (
            versioned(1)(
                lambda mu, affine, geometry, poses=None, isocentre=None: render_planesweep(mu, affine, geometry)
            ),
            "it returns one image a pose",
        ),
        (changed(lambda image, *_: image * (1 + 1e-3 * torch.rand(1))), "the same call gives the same image"),
    ],
)
def test_a_renderer_that_breaks_a_promise_is_caught(broken: Any, promise: str) -> None:
    with pytest.raises(CheckFailed, match=promise):
        check_renderer(broken)


class Mine(Pixels128):
    """As ``Pixels128``, to be changed."""


def encoder(**changes: Any) -> type:
    return type("Mine", (Mine,), changes)


def with_spec(**changes: Any) -> type:
    def start(self: Any) -> None:
        Pixels128.__init__(self)
        self.spec = self.spec.model_copy(update=changes)

    return encoder(__init__=start)


def test_an_encoder_of_ours_keeps_every_promise() -> None:
    kept = check_encoder("pixels-128", geometry="crop")
    assert len(kept) >= 24
    assert "an exam of another kind is an UnreadableExam" in kept


def anything(self: Any, root: Path, path: str) -> np.ndarray:
    try:
        return Pixels128.read(self, root, path)
    except Exception:
        return np.zeros((128, 128), np.uint8)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (with_spec(dim=5), "its card agrees with its spec"),
        (with_spec(profile={}), "its profile has a transform_version"),
        (with_spec(licence=""), "its spec is complete"),
        (with_spec(modality="MR"), "its modality exists"),
        (with_spec(token_dim=4), "its card agrees with its spec"),
        (encoder(card=EncoderCard("CT", 16384, "", "", "")), "its card agrees with its spec"),
        (encoder(embed=lambda s, b: b.reshape(len(b), -1)[:, :9]), "it returns exams × dim numbers"),
        (encoder(embed=lambda s, b: b.reshape(len(b), -1).astype(float)), "its numbers are float32"),
        (encoder(embed=lambda s, b: np.zeros((len(b), 16384), np.uint8)), "two exams have two embeddings"),
        (encoder(embed=lambda s, b: np.sort(b, axis=0).reshape(len(b), -1)), "an embedding depends on its own exam"),
        (encoder(read=anything), "a damaged file is an UnreadableExam"),
        (encoder(read=lambda s, r, p: np.asarray(Image.open(r / p).resize((128, 128)))), "a damaged file is an"),
    ],
)
def test_an_encoder_that_breaks_a_promise_is_caught(broken: type, promise: str) -> None:
    with pytest.raises(CheckFailed, match=promise):
        check_encoder(broken)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A folder of three radiographs with an exam table."""
    for n in range(3):
        Image.fromarray(np.full((8, 8), 40 * n, np.uint8)).save(tmp_path / f"{n}.png")
    frame = pd.DataFrame({"exam_id": list("abc"), "patient_id": list("pqr"), "modality": "CXR"})
    frame["path"] = [f"{n}.png" for n in range(3)]
    frame.to_csv(tmp_path / "exams.csv", index=False)
    return tmp_path


def test_the_sources_of_ours_keep_every_promise(tables: Path, shared_data: Path) -> None:
    assert len(check_source("tables", tables)) == len(check_source("covid-chestxray", shared_data / "covid_chestxray"))


def silent(root: Path, missing_images: Any) -> Cohort:
    cohort = read_tables(root, "error")
    kept, _ = without_missing(cohort.exams, root, missing_images, "x")
    return replace(cohort, exams=kept)


def drops_uncounted(root: Path, missing_images: Any) -> Cohort:
    exams = pd.read_csv(root / "exams.csv", dtype=str)
    kept, _ = without_missing(exams, root, missing_images, "x")
    pairs = pd.DataFrame(columns=list(PAIR_REQUIRED))
    return Cohort(root, kept, pairs, (flow_step("rows", kept, 0),)).checked("x")


def keeps_missing(root: Path, missing_images: Any) -> Cohort:
    exams = pd.read_csv(root / "exams.csv", dtype=str)
    pairs = pd.DataFrame(columns=list(PAIR_REQUIRED))
    return Cohort(root, exams, pairs, (flow_step("rows", exams, 0),)).checked("x")


def unchecked(root: Path, missing_images: Any) -> Cohort:
    cohort = keeps_missing(root, missing_images)
    return replace(cohort, exams=cohort.exams.drop(columns="group_id"))


def uncounted(root: Path, missing_images: Any) -> Cohort:
    return replace(read_tables(root, missing_images), flow=())


def writes_there(root: Path, missing_images: Any) -> Cohort:
    (root / "index.json").write_text("{}")
    return read_tables(root, missing_images)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (drops_uncounted, "such an image is dropped and counted"),
        (keeps_missing, r"an image that does not exist is refused \(missing_images = error\)"),
        (unchecked, "its tables were checked"),
        (uncounted, "it counts what it read"),
        (writes_there, "it leaves the folder as it was"),
    ],
)
def test_a_source_that_breaks_a_promise_is_caught(broken: Any, promise: str, tables: Path) -> None:
    with pytest.raises(CheckFailed, match=promise):
        check_source(broken, tables)
