"""Commands with a configuration: ``--config NAME``, and every setting of that file as an option over it.

A setting is typed dotted, with dashes: ``--prior.training.steps 500``. A list is ``"[1, 2]"``, or the option again for
each value. A mapping is typed whole (``--rows "{a: {method: prior}}"``) or key by key (``--rows.a.method prior``).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from click.core import ParameterSource

from embedprior.cli.options import Command, Function, command
from embedprior.config import Config, Setting, config_folder, load_config, model_at, read_words, settings_of
from embedprior.errors import BadInput

PLAIN = {int: "INT", float: "FLOAT", str: "TEXT", bool: "BOOL", Path: "PATH"}


class SettingOption(click.Option):
    """One setting as an option; the words typed after it are read when the configuration is."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.keyed = get_origin(setting.kind) is dict
        more: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if setting.kind is bool else {}
        several = self.keyed or get_origin(setting.kind) in (tuple, list)
        names = [setting.name.replace(".", "__"), dashed(setting.name)]
        super().__init__(names, type=click.UNPROCESSED, multiple=several, metavar=kind_text(setting.kind), **more)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return None: the settings are listed apart, with the values of the configuration."""
        return None

    def overrides(self, values: Any) -> dict[str, Any]:
        """Return dotted name → value, for the words typed after this option."""
        name = self.setting.name
        words = [str(value) for value in (values if self.multiple else [values])]
        if not self.keyed:
            return {name: read_words(words, self.setting.kind)}
        found: dict[str, Any] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if equals and key and not set(key) & set("{ :"):
                found[f"{name}.{key}"] = read_words([value], Any)
            else:
                found[name] = read_words([word], self.setting.kind)
        return found


class SettingsCommand(Command):
    """A command whose function gets the configuration that the user named and typed, as ``config``."""

    def __init__(self, *args: Any, model: type[Config], folder: str, **kwargs: Any) -> None:
        self.model, self.folder = model, folder
        super().__init__(*args, **kwargs)
        self.params += [SettingOption(setting) for setting in settings_of(model)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of this command; see ``Command.parse_args``."""
        known = self.named_options(ctx)
        ctx.meta["config"] = _config_name(args, known)
        return super().parse_args(ctx, _by_key(args, known))

    def invoke(self, ctx: click.Context) -> Any:
        """Call the function; the configuration is read first."""
        ctx.params = self.with_config(ctx)
        return super().invoke(ctx)

    def with_config(self, ctx: click.Context) -> dict[str, Any]:
        """Return the options of the command with the settings read into one configuration.

        Raises:
            BadInput: no such configuration, or a setting of the wrong kind.
        """
        given = dict(ctx.params)
        overrides: dict[str, Any] = {}
        for option in self.params:
            if isinstance(option, SettingOption) and option.name is not None:
                values = given.pop(option.name)
                if ctx.get_parameter_source(option.name) is ParameterSource.COMMANDLINE:
                    overrides |= option.overrides(values)
        name = given["config"]
        if name is None and not overrides:
            allowed = ", ".join(_shipped(self.folder))
            raise BadInput(f"--config is missing. Allowed: {allowed}, or a YAML file. Next: {ctx.command_path} --help")
        return given | {"config": load_config(self.model, name, self.folder, overrides)}

    def unknown_option(self, typed: str, known: Iterable[str]) -> str:
        """Return what is said of an option that the command does not have; former keys of a file are known too."""
        *section, last = typed.lstrip("-").replace("-", "_").split(".")
        names = model_at(self.model, section).renamed
        if last in names:
            return f"the option {typed} is now called {dashed('.'.join([*section, names[last]]))}."
        return super().unknown_option(typed, known)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then every setting with its value in the configuration that was named."""
        super().format_options(ctx, formatter)
        name = ctx.meta["config"]
        given = None if name is None else load_config(self.model, name, self.folder)
        where = "the configuration" if name is None else Path(name).stem + ".yaml"
        with formatter.section(f'Every setting of {where} (a list: "[1, 2]", or the option again for each value)'):
            formatter.write_dl(
                [
                    (f"{dashed(s.name)} {kind_text(s.kind)}", f"{s.text} ({s.default})".strip())
                    for s in settings_of(self.model, given)
                ]
            )


def settings_command(
    model: type[Config], folder: str, default: str | None = None, renamed: Mapping[str, str] | None = None
) -> Callable[[Function], Command]:
    """Make a command of a function that gets its configuration as ``config``; see ``options.command``.

    Args:
        model: of the configuration.
        folder: of ``configs/``, in which ``--config NAME`` is looked up.
        default: the configuration taken when none is named; None: the settings typed have to do without one.
        renamed: former option → its present name.
    """
    note = f" [default: {default}]" if default else ""
    config = click.option(
        "--config", default=default, metavar="NAME", show_default=False,
        shell_complete=lambda _, __, typed: [name for name in _shipped(folder) if name.startswith(typed)],
        help=f"of configs/{folder}, or a YAML file{note}",
    )  # fmt: skip
    made = command(SettingsCommand, renamed=renamed, model=model, folder=folder)
    return lambda function: made(config(function))


def dashed(name: str) -> str:
    """Return the option of a setting: ``prior.min_snr`` → ``--prior.min-snr``."""
    return f"--{name.replace('_', '-')}"


def kind_text(kind: Any) -> str:
    """Return what is to be typed for a value of this annotation."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(str(choice) for choice in get_args(kind)) + "}"
    if get_origin(kind) in (Union, types.UnionType):
        return "|".join(kind_text(k) for k in get_args(kind) if k is not type(None))
    if get_origin(kind) in (tuple, list):
        return f"[{kind_text(get_args(kind)[0])}, ...]"
    if get_origin(kind) is dict:
        return "{NAME: VALUE}"
    return PLAIN.get(kind, "VALUE")


def _by_key(args: list[str], known: Mapping[str, click.Option]) -> list[str]:
    """Turn ``--rows.a.method prior`` into ``--rows a.method=prior``, where ``rows`` is a mapping."""
    keyed = [name for name, option in known.items() if isinstance(option, SettingOption) and option.keyed]
    words: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        typed, equals, value = word.partition("=")
        above = next((name for name in keyed if typed.startswith(f"{name}.")), None)
        if above is None or typed in known:
            words.append(word)
            continue
        if not equals:
            if not rest or rest[0] in known:
                raise BadInput(f"{typed} needs a value.")
            value = rest.pop(0)
        words += [above, f"{typed[len(above) + 1 :]}={value}"]
    return words


def _config_name(args: list[str], known: Mapping[str, click.Option]) -> str | None:
    """Return the configuration that the words name, for ``--help``, which may stand before it."""
    for word, following in zip(args, [*args, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name == "--config":
            return value if equals else following
    default = known["--config"].default
    return default if isinstance(default, str) else None


def _shipped(folder: str) -> list[str]:
    return sorted(file.stem for file in config_folder(folder).glob("*.yaml"))
