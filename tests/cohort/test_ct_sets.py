"""Adapters against folders of the published layout, made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.ndimage import zoom

from embedprior.cli import main
from embedprior.cohort.sources import read_cohort
from embedprior.errors import BadInput
from embedprior.imaging.readers import read_volume
from tests.imaging.conftest import SPACING, STEP, chest, slice_dataset

STUDIES = 8
CT_RATE_LABELS = (
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule",
    "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip


def write_rspect(root: Path, shape: tuple[int, int, int] = (40, 64, 64), distinct: bool = False) -> Path:
    """Eight studies; the third is indeterminate, the fourth has its instance numbers shuffled, the fifth two series.

    They are one chest, unless ``distinct``: then each has tissue of its own kind here and there.
    """
    rng = np.random.default_rng(0)
    rows = []
    for study in range(STUDIES):
        uid = f"{study:02d}aa" * 3
        for series in range(2 if study == 4 else 1):
            folder = root / "train" / uid / f"{series}bb"
            folder.mkdir(parents=True)
            hu = chest(*shape)[:: 1 + series]
            if distinct:
                coarse = zoom(rng.normal(0, 250, (5, 6, 6)), np.array(hu.shape) / (5, 6, 6), order=1)
                hu = np.where(hu > -300, np.clip(hu + coarse, -250, 1500), hu).astype(np.int16)
            numbers = rng.permutation(len(hu)) if study == 3 else np.arange(len(hu))
            for index, plane in enumerate(hu):
                data = slice_dataset(plane.astype(np.int32) + 1024, index * (1 + series), f"1.2.{study}.{series}")
                data.PixelData = (plane.astype(np.int32) + 1024 + study).astype(np.int16).tobytes()
                data.InstanceNumber = int(numbers[index])
                pydicom.dcmwrite(folder / f"{rng.integers(10**9):09d}.dcm", data, enforce_file_format=True)
                positive = study % 2 == 1
                rows.append(
                    {"StudyInstanceUID": uid, "SeriesInstanceUID": f"{series}bb", "SOPInstanceUID": f"i{index}",
                     "pe_present_on_image": int(positive and 10 < index < 15),
                     "negative_exam_for_pe": int(not positive and study != 2), "rv_lv_ratio_gte_1": int(study == 1),
                     "central_pe": 0, "indeterminate": int(study == 2)}
                )  # fmt: skip
    pd.DataFrame(rows).to_csv(root / "train.csv", index=False)
    return root


def test_rspect_labels_studies_and_leaves_out_the_indeterminate(tmp_path: Path) -> None:
    root = write_rspect(tmp_path / "rspect")
    cohort = read_cohort("rspect", root)
    exams = cohort.exams.set_index("exam_id")
    assert len(exams) == 7
    assert "02aa02aa02aa" not in exams.index
    assert exams["label:pe"].to_dict() == {f"{s:02d}aa" * 3: s % 2 for s in range(STUDIES) if s != 2}
    assert exams["label:rv_lv_ratio_gte_1"].sum() == 1
    flow = {step.step: (step.exams, step.dropped) for step in cohort.flow}
    assert flow["one series a study"] == (8, 1)
    assert flow["determinate"] == (7, 1)
    assert exams.loc["04aa04aa04aa", "path"].endswith("/0bb")  # the series of more images
    # order comes from positions: the shuffled study reads as the others do
    shuffled, plain = (read_volume(root / exams.loc[f"{s:02d}aa" * 3, "path"])[0].hu for s in (3, 1))
    assert np.array_equal(shuffled - 2, plain)
    with pytest.raises(BadInput, match=r"train\.csv does not exist"):
        read_cohort("rspect", tmp_path)


def test_a_part_of_rspect_is_taken_and_the_rest_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_rspect(tmp_path / "rspect", (10, 16, 16))
    (root / "train" / ("01aa" * 3)).rename(tmp_path / "elsewhere")
    words = ["cohort", "import", "--source", "rspect", "--data", str(root), "--out", str(tmp_path / "c")]
    assert main(words) == 2
    assert "1 of 7 images do not exist" in capsys.readouterr().err
    assert main([*words, "--missing-images", "drop"]) == 0
    assert len(pd.read_csv(tmp_path / "c" / "exams.csv")) == 6
    assert all((tmp_path / "c" / p).is_dir() for p in pd.read_csv(tmp_path / "c" / "exams.csv")["path"])


def write_ct_rate(root: Path, shape: tuple[int, int, int] | None = None, patients: int = 6) -> Path:
    """The folders of CT-RATE and DRR-RATE. Patient 1 has two scans, the first in two reconstructions; patient 2 a scan
    whose first reconstruction is not there; the last training patient a scan that is listed as no chest."""
    rng = np.random.default_rng(0)
    scans = ["train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_2"]
    scans += [f"train_{patient}_a_1" for patient in range(3, patients + 1)] + ["valid_1_a_1"]
    dataset = root / "dataset"
    for name in scans:
        part, patient, scan, number = name.split("_")
        place = Path(f"{part}_{patient}", f"{part}_{patient}_{scan}", f"{name}.nii.gz")
        fixed, raw = dataset / f"{part}_fixed" / place, dataset / part / place
        for file in (fixed, raw):
            file.parent.mkdir(parents=True, exist_ok=True)
        raw.write_bytes(b"stored values, of another spacing")
        fixed.write_bytes(b"volume")
        if shape is not None:
            # reconstructions of one scan are one body; scans differ
            body = np.random.default_rng([ord(scan), int(patient), ord(part[0])])
            coarse = zoom(body.normal(0, 250, (5, 6, 6)), np.array(shape) / (5, 6, 6), order=1)
            hu = chest(*shape)
            hu = np.where(hu > -300, np.clip(hu + coarse, -250, 1500), hu) + rng.normal(0, 5 * int(number), shape)
            image = sitk.GetImageFromArray(np.rint(hu).astype(np.int16))
            image.SetSpacing((*SPACING, STEP))
            sitk.WriteImage(image, str(fixed))
        for view in ("AP", "LATERAL"):
            drawn = root / "DRR-RATE" / part / view / place.parent / f"{name}.png"
            drawn.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(drawn)
    labels = dataset / "multi_abnormality_labels"
    labels.mkdir()
    for part in ("train", "valid"):
        own = [name for name in scans if name.startswith(part)] + ["train_2_a_1"] * (part == "train")
        scan_of = [name.rsplit("_", 1)[0] for name in own]
        marks = [len(set(scan_of[: index + 1])) % 2 for index in range(len(own))]
        rows = pd.DataFrame({"VolumeName": [f"{name}.nii.gz" for name in own]})
        rows[list(CT_RATE_LABELS)] = 0
        rows["Emphysema"] = rows["Pleural effusion"] = marks
        rows.to_csv(labels / f"{part}_predicted_labels.csv", index=False)
    metadata = dataset / "metadata"
    metadata.mkdir()
    (metadata / "no_chest_train.txt").write_text(f"train_fixed/train_{patients}_a/train_{patients}_a_1.nii.gz\n")
    return root


def test_ct_rate_keeps_one_reconstruction_and_pairs_its_frontal_picture(tmp_path: Path) -> None:
    cohort = read_cohort("ct-rate", write_ct_rate(tmp_path))
    cts = cohort.of("CT").set_index("exam_id")
    # of scan a of patient 1 the first; of patient 2 the second, as the first was not downloaded; patient 6 has no chest
    assert sorted(cts.index) == [
        "train_1_a_1", "train_1_b_1", "train_2_a_2", "train_3_a_1", "train_4_a_1", "train_5_a_1", "valid_1_a_1",
    ]  # fmt: skip
    assert cts.loc["train_1_a_1", "group_id"] == cts.loc["train_1_b_1", "group_id"] == "train_1"
    assert cts.loc["valid_1_a_1", "group_id"] == "valid_1"
    assert cts["label:Emphysema"].astype(int).to_dict() == {
        "train_1_a_1": 1, "train_1_b_1": 0, "train_2_a_2": 1, "train_3_a_1": 0, "train_4_a_1": 1, "train_5_a_1": 0,
        "valid_1_a_1": 1,
    }  # fmt: skip
    assert [column for column in cts if column.startswith("label:")] == [f"label:{name}" for name in CT_RATE_LABELS]
    assert all("_fixed/" in path for path in cts["path"])
    assert [(step.step, step.dropped) for step in cohort.flow] == [
        ("volumes of the label tables", 0), ("a chest", 1), ("one reconstruction a scan", 2),
    ]  # fmt: skip
    assert dict(cohort.pairs[["cxr_exam_id", "ct_exam_id"]].to_numpy()) == {f"{name}-drr": name for name in cts.index}
    drrs = cohort.of("DRR")
    assert set(drrs["view"]) == {"AP"}
    assert all("/AP/" in path for path in drrs["path"])


def test_ct_rate_refuses_a_name_of_another_form(tmp_path: Path) -> None:
    (tmp_path / "x_predicted_labels.csv").write_text("VolumeName,A\nscan7.nii.gz,1\n")
    with pytest.raises(BadInput, match=r"'scan7\.nii\.gz' is no name of CT-RATE"):
        read_cohort("ct-rate", tmp_path)


def test_lidc_reads_the_modality_from_the_header(tmp_path: Path) -> None:
    for patient in range(1, 7):
        series = tmp_path / f"LIDC-IDRI-{patient:04d}" / "study" / "series"
        series.mkdir(parents=True)
        for index, plane in enumerate(chest(10, 16, 16)):
            data = slice_dataset(plane, index, f"1.2.{patient}")
            pydicom.dcmwrite(series / f"{index}.dcm", data, enforce_file_format=True)
        if patient == 3:
            film = series.parent.parent / "other" / "film"
            film.mkdir(parents=True)
            data = slice_dataset(
                chest(10, 16, 16)[0], 0, "1.2.99", Modality="DX", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1"
            )
            pydicom.dcmwrite(film / "1.dcm", data, enforce_file_format=True)
    cohort = read_cohort("lidc-idri", tmp_path)
    assert cohort.exams["modality"].value_counts().to_dict() == {"CT": 6, "CXR": 1}
    assert cohort.of("CXR")["patient_id"].tolist() == ["LIDC-IDRI-0003"]
    assert cohort.exams["patient_id"].nunique() == 6
