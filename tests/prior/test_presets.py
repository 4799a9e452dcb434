"""The presets of the PE paper say the same thing, and what the paper and its code say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from embedprior.config import load_config
from embedprior.prior.config import TrainPriorConfig
from embedprior.students.prior_method import PriorMethod
from embedprior.students.registry import Budget, build_method
from embedprior.study.config import StudyConfig
from embedprior.teachers.config import TrainTeacherConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def yaml_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    return found


def test_the_paper_presets_agree_on_network_process_training_and_loss() -> None:
    alone = TrainPriorConfig.model_validate(yaml_of("prior/pe_paper.yaml")).prior
    for name in ("study/pe_tables.yaml", "study/pe_encoders.yaml"):
        study = StudyConfig.model_validate(yaml_of(name))
        assert study.prior.pretrain is not None
        for stage in (study.prior.pretrain, study.prior.training):
            assert stage.network == alone.network
            assert stage.process == alone.process
            assert stage.training == alone.training.model_copy(update={"seed": stage.training.seed})
        assert study.prior.steps == alone.process.timesteps
    row = build_method("prior-l2-bce", Budget())
    assert isinstance(row, PriorMethod)
    assert alone.objective == alone.objective.model_copy(update=dict(row.objective))


def test_the_paper_presets_hold_the_released_numbers() -> None:
    """Of the code's configuration file, and 718 cases in batches of 64 over 1000 epochs."""
    prior = TrainPriorConfig.model_validate(yaml_of("prior/pe_paper.yaml")).prior
    size, process, training = prior.network.size, prior.process, prior.training
    assert (size.dim, size.depth, size.heads, size.head_dim) == (512, 12, 12, 64)
    assert (process.timesteps, process.prediction, process.null_branch) == (64, "x0", "drops_both")
    assert (training.batch, training.lr, training.weight_decay, training.clip) == (64, 1.1e-4, 6.02e-2, 0.5)
    assert training.steps == 1000 * -(-718 // 64)
    assert (prior.objective.l2, prior.objective.bce, prior.objective.bce_target) == (0.8, 0.2, "teacher")


def test_the_papers_classifier_trains_in_batches_of_two_at_1e_6() -> None:
    config = load_config(TrainTeacherConfig, "pe_paper", "teacher")
    teacher = config.teacher
    assert (teacher.kind, teacher.fit.batch_size, teacher.fit.lr, teacher.sequence.dim) == ("sequence", 2, 1e-6, 512)
    assert (2 * teacher.sequence.hidden, teacher.sequence.layers, teacher.sequence.cell) == (768, 12, "transformer")
