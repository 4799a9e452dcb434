"""Every promise that an encoder makes: what it reads and refuses, what it returns, and what its spec says of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedprior.encoders.base import Encoder, EncoderCard, EncoderSpec, TokenEncoder, encoder_key
from embedprior.encoders.registry import create_encoder, encoder_card
from embedprior.errors import EmbedpriorError
from embedprior.imaging.files import UnreadableExam
from embedprior.testing.promises import CheckFailed, Promises, furthest, random_streams, same

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""Largest difference, relative to the embedding's length, that another batch size may bring."""
MODALITIES = ("CXR", "CT", "image")


def check_encoder(encoder: str | Callable[..., Encoder], exams: Sequence[Path | str] = (), **options: Any) -> list[str]:
    """Run every promise of the encoder protocol (``embedprior.encoders.base.Encoder``).

    Args:
        encoder: registry name, or a class.
        exams: two or more files that it reads; none = radiographs or a CT made up for the purpose.
        options: of the encoder, such as ``weights`` or ``random_init``.

    Returns:
        The promises that were kept, in words.

    Raises:
        CheckFailed: the first promise that was not kept.
        BadInput: unknown name, an option that it does not take, or missing weights.

    Example:
        >>> check_encoder("pixels-128")[0]
        'it has a spec'
    """
    name = encoder if isinstance(encoder, str) else getattr(encoder, "__name__", type(encoder).__name__)
    build: Callable[[], Encoder] = (
        (lambda: create_encoder(encoder, **options)) if isinstance(encoder, str) else lambda: encoder(**options)
    )
    promises = Promises(name)
    built = build()
    card = encoder_card(encoder) if isinstance(encoder, str) else getattr(encoder, "card", None)
    _spec(promises, built, card)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(p) for p in exams] or made_up_exams(built.spec.modality, Path(folder))
        if len(paths) < 2:
            raise CheckFailed(f"{name}: one exam is too few to tell embeddings apart. Next: give two or more")
        read = _reading(promises, built, paths)
        found = _embedding(promises, built, read)
        _tokens(promises, built, read)
        _refusals(promises, built, Path(folder))
        again = build()
        promises.require(
            encoder_key(again.spec) == encoder_key(built.spec), "built again, it has the same key", "the specs differ"
        )
        repeated = again.embed(_stack(read[:1]))
        promises.require(
            _close(repeated, found[:1], built.spec), "built again, it gives the same embedding",
            f"{furthest(repeated, found[:1])}. Next: seed what is drawn, and stamp it into the key",
        )  # fmt: skip
    return promises.kept


def made_up_exams(modality: str, folder: Path) -> list[Path]:
    """Write two exams: PNG radiographs of 300 × 420, or CT volumes of 40 slices as NIfTI, in HU."""
    paths = []
    for number in range(2):
        if modality == "CT":
            paths.append(folder / f"ct-{number}.nii.gz")
            _write_ct(paths[-1], number)
        else:
            paths.append(folder / f"picture-{number}.png")
            _write_picture(paths[-1], number)
    return paths


def _write_picture(path: Path, number: int) -> None:
    from PIL import Image

    y, x = np.mgrid[0:300, 0:420] / 300.0
    grey = 0.5 + 0.3 * np.sin((9 - 3 * number) * x + 4 * y * y) + 0.2 * (((x - 0.5) ** 2 + (y - 0.6) ** 2) < 0.06)
    Image.fromarray((255 * np.clip(grey, 0, 1)).round().astype(np.uint8)).save(path)


def _write_ct(path: Path, number: int) -> None:
    """Write a chest of ellipses: air, a body of soft tissue, two lungs, a spine and a nodule whose size differs."""
    import SimpleITK as sitk

    z, y, x = np.meshgrid(np.linspace(-1, 1, 40), np.linspace(-1, 1, 96), np.linspace(-1, 1, 96), indexing="ij")
    hu = np.full(z.shape, -1000, dtype=np.int16)
    hu[(x / 0.85) ** 2 + (y / 0.65) ** 2 < 1] = 40
    for side in (-0.4, 0.4):
        hu[((x - side) / 0.3) ** 2 + ((y + 0.05) / 0.45) ** 2 + (z / 0.8) ** 2 < 1] = -850
    hu[(x / 0.1) ** 2 + ((y - 0.5) / 0.1) ** 2 < 1] = 600
    hu[((x - 0.4) ** 2 + y**2 + z**2) < (0.1 + 0.1 * number) ** 2] = 60
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((3.75, 3.75, 7.5))
    sitk.WriteImage(image, str(path))


def _spec(promises: Promises, encoder: Encoder, card: EncoderCard | None) -> None:
    spec = encoder.spec
    promises.require(isinstance(spec, EncoderSpec), "it has a spec", f"a {type(spec).__name__}, not an EncoderSpec")
    promises.require(
        spec.modality in MODALITIES, "its modality exists", f"{spec.modality}. Allowed: {', '.join(MODALITIES)}"
    )
    promises.require(spec.dim >= 1, "its embedding has a length", f"dim {spec.dim}")
    for field in ("name", "source", "weights_sha256", "licence", "pooling"):
        promises.require(bool(getattr(spec, field)), "its spec is complete", f"{field} is empty")
    version = spec.profile.get("transform_version")
    promises.require(
        isinstance(version, int), "its profile has a transform_version",
        f"{version!r}. Next: profile={{'transform_version': 1, ...}}, raised when the numbers change",
    )  # fmt: skip
    copied = EncoderSpec.model_validate_json(spec.model_dump_json())
    promises.require(copied == spec, "its spec survives JSON", "what is read back differs")
    if card is not None:
        slices = card.modality == "image" and spec.modality == "CT"  # a 2D encoder asked to read slices of a volume
        agrees = slices or (card.modality == spec.modality and bool(card.tokens) == (spec.token_dim is not None))
        agrees &= not isinstance(card.dim, int) or card.dim == spec.dim
        promises.require(agrees, "its card agrees with its spec", f"{card} and {spec.modality}, dim {spec.dim}")


def _reading(promises: Promises, encoder: Encoder, paths: Sequence[Path]) -> list[np.ndarray[Any, Any]]:
    read = []
    for path in paths:
        array = encoder.read(path.parent, path.name)
        promises.require(isinstance(array, np.ndarray), "it reads an exam as an array", f"a {type(array).__name__}")
        finite = not np.issubdtype(array.dtype, np.floating) or bool(np.isfinite(array).all())
        promises.require(finite, "what it reads is finite", "a NaN or an infinity")
        again = encoder.read(path.parent, path.name)
        promises.require(same(array, again), "reading twice gives the same", furthest(array, again))
        promises.require(
            not np.shares_memory(array, again), "what it reads is the caller's own", "two calls share their memory"
        )
        read.append(array)
    return read


def _stack(read: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.stack([one for one in read if one.shape == read[0].shape])


def _close(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], spec: EncoderSpec) -> bool:
    if one.shape != other.shape:
        return False
    scale = max(float(np.linalg.norm(np.asarray(other, float), axis=-1).max()), 1e-12)
    apart = float(np.linalg.norm(np.asarray(one, float) - np.asarray(other, float), axis=-1).max())
    return apart <= TOLERANCE.get(spec.precision, TOLERANCE["bf16"]) * scale


def _embedding(promises: Promises, encoder: Encoder, read: Sequence[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    spec, batch = encoder.spec, _stack(read)
    before, streams = batch.copy(), random_streams()
    found = encoder.embed(batch)
    promises.require(
        isinstance(found, np.ndarray) and found.shape == (len(batch), spec.dim), "it returns exams × dim numbers",
        f"{getattr(found, 'shape', type(found).__name__)} for {len(batch)} exams of dim {spec.dim}",
    )  # fmt: skip
    dtype = np.uint8 if spec.dtype == "uint8" else np.float32
    promises.require(found.dtype == dtype, "its numbers are float32, or bytes where it says uint8", str(found.dtype))
    promises.require(bool(np.isfinite(found).all()), "its embedding is finite", "a NaN or an infinity")
    promises.require(same(before, batch), "it leaves the batch as it was", "it was written to. Next: copy it")
    promises.require(
        streams == random_streams(), "it leaves the global random streams as they were", "torch's or numpy's moved"
    )
    promises.require(
        _close(encoder.embed(batch), found, spec), "embedding twice gives the same", "dropout, or batch statistics?"
    )
    alone = np.concatenate([encoder.embed(one[None]) for one in read])
    if len(batch) == len(read):
        promises.require(
            _close(alone, found, spec), "an embedding depends on its own exam alone", furthest(alone, found)
        )
    apart = float(np.abs(np.asarray(alone[0], float) - np.asarray(alone[1], float)).max())
    promises.require(apart > 0, "two exams have two embeddings", "they are equal: the encoder has collapsed")
    return alone


def _tokens(promises: Promises, encoder: Encoder, read: Sequence[np.ndarray[Any, Any]]) -> None:
    width = encoder.spec.token_dim
    promises.require(
        width is None or isinstance(encoder, TokenEncoder), "it gives tokens where its spec has a token_dim",
        f"token_dim {width}, tokens() {'is' if isinstance(encoder, TokenEncoder) else 'is not'} there",
    )  # fmt: skip
    if width is None or not isinstance(encoder, TokenEncoder):
        return
    for one in read:
        (tokens,) = encoder.tokens(one[None])
        good = tokens.ndim == 2 and len(tokens) > 0 and tokens.shape[1] == width and bool(np.isfinite(tokens).all())
        promises.require(good, "its tokens are finite, n × token_dim", f"shape {tokens.shape}, token_dim {width}")


def _refusals(promises: Promises, encoder: Encoder, folder: Path) -> None:
    """A file that is no exam of this kind is one exam left out, with a reason that names no folder."""
    ending = ".nii.gz" if encoder.spec.modality == "CT" else ".png"
    (folder / f"cut{ending}").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 20)
    (folder / f"empty{ending}").write_bytes(b"")
    other = folder / ("other.png" if encoder.spec.modality == "CT" else "other.nii.gz")
    (_write_picture if encoder.spec.modality == "CT" else _write_ct)(other, 0)
    for path, promise in (
        (f"cut{ending}", "a damaged file is an UnreadableExam"),
        (f"empty{ending}", "an empty file is an UnreadableExam"),
        (other.name, "an exam of another kind is an UnreadableExam"),
    ):
        try:
            encoder.read(folder, path)
        except UnreadableExam as error:
            promises.require(
                str(folder) not in str(error), "its reasons name no folder (it may hold a name)", str(error)
            )
            promises.require(True, promise, "")
        except EmbedpriorError as error:
            raise CheckFailed(f"{promises.subject}: not true that {promise}: {error}") from error
        except Exception as error:
            promises.require(False, promise, f"{type(error).__name__}. Next: raise UnreadableExam(reason)")
        else:
            promises.require(False, promise, f"{path} was read. Next: raise UnreadableExam(reason)")
