"""A linear probe of EfficientNet-Lite0 on real radiographs: ImageNet's weights against random ones of the same network.

The COVID-19 Image Data Collection, two labels: the finding (COVID-19 or another), and the view (AP or PA). Logistic
regression on standardised embeddings, five folds by patient; AUCs within folds, their difference by DeLong's test with
patients as clusters. Beside it what the publishing source of the picture alone gives away: no encoder is needed for
that part. No bar: the figures say what these weights are worth here, whatever it is. Nothing diagnostic is claimed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from common.measuring import Table
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from embedprior.cache.build import build_cache
from embedprior.cohort.sources.covid_chestxray import LABEL, read_covid_chestxray
from embedprior.encoders.registry import create_encoder
from embedprior.evidence import delong_test
from embedprior.tables import LABEL_PREFIX

DATA = Path(__file__).parents[3] / "shared" / "data" / "covid_chestxray"
FOLDS, PENALTY = 5, 1e-3


def out_of_fold(
    features: NDArray[np.float64], label: NDArray[np.int64], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Scores of a logistic regression that was fitted on the other folds."""
    scores = np.empty(len(label))
    for fold in range(FOLDS):
        out = folds == fold
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=2000, class_weight="balanced"))
        scores[out] = probe.fit(features[~out], label[~out]).decision_function(features[out])
    return scores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first 120 radiographs, the same code")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the collection")
    args = parser.parse_args()
    if not (args.data / "metadata.csv").is_file():
        print(f"{args.data}: the collection is not here. Next: --data FOLDER")
        return 2
    torch.set_num_threads(1)
    cohort = read_covid_chestxray(args.data, "drop")
    exams = cohort.exams[cohort.exams["modality"] == "CXR"]
    exams = exams.head(120) if args.quick else exams
    with tempfile.TemporaryDirectory() as folder:
        rows = {}
        for name, options in (("ImageNet", {}), ("random", {"random_init": True})):
            encoder = create_encoder("efficientnet-lite0", **options)
            cache, failures = build_cache(exams[["exam_id", "path"]], cohort.root, encoder, Path(folder) / name)
            assert not failures
            rows[name] = cache.take(exams["exam_id"].tolist()).astype(np.float64)
    rows["source"] = pd.get_dummies(exams["source"].fillna("none")).to_numpy(dtype=np.float64)
    labels = {
        "finding": (exams[LABEL_PREFIX + LABEL].to_numpy(dtype=np.float64), np.ones(len(exams), dtype=bool)),
        "AP or PA": ((exams["view"] == "AP").to_numpy(dtype=np.float64), exams["view"].isin(["AP", "PA"]).to_numpy()),
    }
    table = Table()
    for what, (value, known) in labels.items():
        known = known & ~np.isnan(value)
        label, patients = value[known].astype(np.int64), exams["patient_id"].to_numpy()[known]
        folds = np.empty(len(label), dtype=np.int64)
        splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
        for fold, (_, out) in enumerate(splitter.split(label, label, patients)):
            folds[out] = fold
        scores = {name: out_of_fold(features[known], label, folds) for name, features in rows.items()}
        result = delong_test(label, scores["ImageNet"], scores["random"], groups=patients, folds=folds)
        source = delong_test(label, scores["source"], scores["ImageNet"], groups=patients, folds=folds)
        table.hold("radiographs", len(label), "", case=what)
        table.hold("patients", len(set(patients)), "", case=what)
        for n, name in enumerate(("ImageNet", "random")):
            table.hold(f"AUC, {name} weights", result.auc[n], "", case=what)
        table.hold("ImageNet minus random", result.delta, "AUC", case=what)
        for end, limit in zip(("lower", "upper"), result.ci, strict=True):
            table.hold(f"  its {end} 95 % limit", limit, "AUC", case=what)
        table.hold("AUC, the source of the picture alone", source.auc[0], "", case=what)
        table.hold("source minus ImageNet", source.delta, "AUC", case=what)
        for end, limit in zip(("lower", "upper"), source.ci, strict=True):
            table.hold(f"  its {end} 95 % limit", limit, "AUC", case=what)
    return table.finish(args.json, torch=torch.__version__)


if __name__ == "__main__":
    sys.exit(main())
