"""The demo: a study of seven methods on virtual patients, its evidence and its report."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.cohort.base import Cohort
from embedprior.demo.assets import LABEL, PICTURES, VOLUMES, DemoAssets, build_assets
from embedprior.demo.config import DemoConfig
from embedprior.errors import DONE, NEEDS_ATTENTION
from embedprior.report import EvidenceSection, Figure, Report
from embedprior.report.checklists import checklists
from embedprior.report.conclusions import boundary_table
from embedprior.report.fit_tables import cost_tables, learned_table, prior_figures, prior_warnings
from embedprior.report.formatting import comparison_sentence
from embedprior.report.output import finish_report
from embedprior.report.store import compared_scores
from embedprior.report.study_figures import case_pictures, generated_pictures
from embedprior.report.verdicts import verdict_sentences
from embedprior.runs import Run, artifacts_root, seed_for, write_json
from embedprior.students.base import Cases
from embedprior.study.config import Design, Hypothesis, InferenceConfig, PriorChoice, StudyConfig
from embedprior.study.evidence import all_evidence
from embedprior.study.inputs import Caches, StudyInputs, patients_seen
from embedprior.study.plan import PLAN, make_plan
from embedprior.study.prepare import NO_DUPLICATES, Variant, split_cohort
from embedprior.study.run import StudyResult, inputs_of, run_fits
from embedprior.study.runner import FoldRunner, Study, fit_jobs
from embedprior.tables import write_table

DESIGN = "fixed"
METHODS = ("ct-only", "cxr-only", "hinton-kd", "ridge-head", "direct-head", "prior-shuffled", "prior")
REFERENCE = "cxr-only"
FAMILY = (
    ("hinton-kd", REFERENCE), ("ridge-head", REFERENCE), ("direct-head", REFERENCE), ("prior-shuffled", REFERENCE),
    ("prior", REFERENCE), ("prior", "direct-head"),
)  # fmt: skip


def study_of(config: DemoConfig, seed: int, assets: DemoAssets, root: Path) -> tuple[StudyConfig, Study, StudyInputs]:
    """Return the demo as a study: its settings, its fixed split, and what its fits read.

    The CT head's fit keeps the seed of the repetition itself (no stream of its own), as the demo always did.
    """
    seeds = tuple(seed_for(seed, "fit", repetition) % 2**31 for repetition in range(config.num_seeds))
    design = Design(name=DESIGN, split="fixed", methods=METHODS, reference=REFERENCE)
    settings = StudyConfig(
        title="virtual patients",
        label=LABEL,
        seed=seed,
        seeds=seeds,
        as_published="" if config.num_seeds >= 3 else "a demo at toy size",
        fit=config.student,
        teacher=config.teacher,
        prior=PriorChoice(
            training=config.prior.finetune, pretrain=config.prior.pretrain, samples=config.prior.samples,
            sampler=config.prior.sampler, steps=config.prior.steps,
        ),
        designs=(design,),
        hypotheses=tuple(
            Hypothesis(name=f"{a} > {b}", claim=f"{a} scores higher than {b}", design=DESIGN, a=a, b=b)
            for a, b in FAMILY
        ),
        inference=InferenceConfig(unit="patient"),
    )  # fmt: skip
    population = assets.population
    cohort = Cohort(population.root, population.exams, population.pairs, ()).checked("virtual patients")
    caches = Caches(assets.cxr, assets.ct)
    prepared = split_cohort(
        settings, cohort, NO_DUPLICATES, None, caches, patients_seen(caches), splits=population.splits
    )
    study = Study((Variant("", {}, settings),), (prepared,))
    unreadable = frozenset(f["exam_id"] for f in assets.failures)
    inputs = inputs_of(study.variants[0], prepared, caches, unreadable, root, teacher_stream="")
    return settings, study, inputs


def run_demo(config: DemoConfig, seed: int, out: Path, workers: int) -> int:
    """Run the whole demo into ``out`` and return the exit code (3 when an exam or a fit failed)."""
    run = Run(out, "demo", config, seed, {})
    assets = build_assets(config, seed, out, workers, run)
    for name in ("exams", "pairs", "splits", "flow"):
        (out / "cohort").mkdir(exist_ok=True)
        write_table(getattr(assets.population, name), out / "cohort" / f"{name}.csv")
    settings, study, inputs = study_of(config, seed, assets, artifacts_root(out))
    write_json(out / PLAN, make_plan(settings, study, out))
    # One repetition is a toy: starting processes would take longer than it does.
    result = run_fits(study, [inputs], run.stage, workers if config.num_seeds > 1 else 1)
    predictions = result.predictions.drop(columns=["resample", "design"])
    write_table(predictions, out / "predictions.csv")
    evidence = all_evidence(settings, result)[DESIGN]
    write_json(out / "evidence.json", evidence)
    held_out = FoldRunner(inputs).cases(fit_jobs(study)[0].fold_id).scored["test"]
    failures = [
        *assets.failures,
        *({k: f[k] for k in ("exam_id", "stage", "reason")} for f in [*result.unfitted, *result.unscored]),
    ]
    priors = prior_figures(result)
    report = build_demo_report(
        config, seed, assets, evidence, predictions, held_out, failures, priors, settings,
        result,
    )  # fmt: skip
    places = {"phantoms": assets.population.root, "ct": assets.ct.path, "cxr": assets.cxr.path}
    outputs = {name: os.path.relpath(path, out) for name, path in places.items()}
    summary = finish_report(run, report, failures, outputs=outputs, priors=priors)
    print(f"\n{summary}\nreport: {out / 'report.html'}  ({run.seconds:.0f} s)", file=sys.stdout)
    return NEEDS_ATTENTION if failures else DONE


NOTES = {
    "ct-only": "the CT teacher on the true CT: what CT itself knows",
    "cxr-only": "radiographs and labels only, no CT anywhere: the reference",
    "hinton-kd": "labels and the CT teacher's softened output (T = 4, weight 0.6)",
    "ridge-head": "ridge regression of the CT embedding, then the frozen CT head",
    "direct-head": "the CT head's probability regressed from the radiograph, no labels: the control a prior must match",
    "prior-shuffled": "the prior trained on pairs shuffled between patients, in both stages: should know nothing",
    "prior": "mean over samples of the CT head's probability; no radiograph label used",
}
LEAD_METHODS = ("ct-only", "prior")
QUESTION = (
    "On virtual patients with a lesion that CT shows plainly and a radiograph only in part: does CT, used only in "
    "training, improve a model that sees the radiograph alone?"
)


def build_demo_report(
    config: DemoConfig,
    seed: int,
    assets: DemoAssets,
    evidence: Mapping[str, Any],
    predictions: pd.DataFrame,
    held_out: Cases,
    failures: list[dict[str, str]],
    priors: list[dict[str, Any]],
    settings: StudyConfig,
    result: StudyResult,
) -> Report:
    """Return the content of the demo's report."""
    prevalence = float(held_out.label.mean())
    return Report(
        title="embedprior demo: virtual patients",
        question=QUESTION,
        verdict=verdict_sentences(evidence),
        lead=[*_lead(evidence), *prior_warnings(priors)],
        evidence=[
            EvidenceSection(
                heading=f"{len(held_out)} held-out patients, {config.num_seeds} fits of every method",
                evidence=evidence,
                predictions=compared_scores(evidence, predictions),
                method_notes=NOTES,
                intro=[
                    "Declared before anything was scored: each deployable method against cxr-only, and the prior "
                    "against direct-head. AUCs are means over the fits; intervals count patients and fits.",
                ],
            )
        ],
        flow=assets.population.flow,
        pictures=[*case_pictures(settings, result, {DESIGN: evidence}), *generated_pictures(settings, result),
                  Figure("patients", "Two held-out patients, without and with the lesion: CT (coronal, maximum over "
                         "22 mm) and the radiograph the methods score.", _gallery(assets, held_out))],
        tables=[*learned_table(priors), *cost_tables(result)],
        boundary=boundary_table(settings, result, {DESIGN: evidence}),
        checklists=checklists(settings, result, {DESIGN: evidence}),
        caveats=[
            "Virtual patients are drawn, not scanned: nothing here says how any method does on real images.",
            f"Prevalence among the held-out is {prevalence:.2f}. By design most patients with a lesion and few "
            "others carry an effusion, a sign both CT and radiographs show.",
            "Encoders are trained on the training patients and frozen; the X-ray encoder never sees a CT or a DRR.",
            "Intervals take the trained encoders as given: another training sample would move them further.",
        ],
        failures=pd.DataFrame(failures),
    )  # fmt: skip


def _lead(evidence: Mapping[str, Any]) -> list[str]:
    by_pair = {(c["a"], c["b"]): c for c in evidence["comparisons"]}
    pairs = [("ct-only", evidence["reference"]), *((a, b) for a, b in evidence["family"] if a in LEAD_METHODS)]
    return [comparison_sentence(by_pair[pair], evidence["alpha"]) for pair in pairs if pair in by_pair]


def _gallery(assets: DemoAssets, held_out: Cases) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    root = assets.population.root
    volumes, pictures = np.load(root / VOLUMES, mmap_mode="r"), np.load(root / PICTURES, mmap_mode="r")
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.1))
    for column, label in enumerate((0, 1)):
        patient = held_out.patient_ids[int(np.flatnonzero(held_out.label == label)[0])]
        index = int(patient[1:])
        volume = np.asarray(volumes[index])
        middle = volume.shape[1] // 2
        coronal = volume[::-1, middle - 2 : middle + 2].max(axis=1)
        name = "with lesion" if label else "without lesion"
        axes[2 * column].imshow(coronal, cmap="gray", vmin=-1000, vmax=400)
        axes[2 * column].set_title(f"CT, {name}", fontsize=9)
        axes[2 * column + 1].imshow(pictures[index], cmap="gray")
        axes[2 * column + 1].set_title(f"radiograph, {name}", fontsize=9)
    for axis in axes:
        axis.axis("off")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
