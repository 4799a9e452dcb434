from __future__ import annotations

import errno
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator, tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from safetensors.numpy import load_file
from torch.amp import GradScaler

from embedprior.errors import BadInput, EmbedpriorError
from embedprior.prior.config import NetworkConfig, PriorConfig, ProcessConfig, TrainingConfig
from embedprior.prior.data import PairArrays
from embedprior.prior.diffusion import TRAINING, KeyedNoise, Parametrisation, batch_at, training_draws
from embedprior.prior.metrics import measure_variance
from embedprior.prior.model import Prior
from embedprior.prior.setup import initial_prior
from embedprior.prior.trainer import Learner, train_prior
from embedprior.runs import DiskFull

from .conftest import every_term, first_logit, labelled_pairs, make_pairs, small_config

Pairs = tuple[PairArrays, PairArrays]


def train(pairs: Pairs, config: PriorConfig, out: Path, **extra: object) -> Prior:
    return train_prior(*pairs, config, out, show_progress=False, **extra)  # type: ignore[arg-type]


def weights(prior: Prior) -> dict[str, torch.Tensor]:
    return dict(prior.network.state_dict())


def same(a: Prior, b: Prior) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def lines(out: Path, event: str) -> list[dict[str, float]]:
    every = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["event"] == event]


def test_a_stopped_and_resumed_training_is_bit_for_bit_the_uninterrupted_one(pairs: Pairs, tmp_path: Path) -> None:
    config = small_config()
    whole = train(pairs, config, tmp_path / "whole")
    train(pairs, config, tmp_path / "parts", stop_after=7)
    train(pairs, config, tmp_path / "parts", stop_after=13)
    resumed = train(pairs, config, tmp_path / "parts")
    assert same(whole, resumed)
    for file in ("resume-20.safetensors", "prior.safetensors"):
        a, b = load_file(tmp_path / "whole" / file), load_file(tmp_path / "parts" / file)
        assert a.keys() == b.keys()
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert lines(tmp_path / "whole", "validation") == lines(tmp_path / "parts", "validation")


def test_killed_before_its_first_checkpoint_it_starts_again(pairs: Pairs, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"event": "train", "step": 5}\n{"event": "tra')
    train(pairs, small_config(), tmp_path)
    assert [line["step"] for line in lines(tmp_path, "train")] == [10, 20]


def test_saved_prior_samples_the_same_after_loading(pairs: Pairs, tmp_path: Path) -> None:
    made = train(pairs, small_config(), tmp_path)
    loaded = Prior.load(tmp_path)
    condition = pairs[1].condition
    for sampler in ("analytic", "analytic_diag", "ddpm_small", "ddpm_big", "ddim", "dpm_solver"):
        drawn = made.sample(condition, samples=2, sampler=sampler, steps=5)  # type: ignore[arg-type]
        np.testing.assert_array_equal(drawn, loaded.sample(condition, samples=2, sampler=sampler, steps=5))  # type: ignore[arg-type]
        assert drawn.shape == (16, 2, 6)
    np.testing.assert_array_equal(made.one_step(condition), loaded.one_step(condition))


def test_a_case_has_the_same_samples_whatever_stands_beside_it(pairs: Pairs, tmp_path: Path) -> None:
    prior = train(pairs, small_config(), tmp_path)
    condition = pairs[1].condition
    together = prior.sample(condition, samples=3, steps=4)
    np.testing.assert_allclose(prior.sample(condition[:5], samples=3, steps=4), together[:5], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(prior.sample(condition, samples=2, steps=4), together[:, :2], rtol=1e-5, atol=1e-5)
    keyed = prior.sample(condition[3:5], samples=3, steps=4, cases=[3, 4])
    np.testing.assert_allclose(keyed, together[3:5], rtol=1e-5, atol=1e-5)
    assert np.abs(together[:, 0] - together[:, 1]).min() > 0
    assert np.abs(together - prior.sample(condition, samples=3, steps=4, seed=1)).min() > 0


def test_a_path_runs_from_pure_noise_to_the_first_sample(pairs: Pairs, tmp_path: Path) -> None:
    prior, condition = train(pairs, small_config(), tmp_path), make_pairs(400, 3).condition
    noise, _, end = prior.path(condition, (0.0, 0.5, 1.0), steps=4)
    np.testing.assert_allclose(end, prior.sample(condition, samples=2, steps=4)[:, 0], rtol=1e-5, atol=1e-5)
    standard = (noise - prior.target_scaler.mean) / prior.target_scaler.scale
    np.testing.assert_allclose(standard.mean(axis=0), 0.0, atol=0.2)
    np.testing.assert_allclose(standard.std(axis=0), 1.0, atol=0.15)


def test_training_learns_the_regression(tmp_path: Path) -> None:
    pairs = make_pairs(400, 0), make_pairs(100, 1000)
    test = make_pairs(200, 5000)
    prior = train(pairs, small_config(steps=400, batch=64, lr=3e-3, validate_every=100, ema=0.95), tmp_path)
    noise_floor, without = 1.0, test.target.var()
    error = float(((prior.one_step(test.condition) - test.target) ** 2).mean())
    assert error < noise_floor + 0.15 * (without - noise_floor)
    mean = prior.sample(test.condition, samples=16, steps=16).mean(axis=1)
    assert float(((mean - test.target) ** 2).mean()) < noise_floor + 0.25 * (without - noise_floor)


def test_the_averaged_weights_of_the_best_validation_are_kept(pairs: Pairs, tmp_path: Path) -> None:
    prior = train(pairs, small_config(lr=1.0, steps=60), tmp_path)
    scores = [line["val/score"] for line in lines(tmp_path, "validation")]
    assert len(scores) == 7
    best = 10 * int(np.argmin(scores))
    assert 0 < best < 60
    stored = load_file(tmp_path / "resume-60.safetensors")
    assert json.loads((tmp_path / "resume.json").read_text())["best_step"] == best
    at_best = train(pairs, small_config(lr=1.0, steps=60), tmp_path / "again", stop_after=best)
    again = load_file(tmp_path / "again" / f"resume-{best}.safetensors")
    for name, value in weights(prior).items():
        np.testing.assert_array_equal(value.numpy(), again[f"ema.module.{name}"])
    assert same(prior, at_best)
    assert any(not np.array_equal(stored[f"network.{n}"], stored[f"ema.module.{n}"]) for n in weights(prior))


def test_early_stopping_ends_after_patience_validations_without_a_better_one(pairs: Pairs, tmp_path: Path) -> None:
    train(pairs, small_config(lr=0.1, steps=2000, patience=2), tmp_path)
    seen = lines(tmp_path, "validation")
    assert len(seen) < 100
    assert [bool(line["best"]) for line in seen[-3:]] == [True, False, False]


def test_a_loss_that_is_not_a_number_stops_and_names_its_pairs(pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(EmbedpriorError, match=r"the loss at step \d is not a number") as caught:
        train(pairs, small_config(lr=1e30), tmp_path)
    step = int(str(caught.value).split("step ")[1].split()[0])
    assert step > 0
    named = str(caught.value).split("Its pairs: ")[1].split(". Next")[0].split(", ")
    assert named == [pairs[0].ids[i] for i in batch_at(0, step, 8, 40)]
    assert not (tmp_path / "prior.json").exists()


def test_second_stage_keeps_the_target_scaler_and_fits_its_own_condition_scaler(pairs: Pairs, tmp_path: Path) -> None:
    drr = tuple(replace(part, source="drr", condition=part.condition * 5 + 1) for part in pairs)
    first = train(drr, small_config(), tmp_path / "first")  # type: ignore[arg-type]
    shifted = tuple(replace(part, target=part.target + 7) for part in pairs)
    second = train(shifted, small_config(lr=1e-6), tmp_path / "second", init_from=tmp_path / "first")  # type: ignore[arg-type]
    np.testing.assert_array_equal(second.target_scaler.mean, first.target_scaler.mean)
    assert sorted(second.condition_scalers) == ["cxr", "drr"]
    np.testing.assert_allclose(second.condition_scalers["cxr"].mean, pairs[0].condition.mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(second.condition_scalers["drr"].mean, first.condition_scalers["drr"].mean)
    for name, value in weights(second).items():
        torch.testing.assert_close(value, weights(first)[name], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition_dim": 4}, "condition dimension: '4' here, '5' in the prior"),
        ({"dim": 8}, "target dimension: '8' here, '6' in the prior"),
    ],
)
def test_second_stage_refuses_other_dimensions(
    pairs: Pairs, tmp_path: Path, change: dict[str, int], message: str
) -> None:
    train(pairs, small_config(), tmp_path / "first")
    other = make_pairs(20, 0, **change), make_pairs(8, 500, **change)
    with pytest.raises(BadInput, match=message):
        train(other, small_config(), tmp_path / "second", init_from=tmp_path / "first")
    assert not (tmp_path / "second").exists()


def test_second_stage_refuses_another_encoder_network_or_process(pairs: Pairs, tmp_path: Path) -> None:
    keyed: Pairs = replace(pairs[0], encoders=("cxr-a", "ct-a")), replace(pairs[1], encoders=("cxr-a", "ct-a"))
    train(keyed, small_config(), tmp_path / "first")
    other: Pairs = replace(pairs[0], encoders=("cxr-a", "ct-b")), replace(pairs[1], encoders=("cxr-a", "ct-b"))
    config = small_config()
    cases = [
        (other, config, "target encoder: 'ct-b' here, 'ct-a'"),
        (keyed, config.model_copy(update={"network": NetworkConfig(preset="tiny")}), "network size"),
        (keyed, config.model_copy(update={"process": ProcessConfig(timesteps=60)}), "timesteps: '60' here, '50'"),
    ]
    for given, settings, message in cases:
        with pytest.raises(BadInput, match=message):
            train(given, settings, tmp_path / "second", init_from=tmp_path / "first")


def test_a_folder_of_another_training_is_refused(pairs: Pairs, tmp_path: Path) -> None:
    train(pairs, small_config(), tmp_path, stop_after=5)
    with pytest.raises(BadInput, match=r"another training\.lr: 0\.001 there, 0\.002 here \(and training\.precision\)"):
        train(pairs, small_config(lr=2e-3, precision="bf16"), tmp_path)
    shuffled = replace(pairs[0], target=pairs[0].target[::-1])
    with pytest.raises(BadInput, match="of another training pairs: target"):
        train((shuffled, pairs[1]), small_config(), tmp_path)


def test_pairs_that_can_not_be_learned_from_are_refused(pairs: Pairs, tmp_path: Path) -> None:
    train_part, val = pairs
    nan = train_part.target.copy()
    nan[2, 1] = np.nan
    cases = [
        (replace(train_part, target=nan), val, "pair-2.*not finite"),
        (replace(train_part, ids=train_part.ids[:-1]), val, "39 ids, but condition has 40 rows"),
        (train_part, train_part, "in training and in validation"),
        (train_part, replace(val, source="drr"), "source: 'cxr' in training, 'drr' in validation"),
    ]
    for first, second, message in cases:
        with pytest.raises(BadInput, match=message):
            train((first, second), small_config(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sampling_refuses_what_it_can_not_do(pairs: Pairs, tmp_path: Path) -> None:
    prior = train(pairs, small_config(), tmp_path)
    condition = pairs[1].condition
    with pytest.raises(BadInput, match=r"Allowed: \(N, 5\)"):
        prior.sample(condition[:, :4], steps=5)
    with pytest.raises(BadInput, match=r"unknown condition source 'drr'\. Allowed: cxr"):
        prior.sample(condition, source="drr", steps=5)
    with pytest.raises(BadInput, match="51 sampling steps"):
        prior.sample(condition, steps=51)
    with pytest.raises(BadInput, match=r"guidance 2\.0 voids the variance table"):
        prior.sample(condition, steps=5, guidance=2.0)
    assert np.isfinite(prior.sample(condition, steps=5, guidance=2.0, sampler="ddpm_small")).all()
    with pytest.raises(BadInput, match="holds no trained prior"):
        Prior.load(tmp_path / "nowhere")


def test_checkpoints_hold_no_pickle(pairs: Pairs, tmp_path: Path) -> None:
    train(pairs, small_config(), tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".safetensors", ".json", ".jsonl"}


def test_several_condition_tokens_with_padding_train_and_sample(tmp_path: Path) -> None:
    def with_views(part: PairArrays) -> PairArrays:
        views = np.stack([part.condition, part.condition[:, ::-1], part.condition * 0], axis=1)
        mask = np.ones(views.shape[:2], dtype=bool)
        mask[::2, 2] = False
        return replace(part, condition=np.ascontiguousarray(views), condition_mask=mask)

    pairs = with_views(make_pairs(40, 0)), with_views(make_pairs(16, 1000))
    prior = train(pairs, small_config(), tmp_path)
    val = pairs[1]
    assert val.condition_mask is not None
    drawn = prior.sample(val.condition, 2, steps=4, condition_mask=val.condition_mask)
    junk = val.condition.copy()
    junk[~val.condition_mask] = 50.0
    again = prior.sample(junk, 2, steps=4, condition_mask=val.condition_mask)
    np.testing.assert_allclose(again, drawn, atol=1e-5)


def test_variance_table_is_the_held_out_error_of_the_kept_weights(pairs: Pairs, tmp_path: Path) -> None:
    config = small_config(variance_draws=200, steps=100, lr=5e-3)
    prior = train(pairs, config, tmp_path)
    assert prior.variance is not None
    schedule, val = prior.schedule, pairs[1]
    rng = np.random.default_rng(5)
    x0 = prior.target_scaler.forward(val.target)
    for row in (0, 4, 7):
        n = int(prior.variance.nodes[row])
        clean = torch.from_numpy(np.repeat(x0, 400, axis=0))
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        x = np.sqrt(schedule.alpha_bar[n]) * clean + np.sqrt(1 - schedule.alpha_bar[n]) * noise
        tokens = torch.from_numpy(prior.condition_scaler("cxr").forward(np.repeat(val.tokens, 400, axis=0)))
        with torch.no_grad():
            clock = torch.full((len(x),), n)
            output = prior.network(x.float(), clock, tokens)
            predicted = Parametrisation.of(prior.config.process, schedule).x0hat(output, x.float(), clock)
        error = ((predicted - clean) ** 2).double().mean(dim=0).numpy()
        np.testing.assert_allclose(prior.variance.error[row], error, rtol=0.1)


def test_training_config_refuses_settings_that_would_do_nothing() -> None:
    with pytest.raises(ValueError, match="nothing would be learned"):
        PriorConfig.model_validate({"objective": {"l2": 0.0}})
    with pytest.raises(ValueError, match="extra"):
        TrainingConfig.model_validate({"learning_rate": 1e-3})


def test_trackers_get_what_metrics_jsonl_gets(pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, dict[str, float]]] = []
    told: dict[str, str] = {}

    class Spy(GeneralTracker):  # type: ignore[misc]
        name, requires_logging_directory, tracker = "tensorboard", True, None

        def __init__(self, run_name: str, logging_dir: str) -> None:
            super().__init__()

        def store_init_configuration(self, values: dict[str, str]) -> None:
            told.update(values)

        def log(self, values: dict[str, float], step: int, **_: object) -> None:
            sent.append((step, values))

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Spy)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(BadInput, match="tracker 'tensorboard' is not installed"):
        train(pairs, small_config(), tmp_path, trackers=["tensorboard"])
    monkeypatch.setattr("embedprior.prior.trainer.require_tracker", lambda name: None)
    train(pairs, small_config(), tmp_path, trackers=["tensorboard"])
    assert told["training.lr"] == "0.001"
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for event in ("train", "validation"):
        rows = [row for row in written if row["event"] == event]
        for row in rows:
            figures = {name: value for name, value in row.items() if name not in ("event", "step")}
            assert (row["step"], figures) in sent
    assert len(sent) == len([row for row in written if row["event"] != "start"])


def test_a_resume_with_another_teacher_is_refused(pairs: Pairs, tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, other = torch.nn.Linear(6, 1), torch.nn.Linear(6, 1)
    train(pairs, small_config(), tmp_path, teacher=first, stop_after=5)
    with pytest.raises(BadInput, match="of another teacher"):
        train(pairs, small_config(), tmp_path, teacher=other)
    train(pairs, small_config(), tmp_path, teacher=first)


def test_embeddings_of_another_encoder_are_refused_by_name(pairs: Pairs, tmp_path: Path) -> None:
    named = tuple(replace(part, encoders=("dinov2@aaaa0000", "slices@bbbb0000")) for part in pairs)
    prior = train(named, small_config(), tmp_path)  # type: ignore[arg-type]
    prior.check_encoders("dinov2@aaaa0000", "slices@bbbb0000")
    prior.check_encoders()
    with pytest.raises(BadInput, match=r"condition encoder: 'rad-dino@cccc0000' here, 'dinov2@aaaa0000' in this prior"):
        prior.check_encoders("rad-dino@cccc0000")
    with pytest.raises(BadInput, match="target encoder"):
        prior.check_encoders("dinov2@aaaa0000", "other")


def test_a_patient_on_both_sides_is_refused(pairs: Pairs, tmp_path: Path) -> None:
    both = tuple(replace(part, patients=["same", *part.ids[1:]]) for part in pairs)
    with pytest.raises(BadInput, match="patient 'same' is in training and in validation"):
        train(both, small_config(), tmp_path)  # type: ignore[arg-type]


def test_labels_other_than_one_zero_and_unknown_are_refused(pairs: Pairs, tmp_path: Path) -> None:
    odd = replace(pairs[0], labels=np.array([2.0, np.nan] * 20))
    with pytest.raises(BadInput, match="label 2"):
        train((odd, pairs[1]), small_config(), tmp_path)


def test_guidance_marks_table_and_calibration_as_void(pairs: Pairs, tmp_path: Path) -> None:
    config = small_config()
    config = config.model_copy(update={"process": config.process.model_copy(update={"guidance": 2.0})})
    prior = train(pairs, config, tmp_path)
    assert prior.variance is not None
    assert prior.variance.guidance == 1.0
    assert ["void" in caveat for caveat in prior.caveats()].count(True) == 1
    assert json.loads((tmp_path / "prior.json").read_text())["caveats"] == prior.caveats()
    assert not any("void" in caveat for caveat in prior.caveats(guidance=1.0))
    with pytest.raises(BadInput, match="voids the variance table"):
        prior.sample(pairs[1].condition, steps=4)
    assert np.isfinite(prior.sample(pairs[1].condition, steps=4, guidance=1.0)).all()


def test_a_small_network_trains_on_one_thread_and_leaves_the_others_as_they_were(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, before = [], torch.get_num_threads()

    def spy(*arguments: object) -> object:
        seen.append(torch.get_num_threads())
        return measure_variance(*arguments)  # type: ignore[arg-type]

    torch.set_num_threads(2)
    try:
        monkeypatch.setattr("embedprior.prior.trainer.measure_variance", spy)
        train(pairs, small_config(steps=2), tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_bf16_weights_are_a_copy_that_samples_nearly_the_same(pairs: Pairs, tmp_path: Path) -> None:
    prior, condition = train(pairs, small_config(), tmp_path), pairs[1].condition
    before = prior.sample(condition, samples=2, steps=4)
    half = prior.to("cpu", torch.bfloat16)
    assert {value.dtype for value in half.network.parameters()} == {torch.bfloat16}
    assert {value.dtype for value in prior.network.parameters()} == {torch.float32}
    np.testing.assert_array_equal(prior.sample(condition, samples=2, steps=4), before)
    rounded = half.sample(condition, samples=2, steps=4)
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - before).max() < 0.1 * before.std()


def test_gradients_accumulated_over_parts_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """With every term of the objective: labels known for some, negatives from the whole batch."""
    parts = labelled_pairs()
    whole, cut = (
        train(parts, replaced(every_term(), accumulate=n), tmp_path / str(n), teacher=first_logit) for n in (1, 4)
    )
    for name, value in weights(whole).items():
        np.testing.assert_allclose(weights(cut)[name].numpy(), value.numpy(), rtol=1e-3, atol=2e-5, err_msg=name)
    whole_lines, cut_lines = (lines(tmp_path / str(n), "train") for n in (1, 4))
    for term in ("l2", "bce", "aft", "proto", "contrastive"):
        curves = [[line[f"loss/{term}"] for line in each] for each in (whole_lines, cut_lines)]
        np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5, err_msg=term)
    with pytest.raises(BadInput, match=r"each in 3 parts\. Allowed: a multiple of 3"):
        train(parts, replaced(every_term(), accumulate=3), tmp_path / "odd", teacher=first_logit)


def replaced(config: PriorConfig, **training: object) -> PriorConfig:
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "Allowed: bf16: --prior.training.precision bf16"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", "Allowed: fp16: --prior.training.precision fp16"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "Allowed: fp32, bf16, fp16"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "Next: --prior.training.accumulate 4"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "asks for the compiler inductor"),
        ("ACCELERATE_USE_FSDP", "true", r"asks for FSDP\. Allowed: plain data parallelism"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "asks for DeepSpeed"),
    ],
)
def test_what_accelerate_launch_asks_for_is_done_or_refused(
    variable: str, value: str, message: str, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(BadInput, match=message):
        train(pairs, small_config(), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    if value in ("bf16", "fp16", "4"):
        precision = "bf16" if value == "4" else value
        train(pairs, small_config(precision=precision, accumulate=4, steps=2), tmp_path / "done")


@pytest.mark.parametrize("flag", [["--gradient_accumulation_steps", "4"], ["--gradient-accumulation-steps=4"]])
def test_accumulation_that_accelerate_launch_keeps_to_itself_is_refused(
    flag: list[str], pairs: Pairs, tmp_path: Path
) -> None:
    """Without DeepSpeed the launcher takes the flag and gives it to nobody: only its command line holds it."""
    script = tmp_path / "asked.py"
    script.write_text(
        "import sys\nfrom embedprior.errors import BadInput\nfrom embedprior.prior.config import TrainingConfig\n"
        "from embedprior.prior.setup import check_launch\n"
        "for parts in (4, 1):\n    try:\n        check_launch(TrainingConfig(accumulate=parts))\n"
        "        print('accepts', parts)\n    except BadInput as error:\n        print(error)\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", *flag, str(script)]
    done = subprocess.run(launch, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "accepts 4",
        "accelerate launch asks for 4 accumulation steps, training.accumulate is 1. "
        "Next: --prior.training.accumulate 4",
    ]


def test_fp16_skips_a_step_that_overflows_and_the_average_skips_it_too(pairs: Pairs) -> None:
    """The loss scale begins at 65,536 and halves at each overflow; float16 ends at 65,504."""
    learner = Learner(
        initial_prior(*pairs, small_config(precision="fp16"), None), pairs[0], Accelerator(cpu=True), None, None
    )
    learner.loss_scale = GradScaler("cpu", init_scale=2.0**24)
    halved, moved, averaged = [], [], []
    for step in range(20):
        scale, count = learner.loss_scale.get_scale(), int(learner.average.n_averaged)
        before = [value.detach().clone() for value in learner.network.parameters()]
        learner.learn(step)
        halved.append(learner.loss_scale.get_scale() < scale)
        now = list(learner.network.parameters())
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, now, strict=True)))
        averaged.append(bool(int(learner.average.n_averaged) - count))
    assert any(moved)
    assert any(halved)
    assert moved == averaged == [not each for each in halved]
    assert all(bool(value.isfinite().all()) for value in learner.network.parameters())


def test_the_scale_of_fp16_goes_on_with_a_resumed_training(pairs: Pairs, tmp_path: Path) -> None:
    config = small_config(precision="fp16")
    whole = train(pairs, config, tmp_path / "whole")
    train(pairs, config, tmp_path / "parts", stop_after=7)
    stored = json.loads((tmp_path / "parts" / "resume.json").read_text())["loss_scale"]
    assert stored["_growth_tracker"] > 0
    assert same(train(pairs, config, tmp_path / "parts"), whole)
    ends = [json.loads((tmp_path / name / "resume.json").read_text())["loss_scale"] for name in ("whole", "parts")]
    assert ends[0] == ends[1]
    assert ends[0] != stored
    assert not same(whole, train(pairs, small_config(), tmp_path / "single"))


def test_a_finished_training_goes_on_when_it_is_given_more_steps(pairs: Pairs, tmp_path: Path) -> None:
    train(pairs, small_config(steps=10), tmp_path / "longer")
    longer, whole = train(pairs, small_config(), tmp_path / "longer"), train(pairs, small_config(), tmp_path / "whole")
    assert same(longer, whole)
    with pytest.raises(BadInput, match=r"20 steps are done, training\.steps is 10"):
        train(pairs, small_config(steps=10), tmp_path / "longer")


def test_a_network_that_only_gets_worse_is_left_as_it_began(pairs: Pairs, tmp_path: Path) -> None:
    prior = train(pairs, small_config(lr=1.0, steps=20, validate_every=5), tmp_path)
    assert not bool(prior.network.out.weight.any())
    assert [line["best"] for line in lines(tmp_path, "validation")] == [True, False, False, False, False]


def test_the_checkpoint_is_chosen_at_low_noise_too(pairs: Pairs, tmp_path: Path) -> None:
    """Each bin counts by the error of a linear denoiser there: 0.006 at the least noise, nearly 1 at the most."""
    prior = train(pairs, small_config(steps=10), tmp_path)
    last, val = lines(tmp_path, "validation")[-1], pairs[1]
    spread = float((prior.target_scaler.forward(val.target) ** 2).mean())
    expected = []
    for n in (6, 19, 31, 44):
        abar = prior.schedule.alpha_bar[n]
        expected.append(last[f"val/mse@{n}"] / ((1 - abar) * spread / (abar * spread + 1 - abar)))
    assert last["val/score"] == pytest.approx(np.mean(expected), rel=1e-4)


def test_one_draw_serves_a_whole_step_and_every_process_takes_its_rows() -> None:
    source = KeyedNoise(7, TRAINING)
    whole = training_draws(source, 5, 8, 3, 50, (1, 2))
    again = training_draws(KeyedNoise(7, TRAINING), 5, 8, 3, 50, (1, 2))
    np.testing.assert_array_equal(whole.noise, again.noise)
    part = whole.rows(slice(4, 8))
    assert part.condition is not None
    np.testing.assert_array_equal(part.noise, whole.noise[4:])
    np.testing.assert_array_equal(part.timestep, whole.timestep[4:])
    other = training_draws(source, 6, 8, 3, 50, (1, 2))
    assert not np.array_equal(other.noise, whole.noise)
    many = training_draws(source, 0, 20_000, 2, 10)
    assert (many.timestep.min(), many.timestep.max()) == (1, 10)
    assert abs(np.bincount(many.timestep)[1:] / 2000 - 1).max() < 0.1
    assert abs(float(many.noise.std()) - 1) < 0.02


@pytest.mark.parametrize("content", ["{}", "[1]", ""])
def test_a_damaged_record_of_a_stopped_training_is_refused_in_one_line(
    pairs: Pairs, tmp_path: Path, content: str
) -> None:
    train(pairs, small_config(), tmp_path, stop_after=10)
    (tmp_path / "resume.json").write_text(content)
    with pytest.raises(BadInput, match=r"resume\.json"):
        train(pairs, small_config(), tmp_path)


def test_a_damaged_state_of_a_stopped_training_is_refused_by_name(pairs: Pairs, tmp_path: Path) -> None:
    train(pairs, small_config(), tmp_path, stop_after=10)
    state = tmp_path / "resume-10.safetensors"
    content = bytearray(state.read_bytes())
    content[-7] ^= 1
    state.write_bytes(content)
    with pytest.raises(BadInput, match=r"resume-10\.safetensors no longer has the contents"):
        train(pairs, small_config(), tmp_path)


def test_the_state_before_is_there_until_the_next_one_is_safe(
    pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(pairs, small_config(), tmp_path, stop_after=10)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("resume*")}

    def full(path: Path) -> None:
        if "resume-20" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("embedprior.runs.files.fsync", full)
    with pytest.raises(DiskFull, match="resume-20"):
        train(pairs, small_config(), tmp_path)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("resume*")} == before
    assert same(train(pairs, small_config(), tmp_path), train(pairs, small_config(), tmp_path / "whole"))


def test_a_training_that_was_stopped_before_its_first_state_leaves_no_line_of_its_log(
    pairs: Pairs, tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"event": "start", "step": 0}\n{"event": "validation", "step": 0}\n')
    train(pairs, small_config(), tmp_path)
    events = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events if e["step"] == 0] == ["start", "validation"]
    train(pairs, small_config(), tmp_path / "whole")
    assert len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()) == len(events)
