"""Does CT, used only in training, make a chest X-ray model better?

Importing this package loads none of the heavy libraries: every public name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from embedprior.version import __version__

__all__ = [
    "AucComparison",
    "Bundle",
    "DiffusionPrior",
    "EmbeddingCache",
    "Evaluation",
    "FittedMethod",
    "Radiograph",
    "StudyRun",
    "Volume",
    "__version__",
    "create_encoder",
    "delong_test",
    "embed",
    "evaluate",
    "list_encoders",
    "load_bundle",
    "load_fitted",
    "open_cache",
    "read_radiograph",
    "read_volume",
    "render_drr",
    "run_study",
]

_HOMES = {
    "AucComparison": "evidence.results",
    "Bundle": "deploy.predict",
    "DiffusionPrior": "prior.estimator",
    "EmbeddingCache": "cache.reader",
    "Evaluation": "evidence.results",
    "FittedMethod": "students.storage",
    "Radiograph": "imaging.radiographs",
    "StudyRun": "api",
    "Volume": "imaging.volume",
    "create_encoder": "encoders.registry",
    "delong_test": "evidence.results",
    "embed": "cache.embedding",
    "evaluate": "evidence.results",
    "list_encoders": "encoders.registry",
    "load_bundle": "deploy.predict",
    "load_fitted": "students.storage",
    "open_cache": "cache.reader",
    "read_radiograph": "imaging.radiographs",
    "read_volume": "imaging.readers",
    "render_drr": "imaging.drr.render",
    "run_study": "api",
}
"""The module of each public name, below ``embedprior``; ``__init__.pyi`` says the same to type checkers."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        import difflib

        close = difflib.get_close_matches(name, __all__, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise AttributeError(f"module 'embedprior' has no attribute '{name}'. Allowed: {', '.join(__all__)}.{hint}")
    value = getattr(importlib.import_module(f"embedprior.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
