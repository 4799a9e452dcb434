"""Methods by name. An entry is an import string, resolved only when the method is used."""

from __future__ import annotations

import importlib
from typing import Any, cast

from embedprior.errors import choose
from embedprior.students.base import Method

METHODS = {
    "cxr-only": "embedprior.students.plain:CxrOnly",
    "ct-only": "embedprior.students.oracles:CtOnly",
    "late-fusion": "embedprior.students.oracles:LateFusion",
    "same-modality-kd": "embedprior.students.distil:SameModalityKd",
    "hinton-kd": "embedprior.students.distil:HintonKd",
    "direct-head": "embedprior.students.distil:DirectHead",
    "ridge-head": "embedprior.students.regression:RidgeHead",
    "prior": "embedprior.students.prior_method:PriorMethod",
    "prior-shuffled": "embedprior.students.prior_method:ShuffledPriorMethod",
}


def create_method(name: str, **options: Any) -> Method:
    """Return a method.

    Args:
        name: one of ``METHODS``.
        options: its settings.

    Raises:
        BadInput: unknown name.
    """
    module, _, attribute = choose("method", name, METHODS).partition(":")
    return cast(Method, getattr(importlib.import_module(module), attribute)(**options))
