"""``embedprior cache import``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

HELP = "a cache from a folder of one .npy per study and a CSV that names them"


def main(argv: Sequence[str]) -> int:
    """Import embeddings made elsewhere; returns the exit code.

    Raises:
        BadInput: no folder or table, no readable file, or another origin than the cache there has.
    """
    p = argparse.ArgumentParser(
        prog="embedprior cache import", description=HELP + ".", allow_abbrev=False,
        epilog="Pickled arrays are refused. exit codes: 0 done, 2 bad input, 3 done but for the files in failures.csv.",
    )  # fmt: skip
    p.add_argument("folder", type=Path, help="of the .npy files")
    p.add_argument("--table", type=Path, required=True, metavar="CSV", help="exam_id and, unless the files are called "
                   "EXAM_ID.npy, file")  # fmt: skip
    p.add_argument("--name", required=True, help="of the encoder that made them")
    p.add_argument("--origin", required=True, metavar="TEXT", help="weights and preprocessing in your words; part of "
                   "the key, so that embeddings of different origin are never mixed")  # fmt: skip
    p.add_argument("--modality", required=True, choices=("CT", "CXR", "image"), help="what they are embeddings of")
    p.add_argument("--licence", default="not stated", help="of the weights that made them")
    p.add_argument("--tokens", action="store_true", help="each file holds tokens × dim")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of caches")
    options = p.parse_args(argv)
    from embedprior.cache.exchange import first_shape, import_npy
    from embedprior.cache.format import place_for, refuse_neighbour
    from embedprior.encoders.base import EncoderSpec
    from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput
    from embedprior.runs import Run, hash_file
    from embedprior.tables import read_table

    if not options.folder.is_dir():
        raise BadInput(f"no folder {options.folder}.")
    if not options.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise BadInput(f"--name {options.name}. Allowed: letters, digits, '-', '_' and '.'.")
    table = read_table(options.table, ("exam_id",))
    if table["exam_id"].duplicated().any() or table["exam_id"].isna().any():
        raise BadInput(f"{options.table}: an exam_id is empty or there twice.")
    dim = first_shape(options.folder, table)[-1]
    spec = EncoderSpec(
        name=options.name, modality=options.modality, dim=dim, source="imported", weights_sha256="not known",
        licence=options.licence, profile={"transform_version": "imported", "origin": options.origin},
        pooling="imported", token_dim=dim if options.tokens else None,
    )  # fmt: skip
    place = place_for(options.out, spec, options.tokens)
    refuse_neighbour(options.out, place)
    config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    run = Run(options.out, "cache import", config, 0, {"table": hash_file(options.table)})
    run.keep(place.folder)
    cache, failures = import_npy(options.folder, table, spec, options.out, options.tokens)
    text = f"# {cache.path.name}\n\n{len(cache.ids)} exams, {len(failures)} files left out.\n"
    run.finish(text, failures, cache=cache.path.name)
    print(text)
    return NEEDS_ATTENTION if failures else DONE
