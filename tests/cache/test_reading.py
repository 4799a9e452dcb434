from __future__ import annotations

import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from embedprior.cache import CacheWriter, PairDataset, build_cache, open_cache, write_cache
from embedprior.cache.build import fill_cache
from embedprior.cache.exchange import export_npy, export_parquet, first_shape, import_npy
from embedprior.cache.loading import ExamTable
from embedprior.cache.verify import diff, quantization_error
from embedprior.encoders.base import EncoderSpec
from embedprior.errors import BadInput
from embedprior.runs import hash_file

from .conftest import MeanEncoder, make_exams
from .test_shards import Payload

VALUES = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
IDS, SOURCES = [f"s{i}" for i in range(5)], [f"{i:064x}" for i in range(5)]


def spec(**changes: object) -> EncoderSpec:
    return MeanEncoder(**changes).spec


def ragged(dim: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.normal(size=(n, dim)).astype(np.float32) for n in (3, 1, 7, 2, 4)]


def test_rows_written_by_hand_come_back_and_are_not_written_twice(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, spec()) as writer:
        assert writer.append(IDS[:3], SOURCES[:3], VALUES[:3]) == 3
        assert writer.has("s1", SOURCES[1])
        assert not writer.has("s1", SOURCES[2])
    resumed = CacheWriter(tmp_path, spec())
    assert resumed.ids == IDS[:3]
    assert resumed.append(IDS, SOURCES, VALUES) == 2
    assert resumed.append(["s0"], ["f" * 64], VALUES[4:]) == 1  # another source replaces the row
    cache = resumed.close()
    np.testing.assert_array_equal(cache.take(IDS), VALUES[[4, 1, 2, 3, 4]])
    np.testing.assert_array_equal(open_cache(tmp_path).take(IDS), cache.take(IDS))


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        (["a", "a"], VALUES[:2], "each exam once"),
        (["a", "b"], VALUES[:1], "as many"),
        (["a", "b"], VALUES[:2, :3], "4 numbers a row"),
        (["a", "b"], np.array([[0, 0, 0, np.nan]] * 2, np.float32), "not finite"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path: Path, ids: list[str], rows: np.ndarray, message: str) -> None:
    with CacheWriter(tmp_path, spec()) as writer, pytest.raises(BadInput, match=message):
        writer.append(ids, SOURCES[:2], rows)


def test_reads_by_map_and_from_memory_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embedprior.cache.reader.COPY_AFTER", 1.0)
    with CacheWriter(tmp_path, spec(dtype="bfloat16")) as writer:
        for n in range(5):
            writer.append(IDS[n : n + 1], SOURCES[n : n + 1], VALUES[n : n + 1])
    cache, rows = open_cache(tmp_path), [4, 0, 4, 2]
    by_map = cache.read(rows)
    assert "matrix" not in cache.__dict__
    cache.read(rows)  # by now more rows were read than there are
    assert "matrix" in cache.__dict__
    np.testing.assert_array_equal(cache.read(rows), by_map)
    np.testing.assert_array_equal(by_map, torch.from_numpy(VALUES[rows]).bfloat16().float().numpy())
    np.testing.assert_array_equal(cache.take([IDS[i] for i in rows]), by_map)


def test_a_cache_of_more_shards_than_open_files_is_read(tmp_path: Path) -> None:
    tokens = ragged(2)
    write_cache(tmp_path / "ragged", spec(), IDS, SOURCES, tokens, tokens=True)
    with CacheWriter(tmp_path / "flat", spec(dtype="float16")) as writer:
        for n in range(60):
            writer.append([f"e{n}"], [f"{n:064x}"], np.full((1, 4), n, np.float32))
    flat, several = open_cache(tmp_path / "flat"), open_cache(tmp_path / "ragged")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, before[1]))
    try:
        mapped = flat._gather(np.arange(59, -1, -1))
        token = several.tokens("s2")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    np.testing.assert_array_equal(mapped, np.repeat(np.arange(59.0, -1, -1)[:, None], 4, 1))
    np.testing.assert_array_equal(token, tokens[2])
    with pytest.raises(ValueError, match="read-only"):
        token[0, 0] = 1


def test_an_open_cache_reaches_another_process_without_its_numbers(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, spec(), IDS, SOURCES, VALUES)
    cache.tokens(0)
    np.testing.assert_array_equal(cache.matrix, VALUES)
    sent = pickle.dumps(cache)
    assert VALUES.tobytes()[:16] not in sent
    np.testing.assert_array_equal(pickle.loads(sent).take(IDS[::-1]), VALUES[::-1])


@pytest.mark.parametrize("in_memory", [True, False])
def test_pairs_reach_the_training_loop_side_by_side(tmp_path: Path, in_memory: bool) -> None:
    cxr = write_cache(tmp_path / "cxr", spec(), IDS, SOURCES, VALUES)
    ct = write_cache(tmp_path / "ct", spec(), [f"c{i}" for i in range(5)], SOURCES, -VALUES)
    pairs = pd.DataFrame(
        {"pair_id": ["q0", "q1", "q2"], "patient_id": "p", "cxr_exam_id": ["s4", "s0", "s0"],
         "ct_exam_id": ["c1", "c3", "c0"], "offset_days": 0, "label_agree": True}
    )  # fmt: skip
    data = PairDataset(pairs, cxr, ct, in_memory)
    assert len(data) == 3
    batch = next(iter(DataLoader(data, batch_size=3)))
    assert batch["pair_id"] == ["q0", "q1", "q2"]
    np.testing.assert_array_equal(batch["cxr"].numpy(), VALUES[[4, 0, 0]])
    np.testing.assert_array_equal(batch["ct"].numpy(), -VALUES[[1, 3, 0]])
    with pytest.raises(BadInput, match="c9"):
        PairDataset(pairs.assign(ct_exam_id="c9"), cxr, ct, in_memory)


def test_token_pairs_keep_their_lengths(tmp_path: Path) -> None:
    tokens = ragged(2)
    ct = write_cache(tmp_path / "ct", spec(), IDS, SOURCES, tokens, tokens=True)
    cxr = write_cache(tmp_path / "cxr", spec(), IDS, SOURCES, VALUES)
    pairs = pd.DataFrame({"pair_id": IDS, "patient_id": IDS, "cxr_exam_id": IDS, "ct_exam_id": IDS,
                          "offset_days": 0, "label_agree": True})  # fmt: skip
    data = PairDataset(pairs, cxr, ct)
    for n, one in enumerate(tokens):
        np.testing.assert_array_equal(data[n]["ct"].numpy(), one)


def test_exported_npy_and_parquet_hold_the_same_numbers(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    tokens = ragged(2)
    plain = write_cache(tmp_path / "a", spec(), IDS, SOURCES, VALUES)
    several = write_cache(tmp_path / "b", spec(), IDS, SOURCES, tokens, tokens=True)
    table = pd.read_csv(export_npy(plain, tmp_path / "a.npy"))
    assert table["exam_id"].tolist() == IDS
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), VALUES)
    export_parquet(plain, tmp_path / "a.parquet")
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert frame["sha256"].tolist() == SOURCES
    np.testing.assert_array_equal(np.stack(frame["embedding"]), VALUES)
    table = pd.read_csv(export_npy(several, tmp_path / "b.npy"))
    flat = np.load(tmp_path / "b.npy")
    for row, one in zip(table.to_dict("records"), tokens, strict=True):
        np.testing.assert_array_equal(flat[row["row"] : row["row"] + row["rows"]], one)
    export_parquet(several, tmp_path / "b.parquet")
    listed = parquet.read_table(tmp_path / "b.parquet")["embedding"].to_pylist()
    assert listed == [one.tolist() for one in tokens]


def test_one_npy_per_study_is_imported_and_a_pickle_is_not(tmp_path: Path) -> None:
    for n in range(5):
        np.save(tmp_path / f"s{n}.npy", VALUES[n : n + 1] if n == 1 else VALUES[n])
    np.save(tmp_path / "odd.npy", VALUES[0, :3])
    np.save(tmp_path / "evil.npy", np.array([Payload(str(tmp_path / "executed"))], dtype=object), allow_pickle=True)
    np.save(tmp_path / "scalar.npy", np.float32(1))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "s0.npy").read_bytes()[:-3])
    (tmp_path / "empty.npy").touch()
    bad = ["odd", "evil", "absent", "scalar", "cut", "empty"]
    table = pd.DataFrame({"exam_id": [*IDS, *bad]})
    for _ in range(2):  # the second time everything is there
        cache, failures = import_npy(tmp_path, table, spec(), tmp_path / "out")
        np.testing.assert_array_equal(cache.take(IDS), VALUES)
        assert [f["exam_id"] for f in failures] == bad
        assert not any(str(tmp_path) in f["reason"] or "allow_pickle" in f["reason"] for f in failures)
    assert not (tmp_path / "executed").exists()
    assert len(list(cache.path.glob("shard-*"))) == 1


def test_imported_tokens_are_of_one_width_and_at_least_one(tmp_path: Path) -> None:
    for name, shape in (("a", (3, 2)), ("b", (0, 2)), ("c", (2, 3)), ("d", (1, 2))):
        np.save(tmp_path / f"{name}.npy", np.ones(shape))
    table = pd.DataFrame({"exam_id": list("abcd")})
    assert first_shape(tmp_path, table) == (3, 2)
    cache, failures = import_npy(tmp_path, table, spec(), tmp_path / "out", tokens=True)
    assert [f["exam_id"] for f in failures] == ["b", "c"]
    assert all("its shape is" in f["reason"] for f in failures)
    assert cache.counts().tolist() == [3, 1]


def test_diff_names_key_exams_sources_and_numbers(tmp_path: Path) -> None:
    left = write_cache(tmp_path / "a", spec(), IDS, SOURCES, VALUES)
    assert diff(left, write_cache(tmp_path / "b", spec(), IDS, SOURCES, VALUES)).same
    moved = VALUES.copy()
    moved[2, 1] += 0.25
    other = spec(profile={"transform_version": 1, "side": 9})
    right = write_cache(tmp_path / "c", other, ["s9", *IDS[1:]], ["f" * 64] * 2 + SOURCES[2:], moved)
    found = diff(left, right)
    assert found.field == ("profile.side", 8, 9)
    assert (found.only_left, found.only_right) == (["s0"], ["s9"])
    assert (found.other_source, found.other_rows) == (["s1"], ["s2"])
    assert found.largest == pytest.approx(0.25)


def test_quantization_error_is_one_minus_the_cosine_before_and_after_centring() -> None:
    exact = np.array([[10.0, 1.0], [10.0, -1.0]])
    rounded = np.array([[10.0, 1.0], [10.0, -2.0]])
    found = quantization_error(exact, rounded)
    angle = np.arctan(0.1) - np.arctan(0.2)
    assert found["one_minus_cos_max"] == pytest.approx(1 - np.cos(angle))
    # about the first matrix's mean (10, 0) the rows are (0, ±1) and (0, 1), (0, -2): the same directions
    assert found["centred_one_minus_cos_max"] == pytest.approx(0.0, abs=1e-12)


def test_a_table_in_pieces_fills_the_same_cache(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 11)
    build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "whole", 2)
    pieces = (exams.iloc[a:b] for a, b in ((0, 1), (1, 7), (7, 7), (7, 11)))
    fill_cache(pieces, tmp_path, MeanEncoder(), tmp_path / "pieces", 2)
    assert diff(open_cache(tmp_path / "whole"), open_cache(tmp_path / "pieces")).same
    assert (tmp_path / "whole" / "current").read_text() == (tmp_path / "pieces" / "current").read_text()


def test_an_exam_whose_file_is_not_the_one_of_the_table_is_left_out(tmp_path: Path) -> None:
    exams = make_exams(tmp_path, 3)
    exams["sha256"] = [hash_file(tmp_path / "0.png"), "0" * 64, None]
    cache, failures = build_cache(exams, tmp_path, MeanEncoder(), tmp_path / "caches")
    assert list(cache.ids) == ["e0", "e2"]
    reason = "its file is not the one that the table names: its sha256 is another"
    assert failures == [{"exam_id": "e1", "stage": "embed", "reason": reason}]
    exams.assign(modality="CXR").to_csv(tmp_path / "exams.csv", index=False)
    table = ExamTable(tmp_path / "exams.csv", ("CXR",))
    assert fill_cache(table, tmp_path, MeanEncoder(), tmp_path / "others").failures == failures
