"""How fast are training and sampling of the 49 M prior, beside `dalle2-pytorch`, which the PE paper's code is made of?

The peer is installed from the package registry into a throw-away environment that borrows this one's PyTorch, and both
run in turn in one process there: same width, depth 12, 12 heads of 64, batch, data, threads; no dropout on either
side (the peer ships 0.05, which is left out in its favour). Training is the loss and its gradients, from embeddings in
memory to ``.grad``; a whole step with clipping, AdamW and EMA is given too. Sampling is 64 steps for one batch of
cases: a few steps are timed, and a step costs what the next one costs. Times are CPU seconds of this process, and a
ratio compares runs made back to back. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from common.measuring import Table, cpu_seconds
from sklearn.metrics import roc_auc_score
from torch.optim.swa_utils import AveragedModel

from embedprior.prior.config import NetworkConfig, PriorConfig, TrainingConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.model import Prior
from embedprior.prior.setup import ema_update, initial_prior
from embedprior.prior.trainer import Learner, train_prior

ROOT = Path(__file__).parents[2]
# Of the peer's requirements only what its import needs and this environment lacks; it asks for no version.
PEER = (
    "dalle2-pytorch==1.15.6", "coca-pytorch==0.1.0", "einops-exts==0.0.4", "einx==0.4.3", "ema-pytorch==0.8.3",
    "einops==0.8.2", "embedding-reader==1.8.1", "frozendict==2.5.1", "kornia==0.9.0", "kornia-rs==0.2.0",
    "loguru==0.7.3", "pytorch-warmup==0.2.0", "resize-right==0.0.2", "rotary-embedding-torch==0.9.1",
    "torch-einops-utils==0.2.0", "vector-quantize-pytorch==1.32.0", "webdataset==1.0.2", "braceexpand==0.1.7",
    "x-clip==0.14.4", "clip-anytorch==2.6.0", "ftfy", "wcwidth", "regex", "sympy", "mpmath",
)  # fmt: skip
DIM, STEPS = 512, 64


def inside_an_environment_of_its_own() -> int:
    """Make the environment, run this script in it, throw it away; return the exit code."""
    with tempfile.TemporaryDirectory(prefix="prior-speed-") as folder:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        (site,) = Path(folder).glob("lib/python3*/site-packages")
        # Behind the borrowed packages, so that nothing installed here can stand in for one of them.
        borrowed, peers = Path(str(torch.__file__)).parents[1], Path(folder) / "peers"
        (site / "borrowed.pth").write_text(f"{borrowed}\n{peers}\n")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        installed = subprocess.run([*pip, "--target", str(peers), *PEER], capture_output=True, text=True)
        if installed.returncode != 0:
            print(f"the peer can't be installed: {installed.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return 1
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PRIOR_SPEED_INSIDE": "1"}
        (python,) = Path(folder).glob("bin/python3")
        return subprocess.run([str(python), __file__, *sys.argv[1:]], env=environment).returncode


class Bench(Table):
    """Rows of one batch size.

    Args:
        batch: cases.
        repeats: of every comparison; the median counts.
        quick: fewer steps a row, and no long row that has no bar.
    """

    def __init__(self, batch: int, repeats: int, quick: bool) -> None:
        super().__init__()
        self.batch, self.repeats, self.quick = batch, repeats, quick

    def ratio(self, theirs: Callable[[], object], own: Callable[[], object], warm: bool = True) -> tuple[float, float]:
        """Return the median of their seconds over ours, run back to back, and our least seconds.

        Work of many seconds needs no warming up: what its first call adds is lost in it.
        """
        own()
        if warm:
            theirs()
        pairs = [(cpu_seconds(theirs), cpu_seconds(own)) for _ in range(self.repeats)]
        return statistics.median(a / b for a, b in pairs), min(b for _, b in pairs)


def pairs(count: int, dim: int, seed: int) -> PairArrays:
    """Embeddings without meaning: speed does not depend on it."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((2, count, dim), dtype=np.float32)
    return PairArrays(drawn[0], drawn[1], [str(i) for i in range(count)], "cxr")


def peer(max_text_len: int) -> Any:
    """The peer's prior as the PE paper's code sets it up, but for dropout and the length of its constant prefix."""
    dalle = importlib.import_module("dalle2_pytorch")
    network = dalle.DiffusionPriorNetwork(
        dim=DIM, depth=12, heads=12, dim_head=64, num_timesteps=STEPS, max_text_len=max_text_len, normformer=True
    )
    return dalle.DiffusionPrior(
        network, image_embed_dim=DIM, timesteps=STEPS, cond_drop_prob=0.1, condition_on_text_encodings=False
    )


def against(bench: Bench, learner: Learner, prior: Prior, max_text_len: int, bars: tuple[float, float]) -> None:
    """Rows of training and sampling against the peer with this prefix."""
    theirs, tokens = peer(max_text_len), max_text_len + 4
    count = sum(p.numel() for p in theirs.net.parameters())
    label = f"{tokens} tokens, {count / 1e6:.1f} M"
    condition, target = torch.randn(2, bench.batch, DIM)
    clock = torch.full((bench.batch,), STEPS // 2)
    long = tokens > 10
    # Ours pays for the condition once in a sampling; eight steps bear eight times the share that 64 would.
    their_steps, our_steps = (1 if long else 2 if bench.quick else 4), 8

    def gradients() -> None:
        theirs.zero_grad(set_to_none=True)
        theirs(text_embed=condition, image_embed=target.clone()).backward()

    def own_gradients() -> None:
        learner.network.zero_grad(set_to_none=True)
        learner.losses(0)["l2"].backward()

    def sample() -> None:
        for _ in range(their_steps):
            theirs.p_sample(target, clock, text_cond={"text_embed": condition})

    least_training, least_sampling = bars
    theirs.train()
    learner.network.train()
    faster, own = bench.ratio(gradients, own_gradients, warm=not long)
    bench.hold(f"training, loss and gradients: peer ({label}) over ours", faster, "x", least=least_training)
    bench.hold("  ours", own, "s")
    if not bench.quick:
        optimiser = torch.optim.AdamW(theirs.net.parameters(), lr=1e-5, fused=True)
        average = AveragedModel(theirs.net, multi_avg_fn=ema_update(0.99))

        def whole_step() -> None:
            gradients()
            torch.nn.utils.clip_grad_norm_(theirs.net.parameters(), 0.5)
            optimiser.step()
            average.update_parameters(theirs.net)

        faster, _ = bench.ratio(whole_step, lambda: learner.learn(0), warm=not long)
        bench.hold("  with clipping, AdamW and EMA on both sides", faster, "x")
    theirs.eval()
    learner.network.eval()
    embeddings = condition.numpy()
    faster, own = bench.ratio(sample, lambda: prior.sample(embeddings, 1, "ddpm_small", our_steps), warm=not long)
    faster *= our_steps / their_steps
    bench.hold(f"{STEPS}-step sampling: peer ({label}) over ours", faster, "x", least=least_sampling)
    bench.hold(f"  ours, {STEPS} steps", own / our_steps * STEPS, "s")


def alone(bench: Bench, prior: Prior) -> None:
    """Rows of our own sampling: many samples of one case, bf16, and the ceiling of the matrix products."""
    one, many = np.zeros((1, DIM), np.float32), np.zeros((64, DIM), np.float32)
    steps = 2 if bench.quick else 4
    cost, own = bench.ratio(
        lambda: prior.sample(one, 64, "ddpm_small", steps), lambda: prior.sample(many, 1, "ddpm_small", steps)
    )
    bench.hold("64 samples of one case over 64 cases x 1", cost, "x", most=1.3)
    # Rows of matrix products a case: three a step (time, target, query) and one for the condition, but for the last
    # block, which does the query's alone (and of the condition next to nothing).
    inputs, weights = torch.randn(3 * 64, DIM), torch.randn(4096, DIM)
    product = min(cpu_seconds(lambda: [F.linear(inputs, weights) for _ in range(20)]) for _ in range(3)) / 20
    ceiling = 2 * inputs.numel() * 4096 / product / 1e9
    matrices = sum(p.numel() for p in prior.network.blocks.parameters() if p.ndim == 2)
    last = 1 / len(prior.network.blocks)
    rows = steps * (3 - 2 * last) + 1 - last
    bench.hold("ceiling: GFLOP/s of fp32 matrix products of this size", ceiling, "GFLOP/s")
    bench.hold("  ours, sampling 64 cases", 2 * 64 * rows * matrices / own / 1e9 / ceiling, "of it")
    units = "amx_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False
    if bench.quick and not units:
        return
    half = prior.to("cpu", torch.bfloat16)
    whole = prior.to("cpu", torch.float32)
    faster, _ = bench.ratio(
        lambda: whole.sample(many, 1, "ddpm_small", steps), lambda: half.sample(many, 1, "ddpm_small", steps)
    )
    name = "bf16 weights over fp32, sampling" + ("" if units else " (no bf16 matrix units here: no bar)")
    bench.hold(name, faster, "x", least=2.0 if units else None)


def same_answer(bench: Bench) -> None:
    """Row of the held-out AUC with bf16 weights: the mean of a head over samples that share their noise."""
    rng, (budget, held_out, steps) = np.random.default_rng(0), ((200, 1000, 8) if bench.quick else (600, 3000, 16))
    maps = rng.standard_normal((16, 16)) / 4

    def world(count: int, prefix: str) -> PairArrays:
        condition = rng.standard_normal((count, 16))
        target = np.tanh(condition @ maps) + 0.7 * rng.standard_normal((count, 16))
        return PairArrays(
            condition.astype(np.float32), target.astype(np.float32), [f"{prefix}{i}" for i in range(count)], "cxr"
        )

    config = PriorConfig(
        network=NetworkConfig(preset="tiny"),
        training=TrainingConfig(
            steps=budget, lr=1e-3, ema=0.99, validate_every=200, variance_draws=1, variance_nodes=17
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        prior = train_prior(world(2000, "t"), world(300, "v"), config, Path(folder), show_progress=False)
    cases = world(held_out, "h")
    sick = 3 * cases.target[:, 0] + rng.logistic(size=held_out) > 0
    auc = {}
    for dtype in (torch.float32, torch.bfloat16):
        drawn = prior.to("cpu", dtype).sample(cases.condition, 16, "analytic", steps)
        auc[dtype] = float(roc_auc_score(sick, (1 / (1 + np.exp(-3 * drawn[..., 0]))).mean(axis=1)))
    bench.hold("held-out AUC of a small prior, fp32 weights", auc[torch.float32], "")
    bench.hold("  bf16 weights: off by", abs(auc[torch.bfloat16] - auc[torch.float32]), "", most=0.002)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="batch 32 and fewer repeats; the same depth")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    if "PRIOR_SPEED_INSIDE" not in os.environ:
        return inside_an_environment_of_its_own()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    bench = Bench(32, 2, quick=True) if args.quick else Bench(64, 5, quick=False)
    config = PriorConfig(training=TrainingConfig(batch=bench.batch))
    train = pairs(256, DIM, 0)
    prior = initial_prior(train, train, config, None)
    learner = Learner(prior, train, Accelerator(cpu=True), None, None)
    print(f"batch {bench.batch}, {args.threads} thread(s), ours {prior.network.parameter_count() / 1e6:.1f} M, torch "
          f"{torch.__version__}")  # fmt: skip
    against(bench, learner, prior, 0, (1.0, 1.4))
    alone(bench, prior)
    same_answer(bench)
    bench.repeats = 1 if args.quick else 2
    against(bench, learner, prior, 77, (20.0, 20.0))
    return bench.finish(args.json, torch=torch.__version__, batch=bench.batch)


if __name__ == "__main__":
    sys.exit(main())
