"""Zero-shot scores: is a radiograph nearer to the prompts of a finding than to those of its absence?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field
from scipy.special import expit

from embedprior.alignment.model import Alignment
from embedprior.cache.embedding import embed
from embedprior.config import Config
from embedprior.encoders.base import Encoder, encoder_key
from embedprior.errors import BadInput, nearest
from embedprior.evidence.evaluate import evaluation, judged
from embedprior.evidence.retrieval import unit_rows
from embedprior.runs import hash_of
from embedprior.transfer.cases import MultiCases


class PromptPair(Config):
    """Texts of one label.

    Attributes:
        positive: that say the finding is there.
        negative: that say it is not.
    """

    positive: tuple[str, ...] = Field(min_length=1)
    negative: tuple[str, ...] = Field(min_length=1)


class Prompts(Config):
    """Prompts of several labels.

    Attributes:
        template: texts of labels that ``labels`` does not name; ``{}`` is the label in lower case.
        labels: label → its texts.
    """

    template: PromptPair | None = None
    labels: dict[str, PromptPair] = Field(default_factory=dict)

    def of(self, label: str) -> PromptPair:
        """Return the texts of a label.

        Raises:
            BadInput: neither the label nor a template is there.
        """
        if label in self.labels:
            return self.labels[label]
        if self.template is None:
            raise BadInput(
                f"no prompts for label '{label}' and no template. Allowed: {', '.join(self.labels)}."
                f"{nearest(label, self.labels)}"
            )
        name = label.lower().replace("_", " ")
        texts = {side: tuple(t.replace("{}", name) for t in getattr(self.template, side)) for side in SIDES}
        return PromptPair(**texts)


SIDES = ("positive", "negative")
PromptVectors = Mapping[str, tuple[Float[np.ndarray, " dim"], Float[np.ndarray, " dim"]]]
"""Label → unit vector of its positive and of its negative prompts."""


@dataclass(frozen=True)
class ZeroShotResult:
    """Scores of every system on every label, and what they show; see ``probes.ProbeResult``."""

    predictions: pd.DataFrame
    evidence: dict[str, Any]
    skipped: list[dict[str, str]]


def prompt_vectors(prompts: Prompts, labels: Sequence[str], encoder: Encoder, alignment: Alignment) -> PromptVectors:
    """Embed the prompts with the reports' encoder, project them, and average those of one side (then length 1).

    Averaging unit vectors of several texts is CLIP's prompt ensembling (Radford et al. 2021).

    Args:
        prompts: texts.
        labels: whose vectors are wanted.
        encoder: the one the alignment's reports were embedded with.
        alignment: with a side ``report``.

    Raises:
        BadInput: a label without prompts, an alignment without reports, or another encoder.
    """
    if "report" not in alignment.caches:
        raise BadInput("this alignment was trained without reports, so prompts have no place in its space.")
    if alignment.caches["report"] != hash_of(encoder_key(encoder.spec)):
        raise BadInput(
            f"'{encoder.spec.name}' is not the encoder that the alignment's reports were embedded with (another cache "
            "key). Next: give the same encoder with the same options"
        )
    found = {}
    for label in labels:
        pair = prompts.of(label)
        found[label] = tuple(_vector(getattr(pair, side), encoder, alignment) for side in SIDES)
    return found  # type: ignore[return-value]


def _vector(texts: Sequence[str], encoder: Encoder, alignment: Alignment) -> Float[np.ndarray, " dim"]:
    with tempfile.TemporaryDirectory() as folder:
        for n, text in enumerate(texts):
            (Path(folder) / f"{n}.txt").write_text(text, encoding="utf-8")
        rows = embed([f"{n}.txt" for n in range(len(texts))], encoder, root=folder)
    mean = alignment.embed("report", np.asarray(rows, dtype=np.float32)).mean(axis=0, keepdims=True)
    return np.asarray(unit_rows(mean, "prompts")[0])


def zero_shot_scores(
    embeddings: Float[np.ndarray, "cases dim"], vectors: PromptVectors, temperature: float
) -> Float[np.ndarray, "cases labels"]:
    """Return the softmax share of the positive prompt: sigmoid((x · p − x · n) / temperature).

    Args:
        embeddings: of radiographs in the common space.
        vectors: see ``prompt_vectors``.
        temperature: of the alignment; it changes probabilities, not their order.

    Example:
        >>> vectors = {"effusion": (np.array([1.0, 0.0]), np.array([0.0, 1.0]))}
        >>> zero_shot_scores(np.array([[1.0, 0.0], [1.0, 1.0]]), vectors, 1.0).round(3).tolist()
        [[0.731], [0.5]]
    """
    rows = unit_rows(embeddings, "radiographs")
    return np.stack([expit(rows @ (positive - negative) / temperature) for positive, negative in vectors.values()], 1)


def zero_shot(
    cases: MultiCases, vectors: PromptVectors, temperature: float, *, oracles: Sequence[str] = (), bootstrap: int = 0
) -> ZeroShotResult:
    """Score part ``test`` by prompts alone, and compare every system with the first.

    Args:
        cases: whose systems lie in the space of the prompts.
        vectors: of the labels of ``cases``.
        temperature: see ``zero_shot_scores``.
        oracles: systems that read CT.
        bootstrap: patient replicates.

    Raises:
        BadInput: a system of another length than the prompts, or no label with both classes among the test cases.
    """
    rows = cases.rows("test")
    dim = len(next(iter(vectors.values()))[0])
    tables, skipped = list[pd.DataFrame](), list[dict[str, str]]()
    for name, values in cases.systems.items():
        if values.shape[1] != dim:
            raise BadInput(f"system '{name}' has {values.shape[1]} numbers, the prompts {dim}: they lie in different "
                           "spaces. Next: embedprior align")  # fmt: skip
    for j, label in enumerate(cases.names):
        known = rows[~np.isnan(cases.labels[rows, j])]
        truth = cases.labels[known, j]
        if len(set(truth)) < 2:
            reason = f"the {len(truth)} labelled test cases hold fewer than two classes"
            skipped.append({"label": label, "reason": reason})
            continue
        for name, values in cases.systems.items():
            score = zero_shot_scores(values[known], {label: vectors[label]}, temperature)[:, 0]
            tables.append(
                pd.DataFrame(
                    {"exam_id": [cases.exam_ids[i] for i in known], "patient_id": [cases.patient_ids[i] for i in known],
                     "label": truth.astype(int), "method": name, "score": score, "fold": 0, "seed": 0, "split": "test",
                     "label_name": label}
                )
            )  # fmt: skip
    if not tables:
        raise BadInput(f"no label can be scored: {skipped[0]['label']}: {skipped[0]['reason']}")
    table, first = pd.concat(tables), next(iter(cases.systems))
    shown = [name for name in cases.systems if name in oracles]
    (evidence,) = judged([evaluation(table, first, None, "patient", shown, bootstrap, patient_label="max")])
    return ZeroShotResult(table, evidence, skipped)
