"""One fit: what it may learn from, what it is scored on, and the artifact it leaves."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.cohort.splits import Round
from embedprior.errors import BadInput
from embedprior.runs import Artifact, artifact, hash_array, hash_of, seed_for, write_json, write_text
from embedprior.students.base import Cases, FitData, Fitted, Method, Stage, training_data, visible_cases
from embedprior.students.registry import Budget, build_method
from embedprior.study.config import SOURCE_ONLY, Row
from embedprior.study.confounding import SourceOnly
from embedprior.study.inputs import Materials, RoundCases, TeacherData, round_cases
from embedprior.study.prepare import Prepared, Variant
from embedprior.tables import PREDICTION_REQUIRED


@dataclass(frozen=True, order=True)
class RoundId:
    """One round of one variant: what its fits share.

    Attributes:
        variant: number of the sweep's combination.
        design: its name in the configuration.
        resample, fold: of the split table.
    """

    variant: int
    design: str
    resample: int
    fold: int


@dataclass(frozen=True)
class Unit:
    """One fit.

    Attributes:
        round: where it is fitted and scored.
        key: name of its design in tables (with the sweep's settings).
        seed: of the fit.
        method: row name.
    """

    round: RoundId
    key: str
    seed: int
    method: str

    def __str__(self) -> str:
        """Return its name in failure records and progress."""
        where = f"resample {self.round.resample}, fold {self.round.fold}, seed {self.seed}"
        return f"{self.key}: {self.method}, {where}"


@dataclass(frozen=True)
class Study:
    """Variants and what each starts from.

    Attributes:
        variants: combinations of the sweep; one without a sweep.
        prepared: by variant.
    """

    variants: tuple[Variant, ...]
    prepared: tuple[Prepared, ...]

    def pairs(self) -> Iterable[tuple[Variant, Prepared]]:
        """Yield each variant with what it starts from."""
        return zip(self.variants, self.prepared, strict=True)


def units_of(study: Study) -> list[Unit]:
    """Return every fit, in the order of the predictions: variant, design, round, seed, method."""
    found = []
    for number, (variant, prepared) in enumerate(study.pairs()):
        for design in variant.config.designs:
            for one in prepared.rounds(design.name):
                where = RoundId(number, design.name, one.resample, one.fold)
                found += [
                    Unit(where, variant.key(design), seed, method)
                    for seed in variant.config.fit_seeds
                    for method in design.methods
                ]
    return found


CODE_TAG, TEACHER_TAG = "fit-1", "teacher-1"
SCORES, RECORD, TEACHER = "predictions.csv", "fit.json", "CT teacher"


class NoScore(Exception):
    """A fitted method returned no usable score for any case."""


@dataclass
class Bench:
    """Fits units of one variant; what the fits of a round share is made once.

    Attributes:
        materials: what they read.
    """

    materials: Materials
    _round: tuple[RoundId, RoundCases] | None = None
    _heads: dict[tuple[RoundId, int], tuple[Any, str, str]] = field(default_factory=dict)
    _digests: dict[bool, str] = field(default_factory=dict)

    def cases(self, where: RoundId) -> RoundCases:
        """Return the cases of a round."""
        if self._round is None or self._round[0] != where:
            self._round = (where, round_cases(self.materials, self.materials.design(where.design), self.one(where)))
            self._heads.clear()
            self._digests.clear()
        return self._round[1]

    def one(self, where: RoundId) -> Round:
        """Return the division into parts of a round."""
        return self.materials.rounds[where.design, where.resample, where.fold]

    def head(self, where: RoundId, seed: int) -> tuple[Any, str, str]:
        """Return the CT head of a round, the reason there is none, and the key of its artifact."""
        cases = self.cases(where)
        if (where, seed) not in self._heads:
            self._heads[where, seed] = (
                (None, "no method of this design uses it", "none")
                if cases.teacher is None
                else train_teacher(self.materials, cases.teacher, seed)
            )
        return self._heads[where, seed]

    def data(self, unit: Unit) -> FitData:
        """Return what a unit may learn from.

        Raises:
            BadInput: a held-out patient is among the training, validation or teacher patients.
        """
        cases = self.cases(unit.round)
        info = self.materials.infos[unit.method]
        head, reason, _ = self.head(unit.round, unit.seed) if info.uses_ct else (None, "it uses no CT", "none")
        teacher = cases.teacher.patients if cases.teacher and info.uses_ct else {}
        data = FitData(cases.stages_for(info), head, reason)
        data = data if info.uses_ct else data.without_ct()
        refuse_seen_patients(data, cases.scored["test"], {p for ids in teacher.values() for p in ids})
        return data

    def fit(self, unit: Unit) -> Artifact:
        """Fit and score one unit, unless that was done before.

        Raises:
            CannotFit: these cases do not allow it.
            NoScore: it scored no case.
        """
        cases = self.cases(unit.round)
        if "test" not in cases.scored or not len(cases.stages[-1].train):
            raise BadInput("no case is held out, or none is left to train on, once unreadable exams are gone.")
        data = self.data(unit)
        row = row_of(self.materials, unit.method)
        info = self.materials.infos[unit.method]
        teacher = self.head(unit.round, unit.seed)[2] if info.uses_ct else "none"
        if info.uses_ct not in self._digests:
            self._digests[info.uses_ct] = _digest(data.stages, cases.scored)
        inputs = {"cases": self._digests[info.uses_ct], "teacher": teacher}
        budget = budget_of(self.materials).model_copy(update={"artifacts": None})
        settings = {
            "row": unit.method, "method": row, "budget": budget, "seed": unit.seed,
            "fold": unit.round.fold, "resample": unit.round.resample,
        }  # fmt: skip
        if row.method == SOURCE_ONLY:
            inputs["sources"] = hash_of(self._sources())

        def build(work: Path) -> None:
            started = time.monotonic()
            method = method_of(self.materials, unit.method, self._sources())
            table, unscored, _ = score_fit(method, data, cases.scored, unit)
            write_text(work / SCORES, table.to_csv(index=False))
            write_json(
                work / RECORD,
                {
                    "method": unit.method, "seconds": round(time.monotonic() - started, 3), "unscored": unscored,
                    "patients_seen": _seen(data, cases.teacher if info.uses_ct else None),
                },
            )  # fmt: skip

        tag = f"{CODE_TAG}/{row.method}-{info.version}"
        return artifact("fit", inputs, settings, tag, build, self.materials.artifacts)

    def _sources(self) -> dict[str, str]:
        cohorts = [self.materials.cohort, *(e.cohort for e in self.materials.externals.values())]
        found: dict[str, str] = {}
        for exams in (c.exams for c in cohorts if "source" in c.exams.columns):
            found |= zip(exams["exam_id"], exams["source"].astype(object).fillna("").astype(str), strict=True)
        return found


def row_of(materials: Materials, name: str) -> Row:
    """Return the method and the options behind a row's name."""
    return materials.config.rows.get(name, Row(method=name))


def budget_of(materials: Materials) -> Budget:
    """Return what every row of the study is given alike."""
    config, chosen = materials.config, materials.config.prior
    stages = (chosen.pretrain, chosen.training) if chosen.pretrain is not None else (chosen.training,)
    return Budget(
        fit=config.fit, balance=config.balance, stages=stages, artifacts=materials.artifacts,
        samples=chosen.samples, sampler=chosen.sampler, steps=chosen.steps,
    )  # fmt: skip


def method_of(materials: Materials, name: str, sources: Mapping[str, str]) -> Method:
    """Return the method of a row, with the budget that all rows share."""
    row = row_of(materials, name)
    if row.method == SOURCE_ONLY:
        return SourceOnly(sources)
    return build_method(row.method, budget_of(materials), **row.options)


def score_fit(
    method: Method, data: FitData, scored: Mapping[str, Cases], unit: Unit
) -> tuple[pd.DataFrame, list[dict[str, str]], Fitted]:
    """Fit one method and score the cases.

    CT is taken away from the training data of a method that does not declare ``uses_ct``, and from the cases to score
    of one that does not declare ``needs_ct``.

    Args:
        method: what to fit.
        data: what it may learn from.
        scored: split name (``"val"``, ``"test"``) → cases to score.
        unit: names, numbers and the seed written to the table.

    Returns:
        A long predictions table with ``resample``; one record (``exam_id``, ``reason``) for every case it gave no
        finite score; and the fitted method.

    Raises:
        CannotFit: these cases do not allow it.
        NoScore: no held-out case has a finite score, or their number is wrong.
    """
    fitted = method.fit(training_data(method, data), unit.seed)
    frames, unscored = [], []
    for split, cases in scored.items():
        scores = np.asarray(fitted.scores(visible_cases(method, cases)), dtype=np.float64)
        if scores.shape != (len(cases),):
            raise NoScore(f"{unit.method} returned {scores.shape} scores for {len(cases)} {split} cases")
        usable = np.isfinite(scores)
        if split == "test" and not usable.any():
            raise NoScore(f"{unit.method} gave none of the {len(cases)} held-out cases a finite score")
        unscored += [
            {"exam_id": exam, "reason": f"{split} case without a finite score"}
            for exam, ok in zip(cases.exam_ids, usable, strict=True)
            if not ok
        ]
        frame = pd.DataFrame(
            {
                "exam_id": list(cases.exam_ids), "patient_id": list(cases.patient_ids),
                "label": cases.label.astype(int), "method": unit.method, "score": scores, "fold": unit.round.fold,
                "seed": unit.seed, "split": split, "resample": unit.round.resample,
            }
        )  # fmt: skip
        frames.append(frame[usable])
    return pd.concat(frames, ignore_index=True)[[*PREDICTION_REQUIRED, "resample"]], unscored, fitted


def read_scores(folder: Path) -> pd.DataFrame:
    """Return the predictions of a fit's artifact, digit for digit."""
    text = dict.fromkeys(("exam_id", "patient_id", "method", "split", "score"), str)
    table = pd.read_csv(folder / SCORES, dtype=text, keep_default_na=False)
    return table.assign(score=[float(s) for s in table["score"]])


def refuse_seen_patients(data: FitData, held_out: Cases, teacher: set[str] | None = None) -> None:
    """Check that nothing was learned from a held-out patient.

    Raises:
        BadInput: with the ids.
    """
    seen = {p for stage in data.stages for cases in (stage.train, stage.val) for p in cases.patient_ids}
    both = sorted((seen | (teacher or set())) & set(held_out.patient_ids))
    if both:
        raise BadInput(f"{len(both)} held-out patients took part in training: {', '.join(both[:5])}.")


def train_teacher(materials: Materials, data: TeacherData, seed: int) -> tuple[Any, str, str]:
    """Train the CT head of one round on the CTs' own labels, or reuse it.

    Returns:
        The head, or None with the reason; and the key of its artifact (``"none"`` without a head).
    """
    from embedprior.teachers.teacher import OneClass, TeacherHead, train_head

    config = materials.config
    settings = config.teacher or config.fit
    stream = materials.teacher_stream
    own_seed = seed_for(seed, stream) if stream else seed

    def build(work: Path) -> None:
        started = time.monotonic()
        head = train_head(
            data.train, data.train_label, data.val, data.val_label, settings, own_seed, balance=config.balance
        )
        head.save(work)
        seconds = round(time.monotonic() - started, 3)
        write_json(work / RECORD, {"method": TEACHER, "seconds": seconds, "patients_seen": data.patients})

    inputs = {
        "embeddings": hash_array(data.train), "labels": hash_array(data.train_label), "val": hash_array(data.val),
        "val labels": hash_array(data.val_label), "patients": hash_of(data.patients),
    }  # fmt: skip
    try:
        made = artifact(
            "teacher",
            inputs,
            {"head": settings, "seed": own_seed, "balance": config.balance},
            TEACHER_TAG,
            build,
            materials.artifacts,
        )
    except OneClass as error:
        return None, str(error), "none"
    return TeacherHead.load(made.path), "", made.key


def _digest(stages: tuple[Stage, ...], scored: Mapping[str, Cases]) -> str:
    named = [("stage", part, cases) for s in stages for part, cases in (("train", s.train), ("val", s.val))]
    named += [("scored", part, cases) for part, cases in scored.items()]
    return hash_of([[where, part, _digest_cases(cases)] for where, part, cases in named])


def _digest_cases(cases: Cases) -> list[Any]:
    arrays = (cases.label, cases.cxr, cases.ct, cases.ct_label, cases.tokens, cases.pixels, cases.ct_mirrored)
    return [
        cases.source, list(cases.exam_ids), list(cases.patient_ids),
        [None if a is None else hash_array(np.asarray(a)) for a in arrays],
    ]  # fmt: skip


def _seen(data: FitData, teacher: TeacherData | None) -> dict[str, list[str]]:
    seen = {part: {p for s in data.stages for p in getattr(s, part).patient_ids} for part in ("train", "val")}
    if teacher is not None:
        seen = {part: ids | set(teacher.patients[part]) for part, ids in seen.items()}
    return {part: sorted(ids) for part, ids in seen.items()}
