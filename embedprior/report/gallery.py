"""Pictures of the cases themselves: radiograph, DRR and CT slice beside the score; and CTs near a generated embedding.

No patient's id or file name is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from embedprior.errors import EmbedpriorError
from embedprior.imaging.files import UnreadableExam, exam_file, read_array, split_path
from embedprior.imaging.preprocess import windowed
from embedprior.imaging.radiographs import read_image
from embedprior.imaging.readers import read_volume
from embedprior.imaging.volume import canonical
from embedprior.nn.standardise import Standardiser
from embedprior.report.content import Figure
from embedprior.report.figures import INK, png

Grey = NDArray[np.float32]
OUTCOMES = ("true positive", "false negative", "false positive", "true negative")
PER_OUTCOME, SIDE, GALLERY_DPI = 2, 200, 100
CT_WINDOW = (-1000.0, 400.0)
"""HU shown as black and as white."""
PICTURES = (".png", ".jpg", ".jpeg")


def exam_picture(root: Path, path: str, modality: str) -> Grey | None:
    """Return an exam as one grey picture of at most ``SIDE`` pixels; None where it can't be read.

    A CT volume is shown as its middle axial slice, lungs and soft tissue in one window (-1000 to 400 HU).

    Args:
        root: folder that paths are relative to.
        path: of the exam, as in the exam table.
        modality: ``CXR``, ``DRR`` or ``CT``.
    """
    if not path or not exam_file(root, path).exists():
        return None
    try:
        file, row = split_path(path)
        if modality != "CT" or file.lower().endswith(PICTURES):
            grey = read_image(root, path)
        elif row is not None or file.endswith(".npy"):
            array = read_array(root, path)
            middle = array[len(array) // 2] if array.ndim == 3 else array
            grey = _scaled(middle) if middle.dtype == np.uint8 else windowed(middle.astype(np.int16), *CT_WINDOW)
        else:
            volume = canonical(read_volume(root / path)[0])
            grey = windowed(volume.hu[volume.shape[0] // 2], *CT_WINDOW)
    except (UnreadableExam, EmbedpriorError, OSError):
        return None
    return _small(np.asarray(grey, dtype=np.float32))


def _scaled(values: NDArray[Any]) -> Grey:
    return (values / np.float32(255)).astype(np.float32)


def _small(grey: Grey) -> Grey:
    """Return a picture reduced by whole factors, each pixel the mean of those it stands for."""
    factor = max(1, max(grey.shape) // SIDE)
    rows, columns = (n // factor * factor for n in grey.shape)
    blocks = grey[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor)
    return np.asarray(blocks.mean(axis=(1, 3)), dtype=np.float32)


def outcome_of(label: float, score: float, threshold: float = 0.5) -> str:
    """Return which of the four outcomes a score is.

    Example:
        >>> [outcome_of(label, score) for label, score in ((1, 0.9), (1, 0.1), (0, 0.5), (0, 0.1))]
        ['true positive', 'false negative', 'false positive', 'true negative']
    """
    return OUTCOMES[(0 if score >= threshold else 1) if label == 1 else (2 if score >= threshold else 3)]


def chosen_cases(scores: pd.DataFrame) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """Yield each outcome with its cases, the surest first: highest scores called positive, lowest called negative.

    Args:
        scores: ``exam_id, label, score`` of one method; several fits of a case are averaged.
    """
    known = scores[scores["label"].notna()]
    cases = known.groupby("exam_id", sort=True).agg({"label": "max", "score": "mean"}).reset_index()
    cases["outcome"] = [outcome_of(y, s) for y, s in zip(cases["label"], cases["score"], strict=True)]
    for outcome in OUTCOMES:
        own = cases[cases["outcome"] == outcome]
        positive = outcome in ("true positive", "false positive")
        yield outcome, own.sort_values("score", ascending=not positive, kind="stable").to_dict("records")  # type: ignore[misc]


def cases_figure(
    root: Path, exams: pd.DataFrame, pairs: pd.DataFrame, scores: pd.DataFrame, method: str, label: str
) -> Figure | None:
    """Return radiograph, DRR and CT slice of the surest hits and misses of a method; None where no picture is there.

    Args:
        root: folder that paths are relative to.
        exams: ``exam_id, patient_id, modality, path``.
        pairs: ``cxr_exam_id, ct_exam_id``.
        scores: held-out scores of the method in [0, 1].
        method: its name.
        label: what is predicted.
    """
    if "path" not in exams.columns or scores.empty or scores["score"].min() < 0 or scores["score"].max() > 1:
        return None
    known = exams.assign(path=exams["path"].fillna("").astype(str)).set_index("exam_id")
    paths = {str(exam): str(path) for exam, path in known["path"].items()}
    ct_of = dict(zip(pairs["cxr_exam_id"], pairs["ct_exam_id"], strict=True)) if len(pairs) else {}
    drr_of = {v: k for k, v in ct_of.items() if k in known.index and known.at[k, "modality"] == "DRR"}
    by_patient = known[known["modality"] == "DRR"].reset_index().drop_duplicates("patient_id")
    drr_of_patient = dict(zip(by_patient["patient_id"], by_patient["exam_id"], strict=True))
    rows: list[tuple[str, float, list[Grey | None]]] = []
    for outcome, cases in chosen_cases(scores):
        found = 0
        for case in cases[: 4 * PER_OUTCOME]:
            exam = case["exam_id"]
            if found == PER_OUTCOME or exam not in known.index:
                continue
            grey = exam_picture(root, paths[exam], "CXR")
            if grey is None:
                continue
            ct = ct_of.get(exam, "")
            drr = drr_of.get(ct) or drr_of_patient.get(known.at[exam, "patient_id"], "")
            others = [exam_picture(root, paths.get(one, ""), kind) for one, kind in ((drr, "DRR"), (ct, "CT"))]
            rows.append((outcome, float(case["score"]), [grey, *others]))
            found += 1
    if not rows:
        return None
    kinds = ["radiograph", "DRR", "CT slice"]
    shown = [i for i in range(3) if any(pictures[i] is not None for *_, pictures in rows)]
    blocks = 2 if len(rows) > 1 else 1
    lines = -(-len(rows) // blocks)
    figure = Canvas(figsize=(1.75 * len(shown) * blocks + 0.4, 1.95 * lines), layout="constrained")
    grid = figure.subplots(lines, len(shown) * blocks, squeeze=False)
    for place in range(lines * blocks):
        line, block = divmod(place, blocks)
        for column, kind in enumerate(shown):
            axes = grid[line, block * len(shown) + column]
            axes.set_axis_off()
            if place >= len(rows):
                continue
            outcome, score, pictures = rows[place]
            _show(axes, pictures[kind])
            axes.set_title(f"{outcome}, {score:.2f}" if column == 0 else kinds[kind], fontsize=8, color=INK)
    data = pd.DataFrame([(o, s) for o, s, _ in rows], columns=["outcome", "score"])
    missing = [o for o in OUTCOMES if o not in set(data["outcome"])]
    names = " | ".join(kinds[i] for i in shown)
    caption = (
        f"Held-out cases that {method} scored highest and lowest: {names}. Positive: '{label}'; called positive from a "
        f"score of .5.{' None: ' + ', '.join(missing) + '.' if missing else ''} Examples, not evidence."
    )
    return Figure("cases", caption, png(figure, GALLERY_DPI), data)


def neighbours_figure(
    root: Path,
    exams: pd.DataFrame,
    generated: Mapping[str, NDArray[Any]],
    real: Mapping[str, NDArray[Any]],
    ct_of: Mapping[str, str],
    label: str,
    cases: int = 4,
    nearest: int = 3,
) -> Figure | None:
    """Return, for some radiographs, their own CT and the real CTs nearest to the embedding generated from them.

    Distance is Euclidean after scaling each dimension to the real CTs' standard deviation.

    Args:
        root: folder that paths are relative to.
        exams: ``exam_id, path`` and the column ``label``.
        generated: radiograph → (D,) generated embedding (a mean over samples).
        real: CT → (D,) embedding.
        ct_of: radiograph → its own CT.
        label: name of the column that is predicted.
        cases: radiographs shown, both labels in turn.
        nearest: CTs shown for each.
    """
    known = exams.assign(path=exams["path"].fillna("").astype(str)).set_index("exam_id")
    paths = {str(exam): str(path) for exam, path in known["path"].items()}
    ids = list(real)
    if not ids or not generated:
        return None
    values = np.stack([np.asarray(real[i], dtype=np.float64) for i in ids])
    scaler = Standardiser.fit(values)
    scaled = scaler.wide(values)
    rows, found = [], []
    for exam in _in_turn(list(generated), known[label]):
        own = ct_of.get(exam, "")
        point = scaler.wide(np.asarray(generated[exam], dtype=np.float64)[None])
        distance = np.sqrt(((scaled - point) ** 2).mean(axis=1))
        order = np.argsort(distance, kind="stable")
        rank = int(np.flatnonzero(order == ids.index(own))[0]) + 1 if own in ids else None
        pictures = [(exam, "CXR", "radiograph"), (own, "CT", f"own CT: place {rank}" if rank else "own CT")]
        pictures += [(ids[i], "CT", f"{_word(known, ids[i], label)}, {distance[i]:.2f}") for i in order[:nearest]]
        ready = [(exam_picture(root, paths.get(i, ""), kind), text)
                 for i, kind, text in pictures]  # fmt: skip
        if ready[0][0] is None:
            continue
        rows.append((_word(known, exam, label), ready))
        found.append({"label": _word(known, exam, label), "place of the own CT": rank, "real CTs": len(ids)})
        if len(rows) == cases:
            break
    if not rows:
        return None
    figure = Canvas(figsize=(1.75 * (2 + nearest), 1.95 * len(rows)), layout="constrained")
    for line, (word, ready) in zip(figure.subplots(len(rows), 2 + nearest, squeeze=False), rows, strict=True):
        for axes, (grey, text) in zip(line, ready, strict=True):
            axes.set_axis_off()
            _show(axes, grey)
            axes.set_title(f"{text}, {word}" if text == "radiograph" else text, fontsize=8, color=INK)
    caption = (
        f"The real CTs nearest to the embedding generated from a radiograph, with their label and distance (in "
        f"standard deviations a dimension); 'place': how many of {len(ids)} CTs are as near as the patient's own."
    )
    return Figure("neighbours", caption, png(figure, GALLERY_DPI), pd.DataFrame(found))


def _in_turn(ids: Sequence[str], label: pd.Series) -> list[str]:
    """Return the ids, positive and negative in turn."""
    positive = [i for i in ids if label.get(i) == 1]
    negative = [i for i in ids if label.get(i) == 0]
    longest = max(len(positive), len(negative))
    return [i for k in range(longest) for i in (*positive[k : k + 1], *negative[k : k + 1])]


def _word(exams: pd.DataFrame, exam: str, label: str) -> str:
    value = exams[label].get(exam)
    return "unknown" if value is None or pd.isna(value) else "positive" if value == 1 else "negative"


def _show(axes: Axes, grey: Grey | None) -> None:
    if grey is None:
        axes.text(0.5, 0.5, "none", ha="center", va="center", fontsize=8, color=INK)
    else:
        axes.imshow(grey, cmap="gray", vmin=0, vmax=max(float(grey.max()), 1e-6), aspect="equal")
