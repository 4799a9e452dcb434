"""What ``embedprior generate`` reports: its summary, ``quality.json`` and the picture of the sampling."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.cache import EmbeddingCache
from embedprior.errors import BadInput
from embedprior.prior.config import GenerateConfig
from embedprior.prior.data import encoder_name, patients_seen
from embedprior.prior.generate import OUTPUTS, Generated, path, standardised
from embedprior.prior.metrics import MIN_PATIENTS, Matched, quality
from embedprior.prior.model import Prior
from embedprior.report.embedding_map import path_figure
from embedprior.report.formatting import RESEARCH_USE, markdown_table
from embedprior.runs import write_json
from embedprior.tables import PAIR_REQUIRED, SPLIT_REQUIRED, check_splits, fold_parts, read_table

NAMES = {"sample": "one sample", "mean": "mean of the samples", "one_step": "one-step x0"}
MAP_CASES = 200
"""Patients in the map: four points each."""
PICTURE, FIGURES = "sampling.png", "quality.json"


def pairs_to_measure(
    table: Path, splits: Path | None, part: str, drawn: Collection[str], real: Collection[str]
) -> pd.DataFrame:
    """Return the pairs that the quality report is about.

    Args:
        table: pair table.
        splits: split table; None = all pairs.
        part: of the split table.
        drawn: exams with a generated embedding.
        real: exams with a real CT embedding.

    Raises:
        BadInput: a table can't be used, or too few patients are left for a distribution to be judged.
    """
    pairs = read_table(table, PAIR_REQUIRED)
    if splits is not None:
        parts = fold_parts(check_splits(read_table(splits, SPLIT_REQUIRED), str(splits)), None, 0, 0, str(splits))
        pairs = pairs[pairs["patient_id"].map(parts) == part]
    kept = pairs[pairs["cxr_exam_id"].isin(drawn) & pairs["ct_exam_id"].isin(real)]
    patients = kept["patient_id"].nunique()
    if patients < MIN_PATIENTS:
        where = f" of part '{part}'" if splits is not None else ""
        raise BadInput(
            f"{table}: {patients} patients{where} with a drawn radiograph and a real CT embedding in --reference. "
            f"Allowed: at least {MIN_PATIENTS}, below that a distribution can't be judged."
        )
    return kept


def refuse_prior(folder: Path, patients: Iterable[str], part: str) -> None:
    """Refuse held-out patients of the report whom the prior, or one that it started from, was trained on.

    Raises:
        BadInput: there are some; the message counts them.
    """
    seen = patients_seen(folder) or {}
    both = sorted({patient for ids in seen.values() for patient in ids} & set(patients)) if part == "test" else []
    if both:
        raise BadInput(
            f"the prior {folder} was trained on {len(both)} patients of part 'test' (such as '{both[0]}'). Next: "
            "--splits with the table that it was trained by, or train it by this one."
        )


def refuse_reference(prior: Prior, reference: EmbeddingCache) -> None:
    """Refuse a reference that does not hold embeddings of the kind that the prior generates.

    Raises:
        BadInput: another encoder's, or of another length.
    """
    prior.check_encoders(target=encoder_name(reference))
    dim = prior.target_scaler.dim
    if int(reference.key["dim"]) != dim:
        raise BadInput(f"{reference.path.name} has embeddings of {reference.key['dim']}. Allowed: {dim}, the prior's.")


def measure(
    prior: Prior, made: Generated, reference: EmbeddingCache, pairs: pd.DataFrame, cache: EmbeddingCache,
    config: GenerateConfig, splits: Path | None, part: str,
) -> tuple[dict[str, Any], bytes]:  # fmt: skip
    """Return the quality figures and the map of a sampling as PNG.

    Args:
        prior: the prior.
        made: what it generated.
        reference: real CT embeddings.
        pairs: of ``pairs_to_measure``.
        cache: of the radiographs.
        config: how it was sampled, and how often distances are repeated.
        splits: split table that chose the pairs; None = all pairs given.
        part: of it.
    """
    radiographs, scans = pairs["cxr_exam_id"].tolist(), pairs["ct_exam_id"].tolist()
    generated = standardised(prior, {name: each.take(radiographs) for name, each in made.caches.items()})
    real = standardised(prior, {"real": reference.take(scans)})["real"]
    matched = Matched(generated, real, pairs["patient_id"].tolist(), scans)
    found = quality(matched, config.seed, config.halves, config.replicates)
    found["part"] = part if splits is not None else "all pairs given"
    found["in_sample"] = splits is None or part != "test"
    seen = (cache.patients_seen or frozenset()) | (reference.patients_seen or frozenset())
    found["patients_seen_by_encoders"] = len(seen & set(pairs["patient_id"]))
    first = pairs.drop_duplicates("patient_id").head(MAP_CASES)
    way = path(prior, cache, first["cxr_exam_id"].tolist(), config)
    states = {str(k): rows for k, rows in enumerate(way)} | {"real": reference.take(first["ct_exam_id"].tolist())}
    return found, path_figure(standardised(prior, states), config.seed)


def build_generation_report(
    out: Path, config: GenerateConfig, prior: Prior, made: Generated, exams: int, measured: dict[str, Any] | None,
    figure: bytes | None,
) -> str:  # fmt: skip
    """Write ``quality.json`` and the picture where there is something to write, and return the summary."""
    drawn = f"{config.samples} samples an exam, {config.sampler}, {config.steps} steps, seed {config.seed}"
    lines = [f"# CT-like embeddings of {exams} {config.source.upper()}s", "", f"{drawn}.", ""]
    rows = [[NAMES[name], str(made.caches[name].path), text] for name, text in OUTPUTS.items()]
    lines.append(markdown_table(["output", "cache", "is"], rows, [False] * 3))
    if made.scores is not None:
        lines += ["", "`scores.csv` holds the head's probabilities; `mean_of_samples` is the score to use."]
    lines += [f"\n**Note:** {caveat}." for caveat in prior.caveats(config.guidance)]
    if measured is not None:
        lines += ["", *_quality(measured), "", f"![t-SNE of real CT embeddings and of a sampling]({PICTURE})"]
        write_json(out / FIGURES, measured)
    if figure is not None:
        (out / PICTURE).write_bytes(figure)
    return "\n".join([*lines, "", RESEARCH_USE, ""])


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
    ]
    rows = []
    for cloud in ("real", *OUTPUTS):
        cells = [f"{distances[m][cloud]['mean']:.3f} ± {distances[m][cloud]['sd']:.3f}" for m in ("frechet", "energy")]
        cells.append(f"{distances['mmd'][cloud]['mean']:.4f} ± {distances['mmd'][cloud]['sd']:.4f}")
        share = distances["variance_share"][cloud]
        rows.append([NAMES.get(cloud, "real (floor)"), *cells, f"{share:.2f}"])
    lines.append(markdown_table(["", "Fréchet", "energy", "MMD²", "variance / real"], rows, [False] + [True] * 4))
    top = list(retrieval["chance"])
    lines += [
        "",
        f"Nearness to the patient's own CT, and finding it among {retrieval['gallery']} by cosine (95 % CI over "
        "patients). Regressions lead here by nature: a sample carries spread that points nowhere near.",
        "",
    ]
    rows = []
    for name in OUTPUTS:
        cells = [_interval(found["cosine"][name]), *(_interval(retrieval[name][k]) for k in top)]
        rows.append([NAMES[name], *cells, f"{retrieval[name]['median_rank']:g}"])
    chance = [f"{retrieval['chance'][k]:.3f}" for k in top]
    rows.append(["chance", "0", *chance, f"{(retrieval['gallery'] + 1) / 2:g}"])
    header = ["", "cosine", *(f"recall@{k}" for k in top), "median rank"]
    lines.append(markdown_table(header, rows, [False] + [True] * (len(header) - 1)))
    return lines


def _interval(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return str(row["reason"])
    return f"{row['value']:.3f} ({row['low']:.3f}–{row['high']:.3f})"
