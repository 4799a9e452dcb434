"""Studies that are odd: their pages stay readable, whole, and under 5 MB."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from embedprior.evidence import evaluate_predictions
from embedprior.report import EvidenceSection, Report, report_html
from embedprior.report.content import Figure
from embedprior.report.figures import auc_figure, roc_figure
from embedprior.report.output import section_figures
from embedprior.report.verdicts import verdict_sentences


def table(
    methods: int = 3, pos: int = 12, neg: int = 18, labels: int = 1, resamples: int = 1, name: str = "m"
) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    rows = []
    for which in range(labels):
        for resample in range(resamples):
            label = np.repeat([1, 0], [pos, neg])
            for method in range(methods):
                score = np.clip(0.45 + 0.1 * label + 0.2 * rng.normal(size=label.size), 0.01, 0.99)
                rows.append(
                    pd.DataFrame(
                        {
                            "exam_id": [f"x{i}" for i in range(label.size)],
                            "patient_id": [f"p{i}" for i in range(label.size)], "label": label, "score": score,
                            "method": f"{name}{method}", "split": "test", "fold": 0, "seed": 0,
                            "label_name": f"finding {which}", "resample": resample,
                        }
                    )
                )  # fmt: skip
    frame = pd.concat(rows, ignore_index=True)
    return frame.drop(columns=[c for c, n in (("label_name", labels), ("resample", resamples)) if n == 1])


def with_gaps() -> pd.DataFrame:
    """One method lacks its score of a case that another has: it can't be compared."""
    frame = table(3)
    return frame[~((frame["method"] == "m2") & (frame["exam_id"] == "x3"))]


LONG = "préentraîné-на-рентгене-拡散モデル-with-a-name-that-nobody-would-type-"
STUDIES = {
    "one method": table(1),
    "forty methods": table(40),
    "two resamples": table(3, resamples=2),
    "one positive": table(3, pos=1),
    "one class": table(3, neg=0),
    "long names beyond ASCII": table(4, name=LONG),
    "twenty labels": table(3, labels=20),
}


def page_of(frame: pd.DataFrame) -> tuple[str, list[Figure]]:
    evidence = evaluate_predictions(frame, str(frame["method"].iloc[0]), bootstrap=0, train_size=20)
    section = EvidenceSection("All", evidence, frame)
    odd = pd.DataFrame({"a": [np.nan, None], "b": [LONG * 6, ""]})
    labels = frame["label_name"].unique() if "label_name" in frame else ()
    curves = [roc_figure(evidence, frame, label, 3.4) for label in labels]
    report = Report(
        "T", "Q", [], [section], tables=[("Gaps", odd, "")], verdict=verdict_sentences(evidence),
        figures=[auc_figure(evidence)] if len(labels) else [], label_curves=[curve for curve in curves if curve],
    )  # fmt: skip
    return report_html(report), section_figures(section)[0]


@pytest.mark.parametrize("kind", STUDIES)
def test_an_odd_study_has_a_whole_page_without_nan_or_none(kind: str, read_page) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fonts that lack a letter
        source, figures = page_of(STUDIES[kind])
    page = read_page(source)
    words = page.text.replace("(", " ").replace(")", " ").split()
    assert not {"nan", "NaN", "None", "inf"} & set(words)
    assert len(source) < 5_000_000
    names = set(STUDIES[kind]["method"])
    assert all(name in page.text for name in names)
    for figure in figures:
        width, height = Image.open(io.BytesIO(figure.png)).size
        assert width < 2200, figure.name
        assert height < 170 * 60, figure.name


def test_the_reason_why_no_comparison_is_tested_is_given_once(read_page) -> None:
    frame = STUDIES["one positive"]
    evidence = evaluate_predictions(frame, "m0", bootstrap=0)
    (reason,) = {c["reason"] for c in evidence["comparisons"]}
    page = read_page(page_of(frame)[0])
    assert page.text.count(f"No comparison here can be tested: {reason}.") == 1
    assert page.text.count(", no test; 19 patients, 1 pos / 18 neg.") == len(evidence["comparisons"]) == 2
    assert f"no test: {reason}" not in page.text
    one = evidence | {"comparisons": evidence["comparisons"][:1]}
    alone = read_page(report_html(Report("T", "Q", [], [EvidenceSection("All", one, frame)])))
    assert f"no test: {reason}" in alone.text


def test_no_figure_is_crowded_out_by_its_names() -> None:
    """The plots keep at least two fifths of the width, however long a name is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, figures = page_of(STUDIES["long names beyond ASCII"])
    (forest,) = [f for f in figures if f.name == "auc"]
    pixels = np.asarray(Image.open(io.BytesIO(forest.png)).convert("RGB")).astype(int)
    blue = (abs(pixels - [0, 114, 178]).sum(axis=2) < 30).any(axis=0)
    columns = np.flatnonzero(blue)
    assert np.ptp(columns) > 0.25 * pixels.shape[1]


def test_a_method_that_could_not_be_fitted_leaves_the_others_their_figures(read_page) -> None:
    frame = table(3, pos=25, neg=25)
    evidence = evaluate_predictions(frame, "m0", bootstrap=0)
    empty = dict.fromkeys(evidence["methods"][2])
    lost = empty | {"method": "m2", "oracle": False, "reason": "no pixels"}
    broken = evidence | {"methods": [*evidence["methods"][:2], lost]}
    section = EvidenceSection("All", broken, frame[frame["method"] != "m2"])
    names = {figure.name for figure in section_figures(section)[0]}
    assert {"roc", "auc", "calibration", "decision", "thresholds"} <= names
    page = read_page(report_html(Report("T", "Q", [], [section], verdict=verdict_sentences(broken))))
    assert "no pixels" in page.text


def test_a_table_without_an_id_for_each_case_is_refused_before_a_page_is_made() -> None:
    with pytest.raises(ValueError, match="m2"):
        page_of(with_gaps())
