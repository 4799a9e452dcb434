"""The contrastive objective against a softmax written out, its masks, and two processes against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from scipy.special import logsumexp

from embedprior.alignment.config import AlignmentConfig
from embedprior.alignment.data import Triples
from embedprior.alignment.model import WEIGHTS, new_network
from embedprior.alignment.objective import average_gradients, objective
from embedprior.alignment.planted import PlantedTriplesConfig, planted_triples
from embedprior.alignment.train import GroupBatches, batch_loss, train_alignment
from embedprior.nn.losses import info_nce
from embedprior.runs.distributed import ProcessGroup

ROOT = Path(__file__).parents[2]


def unit(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    rows = rng.normal(size=shape)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


def written_out(a: np.ndarray, b: np.ndarray, scale: float, groups: np.ndarray, present: np.ndarray) -> float:
    """Case by case: minus the log share of the partner among itself and the cases of other groups."""
    losses = []
    for left, right in ((a, b), (b, a)):
        for i in np.flatnonzero(present):
            others = [j for j in np.flatnonzero(present) if j == i or groups[j] != groups[i]]
            scores = {j: scale * float(left[i] @ right[j]) for j in others}
            losses.append(logsumexp(list(scores.values())) - scores[i])
    return float(np.mean(losses))


def test_the_loss_is_the_softmax_written_out_with_masks() -> None:
    rng = np.random.default_rng(0)
    a, b = unit(rng, 7, 5), unit(rng, 7, 5)
    groups, present = np.array([0, 0, 1, 2, 3, 3, 4]), np.array([1, 1, 1, 0, 1, 1, 1], dtype=bool)
    found = info_nce(a, b, torch.from_numpy(groups), 4.0, torch.from_numpy(present))
    assert float(found) == pytest.approx(written_out(a.numpy(), b.numpy(), 4.0, groups, present), rel=1e-12)


def test_a_near_copy_of_a_patient_is_no_negative() -> None:
    """With its own copy as a negative, case 0 could at best reach ln 2; within one group both match perfectly."""
    a = torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    apart, grouped = (info_nce(a, a, torch.tensor(groups), 50.0) for groups in ([0, 1, 2, 3], [0, 1, 2, 0]))
    assert float(apart) == pytest.approx(np.log(2) / 2)  # two of the four cases, in both directions
    assert float(grouped) == pytest.approx(0.0, abs=1e-12)


def test_a_missing_report_takes_no_part_and_gets_no_gradient() -> None:
    rng = np.random.default_rng(2)
    config = AlignmentConfig(alpha=0.5, beta=2.0, gamma=1.5, train_sides=("cxr", "ct", "report"))
    sides = {name: unit(rng, 5, 4).requires_grad_() for name in ("cxr", "ct", "report")}
    groups, has = torch.arange(5), torch.tensor([True, False, True, True, False])
    total, terms = objective(sides, 3.0, groups, has, config)
    numpy = {name: rows.detach().numpy() for name, rows in sides.items()}
    everyone, some = np.ones(5, dtype=bool), has.numpy()
    expected = {
        "ct-report": written_out(numpy["ct"], numpy["report"], 3.0, groups.numpy(), some),
        "cxr-report": written_out(numpy["cxr"], numpy["report"], 3.0, groups.numpy(), some),
        "cxr-ct": written_out(numpy["cxr"], numpy["ct"], 3.0, groups.numpy(), everyone),
    }
    assert {name: float(value) for name, value in terms.items()} == pytest.approx(expected, rel=1e-12)
    weighted = 0.5 * expected["ct-report"] + 2.0 * expected["cxr-report"] + 1.5 * expected["cxr-ct"]
    assert float(total) == pytest.approx(weighted, rel=1e-12)
    total.backward()
    assert sides["report"].grad is not None
    assert sides["report"].grad[~has].abs().max() == 0
    assert sides["report"].grad[has].abs().min() > 0


def test_nothing_to_contrast_costs_nothing() -> None:
    rows = unit(np.random.default_rng(0), 3, 2).requires_grad_()
    loss = info_nce(rows, rows.detach(), torch.zeros(3, dtype=torch.long), 5.0)
    loss.backward()
    assert float(loss) == 0.0
    assert rows.grad is not None
    assert rows.grad.abs().max() < 1e-12
    nobody = info_nce(rows, rows, torch.arange(3), 5.0, torch.zeros(3, dtype=torch.bool))
    assert float(nobody) == 0.0


def test_no_batch_holds_two_exams_of_one_group() -> None:
    groups = np.random.default_rng(0).integers(0, 40, 200)
    batches = GroupBatches(groups, 16, seed=3)
    drawn = [batches(step) for step in range(1, 61)]
    assert all(len(set(groups[rows])) == 16 for rows in drawn)
    epoch = np.concatenate([groups[rows] for rows in drawn[:2]])
    assert len(set(epoch)) == 32  # no group twice within an epoch
    taken = np.unique(np.concatenate(drawn))
    assert len(taken) > 150  # other exams of a patient take their turn


WORKER = """
import os
import sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_objective import gradients, small
from embedprior.alignment.train import train_alignment
from embedprior.runs.distributed import process_group
processes = process_group(2)
assert processes.world_size == 2
train, val, config = small()
slopes = gradients(train, config, processes)
found, history = train_alignment(train, val, config, {{}}, processes)
if processes.is_main:
    found.save({out!r})
    import json
    from pathlib import Path
    (Path({out!r}) / "history.json").write_text(json.dumps(history))
    (Path({out!r}) / "gradients.json").write_text(json.dumps(slopes))
torch.distributed.barrier()  # nobody leaves while another still sends
torch.distributed.destroy_process_group()
os._exit(0)  # one of many runs was aborted, it seems while the interpreter ended
"""


def small():
    train, val = (
        each.cases
        for each in planted_triples(
            PlantedTriplesConfig(cxr_dim=9, ct_dim=6, report_dim=6, missing_reports=0.5), (33, 12), seed=0
        )
    )
    config = AlignmentConfig(
        alpha=0.3, train_sides=("cxr", "ct", "report"), dim=5, learn_temperature=True, batch_size=16, steps=12,
        validate_every=4, lr=0.02,
    )  # fmt: skip
    return train, val, config


def gradients(train: Triples, config: AlignmentConfig, processes: ProcessGroup) -> dict[str, list[float]]:
    """Of one step's loss by parameter: AdamW would hide a factor that all of them share."""
    network = new_network(train.sides, config)
    average_gradients([p for p in network.parameters() if p.requires_grad])
    batch_loss(network, train, GroupBatches(train.groups, 16, 0)(1), config, "cpu", processes)[0].backward()
    return {name: p.grad.flatten().tolist() for name, p in network.named_parameters() if p.grad is not None}


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    train, val, config = small()
    one, history = train_alignment(train, val, config, {})
    one.save(tmp_path / "one")
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER.format(tests=str(Path(__file__).parent), out=str(tmp_path / "two")))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(worker)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:4000]
    weights = [load_file(tmp_path / name / WEIGHTS) for name in ("one", "two")]
    assert {"log_scale", "sides.cxr.layers.0.weight", "sides.report.layers.0.weight"} <= set(weights[0])
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    slopes = json.loads((tmp_path / "two" / "gradients.json").read_text())
    alone = gradients(train, config, ProcessGroup())
    assert set(slopes) == set(alone) >= {"log_scale", "sides.cxr.layers.0.weight"}
    for name, values in alone.items():
        np.testing.assert_allclose(slopes[name], values, rtol=1e-3, atol=1e-6, err_msg=name)
    other = json.loads((tmp_path / "two" / "history.json").read_text())
    np.testing.assert_allclose([r["loss"] for r in other], [r["loss"] for r in history], rtol=1e-5)
