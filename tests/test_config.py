from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from pydantic import model_validator

from embedprior.config import Config, config_folder, load_config, parse_config
from embedprior.errors import BadInput


class Inner(Config):
    learning_rate: float = 1e-3
    steps: int = 10


class Outer(Config):
    name: str = "x"
    train: Inner = Inner()


def test_unknown_key_names_its_place_and_the_nearest_match() -> None:
    with pytest.raises(BadInput, match=r"unknown key 'train\.learning_rat'.*Did you mean 'learning_rate'\?"):
        parse_config(Outer, {"train": {"learning_rat": 1}}, "file.yaml")


def test_wrong_type_says_what_was_given() -> None:
    with pytest.raises(BadInput, match=r"'train\.steps'.*'many'"):
        parse_config(Outer, {"train": {"steps": "many"}}, "file.yaml")


def test_a_rule_over_a_whole_section_is_told_without_its_contents() -> None:
    class Ordered(Config):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _rise(self) -> Ordered:
            if self.low > self.high:
                raise ValueError("low must not exceed high")
            return self

    class Holds(Config):
        part: Ordered = Ordered()

    with pytest.raises(BadInput) as whole:
        parse_config(Ordered, {"low": 3}, "file.yaml")
    assert str(whole.value) == "file.yaml: low must not exceed high"
    with pytest.raises(BadInput) as part:
        parse_config(Holds, {"part": {"low": 3}}, "file.yaml")
    assert str(part.value) == "file.yaml: 'part': low must not exceed high"


def test_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "file", "train": {"steps": 3}}))
    loaded = load_config(Outer, str(path), "demo", {"train.steps": 7})
    assert (loaded.name, loaded.train.steps, loaded.train.learning_rate) == ("file", 7, 1e-3)


def test_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(BadInput, match=r"default.*Did you mean 'default'\?"):
        load_config(Outer, "defalt", "demo")


def test_broken_yaml_and_a_list_are_refused(tmp_path: Path) -> None:
    broken, listed = tmp_path / "a.yaml", tmp_path / "b.yaml"
    broken.write_text("a: [1")
    listed.write_text("- 1")
    with pytest.raises(BadInput, match="not valid YAML"):
        load_config(Outer, str(broken), "demo")
    with pytest.raises(BadInput, match="expected a mapping"):
        load_config(Outer, str(listed), "demo")


def test_shipped_configurations_are_found_in_the_checkout() -> None:
    assert (config_folder("demo") / "default.yaml").is_file()


class Renamed(Config):
    renamed: ClassVar[Mapping[str, str]] = {"old_rate": "learning_rate"}

    learning_rate: float = 0.1


class Holder(Config):
    train: Renamed = Renamed()


def test_a_former_key_is_answered_with_its_present_name() -> None:
    with pytest.raises(BadInput) as caught:
        parse_config(Holder, {"train": {"old_rate": 1.0}}, "a file")
    assert str(caught.value) == "a file: 'train.old_rate' is now called 'learning_rate'"


def read(tmp_path: Path, content: bytes) -> str:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(BadInput) as refused:
        load_config(Outer, str(tmp_path / "c.yaml"), "study")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_yaml_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "is not UTF-8 text" in read(tmp_path, "name: é".encode("utf-16"))


def test_yaml_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    assert "nested more than 32 deep" in read(tmp_path, b"name: " + b"[" * 5000 + b"]" * 5000)
    assert load_config(Outer, str(written(tmp_path, b"name: x # " + b"[" * 500)), "study").name == "x"


def test_aliases_that_stand_for_too_many_values_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]  # 10⁹ values
    assert "holds more than 100,000 values" in read(tmp_path, "\n".join(lines).encode())


def test_an_alias_may_be_used(tmp_path: Path) -> None:
    content = b"train: &t {steps: 3}\nname: &n x\n"
    assert load_config(Outer, str(written(tmp_path, content)), "study").train.steps == 3


def written(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "c.yaml").write_bytes(content)
    return tmp_path / "c.yaml"
