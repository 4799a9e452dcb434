"""Virtual patients: procedural chest CT with known findings, and their radiographs. Importing this loads no torch."""

from __future__ import annotations

from .config import PhantomConfig
from .findings import Effusion, Lesion
from .gallery import contact_sheet
from .patient import VirtualPatient, virtual_patient
from .radiograph import STYLES, radiograph

__all__ = [
    "STYLES",
    "Effusion",
    "Lesion",
    "PhantomConfig",
    "VirtualPatient",
    "contact_sheet",
    "radiograph",
    "virtual_patient",
]
