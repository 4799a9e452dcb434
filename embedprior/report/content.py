"""What a report says, apart from how it is set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class EvidenceSection:
    """One set of methods scored on the same held-out cases.

    Attributes:
        heading: what was compared, in words.
        evidence: ``methods`` (``method, auc, se, ci_low, ci_high, ci_method, n_pos, n_neg, n_patients, reason``,
            optional ``oracle``) and ``comparisons`` (``a, b, delta, ci_low, ci_high, z, p, p_holm,
            min_detectable_delta, reason``, optional ``verdict``). Undefined values are None or NaN, with ``reason``.
        predictions: the held-out scores, for the ROC curves: ``exam_id, patient_id, label, method, score, fold,
            seed, split``.
        method_notes: method → what a reader has to know about its row.
        intro: sentences that stand above the table.
    """

    heading: str
    evidence: Mapping[str, Any]
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)
    method_notes: Mapping[str, str] = field(default_factory=dict)
    intro: Sequence[str] = ()


@dataclass(frozen=True)
class EmbeddingView:
    """Embeddings of the same held-out cases in both spaces.

    Attributes:
        ct: (cases, D_ct) embeddings of the CT.
        generated: (cases, D_ct) embeddings the prior generated from the radiograph.
        cxr: (cases, D_cxr) embeddings of the radiograph.
        labels: (cases,) 1, 0, or NaN for unknown.
        label_name: what a 1 means.
        seed: seed of the t-SNE.
    """

    ct: Floats
    generated: Floats
    cxr: Floats
    labels: Floats
    label_name: str = "positive"
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """Everything one report holds; :func:`embedprior.report.write_report` sets it.

    Attributes:
        title: name of the study.
        question: what was asked, one sentence.
        lead: what was found, significant or not, in plain sentences.
        evidence: the comparisons, each with its own case list.
        flow: ``step, exams, patients, dropped, reason``: how the cohort came about.
        tables: (heading, table, note).
        pictures: (caption, PNG bytes).
        embeddings: for the t-SNE panel.
        caveats: what the figures do not show.
        run: versions, config, seed, seconds, git.
        failures: items that were skipped, with the reason.
    """

    title: str
    question: str
    lead: Sequence[str]
    evidence: Sequence[EvidenceSection]
    flow: pd.DataFrame = field(default_factory=pd.DataFrame)
    tables: Sequence[tuple[str, pd.DataFrame, str]] = ()
    pictures: Sequence[tuple[str, bytes]] = ()
    embeddings: EmbeddingView | None = None
    caveats: Sequence[str] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    failures: pd.DataFrame = field(default_factory=pd.DataFrame)
