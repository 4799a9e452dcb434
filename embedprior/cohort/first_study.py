"""A first study of a cohort, commented, which runs as it is: of its radiographs, and of its pairs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from embedprior.runs import write_text
from embedprior.tables import LABEL_PREFIX

MOST_FOLDS = 5
COMMON = """\
source: tables
label: {label}
views: [PA, AP]            # laterals take no part; [] takes every view
complete: true             # CTs and DRRs that lack part of the lungs take no part
duplicates: join           # patients who share a picture are one group; one file always is
seed: 1
"""
RADIOGRAPHS = """\
# A first study of this cohort: {what}.
# Check the cohort first: embedprior cohort check {out}
# Then: embedprior study run --config {out}/study.yaml --data {out} --out runs/first
title: {title}
{common}missing_images: drop       # a file that is gone is counted, not fatal
encoder: {{name: efficientnet-lite0}}   # frozen, shipped; embedprior encoders lists all
keep: all                  # keep the fitted models, for embedprior train final and bundle
fit: {{hidden: 64, steps: 300}}   # left out, settings are chosen on the validation patients: minutes instead of seconds
inference: {{unit: exam}}    # several radiographs of a patient: variance clustered by patient
designs:
  - name: radiographs
    question: What does a radiograph alone say about '{label}'?
    cases: cxr             # every labelled radiograph; no CT
    split: kfold
    folds: {folds}
    validation: {validation}
    methods: [constant, logistic, cxr-only]
    reference: constant
hypotheses:
  - {{name: H1, design: radiographs, a: logistic, b: constant, claim: the embeddings carry '{label}'}}
"""
PAIRED = """\
# Does CT, used only in training, help? {what}.
# The embeddings that it reads, CTs by one slice in four ('embedprior encoders' lists others, 3-D ones too):
#   embedprior embed --cohort {out} {modalities} --encoder efficientnet-lite0 --out {out}/caches/cxr
#   embedprior embed --cohort {out} --modality CT --encoder efficientnet-lite0 --option reader=slices \\
#       --option profile=slices_128 --option every=4 --out {out}/caches/ct
#   embedprior embed --cohort {out} --modality CXR --encoder pixels-128 --out {out}/caches/pixels
# Then: embedprior study run --config {out}/study_paired.yaml --data {out} --out runs/paired
title: {title}
{common}caches: {{cxr: caches/cxr, ct: caches/ct, pixels: caches/pixels}}   # pixels: to find copies by their pictures
fit: {{hidden: 64, steps: 300}}
prior:                     # left out, its settings are chosen on the validation pairs
{pretrain}  training:
    network: {{preset: tiny}}
    process: {{condition_noise: 1.0, regression: ridge}}
    training: {{steps: 200, batch: 32, lr: 1.0e-3, weight_decay: 1.0, ema: 0.99, checkpoint_every: 200}}
designs:
  - name: paired
    question: Does CT in training help a radiograph to say '{label}'?
    cases: paired
    split: kfold
    folds: {folds}
    validation: {validation}
    methods: [ct-only, cxr-only, hinton-kd, ridge-head, direct-head, prior]   # ct-only: the ceiling, needs CT
    reference: cxr-only
hypotheses:
  - {{name: H1, design: paired, a: prior, b: cxr-only, claim: CT in training makes the radiograph's score better}}
  - {{name: H2, design: paired, a: prior, b: direct-head, claim: the prior beats the regression with the same optimum}}
"""


def write_first_studies(out: Path, exams: pd.DataFrame, pairs: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Write ``study.yaml`` and ``study_paired.yaml`` for the first label of a cohort, as far as it has the cases.

    A study needs two patients of each class, so that both are in training and held out.

    Args:
        out: folder of the cohort.
        exams, pairs: its tables.

    Returns:
        The names of the files written, and sentences about those that were not.
    """
    labels = [c for c in exams.columns if c.startswith(LABEL_PREFIX)]
    if not labels:
        return [], ["No label, so no study was written."]
    values = exams.set_index("exam_id")[labels[0]]
    label = labels[0].removeprefix(LABEL_PREFIX)
    kinds = exams["modality"].value_counts()
    what = ", ".join(f"{n} {kind}" for kind, n in kinds.items()) + f" of {exams['patient_id'].nunique()} patients"
    of = exams.set_index("exam_id")["modality"].reindex(pairs["cxr_exam_id"])
    radiographs = exams[exams["modality"] == "CXR"]
    said = exams["complete"].astype(str).str.lower() if "complete" in exams else pd.Series("", index=exams.index)
    cut = exams.loc[said.isin(["false", "0", "0.0"]), "exam_id"]  # the studies leave these out
    real = pairs[(of == "CXR").to_numpy() & ~pairs["ct_exam_id"].isin(cut).to_numpy()]
    given = {"label": label, "title": f"{label}, {out.name}", "out": out}
    written, notes = [], []
    for name, template, rows, patients in (
        ("study.yaml", RADIOGRAPHS, values.reindex(radiographs["exam_id"]), radiographs["patient_id"]),
        ("study_paired.yaml", PAIRED, values.reindex(real["cxr_exam_id"]), real["patient_id"]),
    ):
        fewest = min(patients[(rows == value).to_numpy()].nunique() for value in (0, 1))
        what_for = "pairs" if template is PAIRED else "radiographs"
        if fewest < 2:
            if template is RADIOGRAPHS or len(real):
                notes.append(f"No {name}: {len(rows)} {what_for} with {fewest} patients of one class of '{label}'.")
            continue
        folds = max(2, min(MOST_FOLDS, fewest))
        drrs = "DRR" in kinds
        more = {
            "what": what if template is RADIOGRAPHS else f"{len(real)} pairs of {patients.nunique()} patients",
            "common": COMMON.format(label=label), "folds": folds, "validation": str(folds > 2).lower(),
            "modalities": "--modality CXR" + " --modality DRR" * drrs,
            "pretrain": "  # the DRRs of the cohort are a first stage, with the same settings\n" * drrs,
        }  # fmt: skip
        write_text(out / name, template.format(**given, **more))
        written.append(name)
    return written, notes
