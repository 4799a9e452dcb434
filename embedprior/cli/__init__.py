"""The ``embedprior`` command: one thin module per command, imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "virtual patients, end to end, to a report (minutes, offline, no GPU)",
    "doctor": "check this installation: PASS, WARN or FAIL with a fix for each",
    "encoders": "the frozen encoders: what they read, what they give, their weights and licences",
    "images check": "audit CT volumes and radiographs, with a contact sheet to look at",
    "drr": "render chest CTs as radiographs (DRRs), paired with them",
    "embed": "the exams of a table through a frozen encoder into an embedding cache",
    "cache ls": "caches and artifacts, their size and what uses them (--unused: what nothing uses)",
    "cache verify": "read every byte of a cache and name what is damaged, missing or foreign",
    "cache diff": "how two caches differ: key, exams, numbers",
    "cache export": "a cache as one .npy with a CSV, or as parquet",
    "cache import": "a cache from a folder of one .npy per study",
    "cache trace": "what a run was made from, back to its source files",
    "train teacher": "a CT classifier on an embedding or token cache, frozen afterwards",
    "train prior": "the diffusion prior from radiograph embeddings to CT embeddings",
    "train student": "one method on caches and tables, saved without pickle",
    "methods": "every row a study can have: source, inputs, parameters, oracles, controls",
    "study plan": "freeze a study: every fit, its cost, the difference each hypothesis could show",
    "generate": "CT-like embeddings from a radiograph cache, and how good they are",
    "study run": "compare methods on the same held-out cases of a cohort",
    "evaluate": "AUCs, paired DeLong tests and intervals of any predictions table",
    "power": "the AUC difference a test of this size could detect",
}


def usage() -> str:
    """Return the text of ``embedprior --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return (
        "usage: embedprior COMMAND [options]\n\n"
        "Does CT, used only in training, make a chest X-ray model better? Research use only.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "  embedprior COMMAND --help    the options of one command\n"
        "  embedprior --version\n\n"
        "exit codes: 0 done, 1 failed, 2 bad input (nothing written), 3 finished, but items need attention\n"
    )


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    words = list(argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if words[0] == "--version":
        from embedprior import __version__

        print(f"embedprior {__version__}")
        return 0
    name, rest = _command(words)
    if name is None:
        from embedprior.errors import nearest

        given = " ".join(words[:2]) if words[0] in {c.split()[0] for c in COMMANDS} else words[0]
        print(
            f"error: unknown command '{given}'. Allowed: {', '.join(COMMANDS)}.{nearest(given, COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    from embedprior.errors import EmbedpriorError

    module = importlib.import_module(f"embedprior.cli.{name.replace(' ', '_')}")
    try:
        return int(module.main(rest))
    except EmbedpriorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        from embedprior.evidence.errors import EvidenceError

        if not isinstance(error, EvidenceError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _command(words: list[str]) -> tuple[str | None, list[str]]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    return None, words


def entry() -> None:
    """Console-script entry point. A reader that closes the pipe early (``| head``) ends it without a word."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + 13
    except KeyboardInterrupt:
        print("\nstopped. What was finished is kept. Next: run the same command again.", file=sys.stderr)
        code = 128 + 2
    sys.exit(code)
