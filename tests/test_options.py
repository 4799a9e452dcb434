from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field

from embedprior.cli.options import parse
from embedprior.config import Config, describe, load_config, read_overrides, settings_of
from embedprior.errors import BadInput


class Steps(Config):
    """Of an optimiser.

    Attributes:
        lr: learning rate, which is
            small.
        steps, looks: how many.
    """

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


def overridden(words: list[str], written: dict[str, Any], folder: Path) -> Outer:
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(written))
    return parse(Outer, "demo", ["--config", str(file), *words], "prog", "text", "default")[0]


@pytest.mark.parametrize(
    ("words", "place", "value"),
    [
        (["--name", "1"], "name", "1"),
        (["--name=a=b"], "name", "a=b"),
        (["--name", "null"], "name", "null"),
        (["--kind", "b"], "kind", "b"),
        (["--train.lr", "1e-4"], "train.lr", 1e-4),
        (["--sizes", "[3, 4]"], "sizes", (3, 4)),
        (["--sizes", "3", "4"], "sizes", (3, 4)),
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


def test_dashes_and_underscores_are_one_in_names_and_kept_in_a_mapping() -> None:
    class Dashed(Config):
        a_b: int = 0
        c_d: dict[str, int] = Field(default_factory=dict)

    assert read_overrides(["--a-b", "2", "--c-d.x-y", "1"], Dashed, "prog") == {"a_b": 2, "c_d.x-y": 1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.stepz", "3"], r"unknown option '--train\.stepz'\. Did you mean '--train\.steps'\? Next: prog"),
        (["--trian.steps", "3"], r"Did you mean '--train\.steps'"),
        (["stray"], "'stray' was not expected"),
        (["--name"], "--name needs a value"),
        (["--train.steps", "many"], r"mine\.yaml and the command line: 'train\.steps'.*'many'"),
        (["--kind", "c"], r"'kind'.*'a' or 'b'.*'c'"),
        (["--sizes", "3", "x"], r"'sizes\.1'.*'x'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        overridden(words, {}, tmp_path)
    assert "\n" not in str(refused.value)


def test_common_options_and_flags_stand_beside_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: y\n")
    found, common = parse(
        Outer, "demo", ["--seed", "3", "--dry-run", "--config", str(file), "--limit", "4"], "prog", "text", "default",
        {"dry_run": "stop", "force": "go on"}, seed=(int, 1, "of everything"), data=(Path, None, "folder"),
    )  # fmt: skip
    assert (found.name, found.limit) == ("y", 4)
    assert common == {"seed": 3, "data": None, "dry_run": True, "force": False}
    with pytest.raises(BadInput, match=r"argument --seed: invalid int value: 'x'\. Next: prog --help"):
        parse(Outer, "demo", ["--seed", "x"], "prog", "text", "default", seed=(int, 1, "of everything"))


def test_help_tells_kind_text_and_default_of_every_setting() -> None:
    lines = describe(Outer).splitlines()
    text = " ".join(" ".join(lines).split())
    assert "--train.lr FLOAT learning rate, which is small (default: 0.001)" in text
    assert "--train.looks INT how many (default: 2)" in text
    assert "--kind {a,b} one of two (default: a)" in text
    assert "--sizes [INT, ...]" in text
    assert "(default: 5)" in " ".join(describe(Outer, Outer(limit=5)).split())
    assert max(map(len, lines)) <= 120


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

    name = "demo_kfold"
    before = load_config(StudyConfig, name, "study")
    after = load_config(StudyConfig, name, "study", {"prior.training.training.lr": 0.5})
    changed = before.prior.training.training.model_copy(update={"lr": 0.5})
    assert after.prior.training.training == changed
    assert after.prior.training.network == before.prior.training.network
