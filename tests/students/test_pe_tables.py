"""The PE paper's tables as a study: every row is there, and it runs on a cohort."""

from __future__ import annotations

from embedprior.config import load_config
from embedprior.students.registry import build_method, methods
from embedprior.study.config import StudyConfig, method_infos

TABLE_1 = {"ct-only", "cxr-only", "hinton-kd", "discom-kd", "aft-kd", "proto-kd", "contrastive-kd", "prior-l2-bce"}
TABLE_2 = {"prior", "prior-l2-bce", "prior-l2-aft", "prior-l2-proto", "prior-contrastive", "prior-l2-no-pretraining"}


def test_both_tables_have_the_papers_rows_and_settings() -> None:
    config = load_config(StudyConfig, "pe_tables", "study")
    designs = {d.name: d for d in config.designs}
    assert set(designs["table-1"].methods) >= TABLE_1
    assert set(designs["table-2"].methods) >= TABLE_2
    assert {d.folds for d in config.designs} == {6}
    assert len(config.fit_seeds) >= 3
    assert config.prior.training.network.size.dim == 512
    known = method_infos(config)
    assert known["prior-l2-no-pretraining"].build == methods()["prior"].build
    for name in TABLE_1 | TABLE_2:
        assert name in known
    for row in config.methods.values():
        assert build_method(row.method, **row.options).pretraining is False  # type: ignore[attr-defined]


def test_the_demo_has_the_same_tables_on_fewer_folds() -> None:
    whole, small = (load_config(StudyConfig, name, "study") for name in ("pe_tables", "pe_tables_demo"))
    assert (small.methods, small.hypotheses, small.metrics) == (whole.methods, whole.hypotheses, whole.metrics)
    for a, b in zip(whole.designs, small.designs, strict=True):
        assert a.model_copy(update={"folds": b.folds}) == b
    assert small.encoder_training_patients == "train"
    assert len(small.fit_seeds) >= 3


def test_encoders_and_sizes_are_a_sweep_over_caches() -> None:
    config = load_config(StudyConfig, "pe_encoders", "study")
    assert {name: len(values) for name, values in config.sweep.items()} == {"caches.cxr": 3, "caches.ct": 2}
