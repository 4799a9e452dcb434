from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal

import click
import pytest
import yaml
from pydantic import Field

from embedprior.cli import main
from embedprior.cli.options import Command
from embedprior.cli.settings import settings_command
from embedprior.config import Config, load_config, settings_of
from embedprior.errors import BadInput
from embedprior.students.config import TrainStudentConfig


class Steps(Config):
    """Of an optimiser.

    Attributes:
        lr: learning rate, which is
            small.
        steps, looks: how many.
    """

    renamed: ClassVar[dict[str, str]] = {"learning_rate": "lr"}
    lr: float = 1e-3
    steps: int = 10
    looks: int = 2


class Outer(Config):
    """A model.

    Attributes:
        name: of it.
        kind: one of two.
    """

    name: str = "x"
    kind: Literal["a", "b"] = "a"
    train: Steps = Steps(steps=7)
    warm: Steps | None = None
    sizes: tuple[int, ...] = (1, 2)
    rows: dict[str, Any] = Field(default_factory=dict)
    fast: bool = False
    limit: int | None = None
    out: Path = Path("here")


def prog(model: type[Config] = Outer) -> Command:
    @settings_command(model, "demo", renamed={"--old": "--seed"})
    @click.option("--seed", type=int, default=1)
    @click.option("--data", type=click.Path(path_type=Path))
    @click.option("--dry-run", is_flag=True)
    def run(**given: Any) -> Any:
        return given

    return run


def called(words: list[str], written: dict[str, Any], folder: Path, model: type[Config] = Outer) -> dict[str, Any]:
    """What the function of the command is called with."""
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(written))
    found = prog(model).main(["--config", str(file), *words], "prog", standalone_mode=False)
    assert isinstance(found, dict)
    return found


def overridden(words: list[str], written: dict[str, Any], folder: Path) -> Outer:
    config = called(words, written, folder)["config"]
    assert isinstance(config, Outer)
    return config


@pytest.mark.parametrize(
    ("words", "place", "value"),
    [
        (["--name", "1"], "name", "1"),
        (["--name=a=b"], "name", "a=b"),
        (["--name", "null"], "name", "null"),
        (["--kind", "b"], "kind", "b"),
        (["--train.lr", "1e-4"], "train.lr", 1e-4),
        (["--sizes", "[3, 4]"], "sizes", (3, 4)),
        (["--sizes", "3", "--sizes", "4"], "sizes", (3, 4)),
        (["--sizes", "3"], "sizes", (3,)),
        (["--fast"], "fast", True),
        (["--fast", "false"], "fast", False),
        (["--limit", "-3"], "limit", -3),
        (["--limit", "null"], "limit", None),
        (["--limit", "None"], "limit", None),
        (["--name", "None"], "name", "None"),
        (["--out", "a/b"], "out", Path("a/b")),
        (["--warm.steps", "4"], "warm.steps", 4),
        (["--rows.prior-long.method", "prior"], "rows", {"prior-long": {"method": "prior"}}),
        (["--rows.a.method=x", "--rows.b_c.steps", "3"], "rows", {"a": {"method": "x"}, "b_c": {"steps": 3}}),
        (["--rows", "{prior-long: {method: prior}}"], "rows", {"prior-long": {"method": "prior"}}),
        (["--rows", "a=x=y"], "rows", {"a": "x=y"}),
        (["--fast", "--kind", "b"], "fast", True),
    ],
)
def test_a_word_becomes_the_value_its_setting_asks_for(
    words: list[str], place: str, value: object, tmp_path: Path
) -> None:
    written = {"limit": 5, "fast": True} if {"false", "null", "None"} & {*words} else {}
    found: Any = overridden(words, written, tmp_path)
    for name in place.split("."):
        found = getattr(found, name)
    assert found == value


def test_a_setting_typed_in_a_section_leaves_the_rest_of_the_section_alone(tmp_path: Path) -> None:
    by_file = overridden(["--train.lr", ".5"], {"train": {"looks": 9}}, tmp_path)
    assert by_file.train == Steps(lr=0.5, looks=9)
    by_model = overridden(["--train.lr", ".5"], {}, tmp_path)
    assert by_model.train == Steps(lr=0.5, steps=7), "the model's own choice for this section was lost"


def test_options_have_dashes_and_keys_of_a_mapping_stay_as_typed(tmp_path: Path) -> None:
    class Dashed(Config):
        a_b: int = 0
        c_d: dict[str, int] = Field(default_factory=dict)

    found = called(["--a-b", "2", "--c-d.x-y", "1", "--c-d.x_y", "3"], {}, tmp_path, Dashed)["config"]
    assert found == Dashed(a_b=2, c_d={"x-y": 1, "x_y": 3})
    with pytest.raises(BadInput, match=r"'--a_b': options are written with dashes\. Did you mean '--a-b'\? Next: prog"):
        called(["--a_b", "2"], {}, tmp_path, Dashed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.stepz", "3"], r"unknown option '--train\.stepz'\. Did you mean '--train\.steps'\? Next: prog"),
        (["--trian.steps", "3"], r"Did you mean '--train\.steps'"),
        (["stray"], r"unexpected extra argument \(stray\)\. Next: prog --help"),
        (["--name"], "--name needs a value"),
        (["--name", "--kind", "b"], "--name needs a value"),
        (["--rows.a.method"], r"--rows\.a\.method needs a value"),
        (["--rows.a.method", "--kind", "b"], r"--rows\.a\.method needs a value"),
        (["--old", "3"], "the option --old is now called --seed"),
        (["--train.learning-rate", "3"], r"the option --train\.learning-rate is now called --train\.lr"),
        (["--seed", "x"], r"invalid value for '--seed': 'x' is not a valid integer\. Next: prog --help"),
        (["--train.steps", "many"], r"mine\.yaml and the command line: 'train\.steps'.*'many'"),
        (["--kind", "c"], r"'kind'.*'a' or 'b'.*'c'"),
        (["--sizes", "3", "--sizes", "x"], r"'sizes\.1'.*'x'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        overridden(words, {}, tmp_path)
    assert "\n" not in str(refused.value)


def test_options_of_the_command_stand_beside_its_settings(tmp_path: Path) -> None:
    found = called(["--seed", "3", "--dry-run", "--limit", "4"], {"name": "y"}, tmp_path)
    config = found.pop("config")
    assert (config.name, config.limit) == ("y", 4)
    assert found == {"seed": 3, "data": None, "dry_run": True}


def test_a_configuration_must_be_named_where_none_is_the_default() -> None:
    with pytest.raises(BadInput, match=r"--config is missing\. Allowed: default, quick, .*or a YAML file"):
        prog().main([], "prog", standalone_mode=False)


def test_settings_that_are_typed_need_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "prior", "--source", "drr", "--out", "here"]) == 2
    said = capsys.readouterr().err
    assert "the command line (without --config): 'condition_cache': field required" in said


@pytest.mark.parametrize("words", [["--help"], ["--help", "--config", "{file}"], ["--config", "{file}", "--help"]])
def test_help_shows_kind_text_and_the_value_in_the_configuration(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("limit: 5\n")
    assert prog().main([word.format(file=file) for word in words], "prog", standalone_mode=False) == 0
    said = capsys.readouterr().out
    text = " ".join(said.split())
    assert "--train.lr FLOAT learning rate, which is small (default: 0.001)" in text
    assert "--train.looks INT how many (default: 2)" in text
    assert "--kind {a,b} one of two (default: a)" in text
    assert "--sizes [INT, ...]" in text
    assert ("--limit INT (default: 5)" in text) == ("{file}" in words)
    assert max(map(len, said.splitlines())) <= 120


COMMANDS = {
    "study plan": "study.config.StudyConfig", "demo": "demo.config.DemoConfig",
    "train prior": "prior.config.TrainPriorConfig", "train student": "students.config.TrainStudentConfig",
    "train teacher": "teachers.config.TrainTeacherConfig", "generate": "prior.config.GenerateConfig",
    "drr": "imaging.drr.config.DrrConfig",
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_of_a_command_says_what_it_is(command: str) -> None:
    module, _, name = COMMANDS[command].rpartition(".")
    model = getattr(importlib.import_module(f"embedprior.{module}"), name)
    assert [setting.name for setting in settings_of(model) if not setting.text] == []


def test_a_closed_pipe_ends_a_command_without_a_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "embedprior", "study", "plan", "--help"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_shipped_presets_keep_their_own_sections_when_one_setting_is_typed() -> None:
    from embedprior.study.config import StudyConfig

    name = "pe_tables_demo"
    before = load_config(StudyConfig, name, "study")
    after = load_config(StudyConfig, name, "study", {"prior.training.training.lr": 0.5})
    changed = before.prior.training.training.model_copy(update={"lr": 0.5})
    assert after.prior.training.training == changed
    assert after.prior.training.network == before.prior.training.network


@pytest.mark.parametrize("word", ["hidden", "steps"])
def test_a_budget_given_in_words_is_not_searched_over(word: str) -> None:
    """A section that the file leaves out says nothing but what was typed."""
    config = load_config(TrainStudentConfig, "demo", "student", {f"budget.fit.{word}": 8})
    assert config.budget.settings == "given"
    assert getattr(config.budget.fit, word) == 8
    assert load_config(TrainStudentConfig, "demo", "student", {"budget.samples": 8}).budget.settings == "auto"
    assert load_config(TrainStudentConfig, "demo", "student").budget.settings == "auto"
