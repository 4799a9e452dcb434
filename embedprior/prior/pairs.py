"""From caches and tables to paired arrays of one fold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from embedprior.cache import EmbeddingCache, open_cache
from embedprior.errors import BadInput, nearest
from embedprior.prior.config import TrainPriorConfig
from embedprior.prior.data import PairArrays
from embedprior.runs import hash_file, hash_of
from embedprior.tables import PAIR_REQUIRED, SPLIT_REQUIRED, check_splits, read_table


def read_pairs(config: TrainPriorConfig) -> tuple[PairArrays, PairArrays, dict[str, str]]:
    """Return the training and validation pairs of the chosen fold, and a hash of every input by name.

    Held-out patients are not read.

    Raises:
        BadInput: a missing file (the command that makes it is named), a broken table, an empty part, or an exam
            without embedding.
    """
    paths = [config.condition_cache, config.target_cache, config.pairs, config.splits]
    for name in paths:
        if not Path(name).exists():
            raise BadInput(f"{name} does not exist. Next: {config.made_by}")
    pairs = read_table(Path(config.pairs), PAIR_REQUIRED)
    splits = check_splits(read_table(Path(config.splits), SPLIT_REQUIRED), config.splits)
    parts = _chosen(splits, config).set_index("patient_id")["part"]
    condition, target = open_cache(config.condition_cache), open_cache(config.target_cache)
    part_of = pairs["patient_id"].map(parts)
    train, val = (_arrays(pairs[part_of == part], condition, target, config, part) for part in ("train", "val"))
    inputs = {
        "condition_cache": hash_of(condition.key),
        "target_cache": hash_of(target.key),
        "pairs": hash_file(Path(config.pairs)),
        "splits": hash_file(Path(config.splits)),
    }
    return train, val, inputs


def _chosen(splits: pd.DataFrame, config: TrainPriorConfig) -> pd.DataFrame:
    designs = sorted(str(design) for design in splits["design"].unique())
    design = config.design
    if design is None and len(designs) == 1:
        design = designs[0]
    if design not in designs:
        hint = "" if design is None else nearest(design, designs)
        raise BadInput(f"{config.splits}: design '{design}'. Allowed: {', '.join(designs)}.{hint}")
    rows = splits[splits["design"].astype(str) == design]
    for column, wanted in (("resample", config.resample), ("fold", config.fold)):
        allowed = sorted(int(value) for value in rows[column].unique())
        if wanted not in allowed:
            raise BadInput(f"{config.splits}: {column} {wanted}. Allowed: {', '.join(map(str, allowed))}.")
        rows = rows[rows[column] == wanted]
    return rows


def _arrays(
    rows: pd.DataFrame, condition: EmbeddingCache, target: EmbeddingCache, config: TrainPriorConfig, part: str
) -> PairArrays:
    if rows.empty:
        raise BadInput(f"{config.pairs}: no pair of a patient whose part is '{part}' in {config.splits}.")
    return PairArrays(
        condition=np.asarray(condition.take(list(rows["cxr_exam_id"])), dtype=np.float32),
        target=np.asarray(target.take(list(rows["ct_exam_id"])), dtype=np.float32),
        ids=list(rows["pair_id"]),
        source=config.source,
        encoders=(hash_of(condition.key), hash_of(target.key)),
    )
