"""A frozen plan covers the numbers it was made with, and damaged embeddings start no study."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.cache import open_cache, write_cache
from embedprior.cache.verify import find_corruption
from embedprior.cli import main

from .conftest import change, refusal, spec
from .test_external import design, write_other


def other_numbers(folder: Path, shift: float = 1.0) -> None:
    """Write other embeddings of the same exams under the same encoder into the same folder."""
    cache = open_cache(folder)
    rows, sources, dim = cache.take(list(cache.ids)), list(cache.sources), int(cache.key["dim"])
    name, modality = cache.key["encoder"], "CT" if dim == 4 else "CXR"
    shutil.rmtree(folder)
    write_cache(folder, spec(name, modality, dim, None), list(cache.ids), sources, rows + np.float32(shift))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def test_other_embeddings_under_the_same_names_are_refused_by_the_frozen_plan(run, cohort, capsys):
    assert run()[0] == 0
    _, out = run()
    before = (out / "predictions.csv").read_bytes()
    other_numbers(cohort / "caches" / "cxr")
    code, _ = run()
    assert "inputs.cxr embeddings was" in refusal(capsys, code)
    assert (out / "predictions.csv").read_bytes() == before


def test_exams_that_are_added_to_a_cache_change_no_plan(run, cohort):
    _, out = run(command="plan")
    before = json.loads((out / "plan.json").read_text())["inputs"]
    cache = open_cache(cohort / "caches" / "cxr")
    more = ["z1", "z2"]
    write_cache(
        cohort / "caches" / "cxr", spec("cxr-net", "CXR", 3, None), more, ["1" * 64] * 2, cache.take(cache.ids[:2])
    )
    _, again = run(command="plan", out="again")
    assert json.loads((again / "plan.json").read_text())["inputs"] == before


def test_other_embeddings_of_an_external_cohort_are_refused(run, cohort, capsys):
    other = write_other(cohort.parent / "hospital-b")
    assert run(command="plan", **design())[0] == 0
    other_numbers(other / "caches" / "cxr")
    code, _ = run(command="plan", **design())
    assert "inputs.hospital-b: cxr embeddings was" in refusal(capsys, code)


def test_one_flipped_bit_of_a_shard_is_refused_and_the_file_named(run, cohort, capsys, tmp_path):
    assert run(command="plan")[0] == 0  # found whole, and remembered
    shard = next((cohort / "caches" / "cxr").rglob("shard-*"))
    flip(shard, -5)
    code, _ = run()
    assert f"{shard.name}: its contents no longer have the checksum" in refusal(capsys, code)
    code = main(["cache", "export", str(cohort / "caches" / "cxr"), "--out", str(tmp_path / "x.npy")])
    assert shard.name in refusal(capsys, code)
    flip(shard, -5)
    assert run(command="plan")[0] == 0


def test_changed_patients_of_an_encoder_are_refused(run, cohort, capsys):
    change(cohort)
    manifest = next((cohort / "caches" / "cxr").rglob("manifest.json"))
    record = json.loads(manifest.read_text())
    record["spec"]["patients_seen"] = ["nobody"]
    manifest.write_text(json.dumps(record))
    assert "patients_seen" in find_corruption(manifest.parent)[0].reason
    code, _ = run()
    assert "no longer has the contents it was written with" in refusal(capsys, code)
    manifest.write_text(json.dumps({"key": record["key"], "spec": record["spec"], "checksun": record["checksum"]}))
    assert "no longer has the contents" in refusal(capsys, run()[0])


def test_a_cache_is_read_once_and_then_remembered(run, cohort, monkeypatch):
    from embedprior.cache import verify

    read = []
    whole = verify.shard_corruption
    monkeypatch.setattr(verify, "shard_corruption", lambda path, key: (read.append(path.name), whole(path, key))[1])
    assert run(command="plan")[0] == 0
    assert len(read) == len(set(read)) == 2  # one shard of X-rays, one of CTs
    assert run(command="plan")[0] == 0
    assert len(read) == 2


def test_an_earlier_manifest_without_checksum_is_read_and_named(run, cohort):
    manifest = next((cohort / "caches" / "cxr").rglob("manifest.json"))
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({"key": record["key"], "spec": record["spec"]}))
    assert run(command="plan")[0] == 0
    assert [one.reason for one in find_corruption(manifest.parent)] == ["it holds no checksum (of an earlier version)"]


@pytest.mark.parametrize("column", ["site", "label:nodule"])
def test_a_changed_table_is_still_refused(run, cohort, capsys, column):
    assert run(command="plan")[0] == 0
    frame = pd.read_csv(cohort / "exams.csv")
    change(cohort, **{column: frame[column].to_numpy()[::-1]})
    assert "inputs.exams was" in refusal(capsys, run(command="plan")[0])


def test_verify_reads_everything_and_names_what_changed(run, cohort, capsys):
    _, out = run()
    assert main(["verify", str(cohort.parent)]) == 0
    for path in (
        next((out / "artifacts" / "fit").glob("*/predictions.csv")), out / "evidence.json", out / "run.json",
        next((cohort / "caches" / "ct").rglob("shard-*")),
    ):  # fmt: skip
        whole = path.read_bytes()
        flip(path, len(whole) // 2)
        capsys.readouterr()
        assert main(["verify", str(cohort.parent)]) == 3
        assert path.name in capsys.readouterr().out
        path.write_bytes(whole)
    assert main(["verify", str(out)]) == 0
    assert "holds no cache, artifact, run, prior" in refusal(capsys, main(["verify", str(out / "cohort")]))


def test_evaluate_refuses_predictions_that_are_not_those_of_the_run_beside_them(run, tmp_path, capsys):
    _, out = run()
    words = ["--reference", "cxr-only", "--no-bootstrap", "--no-figures", "--out", str(tmp_path / "evaluated")]
    assert main(["evaluate", str(out / "predictions.csv"), *words]) == 0
    table = pd.read_csv(out / "predictions.csv")
    table.assign(score=table["score"] / 2).to_csv(out / "predictions.csv", index=False)
    assert "predictions.csv has" in refusal(capsys, main(["evaluate", str(out / "predictions.csv"), *words]))
    shutil.copy(out / "predictions.csv", tmp_path / "changed.csv")
    assert main(["evaluate", str(tmp_path / "changed.csv"), *words]) == 0


def test_a_changed_record_of_a_run_is_not_compared_traced_or_taken_for_what_is_unused(run, capsys):
    _, out = run()
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"uses": []}))
    for words in (["report", "--compare", str(out), str(out)], ["cache", "trace", str(out)]):
        assert "run.json no longer has the contents" in refusal(capsys, main(words))
    capsys.readouterr()
    assert main(["cache", "ls", str(out), "--unused"]) == 0
    assert "0 items" in capsys.readouterr().out


def test_a_final_fit_refuses_a_plan_or_evidence_that_was_changed(run, capsys):
    _, out = run()
    for name in ("plan.json", "evidence.json"):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole + b"\n")
        assert f"{name} has" in refusal(capsys, main(["train", "final", "--study", str(out), "--method", "cxr-only"]))
        (out / name).write_bytes(whole)


def test_what_a_plan_left_is_under_a_checksum_until_the_run_has_its_own(run, capsys):
    _, out = run(command="plan")
    assert main(["verify", str(out)]) == 0
    flow = out / "cohort" / "flow.csv"
    whole = flow.read_bytes()
    flow.write_bytes(whole[:-1])
    assert run(command="plan")[0] == 0  # it writes nothing twice
    capsys.readouterr()
    assert main(["verify", str(out)]) == 3
    assert "cohort/flow.csv has" in capsys.readouterr().out
    flow.write_bytes(whole)
    assert run()[0] == 0
    assert not (out / ".checksums.json").exists()
    assert main(["verify", str(out)]) == 0


@pytest.mark.parametrize("content", ["", "nothing@0000000a\n", None])
def test_verify_names_a_pointer_that_names_no_cache(run, cohort, capsys, content):
    pointer = cohort / "caches" / "cxr" / "current"
    assert main(["verify", str(cohort)]) == 0
    pointer.write_text(pointer.read_text()[:-3] if content is None else content)  # a cohort that is not there
    capsys.readouterr()
    assert main(["verify", str(cohort)]) == 3
    assert "current names no cache and cohort" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[1]", "{}", None])
def test_a_changed_plan_is_refused(run, capsys, content):
    _, out = run(command="plan")
    plan = json.loads((out / "plan.json").read_text())
    plan["config"]["seed"] += 1
    (out / "plan.json").write_text(json.dumps(plan) if content is None else content)
    assert "no longer has the contents that it was frozen with" in refusal(capsys, run()[0])
