"""A cohort source: radiographs of a hospital's ``list.tsv`` with the columns img, pid and effusion."""

import pandas as pd

from embedprior.cohort.base import Cohort, flow_step, without_missing
from embedprior.errors import BadInput
from embedprior.tables import PAIR_REQUIRED


def read_hospital(root, missing_images="error"):
    """Return the cohort with ``label:effusion``; it has no CT.

    Raises:
        BadInput: no list, or (unless they are dropped) missing images.
    """
    table = root / "list.tsv"
    if not table.is_file():
        raise BadInput(f"{table} does not exist.")
    rows = pd.read_csv(table, sep="\t", dtype=str)
    exams = pd.DataFrame({"exam_id": rows["img"], "patient_id": rows["pid"], "modality": "CXR", "path": rows["img"]})
    exams["label:effusion"] = rows["effusion"].astype(float)
    flow = [flow_step("rows of list.tsv", exams, 0)]
    kept, gone = without_missing(exams, root, missing_images, str(table))
    flow.append(flow_step("image exists", kept, gone, "image file does not exist"))
    return Cohort(root, kept, pd.DataFrame(columns=list(PAIR_REQUIRED)), tuple(flow)).checked(str(table))
