"""Hook of ``mkdocs.yml``: links that lead out of ``docs/`` go to the repository, where the file must exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OUTWARD = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Return the page with its outward links absolute; a link to a file that is not there is an error."""
    from mkdocs.exceptions import PluginError

    def absolute(match: re.Match[str]) -> str:
        target = (Path(page.file.abs_src_path).parent / match[1]).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            raise PluginError(f"{page.file.src_path}: no file at {match[1]}")
        place = target.relative_to(ROOT).as_posix()
        return f"]({config.repo_url.rstrip('/')}/blob/main/{place}{match[2] or ''})"

    return OUTWARD.sub(absolute, markdown)
