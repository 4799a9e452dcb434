"""A transformer over slice tokens against the mean of the same slices, on virtual CTs with and without a lesion.

EfficientNet-Lite0 (ImageNet weights, frozen) reads every slice; ``train encoder`` trains the transformer of the preset
``ct_slices`` on half of the patients, chooses the epoch on a fifth, and is compared with a head on the mean of the
slices on the rest: AUCs, and their difference by DeLong's test. No bar: the figures say what the order of slices is
worth here, whatever it is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from common.measuring import Table

from embedprior.config import load_config
from embedprior.encoders.config import TrainEncoderConfig
from embedprior.evidence import delong_test
from embedprior.phantom import PhantomConfig, virtual_patient
from embedprior.teachers.encoder import START, TRAINED, prepare_training, train_encoder

POPULATION = 7
PROFILE = "{spacing_mm: null, crop: none, windows: [wide], side: 96, fit: stretch}"


def write_cohort(folder: Path, count: int) -> None:
    """Write virtual CTs as NIfTI, their exam table, and a split: of ten patients 5 train, 2 choose, 3 are held out."""
    rows = []
    for i in range(count):
        patient = virtual_patient(PhantomConfig(), POPULATION, i)
        image = sitk.GetImageFromArray(patient.volume)
        image.SetSpacing(patient.spacing_mm[::-1])
        image.SetOrigin(patient.affine[:3, 3].tolist())
        sitk.WriteImage(image, str(folder / f"{i}.nii.gz"))
        rows.append((f"e{i}", f"p{i:04}", "CT", f"{i}.nii.gz", patient.label))
    exams = pd.DataFrame(rows, columns=["exam_id", "patient_id", "modality", "path", "label:lesion"])
    exams.to_csv(folder / "exams.csv", index=False)
    part = np.array(["train"] * 5 + ["val"] * 2 + ["test"] * 3)[np.arange(count) % 10]
    patients = exams["patient_id"]
    pd.DataFrame(
        {"patient_id": patients, "group_id": patients, "design": "fixed", "resample": 0, "fold": 0, "part": part}
    ).to_csv(folder / "splits.csv", index=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="40 patients and few epochs, the same code")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table, count = Table(), 40 if args.quick else 600
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_cohort(folder, count)
        (folder / "profile.yaml").write_text(PROFILE)
        options = {"reader": "slices", "profile": str(folder / "profile.yaml")} | ({"every": 8} if args.quick else {})
        given = {"exams": str(folder / "exams.csv"), "splits": str(folder / "splits.csv"), "label": "lesion",
                 "out": str(folder / "encoder"), "options": options, "workers": 1}  # fmt: skip
        given |= {"training.epochs": 5} if args.quick else {}
        config = load_config(TrainEncoderConfig, "ct_slices", "encoder", given)
        outcome = train_encoder(prepare_training(config, "cpu"))
    held_out = outcome.predictions[outcome.predictions["split"] == "test"]
    scores = {method: rows["score"].to_numpy() for method, rows in held_out.groupby("method")}
    labels = held_out.loc[held_out["method"] == START, "label"].to_numpy()
    result = delong_test(labels, scores[TRAINED], scores[START])
    table.hold("held-out patients", len(labels), "")
    for n, what in enumerate(("transformer over the slices", "head on the mean of the slices")):
        table.hold(f"AUC, {what}", result.auc[n], "")
        for end, limit in zip(("lower", "upper"), result.auc_ci[n], strict=True):
            table.hold(f"  its {end} 95 % limit", limit, "")
    table.hold("difference", result.delta, "AUC")
    for end, limit in zip(("lower", "upper"), result.ci, strict=True):
        table.hold(f"  its {end} 95 % limit", limit, "AUC")
    return table.finish(args.json, torch=torch.__version__)


if __name__ == "__main__":
    sys.exit(main())
