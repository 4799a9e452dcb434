from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from embedprior.cache import build_cache, open_cache
from embedprior.cache.build import fill_cache
from embedprior.cache.format import cache_location
from embedprior.cache.plan import plan, refuse_second_cache
from embedprior.encoders.base import encoder_key
from embedprior.errors import BadInput
from embedprior.runs import write_json

from .conftest import MeanEncoder, expected, make_exams, rows, tree


def test_cache_holds_what_the_encoder_says(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 7)
    cache, failures = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache", batch_size=3)
    assert failures == []
    assert cache.ids == list(exams["exam_id"])
    np.testing.assert_allclose(cache.take(["e6", "e0"]), expected(tmp_path, [6, 0]), atol=1e-6)
    np.testing.assert_allclose(cache.matrix, expected(tmp_path, list(range(7))), atol=1e-6)
    np.testing.assert_array_equal(cache.take(["e6", "e0"]), cache.matrix[[6, 0]])


def test_second_run_embeds_nothing_and_a_changed_file_only_itself(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 4)
    build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache", batch_size=2)
    again = MeanEncoder()
    build_cache(exams, tmp_path, again, tmp_path / "cache")
    assert again.seen == 0
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "2.png")
    cache, _ = build_cache(exams, tmp_path, again, tmp_path / "cache")
    assert again.seen == 1
    np.testing.assert_array_equal(cache.take(["e2"]), np.zeros((1, 4)))
    assert cache.ids == ["e0", "e1", "e2", "e3"]
    np.testing.assert_array_equal(open_cache(cache.path).take(["e2"]), np.zeros((1, 4)))


def test_one_damaged_exam_is_recorded_and_the_rest_go_on(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 4)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    (tmp_path / "3.png").unlink()
    cache, failures = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache")
    assert cache.ids == ["e0", "e2"]
    assert sorted(f["exam_id"] for f in failures) == ["e1", "e3"]
    assert not any(str(tmp_path) in f["reason"] for f in failures)
    with pytest.raises(BadInput, match="e1"):
        cache.take(["e0", "e1"])


def test_embedding_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    class Broken(MeanEncoder):
        def embed(self, batch: np.ndarray) -> np.ndarray:
            found = super().embed(batch)
            found[0, 1] = np.inf
            return found

    cache, failures = build_cache(make_exams(tmp_path, 3), tmp_path, Broken(), tmp_path / "cache")
    assert cache.ids == ["e1", "e2"]
    assert "not finite" in failures[0]["reason"]


def test_reader_that_raises_what_it_likes_costs_one_exam(tmp_path: Path) -> None:
    class Fragile(MeanEncoder):
        def read(self, root: Path, path: str) -> np.ndarray:
            if path == "1.png":
                raise KeyError(f"{root}/{path}")
            return super().read(root, path)

    exams = make_exams(tmp_path, 4).assign(path=["0.png", "1.png", None, "3.png"])
    cache, failures = build_cache(exams, tmp_path, Fragile(), tmp_path / "cache")
    assert cache.ids == ["e0", "e3"]
    reasons = {f["exam_id"]: f["reason"] for f in failures}
    assert reasons == {"e1": "it can't be read (KeyError)", "e2": "the table gives it no path"}
    ahead = plan([exams], tmp_path, Fragile(), cache_location(tmp_path / "other", Fragile().spec))
    assert (ahead.exams, ahead.missing, ahead.absent, ahead.write_bytes) == (4, 3, 1, 3 * 4 * 4)
    assert ahead.read_bytes == sum((tmp_path / f"{n}.png").stat().st_size for n in (0, 1, 3))


@pytest.mark.parametrize("workers", [0, 1])
def test_file_that_changes_between_hash_and_reading_is_not_stored(tmp_path: Path, workers: int) -> None:
    """Its row would stand under the hash of a picture that it does not show."""

    class Replaced(MeanEncoder):
        def read(self, root: Path, path: str) -> np.ndarray:
            if path == "1.png":
                Image.fromarray(np.full((8, 8), 9, np.uint8)).save(root / path)
            return super().read(root, path)

    exams = make_exams(tmp_path, 3)
    cache, failures = build_cache(exams, tmp_path, Replaced(), tmp_path / "cache", workers=workers)
    assert cache.ids == ["e0", "e2"]
    assert "changed while it was read" in failures[0]["reason"]
    cache, _ = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache")
    np.testing.assert_allclose(cache.take(["e1"]), expected(tmp_path, [1]), atol=1e-6)


def test_array_file_written_again_is_read_again_in_the_same_process(tmp_path: Path) -> None:
    exams = pd.DataFrame({"exam_id": ["a", "b"], "path": ["all.npy#0", "all.npy#1"]})
    for value in (50, 100):
        np.save(tmp_path / "new.npy", np.full((2, 8, 8), value, np.uint8))
        (tmp_path / "new.npy").replace(tmp_path / "all.npy")
        cache, _ = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache")
        np.testing.assert_allclose(cache.matrix, value / 255, atol=1e-6)


@pytest.mark.parametrize("in_pieces", [False, True])
def test_exam_that_is_in_the_table_twice_is_refused(tmp_path: Path, in_pieces: bool) -> None:
    exams = make_exams(tmp_path, 6)
    exams.loc[5, "exam_id"] = "e1"
    table = (exams.iloc[n : n + 2] for n in range(0, 6, 2)) if in_pieces else exams
    with pytest.raises(BadInput, match=r"repeated 'exam_id' in line \d \('e1'\)"):
        fill_cache(table, tmp_path, MeanEncoder(), tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"weights_sha256": "other"}, "weights_sha256"),
        ({"profile": {"transform_version": 1, "side": 9}}, r"profile\.side: 8, not 9"),
        ({"profile": {"transform_version": 2, "side": 8}}, r"profile\.transform_version"),
        ({"dtype": "float16"}, "dtype: 'float32', not 'float16'"),
        ({"pooling": "none"}, "pooling"),
        ({"precision": "bf16"}, "precision"),
    ],
)
def test_another_origin_is_refused_with_the_field_named(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    out, exams = tmp_path / "cache", make_exams(tmp_path, 2)
    cache, _ = build_cache(exams, tmp_path, MeanEncoder(), out)
    build_cache(exams, tmp_path, MeanEncoder(name="another"), out)  # `current` names this one now
    other = MeanEncoder(**change).spec
    with pytest.raises(BadInput, match=field):
        open_cache(cache.path, expect=encoder_key(other))
    with pytest.raises(BadInput, match=field):
        refuse_second_cache(out, cache_location(out, other))
    assert cache_location(out, other).folder != cache.path


def test_manifest_of_another_key_is_never_filled(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 2)
    cache, _ = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache")
    key = cache.key | {"weights_sha256": "swapped"}
    write_json(cache.path / "manifest.json", {"key": key, "spec": {}})
    before = tree(cache.path)
    with pytest.raises(BadInput, match="weights_sha256"):
        build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache")
    assert tree(cache.path) == before


def test_cohorts_that_share_an_exam_id_keep_their_own_rows(tmp_path: Path) -> None:
    first, second = make_exams(tmp_path / "a", 3, seed=1), make_exams(tmp_path / "b", 3, seed=2)
    out = tmp_path / "cache"
    a, _ = build_cache(first, tmp_path / "a", MeanEncoder(), out)
    b, _ = build_cache(second, tmp_path / "b", MeanEncoder(), out)
    assert a.path == b.path
    again = MeanEncoder()
    a, _ = build_cache(first, tmp_path / "a", again, out)
    assert again.seen == 0
    np.testing.assert_allclose(a.matrix, expected(tmp_path / "a", [0, 1, 2]), atol=1e-6)
    np.testing.assert_allclose(b.matrix, expected(tmp_path / "b", [0, 1, 2]), atol=1e-6)
    np.testing.assert_array_equal(open_cache(out).matrix, a.matrix)  # `current`: the last one filled
    picked = open_cache(a.path, exams=second.iloc[::-1], root=tmp_path / "b")
    assert picked.ids == ["e2", "e1", "e0"]
    np.testing.assert_array_equal(picked.matrix, b.matrix[::-1])
    with pytest.raises(BadInput, match="'e0' of two cohorts"):
        open_cache(a.path)


def test_exam_table_with_another_file_is_refused_when_opened(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 2)
    cache, _ = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(BadInput, match="no embedding of their present file: e1"):
        open_cache(cache.path, exams=exams, root=tmp_path)


def test_folder_of_caches_opens_the_current_one_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 2)
    build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache")
    second, _ = build_cache(exams, tmp_path, MeanEncoder(weights_sha256="new"), tmp_path / "cache")
    assert open_cache(tmp_path / "cache").path == second.path
    with pytest.raises(BadInput, match="no embedding cache"):
        open_cache(tmp_path / "nowhere")


def test_tokens_of_exams_of_any_size_lie_side_by_side(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 5, sides=(8, 12, 6))
    cache, _ = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache", batch_size=4, tokens=True)
    assert cache.has_tokens
    assert cache.counts().tolist() == [8, 12, 6, 8, 12]
    for n, exam_id in enumerate(cache.ids):
        picture = np.asarray(Image.open(tmp_path / f"{n}.png")) / np.float32(255)
        np.testing.assert_allclose(cache.tokens(n), rows(picture), atol=1e-6)
        np.testing.assert_array_equal(cache.tokens(n), cache.tokens(exam_id))
    with pytest.raises(BadInput, match="holds tokens"):
        _ = cache.matrix
    plain, _ = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache")
    assert plain.path != cache.path
    with pytest.raises(BadInput, match="gives no tokens"):
        build_cache(exams, tmp_path, MeanEncoder(token_dim=None), tmp_path / "cache", tokens=True)


def test_pictures_of_one_shape_go_through_the_encoder_together(tmp_path: Path) -> None:
    encoder = MeanEncoder()
    build_cache(make_exams(tmp_path, 6, sides=(8, 12)), tmp_path, encoder, tmp_path / "cache", batch_size=6)
    assert sorted(encoder.batches) == [(3, 8, 8), (3, 12, 12)]


def test_readers_in_other_processes_change_no_byte_and_no_random_number(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 9, sides=(8, 12))
    build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "one", batch_size=2)
    torch.manual_seed(3)
    build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "two", batch_size=2, workers=2)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_encoder_whose_width_differs_from_its_spec_is_refused(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 2)
    with pytest.raises(BadInput, match="its spec says 5"):
        build_cache(exams, tmp_path, MeanEncoder(dim=5), tmp_path / "cache")
    with pytest.raises(BadInput, match=r"shapes \[\(8, 2\), \(8, 2\)\]; its spec says n x 3"):
        build_cache(exams, tmp_path, MeanEncoder(token_dim=3), tmp_path / "cache", tokens=True)
    assert not list((tmp_path / "cache").rglob("shard-*"))


def test_patients_seen_travel_with_the_cache(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 2)
    known, _ = build_cache(exams, tmp_path, MeanEncoder(patients_seen=("p1", "p9")), tmp_path / "a")
    unknown, _ = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "b")
    assert known.patients_seen == {"p1", "p9"}
    assert unknown.patients_seen is None
    assert known.key == unknown.key


def test_exam_id_with_a_comma_and_an_empty_cohort(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 2).assign(exam_id=['a,"b"', "ü\u2028"])
    build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "cache")
    assert open_cache(tmp_path / "cache").ids == ['a,"b"', "ü\u2028"]
    empty, _ = build_cache(exams.head(0), tmp_path, MeanEncoder(), tmp_path / "cache")
    assert empty.ids == []
    assert empty.matrix.shape == (0, 4)
