from __future__ import annotations

import os
import subprocess
import sys

import pytest

from embedprior.cli import COMMANDS, GROUPS, main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("command", ["", *GROUPS, *COMMANDS])
def test_help_of_every_command_loads_no_heavy_library(command: str) -> None:
    words = [*command.split(), "--help"]
    program = (
        f"import sys\nfrom embedprior.cli import main\nassert main({words!r}) == 0\n"
        "heavy = {'torch', 'scipy', 'pandas', 'matplotlib', 'sklearn', 'SimpleITK', 'PIL'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert f"Usage: embedprior {command}".strip() in done.stdout
    told = COMMANDS[command][1] if command in COMMANDS else GROUPS[command]
    assert " ".join(told.split()) in " ".join(done.stdout.split())


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dmeo"]) == 2
    assert "Did you mean 'demo'?" in capsys.readouterr().err
    assert main(["study", "rnu"]) == 2
    assert "Did you mean 'study run'?" in capsys.readouterr().err


def test_a_group_lists_its_commands_and_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"train {name}" in said for name in ("encoder", "teacher", "prior", "student"))
    assert "cache ls" not in said
    assert main(["train"]) == 2
    assert (
        "needs a command: encoder, teacher, alignment, prior, student, final. Next: embedprior train --help"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("embedprior tr", {"train"}),
        ("embedprior train ", {"encoder", "teacher", "alignment", "prior", "student", "final"}),
        ("embedprior power --corr", {"--correlation"}),
        ("embedprior study run --config demo_", {"demo_kfold"}),
        ("embedprior train prior --prior.training.war", {"--prior.training.warmup"}),
    ],
)
def test_a_shell_completes_commands_options_and_configurations(typed: str, offered: set[str]) -> None:
    words = typed.split(" ")
    asked = {"_EMBEDPRIOR_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    program = "import sys; sys.argv[0] = 'embedprior'; from embedprior.cli import entry; entry()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ | asked
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered


@pytest.mark.parametrize(
    ("environment", "printed"),
    [({}, 1), ({"RANK": "1"}, 0), ({"RANK": "3", "LOCAL_RANK": "0"}, 1), ({"RANK": "3", "LOCAL_RANK": "1"}, 0)],
)
def test_a_fault_of_the_input_is_printed_once_on_each_machine(
    environment: dict[str, str], printed: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["power", "--pos", "3"]) == 2
    assert capsys.readouterr().err.count("\n") == printed
