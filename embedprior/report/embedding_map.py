"""t-SNE maps: generated CT embeddings among real ones, and a sampling from noise to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from embedprior.errors import BadInput
from embedprior.nn.standardise import Standardiser
from embedprior.report.content import EmbeddingView, Figure
from embedprior.report.figures import BLUE, GREEN, INK, MUTED, ORANGE, VERMILION, png

Floats = NDArray[np.float64]

#: Name, colour, marker area: a CT stays visible under the generated embedding that hits it.
SPACES = (("CT", BLUE, 42), ("generated from the X-ray", VERMILION, 16), ("X-ray", GREEN, 20))
SAMPLING_STATES = (("0", "start: noise", MUTED), ("1", "half way", ORANGE), ("2", "end: sample", VERMILION))
#: Barnes-Hut t-SNE takes seconds up to about this many cases a space.
MAX_CASES = 500
#: Below this, neighbourhoods mean nothing.
MIN_CASES = 10


def standardised(view: EmbeddingView) -> tuple[Floats, Floats, Floats]:
    """Return (CT, generated, X-ray) embeddings, each space scaled to mean 0 and standard deviation 1 per dimension.

    Generated embeddings lie in the CT space and take the CT's mean and standard deviation, so that a prior that
    collapses or drifts stays visible.

    Raises:
        BadInput: case counts differ, or an embedding is not finite.
    """
    ct, generated, cxr = (np.asarray(x, dtype=np.float64) for x in (view.ct, view.generated, view.cxr))
    counts = {"ct": len(ct), "generated": len(generated), "cxr": len(cxr), "labels": len(view.labels)}
    if len(set(counts.values())) > 1:
        raise BadInput(f"the embedding view needs the same cases in every space; got {counts}.")
    if ct.shape[1:] != generated.shape[1:]:
        raise BadInput(
            f"generated embeddings {generated.shape[1:]} are not of the CT space {ct.shape[1:]}: dimensions must agree."
        )
    for name, values in (("ct", ct), ("generated", generated), ("cxr", cxr)):
        if not np.isfinite(values).all():
            raise BadInput(f"the {name} embeddings of the view hold NaN or infinite values.")
    scaler = Standardiser.fit(ct)
    return scaler.wide(ct), scaler.wide(generated), Standardiser.fit(cxr).wide(cxr)


def embedding_figure(view: EmbeddingView) -> Figure | str:
    """Return the map, or the reason why there is none: too few cases.

    Spaces of different width cannot share a map: the radiographs then get a panel of their own.

    Raises:
        BadInput: see :func:`standardised`.
    """
    ct, generated, cxr = standardised(view)
    labels = np.asarray(view.labels, dtype=np.float64)
    if len(ct) < MIN_CASES:
        return f"No t-SNE: {len(ct)} held-out cases have all three embeddings, {MIN_CASES} are needed."
    kept = np.arange(len(ct))
    if len(ct) > MAX_CASES:
        kept = np.sort(np.random.default_rng(view.seed).choice(len(ct), MAX_CASES, replace=False))
    ct, generated, cxr, labels = ct[kept], generated[kept], cxr[kept], labels[kept]
    joint = ct.shape[1] == cxr.shape[1]
    groups = [[ct, generated, cxr]] if joint else [[ct, generated], [cxr]]
    figure = Canvas(figsize=(5.2, 5.4) if joint else (5.2, 9.2), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    spaces, places = iter(SPACES), list[pd.DataFrame]()
    for axes, arrays in zip(panels, groups, strict=True):
        points = np.split(tsne(np.concatenate(arrays), view.seed), len(arrays))
        for positions, (name, colour, size) in zip(points, spaces, strict=False):
            _scatter(axes, positions, labels, colour, size)
            places.append(pd.DataFrame({"space": name, "x": positions[:, 0], "y": positions[:, 1], "label": labels}))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#c9cfd8")
    figure.legend(
        handles=_legend(view.label_name, labels), loc="outside lower left", ncols=2, fontsize=9, frameon=False
    )
    caption = _caption(joint, len(kept), len(view.labels), view.seed)
    return Figure("embedding-map", caption, png(figure), pd.concat(places, ignore_index=True))


def tsne(values: Floats, seed: int) -> Floats:
    """Return the (n, 2) t-SNE of (n, D) values: Euclidean, perplexity 30 or a third of the points, PCA start."""
    from sklearn.decomposition import PCA  # slow to import
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(values) - 1) / 3)
    components = min(50, *values.shape)
    reduced = PCA(components, random_state=seed).fit_transform(values)
    start = reduced[:, :2] if components > 1 else np.pad(reduced, ((0, 0), (0, 1)))
    spread = start[:, 0].std()
    start = start / (spread if spread > 0 else 1.0) * 1e-4
    found = TSNE(2, perplexity=perplexity, init=start, random_state=seed, n_jobs=1).fit_transform(reduced)
    return np.asarray(found, dtype=np.float64)


def _scatter(axes: Any, positions: Floats, labels: Floats, colour: str, size: int) -> None:
    kinds = ((labels == 0, "o", "none"), (labels == 1, "^", colour), (np.isnan(labels), "x", colour))
    for member, marker, face in kinds:
        if member.any():
            edge = {"facecolors": face, "edgecolors": colour} if marker != "x" else {"color": colour}
            axes.scatter(*positions[member].T, s=size, marker=marker, linewidths=0.9, alpha=0.75, **edge)


def _legend(label_name: str, labels: Floats) -> list[Line2D]:
    handles = [Line2D([], [], marker="s", linestyle="", color=colour, label=name) for name, colour, _ in SPACES]
    handles.append(Line2D([], [], marker="^", linestyle="", color=INK, label=label_name))
    negative = f"not {label_name}"
    handles.append(Line2D([], [], marker="o", linestyle="", color=INK, markerfacecolor="none", label=negative))
    if np.isnan(labels).any():
        handles.append(Line2D([], [], marker="x", linestyle="", color=INK, label="unknown"))
    return handles


def _caption(joint: bool, shown: int, total: int, seed: int) -> str:
    cases = f"{shown} of {total} held-out cases" if shown < total else f"{total} held-out cases"
    scaling = (
        "Each space is standardised by its own mean and standard deviation per dimension; generated embeddings by "
        "the CT's."
    )
    if joint:
        return (
            f"t-SNE of CT, generated and X-ray embeddings of {cases} (seed {seed}). {scaling} CT and generated share "
            "a space; how far the X-ray cloud lies from them carries no meaning."
        )
    return (
        f"t-SNE of {cases} (seed {seed}): above, CT and generated embeddings; below, X-ray embeddings, whose space has "
        f"another number of dimensions. {scaling}"
    )


def path_figure(clouds: Mapping[str, Floats], seed: int) -> bytes:
    """Return PNG: one t-SNE of real CT embeddings and of a sampling at its start, middle and end, a panel a state.

    Args:
        clouds: ``real`` and ``0``, ``1``, ``2`` → (n, D), standardised, the same patients.
        seed: of the t-SNE. It is fitted once, to all four clouds together, so that panels can be compared.
    """
    names = ["real", *(name for name, _, _ in SAMPLING_STATES)]
    places = dict(zip(names, np.split(tsne(np.concatenate([clouds[n] for n in names]), seed), len(names)), strict=True))
    figure = Canvas(figsize=(9.6, 3.7), layout="constrained")
    for axes, (name, title, colour) in zip(
        figure.subplots(1, 3, sharex=True, sharey=True), SAMPLING_STATES, strict=True
    ):
        axes.scatter(*places["real"].T, s=16, facecolors="none", edgecolors=BLUE, linewidths=0.7, label="real CT")
        axes.scatter(*places[name].T, s=9, color=colour, alpha=0.8, linewidths=0, label=title)
        axes.set_title(title, fontsize=10, color=INK)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#c9cfd8")
        axes.legend(loc="upper left", fontsize=8, frameon=False, handletextpad=0.2, borderpad=0.1)
    return png(figure)


def stages_figure(
    real: Floats, stages: Mapping[str, Floats], labels: Floats, label_name: str, seed: int = 0
) -> Figure | None:
    """Return one t-SNE of real CT embeddings and of generated ones before training and after each of its stages.

    Args:
        real: (cases, D) embeddings of the held-out CTs.
        stages: stage → (cases, D) embeddings generated for the same cases, in order.
        labels: (cases,) 1, 0 or NaN.
        label_name: what a 1 means.
        seed: of the t-SNE, which is fitted once, to all clouds together, and of the noise: one draw a case from a
            normal distribution with the real CTs' mean and standard deviation of each dimension, where sampling starts.
    """
    if len(real) < MIN_CASES:
        return None
    scaler = Standardiser.fit(np.asarray(real, dtype=np.float64))
    clouds = {"real CT": scaler.wide(real)}
    clouds["before training: noise"] = np.random.default_rng(seed).normal(size=real.shape)
    clouds |= {name: scaler.wide(values) for name, values in stages.items()}
    parts = np.split(tsne(np.concatenate(list(clouds.values())), seed), len(clouds))
    places = dict(zip(clouds, parts, strict=True))
    names = [name for name in clouds if name != "real CT"]
    figure = Canvas(figsize=(3.2 * len(names), 3.9), layout="constrained")
    found = []
    for axes, name in zip(figure.subplots(1, len(names), sharex=True, sharey=True), names, strict=True):
        for which, colour, size in (("real CT", BLUE, 30), (name, VERMILION, 14)):
            _scatter(axes, places[which], labels, colour, size)
        axes.set_title(name, fontsize=10, color=INK)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#c9cfd8")
    for name, values in places.items():
        found.append(pd.DataFrame({"cloud": name, "x": values[:, 0], "y": values[:, 1], "label": labels}))
    handles = [handle for handle in _legend(label_name, labels) if handle.get_label() != SPACES[2][0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    caption = (
        f"t-SNE of {len(real)} held-out cases at the stages of the prior's training: generated embeddings should move "
        "onto the real CTs of their label. Generated: mean over samples."
    )
    return Figure("training-stages", caption, png(figure), pd.concat(found, ignore_index=True))
