"""Probes for several labels: any registered method on frozen embeddings, all training patients or a few, anywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from embedprior.errors import BadInput, EmbedpriorError
from embedprior.evidence.evaluate import UnjudgedEvaluation, evaluation, judged
from embedprior.runs import one_thread, progress, seed_for
from embedprior.students.base import CannotFit, Cases, FitData, Stage, training_data, visible_cases
from embedprior.students.config import Budget
from embedprior.students.registry import build_method, describe
from embedprior.teachers.teacher import train_head
from embedprior.transfer.cases import MultiCases

LINEAR = "logistic"
FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
MIN_DRAWS = 5


@dataclass(frozen=True)
class Probe:
    """A method on a system's embeddings.

    Attributes:
        system: name of the embeddings.
        method: registry name; ``logistic`` is the linear probe.
        budget: of methods that train a network.
    """

    system: str
    method: str = LINEAR
    budget: Budget = field(default_factory=Budget)

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.system if self.method == LINEAR else f"{self.system} · {self.method}"


@dataclass(frozen=True)
class ProbeResult:
    """Scores of every probe and label on the same cases, and what they show.

    Attributes:
        predictions: see ``docs/formats.md``, with ``label_name``.
        evidence: content of ``evidence.json``: by label, and the macro mean over labels.
        skipped: a record (``label, reason``) of each label that could not be trained or scored.
    """

    predictions: pd.DataFrame
    evidence: dict[str, Any]
    skipped: list[dict[str, str]]


def linear_probe(
    cases: MultiCases, probes: Sequence[Probe], *, oracles: Sequence[str] = (), seed: int = 0, bootstrap: int = 0
) -> ProbeResult:
    """Train every probe on part ``train`` (``val`` chooses settings), score ``test``, compare with the first probe.

    Holm's family is every probe against the first, on every label and on their macro mean.

    Args:
        cases: with parts.
        probes: the first is the reference.
        oracles: names of systems that need CT at inference: shown, not ranked.
        seed: of methods that draw.
        bootstrap: patient replicates for metrics without a closed form.

    Raises:
        BadInput: no training or test case, a method that can't be used here, or no label that can be trained.
    """
    return _evaluate(cases, cases, probes, oracles, seed, bootstrap)


def external(
    cases: MultiCases, others: MultiCases, probes: Sequence[Probe], *, oracles: Sequence[str] = (), seed: int = 0,
    bootstrap: int = 0,
) -> ProbeResult:  # fmt: skip
    """Train on one cohort's ``train`` and ``val``, score every exam of another cohort.

    Args:
        cases: of the training cohort.
        others: of the other cohort, with the same labels in the same order.
        probes, oracles, seed, bootstrap: see ``linear_probe``.

    Raises:
        BadInput: as ``linear_probe``, or a patient id that stands in both cohorts.
    """
    both = sorted(set(cases.patient_ids) & set(others.patient_ids))
    if both:
        raise BadInput(
            f"{len(both)} patient ids stand in both cohorts (such as '{both[0]}'). Next: if they are the same people, "
            "leave them out of one; if not, give one cohort's ids a prefix"
        )
    everyone = replace(others, parts=["test"] * len(others))
    return _evaluate(cases, everyone, probes, oracles, seed, bootstrap)


def few_shot(
    cases: MultiCases, probes: Sequence[Probe], fractions: Sequence[float] = FRACTIONS, draws: int = MIN_DRAWS, *,
    oracles: Sequence[str] = (), seed: int = 0,
) -> dict[str, ProbeResult]:  # fmt: skip
    """Train every probe on shares of the training patients, in several draws, and score the same test cases.

    The patients of a smaller share are among those of a larger one of the same draw; validation patients are drawn in
    the same share. A draw counts as a training seed, so intervals hold both patients and draws. One Holm family over
    all shares, labels and probes.

    Args:
        cases: with parts.
        probes: the first is the reference.
        fractions: shares of the labelled patients, above 0 and up to 1.
        draws: how many, 5 or more; 1 at the share 1, where all draws are the same.
        oracles, seed: see ``linear_probe``.

    Returns:
        Share in percent → result. A share at which no label can be trained is named in ``skipped`` of the first one.

    Raises:
        BadInput: a share outside (0, 1], fewer than 5 draws, or as ``linear_probe``.
    """
    bad = [f for f in fractions if not 0 < f <= 1]
    if bad or not fractions:
        raise BadInput(f"share {bad[0] if bad else 'none'} of the training patients. Allowed: above 0, up to 1.")
    if draws < MIN_DRAWS:
        raise BadInput(f"{draws} draws. Allowed: {MIN_DRAWS} or more; a single draw of few patients says little.")
    names = [f"{100 * f:g} %" for f in sorted(set(fractions))]
    found: dict[str, tuple[pd.DataFrame, list[dict[str, str]], UnjudgedEvaluation]] = {}
    impossible: list[dict[str, str]] = []
    for name, fraction in zip(names, sorted(set(fractions)), strict=True):
        tables, skipped = list[pd.DataFrame](), dict[str, str]()
        for draw in range(1 if fraction == 1 else draws):
            drawn = cases.take(drawn_rows(cases, fraction, seed_for(seed, "few-shot", draw)))
            scored, lost = _predictions(drawn, cases, probes, seed, f"{name}, draw {draw + 1}")
            if len(scored):  # every draw has validation patients of its own: no threshold is chosen on them
                tables.append(scored[scored["split"] == "test"].assign(seed=draw))
            skipped |= {record["label"]: f"draw {draw + 1}: {record['reason']}" for record in lost}
        table = pd.concat(tables) if tables else pd.DataFrame({"label_name": []})
        table = table[~table["label_name"].isin(list(skipped))]
        lost = [{"label": label, "reason": reason} for label, reason in skipped.items()]
        if len(table):
            found[name] = (table, lost, _unjudged(table, probes, oracles, 0))
        else:
            impossible.append({"label": f"every label at {name}", "reason": lost[0]["reason"]})
    if not found:
        raise BadInput("no share of the training patients holds both classes of any label in every draw.")
    evidence = judged([unjudged for _, _, unjudged in found.values()])
    evidences = dict(zip(found, evidence, strict=True))
    next(iter(found.values()))[1].extend(impossible)
    return {name: ProbeResult(table, evidences[name], lost) for name, (table, lost, _) in found.items()}


def drawn_rows(cases: MultiCases, fraction: float, seed: int) -> np.ndarray:
    """Return the rows of a share of the training patients, and of the same share of the validation patients."""
    patients = np.asarray(cases.patient_ids, dtype=object)
    rows = []
    for part in ("train", "val"):
        own = cases.rows(part)
        people = np.unique(patients[own].astype(str))
        order = np.random.default_rng(seed_for(seed, part)).permutation(people)
        kept = order[: int(np.ceil(fraction * len(people)))]
        rows.append(own[np.isin(patients[own].astype(str), kept)])
    return np.concatenate(rows)


def _evaluate(
    train: MultiCases, scored: MultiCases, probes: Sequence[Probe], oracles: Sequence[str], seed: int, bootstrap: int
) -> ProbeResult:
    table, skipped = _predictions(train, scored, probes, seed, "probes")
    if table.empty:
        raise BadInput(f"no label can be trained and scored: {skipped[0]['label']}: {skipped[0]['reason']}")
    (evidence,) = judged([_unjudged(table, probes, oracles, bootstrap)])
    return ProbeResult(table, evidence, skipped)


def _unjudged(
    table: pd.DataFrame, probes: Sequence[Probe], oracles: Sequence[str], bootstrap: int
) -> UnjudgedEvaluation:
    shown = [probe.name for probe in probes if probe.system in oracles]
    return evaluation(table, probes[0].name, None, "patient", shown, bootstrap, patient_label="max")


def _predictions(
    train: MultiCases, scored: MultiCases, probes: Sequence[Probe], seed: int, what: str
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Return every probe's scores on validation and test cases, and the labels that one of them can't do."""
    for part, cases in (("train", train), ("test", scored)):
        if not len(cases.rows(part)):
            raise BadInput(f"no exam of part '{part}'. Next: --splits FILE with patients of that part")
    tables, skipped = list[pd.DataFrame](), list[dict[str, str]]()
    for j, label in enumerate(progress(train.names, what, total=len(train.names))):
        try:
            tables += list(_of_label(train, scored, probes, j, label, seed))
        except CannotFit as error:
            skipped.append({"label": label, "reason": str(error)})
    return pd.concat(tables) if tables else pd.DataFrame(), skipped


def _of_label(
    train: MultiCases, scored: MultiCases, probes: Sequence[Probe], j: int, label: str, seed: int
) -> Iterator[pd.DataFrame]:
    known = {
        part: rows[~np.isnan(cases.labels[rows, j])]
        for part, cases in (("train", train), ("val", train), ("test", scored))
        for rows in [cases.rows(part)]
    }
    test = scored.labels[known["test"], j]
    if len(set(test)) < 2:
        raise CannotFit(f"the {len(test)} labelled test cases hold fewer than two classes")
    made = []
    for probe in probes:
        score = fitted_scores(train, known["train"], known["val"], probe, j, seed)
        for part, cases in (("val", train), ("test", scored)):
            rows = known[part]
            if len(rows):
                made.append(
                    pd.DataFrame(
                        {"exam_id": [cases.exam_ids[i] for i in rows],
                         "patient_id": [cases.patient_ids[i] for i in rows],
                         "label": cases.labels[rows, j].astype(int), "method": probe.name,
                         "score": score(cases, rows), "fold": 0, "seed": seed, "split": part, "label_name": label}
                    )
                )  # fmt: skip
    yield from made


def fitted_scores(
    train: MultiCases, train_rows: np.ndarray, val_rows: np.ndarray, probe: Probe, j: int, seed: int
) -> Callable[[MultiCases, np.ndarray], Float[np.ndarray, " cases"]]:
    """Fit a probe for one label, and return what scores cases with it.

    A method that learns from CT gets that of the training cases; the cases to score come without.

    Raises:
        BadInput: a method that needs CT at inference, or CT that is not there.
        CannotFit: one class only, say.
    """
    method = build_method(probe.method, probe.budget)
    info = describe(probe.method)
    if info.needs_ct:
        raise BadInput(f"method '{probe.method}' needs CT at inference. Allowed here: methods that score a radiograph.")
    if info.uses_ct and train.ct is None:
        raise BadInput(f"method '{probe.method}' learns from CT. Next: --ct-cache DIR --pairs FILE")

    def view(cases: MultiCases, rows: np.ndarray) -> Cases:
        label = cases.labels[rows, j]
        ct = None if cases.ct is None else cases.ct[rows]
        return Cases(
            [cases.exam_ids[i] for i in rows], [cases.patient_ids[i] for i in rows], label,
            cases.systems[probe.system][rows], ct, label if ct is not None else np.full(len(rows), np.nan),
        )  # fmt: skip

    own, val = view(train, train_rows), view(train, val_rows)
    if len(set(own.label)) < 2:
        raise CannotFit(f"the {len(own)} labelled training cases hold fewer than two classes")
    head = None
    if info.needs_teacher:
        head = train_head(own.paired_ct(), own.label, val.paired_ct(), val.label, probe.budget.fit, seed)
    with one_thread():
        fitted = method.fit(training_data(method, FitData((Stage(own, val),), head, "no teacher was asked for")), seed)

    def scores(cases: MultiCases, rows: np.ndarray) -> Float[np.ndarray, " cases"]:
        found = fitted.scores(visible_cases(method, view(cases, rows)))
        if not np.isfinite(found).all():
            raise EmbedpriorError(f"method '{probe.method}' gave a score that is not a number for {train.names[j]}.")
        return np.asarray(found, dtype=np.float64)

    return scores
