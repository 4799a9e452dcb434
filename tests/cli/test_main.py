from __future__ import annotations

import subprocess
import sys

import pytest

from embedprior.cli import COMMANDS, main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("command", ["", "demo", "doctor", "generate", "train teacher"])
def test_help_does_not_import_torch(command: str) -> None:
    words = [*command.split(), "--help"]
    program = (
        "import sys\nfrom embedprior.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        "sys.exit(1 if 'torch' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_every_command_has_its_module() -> None:
    import importlib

    for name in COMMANDS:
        assert callable(importlib.import_module(f"embedprior.cli.{name.replace(' ', '_')}").main)


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dmeo"]) == 2
    assert "Did you mean 'demo'?" in capsys.readouterr().err
    assert main(["study", "rnu"]) == 2
    assert "Did you mean 'study run'?" in capsys.readouterr().err
