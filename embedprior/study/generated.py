"""What a study's prior generates for held-out radiographs, at the stages of its training: for maps and neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from embedprior.runs import one_thread, seed_for
from embedprior.students.base import Cases
from embedprior.study.executor import Outcome
from embedprior.study.inputs import StudyInputs
from embedprior.study.runner import FoldRunner, Study, fit_jobs, method_of

MAX_CASES = 300
"""Held-out cases of the fold that are generated for, at most."""
MAX_REAL = 5000
"""Real CTs among which the nearest are looked for, at most, besides those of the cases."""
AFTER = {1: ("after training",), 2: ("after DRR–CT pairs", "after radiograph–CT pairs")}


@dataclass(frozen=True)
class Generated:
    """Embeddings of one fold's held-out cases.

    Attributes:
        design: its name in tables.
        method: the prior.
        cases: with their CT.
        stages: stage of the training → generated CT embeddings, a mean over samples; the last is the finished prior.
        real_ids: CTs of the cache.
        real: their embeddings.
    """

    design: str
    method: str
    cases: Cases
    stages: dict[str, Float[np.ndarray, "cases ct_dim"]]
    real_ids: list[str]
    real: Float[np.ndarray, "exams ct_dim"]


def generated_cases(study: Study, inputs: Sequence[StudyInputs], outcomes: Sequence[Outcome]) -> Generated | None:
    """Return what the first fitted prior of a study generates for the held-out cases of its fold.

    Priors of a finished study are artifacts: they are read, not trained again. None without a prior, or without CT.
    """
    done = {outcome.job for outcome in outcomes if outcome.path is not None}
    for job in fit_jobs(study):
        own = inputs[job.fold_id.variant]
        info = own.infos[job.method]
        if job not in done or info.budget_part != "prior" or info.role == "control" or own.caches.ct is None:
            continue
        runner = FoldRunner(own)
        held_out = runner.cases(job.fold_id).scored["test"].with_label()
        if held_out.ct is None:
            continue
        if len(held_out) > MAX_CASES:
            rng = np.random.default_rng(seed_for(job.seed, "shown cases"))
            held_out = held_out.take(np.sort(rng.choice(len(held_out), MAX_CASES, replace=False)))
        data = runner.data(job)
        drawn = []
        with one_thread():
            method = method_of(own, job.method, {}, job.fold_id.design)
            count = len(data.stages) if getattr(method, "pretraining", True) else 1
            for number in range(1, count + 1):
                part = data if number == count else replace(data, stages=data.stages[:number])
                fitted = method.fit(part, job.seed)
                # a prior that has seen DRRs alone takes a radiograph for one
                shown = replace(held_out.without_ct(), source=part.target.train.source)
                drawn.append(fitted.generate(shown).mean(axis=1))  # type: ignore[attr-defined]
        ids = list(own.caches.ct.ids)
        if len(ids) > MAX_REAL:
            paired = set(
                own.targets[job.fold_id.design].set_index("exam_id").loc[list(held_out.exam_ids), "ct_exam_id"]
            )
            rng = np.random.default_rng(seed_for(job.seed, "shown CTs"))
            chosen = paired | {ids[i] for i in rng.choice(len(ids), MAX_REAL, replace=False)}
            ids = [i for i in ids if i in chosen]
        names = AFTER[count] if count in AFTER else tuple(f"after stage {i}" for i in range(1, count + 1))
        return Generated(
            job.key, job.method, held_out, dict(zip(names, drawn, strict=True)), ids, own.caches.ct.take(ids)
        )
    return None
