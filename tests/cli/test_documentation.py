"""Every ``embedprior …`` of the documentation and of a message is a command line that is taken."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest

from embedprior.cli import COMMANDS, Commands
from embedprior.cli.options import Command
from embedprior.cli.settings import SettingsCommand
from embedprior.config import config_folder

ROOT = Path(__file__).parents[2]
PLACES = (
    "*.md", "docs/**/*.md", "pretrain/**/*.md", "pretrain/**/*.py", "pretrain/**/*.yaml", "configs/**/*.yaml",
    "notebooks/*.ipynb", "embedprior/**/*.py", "train_prior.py",
)  # fmt: skip
PAGES = [page for place in PLACES for page in sorted(ROOT.glob(place)) if page.name != "CHANGELOG.md"]
FIRST = "|".join(sorted({name.split()[0] for name in COMMANDS}))
LINE = re.compile(
    rf"(?:torchrun --nproc_per_node \d+ -m |accelerate launch -m )?embedprior (?P<ours>(?:{FIRST})\b.*)"
    r"|(?:python|accelerate launch(?: --\S+ \d+)*) train_prior\.py(?P<prior>.*)"
)


def text_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


def command_lines(page: Path) -> list[str]:
    """Whole lines that are a command, as in a code block or a file's comment: continued ones joined, comments cut."""
    joined = re.sub(r"\\\n\s*(?:#\s*)?", " ", text_of(page))
    found = []
    for line in joined.splitlines():
        bare = re.sub(r"^\s*(?:#\s+)?", "", line)
        match = LINE.fullmatch(re.sub(r"\s+#\s.*", "", bare))
        if match and not re.search(r"…|\.\.\.|--help", bare) and page.suffix != ".py":
            found.append(match["ours"] or f"train prior {match['prior']}")
    return found


def mentions(page: Path) -> list[str]:
    """What stands in running text: a command, and perhaps some of its options without a value."""
    return [
        (match["ours"] or f"train prior {match['prior']}")
        for part in re.split(r"[`\"'\n(]|\. |; |, or ", text_of(page))
        if (match := LINE.search(part))
    ]


def named(words: list[str]) -> tuple[str, Command, list[str]]:
    """The command that the words begin with, and the rest."""
    name = next(" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS)
    group = Commands(" ".join(name.split()[:-1]))
    command = group.get_command(click.Context(group), name.split()[-1])
    assert isinstance(command, Command)
    return name, command, words[len(name.split()) :]


LINES = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in command_lines(page)})
MENTIONS = sorted({(page.relative_to(ROOT).as_posix(), text) for page in PAGES for text in mentions(page)})


def test_the_documentation_is_found() -> None:
    pages = {page for page, _ in LINES}
    assert {"README.md", "docs/cache.md", "configs/study/demo_kfold.yaml", "pretrain/phantom/README.md"} <= pages
    assert (
        "docs/study.md",
        "study plan --config demo_kfold --data runs/demo/cohort --out runs/kfold --time-fits",
    ) in LINES
    assert any(page.endswith(".py") for page, _ in MENTIONS)


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_documented_line_is_taken(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # pages name GPUs that this machine may lack
    # "[--head DIR]" is an option that may be left out
    name, command, rest = named(shlex.split(re.sub(r"\[(--[^\]]*)\]", r"\1", line)))
    with command.make_context(f"embedprior {name}", rest) as context:
        if not isinstance(command, SettingsCommand):
            return
        config = context.params["config"]
        if config is None or (config_folder(command.folder) / f"{config}.yaml").is_file():
            command.with_config(context)
        else:
            shown = f'title="{config}"' in text_of(ROOT / page)  # the page says what that file holds
            # what init and merge write; tests/test_docs_commands.py runs the page
            written = Path(config).name in ("study.yaml", "study_paired.yaml") and "init --from" in text_of(ROOT / page)
            assert config in ("NAME", "mine.yaml") or shown or written or (ROOT / config).is_file()


@pytest.mark.parametrize(("page", "text"), MENTIONS)
def test_a_mentioned_command_has_its_options(page: str, text: str) -> None:
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", text.split(" -")[0])
    if " ".join(words[:1]) not in COMMANDS and " ".join(words[:2]) not in COMMANDS:
        assert words[0] in {name.split()[0] for name in COMMANDS}
        assert len(words) == 1, f"no command '{' '.join(words[:2])}'"
        return
    _, command, _ = named(words)
    known = command.named_options(click.Context(command))
    typed = re.findall(r"(?<!\S)\[?(--[a-z][\w.-]*)", text)
    assert [option for option in typed if option.rstrip(".") not in known] == []


def test_options_have_dashes_everywhere() -> None:
    theirs = {
        "--nproc_per_node", "--rdzv_id", "--rdzv_endpoint", "--rdzv_backend", "--num_processes", "--num_machines",
        "--machine_rank", "--main_process_ip", "--main_process_port", "--num_cpu_threads_per_process",
    }  # fmt: skip
    pages = [page for page in PAGES if page.suffix != ".py"]
    found = {option for page in pages for option in re.findall(r"(?<![\w-])--[a-z]+_[a-z_]+", text_of(page))}
    assert found <= theirs
