"""What ``embedprior generate`` reports: its summary, ``quality.json`` and the picture of the sampling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedprior.prior.config import GenerateConfig
from embedprior.prior.generate import OUTPUTS, Generated
from embedprior.prior.model import Prior
from embedprior.runs import write_json

NAMES = {"sample": "one sample", "mean": "mean of the samples", "one_step": "one-step x0"}
PICTURE, FIGURES = "sampling.png", "quality.json"


def build_generation_report(
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
    lines += [f"\n**Note:** {caveat}." for caveat in prior.caveats(config.guidance)]
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
        lines += [
            f"**Note:** the encoders were trained on {count} of these patients, so their figures are too good.",
            "",
        ]
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
