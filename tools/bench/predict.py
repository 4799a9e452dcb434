"""``predict`` against the bare encoder loop: images per second, start-up, memory; and resuming a table of 100,000 rows.

A study on made-up radiographs is run and bundled with ViT-B/16 (random weights), so that the encoder is as heavy as the
usual ones, and with EfficientNet-Lite0, which is about as fast as one process reads pictures. Bare loop and ``predict``
(one process reads ahead) take turns, one thread each; a ratio is the median over the rounds. Exits 1 when a bar is
missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common.measuring import Table, extra_mib, wall_seconds
from PIL import Image

import embedprior
from embedprior.deploy.bundle import build_bundle
from embedprior.deploy.files import COLUMNS, read_picture, scored_before
from embedprior.runs import QUIET

ENCODERS = {"vit-b16": {"random_init": True}, "efficientnet-lite0": {}}
START = "import sys, embedprior; embedprior.load_bundle(sys.argv[1]).predict(sys.argv[2])"
ROWS = 100_000


def make_study(folder: Path, name: str, count: int) -> tuple[Path, list[Path]]:
    """Run a small study with one encoder; return its bundle and the pictures."""
    rng, data = np.random.default_rng(0), folder / "data"
    y, x = np.mgrid[-1:1:1024j, -1:1:1024j]
    lungs = 0.8 - 0.6 * sum(np.exp(-((((x - side) / 0.28) ** 2 + (y / 0.7) ** 2) ** 2)) for side in (-0.45, 0.45))
    if not data.exists():
        data.mkdir(parents=True)
        for n in range(count):
            spot = 0.3 * (n % 2) * np.exp(-((x - 0.45) ** 2 + (y - 0.3) ** 2) / 0.03)
            grey = 255 * np.clip(lungs + spot + 0.02 * rng.normal(size=x.shape), 0, 1)
            Image.fromarray(grey.astype(np.uint8)).save(data / f"x{n}.png")
        exams = {"exam_id": [f"x{n}" for n in range(count)], "modality": "CXR", "view": "PA",
                 "path": [f"x{n}.png" for n in range(count)], "label:spot": np.arange(count) % 2}  # fmt: skip
        pd.DataFrame(exams).assign(patient_id=[f"p{n}" for n in range(count)]).to_csv(data / "exams.csv", index=False)
    design = {"name": "all", "cases": "cxr", "folds": 3, "validation": True, "methods": ["constant", "logistic"],
              "reference": "constant"}  # fmt: skip
    config = {"title": "spots", "label": "spot", "keep": "all", "encoder": {"name": name, "options": ENCODERS[name]},
              "designs": [design], "duplicates": "report"}  # fmt: skip
    study = embedprior.run_study(config, data, folder / f"study-{name}")
    bundle = build_bundle(study.out, "logistic", folder / f"bundle-{name}", seed=42)
    return bundle, sorted(data.glob("*.png"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer pictures and rounds, the same code")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ[QUIET] = "1"
    count, rounds = (24, 2) if args.quick else (96, 5)
    table, median = Table(), statistics.median
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for encoder_name, bar in (("vit-b16", 0.85), ("efficientnet-lite0", None)):
            folder_of, paths = make_study(folder, encoder_name, count)
            bundle = embedprior.load_bundle(folder_of)
            encoder = bundle.encoder
            read = wall_seconds(lambda e=encoder, p=paths: [read_picture(e, one) for one in p]) / count
            arrays = np.stack([read_picture(encoder, path).array for path in paths])

            def bare(encoder=encoder, arrays=arrays) -> None:
                for start in range(0, count, 8):
                    encoder.embed(arrays[start : start + 8])

            def predict(bundle=bundle, paths=paths) -> None:
                assert sum(len(part) for part in bundle.predict_files(paths, 8, workers=1)) == count

            bare()
            predict()
            times = [(wall_seconds(bare), wall_seconds(predict)) for _ in range(rounds)]
            table.hold("reading and auditing one picture (in a worker)", 1e3 * read, "ms", case=encoder_name)
            table.hold("bare encoder loop", median(count / b for b, _ in times), "images/s", case=encoder_name)
            table.hold("predict", median(count / p for _, p in times), "images/s", case=encoder_name)
            table.hold("predict over the bare loop", median(b / p for b, p in times), "", bar, case=encoder_name)
            table.hold("memory of predict above the loaded bundle", extra_mib(predict), "MiB", case=encoder_name)
            start = [sys.executable, "-c", START, str(folder_of), str(paths[0])]
            whole = wall_seconds(lambda s=start: subprocess.run(s, check=True, capture_output=True))
            table.hold("one picture in a new process", whole, "s", case=encoder_name)
        rows = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=range(ROWS))
        rows["image"] = [f"images/{n % 100:02d}/{n:06d}.dcm" for n in range(ROWS)]
        rows = rows.assign(score=0.5, bundle=bundle.bundle_id[:12])
        done = folder / "scores.csv"
        rows.to_csv(done, index=False)
        seconds = wall_seconds(lambda: scored_before(done, bundle.bundle_id))
        table.hold(f"finding what {ROWS:,} rows of an earlier run hold", seconds, "s")
    return table.finish(args.json, torch=torch.__version__)


if __name__ == "__main__":
    sys.exit(main())
