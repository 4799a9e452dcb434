"""Checks of the protocols, for classes of your own: as scikit-learn's ``check_estimator``, one function a kind.

Each runs every promise of its protocol on data made for the purpose and returns the promises that were kept. The first
broken one raises ``CheckFailed``, which says what was promised, what was seen, and what to do about it.

Example:
    >>> from embedprior.testing import check_method
    >>> check_method("ridge-head")[0]
    'its class states its facts'
"""

from embedprior.testing.encoders import check_encoder
from embedprior.testing.methods import check_method
from embedprior.testing.promises import CheckFailed
from embedprior.testing.renderers import check_renderer
from embedprior.testing.sources import check_source

__all__ = ["CheckFailed", "check_encoder", "check_method", "check_renderer", "check_source"]
