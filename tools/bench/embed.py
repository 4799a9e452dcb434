"""Embedding with ViT-B/16 (random weights): the whole pipeline against the bare encoder loop and the fp32 GEMM ceiling.

The pipeline hashes, decodes and scales every picture in a worker process, embeds, and writes fsynced shards. GEMM,
bare loop and pipeline take turns in each round, one thread, so that other work on the machine meets all; a ratio is the
median over the rounds. The same for CT: slices of phantom volumes of unlike length (gzipped NIfTI, resampled and
windowed in the worker) through the same network, into a token cache. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
import torch
from common.measuring import Table, wall_seconds
from PIL import Image
from scipy.ndimage import zoom

from embedprior.cache.build import fill_cache
from embedprior.cache.verify import quantization_error
from embedprior.encoders.pictures import VitB16
from embedprior.phantom import PhantomConfig, virtual_patient

# multiply-adds of ViT-B/16 at 224 px times two: patch embedding, 12 × (qkv, attention, projection, MLP)
TOKENS, WIDTH, DEPTH = 197, 768, 12
FLOP_PER_PICTURE = 2 * (196 * WIDTH * 768 + DEPTH * (12 * TOKENS * WIDTH**2 + 2 * TOKENS**2 * WIDTH))
GEMM = 2048
BATCH, VOLUMES = 8, 3


def make_exams(folder: Path, count: int) -> pd.DataFrame:
    """Pictures of 1024 × 1024 that compress like radiographs."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:1024, 0:1024] / 1024
    folder.mkdir()
    for i in range(count):
        smooth = 0.5 + 0.4 * np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y * y)
        grey = np.clip(255 * smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"{i}.jpg", quality=92)
    return pd.DataFrame({"exam_id": [f"e{i}" for i in range(count)], "path": [f"{i}.jpg" for i in range(count)]})


def make_volumes(folder: Path, count: int) -> pd.DataFrame:
    """Phantom chest CTs as .nii.gz, resampled to 256 × 256 slices as scanners store them; each of its own length."""
    folder.mkdir()
    names = []
    for i in range(count):
        patient = virtual_patient(PhantomConfig(), 0, i)
        volume = zoom(patient.volume[: 56 - 4 * (i % 3)], (1, 4, 4), order=1)
        image = sitk.GetImageFromArray(volume)
        image.SetSpacing((patient.spacing_mm[2] / 4, patient.spacing_mm[1] / 4, patient.spacing_mm[0]))
        names.append(f"{i}.nii.gz")
        sitk.WriteImage(image, str(folder / names[-1]))
    return pd.DataFrame({"exam_id": names, "path": names})


def volumes(table: Table, folder: Path, rounds: int, count: int, every: int) -> None:
    """Hold the pipeline over volumes to the bare loop over their slices."""
    profile = folder / "profile.yaml"
    profile.write_text("{spacing_mm: [1.5, 1.5, 3.0], crop: none, windows: [wide], side: 224, fit: letterbox}")
    encoder = VitB16(random_init=True, reader="slices", profile=str(profile), every=every)
    root, exams = folder / "volumes", make_volumes(folder / "volumes", count)
    read = [encoder.read(root, path) for path in exams["path"]]
    decode = wall_seconds(lambda: [encoder.read(root, path) for path in exams["path"]]) / count
    slices, fills = sum(len(one) for one in read), iter(range(10_000))

    def bare() -> None:
        for start in range(0, count, VOLUMES):
            encoder.tokens(read[start : start + VOLUMES])

    def pipeline() -> None:
        out = folder / f"tokens-{next(fills)}"
        filled = fill_cache(exams, root, encoder, out, VOLUMES, "volumes", tokens=True, workers=1)
        assert filled.embedded == count

    pipeline()
    times = [{name: wall_seconds(work) for name, work in (("bare", bare), ("pipeline", pipeline))}
             for _ in range(rounds)]  # fmt: skip
    median = statistics.median
    table.hold("read and preprocess one volume (done in a worker)", decode, "s", case="CT")
    table.hold("bare encoder loop", median(slices / t["bare"] for t in times), "slices/s", case="CT")
    table.hold("pipeline", median(slices / t["pipeline"] for t in times), "slices/s", case="CT")
    table.hold("pipeline over the bare loop", median(t["bare"] / t["pipeline"] for t in times), "", 0.85, case="CT")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, the same code")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rounds, count = (2, 8) if args.quick else (7, 48)
    table = Table()
    encoder, half = VitB16(random_init=True), VitB16(random_init=True, precision="bf16")
    left, right = torch.randn(GEMM, GEMM), torch.randn(GEMM, GEMM)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exams = make_exams(folder / "pictures", count)
        root = folder / "pictures"
        pictures = np.stack([encoder.read(root, path) for path in exams["path"]])
        decode = wall_seconds(lambda: [encoder.read(root, path) for path in exams["path"]]) / count

        def gemm() -> None:
            for _ in range(8):
                torch.mm(left, right)

        def bare() -> None:
            for start in range(0, count, BATCH):
                encoder.embed(pictures[start : start + BATCH])

        def bare_half() -> None:
            for start in range(0, count, BATCH):
                half.embed(pictures[start : start + BATCH])

        fills = iter(range(10_000))

        def pipeline() -> None:
            out = folder / f"cache-{next(fills)}"
            filled = fill_cache(exams, root, encoder, out, BATCH, "pipeline", workers=1)
            assert filled.embedded == count

        for warm in (gemm, bare, pipeline, bare_half):
            warm()
        turns = {"gemm": gemm, "bare": bare, "pipeline": pipeline, "gemm2": gemm, "half": bare_half}
        times = [{name: wall_seconds(work) for name, work in turns.items()} for _ in range(rounds)]
        exact, rounded = (e.embed(pictures[:16]) for e in (encoder, half))
        volumes(table, folder, 2 if args.quick else 3, 3 if args.quick else 9, 12 if args.quick else 4)
    ceiling = [2 * 8 * GEMM**3 / ((t["gemm"] + t["gemm2"]) / 2) for t in times]
    flop = FLOP_PER_PICTURE * count
    median = statistics.median
    table.hold("fp32 GEMM 2048, the ceiling", median(ceiling) / 1e9, "GFLOP/s")
    table.hold("decode and scale one picture (done in a worker)", 1e3 * decode, "ms")
    table.hold("bare encoder loop", median(count / t["bare"] for t in times), "images/s")
    table.hold("pipeline", median(count / t["pipeline"] for t in times), "images/s")
    table.hold("pipeline over the bare loop", median(t["bare"] / t["pipeline"] for t in times), "", 0.85)
    over = [flop / t["pipeline"] / c for t, c in zip(times, ceiling, strict=True)]
    table.hold("pipeline over the GEMM ceiling", median(over), "", 0.80)
    table.hold("bf16 weights over fp32, bare loop", median(t["bare"] / t["half"] for t in times), "x")
    moved = quantization_error(exact, rounded)
    table.hold("  its rounding error, largest 1 - cos", float(moved["one_minus_cos_max"] or 0), "")
    table.hold("  its rounding error about the mean embedding", float(moved["centred_one_minus_cos_max"] or 0), "")
    return table.finish(args.json, torch=torch.__version__)


if __name__ == "__main__":
    sys.exit(main())
