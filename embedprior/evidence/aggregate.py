"""Evidence over more than one table of cases: resamples, repeats of a k-fold, subgroups, several labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from embedprior.evidence.decision import Claim, Rules
from embedprior.evidence.delong import Delong, Floats, Ints, delong, influence, n_distinct, renumber
from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.method_metrics import Settings, point_metrics
from embedprior.evidence.predictions import Block, select_split
from embedprior.evidence.schema import Comparison, Joint, comparison, joint_aucs, method_row, patient_folds, value
from embedprior.evidence.tests import Test, nadeau_bengio, rank_stability, undefined

NO_RATIO = "training-set size unknown: give train_size (cases) for the Nadeau-Bengio correction"
MACRO = "macro"
"""Label of the mean over labels."""
TEST = "Nadeau-Bengio corrected resampled t"
DIFFERENT_CASES = "the repeats of a k-fold hold different cases: every repeat must score every case once"


def is_repeated_kfold(blocks: Sequence[Block]) -> bool:
    """Whether several resamples are the repeats of one k-fold: folds in each, and every case in each."""
    first = set(map(str, blocks[0].case_ids))
    return len(blocks) > 1 and all(b.folds is not None and set(map(str, b.case_ids)) == first for b in blocks)


def join_repeats(blocks: Sequence[Block], clustered: bool) -> tuple[Block, Joint]:
    """Return the first repeat's block and the joint AUCs of every method in every repeat and seed.

    Repeats share every patient, so a patient counts once: the covariance between repeats adds up influence values per
    patient, each repeat scaled to its own fold-stratified DeLong variance. A repeat then counts like a further seed.

    Raises:
        EvidenceError: the repeats hold different cases.
    """
    first = blocks[0]
    patients = renumber(first.patients)[0]
    if any(set(map(str, b.case_ids)) != set(map(str, first.case_ids)) for b in blocks):
        raise EvidenceError(DIFFERENT_CASES)
    joints = [joint_aucs(b, clustered) for b in blocks]
    results = [j.result for j in joints]
    reasons = [r.reason for r in results if r.reason]
    stacked = np.concatenate([_scaled_influence(b, r, patients) for b, r in zip(blocks, results, strict=True)])
    whole = _by_influence(stacked, results, np.concatenate([r.auc for r in results]), "; ".join(reasons) or None)
    cells, seeds = _cells(joints, blocks)
    test = f"influence over patients, {len(blocks)} repeats, fold-stratified" + (", clustered" if clustered else "")
    return first, Joint(whole, cells, seeds, test, clustered, one_table=False)


def _cells(joints: Sequence[Joint], blocks: Sequence[Block]) -> tuple[dict[str, Ints], dict[str, tuple[str, ...]]]:
    """Return where each method's cells lie when those of several repeats are stacked, and the names of its seeds."""
    at: dict[str, list[int]] = {m: [] for m in blocks[0].methods}
    names: dict[str, list[str]] = {m: [] for m in blocks[0].methods}
    start = 0
    for number, joint in enumerate(joints):
        for m in blocks[number].methods:
            at[m] += (joint.at[m] + start).tolist()
            names[m] += [f"{seed}, repeat {number}" for seed in joint.seeds[m]]
        start += joint.result.auc.size
    return {m: np.array(rows) for m, rows in at.items()}, {m: tuple(n) for m, n in names.items()}


def _by_influence(summed: Floats, parts: Sequence[Delong], auc: Floats, reason: str | None) -> Delong:
    """Return the joint estimate whose covariance adds up influence values (k, patients) of several tables.

    The whole variance counts against the class with fewer patients, which gives the fewest degrees of freedom.
    """
    covariance = np.full((len(summed), len(summed)), np.nan) if reason else summed @ summed.T
    df = min(min(r.df_pos, r.df_neg) for r in parts)
    return Delong(
        auc=auc, covariance=covariance, positive_part=covariance, negative_part=np.zeros_like(covariance), df_pos=df,
        df_neg=df, n_pos=parts[0].n_pos, n_neg=parts[0].n_neg, n_clusters=summed.shape[1],
        independent_pairs=min(r.independent_pairs for r in parts), reason=reason,
    )  # fmt: skip


def too_few_patients(blocks: Sequence[Block]) -> str | None:
    """Say which class has fewer than two patients in some resample, or return None.

    Not even one resample's AUC has a variance then, and resamples share patients, so their spread is no standard
    error either.
    """
    few = []
    for name, positive in (("positive", True), ("negative", False)):
        least = min(_patients_of_class(b, positive) for b in blocks)
        if least < 2:
            few.append(f"{least} {name} patient{'s' if least != 1 else ''}")
    if not few:
        return None
    return f"only {' and '.join(few)} held out in a resample: no variance, no interval, no test"


def _patients_of_class(block: Block, positive: bool) -> int:
    """Patients with a positive case, or those without any."""
    with_positive = n_distinct(block.patients[block.labels]) if block.labels.any() else 0
    return with_positive if positive else block.n_patients - with_positive


def training_size(frame: pd.DataFrame, given: float | None, unit: str) -> float | None:
    """Return the mean number of training cases: as given, else counted from rows with split ``train``."""
    if given is not None:
        return given
    rows = select_split(frame, "train")
    if rows.empty:
        return None
    column = "patient_id" if unit == "patient" else "exam_id"
    by = [c for c in ("resample", "fold") if c in rows.columns]
    return float(rows.groupby(by)[column].nunique().mean()) if by else float(rows[column].nunique())


def resample_rows(
    blocks: Sequence[Block],
    joints: Sequence[Joint],
    methods: Sequence[str],
    oracles: Sequence[str],
    rules: Rules,
    settings: Settings,
) -> list[dict[str, Any]]:
    """Return one row per resample and method: AUC with its own interval, counts and the other metrics' values."""
    rows = []
    for block, joint in zip(blocks, joints, strict=True):
        for m in methods:
            row = method_row(block, joint, m, m in oracles, rules)
            rows.append({"resample": block.resample, **row, "metrics": point_metrics(block, m, settings)})
    return rows


def macro_resample_rows(
    labels: Sequence[Sequence[Block]], methods: Sequence[str], oracles: Sequence[str], rules: Rules, clustered: bool
) -> list[dict[str, Any]]:
    """Return ``resample_rows`` of the mean over labels: one row a resample and method.

    Args:
        labels: the resamples of each label, in one order.
        methods, oracles, rules: see ``resample_rows``.
        clustered: whether cases of one patient repeat.
    """
    rows = []
    for blocks in zip(*labels, strict=True):
        joints = [joint_aucs(b, clustered and b.repeats_patients) for b in blocks]
        block, joint = macro(blocks, joints)
        for m in methods:
            row = method_row(block, joint, m, m in oracles, rules)
            # the share of held-out cases is a label's, not that of all labels together
            held_out = float(np.mean([b.labels.size for b in blocks]))
            rows.append({"resample": block.resample, **row, "n_cases": held_out, "metrics": {}})
    return rows


def mean_rows(
    rows: Sequence[dict[str, Any]], methods: Sequence[str], train_size: float | None, rules: Rules, few: str | None
) -> list[dict[str, Any]]:
    """Return one row per method: the mean AUC over the resamples that define it, with its corrected interval.

    ``few`` says why no interval can be given (see ``too_few_patients``).
    """
    found = []
    for m in methods:
        own = [r for r in rows if r["method"] == m]
        aucs = _column(own, "auc")
        test = _corrected(aucs, own, train_size, few, zero_is_equal=False)
        low, high = test.limits(rules.alpha) if test.limits is not None else (np.nan, np.nan)
        lost = f"AUC undefined in {np.isnan(aucs).sum()} of {aucs.size} resamples" if np.isnan(aucs).any() else None
        reasons = [r for r in (lost, test.reason) if r]
        found.append(
            {
                "method": m,
                "label_name": own[0]["label_name"],
                "oracle": own[0]["oracle"],
                "auc": value(test.delta),
                "se": value(test.se),
                "ci_low": None if np.isnan(low) else max(0.0, low),
                "ci_high": None if np.isnan(high) else min(1.0, high),
                "ci_method": "Nadeau-Bengio t over resamples" if not np.isnan(low) else None,
                "ci_note": None,
                "df": value(test.df),
                **{k: float(np.mean([r[k] for r in own])) for k in ("n_pos", "n_neg", "n_cases", "n_patients")},
                "n_folds": own[0]["n_folds"],
                "n_seeds": own[0]["n_seeds"],
                "n_resamples": len(own),
                "n_resamples_defined": int((~np.isnan(aucs)).sum()),
                "auc_per_seed": None,
                "auc_per_resample": [value(a) for a in aucs],
                "sd_over_resamples": value(float(np.nanstd(aucs, ddof=1))) if (~np.isnan(aucs)).sum() > 1 else None,
                "against_half": {"z": None, "p": None, "test": "none", "reason": "see the interval over resamples"},
                "reason": "; ".join(reasons) or None,
                "metrics": {name: _spread([r["metrics"][name] for r in own]) for name in own[0]["metrics"]},
                "operating_point": None,
                "reliability": None,
                "decision_curve": None,
            }
        )
    return found


def resampled_comparison(
    rows: Sequence[dict[str, Any]], labels: Sequence[Sequence[Block]], claim: Claim, train_size: float | None,
    rules: Rules, few: str | None,
) -> Comparison:  # fmt: skip
    """Return AUC a - AUC b over resamples, each resample being one paired difference.

    ``labels`` holds the resamples of the label, of a mean over labels those of each.
    """
    first, second = ([r for r in rows if r["method"] == m] for m in (claim.a, claim.b))
    differences = _column(first, "auc") - _column(second, "auc")
    test = _corrected(differences, first, train_size, few, zero_is_equal=True)
    sizes = [patient_folds(own[0]) for own in labels] if few is None and train_size is not None else ()
    found = comparison(claim, first[0]["label_name"], test, rules, np.nan, sizes)
    if train_size is not None:
        found.inflation = float(np.sqrt(1 / len(first) + _ratio(first, train_size)))
        found.plan_df = len(first) - 1
    found.row["per_resample"] = [value(d) for d in differences]
    found.row["n_resamples_defined"] = int((~np.isnan(differences)).sum())
    return found


def ranks(rows: Sequence[dict[str, Any]], methods: Sequence[str]) -> dict[str, Any]:
    """Return the rank stability of the methods given (leave oracles out)."""
    values = np.stack([_column([r for r in rows if r["method"] == m], "auc") for m in methods], axis=1)
    return {"label_name": rows[0]["label_name"], **rank_stability(values, methods)}


def _corrected(
    values: Floats, rows: Sequence[dict[str, Any]], train_size: float | None, few: str | None, *, zero_is_equal: bool
) -> Test:
    defined = values[~np.isnan(values)]
    if few is not None or train_size is None:
        return undefined(float(defined.mean()) if defined.size else np.nan, few or NO_RATIO)
    return nadeau_bengio(defined, _ratio(rows, train_size), zero_is_equal=zero_is_equal, name=TEST)


def _ratio(rows: Sequence[dict[str, Any]], train_size: float) -> float:
    return float(np.mean([r["n_cases"] for r in rows])) / train_size


def _column(rows: Sequence[dict[str, Any]], name: str) -> Floats:
    return np.array([np.nan if r[name] is None else r[name] for r in rows], dtype=np.float64)


def _spread(found: Sequence[tuple[float | None, str | None]]) -> dict[str, Any]:
    """Return the mean and the spread of one metric over resamples, from its values and why some are undefined."""
    values = np.array([np.nan if one is None else one for one, _ in found], dtype=np.float64)
    defined = values[~np.isnan(values)]
    reasons = "; ".join(dict.fromkeys(reason for one, reason in found if one is None and reason))
    undefined_everywhere = f"undefined in every resample: {reasons}" if reasons else "undefined in every resample"
    n = int(defined.size)
    low, high = np.quantile(defined, [0.025, 0.975]) if n > 1 else (np.nan, np.nan)
    return {
        "value": value(float(defined.mean())) if n else None,
        "se": None,
        "ci_low": None,
        "ci_high": None,
        "ci_method": None,
        "sd": value(float(defined.std(ddof=1))) if n > 1 else None,
        "quantile_low": value(float(low)),
        "quantile_high": value(float(high)),
        "n_resamples_defined": n,
        "reason": "spread over resamples that share patients: no interval" if n else undefined_everywhere,
    }


def corrected_over_folds(blocks: Sequence[Block], a: str, b: str) -> dict[str, Any] | None:
    """Return the corrected t test over the folds of one or several k-folds; None with fewer than 3 folds.

    Differences of fold AUCs with variance (1 / J + 1 / (k - 1)) s^2: the second term pays for folds that share training
    cases (Nadeau & Bengio 2003; Bouckaert & Frank 2004 for repeats). DeLong's test takes the trained models as fixed.
    """
    if any(block.folds is None or len(block.fold_names) < 3 for block in blocks):
        return None
    differences = []
    for block in blocks:
        folds = block.folds
        assert folds is not None
        for f in range(len(block.fold_names)):
            inside = folds == f
            if block.labels[inside].any() and not block.labels[inside].all():
                aucs = [delong(block.labels[inside], block.scores[m][:, inside]).auc.mean() for m in (a, b)]
                differences.append(aucs[0] - aucs[1])
    test = nadeau_bengio(np.array(differences), 1 / (len(blocks[0].fold_names) - 1))
    name = f"Nadeau-Bengio over {len(differences)} folds"
    return {
        "test": name, "t": value(test.statistic), "df": value(test.df), "p": value(test.p),
        "reason": test.reason if np.isnan(test.p) else None,
    }  # fmt: skip


MICRO_WARNING = (
    "micro-averaged AUC ranks one label's positives against another label's negatives: it rewards telling common "
    "findings from rare ones. Its variance is clustered by patient; read the macro mean first."
)


def macro(blocks: Sequence[Block], joints: Sequence[Joint]) -> tuple[Block, Joint]:
    """Average the AUC over labels, with the covariance between labels of the same patients.

    DeLong's form needs one set of positives, which labels do not share; across labels the covariance is the sum
    over patients of products of influence values, each label scaled to its own (clustered) DeLong variance.
    """
    summed, auc, reason = _macro_influence(blocks, joints)
    result = _by_influence(summed, [j.result for j in joints], auc, reason)
    return _pooled(blocks), replace(
        joints[0], result=_counted(result, joints), one_table=False, label_folds=tuple(map(patient_folds, blocks)),
        test=f"influence over patients, macro mean of {len(blocks)} labels",
    )  # fmt: skip


def macro_of_repeats(labels: Sequence[Sequence[Block]], clustered: bool) -> tuple[Block, Joint]:
    """Average the AUC over labels in every repeat of a k-fold; patients count once (see ``join_repeats``).

    Args:
        labels: the repeats of each label, in one order.
        clustered: whether patients repeat.
    """
    repeats = list(zip(*labels, strict=True))
    joints = [[joint_aucs(b, clustered) for b in blocks] for blocks in repeats]
    patients = renumber(np.concatenate([b.patients for blocks in repeats for b in blocks]))[0]
    found = [_macro_influence(b, j, patients) for b, j in zip(repeats, joints, strict=True)]
    summed, auc, reasons = (list(each) for each in zip(*found, strict=True))
    everything = [j.result for own in joints for j in own]
    result = _by_influence(
        np.concatenate(summed), everything, np.concatenate(auc), "; ".join(filter(None, reasons)) or None
    )
    at, names = _cells([own[0] for own in joints], [blocks[0] for blocks in repeats])
    test = f"influence over patients, {len(repeats)} repeats, macro mean of {len(labels)} labels"
    sizes = tuple(map(patient_folds, repeats[0]))
    joint = Joint(_counted(result, joints[0]), at, names, test, clustered, one_table=False, label_folds=sizes)
    return _pooled(repeats[0]), joint


def _macro_influence(
    blocks: Sequence[Block], joints: Sequence[Joint], patients: np.ndarray | None = None
) -> tuple[Floats, Floats, str | None]:
    """Return influence values (cells, patients) of the mean over labels, its AUCs, and why it is not defined."""
    if patients is None:
        patients = renumber(np.concatenate([b.patients for b in blocks]))[0]
    summed = np.zeros((joints[0].result.auc.size, patients.size))
    for block, joint in zip(blocks, joints, strict=True):
        if joint.result.reason is None:
            summed += _scaled_influence(block, joint.result, patients) / len(blocks)
    reasons = [
        f"label {b.label_name!r}: {j.result.reason}" for b, j in zip(blocks, joints, strict=True) if j.result.reason
    ]
    auc: Floats = np.mean([j.result.auc for j in joints], axis=0)
    return summed, auc, "; ".join(reasons) or None


def _counted(result: Delong, joints: Sequence[Joint]) -> Delong:
    """Return the estimate of a mean over labels with the counts of all of them."""
    n_pos, n_neg = (sum(getattr(j.result, name) for j in joints) for name in ("n_pos", "n_neg"))
    return replace(result, n_pos=n_pos, n_neg=n_neg)


def _pooled(blocks: Sequence[Block]) -> Block:
    return replace(blocks[0], label_name=MACRO, n_unknown=sum(b.n_unknown for b in blocks))


def micro_pool(blocks: Sequence[Block]) -> tuple[Block, Joint]:
    """Pool all (case, label) pairs into one AUC, clustered by patient."""
    first = blocks[0]
    folds = None
    if any(b.folds is not None for b in blocks):
        names = [
            np.array(b.fold_names)[np.zeros(b.labels.size, dtype=np.int64) if b.folds is None else b.folds]
            for b in blocks
        ]
        folds = np.unique(np.concatenate(names), return_inverse=True)[1].astype(np.int64)
    pooled = replace(
        first,
        label_name="micro",
        case_ids=np.concatenate([b.case_ids for b in blocks]),
        patients=np.concatenate([b.patients for b in blocks]),
        labels=np.concatenate([b.labels for b in blocks]),
        folds=folds,
        scores={m: np.concatenate([b.scores[m] for b in blocks], axis=1) for m in first.methods},
        n_unknown=sum(b.n_unknown for b in blocks),
    )
    return pooled, joint_aucs(pooled, clustered=True)


def _scaled_influence(block: Block, result: Delong, patients: np.ndarray) -> Floats:
    scores = np.concatenate([block.scores[m] for m in block.methods])
    psi = influence(block.labels, scores, block.folds)
    at = np.searchsorted(patients, block.patients)
    per_patient = np.stack([np.bincount(at, weights=row, minlength=patients.size) for row in psi])
    raw = (per_patient**2).sum(axis=1)
    target = np.clip(np.diag(result.covariance), 0, None)
    scale = np.sqrt(np.divide(target, raw, out=np.zeros_like(raw), where=raw > 0))
    scaled: Floats = per_patient * scale[:, None]
    return scaled
