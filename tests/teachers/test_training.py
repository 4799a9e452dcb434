from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from embedprior.config import config_folder, load_config
from embedprior.errors import BadInput
from embedprior.nn.config import FitConfig, SequenceConfig
from embedprior.nn.losses import case_weights
from embedprior.teachers.config import TeacherConfig, TrainTeacherConfig
from embedprior.teachers.teacher import OneClass, Teacher, load_head
from embedprior.teachers.train import CtCases, logits_of, train_teacher

FIT = FitConfig(hidden=8, steps=60, batch_size=16, lr=1e-2, dropout=0.0, validate_every=10)
SMALL = SequenceConfig(hidden=8, dim=6, dropout=0.0)
SEQUENCE = TeacherConfig(kind="sequence", fit=FIT, sequence=SMALL)


def token_cases(seed: int, count: int = 60, prefix: str = "p") -> CtCases:
    """Positives have one token, anywhere, that is high in dimension 1."""
    rng = np.random.default_rng(seed)
    label = (np.arange(count) % 3 == 0).astype(float)
    inputs = []
    for value in label:
        tokens = rng.normal(size=(int(rng.integers(2, 8)), 4)).astype(np.float32)
        if value:
            tokens[rng.integers(len(tokens)), 1] += 6.0
        inputs.append(tokens)
    ids = [f"{prefix}{i}" for i in range(count)]
    return CtCases([f"ct-{i}" for i in ids], ids, label, inputs)


def flat(cases: CtCases) -> CtCases:
    return replace(cases, inputs=np.stack([np.asarray(t).max(0) for t in cases.inputs]))


@pytest.fixture(scope="module")
def trained() -> Teacher:
    return train_teacher(token_cases(0), token_cases(1, prefix="v"), SEQUENCE, "lesion", "key")[0]


def test_sequence_teacher_finds_one_token_among_many(trained: Teacher) -> None:
    unseen = token_cases(2, 90, "t")
    logits = logits_of(trained, unseen)
    positive, negative = logits[unseen.label == 1], logits[unseen.label == 0]
    assert (positive[:, None] > negative[None]).mean() > 0.95


def test_head_teacher_learns_from_embeddings() -> None:
    config = TeacherConfig(fit=FIT)
    teacher, history = train_teacher(flat(token_cases(0)), flat(token_cases(1, prefix="v")), config, "lesion", "key")
    unseen = flat(token_cases(2, 90, "t"))
    assert ((logits_of(teacher, unseen) > 0) == unseen.label).mean() > 0.9
    assert [record["step"] for record in history] == [10, 20, 30, 40, 50, 60]
    with pytest.raises(BadInput, match="head alone"):
        teacher.embed(token_cases(0).inputs)  # type: ignore[arg-type]


def test_what_was_saved_scores_alike_and_knows_whom_it_saw(trained: Teacher, tmp_path: Path) -> None:
    trained.save(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}
    back, unseen = Teacher.load(tmp_path), token_cases(2)
    np.testing.assert_array_equal(logits_of(back, unseen), logits_of(trained, unseen))
    assert set(back.patients["train"]) == set(token_cases(0).patient_ids)
    assert set(back.patients["val"]) == set(token_cases(1, prefix="v").patient_ids)
    with pytest.raises(BadInput, match=r"trained on 1 patients of part 'test' \(such as 'v3'\)"):
        back.refuse_seen(["t1", "v3"], "test")
    back.refuse_seen(["t1", "t2"], "test")


def test_the_frozen_head_reads_the_embedding_with_gradients(trained: Teacher, tmp_path: Path) -> None:
    """What the prior's cross-entropy term needs: logits of embeddings, gradients to them, none to the weights."""
    trained.save(tmp_path)
    head = load_head(tmp_path)
    embeddings = torch.from_numpy(trained.embed(token_cases(2).inputs)).requires_grad_(True)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(head(embeddings).sum(), embeddings)
    assert gradient.abs().sum() > 0
    assert not any(p.requires_grad for p in head.network.parameters())
    np.testing.assert_allclose(head(embeddings).detach().numpy(), logits_of(trained, token_cases(2)), atol=1e-6)


def test_cases_without_a_label_change_nothing_and_are_not_seen() -> None:
    cases = token_cases(0)
    extra = token_cases(7, prefix="u")
    more = CtCases(
        [*cases.exam_ids, *extra.exam_ids], [*cases.patient_ids, *extra.patient_ids],
        np.concatenate([cases.label, np.full(len(extra), np.nan)]), [*cases.inputs, *extra.inputs],
    )  # fmt: skip
    val = token_cases(1, prefix="v")
    plain, padded = (train_teacher(c, val, SEQUENCE, "lesion", "key")[0] for c in (cases, more))
    np.testing.assert_array_equal(logits_of(plain, val), logits_of(padded, val))
    assert plain.patients == padded.patients


def test_the_step_with_the_least_validation_loss_is_kept() -> None:
    """With validation labels turned round every step makes things worse: the first look must win."""
    val = token_cases(1, prefix="v")
    wrong = replace(val, label=1 - val.label)
    longer = SEQUENCE.model_copy(update={"fit": FIT.model_copy(update={"validate_every": 5})})
    teacher, history = train_teacher(token_cases(0), wrong, longer, "lesion", "key")
    losses = [record["val_loss"] for record in history]
    logits = logits_of(teacher, wrong).astype(np.float64)
    kept = float(np.mean(np.logaddexp(0, logits) - wrong.label * logits))
    assert kept == pytest.approx(min(losses), rel=1e-5)
    assert losses[-1] > 1.5 * min(losses)


def test_a_budget_shorter_than_the_first_look_keeps_its_last_step() -> None:
    config = TeacherConfig(fit=FIT.model_copy(update={"steps": 5}))
    train, val = flat(token_cases(0)), flat(token_cases(1, prefix="v"))
    with_val, _ = train_teacher(train, val, config, "lesion", "key")
    without, _ = train_teacher(train, replace(val, label=np.full(len(val), np.nan)), config, "lesion", "key")
    np.testing.assert_array_equal(logits_of(with_val, val), logits_of(without, val))


def test_balanced_drawing_gives_both_classes_alike() -> None:
    label = np.array([1.0, 0, 0, 0, 0])
    weights = case_weights(label)
    assert weights[label == 1].sum() == pytest.approx(weights[label == 0].sum())


def test_one_class_and_shared_patients_are_refused() -> None:
    cases = token_cases(0)
    with pytest.raises(OneClass, match="only class 1"):
        train_teacher(replace(cases, label=np.ones(len(cases))), token_cases(1, prefix="v"), SEQUENCE, "x", "k")
    with pytest.raises(BadInput, match="60 such patients"):
        train_teacher(cases, token_cases(1), SEQUENCE, "x", "k")


def test_tokens_of_another_width_are_refused(trained: Teacher) -> None:
    with pytest.raises(BadInput, match=r"\(1 or more, 4\)"):
        trained.embed([np.zeros((3, 5), np.float32)])


def test_a_damaged_or_absent_teacher_is_refused(trained: Teacher, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="embedprior train teacher"):
        Teacher.load(tmp_path)
    with pytest.raises(BadInput, match="embedprior train teacher"):
        load_head(tmp_path)
    trained.save(tmp_path)
    (tmp_path / "sequence.safetensors").write_bytes(b"short")
    with pytest.raises(BadInput, match="damaged"):
        Teacher.load(tmp_path)


CHANGES: dict[str, Any] = {
    "kind": "head", "seed": 1, "fit.hidden": 4, "fit.dropout": 0.5, "fit.lr": 1e-3, "fit.weight_decay": 5.0,
    "fit.batch_size": 8, "fit.steps": 30, "fit.validate_every": 7, "sequence.cell": "lstm", "sequence.hidden": 4,
    "sequence.layers": 2, "sequence.pool": "mean", "sequence.dim": 3, "sequence.dropout": 0.4,
    "sequence.max_tokens": 2, "sequence.balanced": False,
}  # fmt: skip


def fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        names += fields(kind, f"{prefix}{name}.") if nested else [prefix + name]  # type: ignore[arg-type]
    return names


def test_every_field_has_a_case_here() -> None:
    assert sorted(fields(TeacherConfig)) == sorted(CHANGES)


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_field_changes_what_comes_out(name: str, trained: Teacher) -> None:
    settings = SEQUENCE.model_dump()
    settings["fit"]["steps"] = 40
    group, _, last = name.rpartition(".")

    def outcome(changed: bool) -> list[Any]:
        data = {**settings, "fit": dict(settings["fit"]), "sequence": dict(settings["sequence"])}
        if changed:
            (data[group] if group else data)[last] = CHANGES[name]
        config = TeacherConfig.model_validate(data)
        cases, val = token_cases(0, 30), token_cases(1, 30, "v")
        if config.kind == "head":
            cases, val = flat(cases), flat(val)
        teacher, history = train_teacher(cases, val, config, "lesion", "key")
        return [logits_of(teacher, val).tolist(), history]

    assert outcome(True) != outcome(False)


@pytest.mark.parametrize("name", sorted(p.stem for p in config_folder("teacher").glob("*.yaml")))
def test_shipped_configurations_load(name: str) -> None:
    config = load_config(TrainTeacherConfig, name, "teacher")
    assert config.teacher.kind == ("head" if name == "demo" else "sequence")
