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
import functools
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
        return self.ratios(theirs, [own], warm)[0]

    def ratios(
        self, theirs: Callable[[], object], own: Sequence[Callable[[], object]], warm: bool = True
    ) -> list[tuple[float, float]]:
        """Return the same for several of ours, each beside the same runs of theirs."""
        for work in (*own, theirs) if warm else own:
            work()
        rounds = [(cpu_seconds(theirs), [cpu_seconds(work) for work in own]) for _ in range(self.repeats)]
        return [
            (statistics.median(peer / ours[i] for peer, ours in rounds), min(ours[i] for _, ours in rounds))
            for i in range(len(own))
        ]


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


Bars = tuple[float | None, float | None]
"""Of training and of sampling."""


def against(
    bench: Bench, learners: Mapping[str, Learner], priors: Mapping[str, Prior], max_text_len: int,
    bars: Mapping[str, Bars],
) -> None:  # fmt: skip
    """Rows of training and sampling against the peer with this prefix, ours by precision, the peer's in fp32."""
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

    def own_gradients(learner: Learner) -> None:
        learner.network.zero_grad(set_to_none=True)
        learner.losses(0)["l2"].backward()

    def sample() -> None:
        for _ in range(their_steps):
            theirs.p_sample(target, clock, text_cond={"text_embed": condition})

    theirs.train()
    for learner in learners.values():
        learner.network.train()
    own = [functools.partial(own_gradients, learner) for learner in learners.values()]
    for name, (faster, seconds) in zip(learners, bench.ratios(gradients, own, warm=not long), strict=True):
        bench.hold(f"training, loss and gradients: peer ({label}) over ours, {name}", faster, "x", least=bars[name][0])
        bench.hold(f"  ours, {name}", seconds, "s")
    if not bench.quick:
        optimiser = torch.optim.AdamW(theirs.net.parameters(), lr=1e-5, fused=True)
        average = AveragedModel(theirs.net, multi_avg_fn=ema_update(0.99))

        def whole_step() -> None:
            gradients()
            torch.nn.utils.clip_grad_norm_(theirs.net.parameters(), 0.5)
            optimiser.step()
            average.update_parameters(theirs.net)

        steps = [functools.partial(learner.learn, 0) for learner in learners.values()]
        for name, (faster, _) in zip(learners, bench.ratios(whole_step, steps, warm=not long), strict=True):
            bench.hold(f"  with clipping, AdamW and EMA on both sides, {name}", faster, "x")
    theirs.eval()
    for learner in learners.values():
        learner.network.eval()
    embeddings = condition.numpy()
    own = [functools.partial(prior.sample, embeddings, 1, "ddpm_small", our_steps) for prior in priors.values()]
    for name, (faster, seconds) in zip(priors, bench.ratios(sample, own, warm=not long), strict=True):
        faster *= our_steps / their_steps
        bench.hold(f"{STEPS}-step sampling: peer ({label}) over ours, {name}", faster, "x", least=bars[name][1])
        bench.hold(f"  ours, {name}, {STEPS} steps", seconds / our_steps * STEPS, "s")


def processor() -> str:
    """Return what the processor says of itself; empty where it says nothing."""
    described = Path("/proc/cpuinfo")
    return described.read_text() if described.exists() else ""


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
    # The ceiling is the better of the two libraries that PyTorch multiplies with: MKL and oneDNN.
    inputs, weights = torch.randn(3 * 64, DIM), torch.randn(4096, DIM)
    libraries = {"MKL": inputs} | ({"oneDNN": inputs.to_mkldnn()} if torch.backends.mkldnn.is_available() else {})
    speeds = {}
    with torch.inference_mode():
        for name, rows in libraries.items():
            product = [cpu_seconds(lambda rows=rows: [F.linear(rows, weights) for _ in range(20)]) for _ in range(5)]
            speeds[name] = 2 * inputs.numel() * 4096 / (min(product) / 20) / 1e9
            bench.hold(f"fp32 matrix products of this size, {name}", speeds[name], "GFLOP/s")
    ceiling = max(speeds.values())
    matrices = sum(p.numel() for p in prior.network.blocks.parameters() if p.ndim == 2)
    last = 1 / len(prior.network.blocks)
    row_count = steps * (3 - 2 * last) + 1 - last
    bench.hold("  ours, sampling 64 cases", 2 * 64 * row_count * matrices / own / 1e9 / ceiling, "of the better")
    units = "amx_bf16" in processor()
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
    train = pairs(256, DIM, 0)
    learners = dict[str, Learner]()
    for precision in ("fp32", "bf16"):
        config = PriorConfig(training=TrainingConfig(batch=bench.batch, precision=precision))
        prior = initial_prior(train, train, config, None)
        learners[precision] = Learner(prior, train, Accelerator(cpu=True), None, None)
    priors = {"fp32": prior, "bf16": prior.to("cpu", torch.bfloat16)}
    # Where the processor has no product of bf16 numbers, they are no gain, and held to nothing.
    half = any(unit in processor() for unit in ("avx512_bf16", "amx_bf16"))
    bars: dict[str, Bars] = {"fp32": (35.0, 35.0), "bf16": (60.0, 60.0) if half else (None, None)}
    print(f"batch {bench.batch}, {args.threads} thread(s), ours {prior.network.parameter_count() / 1e6:.1f} M, torch "
          f"{torch.__version__}")  # fmt: skip
    against(bench, learners, priors, 0, {"fp32": (1.0, 1.4), "bf16": (None, None)})
    alone(bench, prior)
    same_answer(bench)
    bench.repeats = 1 if args.quick else 2
    against(bench, learners, priors, 77, bars)
    return bench.finish(args.json, torch=torch.__version__, batch=bench.batch)


if __name__ == "__main__":
    sys.exit(main())
