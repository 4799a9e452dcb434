"""A cohort of radiograph, CT and report embeddings with three findings, whose truth is declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from embedprior.alignment.data import Triples
from embedprior.config import Config
from embedprior.runs import seed_for

LABELS = ("nodule", "effusion", "emphysema")


class PlantedTriplesConfig(Config):
    """A cohort.

    Attributes:
        pairs: patients with radiograph, CT and report; no label of theirs is used.
        ct_labels: findings (0, 1, 2) that the CT embedding carries.
        report_labels: findings that the report embedding carries; none: reports are noise.
        cxr_dim, ct_dim, report_dim: lengths of the embeddings.
        anatomy: directions beside the findings that radiograph and CT share.
        signal: spread of a finding in the radiograph's embedding, by noise.
        strength: spread of a finding in the CT's and the report's embedding, by noise.
        sharpness: of the labels: p(y = 1) = sigmoid(sharpness · s).
        missing_reports: share of the pairs without a report.
    """

    pairs: int = 2000
    ct_labels: tuple[int, ...] = (0, 1)
    report_labels: tuple[int, ...] = (0, 1, 2)
    cxr_dim: int = 128
    ct_dim: int = 12
    report_dim: int = 10
    anatomy: int = 2
    signal: float = 1.0
    strength: float = 3.0
    sharpness: float = 4.0
    missing_reports: float = 0.2


@dataclass(frozen=True)
class PlantedTriples:
    """Cases and their truth.

    Attributes:
        cases: see ``Triples``.
        labels: (cases, 3), 1 or 0.
        best: (cases, 3) what the radiograph's embedding shows of each finding: no score ranks better on average.
    """

    cases: Triples
    labels: Float[np.ndarray, "cases labels"]
    best: Float[np.ndarray, "cases labels"]


def planted_triples(config: PlantedTriplesConfig, counts: Sequence[int], seed: int) -> list[PlantedTriples]:
    """Draw one population, and a set of patients for each of ``counts``.

    Three findings s ~ N(0, 1) and anatomy a ~ N(0, I). The radiograph mixes (signal · s, a), the CT (strength · s, a)
    with the findings it carries, the report strength · s with those it carries; each by fixed random directions, plus
    unit noise. Labels are drawn from s.

    Args:
        config: sizes and truth.
        counts: patients of each set.
        seed: of everything.

    Example:
        >>> train, test = planted_triples(PlantedTriplesConfig(), (50, 20), seed=0)
        >>> train.cases.ct.shape, test.labels.shape
        ((50, 12), (20, 3))
    """
    rng = np.random.default_rng(seed_for(seed, "planted triples"))
    findings = len(LABELS)
    to_cxr = _directions(rng, findings + config.anatomy, config.cxr_dim)
    to_ct = _directions(rng, findings + config.anatomy, config.ct_dim)
    to_report = _directions(rng, findings, config.report_dim)
    in_ct = np.isin(np.arange(findings), config.ct_labels)
    in_report = np.isin(np.arange(findings), config.report_labels)
    made, start = [], 0
    for count in counts:
        s, a = rng.normal(size=(count, findings)), rng.normal(size=(count, config.anatomy))
        cxr = np.hstack([config.signal * s, a]) @ to_cxr + rng.normal(size=(count, config.cxr_dim))
        ct = np.hstack([config.strength * s * in_ct, a]) @ to_ct + rng.normal(size=(count, config.ct_dim))
        report = config.strength * s * in_report @ to_report + rng.normal(size=(count, config.report_dim))
        labels = (rng.random(s.shape) < expit(config.sharpness * s)).astype(np.float64)
        has_report = rng.random(count) >= config.missing_reports
        report[~has_report] = 0.0
        names = [f"p{start + i}" for i in range(count)]
        cases = Triples(
            names, np.arange(start, start + count), cxr.astype(np.float32), ct.astype(np.float32),
            report.astype(np.float32), has_report,
        )  # fmt: skip
        made.append(PlantedTriples(cases, labels, (cxr @ to_cxr.T)[:, :findings]))
        start += count
    return made


def _directions(rng: np.random.Generator, hidden: int, dim: int) -> Float[np.ndarray, "hidden dim"]:
    return np.asarray(np.linalg.qr(rng.normal(size=(dim, hidden)))[0].T)
