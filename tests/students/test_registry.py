"""What holds for every registered method."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedprior.errors import BadInput
from embedprior.runs.integrity import with_checksum
from embedprior.students.base import Cases, FitData, Stage
from embedprior.students.controls import ConstantMethod
from embedprior.students.registry import DEGENERATE, METHODS, Budget, build_method, method_names, methods
from embedprior.students.storage import load_fitted, save_fitted
from embedprior.testing import check_method

FACTS = methods()
READS_UNLABELLED = [
    n
    for n, i in FACTS.items()
    if i.uses_ct and i.role != "oracle" and n != "cxr-only-drr"  # it reads labels alone
]


def all_but_slow(names: Iterable[str]) -> list[Any]:
    """Rows of networks of CT slices take seconds each and share their code: one stands for all in `make test`."""
    alike = [name for name in METHODS if name.startswith("slice-") and name != "slice-kd"]
    return [pytest.param(name, marks=pytest.mark.slow) if name in alike else name for name in names]


def visible(cases: Cases, name: str) -> Cases:
    return cases if FACTS[name].needs_ct else cases.without_ct()


@pytest.mark.parametrize("name", all_but_slow(METHODS))
def test_every_method_keeps_every_promise_of_the_protocol(name: str) -> None:
    kept = check_method(name)
    assert ("it learns nothing from CT (uses_ct = False)" in kept) == (not FACTS[name].uses_ct)
    assert ("an oracle says that it lacks the CT" in kept) == FACTS[name].needs_ct
    always = {
        "the same seed gives the same scores",
        "read back, it scores as it did",
        "its parameters are as announced",
    }
    assert always <= set(kept)
    assert ("it reads pixels alone when asked to" in kept) == ("pixels" in FACTS[name].inputs)


@pytest.mark.parametrize("name", all_but_slow(METHODS))
def test_a_fit_counts_what_it_trained(name: str, small: FitData, budget: Budget) -> None:
    info = FACTS[name]
    fit_summary = build_method(name, budget).fit(small, 7).fit_summary  # type: ignore[attr-defined]
    assert fit_summary.total >= fit_summary.trainable
    if info.needs_teacher and name != "knn-head":
        assert fit_summary.total > fit_summary.trainable
    if info.budget_part != "nothing":
        assert fit_summary.steps > 0
        assert fit_summary.losses


@pytest.mark.parametrize("name", all_but_slow(READS_UNLABELLED))
def test_every_method_that_uses_ct_learns_from_unlabelled_pairs(name: str, small: FitData, budget: Budget) -> None:
    train = small.target.train
    few = FitData((Stage(train.take(np.flatnonzero(train.known)), small.target.val),), small.teacher)
    cases = visible(small.target.val, name)
    scores = [build_method(name, budget).fit(data, 7).scores(cases) for data in (few, small)]
    assert not np.allclose(*scores)


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
    record = {"format": 2, "kind": "os:system", "method": "x", "files": {}}
    (tmp_path / "fitted.json").write_text(json.dumps(with_checksum(record)))
    with pytest.raises(BadInput, match="unknown kind of fitted method 'os:system'"):
        load_fitted(tmp_path)


FOREIGN = """
from dataclasses import dataclass, field
import numpy as np
from embedprior.students.config import Budget
from embedprior.students.registry import MethodInfo, MethodRow
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
    '''The first number of z_CXR.'''
    above: float | None = None
    budget: Budget = field(default_factory=Budget)
    name: str = "first-number"
    needs_ct: bool = False
    uses_ct: bool = False
    def fit(self, data, seed):
        return Fitted(float(data.target.train.cxr[:, 0].mean()) if self.above is None else self.above)
class Changes(FirstNumber):
    @property
    def needs_ct(self):
        return True
class Silent:
    needs_ct = False
    def fit(self, data, seed): ...
HERE = "foreign_method:FirstNumber"
ROW = MethodRow("above-zero", "s", "s", HERE, options={"above": 0.0})
DECLARED = MethodInfo("declared", "s", "s", "embedprior.students.controls:LateFusion", needs_teacher=False)
ORACLE = MethodInfo("oracle", "s", "s", HERE, uses_ct=False, needs_teacher=False, role="oracle")
TRUE = MethodInfo("true", "s", "s", HERE, uses_ct=False, needs_teacher=False)
LESS = MethodInfo("less", "s", "s", "embedprior.students.logit_kd:HintonKd")
MORE = MethodInfo("more", "s", "s", HERE, ("embedding", "tokens"), uses_ct=False, needs_teacher=False)
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Install a package of two methods with these entry points."""

    def install(entry_points: str) -> None:
        folder = tmp_path / hashlib.sha256(entry_points.encode()).hexdigest()[:8]
        (folder / "foreign-1.dist-info").mkdir(parents=True)
        (folder / "foreign_method.py").write_text(FOREIGN)
        (folder / "foreign-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1\n")
        (folder / "foreign-1.dist-info" / "entry_points.txt").write_text(entry_points)
        monkeypatch.delitem(sys.modules, "foreign_method", raising=False)
        monkeypatch.syspath_prepend(folder)

    yield install
    sys.modules.pop("foreign_method", None)


def test_the_class_alone_says_what_another_packages_method_is(foreign: Callable[[str], None]) -> None:
    foreign(
        "[embedprior.methods]\nfirst-number = foreign_method:FirstNumber\nabove-zero = foreign_method:ROW\n"
        "[embedprior.fitted]\nfirst-number = foreign_method:Fitted\n"
    )
    info = methods()["first-number"]
    assert (info.summary, info.source, info.role) == ("The first number of z_CXR", "foreign", "row")
    assert (info.needs_ct, info.uses_ct, info.needs_teacher, info.inputs) == (False, False, False, ("embedding",))
    assert methods()["above-zero"].options == {"above": 0.0}
    assert build_method("above-zero").above == 0.0  # type: ignore[attr-defined]
    assert "it learns nothing from CT (uses_ct = False)" in check_method("first-number")


def test_names_of_other_packages_are_listed_without_importing_them(foreign: Callable[[str], None]) -> None:
    foreign("[embedprior.methods]\nfirst-number = foreign_method:FirstNumber\n")
    assert "first-number" in method_names()
    assert "first-number" in methods()
    assert "foreign_method" not in sys.modules
    assert methods()["first-number"].version == 1
    assert "foreign_method" in sys.modules


def test_an_entry_that_contradicts_its_class_is_refused(foreign: Callable[[str], None]) -> None:
    foreign(
        "[embedprior.methods]\ndeclared = foreign_method:DECLARED\noracle = foreign_method:ORACLE\n"
        "true = foreign_method:TRUE\nless = foreign_method:LESS\n"
        "more = foreign_method:MORE\nchanges = foreign_method:Changes\nsilent = foreign_method:Silent\n"
    )
    with pytest.raises(BadInput, match="needs_ct = False, its class LateFusion says True"):
        build_method("declared")
    with pytest.raises(BadInput, match="'oracle' contradicts itself"):
        methods()["oracle"]
    assert methods()["true"].uses_ct is False
    assert methods()["less"].inputs == ("embedding",)  # its class reads tokens and pixels too
    with pytest.raises(BadInput, match="'more' contradicts itself: its registry entry says inputs"):
        methods()["more"]
    with pytest.raises(BadInput, match="class Changes states no needs_ct"):
        build_method("changes")
    with pytest.raises(BadInput, match=r"class Silent states no uses_ct\. Next: give the class"):
        build_method("silent")


def test_an_instance_that_is_not_what_its_class_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Changed(ConstantMethod):
        def __post_init__(self) -> None:
            object.__setattr__(self, "needs_ct", True)

    monkeypatch.setattr("embedprior.students.controls.ConstantMethod", Changed)
    with pytest.raises(BadInput, match="class Changed says needs_ct = False, once built it says True"):
        build_method("constant")


def test_a_saved_method_of_another_package_is_read_back(
    small: FitData, tmp_path: Path, foreign: Callable[[str], None]
) -> None:
    foreign("[embedprior.methods]\nfirst-number = foreign_method:FirstNumber\n")
    fitted = build_method("first-number").fit(small, 0)
    cases = small.target.val.without_ct()
    with pytest.raises(BadInput, match=r"can't be saved.*entry point of embedprior\.fitted"):
        save_fitted(fitted, tmp_path / "out", "first-number")
    assert not (tmp_path / "out").exists()
    foreign(
        "[embedprior.methods]\nfirst-number = foreign_method:FirstNumber\n"
        "[embedprior.fitted]\nfirst-number = foreign_method:Fitted\n"
    )
    save_fitted(fitted, tmp_path / "out", "first-number")
    again = load_fitted(tmp_path / "out")
    assert again.method == "first-number"
    np.testing.assert_array_equal(again.scores(cases), fitted.scores(cases))
    with pytest.raises(BadInput, match=r"unknown option 'x'. Allowed: above"):
        build_method("first-number", x=1)


def test_a_broken_package_is_named(foreign: Callable[[str], None]) -> None:
    foreign("[embedprior.methods]\nfirst-number = foreign_method:NOTHING\n")
    assert "first-number" in method_names()
    with pytest.raises(BadInput, match=r"'first-number' of package foreign can't be imported.*pip uninstall foreign"):
        methods()["first-number"]


def test_the_registry_imports_no_torch() -> None:
    code = "import sys, embedprior.students.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
