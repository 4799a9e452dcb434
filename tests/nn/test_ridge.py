from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from embedprior.nn.ridge import FIXED_PENALTY, PENALTIES, fit_ridge

RNG = np.random.default_rng(0)
X, VAL_X = RNG.normal(1, 1, (30, 12)), RNG.normal(1, 1, (20, 12))
MAP = RNG.normal(size=(12, 4))
Y, VAL_Y = (x @ MAP + 4 * RNG.normal(size=(len(x), 4)) - 2 for x in (X, VAL_X))


def test_the_penalty_is_that_of_the_least_validation_error_and_the_fit_sklearns() -> None:
    fits = [Ridge(alpha=penalty).fit(X, Y) for penalty in PENALTIES]
    errors = [((fit.predict(VAL_X) - VAL_Y) ** 2).mean() for fit in fits]
    best = int(np.argmin(errors))
    assert 0 < best < len(fits) - 1
    found = fit_ridge(X, Y, VAL_X, VAL_Y)
    assert found.penalty == PENALTIES[best]
    np.testing.assert_allclose(found(VAL_X), fits[best].predict(VAL_X), rtol=1e-8)


def test_without_validation_pairs_the_penalty_is_fixed() -> None:
    found = fit_ridge(X, Y, VAL_X[:0], VAL_Y[:0])
    assert found.penalty == FIXED_PENALTY
    np.testing.assert_allclose(found(VAL_X), Ridge(alpha=FIXED_PENALTY).fit(X, Y).predict(VAL_X), rtol=1e-8)


@pytest.mark.parametrize("penalty", [0.1, 1e6])
def test_the_penalty_pulls_towards_earlier_weights(penalty: float) -> None:
    found = fit_ridge(X, Y, VAL_X, VAL_Y, MAP, (penalty,))
    centred, left = X - X.mean(0), Y - X @ MAP
    left = left - left.mean(0)
    # The minimiser of ‖left − X(W − MAP)‖² + penalty ‖W − MAP‖² solves the normal equations.
    change = np.linalg.solve(centred.T @ centred + penalty * np.eye(12), centred.T @ left)
    np.testing.assert_allclose(found.weights, MAP + change, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose((found(X) - Y).mean(0), 0, atol=1e-9)
