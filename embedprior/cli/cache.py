"""``embedprior cache``: list, verify, compare, export, import and trace embedding caches."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from click import argument, option

from embedprior.cli.options import PATH, command, recorded
from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput

CACHE = "<encoder>@<key>/, or the folder above it"


def _artifacts() -> Path:
    home = os.environ.get("EMBEDPRIOR_HOME")
    return Path(home) / "artifacts" if home else Path("runs")


@command(epilog="Nothing is deleted. Runs are found under the folder, and by the notes that runs elsewhere left there.")
@argument("folder", type=PATH, required=False, metavar="[FOLDER]", help="$EMBEDPRIOR_HOME/artifacts when left out, "
        "or runs/ without that variable")  # fmt: skip
@option("--unused", is_flag=True, help="only what no run uses any more")
def ls(folder: Path | None, unused: bool) -> int:
    """Print the list; return the exit code.

    Raises:
        BadInput: no such folder.
    """
    from embedprior.cache.provenance import listing, missing_runs
    from embedprior.report.formatting import aligned

    root = folder or _artifacts()
    items = [item for item in listing(root) if not (unused and item.users)]
    rows = [("kind", "used by", "MB", "what", "where")]
    for item in items:
        users = f"{len(item.users)} run{'s' if len(item.users) != 1 else ''}" if item.users else "nothing"
        rows.append((item.kind, users, f"{item.size / 1e6:.1f}", item.detail, item.path.relative_to(root).as_posix()))
    if items:
        print(aligned(rows))
    for line in missing_runs(root):
        print(line, file=sys.stderr)
    total = sum(item.size for item in items) / 1e6
    print(f"{len(items)} items, {total:.1f} MB" + (" that no run under this folder uses" if unused else ""))
    return DONE


@command(epilog="Exit code 3: something was found. The same embed command again repairs just that.")
@argument("cache", type=PATH, help=CACHE)
def verify(cache: Path) -> int:
    """Check one cache; return 0 when it is whole, 3 when something was found.

    Raises:
        BadInput: no cache there.
    """
    from embedprior.cache.format import read_pointer, shard_files
    from embedprior.cache.verify import find_corruption

    pointed = read_pointer(cache)
    folder = pointed[0] if pointed is not None else cache
    if "@" not in folder.resolve().name:
        raise BadInput(f"no embedding cache at {cache}. Next: embedprior cache ls {cache}")
    found = find_corruption(folder)
    for one in found:
        print(f"{one.kind:<9} {one.file}: {one.reason}")
    print(f"{folder.name}: shards read: {len(shard_files(folder))}, problems: {len(found)}")
    if found:
        print("Next: run the same embed command again; it computes what is damaged or missing, and moves foreign files "
              "to quarantine/")  # fmt: skip
    return NEEDS_ATTENTION if found else DONE


@command(epilog="Exit code 3: they differ.")
@argument("left", type=PATH, help=CACHE)
@argument("right", type=PATH, help=CACHE)
def diff(left: Path, right: Path) -> int:
    """Compare two caches; return 0 when they are the same, 3 when they differ.

    Raises:
        BadInput: no cache there, or a damaged one.
    """
    from embedprior.cache.reader import open_cache
    from embedprior.cache.verify import diff as compare

    ours, theirs = open_cache(left), open_cache(right)
    found = compare(ours, theirs)
    if found.field is not None:
        name, first, second = found.field
        print(f"key: {name} is {first!r:.60} on the left, {second!r:.60} on the right")
    for what, exams in (
        ("exams only on the left", found.only_left),
        ("exams only on the right", found.only_right),
        ("exams made from another file", found.other_source),
        ("exams with other numbers", found.other_rows),
    ):
        if exams:
            print(f"{what}: {len(exams)} ({', '.join(exams[:5])}{', …' if len(exams) > 5 else ''})")
    if found.largest:
        print(f"largest difference of a number: {found.largest:.3g}")
    print("the same" if found.same else "they differ", f"({len(ours.ids)} and {len(theirs.ids)} exams)")
    return DONE if found.same else NEEDS_ATTENTION


@command()
@argument("cache", type=PATH, help=CACHE)
@option("--out", type=PATH, required=True, metavar="FILE", help="FILE.npy or FILE.parquet")
def export(cache: Path, out: Path) -> int:
    """Export one cache; return the exit code.

    Raises:
        BadInput: no cache there, an unknown ending, or pyarrow is missing.
    """
    from embedprior.cache.exchange import export_npy, export_parquet
    from embedprior.cache.verify import open_verified
    from embedprior.runs import make_folder
    from embedprior.runs.integrity import note_results

    if out.suffix not in (".npy", ".parquet"):
        raise BadInput(f"--out {out}. Allowed endings: .npy, .parquet.")
    opened = open_verified(cache)
    make_folder(out.parent)
    if out.suffix == ".npy":
        table = export_npy(opened, out)
        note_results(out.parent, (out.name, table.name))
        print(f"{len(opened.ids)} exams: {out} and {table}")
    else:
        export_parquet(opened, out)
        note_results(out.parent, (out.name,))
        print(f"{len(opened.ids)} exams: {out}")
    return DONE


@command(epilog="Pickled arrays are refused. Exit code 3: files left out are named in failures.csv.")
@argument("folder", type=PATH, help="of the .npy files")
@option("--table", type=PATH, required=True, metavar="CSV", help="exam_id and, unless the files are called "
        "EXAM_ID.npy, file")  # fmt: skip
@option("--name", required=True, help="of the encoder that made them")
@option("--origin", required=True, metavar="TEXT", help="weights and preprocessing in your words; part of the key, "
        "so that embeddings of different origin are never mixed")  # fmt: skip
@option("--modality", required=True, type=click.Choice(["CT", "CXR", "image"]), help="what they are embeddings of")
@option("--licence", default="not stated", help="of the weights that made them")
@option("--tokens", is_flag=True, help="each file holds tokens × dim")
@option("--out", type=PATH, required=True, metavar="DIR", help="folder of caches")
def import_(
    folder: Path, table: Path, name: str, origin: str, modality: str, licence: str, tokens: bool, out: Path
) -> int:
    """Import embeddings made elsewhere; return the exit code.

    Raises:
        BadInput: no folder or table, no readable file, or another origin than the cache there has.
    """
    given = recorded(locals())
    from embedprior.cache.exchange import first_shape, import_npy
    from embedprior.cache.format import cache_location
    from embedprior.cache.plan import refuse_second_cache
    from embedprior.encoders.base import EncoderSpec
    from embedprior.runs import Run, hash_file
    from embedprior.tables import read_table

    if not folder.is_dir():
        raise BadInput(f"no folder {folder}.")
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise BadInput(f"--name {name}. Allowed: letters, digits, '-', '_' and '.'.")
    exams = read_table(table, ("exam_id",))
    if exams["exam_id"].duplicated().any() or exams["exam_id"].isna().any():
        raise BadInput(f"{table}: an exam_id is empty or there twice.")
    dim = first_shape(folder, exams)[-1]
    spec = EncoderSpec(
        name=name, modality=modality, dim=dim, source="imported", weights_sha256="not known", licence=licence,
        profile={"transform_version": "imported", "origin": origin}, pooling="imported",
        token_dim=dim if tokens else None,
    )  # fmt: skip
    location = cache_location(out, spec, tokens)
    refuse_second_cache(out, location)
    run = Run(out, "cache import", given, 0, {"table": hash_file(table)})
    run.keep(location.folder)
    cache, failures = import_npy(folder, exams, spec, out, tokens)
    text = f"# {cache.path.name}\n\n{len(cache.ids)} exams, {len(failures)} files left out.\n"
    run.finish(text, failures, cache=cache.path.name)
    print(text)
    return NEEDS_ATTENTION if failures else DONE


@command(epilog="Exit code 3, with --cohort: a source file is gone or has changed since.")
@argument("run", type=PATH, help="folder of a run (with run.json), such as the one a report lies in")
@option("--cohort", type=PATH, metavar="FILE", help="exam table: hash its files again and compare")
def trace(run: Path, cohort: Path | None) -> int:
    """Print the chain; return 3 when source files were given and differ from those of the run.

    Raises:
        BadInput: no run there.
    """
    from embedprior.cache.provenance import changed_sources
    from embedprior.cache.provenance import trace as lines_of
    from embedprior.tables import EXAM_REQUIRED, check_exams, read_table

    print("\n".join(lines_of(run)))
    if cohort is None:
        return DONE
    exams = check_exams(read_table(cohort, EXAM_REQUIRED), str(cohort))
    same, other = changed_sources(run, exams, cohort.parent)
    for line in other[:20]:
        print(line)
    print(f"{same} source files are what they were, {len(other)} are not")
    return NEEDS_ATTENTION if other else DONE
