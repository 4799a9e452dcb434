"""Real CTs with and without a planted lesion, many poses of each, as a cohort with ready embeddings.

``python pretrain/real_ct/planted.py --ct FOLDER --out runs/real_ct_planted`` writes ``exams.csv``, ``pairs.csv``,
``implants.csv``, ``images/`` and ``caches/{cxr,ct}``. Every CT gives ``--lesions`` versions with one lesion each, and
as many images without. The unit is the CT: its images never part. A stopped run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from slabs import SlabEncoder, slabs_of

from embedprior.cache import build_cache
from embedprior.cohort.duplicates import fingerprint, same_scans
from embedprior.config import load_config
from embedprior.encoders.base import Encoder
from embedprior.encoders.registry import create_encoder
from embedprior.errors import NEEDS_ATTENTION, EmbedpriorError
from embedprior.imaging.drr.config import DrrConfig
from embedprior.imaging.drr.physics import to_display_image
from embedprior.imaging.drr.render import Scanned, draw_poses, isocentre, project, reason_of, scan, write_png16
from embedprior.imaging.files import UnreadableExam
from embedprior.imaging.findings import lungs_complete
from embedprior.imaging.radiographs import read_image
from embedprior.imaging.readers import find_cts, read_volume
from embedprior.phantom.implant import ImplantConfig, implant
from embedprior.runs import artifact, artifacts_root, one_thread, progress, read_json, seed_for, write_json
from embedprior.tables import check_exams, check_pairs, write_table

CODE_TAG = "planted-2"
LABEL = "label:lesion"


def versions_of(item: Scanned, drr: DrrConfig, lesion: ImplantConfig, lesions: int, root: Path) -> Path | None:
    """Return the folder of one CT's images and slabs, made when absent; None when its lungs are not complete."""

    def build(folder: Path) -> None:
        clean, findings = read_volume(item.exam.path, drr.series)
        facts: dict[str, Any] = {"complete": lungs_complete(findings), "implants": []}
        if facts["complete"]:
            poses, centre = draw_poses(drr, item.digest), isocentre(clean, drr.centre)
            slabs = [slabs_of(clean)]
            for k in range(2 * lesions):
                volume = clean
                if k < lesions:
                    volume, made = implant(clean, seed_for(drr.seed, "implant", item.digest, k), lesion)
                    slabs.append(slabs_of(volume))
                    facts["implants"].append(
                        {"centre_lps_mm": made.centre_mm, "radius_mm": made.radius_mm, "ml": made.volume_ml}
                    )
                # lesion and no lesion share their poses two by two: the pose can't tell one from the other
                pose = type(poses)(poses.angles_deg[[k % lesions]], poses.shift_mm[[k % lesions]])
                noise = seed_for(drr.seed, "noise", item.digest, k)
                picture = to_display_image(project(volume, drr, pose, centre), drr, [noise])[0]
                write_png16(picture, folder / f"image-{k:03d}.png")
            np.save(folder / "slabs.npy", np.stack(slabs))
        write_json(folder / "planted.json", facts)

    inputs = {"ct": item.digest}
    made = artifact("planted", inputs, {"drr": drr, "lesion": lesion, "lesions": lesions}, CODE_TAG, build, root)
    return made.path if read_json(made.path / "planted.json")["complete"] else None


def without_repeats(items: list[tuple[Scanned, Path]], lesions: int) -> list[tuple[Scanned, Path]]:
    """Leave out a CT whose straight image without lesion is an earlier one's: the same scan in another resolution."""
    first = f"image-{lesions:03d}.png"
    prints = {item.exam.exam_id: fingerprint(read_image(folder, first)) for item, folder in items}
    table = pd.DataFrame({"exam_id": list(prints), "patient_id": list(prints), "modality": "CXR"})
    repeats = set(same_scans(table, prints)["exam_b"])
    for name in sorted(repeats):
        print(f"{name}: the same scan as another, left out", file=sys.stderr)
    return [(item, folder) for item, folder in items if item.exam.exam_id not in repeats]


def tables_of(
    items: list[tuple[Scanned, Path]], lesions: int, out: Path
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return exams, pairs and implants; the CT (its id is the patient's) is the unit."""
    exams: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    implants: list[dict[str, Any]] = []
    for item, folder in items:
        own, where = item.exam.exam_id, Path(os.path.relpath(folder.resolve(), out.resolve())).as_posix()
        for row in range(lesions + 1):
            exams.append(
                {"exam_id": f"{own}_ct{row}", "patient_id": own, "modality": "CT", "path": f"{where}/slabs.npy#{row}",
                 "view": "", LABEL: int(row > 0)}
            )  # fmt: skip
        for k in range(2 * lesions):
            lesion = k < lesions
            exams.append(
                {"exam_id": f"{own}_x{k}", "patient_id": own, "modality": "CXR", "path": f"{where}/image-{k:03d}.png",
                 "view": "PA", LABEL: int(lesion)}
            )  # fmt: skip
            ct = f"{own}_ct{k + 1 if lesion else 0}"
            pairs.append(
                {"pair_id": f"{own}_x{k}|{ct}", "patient_id": own, "cxr_exam_id": f"{own}_x{k}", "ct_exam_id": ct,
                 "offset_days": 0, "label_agree": 1}
            )  # fmt: skip
        for k, made in enumerate(read_json(folder / "planted.json")["implants"]):
            x, y, z = made["centre_lps_mm"]
            size = {"radius_mm": made["radius_mm"], "ml": made["ml"]}
            implants.append({"exam_id": f"{own}_ct{k + 1}", "x_mm": x, "y_mm": y, "z_mm": z, **size})
    table = check_exams(pd.DataFrame(exams), "exams.csv")
    return table, check_pairs(pd.DataFrame(pairs), table, "pairs.csv"), pd.DataFrame(implants)


def prepare(ct: Path, out: Path, drr: DrrConfig, lesions: int, limit: int | None, network: Encoder) -> int:
    """Write the cohort; returns the exit code."""
    scanned, failures = scan(find_cts(ct)[0][:limit])
    usable = []
    with one_thread():
        for item in progress([s for s in scanned if not s.same_as], "plant"):
            try:
                folder = versions_of(item, drr, ImplantConfig(), lesions, artifacts_root(out))
            except UnreadableExam as error:
                failures.append({"exam_id": item.exam.exam_id, "stage": "plant", "reason": reason_of(error, item.exam)})
                continue
            if folder is not None:
                usable.append((item, folder))
        usable = without_repeats(usable, lesions)
        exams, pairs, implants = tables_of(usable, lesions, out)
        for name, table in (("exams", exams), ("pairs", pairs), ("implants", implants)):
            write_table(table, out / f"{name}.csv")
        for kind, modality, encoder in (("cxr", "CXR", network), ("ct", "CT", SlabEncoder(network))):
            rows = exams[exams["modality"] == modality]
            _, failed = build_cache(rows, out, encoder, out / "caches" / kind, batch_size=8, desc=kind)[:2]
            failures += failed
    if failures:
        write_table(pd.DataFrame(failures), out / "failures.csv")
    print(
        f"{out}: {len(usable)} CTs with complete lungs (the unit), {int((exams[LABEL] == 1).sum())} exams with a "
        f"lesion, {int((exams[LABEL] == 0).sum())} without, {len(pairs)} pairs, {len(failures)} failures"
    )
    return NEEDS_ATTENTION if failures else 0


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/real_ct_planted"))
    parser.add_argument("--config", default="augmented", help="of configs/drr: how the images are made")
    parser.add_argument("--lesions", type=int, default=8, help="versions with a lesion of each CT (default: 8)")
    parser.add_argument("--limit", type=int, help="the first N CTs only")
    parser.add_argument("--random-init", action="store_true", help="random weights, for trials of the plumbing")
    options = parser.parse_args()
    try:
        drr = load_config(DrrConfig, options.config, "drr", {"poses": options.lesions})
        network = create_encoder("efficientnet-lite0", random_init=options.random_init)
        options.out.mkdir(parents=True, exist_ok=True)
        return prepare(options.ct, options.out, drr, options.lesions, options.limit, network)
    except EmbedpriorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
