"""The demo: a study on virtual patients in two worlds, with few labelled radiographs and with all of them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.cohort.base import Cohort
from embedprior.demo.assets import LABEL, PICTURES, VOLUMES, DemoAssets, build_assets
from embedprior.demo.config import CohortConfig, DemoConfig
from embedprior.errors import DONE, NEEDS_ATTENTION
from embedprior.report import Figure
from embedprior.report.formatting import fixed, interval, number, signed, verdict_of
from embedprior.report.spreads import label_curve_figure
from embedprior.report.study_figures import label_curve_data
from embedprior.report.study_report import StudyReport, build_study_report, failure_records, write_results, write_tables
from embedprior.report.verdicts import verdict_sentences
from embedprior.runs import Run, artifacts_root, seed_for, write_json
from embedprior.students.base import Cases
from embedprior.study.config import Design, Hypothesis, InferenceConfig, PriorChoice, StudyConfig
from embedprior.study.inputs import Caches, StudyInputs, patients_seen
from embedprior.study.plan import PLAN, make_plan
from embedprior.study.prepare import NO_DUPLICATES, split_cohort
from embedprior.study.run import StudyResult, inputs_of, run_fits
from embedprior.study.runner import FoldRunner, Study, fit_jobs
from embedprior.study.variants import Variant
from embedprior.tables import write_table

FEW, ENOUGH = "few-labels", "labels-enough"
METHODS = (
    "ct-only", "cxr-only", "cxr-only-drr", "hinton-kd", "ridge-head", "direct-head", "direct-head-shuffled", "prior"
)  # fmt: skip
LABEL_READERS = ("cxr-only", "hinton-kd")
"""Methods that read labels of radiographs: those of the label curve between the two worlds."""
REFERENCE, DRR_LABELS = "cxr-only", "cxr-only-drr"
RELEVANT = 0.1
"""Declared smallest difference of AUCs worth claiming: one that 300 held-out patients can show."""
FAMILY = (
    ("hinton-kd", REFERENCE), ("ridge-head", REFERENCE), ("direct-head", REFERENCE), ("prior", REFERENCE),
    ("direct-head", DRR_LABELS), ("prior", DRR_LABELS), ("prior", "direct-head"),
)  # fmt: skip
CURVE_CLAIM = ("hinton-kd", REFERENCE)
"""The one claim of the label curve's other points; it is in the same family."""
CURVE = ("ct-only", REFERENCE, DRR_LABELS, "hinton-kd", "direct-head", "prior")
"""Methods of the page's first figure."""
QUESTION = (
    "Virtual patients with a lesion that CT shows plainly, and a radiograph so that only many labels teach it: does "
    "CT, used only in training, improve a model that sees the radiograph alone, when few radiographs are labelled, and "
    "when all are?"
)


def designs(cohort: CohortConfig) -> tuple[Design, ...]:
    """Return the two worlds and the points of the label curve between them, all on the same held-out patients."""
    found = []
    if cohort.few_labels is not None:
        found.append(_world(FEW, f"{cohort.few_labels} labelled radiographs: does CT help?", METHODS, cohort,
                            cohort.few_labels))  # fmt: skip
    found.append(_world(ENOUGH, f"All {cohort.train} radiographs labelled: does CT help?", METHODS, cohort, None))
    for count in cohort.label_counts:
        found.append(_world(f"labels-{count}", f"{count} labelled radiographs", LABEL_READERS, cohort, count))
    return tuple(found)


def _world(name: str, question: str, methods: tuple[str, ...], cohort: CohortConfig, labelled: int | None) -> Design:
    share = None if labelled is None else cohort.label_share(labelled)
    return Design(
        name=name, split="fixed", methods=methods, reference=REFERENCE, question=question, cxr_label_fraction=share
    )  # fmt: skip


def study_of(config: DemoConfig, seed: int, assets: DemoAssets, root: Path) -> tuple[StudyConfig, Study, StudyInputs]:
    """Return the demo as a study: its settings, its fixed split, and what its fits read.

    The CT head's fit keeps the seed of the repetition itself (no stream of its own), as the demo always did.
    """
    seeds = tuple(seed_for(seed, "fit", repetition) % 2**31 for repetition in range(config.num_seeds))
    worlds = designs(config.cohort)
    given: dict[str, Any] = {} if config.student is None else {"fit": config.student}
    if config.prior is not None:
        given["prior"] = PriorChoice(
            training=config.prior.finetune, pretrain=config.prior.pretrain, samples=config.prior.samples,
            sampler=config.prior.sampler, steps=config.prior.steps,
        )  # fmt: skip
    settings = StudyConfig(
        title="embedprior demo: virtual patients",
        label=LABEL,
        seed=seed,
        seeds=seeds,
        as_published="" if config.num_seeds >= 3 else "a demo at toy size",
        teacher=config.teacher,
        designs=worlds,
        hypotheses=tuple(
            Hypothesis(
                name=f"{world.name}: {a} > {b}", claim=f"{a} scores higher than {b}", design=world.name, a=a, b=b
            )
            for world in worlds
            for a, b in (FAMILY if world.methods == METHODS else (CURVE_CLAIM,))
        ),
        inference=InferenceConfig(unit="patient", relevant_delta=RELEVANT),
        caveats=caveats(config),
        **given,
    )  # fmt: skip
    population = assets.population
    cohort = Cohort(population.root, population.exams, population.pairs, ()).checked("virtual patients")
    caches = Caches(assets.cxr, assets.ct)
    splits = pd.concat([population.splits.assign(design=world.name) for world in worlds], ignore_index=True)
    prepared = split_cohort(settings, cohort, NO_DUPLICATES, None, caches, patients_seen(caches), splits=splits)
    study = Study((Variant("", {}, settings),), (prepared,))
    unreadable = frozenset(f["exam_id"] for f in assets.failures)
    inputs = inputs_of(study.variants[0], prepared, caches, unreadable, root, teacher_stream="")
    return settings, study, inputs


def caveats(config: DemoConfig) -> tuple[str, ...]:
    """Return what was planted, who has a label, and what the page does not show."""
    cohort, phantom = config.cohort, config.phantom
    found = [
        f"What was planted: {phantom.prevalence:.0%} of the patients have a lesion, whose place and size do not depend "
        f"on anything else. {phantom.sign_rate_positive:.0%} of those with it and {phantom.sign_rate_negative:.0%} of "
        "those without carry an effusion.".replace("%", " %"),
        "Virtual patients are drawn, not scanned: nothing here says how any method does on real images.",
        "Intervals take the encoders as given: another training sample of the CT encoder would move them further.",
    ]
    if cohort.few_labels is not None and not cohort.pair_ct_labels:
        share = cohort.label_share(cohort.few_labels)
        found.insert(
            1,
            f"What must come out, by how it was planted: with {cohort.few_labels} labelled radiographs CT helps, since "
            f"{cohort.pretrain_train} labelled CTs teach the lesion and {cohort.train} unlabelled pairs carry it over; "
            f"with all {cohort.train} radiographs labelled there is no more in the pairs than their labels say, so CT "
            "can add little. What helps need not be the CT's embedding: the CTs' DRRs are labelled pictures of the "
            f"same lesions, and {DRR_LABELS} learns from these. Who has a label: the world of few "
            f"labels knows those of {cohort.few_labels} training radiographs and of about "
            f"{max(2, round(share * cohort.val))} of {cohort.val} that choose checkpoints, the other one those of "
            f"{cohort.train} and {cohort.val}. The CTs of the pairs have none in either.",
        )
    if config.cxr_encoder_name == "radiograph-cnn":
        found.append("The X-ray encoder was trained on the labels of all training radiographs.")
    return tuple(found)


def run_demo(config: DemoConfig, seed: int, out: Path, workers: int) -> int:
    """Run the whole demo into ``out`` and return the exit code (3 when an exam or a fit failed).

    Raises:
        BadInput: the weights of the radiographs' encoder are not installed.
    """
    run = Run(out, "demo", config, seed, {})
    assets = build_assets(config, seed, out, workers, run)
    settings, study, inputs = study_of(config, seed, assets, artifacts_root(out))
    write_json(out / PLAN, make_plan(settings, study, out))
    # One repetition is a toy: starting processes would take longer than it does.
    result = run_fits(study, [inputs], run.stage, workers if config.num_seeds > 1 else 1)
    result = replace(result, failures=[*assets.failures, *result.failures])
    write_tables(out, result)
    for name in ("exams", "pairs", "splits", "flow"):
        write_table(getattr(assets.population, name), out / "cohort" / f"{name}.csv")
    content = _with_patients(build_study_report(settings, result), result, assets, inputs)
    places = {"phantoms": assets.population.root, "ct": assets.ct.path, "cxr": assets.cxr.path}
    summary = write_results(
        out, result, content, run, outputs={name: os.path.relpath(path, out) for name, path in places.items()}
    )
    print(f"\n{summary}\nreport: {out / 'report.html'}  ({run.seconds:.0f} s)", file=sys.stdout)
    return NEEDS_ATTENTION if failure_records(result) else DONE


def _with_patients(content: StudyReport, result: StudyResult, assets: DemoAssets, inputs: StudyInputs) -> StudyReport:
    """Return a study's report with the demo's question, the cohort as it was drawn, and two of its patients.

    Verdicts and tables are those of the worlds; the claim of each other point of the label curve stands among the
    declared hypotheses.
    """
    config = result.study.variants[0].config
    worlds = {d.name: content.evidence["designs"][d.name] for d in config.designs if d.methods == METHODS}
    names = {d.name: d.question.partition(":")[0] for d in config.designs}
    answers: list[str] = []
    sizes: dict[str, None] = {}
    for place, (world, evidence) in enumerate(worlds.items()):
        answer, *size = verdict_sentences(evidence, names[world], len(config.hypotheses))
        answers += [answer, *(_beside_the_drr_labels(evidence) if not place else ())]
        sizes |= dict.fromkeys(size)
    curve = label_curve_data(result, content.evidence["designs"])
    figure = label_curve_figure(curve, methods=CURVE)
    held_out = FoldRunner(inputs).cases(fit_jobs(result.study)[0].fold_id).scored["test"]
    caption = "Two held-out patients: CT (coronal, maximum over 22 mm) and the radiograph that is scored."
    report = replace(
        content.report, question=QUESTION, verdict=[*answers, *sizes], flow=assets.population.flow,
        lead_figures=[] if figure is None else [figure],
        evidence=[section for section in content.report.evidence if section.key in worlds],
        pictures=[*content.report.pictures, Figure("patients", caption, _gallery(assets, held_out))],
    )  # fmt: skip
    return replace(content, report=report)


def _beside_the_drr_labels(evidence: Mapping[str, Any]) -> list[str]:
    """Return what labels alone reach once those of the CTs' DRRs are among them, and what the CT embedding adds."""
    auc = {m["method"]: m["auc"] for m in evidence["methods"]}
    added = [
        f"{c['a']} {signed(c['delta'])} ({interval(c['ci_low'], c['ci_high'], sign=True)}, {verdict_of(c)})"
        for c in evidence["comparisons"]
        if c["in_family"] and c["b"] == DRR_LABELS and number(c["delta"]) is not None
    ]
    if not added or number(auc.get(DRR_LABELS)) is None or number(auc.get(REFERENCE)) is None:
        return []
    reached = f"an AUC of {fixed(auc[DRR_LABELS])} ({REFERENCE}: {fixed(auc[REFERENCE])})"
    return [
        f"Without a CT embedding, the labels of the CTs' DRRs ({DRR_LABELS}) reach {reached}. "
        f"Compared with that: {'; '.join(added)}."
    ]


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
