"""What each stage of pretraining on a public set of CTs costs an exam, on real CTs: CPU seconds, and bytes on disk.

``python tools/bench/pretraining_cost.py --ct FOLDER --dicom SERIES.zip`` runs the commands of ``pretrain/*/README.md``
on a few volumes, in one process and one thread, and prints a row for each stage and kind of CT. Embedding goes slice by
slice, and is given per slice as well: sets differ in their numbers of slices. No GPU is needed, and none measured.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from common.measuring import Table, cpu_seconds

from embedprior.cli import main as embedprior
from embedprior.imaging.readers import read_volume
from embedprior.prior.config import NetworkConfig, PriorConfig, TrainingConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.trainer import train_prior

ENCODER, DIM, BATCH = "efficientnet-lite0", 1280, 64


def command(*words: str) -> float:
    """Run one command without its output, and return its CPU seconds.

    Raises:
        SystemExit: it failed.
    """
    said = io.StringIO()

    def run() -> None:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = embedprior(list(words))
        if code not in (0, 3):
            sys.exit(f"{' '.join(words)}: exit code {code}\n{said.getvalue()[-2000:]}")

    return cpu_seconds(run)


def size_of(folder: Path, pattern: str) -> int:
    """Return the bytes of the files under a folder that match."""
    return sum(file.stat().st_size for file in folder.rglob(pattern))


def stages(table: Table, kind: str, ct: Path, work: Path, embed: bool = True) -> None:
    """Measure DRR and, unless left out, both embeddings of the CTs in a folder."""
    drr, tables = work / "drr", work / "drr" / "exams.csv"
    rendering = command("drr", "--ct", str(ct), "--out", str(drr))
    exams = pd.read_csv(tables, dtype=str)
    scans, drawn = exams[exams["modality"] == "CT"], exams[exams["modality"] == "DRR"]
    slices = sum(read_volume((drr / path).resolve())[0].shape[0] for path in scans["path"])
    count = len(scans)
    table.hold("CTs", count, "", case=kind)
    table.hold("slices a CT", slices / count, "", case=kind)
    table.hold("file", size_of(ct, "*.*") / count / 1e6, "MB", case=kind)
    table.hold("drr", rendering / count, "s a CT", case=kind)
    table.hold("picture of the DRR", size_of(drr / "images", "*.png") / len(drawn) / 1e6, "MB", case=kind)
    table.hold("drr", rendering / slices * 1e3, "ms a slice", case=kind)
    if not embed:
        return
    words = ["embed", "--cohort", str(tables), "--encoder", ENCODER]
    embedding = command(*words, "--modality", "DRR", "--out", str(work / "caches" / "drr"))
    table.hold("embed, DRR", embedding / len(drawn), "s a picture", case=kind)
    embedding = command(*words, "--modality", "CT", "--option", "reader=slices", "--out", str(work / "caches" / "ct"))
    table.hold("embed, CT by slices", embedding / count, "s a CT", case=kind)
    table.hold("embed, CT by slices", embedding / slices, "s a slice", case=kind)
    both = size_of(work / "caches", "*.safetensors") / count
    table.hold("both caches", both / 1e3, "kB a CT", case=kind)


def training(table: Table, work: Path, steps: int) -> None:
    """Measure a step of the released network on pairs of two such encoders."""
    generator = np.random.default_rng(0)

    def pairs(count: int, prefix: str) -> PairArrays:
        made = generator.normal(size=(count, DIM)).astype(np.float32)
        return PairArrays(made, made[:, ::-1].copy(), [f"{prefix}{index}" for index in range(count)], "drr")

    train, val = pairs(4 * BATCH, "t"), pairs(8, "v")

    def run(number: int) -> float:
        settings = TrainingConfig(steps=number, batch=BATCH, variance_nodes=2, variance_draws=1, validate_every=10**6)
        config = PriorConfig(network=NetworkConfig(preset="prior-49m"), training=settings)
        out = work / f"prior{number}"
        seconds = cpu_seconds(lambda: train_prior(train, val, config, out, show_progress=False))
        shutil.rmtree(out)
        return seconds

    few = run(1)
    table.hold(f"prior-49m, batch {BATCH}", (run(1 + steps) - few) / steps, "s a step", case="train_prior.py")


def main() -> int:
    """Measure, print, and return 0: there is no bar to miss."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ct", type=Path, required=True, help="folder of NIfTI CTs")
    parser.add_argument("--dicom", type=Path, help="zip of one DICOM series at its own resolution")
    parser.add_argument("--count", type=int, default=6, help="of the NIfTI CTs, by name")
    parser.add_argument("--steps", type=int, default=4, help="of the prior that are timed")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        some = root / "nifti"
        some.mkdir()
        for file in sorted(options.ct.glob("*.nii.gz"))[: options.count]:
            (some / file.name).symlink_to(file.resolve())
        # imports and the first use of everything are no exam's
        warm = root / "warm"
        warm.mkdir()
        (warm / next(some.iterdir()).name).symlink_to(next(some.iterdir()).resolve())
        stages(Table(), "(first use)", warm, root / "warm-out")
        stages(table, "2 mm NIfTI", some, root / "nifti-out")
        if options.dicom is not None:
            series = root / "dicom" / "series"
            series.mkdir(parents=True)
            with zipfile.ZipFile(options.dicom) as packed:
                packed.extractall(series)
            stages(table, "512 x 512 DICOM", series.parent, root / "dicom-out")
            (root / "fine").mkdir()
            volume = read_volume(series)[0]
            image = sitk.GetImageFromArray(volume.hu)
            image.SetSpacing(volume.spacing_mm)
            image.SetOrigin(volume.origin_mm)
            sitk.WriteImage(image, str(root / "fine" / "series.nii.gz"))
            stages(table, "the same as NIfTI", root / "fine", root / "fine-out", embed=False)
        training(table, root, options.steps)
    return table.finish(options.json, torch=torch.__version__)


if __name__ == "__main__":
    sys.exit(main())
