"""Does a bundle name anybody? Every file is searched for the study's ids, and for what never belongs into one."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.errors import BadInput
from embedprior.runs import read_json
from embedprior.runs.provenance import resolve_portable

MIN_BYTES = 6
"""Shorter ids are compared with whole words and values: as bytes they would be met by chance."""
TEXT = re.compile(rb"(?:[\x20-\x7e]|[\xc2-\xf4][\x80-\xbf]{1,3}){6,}")
"""Runs of characters in UTF-8."""
HEXADECIMAL = re.compile(r"[0-9a-fA-F]{1,31}")
NEVER = {
    "patient lists": re.compile(r'"(patients_seen|patient_ids?|exam_ids?|PatientName|PatientID|PatientBirthDate)"\s*:'),
    "a DICOM UID": re.compile(r"(?<![\d.])[0-2](?:\.(?:0|[1-9]\d*)){7,}(?![\d.])"),
    "a path of this machine": re.compile(
        r"(?<![\w.:/])(?:/(?:home|Users|mnt|media|root|tmp|data|scratch)/|[A-Z]:\\)\S"
    ),
    "an e-mail address": re.compile(r"[\w.+-]+@[\w-]+\.[A-Za-z]{2,}"),
}


def identifying_terms(study: Path) -> set[str]:
    """Return what names somebody in a study's folder: ids of patients, exams and groups, and names of files."""
    found: set[str] = set()
    tables = sorted((study / "cohort").rglob("exams.csv"))
    with suppress(BadInput, KeyError, TypeError):  # the cohort's own table alone names files
        tables += [resolve_portable(read_json(study / "plan.json")["data"], study) / "exams.csv"]
    for table in filter(Path.is_file, tables):
        exams = pd.read_csv(table, dtype=str, keep_default_na=False)
        for column in ("patient_id", "exam_id", "group_id", "path"):
            if column in exams.columns:
                found |= set(exams[column])
        if "path" in exams.columns:  # a word such as "radiographs" names nobody
            found |= {stem for path in exams["path"] if re.search(r"\d", stem := Path(path.partition("#")[0]).stem)}
    return {term for term in found if term}


def traces(folder: Path, terms: Collection[str]) -> list[str]:
    """Return where a folder names somebody, one line each; empty where it names nobody.

    Ids of at least six bytes are searched in every byte of every file. Shorter ones, and those that could be part of a
    number or a checksum, are compared with every text value of the JSON files and of the headers of the safetensors
    files, and, unless they are plain numbers, with the words of the Markdown files. Patient lists, DICOM UIDs, e-mail
    addresses and paths of a machine are searched by their form.

    Args:
        folder: of the bundle.
        terms: what must not be found (see ``identifying_terms``); never part of a line returned.
    """
    short = {term for term in terms if len(term.encode()) < MIN_BYTES or HEXADECIMAL.fullmatch(term)}
    long = _by_beginning(set(terms) - short)
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        text = _header(content) if path.suffix == ".safetensors" else content.decode("utf-8", errors="replace")
        if _holds_any(content, long) or short & set(_values(path, text)):
            found.append(f"{name}: an id or a file name of the study")
        found += [f"{name}: {what}" for what, form in NEVER.items() if form.search(text)]
    return found


def _by_beginning(terms: Collection[str]) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for term in terms:
        found.setdefault(term.encode()[:MIN_BYTES], []).append(term.encode())
    return found


def _holds_any(content: bytes, terms: dict[bytes, list[bytes]]) -> bool:
    """Return whether a file holds a term: looked up at every place, so that a hundred thousand ids cost what one does.

    Between the texts of a binary file lie numbers; only what could be text is looked at.
    """
    for run in TEXT.findall(content):
        for start in range(len(run) - MIN_BYTES + 1):
            for term in terms.get(run[start : start + MIN_BYTES], ()):
                if run.startswith(term, start):
                    return True
    return False


def _header(content: bytes) -> str:
    """Return the JSON header of a safetensors file: names of its tensors, and texts."""
    length = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else 0
    return content[8 : 8 + length].decode("utf-8", errors="replace")


def _values(path: Path, text: str) -> Iterator[str]:
    if path.suffix in (".json", ".safetensors"):
        yield from _texts_in(json.loads(text or "{}"))
    else:
        yield from (word for word in re.findall(r"[\w-]+", text) if not word.isdigit())


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_in(inner)
