"""Statistics over predictions: which claims hold, which do not, which cannot be tested at this size.

Imports numpy, scipy and pandas only, and can be lifted out of this package as it stands.
"""

from __future__ import annotations

from embedprior.evidence.decision import Claim, parse_claim
from embedprior.evidence.delong import Delong, delong
from embedprior.evidence.errors import EvidenceError
from embedprior.evidence.evaluate import evaluate_predictions
from embedprior.evidence.results import AucComparison, delong_test
from embedprior.evidence.tests import holm

__all__ = [
    "AucComparison",
    "Claim",
    "Delong",
    "EvidenceError",
    "delong",
    "delong_test",
    "evaluate_predictions",
    "holm",
    "parse_claim",
]
