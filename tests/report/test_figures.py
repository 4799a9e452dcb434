from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from embedprior.errors import BadInput
from embedprior.report.content import EmbeddingView, Figure
from embedprior.report.embedding_map import embedding_figure, standardised, tsne
from embedprior.report.figures import forest_figure, held_out, method_roc, roc_figure, style_of


def folds(shift: float) -> pd.DataFrame:
    """Two folds of one method with tied scores; the second fold's scores are shifted."""
    rng = np.random.default_rng(3)
    parts = []
    for fold, size in ((0, 40), (1, 24)):
        label = (np.arange(size) % 3 == 0).astype(float)
        score = np.round(label + rng.normal(size=size), 1) + shift * fold
        parts.append(pd.DataFrame({"label": label, "score": score, "fold": fold, "seed": 0}))
    return pd.concat(parts)


def area(curve: tuple[np.ndarray, np.ndarray]) -> float:
    return float(np.trapezoid(curve[1], curve[0]))


def test_the_area_under_the_mean_curve_is_the_fold_stratified_auc() -> None:
    rows = folds(shift=0.0)
    weights, aucs = [], []
    for _, part in rows.groupby("fold"):
        weights.append((part.label == 1).sum() * (part.label == 0).sum())
        aucs.append(roc_auc_score(part.label, part.score))
    curve = method_roc(rows)
    assert curve is not None
    assert area(curve) == pytest.approx(np.average(aucs, weights=weights), abs=1e-12)
    assert (np.diff(curve[0]) >= 0).all()
    assert (np.diff(curve[1]) >= -1e-12).all()


def test_folds_on_different_scales_are_not_pooled() -> None:
    together, apart = method_roc(folds(shift=0.0)), method_roc(folds(shift=50.0))
    assert together is not None
    assert apart is not None
    assert area(apart) == pytest.approx(area(together), abs=1e-12)
    assert roc_auc_score(folds(50.0).label, folds(50.0).score) < area(apart) - 0.05


def test_a_fold_of_one_class_is_left_out_and_nothing_is_drawn_when_all_are() -> None:
    rows = folds(shift=0.0)
    alone, single = method_roc(rows[rows.fold == 0]), rows.assign(label=rows.label.where(rows.fold == 0, 1.0))
    curve = method_roc(single)
    assert alone is not None
    assert curve is not None
    assert area(curve) == pytest.approx(area(alone))
    assert method_roc(rows.assign(label=1.0)) is None


def test_curves_are_drawn_from_test_rows_only_and_per_patient_where_that_is_the_unit() -> None:
    rows = pd.DataFrame(
        {
            "patient_id": ["a", "a", "b", "c"], "label": [0.0, 1.0, 0.0, 1.0], "method": "m",
            "score": [0.2, 0.6, 0.1, 0.9], "fold": 0, "seed": 0, "split": ["test", "test", "test", "train"],
        }
    )  # fmt: skip
    assert len(held_out(rows)) == 3
    per_patient = held_out(rows, "patient").set_index("patient_id")
    assert per_patient.loc["a", ["label", "score"]].tolist() == [1.0, pytest.approx(0.4)]
    assert list(per_patient.index) == ["a", "b"]


def test_oracles_are_dashed_and_grey_and_deployable_methods_differ_in_line() -> None:
    methods = [f"m{i}" for i in range(12)] + ["ct"]
    styles = style_of(methods, frozenset({"ct"}))
    assert styles["ct"]["linestyle"] != "-"
    seen = {(str(styles[m]["color"]), str(styles[m]["linestyle"])) for m in methods}
    assert len(seen) == len(methods)


def test_figures_that_would_be_empty_are_not_drawn(evidence: dict, predictions: pd.DataFrame) -> None:
    undefined = [c | {"delta": None} for c in evidence["comparisons"]]
    assert forest_figure(evidence | {"comparisons": undefined}) is None
    assert forest_figure(evidence | {"comparisons": []}) is None
    assert roc_figure(evidence, predictions.assign(label=1.0)) is None
    assert roc_figure(evidence, pd.DataFrame()) is None


def view(n: int = 24, width: int = 5, cxr_width: int = 5, **other: object) -> EmbeddingView:
    rng = np.random.default_rng(1)
    ct = rng.normal(3.0, 2.0, size=(n, width))
    values = {
        "ct": ct, "generated": ct + 4.0, "cxr": rng.normal(-9.0, 0.1, size=(n, cxr_width)),
        "labels": np.arange(n) % 2 * 1.0,
    }  # fmt: skip
    return EmbeddingView(**(values | other))  # type: ignore[arg-type]


def test_generated_embeddings_keep_their_drift_from_the_ct() -> None:
    given = view()
    ct, generated, cxr = standardised(given)
    for space in (ct, cxr):
        np.testing.assert_allclose(space.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(space.std(axis=0), 1)
    np.testing.assert_allclose(generated - ct, np.broadcast_to(4.0 / np.asarray(given.ct).std(axis=0), ct.shape))


def test_a_constant_dimension_does_not_divide_by_zero() -> None:
    ct = np.ones((24, 5))
    assert all(np.isfinite(space).all() for space in standardised(view(ct=ct, generated=ct)))


@pytest.mark.parametrize(
    "other, words",
    [
        ({"labels": np.zeros(3)}, "same cases"),
        ({"generated": np.zeros((24, 4))}, "dimensions must agree"),
        ({"cxr": np.full((24, 5), np.nan)}, "cxr embeddings"),
    ],
)
def test_embeddings_that_do_not_belong_together_are_refused(other: dict, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        embedding_figure(view(**other))


def test_the_map_is_the_same_for_the_same_seed_and_separates_what_is_far_apart() -> None:
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(0, 0.1, size=(20, 8)), rng.normal(9, 0.1, size=(20, 8))])
    first, second = tsne(values, 4), tsne(values, 4)
    np.testing.assert_array_equal(first, second)
    centres = np.stack([first[:20].mean(axis=0), first[20:].mean(axis=0)])
    nearest = np.linalg.norm(first[:, None] - centres, axis=2).argmin(axis=1)
    np.testing.assert_array_equal(nearest, np.repeat([0, 1], 20))


def test_few_cases_give_a_reason_instead_of_a_map() -> None:
    assert "6 held-out cases" in str(embedding_figure(view(n=6)))


def test_spaces_of_different_width_get_panels_of_their_own() -> None:
    joint, split = embedding_figure(view()), embedding_figure(view(cxr_width=9))
    assert isinstance(joint, Figure)
    assert isinstance(split, Figure)
    assert "share a space" in joint.caption
    assert "another number of dimensions" in split.caption
    assert joint.data["space"].value_counts().tolist() == [24, 24, 24]
