from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from embedprior.prior.trainer import train_prior

from .conftest import every_term, first_logit, labelled_pairs

ROOT = Path(__file__).parents[2]
WORKER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from conftest import every_term, first_logit, labelled_pairs
from embedprior.prior.trainer import train_prior
train_prior(*labelled_pairs(), every_term(), Path({out!r}), teacher=first_logit, show_progress=False)
import torch.distributed as dist
assert dist.get_world_size() == 2
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """With every term of the objective: hard labels known for some, classes, and negatives from the whole batch."""
    train_prior(*labelled_pairs(), every_term(), tmp_path / "one", teacher=first_logit, show_progress=False)
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER.format(tests=str(Path(__file__).parent), out=str(tmp_path / "two")))
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(worker)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    one, two = (load_file(tmp_path / name / "resume-20.safetensors") for name in ("one", "two"))
    for name in one:
        if not name.startswith("optimiser"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=2e-5, err_msg=name)
    for term in ("l2", "bce", "aft", "proto", "contrastive"):
        curves = []
        for name in ("one", "two"):
            rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
            curves.append([row[f"loss/{term}"] for row in rows if row["event"] == "train"])
        assert len(curves[0]) == 2
        np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5, err_msg=term)
