"""Cohort adapters by name. An entry is an import string, resolved only when the adapter is used."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from embedprior.cohort.base import Cohort, MissingImages
from embedprior.errors import BadInput, choose

SOURCES = {
    "covid-chestxray": "embedprior.cohort.sources.covid_chestxray:read_covid_chestxray",
    "tables": "embedprior.cohort.sources.tables:read_tables",
}


def read_cohort(source: str, root: Path, missing_images: MissingImages = "error") -> Cohort:
    """Return a cohort in the layout named by ``source``, its tables checked.

    Raises:
        BadInput: unknown layout, no such folder, or what the adapter refuses.
    """
    module, _, name = choose("cohort source", source, SOURCES).partition(":")
    if not root.is_dir():
        raise BadInput(f"no folder {root}. Next: give the cohort's folder with --data.")
    return cast(Cohort, getattr(importlib.import_module(module), name)(root, missing_images))
