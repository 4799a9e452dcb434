"""What ``embedprior generate`` reports: the summary, ``quality.json`` and the map of the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from embedprior.prior.config import GenerateConfig
from embedprior.prior.generate import OUTPUTS, Generated
from embedprior.prior.metrics import Floats
from embedprior.prior.model import Prior
from embedprior.report.embedding_map import tsne
from embedprior.report.figures import BLUE, INK, MUTED, ORANGE, VERMILION, png
from embedprior.runs import write_json

STATES = (("0", "start: noise", MUTED), ("1", "half way", ORANGE), ("2", "end: sample", VERMILION))
NAMES = {"sample": "one sample", "mean": "mean of the samples", "one_step": "one-step x0"}
PICTURE, FIGURES = "sampling.png", "quality.json"


def path_figure(clouds: Mapping[str, Floats], seed: int) -> bytes:
    """Return PNG: one t-SNE of real CT embeddings and of a sampling at its start, middle and end, a panel a state.

    Args:
        clouds: ``real`` and ``0``, ``1``, ``2`` → (n, D), standardised, the same patients.
        seed: of the t-SNE. It is fitted once, to all four clouds together, so that panels can be compared.
    """
    names = ["real", *(name for name, _, _ in STATES)]
    places = dict(zip(names, np.split(tsne(np.concatenate([clouds[n] for n in names]), seed), len(names)), strict=True))
    figure = Figure(figsize=(9.6, 3.7), layout="constrained")
    for axes, (name, title, colour) in zip(figure.subplots(1, 3, sharex=True, sharey=True), STATES, strict=True):
        axes.scatter(*places["real"].T, s=16, facecolors="none", edgecolors=BLUE, linewidths=0.7, label="real CT")
        axes.scatter(*places[name].T, s=9, color=colour, alpha=0.8, linewidths=0, label=title)
        axes.set_title(title, fontsize=10, color=INK)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#c9cfd8")
        axes.legend(loc="upper left", fontsize=8, frameon=False, handletextpad=0.2, borderpad=0.1)
    return png(figure)


def tell(
    out: Path, config: GenerateConfig, prior: Prior, made: Generated, exams: int, measured: dict[str, Any] | None,
    figure: bytes | None,
) -> str:  # fmt: skip
    """Write ``quality.json`` and the picture where there is something to write, and return the summary."""
    drawn = f"{config.samples} samples an exam, {config.sampler}, {config.steps} steps, seed {config.seed}"
    lines = [f"# CT-like embeddings of {exams} {config.source.upper()}s", "", f"{drawn}.", ""]
    lines += ["| output | cache | is |", "| --- | --- | --- |"]
    lines += [f"| {NAMES[name]} | `{made.caches[name].path}` | {text} |" for name, text in OUTPUTS.items()]
    if made.scores is not None:
        lines += ["", "`scores.csv` holds the head's probabilities; `mean_of_samples` is the score to use."]
    lines += [f"\n**Mind:** {caveat}." for caveat in prior.caveats(config.guidance)]
    if measured is not None:
        lines += ["", *_quality(measured), "", f"![t-SNE of real CT embeddings and of a sampling]({PICTURE})"]
        write_json(out / FIGURES, measured)
    if figure is not None:
        (out / PICTURE).write_bytes(figure)
    return "\n".join([*lines, "", "Research use only: not a medical device, not for diagnosis.", ""])


def _quality(found: Mapping[str, Any]) -> list[str]:
    distances, retrieval = found["distances"], found["retrieval"]
    lines = [f"## Quality: {found['part']}, {found['patients']} patients, {found['pairs']} pairs", ""]
    if found["in_sample"]:
        lines += ["**In-sample**: these patients may have trained the prior. Give `--splits` for held-out ones.", ""]
    if found["patients_seen_by_encoders"]:
        count = found["patients_seen_by_encoders"]
        lines += [f"**Mind:** the encoders were trained on {count} of these patients: their embeddings flatter.", ""]
    size = f"{distances['halves']} halvings, {distances['patients_per_half']} patients a half"
    lines += [
        f"Distance from real CT embeddings (mean ± SD of {size}, Fréchet in {distances['frechet_dims']} principal "
        "dimensions). `real` is the floor: real against real at the same size. Near the floor = spread like real ones, "
        "which only samples can be.",
        "",
        "| | Fréchet | energy | MMD² | variance / real |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for cloud in ("real", *OUTPUTS):
        cells = [f"{distances[m][cloud]['mean']:.3f} ± {distances[m][cloud]['sd']:.3f}" for m in ("frechet", "energy")]
        cells.append(f"{distances['mmd'][cloud]['mean']:.4f} ± {distances['mmd'][cloud]['sd']:.4f}")
        share = distances["variance_share"][cloud]
        lines.append(f"| {NAMES.get(cloud, 'real (floor)')} | {' | '.join(cells)} | {share:.2f} |")
    top = list(retrieval["chance"])
    lines += [
        "",
        f"Nearness to the patient's own CT, and finding it among {retrieval['gallery']} by cosine (95 % CI over "
        "patients). Regressions lead here by nature: a sample carries spread that points nowhere near.",
        "",
        "| | cosine | " + " | ".join(f"recall@{k}" for k in top) + " | median rank |",
        "| --- | ---: |" + " ---: |" * (len(top) + 1),
    ]
    for name in OUTPUTS:
        cells = [_interval(found["cosine"][name]), *(_interval(retrieval[name][k]) for k in top)]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} | {retrieval[name]['median_rank']:g} |")
    chance = " | ".join(f"{retrieval['chance'][k]:.3f}" for k in top)
    lines.append(f"| chance | 0 | {chance} | {(retrieval['gallery'] + 1) / 2:g} |")
    return lines


def _interval(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return str(row["reason"])
    return f"{row['value']:.3f} ({row['low']:.3f}–{row['high']:.3f})"
