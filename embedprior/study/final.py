"""``train final``: one method of a finished study, fitted once more on everybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.cohort.splits import Fold, patient_labels, with_validation
from embedprior.config import parse_config
from embedprior.errors import BadInput, nearest
from embedprior.runs import Run, claimed, hash_of, one_thread, progress, read_json
from embedprior.runs.integrity import has_own_checksum, refuse_changed_result
from embedprior.runs.provenance import resolve_portable
from embedprior.runs.run import own_paths
from embedprior.students.base import CannotFit, visible_cases
from embedprior.students.storage import load_fitted
from embedprior.study.config import SOURCE_ONLY, Design, StudyConfig, method_infos
from embedprior.study.inputs import StudyInputs
from embedprior.study.keep import COLUMNS, keep_model
from embedprior.study.plan import PLAN
from embedprior.study.run import read_study, study_inputs
from embedprior.study.runner import FitJob, FoldId, FoldRunner, method_of
from embedprior.study.variants import Variant
from embedprior.tables import PREDICTION_REQUIRED, read_table, write_table

FOLDER, MODELS, SCORES = "final", "models.csv", "predictions.csv"
SPLITS = "splits"
"""The input of a plan that a final fit does not read: nobody is held out."""


@dataclass(frozen=True)
class FinalFit:
    """What ``train_final`` left.

    Attributes:
        folder: with ``models.csv`` and the validation patients' ``predictions.csv``.
        models: one row a seed; ``model`` is a folder below the study's artifacts.
        patients: how many patients took part, by what they did: ``train``, ``val``.
        summary: the same in words, with the performance that the study found.
    """

    folder: Path
    models: pd.DataFrame
    patients: dict[str, int]
    summary: str


def final_folder(study: Path, design: str, method: str) -> Path:
    """Return where the final models of a method lie."""
    return study / FOLDER / design / method


def train_final(
    study: Path | str, method: str, *, design: str | None = None, data: Path | str | None = None,
    splits: Path | str | None = None,
) -> FinalFit:  # fmt: skip
    """Fit one method of a finished study on everybody, once for each of the study's seeds.

    Settings, budget and seeds are the study's. Where its design lets some training patients choose the checkpoint, the
    same share of all patients chooses it here (of a k-fold: one part in ``folds``), drawn by label; the others train.
    Nobody is held out, so nothing is scored: what to expect of the models is what the study found.

    Args:
        study: folder of a finished study.
        method: its name in the study.
        design: of the study; None where the method is in one only.
        data: folder of the cohort; None = where the plan says that it lies.
        splits: the split table that the study was given, if any.

    Raises:
        BadInput: no finished study, no such method, one that needs CT at inference or reads no picture, or a cohort
            that is no longer the study's.
        CannotFit: the cases do not allow it.
    """
    study = Path(study)
    config, plan = _finished(study)
    folder = Path(data) if data is not None else resolve_portable(str(plan["data"]), study)
    if not folder.is_dir():
        raise BadInput(f"the cohort of {study} is not at {folder}. Next: --data DIR")
    read = read_study(config, folder, splits)
    number, variant, chosen = _place(list(read.variants), method, design)
    _refuse_other_data(plan, variant, read.data[number].input_hashes(), folder)
    inputs, _ = study_inputs(read, study, lambda name, **fields: None)
    own = everybody(inputs[number], chosen)
    where = FoldId(number, chosen.name, 0, 0)
    out = final_folder(study, variant.key(chosen), method)
    settings = {"method": method, "design": variant.key(chosen), "plan": plan["hash"]}
    with claimed(out):
        run = Run(out, "train final", settings, config.seed, {**plan["inputs"], "plan": plan["hash"]})
    jobs = [FitJob(where, variant.key(chosen), seed, method) for seed in variant.config.seeds_of(chosen)]
    rows, scores, patients = _fit(own, jobs)
    write_table(rows, out / MODELS)
    write_table(scores, out / SCORES)
    summary = _summary(study, variant.config, method, chosen, rows, patients, variant.key(chosen))
    run.finish(summary, [], patients=patients)
    return FinalFit(out, rows, patients, summary)


def everybody(inputs: StudyInputs, design: Design) -> StudyInputs:
    """Return inputs with one fold in which nobody is held out; some choose the checkpoint where the design lets some.

    An external cohort takes no part.
    """
    exams = inputs.cohort.exams
    targets = inputs.targets[design.name]
    targets = targets[targets["exam_id"].isin(exams["exam_id"])].reset_index(drop=True)
    groups = dict(zip(exams["patient_id"], exams["group_id"], strict=True))
    fold = Fold(design=design.name, group_of=groups, part_of=dict.fromkeys(groups.values(), "train"))
    if design.validation:
        share = 1 / design.folds if design.split == "kfold" else design.validation_share
        highest = patient_labels(targets, inputs.cohort.labels(inputs.config.label))
        fold = with_validation(fold, highest, share, inputs.config.seed)
    return replace(inputs, targets={design.name: targets}, folds={(design.name, 0, 0): fold}, externals={})


def _fit(inputs: StudyInputs, jobs: list[FitJob]) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Fit the jobs; return the models, the validation patients' scores, and the numbers of patients."""
    runner = FoldRunner(inputs)
    rows, scores, patients = [], [], {}
    with one_thread():
        for job in progress(jobs, f"fits of {jobs[0].method}", total=len(jobs)):
            data = runner.data(job)
            if not len(data.target.train):
                raise CannotFit(f"{job}: no case is left to train on")
            method = method_of(inputs, job.method, {}, job.fold_id.design)
            place = {"design": job.fold_id.design, "resample": 0, "fold": 0, "seed": job.seed, "name": job.method}
            made = keep_model(inputs, place | {"final": True}, method, data, hash_of(runner.identity(job)), None)
            size = sum(file.stat().st_size for file in made.path.rglob("*") if file.is_file())
            model = f"model/{made.path.name}"
            rows.append({**place, "design": job.key, "method": job.method, "model": model, "bytes": size})
            read = load_fitted(made.path)
            patients = {part: len(ids) for part, ids in read.about["patients_seen"].items()}
            val = runner.cases(job.fold_id).scored.get("val")
            val = None if val is None else val.with_label()
            if val is not None:
                found = np.asarray(read.fitted.scores(visible_cases(method, val)), dtype=np.float64)
                scores.append(
                    pd.DataFrame({
                        "exam_id": list(val.exam_ids), "patient_id": list(val.patient_ids),
                        "label": val.label.astype(int), "method": job.method, "score": found, "fold": 0,
                        "seed": job.seed, "split": "val", "resample": 0, "design": job.key,
                    })[np.isfinite(found)]
                )  # fmt: skip
    columns = [*PREDICTION_REQUIRED, "resample", "design"]
    table = pd.concat(scores, ignore_index=True)[columns] if scores else pd.DataFrame(columns=columns)
    return pd.DataFrame(rows)[COLUMNS], table, patients


def _finished(study: Path) -> tuple[StudyConfig, dict[str, Any]]:
    """Return the configuration and the plan of a finished study."""
    for name in ("run.json", PLAN, "evidence.json", "predictions.csv"):
        if not (study / name).is_file():
            raise BadInput(f"no finished study in {study} ({name} is missing). Next: embedprior study run")
        refuse_changed_result(study / name)
    record, plan = read_json(study / "run.json"), read_json(study / PLAN)
    if record.get("command") != "study run" or not has_own_checksum(record):
        raise BadInput(
            f"{study}/run.json is no record of a finished 'embedprior study run'. Next: run the study once more; its "
            "fits are reused"
        )
    if "data" not in plan:
        raise BadInput(f"{study / PLAN} is of an earlier version. Next: run the study into another --out")
    return parse_config(StudyConfig, own_paths(record["config"]), str(study / "run.json")), plan


def _place(variants: list[Variant], method: str, design: str | None) -> tuple[int, Variant, Design]:
    """Return the number of the combination, the combination, and the design that a method is fitted in."""
    infos = method_infos(variants[0].config)
    if method not in infos:
        raise BadInput(f"the study has no method '{method}'. Allowed: {', '.join(infos)}.{nearest(method, infos)}")
    if infos[method].needs_ct or infos[method].name == SOURCE_ONLY:
        why = "needs CT at inference" if infos[method].needs_ct else "reads no picture"
        raise BadInput(f"'{method}' {why}: there is nothing to deploy. Next: another --method")
    found = {v.key(d): (n, v, d) for n, v in enumerate(variants) for d in v.config.designs if method in d.methods}
    if design is None and len(found) > 1:
        raise BadInput(f"'{method}' is in several designs: {', '.join(found)}. Next: --design NAME")
    if design is not None and design not in found:
        raise BadInput(f"no design '{design}' runs '{method}'. Allowed: {', '.join(found)}.{nearest(design, found)}")
    return found[design or next(iter(found))]


def _refuse_other_data(plan: Mapping[str, Any], variant: Variant, hashes: Mapping[str, str], folder: Path) -> None:
    """Check that tables, pictures and embeddings are those of the study.

    Raises:
        BadInput: the first that differs.
    """
    frozen = plan["inputs"]
    for name, value in hashes.items():
        before = frozen.get(f"{variant.combination}: {name}" if variant.combination else name)
        if name != SPLITS and before != value:
            raise BadInput(
                f"the cohort in {folder} is not the study's: {name} was {str(before)[:12]}, is {value[:12]}. Next: "
                "--data DIR with the study's cohort, or run the study on this one"
            )


def _summary(
    study: Path, config: StudyConfig, method: str, design: Design, models: pd.DataFrame, patients: Mapping[str, int],
    key: str,
) -> str:  # fmt: skip
    evidence = read_json(study / "evidence.json")["designs"][key]
    row: dict[str, Any] = next((r for r in evidence["methods"] if r["method"] == method), {})
    found = "undefined" if row.get("auc") is None else f"{row['auc']:.3f}"
    if row.get("ci_low") is not None:
        found += f" (95 % CI {row['ci_low']:.3f} to {row['ci_high']:.3f})"
    chose = (
        f"{patients['val']} patients chose the checkpoint and give the operating point"
        if design.validation
        else "no patient chose anything: budgets are fixed, as in the study"
    )
    lines = [
        f"# {method}, fitted on everybody", "",
        f"{len(models)} models (seeds {', '.join(map(str, models['seed']))}) of `{key}`, label {config.label}: "
        f"{patients['train']} patients trained, {chose}.",
        "",
        f"Expected AUC: {found}, what the study found on held-out patients with models that were fitted on fewer. "
        "These models have seen every patient: no score of theirs says how good they are.",
        "",
        f"Next: `embedprior bundle --study {study.name} --method {method} --final --out BUNDLE`", "",
    ]  # fmt: skip
    return "\n".join(lines)


def read_final(study: Path, design: str, method: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the models of a final fit, and the validation patients' scores.

    Raises:
        BadInput: there is none, or it is of another plan.
    """
    folder = final_folder(study, design, method)
    if not (folder / MODELS).is_file():
        raise BadInput(
            f"no final model of '{method}' in {study}. Next: embedprior train final --study {study} --method {method}"
        )
    record = read_json(folder / "run.json")
    if not has_own_checksum(record) or record["config"]["plan"] != read_json(study / PLAN)["hash"]:
        raise BadInput(f"{folder} is of another plan, or was changed. Next: embedprior train final, once more")
    return read_table(folder / MODELS, COLUMNS), read_table(folder / SCORES, PREDICTION_REQUIRED)
