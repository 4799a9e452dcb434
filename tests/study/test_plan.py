"""The frozen plan: its fits, its hash, its costs, and what each hypothesis could show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embedprior.cohort.splits import Fold
from embedprior.errors import BadInput
from embedprior.evidence.intervals import quantile
from embedprior.evidence.power import Design as Power
from embedprior.evidence.power import difference_se
from embedprior.study.config import Assumed, Design, InferenceConfig, StudyConfig
from embedprior.study.executor import Outcome, _Progress
from embedprior.study.plan import held_out_counts, planned_difference
from embedprior.study.runner import FitJob, FoldId
from embedprior.study.variants import variants

from .conftest import BASE, refusal

KFOLD = Design(name="d", split="kfold", folds=2, methods=("cxr-only",))


def counts(*rows: tuple[int, int, int, int]) -> pd.DataFrame:
    return pd.DataFrame([(*r, 100) for r in rows], columns=["resample", "fold", "pos", "neg", "train"])


def test_plan_lists_every_fit_and_run_leaves_exactly_these(run):
    code, out = run(command="plan")
    assert code == 0
    plan = json.loads((out / "plan.json").read_text())
    assert [(f["fold"], f["seed"], f["method"]) for f in plan["fits"]] == [
        (fold, 1, m) for fold in range(3) for m in ("cxr-only", "ridge-head")
    ]
    before = (out / "plan.json").read_bytes(), (out / "cohort" / "splits.csv").read_bytes()
    assert run()[0] == 0
    assert ((out / "plan.json").read_bytes(), (out / "cohort" / "splits.csv").read_bytes()) == before
    fits = [json.loads(p.read_text())["config"] for p in (out / "artifacts" / "fit").glob("*/artifact.json")]
    assert sorted((f["fold"], f["seed"], f["row"]) for f in fits) == sorted(
        (f["fold"], f["seed"], f["method"]) for f in plan["fits"]
    )
    assert json.loads((out / "run.json").read_text())["inputs"]["plan"] == plan["hash"]


def test_results_of_another_plan_are_never_mixed(run, cohort, capsys):
    assert run(command="plan")[0] == 0
    error = refusal(capsys, run(fit={"hidden": 9, "steps": 20, "validate_every": 10})[0])
    assert "config.fit.hidden was 8, is 9" in error
    assert "give another --out" in error
    frame = pd.read_csv(cohort / "exams.csv")
    frame.loc[frame["exam_id"] == "x-3", "label:nodule"] = 0
    frame.to_csv(cohort / "exams.csv", index=False)
    assert "inputs.exams was" in refusal(capsys, run()[0])


def test_title_and_caveats_may_change_without_another_plan(run):
    assert run(command="plan")[0] == 0
    assert run(command="plan", title="another title", caveats=["mind"], metrics=["brier"])[0] == 0


def test_split_table_is_checked_again_when_it_is_used_again(run, capsys, tmp_path):
    code, out = run(command="plan")
    assert code == 0
    path = out / "cohort" / "splits.csv"
    table = pd.read_csv(path)
    swapped = table.assign(part=table["part"].replace({"train": "val", "val": "train"}))
    swapped.to_csv(path, index=False)
    assert "cohort/splits.csv no longer" in refusal(capsys, run()[0])
    table.loc[table.index[0], "group_id"] = table.loc[table.index[-1], "group_id"]
    both = table[table["group_id"] == table.loc[table.index[0], "group_id"]]
    table.loc[both.index[0], "part"], table.loc[both.index[1:], "part"] = "test", "train"
    table.to_csv(tmp_path / "own.csv", index=False)
    assert "group_id on two sides of one fold" in refusal(
        capsys, run("--splits", str(tmp_path / "own.csv"), out="o")[0]
    )


def test_cost_is_declared_or_measured_and_says_which(run, capsys):
    code, out = run(command="plan", seconds_per_fit={"cxr-only": 30.0})
    assert code == 0
    printed = capsys.readouterr().out
    assert "cost: at least 1.5 min" in printed
    assert "cxr-only: 3 × 30.00 s (declared in the configuration)" in printed
    assert "ridge-head: 3 × unknown" in printed
    code, out = run("--time-fits", "--workers", "2", command="plan", seconds_per_fit={"cxr-only": 30.0})
    assert code == 0
    printed = capsys.readouterr().out
    assert "ridge-head: 3 × unknown" not in printed
    assert "(measured: median of 1 finished fits)" in printed
    assert "CT teacher: 3 × " in printed
    assert "with 2 workers" in printed
    assert len(list((out / "artifacts" / "fit").glob("*/fit.json"))) == 2


def test_detectable_difference_of_one_split_is_the_one_of_the_power_command():
    found = planned_difference(counts((0, 0, 40, 90)), KFOLD, 3, Assumed(auc=0.8, correlation=0.5), InferenceConfig())
    wanted = Power(40, 90, auc=0.8, corr=0.5, comparisons=3)
    assert (found.delta, found.delta_holm) == pytest.approx(
        (wanted.minimum_detectable(), wanted.minimum_detectable(first_holm_step=True))
    )


def test_folds_of_equal_size_add_up_and_a_fold_of_one_class_adds_nothing():
    seven = Assumed(auc=0.7)
    one = Power(10, 20, auc=0.7, corr=0.5).minimum_detectable()
    z = 1.959963984540054 + 0.8416212335729143
    four = planned_difference(counts(*((0, f, 10, 20) for f in range(4))), KFOLD, 1, seven, InferenceConfig())
    # four folds of one size have half the standard error of one, at the AUCs that are this far apart
    assert four.delta == pytest.approx(z / 2 * difference_se(0.7, 0.7 + four.delta, 0.5, [(10, 20)]))
    assert (four.n_pos, four.n_neg) == (40, 80)
    lone = planned_difference(counts((0, 0, 10, 20), (0, 1, 15, 0)), KFOLD, 1, seven, InferenceConfig())
    assert lone.delta == pytest.approx(one)


def test_resamples_pay_for_shared_training_patients_and_repeats_count_patients_once():
    mc = KFOLD.model_copy(update={"split": "resamples"})
    table = counts(*((k, 0, 100, 200) for k in range(1, 6))).assign(train=1000)
    found = planned_difference(table, mc, 1, Assumed(), InferenceConfig())
    se = difference_se(0.8, 0.8 + found.delta, 0.5, [(100, 200)]) * np.sqrt(1 / 5 + 300 / 1000)
    assert found.delta == pytest.approx((quantile(0.975, 4) + quantile(0.8, 4)) * se)
    table = counts(*((k, 0, 10, 20) for k in range(1, 6)))
    repeated = KFOLD.model_copy(update={"repeats": 5})
    again = planned_difference(table, repeated, 1, Assumed(auc=0.7), InferenceConfig())
    assert again.delta == pytest.approx(Power(10, 20, auc=0.7, corr=0.5).minimum_detectable())


def test_one_negative_patient_can_show_nothing_and_the_plan_says_so():
    mc = KFOLD.model_copy(update={"split": "resamples"})
    found = planned_difference(counts((1, 0, 4, 1), (2, 0, 4, 1)), mc, 1, Assumed(), InferenceConfig())
    assert (found.delta, found.reason) == (
        None, "a resample holds out too few patients (fewest: 4 positive, 1 negative)"
    )  # fmt: skip


def test_interval_wider_than_any_difference_is_not_testable():
    mc = KFOLD.model_copy(update={"split": "resamples"})
    found = planned_difference(counts((1, 0, 2, 2), (2, 0, 2, 2)), mc, 1, Assumed(), InferenceConfig())
    assert (found.delta, found.delta_holm) == (None, None)
    assert "no AUC above 0.8 is far enough away" in found.reason


def test_time_left_counts_each_method_by_its_own_fits(tmp_path):
    where = FoldId(0, "d", 0, 0)
    jobs = [FitJob(where, "d", seed, method) for method in ("quick", "slow") for seed in range(3)]
    progress = _Progress(jobs, 2)
    progress.count(Outcome(jobs[0], tmp_path, "", 60.0, False))
    assert "about 2.5 min left" in progress._bar.postfix  # no slow fit has ended yet: five like the first, on two
    progress.count(Outcome(jobs[3], tmp_path, "", 600.0, False))
    assert "about 11.0 min left" in progress._bar.postfix  # two of 1 minute and two of 10, on two processes
    progress.count(Outcome(jobs[4], None, "no", 600.0, False))
    assert "about 6.0 min left, 1 failed" in progress._bar.postfix
    progress.close()


def test_patients_are_counted_by_their_highest_label():
    targets = pd.DataFrame({"patient_id": ["a", "a", "b", "c"], "label": [0, 1, 0, 1]})
    one = Fold(
        design="d", group_of={p: p for p in "abc"}, part_of={"a": "test", "b": "test", "c": "train"}
    )  # fmt: skip
    assert held_out_counts(targets, [one])[["pos", "neg", "train"]].to_numpy().tolist() == [[1, 1, 1]]


def test_sweep_is_a_grid_over_any_field():
    config = StudyConfig.model_validate(
        BASE | {"sweep": {"fit.hidden": [4, 8], "designs.0.folds": [3, 4], "label_fraction": [0.01, 1]}}
    )
    found = variants(config)
    assert len(found) == 8
    assert found[0].label == "fit.hidden=4,designs.0.folds=3,label_fraction=0.01"
    last = found[-1].config
    assert (last.fit.hidden, last.designs[0].folds, last.label_fraction) == (8, 4, 1)
    assert last.fit.steps == 20
    assert not last.sweep
    assert found[0].key("kfold") == f"kfold@{found[0].label}"
    (plain,) = variants(StudyConfig.model_validate(BASE))
    assert plain.key("kfold") == "kfold"


def test_sweep_reaches_options_of_methods_and_of_the_encoder_and_designs_by_name():
    rows = {"mine": {"method": "prior"}, "kd": {"method": "hinton-kd", "options": {"soft_share": 0.5}}}
    design = BASE["designs"][0] | {"methods": ["cxr-only", "ridge-head", "mine", "kd"]}
    sweep = {
        "methods.mine.options.objective.bce": [0.2], "methods.kd.options.temperature": [2.0],
        "designs.kfold.folds": [4],
        "prior.training.training.steps": [7], "encoder.options.geometry": ["stretch"], "pair_fraction": [0.5],
        "inference.unit": ["patient"], "caches.cxr": ["caches/other"], "seed": [3],
    }  # fmt: skip
    (only,) = variants(StudyConfig.model_validate(BASE | {"methods": rows, "designs": [design], "sweep": sweep}))
    config = only.config
    assert config.methods["mine"].options == {"objective": {"bce": 0.2}}
    assert config.methods["kd"].options == {"soft_share": 0.5, "temperature": 2.0}
    assert (config.designs[0].folds, config.designs[0].split) == (4, "kfold")
    assert config.prior.training.training.steps == 7
    assert config.prior.training.network.depth == 1
    assert config.encoder.options == {"geometry": "stretch"}
    assert (config.pair_fraction, config.inference.unit, config.seed) == (0.5, "patient", 3)
    assert config.caches is not None
    assert (config.caches.cxr, config.caches.ct) == ("caches/other", "caches/ct")


def test_swept_option_that_a_method_does_not_take_is_refused_before_anything_is_written(run, capsys):
    design = BASE["designs"][0] | {"methods": ["cxr-only", "ridge-head", "kd"]}
    code, out = run(
        command="plan", designs=[design], methods={"kd": {"method": "hinton-kd"}},
        sweep={"methods.kd.options.temprature": [2.0, 4.0]},
    )  # fmt: skip
    assert "temprature" in refusal(capsys, code)
    assert not out.exists()


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"designs.kfolds.folds": [4]}, "no 'kfolds'.*Did you mean 'kfold'"),
        ({"teacher.hidden": [4]}, "'teacher' is not set. Next: write it out"),
        ({"lable_fraction": [0.1]}, "Did you mean 'label_fraction'"),
        ({"fit.hidden.deeper": [4]}, "'fit.hidden' holds no settings"),
        ({"fit.hiden": [4]}, "no 'hiden'.*Did you mean 'hidden'"),
        ({"fit.hidden": ["wide"]}, "sweep, fit.hidden=wide"),
        ({"fit.hidden": [4, 4]}, "needs values, each once"),
        ({"seeds": [[1, 2, 3]]}, "'seeds' can't be swept"),
        ({"label_fraction": [0.001]}, "label_fraction"),
        ({"fit.hidden": list(range(1, 40)), "fit.steps": list(range(1, 40))}, "1521 combinations"),
    ],
)
def test_bad_sweeps_are_refused(sweep, message):
    with pytest.raises(BadInput, match=message):
        variants(StudyConfig.model_validate(BASE | {"sweep": sweep}))


def test_method_with_a_bad_option_or_without_its_cache_is_refused_before_anything_is_written(run, capsys):
    designs = [{**BASE["designs"][0], "methods": ["cxr-only", "mine"]}]
    bad = {"mine": {"method": "hinton-kd", "options": {"temprature": 2.0}}}
    code, out = run(methods=bad, designs=designs, hypotheses=[])
    assert "temprature" in refusal(capsys, code)
    pixels = {"mine": {"method": "cxr-only", "options": {"inputs": "pixels"}}}
    code, out = run(methods=pixels, designs=designs, hypotheses=[])
    assert "method 'mine' reads pixels" in refusal(capsys, code)
    assert not Path(out).exists()


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ({"rows": {}}, "'rows' is now called 'methods'"),
        ({"decision": {"unit": "exam"}}, "'decision' is now called 'inference'"),
        ({"unit_seconds": {}}, "'unit_seconds' is now called 'seconds_per_fit'"),
        ({"seen_patients": "train"}, "'seen_patients' is now called 'encoder_training_patients'"),
        ({"sweep": {"decision.unit": ["exam"]}}, "'decision.unit' is now called 'inference.unit'"),
    ],
)
def test_former_key_is_answered_with_its_present_name(run, capsys, former, present):
    code, out = run(command="plan", **former)
    assert present in refusal(capsys, code)
    assert not out.exists()
