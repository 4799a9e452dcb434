"""One fit: what it may learn from, what it is scored on, and the artifact it leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.cohort.splits import Fold
from embedprior.errors import BadInput
from embedprior.runs import Artifact, artifact, hash_array, hash_of, measured, seed_for, write_json, write_text
from embedprior.students.base import (
    Cases,
    FitData,
    Fitted,
    Method,
    Stage,
    score_in_blocks,
    training_data,
    visible_cases,
)
from embedprior.students.registry import Budget, build_method
from embedprior.study.config import MACRO, SOURCE_ONLY, MethodConfig
from embedprior.study.confounding import SourceOnly
from embedprior.study.inputs import FoldData, StudyInputs, TeacherData, fold_data
from embedprior.study.keep import keep_model, keeps
from embedprior.study.prepare import StudyData
from embedprior.study.variants import Variant
from embedprior.tables import PREDICTION_REQUIRED


@dataclass(frozen=True, order=True)
class FoldId:
    """One fold of one variant: what its fits share.

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
class FitJob:
    """One fit.

    Attributes:
        fold_id: where it is fitted and scored.
        key: name of its design in tables (with the sweep's settings).
        seed: of the fit.
        method: its name in the study.
        group: what it shares with the jobs of other methods and labels: the cases, and a prior trained on them.
    """

    fold_id: FoldId
    key: str
    seed: int
    method: str
    group: str = ""

    def __str__(self) -> str:
        """Return its name in failure records and progress."""
        where = f"resample {self.fold_id.resample}, fold {self.fold_id.fold}, seed {self.seed}"
        return f"{self.key}: {self.method}, {where}"


@dataclass(frozen=True)
class Study:
    """The combinations of a study's sweep, and the data of each.

    Attributes:
        variants: combinations of the sweep; one without a sweep.
        data: by variant.
    """

    variants: tuple[Variant, ...]
    data: tuple[StudyData, ...]

    def combinations(self) -> Iterable[tuple[Variant, StudyData]]:
        """Yield each variant with its data."""
        return zip(self.variants, self.data, strict=True)

    @property
    def macros(self) -> list[Variant]:
        """The mean over labels of each combination, named like a label; none in a study of one label."""
        of_several = {v.combination: v for v in self.variants if v.label_name is not None}
        if len(of_several) == len(self.variants):
            return []
        return [variant.for_label(MACRO) for variant in of_several.values()]


def fit_jobs(study: Study) -> list[FitJob]:
    """Return every fit, in the order of the predictions: combination, design, fold, seed, label, method.

    A label that can't be tested in a design is not fitted there, nor in a fold that holds out nobody who has it.
    """
    found = []
    combinations: dict[str, list[tuple[int, Variant, StudyData]]] = {}
    for number, (variant, prepared) in enumerate(study.combinations()):
        combinations.setdefault(variant.combination, []).append((number, variant, prepared))
    for labels in combinations.values():
        _, first, shared = labels[0]
        for design in first.config.designs:
            for one in shared.folds(design.name):
                for seed in first.config.seeds_of(design):
                    group = f"{first.shared_key(design)}, {one.resample}, {one.fold}, {seed}"
                    found += [
                        FitJob(
                            FoldId(number, design.name, one.resample, one.fold), variant.key(design), seed, method,
                            group,
                        )
                        for number, variant, prepared in labels
                        if design.name not in prepared.untestable
                        and (design.name, one.resample, one.fold) not in prepared.unknown_in
                        for method in design.methods
                    ]  # fmt: skip
    return found


CODE_TAG, TEACHER_TAG = "fit-1", "teacher-1"
SCORES, RECORD, TEACHER = "predictions.csv", "fit.json", "CT teacher"


class NoScore(Exception):
    """A fitted method returned no usable score for any case."""


@dataclass
class FoldRunner:
    """Runs the fits of one variant; what the fits of a fold share is computed once.

    Attributes:
        inputs: what they read.
        shared: cases of the latest fold, shared with the runners of other labels.
    """

    inputs: StudyInputs
    shared: dict[Any, dict[str, Cases]] = field(default_factory=dict)
    _fold: tuple[FoldId, FoldData] | None = None
    _heads: dict[tuple[FoldId, int], tuple[Any, str, str]] = field(default_factory=dict)
    _digests: dict[bool, str] = field(default_factory=dict)

    def cases(self, where: FoldId) -> FoldData:
        """Return the cases of a fold."""
        if self._fold is None or self._fold[0] != where:
            place = (where.design, where.resample, where.fold)
            if place not in self.shared:
                self.shared.clear()
                self.shared[place] = {}
            read = self.shared[place]
            self._fold = (where, fold_data(self.inputs, self.inputs.design(where.design), self.split(where), read))
            self._heads.clear()
            self._digests.clear()
        return self._fold[1]

    def split(self, where: FoldId) -> Fold:
        """Return the division of the patients into parts."""
        return self.inputs.folds[where.design, where.resample, where.fold]

    def head(self, where: FoldId, seed: int) -> tuple[Any, str, str]:
        """Return the CT head of a fold, the reason there is none, and the key of its artifact."""
        cases = self.cases(where)
        if (where, seed) not in self._heads:
            self._heads[where, seed] = (
                (None, "no method of this design uses it", "none")
                if cases.teacher is None
                else train_teacher(self.inputs, cases.teacher, seed, where.design)
            )
        return self._heads[where, seed]

    def data(self, job: FitJob) -> FitData:
        """Return what a job may learn from.

        Raises:
            BadInput: a held-out patient is among the training, validation or teacher patients.
        """
        cases = self.cases(job.fold_id)
        info = self.inputs.infos[job.method]
        head, reason, _ = self.head(job.fold_id, job.seed) if info.uses_ct else (None, "it uses no CT", "none")
        teacher = cases.teacher.patients if cases.teacher and info.uses_ct else {}
        data = FitData(cases.stages_for(info), head, reason)
        data = data if info.uses_ct else data.without_ct()
        if "test" in cases.scored:
            refuse_seen_patients(data, cases.scored["test"], {p for ids in teacher.values() for p in ids})
        return data

    def identity(self, job: FitJob) -> tuple[dict[str, str], dict[str, Any], str]:
        """Return what a fit depends on: hashes of what it reads, its settings, and the tag of the code."""
        cases, info = self.cases(job.fold_id), self.inputs.infos[job.method]
        named = named_method(self.inputs, job.method)
        if info.uses_ct not in self._digests:
            self._digests[info.uses_ct] = _digest(self.data(job).stages, cases.scored)
        teacher = self.head(job.fold_id, job.seed)[2] if info.uses_ct else "none"
        hashes = {"cases": self._digests[info.uses_ct], "teacher": teacher}
        if named.method == SOURCE_ONLY:
            hashes["sources"] = hash_of(self._sources())
        budget = budget_of(self.inputs, job.fold_id.design).model_copy(update={"artifacts": None})
        # a study of one label keeps the keys that its fits have always had
        unset = set() if self.inputs.config.labels else {"shared_by_labels"}
        known = budget.model_dump(mode="json", exclude=unset)
        settings = {
            "row": job.method, "method": named, "budget": known, "seed": job.seed,
            "fold": job.fold_id.fold, "resample": job.fold_id.resample,
        }  # fmt: skip
        return hashes, settings, f"{CODE_TAG}/{named.method}-{info.version}"

    def fit(self, job: FitJob) -> Artifact:
        """Fit and score one job, unless that was done before.

        Raises:
            CannotFit: these cases do not allow it.
            NoScore: it scored no case.
        """
        cases = self.cases(job.fold_id)
        if "test" not in cases.scored or not len(cases.stages[-1].train):
            raise BadInput("no case is held out, or none is left to train on, once unreadable exams are gone.")
        data = self.data(job)
        info = self.inputs.infos[job.method]
        hashes, settings, tag = self.identity(job)
        method = method_of(self.inputs, job.method, self._sources(), job.fold_id.design)
        done: list[Fitted] = []

        def build(work: Path) -> None:
            external = job.fold_id.design in self.inputs.externals
            with measured() as cost:
                table, unscored, fitted = score_fit(method, data, cases.scored, job, independent=external)
            done.append(fitted)
            summary = getattr(fitted, "fit_summary", None)
            write_text(work / SCORES, table.to_csv(index=False))
            write_json(
                work / RECORD,
                {
                    "method": job.method, **cost.record(), "unscored": unscored,
                    "shared_seconds": 0.0 if summary is None else round(summary.shared_seconds, 3),
                    "patients_seen": _seen(data, cases.teacher if info.uses_ct else None),
                    "fit": None if summary is None else summary.record(),
                },
            )  # fmt: skip

        made = artifact("fit", hashes, settings, tag, build, self.inputs.artifacts)
        where = job.fold_id
        folds = [(resample, fold) for design, resample, fold in self.inputs.folds if design == where.design]
        if keeps(self.inputs.config, info, (where.resample, where.fold), folds):
            place = {"design": where.design, "resample": where.resample, "fold": where.fold, "seed": job.seed}
            keep_model(self.inputs, place | {"name": job.method}, method, data, made.key, done[0] if done else None)
        return made

    def _sources(self) -> dict[str, str]:
        cohorts = [self.inputs.cohort, *(e.cohort for e in self.inputs.externals.values())]
        found: dict[str, str] = {}
        for exams in (c.exams for c in cohorts if "source" in c.exams.columns):
            found |= zip(exams["exam_id"], exams["source"].astype(object).fillna("").astype(str), strict=True)
        return found


def named_method(inputs: StudyInputs, name: str) -> MethodConfig:
    """Return the registered method and the options behind a name of the study."""
    return inputs.config.methods.get(name, MethodConfig(method=name))


def budget_of(inputs: StudyInputs, design: str) -> Budget:
    """Return the budget that every method of a design is given."""
    config, chosen = inputs.config, inputs.config.prior
    stages = (chosen.pretrain, chosen.training) if chosen.pretrain is not None else (chosen.training,)
    return Budget(
        fit=config.fit, settings="given" if "fit" in config.model_fields_set else "auto",
        balance=config.balance_of(inputs.design(design)),
        augment=config.augment,
        stages=stages, artifacts=inputs.artifacts,
        samples=chosen.samples, sampler=chosen.sampler, steps=chosen.steps,
        shared_by_labels=bool(config.labels),
    )  # fmt: skip


def method_of(inputs: StudyInputs, name: str, sources: Mapping[str, str], design: str) -> Method:
    """Return a method of a design, with the budget that all its methods share."""
    named = named_method(inputs, name)
    if named.method == SOURCE_ONLY:
        return SourceOnly(sources)
    return build_method(named.method, budget_of(inputs, design), **named.options)


def score_fit(
    method: Method, data: FitData, scored: Mapping[str, Cases], job: FitJob, independent: bool = False
) -> tuple[pd.DataFrame, list[dict[str, str]], Fitted]:
    """Fit one method and score the cases.

    CT is taken away from the training data of a method that does not declare ``uses_ct``, and from the cases to score
    of one that does not declare ``needs_ct``.

    Args:
        method: what to fit.
        data: what it may learn from.
        scored: split name (``"val"``, ``"test"``) → cases to score.
        job: names, numbers and the seed written to the table.
        independent: compute every score to the last digit independently of the cases scored with it (see
            ``students.base.score_in_blocks``): whoever adds X-rays to an external cohort changes no other score.

    Returns:
        A long predictions table with ``resample``; one record (``exam_id``, ``reason``) for every case it gave no
        finite score; and the fitted method.

    Raises:
        CannotFit: these cases do not allow it.
        NoScore: no held-out case has a finite score, or their number is wrong.
    """
    fitted = method.fit(training_data(method, data), job.seed)
    frames, unscored = [], []
    for split, cases in scored.items():
        visible = visible_cases(method, cases)
        scores = (
            score_in_blocks(fitted, visible) if independent else np.asarray(fitted.scores(visible), dtype=np.float64)
        )
        if scores.shape != (len(cases),):
            raise NoScore(f"{job.method} returned {scores.shape} scores for {len(cases)} {split} cases")
        scores, cases = scores[cases.known], cases.with_label()
        usable = np.isfinite(scores)
        if split == "test" and not usable.any():
            raise NoScore(f"{job.method} gave none of the {len(cases)} held-out cases a finite score")
        unscored += [
            {"exam_id": exam, "reason": f"{split} case without a finite score"}
            for exam, ok in zip(cases.exam_ids, usable, strict=True)
            if not ok
        ]
        frame = pd.DataFrame(
            {
                "exam_id": list(cases.exam_ids), "patient_id": list(cases.patient_ids),
                "label": cases.label.astype(int), "method": job.method, "score": scores, "fold": job.fold_id.fold,
                "seed": job.seed, "split": split, "resample": job.fold_id.resample,
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


def train_teacher(inputs: StudyInputs, data: TeacherData, seed: int, design: str) -> tuple[Any, str, str]:
    """Train the CT head of one fold on the CTs' own labels, or reuse it.

    Returns:
        The head, or None with the reason; and the key of its artifact (``"none"`` without a head).
    """
    from embedprior.teachers.teacher import OneClass, TeacherHead, train_head

    config = inputs.config
    settings, balance = config.teacher or config.fit, config.balance_of(inputs.design(design))
    stream = inputs.teacher_stream
    own_seed = seed_for(seed, stream) if stream else seed

    def build(work: Path) -> None:
        with measured() as cost:
            head = train_head(
                data.train, data.train_label, data.val, data.val_label, settings, own_seed, balance=balance
            )
            head.save(work)
        write_json(work / RECORD, {"method": TEACHER, **cost.record(), "patients_seen": data.patients})

    hashes = {
        "embeddings": hash_array(data.train), "labels": hash_array(data.train_label), "val": hash_array(data.val),
        "val labels": hash_array(data.val_label), "patients": hash_of(data.patients),
    }  # fmt: skip
    try:
        made = artifact(
            "teacher",
            hashes,
            {"head": settings, "seed": own_seed, "balance": balance},
            TEACHER_TAG,
            build,
            inputs.artifacts,
        )
    except OneClass as error:
        return None, str(error), "none"
    return TeacherHead.load(made.path), "", made.key


def _digest(stages: tuple[Stage, ...], scored: Mapping[str, Cases]) -> str:
    named = [("stage", part, cases) for s in stages for part, cases in (("train", s.train), ("val", s.val))]
    named += [("scored", part, cases) for part, cases in scored.items()]
    return hash_of([[where, part, _digest_cases(cases)] for where, part, cases in named])


def _digest_cases(cases: Cases) -> list[Any]:
    arrays = [cases.label, cases.cxr, cases.ct, cases.ct_label, cases.tokens, cases.pixels, cases.ct_mirrored]
    arrays += [] if cases.ct_pixels is None else [cases.ct_pixels]
    return [
        cases.source, list(cases.exam_ids), list(cases.patient_ids),
        [None if a is None else hash_array(np.asarray(a)) for a in arrays],
    ]  # fmt: skip


def _seen(data: FitData, teacher: TeacherData | None) -> dict[str, list[str]]:
    seen = {part: {p for s in data.stages for p in getattr(s, part).patient_ids} for part in ("train", "val")}
    if teacher is not None:
        seen = {part: ids | set(teacher.patients[part]) for part, ids in seen.items()}
    return {part: sorted(ids) for part, ids in seen.items()}
