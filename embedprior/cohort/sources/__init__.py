"""Cohorts by name of their layout: one adapter per public collection, the user's own tables, and installed packages'.

An adapter is a function ``read(root, missing_images) -> Cohort``; another package registers its own as an entry point
of ``embedprior.sources``.
"""

from __future__ import annotations

from pathlib import Path

from embedprior.cohort.base import Cohort, MissingImages
from embedprior.errors import BadInput
from embedprior.registry import Registry

__all__ = ["SOURCES", "read_cohort"]

SOURCES = {
    "bimcv-covid19": "embedprior.cohort.sources.bimcv:read_bimcv",
    "covid-chestxray": "embedprior.cohort.sources.covid_chestxray:read_covid_chestxray",
    "ct-rate": "embedprior.cohort.sources.ct_sets:read_ct_rate",
    "inspect": "embedprior.cohort.sources.ct_sets:read_inspect",
    "lidc-idri": "embedprior.cohort.sources.ct_sets:read_lidc",
    "mimic-cxr": "embedprior.cohort.sources.mimic_cxr:read_mimic_cxr",
    "rad-chestct": "embedprior.cohort.sources.ct_sets:read_rad_chestct",
    "rspect": "embedprior.cohort.sources.ct_sets:read_rspect",
    "tables": "embedprior.cohort.sources.tables:read_tables",
}
REGISTRY = Registry("cohort source", "embedprior.sources", SOURCES)


def read_cohort(source: str, root: Path | str, missing_images: MissingImages = "error") -> Cohort:
    """Return a cohort in the layout named by ``source``, its tables checked.

    Args:
        source: registry name (``"tables"``: exams.csv and pairs.csv of your own).
        root: folder of the cohort.
        missing_images: what to do about exams whose file does not exist.

    Raises:
        BadInput: unknown layout, no such folder, tables that break a rule, or what the adapter refuses.
    """
    root = Path(root)
    read = REGISTRY.load(source)
    if not root.is_dir():
        raise BadInput(f"no folder {root}. Next: give the cohort's folder with --data.")
    cohort = read(root, missing_images)
    if not isinstance(cohort, Cohort):
        raise BadInput(f"cohort source '{source}' returned a {type(cohort).__name__}, not a Cohort.")
    return cohort.checked(f"cohort source '{source}'")
