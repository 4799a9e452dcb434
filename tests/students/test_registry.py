"""What holds for every registered method."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from embedprior.errors import BadInput
from embedprior.students.base import Cases, CtNotAvailable, FitData, Stage
from embedprior.students.registry import DEGENERATE, METHODS, Budget, MethodInfo, build_method, methods
from embedprior.students.storage import load_fitted, save_fitted

PRIORS = [n for n, i in METHODS.items() if i.takes == "prior"]
READS_UNLABELLED = [
    n
    for n, i in METHODS.items()
    if i.uses_ct and i.role != "oracle" and n != "cxr-only-drr"  # it reads labels alone
]


@pytest.fixture(scope="module")
def fitted(small: FitData, request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    done: dict[str, object] = {}

    def of(name: str, budget: Budget) -> object:
        if name not in done:
            done[name] = build_method(name, budget).fit(small, 7)
        return done[name]

    return of


def visible(cases: Cases, name: str) -> Cases:
    return cases if METHODS[name].needs_ct else cases.without_ct()


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_method_scores_what_it_scored(name, small, budget, fitted, tmp_path: Path) -> None:
    method, cases = fitted(name, budget), visible(small.target.val, name)
    scores = method.scores(cases)
    assert scores.shape == (len(cases),)
    assert ((scores >= 0) & (scores <= 1)).all()
    save_fitted(method, tmp_path / name, name)
    again, named = load_fitted(tmp_path / name)
    assert named == name
    np.testing.assert_array_equal(again.scores(cases), scores)
    assert not [p for p in (tmp_path / name).rglob("*") if p.suffix in (".pt", ".pkl", ".npy")]


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_what_its_entry_says(name, small, budget, fitted) -> None:
    info, method = METHODS[name], build_method(name, budget)
    assert (method.name, method.needs_ct, method.uses_ct) == (name, info.needs_ct, info.uses_ct)
    if info.needs_ct:
        with pytest.raises(CtNotAvailable):
            fitted(name, budget).scores(small.target.val.without_ct())
    fit_summary = fitted(name, budget).fit_summary
    assert (fit_summary.trainable, fit_summary.total) == method.parameters(small)
    assert fit_summary.total >= fit_summary.trainable
    if info.needs_teacher and name != "knn-head":
        assert fit_summary.total > fit_summary.trainable
    if info.takes != "nothing":
        assert fit_summary.steps > 0
        assert fit_summary.losses


@pytest.mark.parametrize("name", [n for n in METHODS if n not in PRIORS])
def test_the_same_seed_gives_the_same_scores(name, small, budget, fitted) -> None:
    cases = visible(small.target.val, name)
    again = build_method(name, budget).fit(small, 7).scores(cases)
    np.testing.assert_array_equal(again, fitted(name, budget).scores(cases))


@pytest.mark.parametrize("name", READS_UNLABELLED)
def test_every_method_that_uses_ct_learns_from_unlabelled_pairs(name, small, budget, fitted) -> None:
    train = small.target.train
    few = FitData((Stage(train.take(np.flatnonzero(train.known)), small.target.val),), small.teacher)
    cases = visible(small.target.val, name)
    assert not np.allclose(build_method(name, budget).fit(few, 7).scores(cases), fitted(name, budget).scores(cases))


@pytest.mark.parametrize("name", [n for n, i in METHODS.items() if not i.needs_teacher and i.takes != "prior"])
def test_a_method_that_needs_no_teacher_is_the_same_without_one(name, small, budget, fitted) -> None:
    bare = FitData(small.stages, None, "none")
    cases = visible(small.target.val, name)
    np.testing.assert_array_equal(
        build_method(name, budget).fit(bare, 7).scores(cases), fitted(name, budget).scores(cases)
    )


@pytest.mark.parametrize("kind", ["tokens", "pixels"])
def test_student_methods_read_tokens_and_pixels(kind, small, budget, with_pixels, tmp_path: Path) -> None:
    cases = [with_pixels(c) for c in (small.target.train, small.target.val)]
    data = FitData((Stage(*cases),), small.teacher)
    names = [n for n, i in METHODS.items() if kind in i.inputs]
    assert {"cxr-only", "hinton-kd", "discom-kd", "aft-kd", "proto-kd", "clip-alignment"} <= set(names)
    for name in names:
        fitted = build_method(name, budget, inputs=kind).fit(data, 1)
        blind = replace(cases[1].without_ct(), cxr=np.full_like(cases[1].cxr, np.nan))
        scores = fitted.scores(blind)
        assert np.isfinite(scores).all(), name
        save_fitted(fitted, tmp_path / name, name)
        np.testing.assert_array_equal(load_fitted(tmp_path / name)[0].scores(blind), scores)


def test_padding_tokens_change_nothing(small, budget, with_pixels) -> None:
    cases = with_pixels(small.target.val)
    data = FitData((Stage(with_pixels(small.target.train), cases),), small.teacher)
    fitted = build_method("cxr-only", budget, inputs="tokens").fit(data, 1)
    longer = np.concatenate([cases.tokens, np.full_like(cases.tokens[:, :2], np.nan)], axis=1)
    np.testing.assert_allclose(fitted.scores(replace(cases, tokens=longer)), fitted.scores(cases), atol=1e-6)


def test_every_setting_of_the_budget_is_read(small, budget, with_pixels, tmp_path: Path) -> None:
    read: set[str] = set()

    class Spy(Budget):
        def __getattribute__(self, name: str) -> object:
            read.add(name)
            return super().__getattribute__(name)

    spy = Spy.model_validate(budget.model_dump() | {"artifacts": tmp_path})
    build_method("prior", spy).fit(small, 7)
    cases = with_pixels(small.target.train)
    build_method("cxr-only", spy, inputs="pixels").fit(FitData((Stage(cases, cases.take([])),), None), 7)
    assert set(Budget.model_fields) <= read
    assert list(tmp_path.glob("prior/*/prior.safetensors"))


def test_unknown_degenerate_and_impossible_choices_are_refused() -> None:
    with pytest.raises(BadInput, match="Did you mean 'hinton-kd'"):
        build_method("hinton")
    for name in DEGENERATE:
        with pytest.raises(BadInput, match="with two classes"):
            build_method(name)
    with pytest.raises(BadInput, match=r"can't read pixels\. Allowed: embedding"):
        build_method("ridge-head", inputs="pixels")
    with pytest.raises(BadInput, match=r"unknown option 'temprature'.*Did you mean 'temperature'"):
        build_method("hinton-kd", temprature=2)
    with pytest.raises(BadInput, match=r"no term 'advv' to weigh\. Allowed: cl, aux, mod, adv, perp"):
        build_method("discom-kd", weights={"advv": 0.0})


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("hinton-kd", "temperature", -2, "greater than 0"),
        ("hinton-kd", "temperature", "hot", "valid number"),
        ("hinton-kd", "soft_share", 1.5, "less than or equal to 1"),
        ("aft-kd", "groups", [4, 0], "greater than 0"),
        ("discom-kd", "weights", {"adv": -1}, "greater than or equal to 0"),
        ("cxr-only", "step_multiplier", 0, "greater than 0"),
        ("ridge-head", "penalties", [], "at least 1"),
        ("knn-head", "neighbours", [], "at least 1"),
        ("prior", "pretraining", "perhaps", "valid boolean"),
    ],
)
def test_a_value_that_an_option_does_not_take_is_refused(name: str, option: str, value: object, message: str) -> None:
    with pytest.raises(BadInput, match=rf"method '{name}': option '{option}': .*{message}"):
        build_method(name, **{option: value})


def test_options_are_read_as_their_types_and_never_change_what_a_row_is() -> None:
    method = build_method("aft-kd", groups=[2, 4], shuffled="true")
    assert (method.groups, method.shuffled) == ((2, 4), True)  # type: ignore[attr-defined]
    for name in ("needs_ct", "uses_ct"):
        with pytest.raises(BadInput, match=f"unknown option '{name}'"):
            build_method("hinton-kd", **{name: True})


def test_a_folder_never_names_code(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no fitted method"):
        load_fitted(tmp_path)
    (tmp_path / "fitted.json").write_text('{"format": 1, "kind": "os:system", "method": "x"}')
    with pytest.raises(BadInput, match="unknown kind of fitted method 'os:system'"):
        load_fitted(tmp_path)


def test_methods_of_installed_packages_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = MethodInfo("mine", "s", "s", "embedprior.students.logit_kd:CxrOnly")
    entry = metadata.EntryPoint("mine", "somewhere:INFO", "embedprior.methods")
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: own)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])
    assert methods()["mine"] is own
    assert build_method("mine").name == "mine"
    taken = replace(own, name="prior")
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: taken)
    with pytest.raises(BadInput, match="'prior' is taken"):
        methods()


FOREIGN = """
from dataclasses import dataclass, field
from pathlib import Path
import numpy as np
from embedprior.students.config import Budget
from embedprior.students.registry import MethodInfo
INFO = MethodInfo("first-number", "the first number of z_CXR", "this package", "foreign_method:FirstNumber",
                  uses_ct=False, needs_teacher=False, takes="nothing")
@dataclass(frozen=True)
class Fitted:
    above: float
    kind = "first-number"
    def scores(self, cases):
        return (cases.cxr[:, 0] > self.above).astype(float)
    def save(self, folder):
        (folder / "above.txt").write_text(repr(self.above))
    @classmethod
    def load(cls, folder):
        return cls(float((folder / "above.txt").read_text()))
@dataclass(frozen=True)
class FirstNumber:
    budget: Budget = field(default_factory=Budget)
    name: str = "first-number"
    needs_ct: bool = False
    uses_ct: bool = False
    def fit(self, data, seed):
        return Fitted(float(data.target.train.cxr[:, 0].mean()))
"""


def install(folder: Path, entry_points: str) -> None:
    (folder / "foreign_method.py").write_text(FOREIGN)
    (folder / "foreign-1.dist-info").mkdir()
    (folder / "foreign-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1\n")
    (folder / "foreign-1.dist-info" / "entry_points.txt").write_text(entry_points)


def test_an_installed_package_brings_a_method_and_what_it_leaves_behind(
    small: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "[embedprior.methods]\nx = foreign_method:INFO\n")
    monkeypatch.syspath_prepend(tmp_path)
    fitted = build_method("first-number").fit(small, 0)
    cases = small.target.val.without_ct()
    with pytest.raises(BadInput, match=r"can't be saved.*entry point of embedprior\.fitted"):
        save_fitted(fitted, tmp_path / "out", "first-number")
    assert not (tmp_path / "out").exists()
    (tmp_path / "foreign-1.dist-info" / "entry_points.txt").write_text(
        "[embedprior.methods]\nx = foreign_method:INFO\n[embedprior.fitted]\nfirst-number = foreign_method:Fitted\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    save_fitted(fitted, tmp_path / "out", "first-number")
    again, name = load_fitted(tmp_path / "out")
    assert name == "first-number"
    np.testing.assert_array_equal(again.scores(cases), fitted.scores(cases))
    with pytest.raises(BadInput, match=r"unknown option 'x'. Allowed: \(it has none\)"):
        build_method("first-number", x=1)


def test_a_broken_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "[embedprior.methods]\nx = foreign_method:NOTHING\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match=r"'foreign_method:NOTHING' of embedprior\.methods can't be loaded"):
        methods()


def test_the_registry_imports_no_torch() -> None:
    code = "import sys, embedprior.students.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
