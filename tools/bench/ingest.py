"""Where the time of a CT series' ingest goes, against reading its raw bytes and against SimpleITK and torchio.

One thread each, CPU seconds of this process, least of the repeats; a ratio compares runs made back to back. The
series is the original DICOM of LIDC-IDRI-0001 where the shared data are there, otherwise an invented one. With the
shared data it also compares DICOM and NIfTI of that patient, and measures how often each warning about a radiograph is
right and wrong. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from common.measuring import Table, cpu_seconds, extra_mib, ratio

from embedprior.imaging.audit import audit_hu
from embedprior.imaging.dicom_header import DicomFiles, read_headers
from embedprior.imaging.dicom_series import read_series
from embedprior.imaging.lungs import audit_lungs, find_lungs, lung_box
from embedprior.imaging.preprocess import VolumeProfile, normalised, prepare
from embedprior.imaging.readers import read_volume
from embedprior.imaging.resampling import covering_grid, grid_of, resample, resample_onto
from embedprior.imaging.volume import Volume, canonical, to_sitk

SHARED = Path(__file__).parents[3] / "shared" / "data"
MM = (1.0, 1.0, 1.0)


def sitk_series(folder: Path) -> sitk.Image:
    """The usual reader: GDCM's order, int16."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    reader.SetOutputPixelType(sitk.sitkInt16)
    return reader.Execute()


def sitk_resample(image: sitk.Image, volume: Volume) -> sitk.Image:
    """SimpleITK's linear resampling onto our grid."""
    grid = covering_grid(volume, MM)
    turn = np.eye(3).ravel().tolist()
    where = (grid.origin_mm, grid.spacing_mm, turn)
    return sitk.Resample(image, grid.size, sitk.Transform(), sitk.sitkLinear, *where, -1024, sitk.sitkInt16)


def ingest(table: Table, folder: Path, repeats: int) -> None:
    """Shares of one series' way from files to an encoder's input."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    profile = VolumeProfile()

    def raw() -> int:
        return sum(len(p.read_bytes()) for p in files)

    def headers() -> int:
        with DicomFiles(folder) as source:
            return sum(len(read_headers(source, name)) for name in source.names)

    volume, _ = read_volume(folder)
    upright = canonical(volume)
    lungs = find_lungs(volume)
    box = lung_box(upright, profile.margin_mm, lungs)
    if box is None:
        raise SystemExit("no lungs in the series")
    cropped = upright.crop(box)
    on_grid = resample(cropped, MM)

    def whole() -> object:
        return prepare(read_volume(folder)[0], profile)

    print(f"{len(files)} slices, {volume.shape[2]} x {volume.shape[1]}, {raw() / 2**20:.0f} MiB")
    floor = cpu_seconds(raw, repeats)
    table.hold("read the raw bytes", floor, "s")
    total = cpu_seconds(whole, repeats)
    table.hold("whole ingest: read, audit, crop, resample to 1 mm, 128 x 128", total, "s")
    table.hold("  over reading the raw bytes", total / floor, "x", most=25)
    header_s, read_s = cpu_seconds(headers, repeats), cpu_seconds(lambda: read_series(folder, "only"), repeats)
    audit_s = cpu_seconds(lambda: (audit_hu(volume.hu), audit_lungs(volume)), repeats)
    crop_s = cpu_seconds(lambda: lung_box(upright, profile.margin_mm), repeats)
    resample_s = cpu_seconds(lambda: resample(cropped, MM), repeats)
    fit_s = cpu_seconds(lambda: normalised(on_grid.hu, profile), repeats)
    parts = (
        ("headers: audit of series, order, spacing, coding", header_s),
        ("pixels to int16 HU, padding", read_s - header_s),
        ("audit of HU and lungs", audit_s),
        ("lung crop", crop_s),
        ("resample to 1 mm", resample_s),
        ("window and 128 x 128", fit_s),
    )
    for name, value in parts:
        table.hold(f"  share of {name}", 100 * value / sum(spent for _, spent in parts), "%")
    size = volume.hu.nbytes / 2**20
    peak = extra_mib(lambda: read_volume(folder)) / size
    table.hold("peak memory of the audited read, over the int16 volume's size", peak, "x", most=1.5)
    table.hold("  of SimpleITK's int16 series reader", extra_mib(lambda: sitk_series(folder)) / size, "x")
    print("peers, same files, same run:")
    table.hold("SimpleITK series reader over our audited read", ratio(lambda: sitk_series(folder), lambda: read_volume(
        folder), repeats), "x")  # fmt: skip
    image = to_sitk(volume)
    table.hold("SimpleITK resample to 1 mm over ours, whole volume", ratio(
        lambda: sitk_resample(image, volume), lambda: resample(volume, MM), repeats), "x", least=1 / 0.3)  # fmt: skip
    theirs = sitk.GetArrayFromImage(sitk_resample(image, volume)).astype(np.int32)
    off = np.abs(resample(volume, MM).hu - theirs)
    table.hold("  largest difference (both round to whole HU)", float(off.max()), "HU", most=1)
    table.hold("SimpleITK read + resample, no audit, no crop, over our whole ingest", ratio(
        lambda: sitk_resample(sitk_series(folder), volume), whole, repeats), "x", least=1)  # fmt: skip
    try:
        import torch
        import torchio
    except ModuleNotFoundError:
        print("torchio is not installed: its row is left out")
        return
    torch.set_num_threads(1)

    def by_torchio() -> object:
        read = torchio.ScalarImage(folder)
        return torchio.Resample(1)(torchio.ToCanonical()(read)).data

    slower = ratio(by_torchio, whole, max(1, repeats // 2))
    table.hold("torchio read + canonical + resample over our whole ingest", slower, "x", least=1)


def real_agreement(table: Table, folder: Path) -> None:
    """DICOM and NIfTI of one patient on the NIfTI's 2 mm grid."""
    nifti, _ = read_volume(SHARED / "ct" / "LIDC-IDRI-0001.nii.gz")
    ours = resample_onto(read_volume(folder)[0], grid_of(nifti)).hu.astype(np.float64)
    other = nifti.hu.astype(np.float64)
    likeness = float(np.corrcoef(ours.ravel(), other.ravel())[0, 1])
    table.hold("DICOM against NIfTI, LIDC-IDRI-0001: NCC", likeness, "", least=0.99)
    median = float(np.median(np.abs(ours - other)[other > -500]))
    table.hold("  median difference in the body (above -500 HU)", median, "HU", most=10)


def warning_rates(table: Table) -> None:
    """Alarms on the half of the patients that set no bar, frontal, lateral and turned negative."""
    import pandas as pd

    from embedprior.imaging.radiograph_audit import audit_radiograph
    from embedprior.imaging.radiographs import read_radiograph

    data = SHARED / "covid_chestxray"
    exams = pd.read_csv(data / "metadata.csv")
    held = exams["patientid"].map(lambda patient: zlib.crc32(str(patient).encode()) % 2 == 1)
    exams = exams[(exams["modality"] == "X-ray") & held]
    frontal: list[set[str]] = []
    lateral: list[set[str]] = []
    negative: list[set[str]] = []
    for name, view in zip(exams["filename"], exams["view"], strict=True):
        radiograph, findings = read_radiograph(data / "images" / name)
        (lateral if view == "L" else frontal).append({f.code for f in findings})
        if view != "L":
            negative.append({f.code for f in audit_radiograph(1 - radiograph.grey, "")})
    print(f"{len(frontal)} frontal and {len(lateral)} lateral radiographs of patients that set no bar:")
    for code, most in (("inverted", 5), ("lateral", 5), ("not-chest-like", 5), ("collimated", None)):
        table.hold(f"false alarm '{code}' on frontal views", _share(frontal, code), "%", most=most)
    table.hold("found 'lateral' among lateral views", _share(lateral, "lateral"), "%", least=60)
    table.hold("found 'inverted' among frontal views turned negative", _share(negative, "inverted"), "%", least=80)


def _share(found: list[set[str]], code: str) -> float:
    return 100 * sum(code in codes for codes in found) / len(found)


def invented_series(folder: Path) -> None:
    """133 slices of 512 x 512: a body with lungs, one DICOM file each."""
    z, y, x = np.mgrid[:133, :512, :512].astype(np.float32)
    z, y, x = (z - 66) * 2.5, (y - 256) * 0.7, (x - 256) * 0.7
    hu = np.where((x / 150) ** 2 + (y / 110) ** 2 < 1, 40, -1000)
    for side in (-1, 1):
        hu[((x - side * 70) / 55) ** 2 + (y / 80) ** 2 + (z / 130) ** 2 < 1] = -850
    noise = np.random.default_rng(0).normal(0, 15, hu.shape)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index, plane in enumerate((hu + noise).astype(np.int16)):
        image = sitk.GetImageFromArray(plane[None])
        image.SetSpacing((0.7, 0.7, 2.5))
        image.SetOrigin((0.0, 0.0, 2.5 * index))
        for tag, value in (
            ("0008|0060", "CT"), ("0020|000e", "1.2.826.0.1.1"), ("0008|0018", f"1.2.826.0.1.2.{index + 1}"),
            ("0020|0032", f"0\\0\\{2.5 * index}"), ("0020|0037", "1\\0\\0\\0\\1\\0"),
            ("0008|0008", "DERIVED\\PRIMARY\\AXIAL"),
        ):  # fmt: skip
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{index:03d}.dcm"))
        writer.Execute(image)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    table = Table()
    packed = SHARED / "ct" / "LIDC-IDRI-0001_dicom.zip"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if packed.is_file():
            with zipfile.ZipFile(packed) as archive:
                archive.extractall(folder)
        else:
            print("the shared data are not here: an invented series, and no figures on real images")
            invented_series(folder)
        ingest(table, folder, 2 if args.quick else 5)
        if packed.is_file():
            real_agreement(table, folder)
            warning_rates(table)
    return table.finish(args.json, SimpleITK=sitk.Version.VersionString())


if __name__ == "__main__":
    sys.exit(main())
