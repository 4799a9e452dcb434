"""HU to attenuation against the published tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedprior.errors import BadInput
from embedprior.imaging.drr.physics import attenuation_per_mm, hu_to_mu


def test_default_is_the_definition_of_the_hounsfield_unit() -> None:
    hu = np.array([-1000.0, -500.0, 0.0, 1000.0])
    water = attenuation_per_mm("water", 70.0)
    assert hu_to_mu(hu) == pytest.approx(water * np.array([0.0, 0.5, 1.0, 2.0]), abs=1e-12)
    # between the table's 60 and 80 keV rows: 0.2059 and 0.1837 cm²/g
    assert 0.01837 < water < 0.02059


def test_table_rows_are_returned_exactly() -> None:
    assert attenuation_per_mm("water", 60.0) == pytest.approx(0.02059, rel=1e-12)
    assert attenuation_per_mm("bone", 80.0) == pytest.approx(0.2229 * 1.92 / 10, rel=1e-12)


def test_bone_at_another_energy_follows_bone_not_water() -> None:
    cortical_hu = 1000 * (attenuation_per_mm("bone", 70.0) / attenuation_per_mm("water", 70.0) - 1)
    assert hu_to_mu(np.array([cortical_hu]), 50.0)[0] == pytest.approx(0.4242 * 1.92 / 10, rel=1e-9)
    assert hu_to_mu(np.array([0.0]), 50.0)[0] == pytest.approx(0.02269, rel=1e-9)


def test_padding_counts_as_air_and_one_voxel_never_changes_another() -> None:
    plain = hu_to_mu(torch.tensor([-1024.0, 40.0]))
    beside_metal = hu_to_mu(torch.tensor([-3024.0, 40.0, 3071.0]))
    assert float(plain[0]) == pytest.approx(0.0, abs=1e-9)
    assert torch.equal(plain, beside_metal[:2])


def test_energy_outside_the_table_is_refused() -> None:
    with pytest.raises(BadInput, match="40"):
        hu_to_mu(np.zeros(1), 511.0)
