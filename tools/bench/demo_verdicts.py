"""Do the demo's verdicts hold on other seeds and other instruction sets? Runs the demo again and again and tabulates.

``python tools/bench/demo_verdicts.py --out runs/verdicts --seeds 2026 2035 --sets native`` runs the demo with each seed
from 2026 to 2035 and each instruction set, in a process of its own, keeps ``evidence.json`` of each, and never repeats
one: a stopped run goes on. Bars: ``direct-head`` and ``prior`` are better than ``cxr-only`` in at least nine tenths of
the worlds of few labels, in at most a tenth of the others, and a seed has the same verdicts under every set.
``--figure FILE.svg`` draws AUC against the number of labelled radiographs, with the range over all runs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common.measuring import Table

from embedprior.demo.pipeline import ENOUGH, FEW
from embedprior.evidence.decision import SUPPORTED, SUPPORTED_SMALL

SETS = {
    "sse41": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "native": {},
}
FIELDS = ("method", "auc", "ci_low", "ci_high", "oracle")
CLAIMED, REFERENCE, CONTROL = ("direct-head", "prior"), "cxr-only", "cxr-only-drr"


def run(out: Path, seed: int, name: str, options: list[str]) -> Path:
    """Run one demo, or what is left of it, and return the folder of its evidence and support."""
    kept, demo = out / f"{seed}-{name}", out / f"running-{seed}-{name}"
    if (kept / "support.csv").is_file():
        return kept
    command = [sys.executable, "-m", "embedprior", "demo", "--out", str(demo), "--seed", str(seed), *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env={**os.environ, **SETS[name]}, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    kept.mkdir(parents=True, exist_ok=True)
    for file in ("evidence.json", "summary.md", "support.csv"):  # the last one says that all are there
        shutil.copyfile(demo / file, kept / file)
    shutil.rmtree(demo)
    print(f"seed {seed}, {name}: {seconds:.0f} CPU seconds in this call")
    return kept


def verdicts(evidence: dict[str, Any], other: str = REFERENCE) -> dict[tuple[str, str], str]:
    """Return the verdict of "method > other" by world and method."""
    return {
        (world, c["a"]): c["verdict"]
        for world in (FEW, ENOUGH)
        for c in evidence["designs"][world]["comparisons"]
        if c["in_family"] and c["a"] in CLAIMED and c["b"] == other
    }


def curve(evidence: dict[str, Any], support: pd.DataFrame) -> pd.DataFrame:
    """Return AUCs by design: ``design, labelled, method, auc, ci_low, ci_high, oracle``."""
    rows = support.set_index("design")
    every = rows["train_images_pos"] + rows["train_images_neg"]
    labelled = rows["train_images_labelled"].fillna(every) if "train_images_labelled" in rows else every
    return pd.DataFrame(
        {"design": name, "labelled": int(labelled[name]), **{k: m[k] for k in FIELDS}}
        for name, own in evidence["designs"].items()
        for m in own["methods"]
    )


def draw(table: pd.DataFrame, file: Path, runs: int) -> None:
    """Draw AUC by number of labelled radiographs: median and range over the runs; of a single one, its intervals."""
    from matplotlib.figure import Figure

    styles = {"ct-only": ("#777777", "CT itself (oracle)"), "prior": ("#D55E00", "diffusion prior"),
              "direct-head": ("#0072B2", "direct head"), "hinton-kd": ("#009E73", "distillation (Hinton)"),
              "cxr-only": ("#000000", "X-ray labels only"),
              "cxr-only-drr": ("#999933", "labels of X-rays and DRRs")}  # fmt: skip
    figure = Figure(figsize=(7.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for method, (colour, name) in styles.items():
        own = table[table["method"] == method].groupby("labelled")["auc"].agg(["min", "median", "max"])
        if runs == 1:
            limits = table[table["method"] == method].set_index("labelled").sort_index()
            own = own.assign(min=limits["ci_low"], max=limits["ci_high"])
        axes.plot(own.index, own["median"], color=colour, marker="o", ms=4, label=name)
        axes.fill_between(own.index, own["min"], own["max"], color=colour, alpha=0.13, lw=0)
    axes.set_xscale("log")
    ticks = sorted(table["labelled"].unique())
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    what = "AUC (95 % interval)" if runs == 1 else f"AUC, median and range of {runs} runs"
    axes.set(xlabel="labelled radiographs in training", ylabel=what, ylim=(0.5, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right", ncols=2)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=150)


def main() -> int:
    """Print verdicts and ranges, and return 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/verdicts"))
    parser.add_argument("--seeds", type=int, nargs=2, default=(2026, 2035), metavar=("FIRST", "LAST"))
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--config", default="default", help="of configs/demo")
    parser.add_argument("--workers", type=int, default=0, help="processes of a demo; 0 (default) = one a core")
    parser.add_argument("--quick", action="store_true", help="one seed at toy size: the code runs, and says nothing")
    parser.add_argument("--done", action="store_true", help="tabulate what is done; run nothing")
    parser.add_argument("--figure", type=Path, help="draw the label curve into this file (.svg or .png)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seeds[0], options.seeds[0] + 1 if options.quick else options.seeds[1] + 1)
    config = ["--config", "quick" if options.quick else options.config, "--workers", str(options.workers)]
    shown, found, controlled, curves = Table(), {}, [], []
    for name in options.sets:
        for seed in seeds:
            folder = options.out / f"{seed}-{name}"
            if options.done and not (folder / "support.csv").is_file():
                continue
            folder = run(options.out, seed, name, config)
            evidence = json.loads((folder / "evidence.json").read_text())
            found[seed, name] = verdicts(evidence)
            controlled.append(verdicts(evidence, CONTROL))
            curves.append(curve(evidence, pd.read_csv(folder / "support.csv")).assign(seed=seed, set=name))
            said = "; ".join(f"{world}, {method}: {v}" for (world, method), v in found[seed, name].items())
            print(f"seed {seed}, {name}: {said}", flush=True)
    if not found:
        parser.error(f"no run is done in {options.out}")
    hold(shown, found, pd.concat(curves), bars=not options.quick)
    for world, method in controlled[0]:  # what the CT's embedding adds to the labels of the DRRs: no bar, it describes
        said = pd.Series([one[world, method] for one in controlled]).value_counts()
        print(f"{world}: {method} > {CONTROL}: " + ", ".join(f"{verdict} {n}" for verdict, n in said.items()))
    if options.figure:
        draw(pd.concat(curves), options.figure, len(found))
    return shown.finish(options.json)


def hold(
    shown: Table, found: dict[tuple[int, str], dict[tuple[str, str], str]], table: pd.DataFrame, bars: bool
) -> None:
    """Print ranges of AUCs, shares of "supported" and how many seeds agree over instruction sets."""
    print(f"\n{len(found)} runs: {len({s for s, _ in found})} seeds, {', '.join(sorted({n for _, n in found}))}")
    worlds = table[table["design"].isin((FEW, ENOUGH))]
    for (world, method), own in worlds.groupby(["design", "method"], sort=False)["auc"]:
        print(f"{world:<14} {method:<15} AUC {own.min():.3f} to {own.max():.3f}, median {own.median():.3f}")
    for world in (FEW, ENOUGH):
        for method in CLAIMED:
            share = float(np.mean([v[world, method] in (SUPPORTED, SUPPORTED_SMALL) for v in found.values()]))
            least, most = (0.9, None) if world == FEW else (None, 0.1)
            shown.hold(f"{world}: {method} > {REFERENCE} supported", share, "of runs", *((least, most) if bars else ()))
    several = [s for s in {s for s, _ in found} if sum(seed == s for seed, _ in found) > 1]
    if several:
        said = {key: tuple(x in (SUPPORTED, SUPPORTED_SMALL) for x in v.values()) for key, v in found.items()}
        alike = [len({v for (seed, _), v in said.items() if seed == one}) == 1 for one in several]
        shown.hold("seeds with the same verdicts under all instruction sets", float(np.mean(alike)), "of seeds",
                   least=1.0 if bars else None)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
