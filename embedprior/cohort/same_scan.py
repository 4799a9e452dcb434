"""One CT scan met twice as two files: told from DRRs in the same pose."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from embedprior.cohort.duplicates import Fingerprint, near_duplicates

MOST_BITS, LEAST_CORRELATION = 6, 0.993
"""DRRs share pose and geometry, so chests of two patients are more alike than two radiographs: virtual patients reach
0.988 at 8 bits, the real CTs 0.934, and one scan in two resolutions 0.997 at 4 bits or fewer."""


def same_scans(exams: pd.DataFrame, prints: Mapping[str, Fingerprint]) -> pd.DataFrame:
    """Return the pairs of DRRs of different patients that show one scan (columns: see ``near_duplicates``).

    Args:
        exams: with ``exam_id, patient_id, modality``; one straight image of each CT.
        prints: of the images, by ``exam_id``.
    """
    found = near_duplicates(exams, prints)
    alike = (found["hash_distance"] <= MOST_BITS) & (found["correlation"] >= LEAST_CORRELATION)
    return found[alike & ~found["same_patient"].astype(bool)].reset_index(drop=True)
