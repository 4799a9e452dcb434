"""Statistics over predictions: which claims hold, which do not, which cannot be tested at this size.

Imports numpy, scipy and pandas only, and can be lifted out of this package as it stands.
"""

from __future__ import annotations

from embedprior.evidence.delong import Delong, delong
from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.evaluate import evaluate_predictions
from embedprior.evidence.inference import holm

__all__ = ["Delong", "EvidenceError", "delong", "evaluate_predictions", "holm"]
