"""Where results live: artifacts (complete or absent), run folders, locks, hashes, seeds, progress.

An artifact is any stage's output folder. Its name is the hash of what it was made from, so "done", "resume"
and "reuse" are one question: is the folder there?
"""

from embedprior.runs.artifacts import Artifact, artifact, artifacts_root
from embedprior.runs.files import (
    DiskFull,
    canonical,
    fsync,
    hash_array,
    hash_file,
    hash_of,
    is_full,
    make_folder,
    read_json,
    read_record,
    write_file,
    write_json,
    write_tensors,
    write_text,
)
from embedprior.runs.locks import Lock, claimed
from embedprior.runs.provenance import record_dependency
from embedprior.runs.run import (
    QUIET,
    Cost,
    MetricsLog,
    Run,
    git_revision,
    inner_bar,
    kernels,
    measured,
    noting_a_stop,
    one_thread,
    progress,
    progress_bar,
    seed_for,
    versions,
)

__all__ = [
    "QUIET", "Artifact", "Cost", "DiskFull", "Lock", "MetricsLog", "Run", "artifact", "artifacts_root", "canonical",
    "claimed", "fsync", "git_revision", "hash_array", "hash_file", "hash_of", "inner_bar", "is_full", "kernels",
    "make_folder", "measured", "noting_a_stop", "one_thread", "progress", "progress_bar", "read_json", "read_record",
    "record_dependency", "seed_for", "versions", "write_file", "write_json", "write_tensors", "write_text",
]  # fmt: skip
