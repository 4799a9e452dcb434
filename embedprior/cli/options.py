"""The one command-line reader, click's: options with dashes, and errors on one line with the nearest match.

What a command with a configuration adds is in ``cli.settings``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from embedprior.errors import BadInput, nearest

WIDEST = 120
PATH = click.Path(path_type=Path)
DRY_RUN = "print what would be done, and stop"

Function = Callable[..., int]


class AtLeast(click.ParamType[int]):
    """A whole number that is not below ``smallest``."""

    name = "integer"

    def __init__(self, smallest: int) -> None:
        self.smallest = smallest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        number = click.INT.convert(value, param, ctx)
        if number < self.smallest:
            self.fail(f"{number}. Allowed: {self.smallest} or more", param, ctx)
        return int(number)


COUNT = AtLeast(1)


class ExamTableFile(click.ParamType[Path]):
    """An exam table, or the folder of a cohort that holds it."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the table's path.

        Raises:
            BadInput: a folder without ``exams.csv``.
        """
        path = Path(value)
        if path.is_dir():
            if not (path / "exams.csv").is_file():
                raise BadInput(f"{path} is a folder without exams.csv. Next: embedprior cohort build --help")
            return path / "exams.csv"
        return path


EXAM_TABLE = ExamTableFile()


class Device(click.ParamType[str]):
    """A device of torch that is there; torch is imported for no other than ``cpu``."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return its name.

        Raises:
            BadInput: no such device, or torch sees no GPU.
        """
        if value != "cpu":
            import torch

            try:
                kind = torch.device(str(value)).type
            except RuntimeError as error:
                raise BadInput(f"--device {value}. Allowed: cpu, cuda, cuda:0 and so on.") from error
            if kind == "cuda" and not torch.cuda.is_available():
                raise BadInput(f"--device {value}: torch sees no GPU. Allowed: cpu. Next: embedprior doctor")
        return str(value)


DEVICE = Device()


class Command(click.Command):
    """A command whose errors are one line: what was given, the nearest match, and the next command.

    Attributes:
        renamed: former option → its present name.
    """

    def __init__(self, *args: Any, renamed: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        self.renamed = dict(renamed or {})
        super().__init__(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of this command.

        Raises:
            BadInput: an unknown option, an option without its value, or a word that belongs to no option.
        """
        if ctx.resilient_parsing:  # a shell completes an unfinished line
            return super().parse_args(ctx, args)
        known = self.named_options(ctx)
        for word, following in zip(args, [*args, None][1:], strict=True):
            if word in known and needs_value(known[word]) and (following is None or following in known):
                raise BadInput(f"{word} needs a value. Next: {ctx.command_path} --help")
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            message = self.unknown_option(error.option_name, known)
        except click.UsageError as error:
            message = one_line(error)
        raise BadInput(f"{message} Next: {ctx.command_path} --help")

    def named_options(self, ctx: click.Context) -> dict[str, click.Option]:
        """Return the options of the command by each of their names."""
        options = [option for option in self.get_params(ctx) if isinstance(option, click.Option)]
        return {name: option for option in options for name in option.opts}

    def unknown_option(self, typed: str, known: Iterable[str]) -> str:
        """Return what is said of an option that the command does not have."""
        if typed in self.renamed:
            return f"the option {typed} is now called {self.renamed[typed]}."
        right = typed.replace("_", "-")
        if right != typed and right in known:
            return f"unknown option '{typed}': options are written with dashes. Did you mean '{right}'?"
        return f"unknown option '{typed}'.{nearest(typed, known)}"


def command(
    cls: type[Command] = Command, epilog: str | None = None, renamed: Mapping[str, str] | None = None, **more: Any
) -> Callable[[Function], Command]:
    """Make a command of a function that returns an exit code; click's ``option`` and ``argument`` stand below it.

    Its one-line description is that of the table of commands (``cli.COMMANDS``).

    Args:
        cls: kind of command.
        epilog: last lines of its help.
        renamed: former option → its present name.
        more: for ``cls``.
    """
    return click.command(
        cls=cls, epilog=epilog, renamed=renamed, help="", **more,
        context_settings={"max_content_width": WIDEST, "show_default": True, "help_option_names": ["-h", "--help"]},
    )  # fmt: skip


def needs_value(option: click.Option) -> bool:
    """Return whether a value must follow the option."""
    return not (option.is_flag or option.count or isinstance(option.flag_value, str))


def one_line(error: click.UsageError) -> str:
    """Return click's message as one sentence that follows ``error:``."""
    text = " ".join(error.format_message().split())
    return text[:1].lower() + text[1:] + ("" if text.endswith((".", "?")) else ".")


def recorded(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a command as ``run.json`` keeps them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
