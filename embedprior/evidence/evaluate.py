"""The whole evaluation of a predictions table: what ``evidence.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from embedprior.evidence.aggregate import (
    MICRO_WARNING,
    corrected_over_folds,
    is_repeated_kfold,
    join_repeats,
    macro,
    macro_of_repeats,
    macro_resample_rows,
    mean_rows,
    micro_pool,
    ranks,
    resample_rows,
    resampled_comparison,
    too_few_patients,
    training_size,
)
from embedprior.evidence.decision import Claim, Rules, as_claim, checked_family
from embedprior.evidence.delong import n_distinct
from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.intervals import CiMethod
from embedprior.evidence.method_metrics import ProportionCi, Settings, method_metrics, validation_scores
from embedprior.evidence.paired_metrics import metric_differences
from embedprior.evidence.predictions import (
    ENSEMBLE,
    Block,
    PatientLabel,
    Unit,
    check_names,
    held_out_blocks,
    refuse_shared_patients,
    select_split,
    with_seed_ensembles,
)
from embedprior.evidence.schema import (
    NO_METRICS,
    Comparison,
    Joint,
    comparison_row,
    joint_aucs,
    judge_family,
    method_row,
    omnibus_row,
    undefined_comparison,
    undefined_method,
)
from embedprior.evidence.subgroups import subgroup_comparisons, subgroup_rows

SCHEMA_VERSION = 2


@dataclass
class UnjudgedEvaluation:
    """An evaluation whose claims still have to be judged together with those of other evaluations."""

    evidence: dict[str, Any]
    comparisons: list[Comparison]


def judged(evaluations: Sequence[UnjudgedEvaluation]) -> list[dict[str, Any]]:
    """Judge the claims of all evaluations as one family and return the evidence of each."""
    judge_family([c for e in evaluations for c in e.comparisons])
    return [e.evidence for e in evaluations]


def evaluate_predictions(
    frame: pd.DataFrame,
    reference: str,
    family: Sequence[Claim | str | tuple[str, str]] | None = None,
    unit: Unit = "patient",
    oracles: Sequence[str] = (),
    bootstrap: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate the test rows of a long predictions table; see ``evaluation`` for all options.

    Returns:
        Plain JSON values, described by ``evidence.schema.json``: None wherever a number is undefined, with a
        ``reason`` beside it.

    Raises:
        EvidenceError: the table or the names cannot be used; rows are named.

    Example:
        >>> import pandas as pd
        >>> cases = [f"p{i}" for i in range(12)]
        >>> table = pd.DataFrame({"exam_id": cases * 2, "patient_id": cases * 2, "label": [0, 0, 1] * 8})
        >>> table["method"] = ["cxr-only"] * 12 + ["prior"] * 12
        >>> table["score"] = [0.1, 0.6, 0.5, 0.3, 0.2, 0.4] * 2 + [0.1, 0.2, 0.9, 0.3, 0.2, 0.8] * 2
        >>> evidence = evaluate_predictions(table, "cxr-only")
        >>> [row["claim"] for row in evidence["comparisons"]]
        ['prior > cxr-only']
    """
    return judged([evaluation(frame, reference, family, unit, oracles, bootstrap, **options)])[0]


def evaluation(
    frame: pd.DataFrame,
    reference: str,
    family: Sequence[Claim | str | tuple[str, str]] | None = None,
    unit: Unit = "patient",
    oracles: Sequence[str] = (),
    bootstrap: int = 0,
    *,
    patient_label: PatientLabel | None = None,
    ci: CiMethod = "logit-t",
    alpha: float = 0.05,
    relevant_delta: float = 0.05,
    margin: float | None = None,
    power: float = 0.8,
    assumed_auc: float = 0.8,
    assumed_correlation: float = 0.5,
    planned: tuple[float | None, float | None] | None = None,
    threshold: float | None = None,
    at_specificity: float = 0.9,
    at_sensitivity: float = 0.95,
    max_fpr: float = 0.1,
    prevalence: float | None = None,
    proportions: ProportionCi = "wilson",
    train_size: float | None = None,
    subgroups: Sequence[str] = (),
    micro: bool = False,
    seed_ensemble: bool = False,
    bootstrap_seed: int = 0,
    blocks: Sequence[Block] | None = None,
    incomplete: Mapping[str, str] | None = None,
) -> UnjudgedEvaluation:
    """Evaluate the test rows of a long predictions table; its claims are not judged yet (see ``judged``).

    Args:
        frame: columns ``exam_id, patient_id, label, method, score`` and, where they apply, ``fold, resample,
            seed, split, label_name``. Only rows with ``split == "test"`` are scored when there is such a
            column.
        reference: the method every other one is compared with.
        family: the claims declared beforehand: a ``Claim``, its text (``a > b``, ``a >= b - .03``, ``a = b ± .03``), or
            a pair (a, b) = "a scores higher than b"; Holm adjusts over these. Default: every method that is no oracle
            against ``reference``.
        unit: ``patient`` averages a patient's scores; ``exam`` clusters the variance by patient where
            patients repeat.
        oracles: methods that need CT at inference: shown, and left out of the default family.
        bootstrap: patient-level replicates for metrics without a closed form; 0 leaves their intervals
            undefined.
        patient_label: ``max`` or ``index`` for patients whose exams disagree (unit ``patient``).
        ci: interval of an AUC. alpha: two-sided error rate, before adjustment.
        relevant_delta: the smallest difference worth claiming.
        margin: without a declared family, also claim of every method that it is not worse than ``reference`` by this.
        power, assumed_auc, assumed_correlation: what the detectable difference rests on, with the sizes.
        planned: detectable differences of a plan (at alpha, at Holm's first step), in place of these.
        threshold: declared operating point ("positive" = score >= threshold). Without it, Youden's point of the
            ``val`` rows of the same method, seed and fold; without those, threshold metrics are undefined.
        at_specificity, at_sensitivity: also report sensitivity where validation specificity reaches the first,
            and specificity where validation sensitivity reaches the second.
        max_fpr: end of the partial AUC. prevalence: also report PPV and NPV at this share of positives.
        proportions: interval of sensitivity, specificity and the like: ``wilson`` or ``clopper-pearson`` (exact).
        train_size: training cases per resample, for the Nadeau-Bengio correction (default: counted from
            ``train`` rows).
        subgroups: columns to describe AUCs and differences within, with a test of interaction.
        micro: with several labels, also pool all (case, label) pairs; adds a warning.
        seed_ensemble: also score the mean over seeds of each method, as a row of its own.
        bootstrap_seed: seed of the bootstrap streams.
        blocks: ``held_out_blocks`` of the same frame, unit and patient_label, when the caller has them already.
        incomplete: methods that are not in ``frame`` because they lack scores, with the reason. Each gets a row
            without an AUC, and a declared comparison with one stays in the family without a p value.

    Raises:
        EvidenceError: the table or the names cannot be used; rows are named.
    """
    shares = {"at_specificity": at_specificity, "at_sensitivity": at_sensitivity, "max_fpr": max_fpr}
    if prevalence is not None:
        shares["prevalence"] = prevalence
    _check_options(alpha, relevant_delta, bootstrap, shares)
    rules = Rules(alpha, ci, relevant_delta, power, assumed_auc, assumed_correlation, planned)
    absent = dict(incomplete or {})
    refuse_shared_patients(frame)
    if blocks is None and not (absent and frame.empty):
        blocks = held_out_blocks(frame, unit, patient_label)
    blocks = list(blocks or ())
    if seed_ensemble:
        blocks = [with_seed_ensembles(b) for b in blocks]
    methods = list(dict.fromkeys(m for b in blocks for m in b.methods))
    claims = _family([*methods, *absent], reference, family, oracles, margin)
    ensembles = [m for m in methods if m.endswith(ENSEMBLE)]
    if family is None:
        claims = [c for c in claims if c.a not in ensembles]
    for block in blocks:
        lacking = [m for m in methods if m not in block.methods]
        if lacking:
            raise EvidenceError(
                f"{', '.join(lacking)} has no scores for {_where(block)}: every method needs every case."
            )
    settings = Settings(
        bootstrap, bootstrap_seed, alpha, threshold, at_specificity, at_sensitivity,
        validation_scores(select_split(frame, "val"), unit, patient_label), proportions, max_fpr, prevalence,
    )  # fmt: skip
    plan = _Plan(methods, reference, claims, tuple(oracles), rules, settings, unit == "exam", micro, absent)
    if not blocks:
        found = _Found([], _comparisons(plan, None, None), [], None)
    elif len({b.resample for b in blocks}) == 1:
        found = _one_split(plan, blocks)
    elif all(is_repeated_kfold(own) for own in _by_label(blocks)):
        found = _over_repeats(plan, blocks)
    else:
        found = _over_resamples(plan, blocks, training_size(frame, train_size, unit))
    found.methods.extend(undefined_method(m, m in oracles, reason) for m, reason in absent.items())
    evidence = {
        "schema_version": SCHEMA_VERSION,
        "unit": unit,
        "patient_label": patient_label,
        "reference": reference,
        "family": [[c.a, c.b] for c in claims],
        "claims": [c.text for c in claims],
        "family_declared": family is not None,
        "oracles": list(oracles),
        "alpha": alpha,
        "relevant_delta": relevant_delta,
        "margin": margin,
        "power": power,
        "assumed_auc": assumed_auc,
        "assumed_correlation": assumed_correlation,
        "bootstrap": bootstrap,
        "n_patients": n_distinct(np.concatenate([b.patients for b in blocks])) if blocks else 0,
        "n_unknown_labels": sum(b.n_unknown for b in blocks),
        "warnings": _warnings(plan, blocks, family is not None),
        "methods": found.methods,
        "comparisons": [c.row for c in found.comparisons],
        "omnibus": found.omnibus,
        "resamples": found.resamples,
        "subgroups": subgroup_rows(select_split(frame, "test"), subgroups, unit, patient_label, oracles, rules),
        "subgroup_comparisons": subgroup_comparisons(
            select_split(frame, "test"), subgroups, unit, patient_label,
            list(dict.fromkeys((c.a, c.b) for c in claims if not plan.lacking(c))), alpha,
        ),
    }  # fmt: skip
    return UnjudgedEvaluation(evidence, found.comparisons)


@dataclass(frozen=True)
class _Plan:
    """What is to be compared, and how."""

    methods: list[str]
    reference: str
    claims: list[Claim]
    oracles: tuple[str, ...]
    rules: Rules
    settings: Settings
    by_exam: bool
    micro: bool
    absent: dict[str, str]

    @property
    def ranked(self) -> list[str]:
        """Methods that compete: no oracles, no seed ensembles (their members already do)."""
        return [m for m in self.methods if m not in self.oracles and not m.endswith(ENSEMBLE)]

    @property
    def all_claims(self) -> list[Claim]:
        """The family, then every other method against the reference."""
        declared = {(c.a, c.b) for c in self.claims}
        others = [m for m in self.methods if m != self.reference and self.reference in self.methods]
        return [*self.claims, *(Claim(m, self.reference) for m in others if (m, self.reference) not in declared)]

    def placed(self, found: Comparison) -> Comparison:
        """Note whether a comparison was declared."""
        found.in_family = found.claim in self.claims
        found.row["in_family"] = found.in_family
        return found

    def lacking(self, claim: Claim) -> str | None:
        """Say which method of a claim has no AUC, and why; None when both have scores."""
        return "; ".join(f"{m}: {self.absent[m]}" for m in (claim.a, claim.b) if m in self.absent) or None


@dataclass(frozen=True)
class _Found:
    methods: list[dict[str, Any]]
    comparisons: list[Comparison]
    omnibus: list[dict[str, Any]]
    resamples: dict[str, Any] | None


def _one_split(plan: _Plan, blocks: list[Block]) -> _Found:
    joints = [joint_aucs(b, clustered=plan.by_exam and b.repeats_patients) for b in blocks]
    pooled = []
    if len(blocks) > 1:
        pooled = [macro(blocks, joints), *([micro_pool(blocks)] if plan.micro else [])]
    sections = [*zip(blocks, joints, strict=True), *pooled]
    rows: list[dict[str, Any]] = []
    comparisons: list[Comparison] = []
    for i, (block, joint) in enumerate(sections):
        found_metrics = method_metrics(block, plan.methods, plan.settings) if i < len(blocks) else None
        for m in plan.methods:
            extra = found_metrics[m] if found_metrics else dict(NO_METRICS)
            rows.append({**method_row(block, joint, m, m in plan.oracles, plan.rules), **extra})
        comparisons += _comparisons(plan, block, joint)
    return _Found(rows, comparisons, [omnibus_row(b, j, plan.ranked) for b, j in sections], None)


def _comparisons(plan: _Plan, block: Block | None, joint: Joint | None) -> list[Comparison]:
    """Return a row per claim; without a block (no method scored every case) none of them has a test."""
    rows = []
    for claim in plan.all_claims:
        lacking = plan.lacking(claim)
        if lacking is None and block is not None and joint is not None:
            found = comparison_row(block, joint, claim, plan.rules)
            if joint.one_table:
                found.row["corrected"] = corrected_over_folds([block], claim.a, claim.b)
                found.row["metrics"] = metric_differences(block, claim.a, claim.b, plan.settings)
        else:
            found = undefined_comparison(claim, block.label_name if block else None, lacking or "", plan.rules)
        rows.append(plan.placed(found))
    return rows


def _over_repeats(plan: _Plan, blocks: list[Block]) -> _Found:
    labels = _by_label(blocks)
    joined = [(own, *join_repeats(own, plan.by_exam and own[0].repeats_patients)) for own in labels]
    if len(labels) > 1:
        joined.append(([], *macro_of_repeats(labels, plan.by_exam and any(b.repeats_patients for b in blocks))))
    rows: list[dict[str, Any]] = []
    comparisons: list[Comparison] = []
    for repeats, block, joint in joined:
        rows += [
            {
                **method_row(block, joint, m, m in plan.oracles, plan.rules), **NO_METRICS,
                "n_repeats": len(labels[0]), "n_seeds": len(block.seeds[m]),
            }
            for m in plan.methods
        ]  # fmt: skip
        own = _comparisons(plan, block, joint)
        for found in own if repeats else ():
            if plan.lacking(found.claim) is None:
                found.row["corrected"] = corrected_over_folds(repeats, found.claim.a, found.claim.b)
        comparisons += own
    return _Found(rows, comparisons, [], None)


def _by_label(blocks: Sequence[Block]) -> list[list[Block]]:
    return [[b for b in blocks if b.label_name == label] for label in dict.fromkeys(b.label_name for b in blocks)]


def _over_resamples(plan: _Plan, blocks: list[Block], train_size: float | None) -> _Found:
    labels = _by_label(blocks)
    tables: list[tuple[list[list[Block]], list[dict[str, Any]]]] = []
    for own in labels:
        joints = [joint_aucs(b, clustered=plan.by_exam and b.repeats_patients) for b in own]
        tables.append(([own], resample_rows(own, joints, plan.methods, plan.oracles, plan.rules, plan.settings)))
    if len(labels) > 1:
        every = macro_resample_rows(labels, plan.methods, plan.oracles, plan.rules, plan.by_exam)
        tables.append((labels, every))
    rows: list[dict[str, Any]] = []
    means, stability = [], []
    comparisons: list[Comparison] = []
    for averaged, table in tables:
        few = too_few_patients([block for own in averaged for block in own])
        rows += table
        means += mean_rows(table, plan.methods, train_size, plan.rules, few)
        stability.append(ranks(table, plan.ranked))
        for claim in plan.all_claims:
            lacking = plan.lacking(claim)
            if lacking is None:
                row = resampled_comparison(table, averaged, claim, train_size, plan.rules, few)
            else:
                row = undefined_comparison(claim, table[0]["label_name"], lacking, plan.rules)
            comparisons.append(plan.placed(row))
    return _Found(means, comparisons, [], {"train_size": train_size, "rows": rows, "rank_stability": stability})


def _warnings(plan: _Plan, blocks: list[Block], declared: bool) -> list[str]:
    found = []
    if not declared:
        found.append(
            f"no family was declared: every method that is no oracle is compared with {plan.reference} "
            f"({len(plan.claims)} comparisons)"
        )
    declared_methods = {c.a for c in plan.claims}
    found += [f"{m} needs CT at inference and is in the family" for m in plan.oracles if m in declared_methods]
    one_class = sum(_one_class_folds(b) for b in blocks)
    if one_class:
        found.append(f"{one_class} folds hold one class only: their cases form no pairs and no part of the AUC")
    alike = _alike_but_for_case(plan.methods)
    if alike:
        found.append(f"methods differ by upper and lower case alone: {alike}")
    unknown = sum(b.n_unknown for b in blocks)
    if unknown:
        found.append(f"{unknown} cases with an unknown label were left out")
    if plan.micro and len({b.label_name for b in blocks}) > 1:
        over_resamples = len({b.resample for b in blocks}) > 1
        found.append("no micro average: it is not defined over resamples" if over_resamples else MICRO_WARNING)
    return found


def _alike_but_for_case(methods: Sequence[str]) -> str:
    by_lower: dict[str, list[str]] = {}
    for m in methods:
        by_lower.setdefault(m.lower(), []).append(m)
    return "; ".join(" and ".join(names) for names in by_lower.values() if len(names) > 1)


def _one_class_folds(block: Block) -> int:
    if block.folds is None:
        return 0
    sizes = np.bincount(block.folds)
    positives = np.bincount(block.folds, weights=block.labels)
    return int(((positives == 0) | (positives == sizes)).sum())


def _check_options(alpha: float, relevant_delta: float, bootstrap: int, shares: Mapping[str, float]) -> None:
    if not 0 < alpha < 0.5:
        raise EvidenceError(f"alpha must be in (0, 0.5), e.g. 0.05; got {alpha}.")
    if not 0 < relevant_delta < 0.5:
        raise EvidenceError(f"relevant_delta must be in (0, 0.5), e.g. 0.05; got {relevant_delta}.")
    for name, given in shares.items():
        if not 0 < given < 1:
            raise EvidenceError(f"{name} must be in (0, 1), e.g. 0.1; got {given}.")
    if bootstrap < 0:
        raise EvidenceError(f"bootstrap counts replicates and cannot be negative; got {bootstrap}.")


def _family(
    methods: list[str], reference: str, family: Sequence[Claim | str | tuple[str, str]] | None, oracles: Sequence[str],
    margin: float | None,
) -> list[Claim]:  # fmt: skip
    check_names([reference], methods, "the reference")
    check_names(oracles, methods, "the oracle")
    if family is None:
        others = [m for m in methods if m != reference and m not in oracles]
        claims = [Claim(m, reference) for m in others]
        return claims + [Claim(m, reference, "non-inferior", margin) for m in others if margin is not None]
    claims = [as_claim(given) for given in family]
    check_names([name for c in claims for name in (c.a, c.b)], methods, "the family's method")
    return checked_family(claims)


def _where(block: Block) -> str:
    parts = [f"label {block.label_name!r}"] if block.label_name is not None else []
    parts += [f"resample {block.resample!r}"] if block.resample is not None else []
    return " and ".join(parts) or "the test cases"
