"""Hounsfield units to linear attenuation, with constants from published tables and no per-volume rescaling.

Sources: Hubbell & Seltzer, NIST Standard Reference Database 126 (mass attenuation, liquid water and ICRU-44 cortical
bone); ICRU Report 44 (densities). The bilinear mapping is the one used for CT attenuation correction: mixtures of air
and water below 0 HU, of water and cortical bone above.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

from embedprior.errors import BadInput

ENERGIES_KEV = (40.0, 50.0, 60.0, 80.0, 100.0)
WATER_CM2_PER_G = (0.2683, 0.2269, 0.2059, 0.1837, 0.1707)
CORTICAL_BONE_CM2_PER_G = (0.6655, 0.4242, 0.3148, 0.2229, 0.1855)
WATER_G_PER_CM3 = 1.0
CORTICAL_BONE_G_PER_CM3 = 1.92
CT_EFFECTIVE_KEV = 70.0
"""Effective energy of a 120 kVp CT beam: the energy at which its Hounsfield units are read."""

Volume = TypeVar("Volume", bound=Any)


def attenuation_per_mm(material: str, energy_kev: float) -> float:
    """Linear attenuation of "water" or "bone" (ICRU-44 cortical) in mm⁻¹, log-log interpolated between table rows.

    Raises:
        BadInput: the energy lies outside the table (40 to 100 keV).
    """
    if not ENERGIES_KEV[0] <= energy_kev <= ENERGIES_KEV[-1]:
        raise BadInput(f"energy_kev={energy_kev} is outside the table: {ENERGIES_KEV[0]} to {ENERGIES_KEV[-1]} keV.")
    table, density = {
        "water": (WATER_CM2_PER_G, WATER_G_PER_CM3),
        "bone": (CORTICAL_BONE_CM2_PER_G, CORTICAL_BONE_G_PER_CM3),
    }[material]
    upper = next(i for i in range(1, len(ENERGIES_KEV)) if energy_kev <= ENERGIES_KEV[i])
    low, high = ENERGIES_KEV[upper - 1], ENERGIES_KEV[upper]
    weight = math.log(energy_kev / low) / math.log(high / low)
    per_cm = density * math.exp((1 - weight) * math.log(table[upper - 1]) + weight * math.log(table[upper]))
    return per_cm / 10.0


def hu_to_mu(hu: Volume, energy_kev: float = CT_EFFECTIVE_KEV) -> Volume:
    """Linear attenuation in mm⁻¹ of Hounsfield units (a float torch tensor or numpy array of any shape).

    At the CT's own effective energy (the default) this is the definition of the Hounsfield unit,
    μ = μ_water (1 + HU/1000); at another beam energy bone and water scale by their own tables. Values below
    −1000 HU (padding) count as air.

    Raises:
        BadInput: the energy lies outside the table (40 to 100 keV).
    """
    water = attenuation_per_mm("water", energy_kev)
    bone = attenuation_per_mm("bone", energy_kev)
    bone_hu = 1000.0 * (
        attenuation_per_mm("bone", CT_EFFECTIVE_KEV) / attenuation_per_mm("water", CT_EFFECTIVE_KEV) - 1.0
    )
    below, above = hu.clip(-1000.0, 0.0), hu.clip(0.0, None)
    mu: Volume = water + below * (water / 1000.0) + above * ((bone - water) / bone_hu)
    return mu
