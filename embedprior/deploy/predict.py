"""Scores of new radiographs from a bundle: probability, decision, and how unlike the training pictures they are."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from embedprior.cache.reader import EmbeddingCache
from embedprior.deploy.bundle import CONFIG, MODELS, encoder_label, verify
from embedprior.deploy.files import COLUMNS, Picture, image_files, read_ahead
from embedprior.deploy.hub import PREFIX, download
from embedprior.deploy.operating import Calibration
from embedprior.encoders.base import Encoder, differing_field, encoder_key
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput
from embedprior.runs import progress, read_json
from embedprior.students.reference import Reference
from embedprior.students.storage import FittedMethod, load_fitted

FAR = 99.0
"""Per cent of held-out embeddings that must lie nearer before a picture is called far from all of them."""
BLOCK, GPU_BLOCK = 4, 32
"""Pictures that go through the encoder and the models together, always: on a CPU, and on an accelerator."""


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        path: its folder.
        config: content of ``config.json``: method, label, encoder, operating point, the study's evidence.
        models: the fitted models; a score is their mean.
        references: of each model, the embeddings it was fitted on.
        bundle_id: sha256 of its manifest; it stands beside every prediction.
        encoder_options: over those of the study: ``weights``, ``device``.

    Example: see ``load_bundle``.
    """

    path: Path
    config: dict[str, Any]
    models: tuple[FittedMethod, ...]
    references: tuple[Reference, ...]
    bundle_id: str
    encoder_options: dict[str, Any] = field(default_factory=dict)

    @property
    def threshold(self) -> float | None:
        """A probability of at least this is called positive; None where the study has no operating point."""
        value = self.config["operating_point"]["threshold"]
        return None if value is None else float(value)

    @property
    def calibration(self) -> Calibration | None:
        """What turns a score into a probability; None where there were too few validation patients."""
        found = self.config["calibration"]
        return None if found is None else Calibration(**found)

    def predict(
        self, images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | EmbeddingCache | ArrayLike,
        batch_size: int = 64, workers: int = 0,
    ) -> pd.DataFrame:  # fmt: skip
        """Score radiographs.

        Args:
            images: a path (DICOM, PNG, JPEG, or a folder of them), a list of paths, an open cache of embeddings, or
                embeddings (N, D).
            batch_size: pictures that are read together, rounded up to whole blocks (4 on a CPU); no score changes.
            workers: processes that read ahead; 0 = this one. They change no score.

        Returns:
            One row an image: ``image`` (its path, exam id or row), ``score`` (the mean over the models, as the study
            computes it), ``probability`` (the score after the bundle's calibration; the score itself where there is
            none), ``low`` and ``high`` (2.5 and 97.5 % of that probability over the samples of a prior, else over the
            models; empty where these do not differ), ``decision`` (1 or 0: whether the score reaches the operating
            point; empty without one), ``distance_percentile`` (share of held-out embeddings that lie nearer),
            ``warnings``, ``reason`` (why an image has no score) and ``bundle`` (the bundle's id). An image that can't
            be read has a reason, no score.

        Raises:
            BadInput: embeddings of another encoder or length, an encoder that can't be made, or no image.

        Example: see ``load_bundle``.
        """
        if isinstance(images, EmbeddingCache):
            found = differing_field(images.key, self.config["encoder"]["key"])
            if found is not None:
                name, theirs, ours = found
                raise BadInput(
                    f"{images.path.name} was made with another {name}: {theirs!r:.80}, not {ours!r:.80}. "
                    f"This bundle reads embeddings of {encoder_label(self.config)}."
                )
            return self._scored(list(images.ids), images.matrix, [""] * len(images.ids))
        if isinstance(images, (str, os.PathLike)):
            images = [images]
        if isinstance(images, Sequence) and images and all(isinstance(p, (str, os.PathLike)) for p in images):
            parts = list(self.predict_files(image_files([str(p) for p in images]), batch_size, workers))
            return pd.concat(parts, ignore_index=True)
        rows = self._embeddings(images)
        return self._scored([str(n) for n in range(len(rows))], rows, [""] * len(rows))

    def predict_files(self, paths: Sequence[Path], batch_size: int = 64, workers: int = 0) -> Iterator[pd.DataFrame]:
        """Yield the table of ``predict`` batch after batch, so that a caller can write as it goes.

        Args:
            paths: of pictures; folders are not searched (``image_files`` does).
            batch_size, workers: see ``predict``.
        """
        if batch_size < 1:
            raise BadInput(f"batch_size is {batch_size}. Allowed: 1 or more.")
        encoder, size = self.encoder, -(-batch_size // self.block) * self.block
        batches = [list(paths[start : start + size]) for start in range(0, len(paths), size)]
        for batch in progress(read_ahead(encoder, batches, workers), "predict", total=len(batches)):
            yield self._batch(batch, encoder)

    def _batch(self, pictures: Sequence[Picture], encoder: Encoder) -> pd.DataFrame:
        """Return one row a picture, in their order."""
        rows = pd.DataFrame(
            {
                "image": [picture.name for picture in pictures], "warnings": "",
                "reason": [picture.reason for picture in pictures], "bundle": self.bundle_id[:12],
            }
        )  # fmt: skip
        read = [n for n, picture in enumerate(pictures) if picture.array is not None]
        if read:
            embedded = _embed(encoder, self.block, [array for p in pictures if (array := p.array) is not None])
            own = [pictures[n] for n in read]
            scored = self._scored([p.name for p in own], embedded, [p.warnings for p in own])
            rows = pd.concat([scored.set_axis(read), rows.drop(index=read)]).sort_index()
        return rows.reindex(columns=COLUMNS).astype({"decision": "Int64"})

    def _scored(self, names: Sequence[str], rows: NDArray[Any], warnings: Sequence[str]) -> pd.DataFrame:
        mean, spread = self._scores_of(rows)
        percentile = np.mean([reference.percentile(rows) for reference in self.references], axis=0)
        # one model without samples, or a deterministic method with several seeds, says nothing of a spread
        some = np.ptp(spread, axis=0) > 0
        low, high = np.where(some, np.quantile(spread, [0.025, 0.975], axis=0), np.nan)
        calibrated = [each if self.calibration is None else self.calibration.apply(each) for each in (mean, low, high)]
        far = "far from the training images"
        noted = [
            "; ".join(filter(None, (w, far if p > FAR else ""))) for w, p in zip(warnings, percentile, strict=True)
        ]
        decided = [pd.NA] * len(rows) if self.threshold is None else (mean >= self.threshold).astype(int)
        return pd.DataFrame(
            {
                "image": list(names), "score": mean,
                **dict(zip(("probability", "low", "high"), calibrated, strict=True)),
                "decision": pd.array(decided, dtype="Int64"), "distance_percentile": percentile,
                "warnings": noted, "reason": "", "bundle": self.bundle_id[:12],
            }
        )  # fmt: skip

    def _scores_of(self, rows: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the mean score over the models, and what it is the mean of: scores of samples, or of models.

        In blocks of one size, the last filled up: a matrix product of another size may round otherwise, and a score
        must not depend on the images beside it.
        """
        scores, spreads = [], []
        for start in range(0, len(rows), self.block):
            block = rows[start : start + self.block]
            filled = np.concatenate([block, np.repeat(block[-1:], self.block - len(block), axis=0)])
            each, drawn = [], []
            for model in self.models:
                samples = model.sample_scores(filled)
                each.append(model.scores(filled) if samples is None else samples.mean(axis=1))
                drawn += [each[-1]] if samples is None else list(samples.T)
            scores.append(np.mean(each, axis=0)[: len(block)])
            spreads.append(np.stack(drawn)[:, : len(block)])
        return np.concatenate(scores), np.concatenate(spreads, axis=1)

    def _embeddings(self, images: Any) -> NDArray[Any]:
        width = int(self.config["cxr_dim"])
        try:
            rows = np.asarray(images, dtype=np.float32)
        except (TypeError, ValueError):
            raise BadInput(
                f"predict was given a {type(images).__name__}. Allowed: paths, a cache, or embeddings (N, {width})."
            ) from None
        if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
            raise BadInput(
                f"predict was given an array of shape {rows.shape}. Allowed: embeddings (N, {width}) of "
                f"{encoder_label(self.config)}, or paths of pictures."
            )
        return rows

    @property
    def block(self) -> int:
        """How many pictures are computed together."""
        return BLOCK if str(self.encoder_options.get("device", "cpu")) == "cpu" else GPU_BLOCK

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder of the study, made when it is first used; its weights are those in the bundle where it has them.

        Raises:
            BadInput: it can't be made, or is another one; the field that differs is named.
        """
        stored = self.config["encoder"]
        key, included = stored["key"], stored["weights"]
        options = {**stored["options"], **self.encoder_options}
        name = str(options.pop("encoder", None) or stored["name"] or key["encoder"])
        own = included is not None and "weights" not in options
        if own:
            options["weights"] = self.path / included["path"]
        encoder = create_encoder(name, **options)
        # the file in the bundle holds the tensors of the one that the key names, in a format of another checksum
        wanted = key | {"weights_sha256": included["sha256"]} if own else key
        found = differing_field(encoder_key(encoder.spec), wanted)
        if found is not None:
            field, theirs, ours = found
            raise BadInput(
                f"encoder '{name}' here has another {field}: {theirs!r:.80}, not {ours!r:.80} as in the "
                "study. Next: give the study's own (--weights FILE; from Python: load_bundle(..., weights=FILE))"
            )
        return encoder


def load_bundle(path: Path | str, **encoder_options: Any) -> Bundle:
    """Return a bundle, every byte of it verified; no code in it is run, and nothing in it is a pickle.

    Args:
        path: folder of ``embedprior bundle``, or ``"hf:OWNER/NAME"`` on the Hugging Face hub.
        encoder_options: of the X-ray encoder, where the study's own do not hold here: ``weights``, ``device``.

    Raises:
        BadInput: no bundle, or one that was changed, lacks a file, or holds one too many.

    Source: ``docs/deploy.md``.

    Example:
        >>> import embedprior
        >>> import numpy as np
        >>> import pandas as pd
        >>> from embedprior.cache import write_cache
        >>> from embedprior.deploy.bundle import build_bundle
        >>> from embedprior.encoders.base import EncoderSpec
        >>> rng, n = np.random.default_rng(0), 60
        >>> names, label = [f"x{i}" for i in range(n)], np.arange(n) % 2
        >>> spec = EncoderSpec(name="mine", modality="CXR", dim=4, source="simulated", weights_sha256="none",
        ...                    licence="none", profile={}, pooling="none")
        >>> rows = rng.normal(size=(n, 4)).astype("float32") + label[:, None]
        >>> cache = write_cache("cohort/caches", spec, names, names, rows)
        >>> pd.DataFrame({"exam_id": names, "patient_id": names, "modality": "CXR", "path": "",
        ...               "label:effusion": label}).to_csv("cohort/exams.csv", index=False)
        >>> design = {"name": "all", "cases": "cxr", "folds": 3, "validation": True,
        ...           "methods": ["constant", "logistic"], "reference": "constant"}
        >>> config = {"title": "Effusion", "label": "effusion", "caches": {"cxr": "caches"}, "keep": "all",
        ...           "designs": [design]}
        >>> study = embedprior.run_study(config, "cohort", "results")
        >>> bundle = embedprior.load_bundle(build_bundle("results", "logistic", "bundle"))
        >>> len(bundle.models)                                     # 3 folds, 3 seeds
        9
        >>> table = bundle.predict(np.array([[-1.0] * 4, [2.0] * 4]))
        >>> table["decision"].tolist()
        [0, 1]
    """
    folder = download(str(path)) if str(path).startswith(PREFIX) else Path(path)
    bundle_id = verify(folder)
    config = read_json(folder / CONFIG)
    folders = [folder / MODELS / str(n) for n in range(int(config["models"]))]
    models = tuple(load_fitted(one) for one in folders)
    if models[0].about.get("inputs", "embedding") != "embedding":
        raise BadInput(f"the bundle {folder} reads {models[0].about['inputs']}. Allowed: embedding.")
    references = tuple(Reference.load(one) for one in folders)
    return Bundle(folder, config, models, references, bundle_id, encoder_options)


def _embed(encoder: Encoder, size: int, pictures: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Embed pictures in blocks of one fixed size, the last filled up, so that no row depends on its neighbours.

    A matrix product of another batch size may take another kernel, with other digits from the sixth on.
    """
    rows: dict[int, NDArray[Any]] = {}
    places: dict[tuple[Any, ...], list[int]] = {}
    for n, picture in enumerate(pictures):
        places.setdefault((picture.shape, picture.dtype.str), []).append(n)
    for own in places.values():
        for start in range(0, len(own), size):
            block = own[start : start + size]
            filled = [pictures[n] for n in block] + [pictures[block[-1]]] * (size - len(block))
            rows |= dict(zip(block, np.asarray(encoder.embed(np.stack(filled))), strict=False))
    return np.stack([rows[n] for n in range(len(pictures))])
