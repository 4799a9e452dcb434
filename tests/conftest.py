from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real X-rays and CT volumes beside the checkout; tests that need it skip without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real data (../shared/data) is not here")
    return folder


@pytest.fixture(scope="session")
def last_digits(request: pytest.FixtureRequest) -> float:
    """How much wider a tolerance of float32 rounding has to be: 1; 100 where ``tests.other_kernels`` rounds by rows."""
    return 100.0 if request.config.pluginmanager.has_plugin("tests.other_kernels") else 1.0
