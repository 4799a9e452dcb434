"""Fitted methods on disk: safetensors and JSON, nothing pickled, no code run on loading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, cast, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from embedprior.cache import EmbeddingCache
from embedprior.encoders.base import differing_field
from embedprior.errors import BadInput
from embedprior.registry import Registry
from embedprior.runs.integrity import read_sealed, write_sealed
from embedprior.students.base import Cases, Fitted

FORMAT = 2
"""2: ``fitted.json`` lists the checksums of all files, and its own."""
DESCRIPTION = "fitted.json"
_HERE = "embedprior.students"
KINDS = {
    "student": f"{_HERE}.student:LogitStudent",
    "prior": f"{_HERE}.prior_method:PriorStudent",
    "regression": f"{_HERE}.regression_heads:RegressionStudent",
    "neighbours": f"{_HERE}.retrieval:NeighbourStudent",
    "linear": f"{_HERE}.controls:LinearStudent",
    "constant": f"{_HERE}.controls:Constant",
    "head-on-ct": f"{_HERE}.controls:HeadOnCt",
    "fused": f"{_HERE}.controls:FusedStudent",
    "picture-oracle": f"{_HERE}.slice_kd:PictureOracle",
}
"""What a folder may hold. The folder names a kind, never code."""
ENTRY_POINTS = "embedprior.fitted"
REGISTRY = Registry("kind of fitted method", ENTRY_POINTS, KINDS)


@runtime_checkable
class Saveable(Fitted, Protocol):
    """A fitted method that can be written and read back."""

    @property
    def kind(self) -> str:
        """One of ``REGISTRY.names()``: ``KINDS``, or an installed package's (entry points, see CONTRIBUTING)."""

    def save(self, folder: Path) -> None:
        """Write it into an existing folder."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read it back."""


def refuse_unsaveable(fitted: Fitted, method: str) -> None:
    """Check that a fitted method can be written.

    Raises:
        BadInput: it has no ``kind``, ``save`` and ``load``, or its kind is nobody's.
    """
    if not isinstance(fitted, Saveable) or fitted.kind not in REGISTRY.names():
        kinds = ", ".join(REGISTRY.names())
        raise BadInput(
            f"method '{method}' ({type(fitted).__name__}) can't be saved. Allowed: kinds {kinds}. "
            f"Next: give it kind, save and load, and declare the kind as an entry point of {ENTRY_POINTS}"
        )


@dataclass(frozen=True)
class FittedMethod:
    """A fitted method, read back from its folder.

    Attributes:
        method: registry name.
        fitted: the method itself; its ``scores`` reads ``Cases``.
        about: what was written beside it: ``inputs`` (``embedding``, ``tokens`` or ``pixels``), ``cxr_dim`` (length of
            the radiograph's embedding), ``encoder`` (key of the cache it was fitted on), ``label``. Empty for a folder
            of an older version.

    Example: see ``load_fitted``.
    """

    method: str
    fitted: Fitted
    about: Mapping[str, Any]

    def scores(self, cases: Cases | EmbeddingCache | ArrayLike) -> Float[np.ndarray, " cases"]:
        """Return the probability of a positive label, one a radiograph.

        Args:
            cases: embeddings of radiographs (N, D), an open cache of them, or ``Cases``. A student that reads tokens or
                pixels takes (N, tokens, D) or (N, height, width).

        Raises:
            BadInput: embeddings of another encoder or length than it was fitted on, a wrong shape, or a number that is
                not finite.
        """
        if isinstance(cases, Cases):
            return self.fitted.scores(cases)
        if isinstance(cases, EmbeddingCache):
            self._check_encoder(cases)
            cases = cases.matrix
        return self.fitted.scores(self._cases(cases))

    def sample_scores(self, values: ArrayLike) -> Float[np.ndarray, "cases samples"] | None:
        """Return the probabilities whose mean over samples is the score; None for a method that draws no samples.

        Args:
            values: embeddings of radiographs (N, D).

        Raises:
            BadInput: see ``scores``.
        """
        drawn = getattr(self.fitted, "sample_scores", None)
        return None if drawn is None else np.asarray(drawn(self._cases(values)))

    def _check_encoder(self, cache: EmbeddingCache) -> None:
        mine = self.about.get("encoder")
        found = None if mine is None else differing_field(cache.key, mine)
        if found is not None:
            field, theirs, ours = found
            raise BadInput(
                f"{cache.path.name} was made with another {field}: {theirs!r:.80}, not {ours!r:.80} as the embeddings "
                f"'{self.method}' was fitted on. Next: embed with '{(mine or {}).get('encoder')}' and these settings"
            )

    def _cases(self, values: ArrayLike) -> Cases:
        kind = self.about.get("inputs", "embedding")
        axes = 2 if kind == "embedding" else 3
        shapes = {"embedding": "(N, D)", "tokens": "(N, tokens, D)", "pixels": "(N, height, width)"}
        try:
            array = np.asarray(values, dtype=np.uint8 if kind == "pixels" else np.float32)
        except (TypeError, ValueError) as error:
            raise BadInput(f"no array of numbers ({error}). Allowed: {kind} of shape {shapes[kind]}.") from error
        width = self.about.get("cxr_dim") if kind == "embedding" else None
        if array.ndim != axes or width not in (None, array.shape[-1]):
            shown = shapes[kind] if width is None else f"(N, {width})"
            hint = " Next: x[None] for one case." if array.ndim == axes - 1 else ""
            raise BadInput(f"'{self.method}' was given shape {array.shape}. Allowed: {shown}.{hint}")
        # padding tokens are NaN
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        if kind != "tokens" and bad.size:
            raise BadInput(f"a number that is not finite in rows {bad[:5].tolist()} ({bad.size} such).")
        unknown, n = np.full(len(array), np.nan), len(array)
        names = [str(number) for number in range(n)]
        empty = np.full((n, int(width or 1)), np.nan, dtype=np.float32)
        return Cases(
            names, names, unknown, array if kind == "embedding" else empty, None, unknown,
            tokens=array if kind == "tokens" else None, pixels=array if kind == "pixels" else None,
        )  # fmt: skip


def save_fitted(fitted: Fitted, folder: Path | str, method: str, about: Mapping[str, Any] | None = None) -> None:
    """Write a fitted method; ``fitted.json`` is written last and marks completion.

    Args:
        fitted: a method with ``kind``, ``save`` and ``load``.
        folder: made when it is not there.
        method: registry name.
        about: what a caller must know before it scores (see ``FittedMethod``).

    Raises:
        BadInput: see ``refuse_unsaveable``.
    """
    refuse_unsaveable(fitted, method)
    saved, folder = cast(Saveable, fitted), Path(folder)
    description = {"format": FORMAT, "kind": saved.kind, "method": method, "about": dict(about or {})}
    write_sealed(folder, DESCRIPTION, description, saved.save)


def load_fitted(folder: Path | str) -> FittedMethod:
    """Return the fitted method in a folder, as ``embedprior train student`` leaves it; executes nothing in it.

    Args:
        folder: of the student.

    Raises:
        BadInput: no fitted method there, a damaged one, one of another format, or of an unknown kind.

    Example:
        >>> import embedprior
        >>> import numpy as np
        >>> from embedprior.students.controls import Constant
        >>> from embedprior.students.storage import save_fitted
        >>> save_fitted(Constant(0.25), "student", "constant", {"cxr_dim": 4})
        >>> student = embedprior.load_fitted("student")
        >>> student.method, student.scores(np.zeros((2, 4))).tolist()
        ('constant', [0.25, 0.25])
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).is_file():
        raise BadInput(f"no fitted method in {folder}. Next: embedprior train student --method NAME --out {folder}")
    described = read_sealed(folder, DESCRIPTION, "fitted method", FORMAT, "copy or fit it again")
    fitted = REGISTRY.load(str(described["kind"])).load(folder)
    return FittedMethod(str(described["method"]), cast(Fitted, fitted), described.get("about") or {})
