"""Split a demo's pair table into DRR–CT and radiograph–CT pairs; keep few of the latter to see what they are worth.

``python pretrain/phantom/pairs.py --demo runs/demo --out runs/phantom-prior [--pairs 50] [--seed 0]`` writes
``pairs-drr.csv`` and ``pairs-cxr.csv``. ``--pairs N`` keeps N training pairs, drawn by the seed; validation and
held-out pairs all stay.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.errors import EmbedpriorError
from embedprior.tables import (
    EXAM_REQUIRED,
    PAIR_REQUIRED,
    SPLIT_REQUIRED,
    check_exams,
    check_pairs,
    check_splits,
    read_table,
    write_table,
)


def by_modality(demo: Path) -> dict[str, pd.DataFrame]:
    """Return the pairs of each radiograph modality, ``DRR`` and ``CXR``.

    Raises:
        BadInput: a missing or broken table.
    """
    exams = check_exams(read_table(demo / "exams.csv", EXAM_REQUIRED), str(demo / "exams.csv"))
    pairs = check_pairs(read_table(demo / "pairs.csv", PAIR_REQUIRED), exams, str(demo / "pairs.csv"))
    modality = exams.set_index("exam_id")["modality"].loc[pairs["cxr_exam_id"]].to_numpy()
    return {name: pairs[modality == name] for name in ("DRR", "CXR")}


def fewer(pairs: pd.DataFrame, splits: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Return the pairs with ``count`` of those in training, in the order of the table."""
    training = pairs["patient_id"].map(splits.set_index("patient_id")["part"]).to_numpy() == "train"
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(training))[:count]
    kept = ~training
    kept[chosen] = True
    return pairs[kept]


def main() -> int:
    """Write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path("runs/phantom-prior"))
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.demo / "cohort"
    try:
        tables = by_modality(folder)
        splits = check_splits(read_table(folder / "splits.csv", SPLIT_REQUIRED), str(folder / "splits.csv"))
    except EmbedpriorError as error:
        print(f"error: {error} Next: embedprior demo --out {options.demo}", file=sys.stderr)
        return error.exit_code
    if options.pairs is not None:
        tables["CXR"] = fewer(tables["CXR"], splits, options.pairs, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, pairs in tables.items():
        path = options.out / f"pairs-{name.lower()}.csv"
        write_table(pairs, path)
        print(f"{path}: {len(pairs)} pairs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
