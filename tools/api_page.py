"""Write ``docs/api.md`` from the docstrings of the public names; ``--check`` compares, and exits 1 on a difference."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import embedprior

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
HEAD = """# From Python

Every name here is imported with `import embedprior`, which itself loads no torch, numpy or pandas: each name is loaded
when it is first used. Paths are `str` or `pathlib.Path`. What can't be used raises `embedprior.errors.BadInput`, or
`embedprior.evidence.EvidenceError` (a `ValueError`) for predictions; the message says what was given, what is allowed
and what to do next.

This page is made from the docstrings by `python tools/api_page.py`; their examples are run as tests.

"""
GROUPS = {
    "Images": ("read_volume", "Volume", "read_radiograph", "Radiograph", "render_drr"),
    "Encoders and embeddings": ("list_encoders", "create_encoder", "embed", "open_cache", "EmbeddingCache"),
    "Models": ("DiffusionPrior", "load_fitted", "FittedMethod", "load_bundle", "Bundle"),
    "Evidence": ("delong_test", "AucComparison", "evaluate", "Evaluation"),
    "Studies": ("run_study", "StudyRun"),
}


def page() -> str:
    """Return the whole page as Markdown.

    Raises:
        SystemExit: a public name stands in no group, or a group names what is not public.
    """
    grouped = [name for names in GROUPS.values() for name in names]
    public = [name for name in embedprior.__all__ if name != "__version__"]
    if sorted(grouped) != sorted(public):
        sys.exit(f"GROUPS and embedprior.__all__ differ: {sorted({*grouped} ^ {*public})}")
    lines = [HEAD]
    for title, names in GROUPS.items():
        lines.append(f"## {title}\n")
        for name in names:
            lines.append(_entry(name, getattr(embedprior, name), "###"))
    return "\n".join(lines)


def _entry(name: str, thing: Any, level: str) -> str:
    text = (
        f"{level} `{name}`\n\n```python\n{name}{_signature(thing)}\n```\n\n{_markdown(inspect.getdoc(thing) or '')}\n"
    )
    if not inspect.isclass(thing):
        return text
    for own, member in vars(thing).items():
        if own.startswith("_"):
            continue
        if isinstance(member, (property, cached_property)):
            text += f"\n{level}# `{name}.{own}`\n\n{_markdown(inspect.getdoc(member) or '')}\n"
        elif inspect.isfunction(getattr(member, "__func__", member)):
            text += "\n" + _entry(f"{name}.{own}", getattr(thing, own), level + "#")
    return text


def _signature(thing: Any) -> str:
    try:
        found = inspect.signature(thing)
    except ValueError:
        return "()"
    parameters = [p.replace(annotation=p.empty) for p in found.parameters.values() if not p.name.startswith("_")]
    return str(found.replace(parameters=parameters, return_annotation=found.empty))


def _markdown(text: str) -> str:
    """Turn a docstring's sections into headings in bold, its lists into lists, and its examples into code."""
    out: list[str] = []
    section, indent = "", ""
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        if match := re.fullmatch(r"(Args|Attributes|Returns|Raises|Source|Example):\s*(.*)", line):
            section = match[1]
            out += ["", f"**{section}**" + (f": {_inline(match[2])}" if match[2] else "")]
            out += [] if match[2] else [""]
        elif line.lstrip().startswith(">>>"):
            code = [line, *_until_blank(lines)]
            indent = re.match(r" *", line)[0]  # type: ignore[index]
            out += ["```python", *(c.removeprefix(indent) for c in code), "```"]
        elif section in ("Args", "Attributes", "Raises") and (item := re.fullmatch(r" {4}(\w[\w, *]*): (.*)", line)):
            out.append(f"- `{item[1]}`: {_inline(item[2])}")
        elif section in ("Args", "Attributes", "Raises", "Returns") and line.startswith(" "):
            out.append(("  " if section != "Returns" else "") + _inline(line.strip()))
        else:
            section = section if line == "" else ("Source" if section == "Source" else "")
            out.append(_inline(line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def _until_blank(lines: list[str]) -> list[str]:
    taken = []
    while lines and lines[0].strip():
        taken.append(lines.pop(0))
    return taken


def _inline(text: str) -> str:
    return text.replace("``", "`")


def main() -> int:
    """Write or check the page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the file that is there, and write nothing")
    text = page()
    if parser.parse_args().check:
        same = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("docs/api.md is up to date" if same else "docs/api.md differs. Next: python tools/api_page.py")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
