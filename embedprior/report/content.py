"""What a report says, apart from how it is set: sections, result rows, and footnotes for what is undefined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from embedprior.evidence.aggregate import MACRO
from embedprior.report import formatting

Floats = NDArray[np.floating[Any]]


Table = tuple[str, pd.DataFrame, str]
"""Heading, table and a note below it."""


@dataclass(frozen=True)
class Figure:
    """A drawn figure with what it shows.

    Attributes:
        name: of its files (``name.png``, ``name.csv``).
        caption: stands below it.
        png: PNG bytes.
        data: the numbers that are drawn; empty for photographs.
        alt: what it shows, in words, for who can't see it; the caption where empty.
    """

    name: str
    caption: str
    png: bytes
    data: pd.DataFrame = field(default_factory=pd.DataFrame)
    alt: str = ""


@dataclass(frozen=True)
class EvidenceSection:
    """One set of methods scored on the same held-out cases.

    Attributes:
        heading: what was compared.
        evidence: ``methods`` (``method, auc, se, ci_low, ci_high, ci_method, n_pos, n_neg, n_patients, reason``,
            optional ``oracle``) and ``comparisons`` (``a, b, delta, ci_low, ci_high, z, p, p_holm,
            min_detectable_delta, reason``, optional ``verdict``). Undefined values are None or NaN, with ``reason``.
        predictions: the held-out scores, for the curves: ``exam_id, patient_id, label, method, score, fold,
            seed, split``, optional ``resample``.
        method_notes: method → what a reader has to know about it.
        intro: sentences that stand above the table.
        key: name of the design in ``evidence.json`` and ``predictions.csv``; empty where these hold one alone.
        tables: of this set alone: support, further metrics, AUC by resample.
    """

    heading: str
    evidence: Mapping[str, Any]
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)
    method_notes: Mapping[str, str] = field(default_factory=dict)
    intro: Sequence[str] = ()
    key: str = ""
    tables: Sequence[Table] = ()


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
        verdict: what became of the declared claims, and what it would take to know more: two sentences a design.
        lead: what else a reader has to know before the figures.
        evidence: the comparisons, each with its own case list.
        boundary: ``question, answer, why``: what may be concluded from this study, and what may not.
        flow: ``step, exams, patients, dropped, reason``: how the cohort came about.
        lead_figures: stand right under the verdict.
        figures: of the whole study.
        label_curves: ROC curves of every label, folded away.
        tables: of the whole study.
        pictures: exams, and maps of embeddings.
        embeddings: for the t-SNE panel.
        caveats: what the figures do not show.
        checklists: of reporting guidelines.
        run: versions, config, seed, seconds, git.
        failures: items that were skipped, with the reason.
    """

    title: str
    question: str
    lead: Sequence[str]
    evidence: Sequence[EvidenceSection]
    flow: pd.DataFrame = field(default_factory=pd.DataFrame)
    tables: Sequence[Table] = ()
    pictures: Sequence[Figure] = ()
    embeddings: EmbeddingView | None = None
    caveats: Sequence[str] = ()
    run: Mapping[str, Any] = field(default_factory=dict)
    failures: pd.DataFrame = field(default_factory=pd.DataFrame)
    verdict: Sequence[str] = ()
    boundary: pd.DataFrame = field(default_factory=pd.DataFrame)
    lead_figures: Sequence[Figure] = ()
    figures: Sequence[Figure] = ()
    label_curves: Sequence[Figure] = ()
    checklists: Sequence[Table] = ()


ORACLE_HEADING = "needs CT at inference (oracle)"
DEPLOYABLE_HEADING = "needs the X-ray only"


@dataclass
class Footnotes:
    """Reasons in the order they were first needed; the same reason keeps its number."""

    texts: list[str] = field(default_factory=list)

    def mark(self, reason: str | None) -> int:
        """Return the number of ``reason``, adding it when it is new."""
        text = reason or formatting.NO_REASON
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


@dataclass(frozen=True)
class MethodRow:
    """One method's texts, ``auc`` with its interval; ``mark`` is its footnote's number or None."""

    method: str
    block: str
    note: str
    auc: str
    detail: str
    patients: str
    positive: str
    negative: str
    mark: int | None


@dataclass(frozen=True)
class ComparisonRow:
    """One comparison's texts, ``delta`` with its interval; ``mark`` is its footnote's number or None."""

    a: str
    b: str
    tone: formatting.Tone
    sentence: str
    delta: str
    z: str
    p: str
    p_holm: str
    detectable: str
    verdict: str
    cases: str
    mark: int | None


@dataclass(frozen=True)
class Results:
    """Rows of one evidence section; oracle rows and comparisons with an oracle stand apart."""

    deployable: list[MethodRow]
    oracle: list[MethodRow]
    comparisons: list[ComparisonRow]
    oracle_comparisons: list[ComparisonRow]
    footnotes: list[str]
    confidence: str
    has_verdicts: bool
    untested: str = ""
    """Why none of several comparisons has a test; empty where reasons differ, or a test was made."""


def oracles(evidence: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the methods that need CT at inference."""
    return frozenset(str(m["method"]) for m in evidence.get("methods", ()) if m.get("oracle"))


def is_mean_over_labels(evidence: Mapping[str, Any]) -> bool:
    """Whether the evidence is of a mean over labels, which has no scores and so no curve of its own."""
    rows = evidence.get("methods", ())
    return bool(rows) and all(m.get("label_name") == MACRO for m in rows)


def fixed_models(evidence: Mapping[str, Any]) -> list[str]:
    """Say that DeLong's test takes the trained models as fixed, where models of several folds were trained.

    The shares are those of ``tools/bench/coverage.py`` (12 + 28 and 30 + 70 patients).
    """
    if not any((c.get("corrected") or {}).get("p") is not None for c in evidence.get("comparisons", ())):
        return []
    return [
        "Models count as fixed: intervals and p values speak of these trained models on new patients, not of training "
        "them again on others. In simulations, two training recipes that are equal on average were called different in "
        "about 16 % of 5-fold studies by the test at .05; the test over folds that pays for the choice of training "
        "cases, given beside, called them so in about 5 %."
    ]


def alpha_of(evidence: Mapping[str, Any]) -> float:
    """Return the level of the tests and intervals (0.05 unless the evidence says otherwise)."""
    return formatting.number(evidence.get("alpha")) or 0.05


def results(evidence: Mapping[str, Any], notes: Mapping[str, str] | None = None) -> Results:
    """Return the rows of ``evidence`` in the order it declares them, with their notes.

    A pair of methods that was declared one way round is not shown the other way round too.

    Args:
        evidence: see :class:`embedprior.report.content.EvidenceSection`.
        notes: method → note.
    """
    notes, alpha, footnotes = notes or {}, alpha_of(evidence), Footnotes()
    needs_ct = oracles(evidence)
    methods, declared = list(evidence.get("methods", ())), list(evidence.get("comparisons", ()))
    reversed_claims = {(c["b"], c["a"], _block(c)) for c in declared if c.get("in_family")}
    declared = [c for c in declared if c.get("in_family") or (c["a"], c["b"], _block(c)) not in reversed_claims]
    untested = _why_untested(declared)
    support = {(str(m["method"]), _block(m)): m for m in methods}
    show_block = len({_block(m) for m in methods}) > 1
    deployable, oracle = (
        [_method_row(m, notes, footnotes, show_block) for m in methods if (str(m["method"]) in needs_ct) is with_ct]
        for with_ct in (False, True)
    )
    without, with_oracle = (
        [
            _comparison_row(c, support, alpha, footnotes, show_block, bool(untested))
            for c in declared
            if _touches(c, needs_ct) is with_ct
        ]
        for with_ct in (False, True)
    )
    return Results(
        deployable=deployable,
        oracle=oracle,
        comparisons=without,
        oracle_comparisons=with_oracle,
        footnotes=footnotes.texts,
        confidence=formatting.percent(alpha),
        has_verdicts=any(c.get("verdict") for c in declared),
        untested=untested,
    )


def _why_untested(comparisons: Sequence[Mapping[str, Any]]) -> str:
    reasons = {str(c.get("reason") or "") for c in comparisons}
    none = all(formatting.number(c.get("p")) is None for c in comparisons)
    return reasons.pop() if none and len(comparisons) > 1 and len(reasons) == 1 else ""


def _detectable(delta: float | None) -> str:
    """Two AUCs differ by less than 1: whatever needs more can't be detected."""
    return "none" if delta is not None and delta >= 1 else formatting.fixed(delta)


def _touches(comparison: Mapping[str, Any], names: frozenset[str]) -> bool:
    return str(comparison["a"]) in names or str(comparison["b"]) in names


def _block(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Label and resample of a row: within one such block all methods share their cases."""
    return tuple(str(row[key]) for key in ("label_name", "resample") if row.get(key) is not None)


def _detail(method: Mapping[str, Any]) -> str:
    parts = []
    if formatting.number(method.get("se")) is not None:
        parts.append(f"SE {formatting.fixed(method['se'])}")
    if method.get("ci_method"):
        parts.append(str(method["ci_method"]) if "bound" in method["ci_method"] else f"{method['ci_method']} CI")
    half = formatting.number((method.get("against_half") or {}).get("p"))
    if half is not None:
        parts.append(f"against 0.5 {formatting.p_value(half)}")
    parts += [
        f"{formatting.count(method[key])}\u00a0{noun}"
        for key, noun in (("n_folds", "folds"), ("n_seeds", "seeds"), ("n_resamples", "resamples (mean counts)"))
        if (formatting.number(method.get(key)) or 0) > 1
    ]
    return " · ".join(parts)


def _method_row(
    method: Mapping[str, Any], notes: Mapping[str, str], footnotes: Footnotes, show_block: bool
) -> MethodRow:
    name = str(method["method"])
    missing = any(formatting.number(method.get(key)) is None for key in ("auc", "ci_low", "ci_high"))
    return MethodRow(
        method=name,
        block=", ".join(_block(method)) if show_block else "",
        note=notes.get(name, ""),
        auc=formatting.estimate(
            formatting.fixed(method.get("auc")), formatting.interval(method.get("ci_low"), method.get("ci_high"))
        ),
        detail=_detail(method),
        patients=formatting.count(method.get("n_patients")),
        positive=formatting.count(method.get("n_pos")),
        negative=formatting.count(method.get("n_neg")),
        mark=footnotes.mark(method.get("reason")) if missing or method.get("reason") else None,
    )


def _comparison_row(
    comparison: Mapping[str, Any],
    support: Mapping[tuple[str, tuple[str, ...]], Mapping[str, Any]],
    alpha: float,
    footnotes: Footnotes,
    show_block: bool,
    reason_given: bool,
) -> ComparisonRow:
    a, b, block = str(comparison["a"]), str(comparison["b"]), _block(comparison)
    needed = ("delta", "ci_low", "ci_high", "p")
    missing = any(formatting.number(comparison.get(key)) is None for key in needed)
    # Paired tests are only made on identical case lists, so a's support is the comparison's.
    counts = comparison if formatting.number(comparison.get("n_patients")) is not None else support.get((a, block), {})
    cases = formatting.support(counts)
    limits = formatting.interval(comparison.get("ci_low"), comparison.get("ci_high"), sign=True)
    sentence = formatting.comparison_sentence(comparison, alpha, cases, reason_given)
    return ComparisonRow(
        a=a,
        b=b,
        tone=formatting.tone_of(comparison),
        sentence=f"{', '.join(block)}: {sentence}" if show_block else sentence,
        delta=formatting.estimate(formatting.signed(comparison.get("delta")), limits),
        z=formatting.fixed(comparison.get("z"), 2),
        p=formatting.bare_p(comparison.get("p"), alpha),
        p_holm=formatting.bare_p(comparison.get("p_holm"), alpha),
        detectable=_detectable(formatting.number(comparison.get("min_detectable_delta"))),
        verdict=formatting.verdict_of(comparison) or str(comparison.get("verdict") or ""),
        cases=cases,
        mark=footnotes.mark(comparison.get("reason")) if missing or comparison.get("reason") else None,
    )
