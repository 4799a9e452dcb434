"""A path may be a str wherever a Path may be, in every function that a caller from Python meets."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import embedprior
from embedprior import cache, cohort, tables
from embedprior.cache.exchange import export_npy, import_npy
from embedprior.encoders.base import EncoderSpec
from embedprior.encoders.pixels import Pixels128
from embedprior.evidence.reading import read_family, read_predictions
from embedprior.imaging.image_files import write_npz
from embedprior.nn.config import FitConfig
from embedprior.prior.config import PriorConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.model import Prior
from embedprior.prior.trainer import train_prior
from embedprior.teachers.teacher import TeacherHead
from embedprior.teachers.train import train_head

SPEC = EncoderSpec(
    name="toy", modality="CXR", dim=2, source="test", weights_sha256="none", licence="none", profile={}, pooling="none"
)  # fmt: skip


@pytest.fixture(params=[str, Path])
def kind(request: pytest.FixtureRequest) -> type:
    return request.param


def test_no_public_name_takes_a_path_alone() -> None:
    for name in embedprior.__all__:
        thing = getattr(embedprior, name)
        members = [m for m in vars(thing).values() if inspect.isfunction(m)] if inspect.isclass(thing) else [thing]
        for function in members:
            for parameter in inspect.signature(function).parameters.values() if callable(function) else ():
                kinds = {part.strip() for part in str(parameter.annotation).split("|")}
                own = function.__name__ == "__init__"  # a result's own attribute is a Path
                assert own or "Path" not in kinds or "str" in kinds, f"{name}: {parameter}"


def test_tables_and_caches(kind: type, tmp_path: Path) -> None:
    frame = pd.DataFrame({"exam_id": ["a", "b"], "value": [1, 2]})
    tables.write_table(frame, kind(tmp_path / "t.csv"))
    pd.testing.assert_frame_equal(tables.read_table(kind(tmp_path / "t.csv"), ("exam_id",)), frame)
    rows = np.arange(4, dtype=np.float32).reshape(2, 2)
    made = cache.write_cache(kind(tmp_path / "caches"), SPEC, ["a", "b"], ["a", "b"], rows)
    with cache.CacheWriter(kind(tmp_path / "caches"), SPEC) as writer:
        assert writer.ids == ["a", "b"]
    export_npy(made, kind(tmp_path / "rows.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "rows.npy"), rows)
    for name, row in zip("ab", rows, strict=True):
        np.save(tmp_path / f"{name}.npy", row)
    again = import_npy(kind(tmp_path), frame[["exam_id"]], SPEC, kind(tmp_path / "imported"))
    np.testing.assert_array_equal((again[0] if isinstance(again, tuple) else again).matrix, rows)


def test_pictures_and_volumes(kind: type, tmp_path: Path) -> None:
    Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(64, 48)).save(tmp_path / "x.png")
    assert Pixels128().read(kind(tmp_path), "x.png").shape == (128, 128)
    exams = pd.DataFrame({"exam_id": ["x"], "patient_id": ["p"], "modality": ["CXR"], "path": ["x.png"]})
    made, failures = cache.build_cache(exams, kind(tmp_path), Pixels128(), kind(tmp_path / "caches"))
    assert (made.ids, failures) == (["x"], [])
    write_npz(embedprior.Volume(np.zeros((2, 3, 4), np.int16), (1, 1, 1)), kind(tmp_path / "ct.npz"))
    assert (tmp_path / "ct.npz").is_file()


def test_cohorts_and_predictions(kind: type, tmp_path: Path) -> None:
    exams = pd.DataFrame({"exam_id": ["x"], "patient_id": ["p"], "modality": ["CXR"], "path": ["x.png"]})
    exams.to_csv(tmp_path / "exams.csv", index=False)
    (tmp_path / "x.png").write_bytes(b"")
    assert list(cohort.sources.read_cohort("tables", kind(tmp_path)).exams["exam_id"]) == ["x"]
    rows = pd.DataFrame({"exam_id": ["x"], "patient_id": ["p"], "label": [1], "method": ["a"], "score": [0.5]})
    rows.to_csv(tmp_path / "predictions.csv", index=False)
    assert list(read_predictions(kind(tmp_path / "predictions.csv"))["method"]) == ["a"]
    (tmp_path / "family.csv").write_text("a,b\nx,y\n")
    assert len(read_family(kind(tmp_path / "family.csv"))) == 1


def test_priors_and_teachers(kind: type, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(24, 3)).astype(np.float32)
    labels = (z[:, 0] > 0).astype(float)
    head = train_head(z, labels, z, labels, FitConfig(hidden=4, steps=4, validate_every=2), 0)
    (tmp_path / "head").mkdir()
    head.save(kind(tmp_path / "head"))
    np.testing.assert_array_equal(TeacherHead.load(kind(tmp_path / "head")).logits(z), head.logits(z))
    config = PriorConfig.model_validate(
        {"network": {"preset": "tiny", "dim": 16, "depth": 1, "inner": 16},
         "training": {"steps": 2, "batch": 8, "validation_bins": 2, "variance_nodes": 3, "variance_draws": 1}}
    )  # fmt: skip
    train, val = (PairArrays(z[s], z[s], [str(i) for i in range(24)[s]], "cxr") for s in (slice(16), slice(16, 24)))
    train_prior(train, val, config, kind(tmp_path / "one"), show_progress=False)
    second = train_prior(train, val, config, kind(tmp_path / "two"), kind(tmp_path / "one"), show_progress=False)
    np.testing.assert_array_equal(Prior.load(kind(tmp_path / "two")).one_step(z), second.one_step(z))
