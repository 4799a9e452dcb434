"""Fitted methods on disk: safetensors and JSON, nothing pickled, no code run on loading."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, Self, cast, runtime_checkable

from embedprior.errors import BadInput
from embedprior.registry import Registry
from embedprior.runs import read_json, write_json
from embedprior.students.base import Fitted

FORMAT = 1
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


def save_fitted(fitted: Fitted, folder: Path, method: str) -> None:
    """Write a fitted method; ``fitted.json`` is written last and marks completion.

    Raises:
        BadInput: see ``refuse_unsaveable``.
    """
    refuse_unsaveable(fitted, method)
    saved = cast(Saveable, fitted)
    folder.mkdir(parents=True, exist_ok=True)
    saved.save(folder)
    write_json(folder / DESCRIPTION, {"format": FORMAT, "kind": saved.kind, "method": method})


def load_fitted(folder: Path) -> tuple[Fitted, str]:
    """Return a fitted method and its name.

    Raises:
        BadInput: no fitted method there, one of a newer format, or of an unknown kind.
    """
    if not (folder / DESCRIPTION).is_file():
        raise BadInput(f"no fitted method in {folder}. Next: embedprior train student --method NAME --out {folder}")
    described = read_json(folder / DESCRIPTION)
    if described.get("format") != FORMAT:
        raise BadInput(f"{folder / DESCRIPTION} has format {described.get('format')}. Allowed: {FORMAT}.")
    fitted = REGISTRY.load(str(described["kind"])).load(folder)
    return cast(Fitted, fitted), str(described["method"])
