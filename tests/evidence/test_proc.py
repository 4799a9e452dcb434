"""Ours against R's pROC, where it is installed: AUCs, DeLong's variance, intervals and the paired test."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.evidence.delong import delong
from embedprior.evidence.intervals import auc_interval
from embedprior.evidence.tests import two_sided_p

SCRIPT = """
suppressMessages(library(pROC))
d <- read.csv(commandArgs(TRUE)[1])
a <- roc(d$label, d$a, direction = "<", quiet = TRUE)
b <- roc(d$label, d$b, direction = "<", quiet = TRUE)
t <- roc.test(a, b, method = "delong", paired = TRUE)
ci <- ci.auc(a, method = "delong")
cat(sprintf("%.12g\\n", c(auc(a), auc(b), var(a, method = "delong"), cov(a, b, method = "delong"), ci[1], ci[3],
                         t$statistic, t$p.value)))
"""


def ours(labels: np.ndarray, scores: np.ndarray) -> list[float]:
    """The figures that SCRIPT prints, from our functions."""
    joint = delong(labels, scores)
    first = joint.variance(np.array([1.0, 0.0]))
    wald = auc_interval(float(joint.auc[0]), first, joint.independent_pairs, method="wald")
    difference = joint.variance(np.array([1.0, -1.0])).total
    z = float((joint.auc[0] - joint.auc[1]) / np.sqrt(difference))
    return [*joint.auc.tolist(), first.total, joint.covariance[0, 1], wald.low, wald.high, z, two_sided_p(z)]


def has_proc() -> bool:
    if shutil.which("Rscript") is None:
        return False
    found = subprocess.run(["Rscript", "-e", "library(pROC)"], capture_output=True, check=False)
    return found.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("m", "n", "decimals"),
    [(23, 63, None), (8, 22, None), (41, 72, 0), (5, 95, 1)],
    ids=["continuous", "few", "ties", "5"],
)
def test_auc_variance_interval_and_paired_test_equal_procs(
    tmp_path: Path, m: int, n: int, decimals: int | None
) -> None:
    if not has_proc():
        pytest.skip("R with pROC is not installed (Debian: apt-get install r-base-core r-cran-proc)")
    rng = np.random.default_rng(m)
    labels = np.repeat([1, 0], [m, n])
    common = rng.normal(size=m + n)
    scores = common + 0.7 * rng.normal(size=(2, m + n)) + labels * np.array([[1.0], [0.6]])
    scores = scores if decimals is None else np.round(scores, decimals)
    pd.DataFrame({"label": labels, "a": scores[0], "b": scores[1]}).to_csv(tmp_path / "d.csv", index=False)
    (tmp_path / "run.R").write_text(SCRIPT)
    ran = subprocess.run(
        ["Rscript", str(tmp_path / "run.R"), str(tmp_path / "d.csv")], capture_output=True, text=True, check=True
    )
    assert ours(labels, scores) == pytest.approx([float(x) for x in ran.stdout.split()], rel=1e-7, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [("s100b", "ndka"), ("wfns", "s100b")], ids=" ".join)
def test_procs_own_data_set_gives_the_same_figures(tmp_path: Path, pair: tuple[str, str]) -> None:
    """113 patients with subarachnoid haemorrhage, read from the installed package at run time."""
    if not has_proc():
        pytest.skip("R with pROC is not installed (Debian: apt-get install r-base-core r-cran-proc)")
    path = tmp_path / "asah.csv"
    export = (
        'suppressMessages(library(pROC)); data(aSAH); write.csv(data.frame(label = as.integer(aSAH$outcome == "Poor"), '
        f'a = as.numeric(aSAH${pair[0]}), b = as.numeric(aSAH${pair[1]})), "{path}", row.names = FALSE)'
    )
    subprocess.run(["Rscript", "-e", export], capture_output=True, check=True)
    (tmp_path / "run.R").write_text(SCRIPT)
    ran = subprocess.run(["Rscript", str(tmp_path / "run.R"), str(path)], capture_output=True, text=True, check=True)
    frame = pd.read_csv(path)
    assert len(frame) == 113
    found = ours(frame["label"].to_numpy(), frame[["a", "b"]].to_numpy().T.astype(float))
    assert found == pytest.approx([float(x) for x in ran.stdout.split()], rel=1e-7, abs=1e-9)
