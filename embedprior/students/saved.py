"""Fitted methods on disk: safetensors and JSON, nothing pickled, no code run on loading."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, Self, cast, runtime_checkable

from embedprior.errors import BadInput, choose
from embedprior.runs import read_json, write_json
from embedprior.students.base import Fitted

FORMAT = 1
DESCRIPTION = "fitted.json"
_HERE = "embedprior.students"
KINDS = {
    "student": f"{_HERE}.student:LogitStudent",
    "prior": f"{_HERE}.prior_method:PriorStudent",
    "regression": f"{_HERE}.regressors:RegressionStudent",
    "neighbours": f"{_HERE}.retrieval:NeighbourStudent",
    "linear": f"{_HERE}.controls:LinearStudent",
    "constant": f"{_HERE}.controls:Constant",
    "head-on-ct": f"{_HERE}.oracles:HeadOnCt",
    "fused": f"{_HERE}.oracles:FusedStudent",
}
"""What a folder may hold. The folder names a kind, never code."""


@runtime_checkable
class Saveable(Fitted, Protocol):
    """A fitted method that can be written and read back."""

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""

    def save(self, folder: Path) -> None:
        """Write it into an existing folder."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read it back."""


def save_fitted(fitted: Fitted, folder: Path, method: str) -> None:
    """Write a fitted method; ``fitted.json`` is written last and marks completion.

    Raises:
        BadInput: this kind of method can't be written.
    """
    if not isinstance(fitted, Saveable) or fitted.kind not in KINDS:
        raise BadInput(f"method '{method}' ({type(fitted).__name__}) can't be saved. Allowed: {', '.join(KINDS)}.")
    folder.mkdir(parents=True, exist_ok=True)
    fitted.save(folder)
    write_json(folder / DESCRIPTION, {"format": FORMAT, "kind": fitted.kind, "method": method})


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
    module, _, attribute = choose("kind of fitted method", str(described["kind"]), KINDS).partition(":")
    fitted = getattr(importlib.import_module(module), attribute).load(folder)
    return cast(Fitted, fitted), str(described["method"])
