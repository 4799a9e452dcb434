"""From a folder of DRRs (``embedprior drr``) to what ``train_prior.py`` reads: two caches and a split.

``python pretrain/real_ct/prepare.py --drr runs/real_ct`` writes ``caches/{cxr,ct}`` and ``splits.csv`` beside the
tables. Only pairs are embedded, so CTs without whole lungs stay out. Every ``--hold``-th CT (group) chooses the
checkpoint; the split is by group, never by image.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from slabs import SlabEncoder

from embedprior.cache import build_cache
from embedprior.encoders.registry import create_encoder
from embedprior.errors import NEEDS_ATTENTION, BadInput, EmbedpriorError
from embedprior.runs import one_thread
from embedprior.tables import (
    EXAM_REQUIRED,
    PAIR_REQUIRED,
    check_exams,
    check_pairs,
    check_splits,
    read_table,
    write_table,
)


def split_of(exams: pd.DataFrame, hold: int) -> pd.DataFrame:
    """Return the split table: groups in order of name, every ``hold``-th one in ``val``.

    Raises:
        BadInput: fewer groups than ``hold``.
    """
    own = exams["patient_id"].astype(str)
    group = exams["group_id"].fillna(own).astype(str) if "group_id" in exams.columns else own
    of_patient = dict(zip(own, group, strict=True))
    names = sorted(set(of_patient.values()))
    if len(names) < hold:
        raise BadInput(f"--hold {hold} needs at least {hold} CTs with whole lungs; there are {len(names)}.")
    val = set(names[hold - 1 :: hold])
    rows = [
        {"patient_id": p, "group_id": g, "design": "pretrain", "resample": 0, "fold": 0,
         "part": "val" if g in val else "train"} for p, g in sorted(of_patient.items())
    ]  # fmt: skip
    return check_splits(pd.DataFrame(rows), "splits.csv")


def prepare(drr: Path, hold: int, random_init: bool) -> int:
    """Write caches and split; returns the exit code."""
    if not (drr / "exams.csv").is_file():
        raise BadInput(f"no DRRs in {drr}. Next: embedprior drr --ct FOLDER --config augmented --out {drr}")
    exams = check_exams(read_table(drr / "exams.csv", EXAM_REQUIRED), str(drr / "exams.csv"))
    pairs = check_pairs(read_table(drr / "pairs.csv", PAIR_REQUIRED), exams, str(drr / "pairs.csv"))
    paired = exams[exams["exam_id"].isin({*pairs["cxr_exam_id"], *pairs["ct_exam_id"]})]
    splits = split_of(paired, hold)
    network = create_encoder("efficientnet-lite0", random_init=random_init)
    failures: list[dict[str, str]] = []
    with one_thread():
        for kind, modality, encoder in (("cxr", "DRR", network), ("ct", "CT", SlabEncoder(network))):
            rows = paired[paired["modality"] == modality]
            failures += build_cache(rows, drr, encoder, drr / "caches" / kind, batch_size=16, desc=kind)[1]
    write_table(splits, drr / "splits.csv")
    counts = splits["part"].value_counts()
    print(f"{drr}: {len(pairs)} pairs; CTs: {counts.get('train', 0)} train, {counts.get('val', 0)} val")
    for failure in failures:
        print(f"  {failure['exam_id']}: {failure['reason']}", file=sys.stderr)
    return NEEDS_ATTENTION if failures else 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drr", type=Path, default=Path("runs/real_ct"))
    parser.add_argument("--hold", type=int, default=4, help="every N-th CT is for validation (default: 4)")
    parser.add_argument("--random-init", action="store_true", help="random weights, for trials of the plumbing")
    options = parser.parse_args()
    try:
        return prepare(options.drr, options.hold, options.random_init)
    except EmbedpriorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
