"""Whole commands as functions: what runs through several packages, in one call."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.config import load_config, parse_config
from embedprior.errors import BadInput
from embedprior.report.study_report import build_study_report, failure_records, write_results, write_tables
from embedprior.runs import Run, claimed
from embedprior.study.config import StudyConfig
from embedprior.study.plan import freeze, make_plan
from embedprior.study.run import StudyResult, read_study
from embedprior.study.run import run_study as fit_and_score
from embedprior.study.runner import Study


@dataclass(frozen=True)
class StudyRun:
    """A finished study.

    Attributes:
        out: folder of the results.
        predictions: every score: ``exam_id, patient_id, label, method, score, fold, seed, split, resample, design``.
        evidence: content of ``evidence.json`` (``docs/evidence.md``): by design, methods and comparisons.
        failures: what was left out: images that can't be read, fits that failed, cases without a score; one row each
            with its reason.
        text: content of ``summary.md``.

    Example: see ``run_study``.
    """

    out: Path
    predictions: pd.DataFrame
    evidence: dict[str, Any]
    failures: pd.DataFrame
    text: str

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return self.out / "report.html"

    def summary(self) -> str:
        """Return the findings as Markdown."""
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Return a copy of the evidence: None wherever a number is undefined, with a ``reason`` beside it."""
        return copy.deepcopy(self.evidence)

    def _repr_markdown_(self) -> str:
        return self.text


def run_study(
    config: StudyConfig | Mapping[str, Any] | str | Path,
    data: Path | str,
    out: Path | str = "runs/study",
    *,
    splits: Path | str | None = None,
    workers: int = 1,
    overrides: Mapping[str, Any] | None = None,
) -> StudyRun:
    """Compare methods on the same held-out cases of a cohort, as ``embedprior study run`` does.

    A run that was stopped goes on where it stopped: fits that are done are not repeated.

    Args:
        config: name in ``configs/study/`` or path of a YAML file, its content as a mapping, or a ``StudyConfig``.
        data: folder of the cohort, in the layout that ``source`` of the configuration names.
        out: folder of the results. It keeps to one plan: another configuration or cohort in it is refused.
        splits: your own split table, instead of the generated one.
        workers: processes that fit.
        overrides: settings over those of a named configuration or a file, dotted: ``{"fit.steps": 300}``.

    Returns:
        The study's result; ``out`` holds ``plan.json``, ``predictions.csv``, ``evidence.json`` and ``report.html``.

    Raises:
        BadInput: an unknown configuration or setting, a cohort that can't be used, or ``out`` of another plan; nothing
            was written.
        EmbedpriorError: no image could be read, or no method be fitted.

    Source: the tests of ``docs/evidence.md``.

    Example:
        >>> import embedprior
        >>> import numpy as np
        >>> import pandas as pd
        >>> from pathlib import Path
        >>> from embedprior.cache import write_cache
        >>> from embedprior.encoders.base import EncoderSpec
        >>> rng, n = np.random.default_rng(0), 40
        >>> names, label = [f"x{i}" for i in range(n)], np.arange(n) % 2
        >>> Path("cohort").mkdir()
        >>> exams = pd.DataFrame({"exam_id": names, "patient_id": [f"p{i}" for i in range(n)], "modality": "CXR",
        ...                       "path": "", "label:effusion": label})
        >>> exams.to_csv("cohort/exams.csv", index=False)
        >>> spec = EncoderSpec(name="mine", modality="CXR", dim=4, source="simulated", weights_sha256="none",
        ...                    licence="none", profile={}, pooling="none")
        >>> rows = rng.normal(size=(n, 4)).astype("float32") + label[:, None]
        >>> cache = write_cache(Path("cohort/caches"), spec, names, names, rows)
        >>> design = {"name": "all", "cases": "cxr", "folds": 2, "methods": ["constant", "logistic"],
        ...           "reference": "constant"}
        >>> config = {"title": "Effusion", "label": "effusion", "caches": {"cxr": "caches"}, "designs": [design]}
        >>> study = embedprior.run_study(config, "cohort", "results")
        >>> study.predictions["method"].unique().tolist(), study.report.is_file()
        (['constant', 'logistic'], True)
    """
    settings = _settings(config, overrides)
    data, out, splits = Path(data), Path(out), None if splits is None else Path(splits)
    if workers < 1:
        raise BadInput(f"workers counts processes and starts at 1; got {workers}.")
    study = read_study(settings, data, splits)
    found = run_planned_study(settings, study, make_plan(settings, study, out), out, workers)
    if found is None:
        raise BadInput("run_study was called in a process of a launcher that is not its first. Next: embedprior study "
                       "run, which such processes share")  # fmt: skip
    return found


def run_planned_study(
    config: StudyConfig, study: Study, plan: Mapping[str, Any], out: Path, workers: int = 1
) -> StudyRun | None:
    """Freeze a plan, run every fit of it that is not done, and write tables, evidence and report.

    Args:
        config: of the study.
        study: see ``study.run.read_study``.
        plan: of the same study (see ``study.plan.make_plan``).
        out: folder of the results.
        workers: processes that fit.

    Returns:
        The result; None in a process of a launcher that is not the first, which fits and leaves the record to it.

    Raises:
        BadInput: ``out`` holds results of another plan.
        EmbedpriorError: no image could be read, or no method be fitted.
    """
    if os.environ.get("RANK", "0") != "0":
        fit_and_score(study, out, lambda name, **fields: None, workers)
        return None
    with claimed(out):
        freeze(plan, study, out)
        run = Run(out, "study run", config, config.seed, {**plan["inputs"], "plan": plan["hash"]})
    return report_study(config, fit_and_score(study, out, run.stage, workers), run)


def report_study(config: StudyConfig, result: StudyResult, run: Run) -> StudyRun:
    """Write a study's tables, evidence and report into the run's folder, and return them."""
    write_tables(run.out, result)
    content = build_study_report(config, result)
    text = write_results(run.out, result, content, run)
    failures = pd.DataFrame(failure_records(result), columns=["exam_id", "stage", "reason"])
    return StudyRun(run.out, result.predictions, content.evidence, failures, text)


def _settings(config: StudyConfig | Mapping[str, Any] | str | Path, overrides: Mapping[str, Any] | None) -> StudyConfig:
    if isinstance(config, (str, Path)):
        return load_config(StudyConfig, str(config), "study", dict(overrides or {}))
    if overrides:
        raise BadInput(
            "run_study takes 'overrides' over a named configuration or a file. Next: change the mapping itself"
        )
    if isinstance(config, StudyConfig):
        return config
    if not isinstance(config, Mapping):
        raise BadInput(
            f"run_study was given a {type(config).__name__} as configuration. Allowed: a name, a path, a mapping or a "
            "StudyConfig."
        )
    return parse_config(StudyConfig, dict(config), "the configuration")
