"""Virtual patients: procedural chest CT with known findings, and their radiographs. Importing this loads no torch."""

from __future__ import annotations

from embedprior.phantom.findings import Effusion, Lesion, PhantomConfig
from embedprior.phantom.patient import VirtualPatient, virtual_patient
from embedprior.phantom.radiograph import STYLES, radiograph

__all__ = [
    "STYLES",
    "Effusion",
    "Lesion",
    "PhantomConfig",
    "VirtualPatient",
    "radiograph",
    "virtual_patient",
]
