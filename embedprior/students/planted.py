"""Cohorts of embeddings whose truth is declared: to try a method before believing it, and to count its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from embedprior.config import Config
from embedprior.nn.config import FitConfig
from embedprior.nn.network import new_mlp
from embedprior.runs import seed_for
from embedprior.students.base import Cases, FitData, Method, Stage
from embedprior.students.config import Budget
from embedprior.students.registry import build_method, methods
from embedprior.teachers.teacher import TeacherHead, train_head


class PlantedConfig(Config):
    """A cohort.

    Attributes:
        ct: what the CT embedding is. ``label``: it carries the label, the radiograph shows it faintly. ``copy``: the
            label comes from what the radiograph shows, and the CT is the radiograph's embedding with noise on it; it
            carries nothing more.
        ct_only: labelled CTs of other patients; they train the teacher head. 0: the labelled pairs do.
        labelled: pairs whose radiograph has a label.
        unlabelled: pairs without.
        val: pairs that choose checkpoints, labelled.
        held_out: pairs to score.
        cxr_dim, ct_dim: lengths of the embeddings (a ``copy`` is as long as the radiograph's).
        anatomy: hidden directions beside the finding, that both show.
        signal: spread of the finding in the radiograph's embedding, by noise.
        sharpness: of the label: p(y = 1) = sigmoid(sharpness · s).
    """

    ct: Literal["label", "copy"] = "label"
    ct_only: int = 600
    labelled: int = 40
    unlabelled: int = 1500
    val: int = 100
    held_out: int = 1500
    cxr_dim: int = 128
    ct_dim: int = 8
    anatomy: int = 2
    signal: float = 1.0
    sharpness: float = 4.0


@dataclass(frozen=True)
class PlantedCohort:
    """A cohort and its truth.

    Attributes:
        data: what methods may learn from.
        held_out: cases to score, CT included (methods see them without).
        best: for every held-out case, p(y = 1 | radiograph) up to a monotone map: no score ranks better on average.
    """

    data: FitData
    held_out: Cases
    best: Float[np.ndarray, " cases"]


def planted(config: PlantedConfig, seed: int, teacher: FitConfig) -> PlantedCohort:
    """Draw a cohort and train its teacher head.

    s ~ N(0, 1), anatomy a ~ N(0, I). z_CXR mixes (signal · s, a) by fixed random directions, plus unit noise. With
    ``ct: label``, z_CT mixes (3 s, a) likewise and y is drawn from s. Otherwise y is drawn from ŝ, what the radiograph
    shows of s: given the radiograph, CT and label are independent.

    Args:
        config: sizes and truth.
        seed: of everything.
        teacher: network and budget of the teacher head.
    """
    rng = np.random.default_rng(seed_for(seed, "planted"))
    hidden, copied = 1 + config.anatomy, config.ct == "copy"
    to_cxr = _directions(rng, hidden, config.cxr_dim)
    to_ct = _directions(rng, config.cxr_dim if copied else hidden, config.cxr_dim if copied else config.ct_dim)

    def draw(count: int, prefix: str) -> tuple[Cases, Float[np.ndarray, " cases"]]:
        finding, anatomy = rng.normal(size=count), rng.normal(size=(count, config.anatomy))
        cxr = np.column_stack([config.signal * finding, anatomy]) @ to_cxr + rng.normal(size=(count, config.cxr_dim))
        seen = (cxr @ to_cxr.T)[:, 0]
        source = finding if config.ct == "label" else seen / np.sqrt(config.signal**2 + 1)
        shown = cxr if copied else np.column_stack([3 * finding, anatomy])
        ct = shown @ to_ct + rng.normal(size=(count, to_ct.shape[1]))
        label = (rng.random(count) < expit(config.sharpness * source)).astype(np.float64)
        names = [f"{prefix}{i}" for i in range(count)]
        cases = Cases(names, names, label, cxr.astype(np.float32), ct.astype(np.float32), label.copy())
        return cases, seen

    own, _ = draw(config.ct_only, "ct-")
    train, _ = draw(config.labelled + config.unlabelled, "train-")
    val, _ = draw(config.val, "val-")
    held_out, best = draw(config.held_out, "test-")
    train.label[config.labelled :] = np.nan
    train.ct_label[config.labelled :] = np.nan
    taught = own if config.ct_only else train.take(range(config.labelled))
    cut = len(taught) // 5
    ct, label = taught.paired_ct(), taught.label
    head = train_head(ct[cut:], label[cut:], ct[:cut], label[:cut], teacher, seed)
    return PlantedCohort(FitData((Stage(train, val),), head), held_out, best)


def _directions(rng: np.random.Generator, hidden: int, dim: int) -> Float[np.ndarray, "hidden dim"]:
    return np.asarray(np.linalg.qr(rng.normal(size=(dim, hidden)))[0].T)


@runtime_checkable
class Counted(Protocol):
    """A method that says what it would train."""

    def parameters(self, data: FitData) -> tuple[int, int]:
        """Return (trainable, total): total counts the frozen ones that it reads, too."""


def counted(method: Method, cxr_dim: int, ct_dim: int, pairs: int, budget: Budget) -> tuple[int, int] | None:
    """Return (trainable, total) parameters, or None for a method that can't say.

    Args:
        method: with its budget.
        cxr_dim, ct_dim: lengths of the embeddings.
        pairs: training pairs; kernel ridge has a coefficient for each.
        budget: ``fit`` sizes the teacher head.
    """
    if not isinstance(method, Counted):
        return None
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(pairs)]
    label = (np.arange(pairs) % 2).astype(np.float64)
    cxr, ct = (rng.normal(size=(pairs, dim)).astype(np.float32) for dim in (cxr_dim, ct_dim))
    blank = np.zeros((pairs, 16, 16), dtype=np.uint8)  # networks of pictures have the same parameters at any size
    train = Cases(names, names, label, cxr, ct, label, pixels=blank, ct_pixels=blank)
    head = TeacherHead(new_mlp(ct, 1, budget.fit, 0), budget.fit)
    return method.parameters(FitData((Stage(train, train.take([])),), head))


def method_records(budget: Budget, cxr_dim: int, ct_dim: int, pairs: int) -> list[dict[str, Any]]:
    """Return one record for each registered method, with its parameters (None where it can't say).

    Args:
        budget: shared by all methods.
        cxr_dim, ct_dim: lengths of the embeddings.
        pairs: training pairs.
    """
    records = []
    for name, info in methods().items():
        trainable, total = counted(build_method(name, budget), cxr_dim, ct_dim, pairs, budget) or (None, None)
        records.append(
            {
                "name": name, "role": info.role, "summary": info.summary, "source": info.source,
                "inputs": list(info.inputs), "needs_ct": info.needs_ct, "uses_ct": info.uses_ct,
                "needs_teacher": info.needs_teacher, "reconstruction": info.reconstruction,
                "trainable": trainable, "total": total,
            }
        )  # fmt: skip
    return records
