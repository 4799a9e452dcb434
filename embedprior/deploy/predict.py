"""Scores of new radiographs from a bundle: probability, decision, and how unlike the training pictures they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from embedprior.cache.reader import EmbeddingCache
from embedprior.deploy.bundle import CONFIG, MODELS, encoder_label, verify
from embedprior.encoders.base import Encoder, differing_field, encoder_key
from embedprior.encoders.registry import create_encoder
from embedprior.errors import BadInput, EmbedpriorError, require_extra
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.radiographs import read_radiograph
from embedprior.imaging.readers import discover
from embedprior.runs import progress, read_json, write_text
from embedprior.students.reference import Reference
from embedprior.students.storage import FittedMethod, load_fitted
from embedprior.tables import read_table, spreadsheet_safe

COLUMNS = [
    "image", "probability", "low", "high", "decision", "distance_percentile", "warnings", "reason", "bundle",
]  # fmt: skip
FAR = 99.0
"""Per cent of held-out embeddings that must lie nearer before a picture is called far from all of them."""
HUB = "hf:"
BLOCK = 16
"""Pictures that go through the encoder together, always."""


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

    def predict(
        self, images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | EmbeddingCache | ArrayLike,
        batch_size: int = 64,
    ) -> pd.DataFrame:  # fmt: skip
        """Score radiographs.

        Args:
            images: a path (DICOM, PNG, JPEG, or a folder of them), a list of paths, an open cache of embeddings, or
                embeddings (N, D).
            batch_size: pictures that are read together, rounded up to whole blocks of 16. It changes no score.

        Returns:
            One row an image: ``image`` (its path, exam id or row), ``probability``, ``low`` and ``high`` (2.5 and
            97.5 % over the models; empty for one), ``decision`` (1 or 0 at the operating point; empty without one),
            ``distance_percentile`` (share of held-out embeddings that lie nearer), ``warnings``, ``reason`` (why an
            image has no score) and ``bundle`` (the bundle's id). An image that can't be read has a reason, no score.

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
            parts = list(self.predict_files(image_files([str(p) for p in images]), batch_size))
            return pd.concat(parts, ignore_index=True)
        rows = self._embeddings(images)
        return self._scored([str(n) for n in range(len(rows))], rows, [""] * len(rows))

    def predict_files(self, paths: Sequence[Path], batch_size: int = 64) -> Iterator[pd.DataFrame]:
        """Yield the table of ``predict`` batch after batch, so that a caller can write as it goes.

        Args:
            paths: of pictures; folders are not searched (``image_files`` does).
            batch_size: see ``predict``.
        """
        if batch_size < 1:
            raise BadInput(f"batch_size is {batch_size}. Allowed: 1 or more.")
        encoder, size = self._encoder(), -(-batch_size // BLOCK) * BLOCK
        starts = range(0, len(paths), size)
        for start in progress(starts, "predict", total=len(starts)):
            yield self._batch(paths[start : start + size], encoder)

    def _batch(self, paths: Sequence[Path], encoder: Encoder) -> pd.DataFrame:
        read: list[tuple[int, NDArray[Any]]] = []
        warnings, reasons = [""] * len(paths), [""] * len(paths)
        for n, path in enumerate(paths):
            try:
                radiograph, findings = read_radiograph(path)
                if radiograph.view == "LATERAL":
                    raise UnreadableExam("a lateral view by its header; the models have seen frontal ones (PA, AP)")
                warnings[n] = "; ".join(f.code for f in findings if f.severity == "warning")
                read.append((n, encoder.read(path.parent, path.name)))
            except EmbedpriorError:
                raise
            except Exception as error:  # one bad file of many must not stop the rest; its reason stands in its row
                reasons[n] = str(error) if isinstance(error, UnreadableExam) else f"damaged ({type(error).__name__})"
        table = pd.DataFrame({"image": [p.as_posix() for p in paths]})
        if read:
            embedded = _embed(encoder, [array for _, array in read])
            names = [paths[n].as_posix() for n, _ in read]
            table = table.merge(self._scored(names, embedded, [warnings[n] for n, _ in read]), on="image", how="left")
        table = table.reindex(columns=COLUMNS).astype({"warnings": object, "reason": object, "bundle": object})
        for n, reason in enumerate(reasons):
            if reason:
                table.loc[n, ["reason", "warnings", "bundle"]] = [reason, "", self.bundle_id[:12]]
        return table

    def _scored(self, names: Sequence[str], rows: NDArray[Any], warnings: Sequence[str]) -> pd.DataFrame:
        each = np.stack([model.scores(rows) for model in self.models])
        percentile = np.mean([reference.percentile(rows) for reference in self.references], axis=0)
        mean = each.mean(axis=0)
        several = len(each) > 1
        low, high = np.quantile(each, [0.025, 0.975], axis=0) if several else np.full((2, len(rows)), np.nan)
        far = "far from the training images"
        noted = [
            "; ".join(filter(None, (w, far if p > FAR else ""))) for w, p in zip(warnings, percentile, strict=True)
        ]
        decided = [pd.NA] * len(rows) if self.threshold is None else (mean >= self.threshold).astype(int)
        return pd.DataFrame(
            {
                "image": list(names), "probability": mean, "low": low, "high": high,
                "decision": pd.array(decided, dtype="Int64"), "distance_percentile": percentile,
                "warnings": noted, "reason": "", "bundle": self.bundle_id[:12],
            }
        )  # fmt: skip

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

    def _encoder(self) -> Encoder:
        key, stored = self.config["encoder"]["key"], self.config["encoder"]["options"] or {}
        encoder = create_encoder(str(key["encoder"]), **{**stored, **self.encoder_options})
        found = differing_field(encoder_key(encoder.spec), key)
        if found is not None:
            name, theirs, ours = found
            raise BadInput(
                f"encoder '{key['encoder']}' here has another {name}: {theirs!r:.80}, not {ours!r:.80} as in the "
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
    folder = _from_hub(str(path)) if str(path).startswith(HUB) else Path(path)
    bundle_id = verify(folder)
    config = read_json(folder / CONFIG)
    folders = [folder / MODELS / str(n) for n in range(int(config["models"]))]
    models = tuple(load_fitted(one) for one in folders)
    if models[0].about.get("inputs", "embedding") != "embedding":
        raise BadInput(f"the bundle {folder} reads {models[0].about['inputs']}. Allowed: embedding.")
    references = tuple(Reference.load(one) for one in folders)
    return Bundle(folder, config, models, references, bundle_id, encoder_options)


def _embed(encoder: Encoder, pictures: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Embed pictures in blocks of one fixed size, the last filled up, so that no row depends on its neighbours.

    A matrix product of another batch size may take another kernel, with other digits from the sixth on.
    """
    rows: dict[int, NDArray[Any]] = {}
    places: dict[tuple[Any, ...], list[int]] = {}
    for n, picture in enumerate(pictures):
        places.setdefault((picture.shape, picture.dtype.str), []).append(n)
    for own in places.values():
        for start in range(0, len(own), BLOCK):
            block = own[start : start + BLOCK]
            filled = [pictures[n] for n in block] + [pictures[block[-1]]] * (BLOCK - len(block))
            rows |= dict(zip(block, np.asarray(encoder.embed(np.stack(filled))), strict=False))
    return np.stack([rows[n] for n in range(len(pictures))])


def _from_hub(name: str) -> Path:
    hub = require_extra("huggingface_hub", "hub")
    return Path(hub.snapshot_download(name.removeprefix(HUB)))


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the radiographs: files as they are, folders searched.

    Raises:
        BadInput: a folder without a radiograph, or one that is not there.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = [one.path for one in discover(path).exams if one.kind == "radiograph"]
        if not found:
            raise BadInput(f"{path}: no radiograph in it. Allowed: DICOM, PNG or JPEG files.")
        yield from found


def image_files(paths: Iterable[Path | str]) -> list[Path]:
    """Return the radiographs: files as they are, folders searched; see ``Bundle.predict``."""
    return list(_files(Path(p) for p in paths))


def scored_before(table: Path, bundle: Bundle) -> dict[str, bool]:
    """Return the images a table of predictions holds already → whether they have no score.

    Raises:
        BadInput: it is no such table, or of another bundle.
    """
    if not table.is_file():
        return {}
    rows = read_table(table, ("image", "probability", "bundle"))
    others = sorted(set(rows["bundle"].astype(str)) - {bundle.bundle_id[:12]})
    if others:
        raise BadInput(f"{table} holds scores of another bundle ({others[0]}, not {bundle.bundle_id[:12]}). Next: give "
                       "another --out")  # fmt: skip
    return {str(image): bool(missing) for image, missing in zip(rows["image"], rows["probability"].isna(), strict=True)}


def write_scores(parts: Iterable[pd.DataFrame], out: Path | TextIO, kind: str) -> int:
    """Write predictions as they come; return how many images have no score.

    Args:
        parts: of ``Bundle.predict_files``.
        out: a file, appended to when it is a CSV that is there; or an open stream.
        kind: ``csv`` or ``json`` (a list of records).
    """
    without, collected = 0, []
    for part in parts:
        without += int(part["probability"].isna().sum())
        if kind == "json":
            collected.append(part)
            continue
        new = not isinstance(out, Path) or not out.is_file()
        header = new if isinstance(out, Path) else not collected
        text = spreadsheet_safe(part).to_csv(index=False, header=header, float_format="%.10g")
        if isinstance(out, Path):
            with out.open("a", encoding="utf-8") as handle:
                handle.write(text)
        else:
            out.write(text)
            collected.append(part.iloc[:0])
    if kind == "json":
        whole = pd.concat(collected, ignore_index=True) if collected else pd.DataFrame(columns=COLUMNS)
        text = whole.to_json(orient="records", indent=2) + "\n"
        if isinstance(out, Path):
            write_text(out, text)
        else:
            out.write(text)
    return without
