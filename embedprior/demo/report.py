"""What the demo's report says."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from embedprior.demo.config import DemoConfig
from embedprior.demo.population import PICTURES, VOLUMES
from embedprior.report import EmbeddingView, EvidenceSection, Report
from embedprior.report.formatting import comparison_sentence, deciding_p, number
from embedprior.runs import read_json, seed_for
from embedprior.students.base import Cases

if TYPE_CHECKING:
    from embedprior.demo.pipeline import Spine

NOTES = {
    "ct-only": "the CT teacher on the true CT: what CT itself knows",
    "cxr-only": "radiographs and labels only, no CT anywhere: the reference",
    "hinton-kd": "labels and the CT teacher's softened output (T = 4, weight 0.6)",
    "ridge-head": "ridge regression of the CT embedding, then the frozen CT head",
    "direct-head": "the CT head's probability regressed from the radiograph, no labels: the control a prior must match",
    "prior-shuffled": "the prior trained on pairs shuffled between patients, in both stages: should know nothing",
    "prior": "mean over samples of the CT head's probability; no radiograph label used",
}
CONTROL = "prior-shuffled"
TOLD = ("ct-only", "prior")
QUESTION = (
    "On virtual patients with a lesion that CT shows plainly and a radiograph only in part: does CT, used only in "
    "training, improve a model that sees the radiograph alone?"
)


def tell(
    config: DemoConfig,
    seed: int,
    spine: Spine,
    evidence: Mapping[str, Any],
    predictions: pd.DataFrame,
    held_out: Cases,
    generated: Float[np.ndarray, "cases samples ct_dim"] | None,
    failures: list[dict[str, str]],
    out: Path,
) -> Report:
    """Return the report's content."""
    embeddings = None
    if generated is not None:
        embeddings = EmbeddingView(
            ct=held_out.paired_ct(),
            generated=generated[:, 0],
            cxr=held_out.cxr,
            labels=held_out.label,
            label_name="lesion",
            seed=seed_for(seed, "t-SNE") % 2**31,
        )
    prevalence = float(held_out.label.mean())
    return Report(
        title="embedprior demo: virtual patients",
        question=QUESTION,
        lead=_lead(evidence),
        evidence=[
            EvidenceSection(
                heading=f"{len(held_out)} held-out patients, {config.fits} fits of every method",
                evidence=evidence,
                predictions=predictions[predictions["split"] == "test"],
                method_notes=NOTES,
                intro=[
                    "Declared before anything was scored: each deployable method against cxr-only, and the prior "
                    "against direct-head. AUCs are means over the fits; intervals count patients and fits.",
                ],
            )
        ],
        flow=spine.population.flow,
        pictures=[("Two held-out patients, without and with the lesion: CT (coronal, maximum over 22 mm) and "
                   "the radiograph the methods score.", _gallery(spine, held_out))],
        embeddings=embeddings,
        caveats=[
            "Virtual patients are drawn, not scanned: nothing here says how any method does on real images.",
            f"Prevalence among the held-out is {prevalence:.2f}. By design most patients with a lesion and few "
            "others carry an effusion, a sign both CT and radiographs show.",
            "Encoders are trained on the training patients and frozen; the X-ray encoder never sees a CT or a DRR.",
            "Intervals take the trained encoders as given: another training sample would move them further.",
        ],
        run={k: v for k, v in read_json(out / "run.json").items() if k != "status"},  # it still says "running"
        failures=pd.DataFrame(failures),
    )  # fmt: skip


def _lead(evidence: Mapping[str, Any]) -> list[str]:
    declared = [tuple(pair) for pair in evidence["family"]]
    by_pair = {(c["a"], c["b"]): c for c in evidence["comparisons"]}
    against = [pair for pair in declared if pair[1] == evidence["reference"] and pair[0] != CONTROL]
    better = [a for a, b in against if _significantly_better(by_pair[a, b], evidence["alpha"])]
    first = (
        f"{len(better)} of {len(against)} methods that use CT in training alone score above {evidence['reference']} at "
        f"the family-wise 5 % level{': ' + ', '.join(better) if better else ''}."
    )
    told = [pair for pair in (("ct-only", evidence["reference"]), *declared) if pair in by_pair and pair[0] in TOLD]
    return [first, *[comparison_sentence(by_pair[pair], evidence["alpha"]) for pair in told]]


def _significantly_better(comparison: Mapping[str, Any], alpha: float) -> bool:
    delta, (_, p) = number(comparison["delta"]), deciding_p(comparison)
    return delta is not None and p is not None and delta > 0 and p < alpha


def _gallery(spine: Spine, held_out: Cases) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    root = spine.population.root
    volumes, pictures = np.load(root / VOLUMES, mmap_mode="r"), np.load(root / PICTURES, mmap_mode="r")
    figure, axes = plt.subplots(1, 4, figsize=(11, 3.1))
    for column, label in enumerate((0, 1)):
        patient = held_out.patient_ids[int(np.flatnonzero(held_out.label == label)[0])]
        index = int(patient[1:])
        volume = np.asarray(volumes[index])
        middle = volume.shape[1] // 2
        coronal = volume[::-1, middle - 2 : middle + 2].max(axis=1)
        name = "with lesion" if label else "without lesion"
        axes[2 * column].imshow(coronal, cmap="gray", vmin=-1000, vmax=400)
        axes[2 * column].set_title(f"CT, {name}", fontsize=9)
        axes[2 * column + 1].imshow(pictures[index], cmap="gray")
        axes[2 * column + 1].set_title(f"radiograph, {name}", fontsize=9)
    for axis in axes:
        axis.axis("off")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
