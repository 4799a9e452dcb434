"""The ``embedprior`` command: its commands, one module for each group of them, imported only when one is called."""

from __future__ import annotations

import codecs
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper

import click
from click.exceptions import Exit
from click.shell_completion import CompletionItem

from embedprior.cli.options import WIDEST
from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput, EmbedpriorError, nearest
from embedprior.version import __version__

COMMANDS = {
    "demo": ("demo:demo", "virtual patients, end to end, to a report (minutes, offline, no GPU)"),
    "doctor": ("doctor:doctor", "check this installation: PASS, WARN or FAIL with a fix for each"),
    "init": ("cohort:init", "make a cohort and a study of one exported folder: exams and a label table"),
    "cohort build": ("cohort:build", "find exams, read a label table as it is, pair, and write a cohort's tables"),
    "cohort import": ("cohort:import_", "write the tables of a public set as it is published: RSPECT, CT-RATE …"),
    "cohort check": ("cohort:check", "copies, labels, ids, files and splits of a cohort, before anything is learned"),
    "cohort reports": ("cohort:reports", "add a table of radiology reports to a cohort, one text file a report"),
    "cohort split": ("cohort:split", "write a cohort's split table, once"),
    "cohort merge": ("cohort:merge", "make one cohort of several folders"),
    "encoders": ("methods:encoders", "the frozen encoders: what they read and return, their weights and licences"),
    "images check": ("images:check", "audit CT volumes and radiographs, with a contact sheet for the eye"),
    "drr": ("images:drr", "render chest CTs as radiographs (DRRs), paired with them"),
    "embed": ("embed:embed", "embed the exams of a table with a frozen encoder; exams already embedded are kept"),
    "cache ls": ("cache:ls", "list caches and artifacts with their size and the runs that use them"),
    "cache verify": ("cache:verify", "read every byte of a cache and name what is damaged, missing or foreign"),
    "cache diff": ("cache:diff", "how two caches differ: key, exams, numbers"),
    "cache export": ("cache:export", "write a cache as one .npy with a CSV of its exams, or as parquet"),
    "cache import": ("cache:import_", "make a cache from a folder with one .npy per study"),
    "verify": (
        "verify:verify",
        "read every byte of the caches, artifacts, models and runs in a folder and name what changed",
    ),
    "cache trace": ("cache:trace", "what a run was made from: artifacts, caches, and the sha256 of every source file"),
    "train encoder": (
        "train:encoder",
        "train an encoder on labels (phase A), or a sequence model over its slices; freeze it",
    ),
    "train teacher": ("train:teacher", "train a CT classifier on an embedding or token cache; its head is then frozen"),
    "train alignment": (
        "train:alignment",
        "train radiograph, CT and report embeddings into one space (contrastive, X2CT-CLIP)",
    ),
    "train prior": ("train:prior", "train the diffusion prior from radiograph embeddings to CT embeddings"),
    "train student": ("train:student", "fit one method on caches and tables, and score the held-out cases"),
    "train final": ("train:final", "fit one method of a finished study once more, on everybody"),
    "methods": ("methods:methods", "every method a study can run: source, inputs, parameters, oracles, controls"),
    "generate": ("generate:generate", "draw CT-like embeddings from a radiograph cache, and measure their quality"),
    "align": (
        "embeddings:align",
        "write a cache into the common space of an alignment; exams already there are kept",
    ),
    "evaluate-embeddings retrieval": (
        "embeddings:retrieval",
        "does a radiograph's embedding find its own CT, and the CT its radiograph: recall@k, against chance",
    ),
    "evaluate-embeddings linear-probe": (
        "embeddings:linear_probe",
        "linear probes (or any method) on frozen embeddings, several labels, compared on the same cases",
    ),
    "evaluate-embeddings few-shot": (
        "embeddings:few_shot",
        "the same on shares of the training patients, in several draws",
    ),
    "evaluate-embeddings zero-shot": ("embeddings:zero_shot", "score by text prompts in the space of an alignment"),
    "evaluate-embeddings external": ("embeddings:external", "train on one cohort, score another with the same labels"),
    "study plan": ("study:plan", "freeze a study: every fit, its cost, the difference each hypothesis could show"),
    "study run": ("study:run", "compare methods on the same held-out cases of a cohort"),
    "report": ("report:report", "a finished run's report anew or as a paper's tables; or how two runs differ"),
    "bundle": (
        "deploy:bundle",
        "the X-ray-only model of a study as one folder, with its card",
    ),
    "predict": ("deploy:predict", "score new radiographs with a bundle: probability, decision, warnings"),
    "evaluate": ("evaluate:evaluate", "AUCs, paired DeLong tests and intervals of any predictions table"),
    "power": ("evaluate:power", "the AUC difference that a test of this size could detect"),
}
"""Name → where its command is defined, and its one description, shown in every help."""

GROUPS = {
    "": "Does CT, used only in training, make a chest X-ray model better? Research use only",
    "cache": "embedding caches: what there is, whether it is whole, from and to other formats",
    "cohort": "from exported files and labels to the checked tables of a cohort",
    "images": "volumes and radiographs before anything is made of them",
    "evaluate-embeddings": "what embeddings are worth: retrieval, probes, few labels, prompts, another cohort",
    "study": "compare methods on the same held-out cases: freeze the plan, then run it",
    "train": "train one stage alone: encoder, alignment, CT teacher, prior, one method, or a study's final model",
}
"""First words of commands → what the commands that begin with them are for."""

COMPLETE = "_EMBEDPRIOR_COMPLETE"
EPILOG = f"""\b
exit codes: 0 done, 1 failed, 2 bad input (nothing written), 3 finished, but items need attention
shell completion: eval "$({COMPLETE}=bash_source embedprior)"; for others, zsh_source or fish_source"""


class Commands(click.Group):
    """The commands whose name begins with ``prefix``; their modules are imported when one of them is called."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.texts = {name: text for name, (_, text) in COMMANDS.items() if not prefix or name.startswith(f"{prefix} ")}
        super().__init__(
            prefix or "embedprior", help=f"{GROUPS[prefix]}.", options_metavar="",
            subcommand_metavar="COMMAND [OPTIONS]", epilog=None if prefix else EPILOG,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
        )  # fmt: skip

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words up to the command.

        Raises:
            BadInput: no command follows.
        """
        if not args and not ctx.resilient_parsing:
            path = ctx.command_path
            raise BadInput(f"'{path}' needs a command: {', '.join(self.list_commands(ctx))}. Next: {path} --help")
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the words that may follow."""
        words = (name.removeprefix(self.prefix).split()[0] for name in self.texts)
        return list(dict.fromkeys(words))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or the group of commands that begin with this word."""
        name = f"{self.prefix} {cmd_name}".strip()
        if name not in COMMANDS:
            return Commands(name) if any(known.startswith(f"{name} ") for known in COMMANDS) else None
        where, text = COMMANDS[name]
        module, _, attribute = where.partition(":")
        command: click.Command = getattr(importlib.import_module(f"embedprior.cli.{module}"), attribute)
        command.help = f"{text}."
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the first word names.

        Raises:
            BadInput: there is none; the message has the nearest.
        """
        known = self.list_commands(ctx)
        if args[0] not in known and not ctx.resilient_parsing:
            close = nearest(args[0], known).replace("'", f"'{self.prefix} ".replace("' ", "'"), 1)
            given = f"{self.prefix} {args[0]}".strip()
            raise BadInput(
                f"unknown command '{given}'. Allowed: {', '.join(known)}.{close} Next: {ctx.command_path} --help"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write every command with its description, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.texts.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the words that may follow, importing no command."""
        return [
            CompletionItem(word, help=self.texts.get(f"{self.prefix} {word}".strip(), f"{word} commands"))
            for word in self.list_commands(ctx) if word.startswith(incomplete)
        ]  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    words = list(argv) or ["--help"]
    try:
        if words == ["--version"]:
            print(f"embedprior {__version__}")
            return 0
        with Commands().make_context("embedprior", ["--help"] if words == ["help"] else words) as context:
            return int(context.command.invoke(context))
    except Exit as done:  # help was printed
        return done.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "embedprior"
        return _refuse(f"{' '.join(error.format_message().split())} Next: {path} --help", 2)
    except EmbedpriorError as error:
        return _refuse(str(error), error.exit_code)
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except OSError as error:
        return _refuse(_of_the_system(error), 1)
    except ImportError as error:
        return _refuse(_of_a_missing_package(error), 1)
    except ValueError as error:
        from embedprior.evidence.errors import EvidenceError

        if not isinstance(error, EvidenceError):
            raise
        return _refuse(str(error), 2)
    finally:
        if not isinstance(sys.exception(), KeyboardInterrupt):
            _mark("failed")  # a run that was finished is not marked


def _of_the_system(error: OSError) -> str:
    """Return an error of the operating system in words, with the file it was about."""
    from embedprior.runs import is_full

    if error.errno is None:  # of the loader: a shared library of a package is missing or of another build
        return f"{error}. What was finished is kept. Next: embedprior doctor"
    named = f" ({error.filename})" if error.filename is not None else ""
    fix = "make room and run the same command again" if is_full(error) else "see that it can be read and written"
    return f"{error.strerror or error}{named}. What was finished is kept. Next: {fix}"


def _of_a_missing_package(error: ImportError) -> str:
    """Return what to do about a package that can't be imported: it is missing, or broken.

    Raises:
        ImportError: a module of embedprior itself: that is a fault of its own.
    """
    name = (error.name or "").partition(".")[0]
    if name in ("", "embedprior"):
        raise error
    if not isinstance(error, ModuleNotFoundError):
        reason = " ".join(str(error).split())
        return f"'{name}' is installed, but can't be imported ({reason}). Next: pip install --force-reinstall {name}"
    return f"'{name}' can't be imported: this command needs it. Next: pip install {name}; embedprior doctor"


def _refuse(message: str, exit_code: int) -> int:
    """Print one line; of the processes on one machine, which all find the same fault in the same input, one does."""
    if exit_code == 2 and os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) != "0":
        return exit_code
    note = ""
    if "ACCELERATE_MIXED_PRECISION" in os.environ and exit_code != 1:
        note = f" (exit code {exit_code}; accelerate launch makes 1 of it and prints a traceback of its own)"
    print(f"error: {message}{note}", file=sys.stderr)
    return exit_code


def entry() -> None:
    """Console-script entry point. A reader that closes the pipe early (``| head``) ends it without a word."""
    signal.signal(signal.SIGTERM, _terminate)
    if LAUNCHED & os.environ.keys():
        _end_with_launcher()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without these signs shows plain ones, and ends no run
            stream.reconfigure(errors="plain")
    try:
        if COMPLETE in os.environ:
            Commands().main(prog_name="embedprior", complete_var=COMPLETE)
        code = main(sys.argv[1:])
        sys.stdout.flush()
        if code in (DONE, NEEDS_ATTENTION) and "torch" in sys.modules:  # after a failure others may still wait for it
            from embedprior.runs.distributed import leave_process_group

            leave_process_group()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + 13
    except KeyboardInterrupt as stop:
        print("\nstopped. What was finished is kept. Next: run the same command again.", file=sys.stderr)
        code = 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
        _mark("stopped")
    sys.exit(code)


PLAIN = {"×": "x", "−": "-", "–": "-", "—": "-", "Δ": "delta ", "≥": ">=", "≤": "<=", "±": "+-", "→": "->", "…": "...",
         "·": "*", "∞": "inf", "’": "'", "β": "beta", "α": "alpha", "σ": "sigma", "ε": "epsilon"}  # fmt: skip
"""Signs of the reports → what a terminal that can't show them is given."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error("plain", _plain)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers send it: answered like an interrupt from the keyboard."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


LAUNCHED = {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"}
"""Variables of ``accelerate launch`` and torchrun."""
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


def _end_with_launcher() -> None:
    """Have the system send SIGTERM when the launcher dies: ``accelerate launch`` hands on no signal that it gets."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _mark(status: str) -> None:
    if "embedprior.runs.run" in sys.modules:  # else no run was begun
        from embedprior.runs.run import stop_unfinished_runs

        stop_unfinished_runs(status)
