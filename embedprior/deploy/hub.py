"""Bundles on the Hugging Face hub: published with a question first, read back like a local folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from embedprior.deploy.bundle import CARD, verify
from embedprior.deploy.scan import identifying_terms, traces
from embedprior.errors import BadInput, EmbedpriorError, require_extra

PREFIX = "hf:"


def download(name: str) -> Path:
    """Return the local folder of ``hf:OWNER/NAME``, or of ``hf:OWNER/NAME@REVISION``, fetched where it is not cached.

    Raises:
        BadInput: huggingface_hub is not installed, no such name, or it can't be reached.
    """
    hub = require_extra("huggingface_hub", "hub")
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise BadInput(f"'{name}' names no bundle of the hub. Allowed: hf:OWNER/NAME or hf:OWNER/NAME@REVISION.")
    try:
        return Path(hub.snapshot_download(repo, revision=revision or None))
    # requests, hub and file-system errors alike: what is asked for can't be had, and the reason is theirs
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")[:200]
        raise BadInput(
            f"{name} can't be read from the hub ({type(error).__name__}: {first}). Next: check the name and the "
            "connection, or give the folder of a local copy"
        ) from error


def licence_of(folder: Path) -> str:
    """Return the licence in the front matter of a bundle's card; empty where there is none."""
    parts = (folder / CARD).read_text(encoding="utf-8").split("---\n")
    front = yaml.safe_load(parts[1]) if len(parts) > 2 else None
    found = front.get("license") if isinstance(front, dict) else None
    name = front.get("license_name", "") if isinstance(front, dict) else ""
    return str(name or "") if found == "other" else str(found or "")


def refuse_unpublishable(folder: Path, study: Path) -> None:
    """Check that a bundle may leave the house: whole, with a licence, and without a trace of a patient.

    Args:
        folder: of the bundle.
        study: it was made from: its ids are searched for.

    Raises:
        BadInput: the first thing that stands in the way.
    """
    verify(folder)
    if not licence_of(folder):
        raise BadInput(
            f"the card of {folder} names no licence, so it can't be published. Next: make the bundle again with "
            "--license NAME (that of your model; what its data allow)"
        )
    found = traces(folder, identifying_terms(study))
    if found:
        raise BadInput(f"{folder} can't be published: {found[0]}{f' (and {len(found) - 1} more)' * (len(found) > 1)}.")


def push(
    folder: Path, repo: str, study: Path, agree: Callable[[str], bool], *, private: bool = True, api: Any = None
) -> str | None:
    """Publish a bundle; return its address, or None where the answer was no.

    Args:
        folder: of the bundle.
        repo: ``OWNER/NAME``, made when it is not there.
        study: the bundle was made from.
        agree: asked once, with what will be published and where; nothing is sent before it says yes.
        private: whether a repository that is made now is private.
        api: a ``huggingface_hub.HfApi``; None makes one, with the user's own login.

    Raises:
        BadInput: see ``refuse_unpublishable``; or no such form of name.
        EmbedpriorError: the hub refused.
    """
    repo = repo.removeprefix(PREFIX)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise BadInput(f"'{repo}' names no repository of the hub. Allowed: OWNER/NAME.")
    refuse_unpublishable(folder, study)
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    kind = "private" if private else "public"
    question = (
        f"Publish {len(files)} files ({size:.1f} MB) of {folder} as https://huggingface.co/{repo} ({kind} where it is "
        f"made now), licence '{licence_of(folder)}'?"
    )
    api = api or require_extra("huggingface_hub", "hub").HfApi()
    if not agree(question):
        return None
    message = f"embedprior bundle {verify(folder)[:12]}"
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message=message)
    # as above: login, network and the hub's own refusals
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "")[:200]
        raise EmbedpriorError(
            f"{repo} can't be written to ({type(error).__name__}: {first}). Next: hf auth login"
        ) from (error)
    return f"https://huggingface.co/{repo}"
