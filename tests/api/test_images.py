from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import embedprior
from embedprior.encoders.pixels import Pixels128
from embedprior.errors import BadInput
from embedprior.imaging.drr.config import DrrConfig
from embedprior.imaging.drr.render import CtExam, render_exam, scan
from embedprior.imaging.image_files import write_npz
from embedprior.phantom import PhantomConfig, virtual_patient


@pytest.fixture(scope="module")
def chest() -> embedprior.Volume:
    patient = virtual_patient(PhantomConfig(noise_hu=0), 3, 0)
    x, y, z = (float(v) for v in patient.affine[:3, 3])
    return embedprior.Volume(patient.volume, (5.25, 5.25, 5.5), (x, y, z))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six radiographs of two shapes, one of them damaged, and their exam table."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(5):
        side = (40, 30 + 10 * (n % 2))
        Image.fromarray(rng.integers(0, 256, side, dtype=np.uint8)).save(folder / f"x{n}.png")
    (folder / "x5.png").write_bytes((folder / "x4.png").read_bytes()[:60])
    frame = pd.DataFrame(
        {
            "exam_id": [f"e{n}" for n in range(6)] + ["c0"], "patient_id": [f"p{n}" for n in range(6)] + ["p0"],
            "modality": ["CXR"] * 6 + ["REPORT"], "path": [f"x{n}.png" for n in range(6)] + ["c0.txt"],
        }
    )  # fmt: skip
    frame.to_csv(folder / "exams.csv", index=False)
    return folder


def alone(folder: Path, *numbers: int) -> np.ndarray:
    encoder = Pixels128()
    return np.concatenate([encoder.embed(encoder.read(folder, f"x{n}.png")[None]) for n in numbers])


def test_paths_are_embedded_in_their_order_whatever_their_shapes(pictures: Path) -> None:
    order = [3, 0, 1, 4]
    for given in ([str(pictures / f"x{n}.png") for n in order], [pictures / f"x{n}.png" for n in order]):
        np.testing.assert_array_equal(embedprior.embed(given, "pixels-128", batch_size=3), alone(pictures, *order))
    np.testing.assert_array_equal(
        embedprior.embed([f"x{n}.png" for n in order], Pixels128(), root=str(pictures)), alone(pictures, *order)
    )
    np.testing.assert_array_equal(embedprior.embed(str(pictures / "x2.png"), "pixels-128"), alone(pictures, 2))
    cropped = embedprior.embed(pictures / "x0.png", "pixels-128", geometry="crop")
    assert not np.array_equal(cropped, alone(pictures, 0))


class MeanAndSize:
    """Its answer is known, and pictures keep their shapes, so that a batch is embedded in several parts."""

    spec = Pixels128().spec.model_copy(update={"name": "mean", "dim": 2, "dtype": "float32"})

    def read(self, root: Path, path: str) -> np.ndarray:
        return np.asarray(Image.open(root / path), dtype=np.float32)

    def embed(self, batch: np.ndarray) -> np.ndarray:
        return np.stack([batch.mean(axis=(1, 2)), np.full(len(batch), batch.shape[2])], axis=1)


def test_pictures_of_several_shapes_keep_their_rows(pictures: Path) -> None:
    order = [3, 0, 1, 4, 2]
    expected = [[np.asarray(Image.open(pictures / f"x{n}.png")).mean(), 30 + 10 * (n % 2)] for n in order]
    found = embedprior.embed([f"x{n}.png" for n in order], MeanAndSize(), root=pictures)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_tokens_come_as_one_array_an_exam(pictures: Path) -> None:
    pytest.importorskip("timm")
    found = embedprior.embed([pictures / "x0.png", pictures / "x1.png"], "efficientnet-lite0", tokens=True)
    pooled = embedprior.embed([pictures / "x0.png", pictures / "x1.png"], "efficientnet-lite0")
    np.testing.assert_allclose(np.stack([one.mean(axis=0) for one in found]), pooled, atol=1e-5)
    with pytest.raises(BadInput, match="'pixels-128' gives no tokens"):
        embedprior.embed(pictures / "x0.png", "pixels-128", tokens=True)


def test_a_cohort_becomes_a_cache_and_what_can_not_be_read_is_named(pictures: Path, tmp_path: Path) -> None:
    table = pd.read_csv(pictures / "exams.csv")
    for number, (given, root) in enumerate(
        (
            (str(pictures / "exams.csv"), None),
            (pictures / "exams.csv", str(pictures)),
            (table.set_index(pd.Index(range(40, 47))), pictures),
        )
    ):
        out = tmp_path / f"caches-{number}"
        with pytest.warns(UserWarning, match=r"1 of 6 exams were not embedded; the first, e5: .*failures\.csv"):
            cache = embedprior.embed(given, "pixels-128", out=str(out) if number else out, root=root)
        assert cache.ids == [f"e{n}" for n in range(5)]
        np.testing.assert_array_equal(cache.matrix, alone(pictures, *range(5)))
        assert pd.read_csv(out / "failures.csv")["exam_id"].tolist() == ["e5"]
        assert embedprior.open_cache(str(out)).ids == cache.ids
        assert embedprior.open_cache(out, exams=table.iloc[:2], root=str(pictures)).ids == ["e0", "e1"]


def test_an_exam_given_by_path_bears_its_files_name(pictures: Path, tmp_path: Path) -> None:
    cache = embedprior.embed([pictures / "x1.png", pictures / "x0.png"], "pixels-128", out=tmp_path / "caches")
    assert cache.ids == ["x1", "x0"]
    (tmp_path / "more").mkdir()
    Image.open(pictures / "x0.png").save(tmp_path / "more" / "x0.png")
    same = [pictures / "x0.png", tmp_path / "more" / "x0.png"]
    with pytest.raises(BadInput, match=r"1 names belong to several files: x0.*give an exam table"):
        embedprior.embed(same, "pixels-128", out=tmp_path / "caches")
    assert len(embedprior.embed(same, "pixels-128")) == 2


@pytest.mark.parametrize(
    ("exams", "encoder", "settings", "message"),
    [
        ("x5.png", "pixels-128", {}, r"x5.png can't be embedded with 'pixels-128': .*damaged.*out=FOLDER"),
        ("none.png", "pixels-128", {}, "none.png can't be embedded.*no such file"),
        ([], "pixels-128", {}, "no path given"),
        (7, "pixels-128", {}, "embed was given a int. Allowed: a path, a list of paths"),
        ([1, 2], "pixels-128", {}, "embed was given a list"),
        ("x0.png", "pixels-129", {}, r"unknown encoder 'pixels-129'.*Did you mean 'pixels-128'\?"),
        ("x0.png", "pixels-128", {"geometri": "crop"}, r"no option 'geometri'.*Did you mean 'geometry'\?"),
        ("x0.png", Pixels128(), {"geometry": "crop"}, "was given geometry with a ready encoder"),
        ("x0.png", "pixels-128", {"batch_size": 0}, "batch_size is 0"),
        ("x0.png", "pixels-128", {"workers": 2}, "workers and dtype belong to a cache"),
        (pd.DataFrame({"exam_id": ["a"]}), "pixels-128", {}, "missing column 'patient_id'"),
        ("missing.csv", "pixels-128", {}, "missing.csv does not exist"),
    ],
)
def test_what_can_not_be_embedded_is_refused(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, exams: object, encoder: object, settings: dict, message: str
) -> None:
    monkeypatch.chdir(pictures)
    with pytest.raises(BadInput, match=message):
        embedprior.embed(exams, encoder, **settings)  # type: ignore[call-overload]
    assert sorted(p.name for p in pictures.iterdir()) == ["exams.csv", *(f"x{n}.png" for n in range(6))]


def test_reports_are_no_pictures(pictures: Path, tmp_path: Path) -> None:
    reports = pd.read_csv(pictures / "exams.csv").query("modality == 'REPORT'")
    with pytest.raises(BadInput, match="'pixels-128' reads CXR or DRR or CT; the table has REPORT"):
        embedprior.embed(reports, "pixels-128", out=tmp_path / "caches")


def test_a_rendered_image_is_the_one_that_the_command_writes(chest: embedprior.Volume, tmp_path: Path) -> None:
    write_npz(chest, tmp_path / "ct.npz")
    settings = {"view": "LATERAL", "appearance": {"gamma": 0.7}, "energy_kev": 60.0}
    config = DrrConfig.model_validate({"size": 48, **settings})
    made = render_exam(scan([CtExam("ct", "p", tmp_path / "ct.npz")])[0][0], config, tmp_path / "artifacts")
    assert made.folder is not None
    written = np.asarray(Image.open(made.folder / "pose-000.png"), dtype=np.float64) / 65535
    for given in (chest, tmp_path / "ct.npz", str(tmp_path / "ct.npz")):
        image = embedprior.render_drr(given, size=48, **settings)  # type: ignore[arg-type]
        assert image.dtype == np.float32
        np.testing.assert_allclose(image, written, atol=1e-5)


def test_renderer_settings_that_are_not_there_are_refused(chest: embedprior.Volume) -> None:
    for settings, message in (
        ({"centr": "lungs"}, r"unknown key 'centr'.*Did you mean 'centre'\?"),
        ({"poses": 3}, "renders one straight image and takes no 'poses'"),
        ({"view": "PAA"}, "'view'"),
        ({"renderer": "planesweeps"}, r"Did you mean 'planesweep'\?"),
        ({"size": 4}, "'size'"),
    ):
        with pytest.raises(BadInput, match=message):
            embedprior.render_drr(chest, **settings)  # type: ignore[arg-type]


def test_volumes_and_radiographs_are_read_by_str_and_by_path(chest: embedprior.Volume, pictures: Path) -> None:
    write_npz(chest, pictures / "ct.npz")
    for path in (pictures / "ct.npz", str(pictures / "ct.npz")):
        volume, findings = embedprior.read_volume(path)
        np.testing.assert_array_equal(volume.hu, chest.hu)
        assert [f.code for f in findings if f.severity == "error"] == []
    for path in (pictures / "x0.png", str(pictures / "x0.png")):
        radiograph, _ = embedprior.read_radiograph(path, view="pa")
        assert (radiograph.grey.shape, radiograph.view) == ((40, 30), "PA")


def test_encoders_are_listed_by_pattern() -> None:
    everything = embedprior.list_encoders()
    assert everything == sorted(everything)
    assert set(embedprior.list_encoders("*cnn")) == {name for name in everything if name.endswith("cnn")} != set()
    with pytest.raises(BadInput, match=r"no encoder is named 'vitb16'.*Did you mean 'vit-b16'\?"):
        embedprior.list_encoders("vitb16")
