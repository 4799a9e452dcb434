"""``embedprior align`` and ``embedprior evaluate-embeddings``: into a common space, and what embeddings are worth."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click import option

from embedprior.alignment.config import Side
from embedprior.cli.options import COUNT, PATH, Function, command, recorded
from embedprior.errors import DONE, NEEDS_ATTENTION, BadInput

if TYPE_CHECKING:
    from embedprior.study.leakage import Leakage
    from embedprior.transfer.cases import MultiCases
    from embedprior.transfer.probes import Probe, ProbeResult
    from embedprior.transfer.zero_shot import ZeroShotResult

SYSTEM = "[NAME=]DIR"


@command()
@option("--alignment", type=PATH, required=True, metavar="DIR", help="folder of a trained alignment")
@option("--side", type=click.Choice(get_args(Side)), required=True, help="what the cache's exams are")
@option("--cache", type=PATH, required=True, metavar="DIR", help="of the encoder that this side was trained on")
@option("--out", type=PATH, required=True, metavar="DIR", help="folder of caches")
def align(alignment: Path, side: Side, cache: Path, out: Path) -> int:
    """Write a cache into the common space; return 0.

    Raises:
        BadInput: see ``alignment.model.write_aligned``; nothing was written.
    """
    from embedprior.alignment.model import write_aligned
    from embedprior.cache.verify import open_verified

    made = write_aligned(alignment, side, open_verified(cache), out)
    print(f"{made.path}: {len(made.ids)} exams of side {side}, {made.key['dim']} numbers each")
    return DONE


def tables(function: Function) -> Function:
    """Add the options that name the tables of a cohort and a part of it."""
    for one in reversed([
        option("--exams", type=PATH, required=True, metavar="FILE", help="exam table, with labels"),
        option("--splits", type=PATH, metavar="FILE", help="split table"),
        option("--design", metavar="NAME", help="of the split table [default: the only one]"),
        option("--resample", type=int, default=0, help="of the split table"),
        option("--fold", type=int, default=0, help="of the split table"),
    ]):  # fmt: skip
        function = one(function)
    return function


BOOTSTRAP = option("--bootstrap", type=COUNT, default=2000, metavar="N", help="patient bootstrap replicates")
SEED = option("--seed", type=int, default=0, help="of what is trained and drawn")


@command(epilog="A prior takes part with the cache of CT embeddings that 'embedprior generate' draws, as --cxr.")
@option("--cxr", "cxr", multiple=True, required=True, metavar=SYSTEM, help="cache of the radiographs in the common "
        "space; may be repeated with names, the first is the reference")  # fmt: skip
@option("--ct", "ct", multiple=True, required=True, metavar=SYSTEM, help="cache of the CTs in that space; one for all, "
        "or one of each name")  # fmt: skip
@option("--pairs", type=PATH, required=True, metavar="FILE", help="pair table: its exams take part")
@tables
@option("--part", default="test", help="part of the split table")
@option("--match", type=click.Choice(["patient", "scan"]), default="patient", help="found is any exam of the patient, "
        "or one that a pair connects with the query")  # fmt: skip
@option("--k", "ks", type=COUNT, multiple=True, default=(1, 5, 10, 50, 100), help="how many are retrieved; may be "
        "repeated")  # fmt: skip
@option("--out", type=PATH, default=Path("runs/retrieval"), metavar="DIR", help="folder of the results")
def retrieval(**given: Any) -> int:
    """Measure retrieval both ways; return the exit code.

    Raises:
        BadInput: see ``transfer.retrieval``; nothing was written.
        EvidenceError: embeddings without direction, or no query with a target.
    """
    from embedprior.report.transfer_report import retrieval_summary
    from embedprior.runs import Run, write_json
    from embedprior.tables import write_table
    from embedprior.transfer.retrieval import evaluate_retrieval, read_systems

    systems = read_systems(named(given["cxr"], "--cxr"), named(given["ct"], "--ct"))
    found = evaluate_retrieval(
        systems, given["exams"], given["pairs"], given["splits"], given["part"], given["design"], given["resample"],
        given["fold"], match=given["match"], ks=sorted(set(given["ks"])),
    )  # fmt: skip
    out = given["out"]
    run = Run(out, "evaluate-embeddings retrieval", recorded(given), 0, hashes(given, systems))
    write_json(out / "retrieval.json", {"rows": found.rows, "differences": found.differences, "counts": found.counts})
    write_table(found.ranks, out / "ranks.csv")
    text = retrieval_summary(found, given["match"])
    run.finish(text, found.dropped)
    print(text)
    return attention(found.dropped)


def named(given: Sequence[str], name: str) -> dict[str, str]:
    """Return name → folder of options typed ``[NAME=]DIR``; a folder alone is named by its last part.

    Raises:
        BadInput: a name twice.
    """
    found: dict[str, str] = {}
    for text in given:
        before, equals, after = text.partition("=")
        label, folder = (before, after) if equals else (Path(text).name, text)
        if not label or not folder or label in found:
            raise BadInput(f"{name} {text}. Allowed: {SYSTEM}, each name once.")
        found[label] = folder
    return found


def hashes(given: dict[str, Any], systems: Sequence[Any]) -> dict[str, str]:
    """Return a hash of every table and cache, for ``run.json``."""
    from embedprior.runs import hash_file, hash_of

    found = {name: hash_file(given[name]) for name in ("exams", "pairs", "splits") if given.get(name) is not None}
    for system in systems:
        for side in ("cxr", "ct"):
            cache = getattr(system, side, None)
            if cache is not None:
                found[f"{system.name} {side}"] = hash_of(cache.key)
    return found


def attention(dropped: Sequence[dict[str, str]]) -> int:
    """Say which exams were left out, and return the exit code."""
    if not dropped:
        return DONE
    print(f"{len(dropped)} exams were left out (failures.csv)", file=sys.stderr)
    return NEEDS_ATTENTION


def systems_of(function: Function) -> Function:
    """Add the options that name embeddings, labels and where the results go."""
    for one in reversed([
        option("--cxr", "cxr", multiple=True, required=True, metavar=SYSTEM, help="cache of the radiographs; may be "
               "repeated with names, the first is the reference"),
        option("--oracle", "oracle", multiple=True, metavar=SYSTEM, help="cache of CTs, read at the CT that --pairs "
               "sets beside a radiograph: shown, not ranked; may be repeated"),
        option("--pairs", type=PATH, metavar="FILE", help="pair table, for --oracle and --ct-cache"),
        option("--labels", default="all", help="all of the table, names with commas, or a set: ct-rate-18, "
               "rad-chestct-15, rad-chestct-9, mimic-ct-11, or a YAML file"),
    ]):  # fmt: skip
        function = one(function)
    return function


def methods_of(function: Function) -> Function:
    """Add the options that name what is trained on the embeddings."""
    for one in reversed([
        option("--method", "methods", multiple=True, default=("logistic",), help="of embedprior methods; logistic is "
               "the linear probe; may be repeated"),
        option("--ct-cache", type=PATH, metavar="DIR", help="cache of the paired CTs, for methods that learn from CT"),
        option("--steps", type=COUNT, metavar="N", help="optimiser steps of methods that train a network [default: "
               "theirs]"),
    ]):  # fmt: skip
        function = one(function)
    return function


@command(epilog="Train on part train, choose on val, score test; Holm over all labels and systems.")
@systems_of
@methods_of
@tables
@BOOTSTRAP
@SEED
@option("--out", type=PATH, default=Path("runs/linear-probe"), metavar="DIR", help="folder of the results")
def linear_probe(**given: Any) -> int:
    """Train and score the probes; return the exit code.

    Raises:
        BadInput: see ``transfer.probes.linear_probe``; nothing was written.
    """
    from embedprior.transfer.probes import linear_probe as evaluate

    dropped: list[dict[str, str]] = []
    cases = read(given, dropped)
    oracles = list(named(given["oracle"], "--oracle"))
    found = evaluate(cases, probes_of(given, cases), oracles=oracles, seed=given["seed"], bootstrap=given["bootstrap"])
    return write("linear-probe", given, {"": found}, dropped)


@command(epilog="Smaller shares are among the larger ones of a draw; validation patients are drawn alike.")
@systems_of
@methods_of
@tables
@SEED
@option("--fraction", "fractions", type=float, multiple=True, default=(0.01, 0.05, 0.1, 0.25, 0.5, 1.0), help="share "
        "of the training patients; may be repeated")  # fmt: skip
@option("--draws", type=COUNT, default=5, help="of each share below 1")
@option("--out", type=PATH, default=Path("runs/few-shot"), metavar="DIR", help="folder of the results")
def few_shot(**given: Any) -> int:
    """Train and score the probes on shares of the patients; return the exit code.

    Raises:
        BadInput: see ``transfer.probes.few_shot``; nothing was written.
    """
    from embedprior.transfer.probes import few_shot as evaluate

    dropped: list[dict[str, str]] = []
    cases = read(given, dropped)
    oracles = list(named(given["oracle"], "--oracle"))
    found = evaluate(
        cases, probes_of(given, cases), given["fractions"], given["draws"], oracles=oracles, seed=given["seed"]
    )
    return write("few-shot", given, found, dropped)


@command(epilog="The training cohort's test part is not read; every exam of the other cohort is scored.")
@systems_of
@methods_of
@tables
@BOOTSTRAP
@SEED
@option("--to-cxr", multiple=True, required=True, metavar=SYSTEM, help="cache of the other cohort's radiographs, for "
        "every --cxr in its order")  # fmt: skip
@option("--to-exams", type=PATH, required=True, metavar="FILE", help="exam table of the other cohort")
@option("--pixels", type=PATH, metavar="DIR", help="pixels-128 cache of the radiographs: pictures are compared too")
@option("--to-pixels", type=PATH, metavar="DIR", help="the same of the other cohort's")
@option("--duplicates", type=click.Choice(["join", "report"]), default="join", help="join: a near-copy of a training "
        "radiograph in the other cohort is refused; report: it is listed in near_copies.csv")  # fmt: skip
@option("--out", type=PATH, default=Path("runs/external"), metavar="DIR", help="folder of the results")
def external(**given: Any) -> int:
    """Train on one cohort and score another; return the exit code.

    Raises:
        BadInput: see ``transfer.probes.external``; nothing was written.
    """
    from embedprior.transfer.cases import Tables, near_copies_between, read_cases, refuse_other_encoders
    from embedprior.transfer.probes import external as evaluate

    if given["oracle"]:
        raise BadInput("--oracle is not read by external: the other cohort's CTs take no part.")
    systems, others = named(given["cxr"], "--cxr"), named(given["to_cxr"], "--to-cxr")
    if len(systems) == len(others) == 1:  # one system needs no name
        others = dict(zip(systems, others.values(), strict=True))
    refuse_other_encoders(systems, others)
    dropped: list[dict[str, str]] = []
    cases = read(given, dropped)
    scored = read_cases(others, Tables(given["to_exams"]), given["labels"], dropped=dropped)
    if (given["pixels"] is None) != (given["to_pixels"] is None):
        raise BadInput("--pixels and --to-pixels go together: pictures of both cohorts are compared.")
    trained = [exam for exam, part in zip(cases.exam_ids, cases.parts, strict=True) if part != "test"]
    alike = near_copies_between(
        systems, given["exams"], trained, others, given["to_exams"], scored.exam_ids,
        None if given["pixels"] is None else (str(given["pixels"]), str(given["to_pixels"])),
        near_too=given["duplicates"] == "join",
    )  # fmt: skip
    found = evaluate(cases, scored, probes_of(given, cases), seed=given["seed"], bootstrap=given["bootstrap"])
    return write("external", given, {"": found}, dropped, alike)


@command(epilog="Prompts: a YAML file with labels: {NAME: {positive: [...], negative: [...]}}, or a "
         "template.")  # fmt: skip
@systems_of
@tables
@BOOTSTRAP
@option(
    "--alignment", type=PATH, required=True, metavar="DIR", help="trained with reports; the caches are of its space"
)
@option("--text-encoder", required=True, metavar="NAME", help="the one its reports were embedded with")
@option("--encoder-option", "encoder_options", multiple=True, metavar="NAME=VALUE", help="of the text encoder, as "
        "given to embed --option; may be repeated")  # fmt: skip
@option("--prompts", default="chest", help="of configs/prompts, or a YAML file")
@option("--out", type=PATH, default=Path("runs/zero-shot"), metavar="DIR", help="folder of the results")
def zero_shot(**given: Any) -> int:
    """Score by prompts; return the exit code.

    Raises:
        BadInput: see ``transfer.zero_shot``; nothing was written.
    """
    from embedprior.alignment.model import Alignment
    from embedprior.config import load_config
    from embedprior.encoders.registry import create_encoder
    from embedprior.transfer.zero_shot import Prompts, prompt_vectors
    from embedprior.transfer.zero_shot import zero_shot as evaluate

    alignment = Alignment.load(given["alignment"])
    prompts = load_config(Prompts, given["prompts"], "prompts")
    dropped: list[dict[str, str]] = []
    cases = read(given, dropped)
    options = dict(text.split("=", 1) for text in given["encoder_options"] if "=" in text)
    encoder = create_encoder(given["text_encoder"], **options)
    vectors = prompt_vectors(prompts, cases.names, encoder, alignment)
    temperature = float(1 / alignment.network.scale.detach())
    oracles = list(named(given["oracle"], "--oracle"))
    found = evaluate(cases, vectors, temperature, oracles=oracles, bootstrap=given["bootstrap"])
    return write("zero-shot", given, {"": found}, dropped)


def read(given: dict[str, Any], dropped: list[dict[str, str]]) -> MultiCases:
    """Return the cases of the cohort that the options name."""
    from embedprior.transfer.cases import Tables, read_cases

    where = Tables(given["exams"], given["splits"], given["pairs"], given["design"], given["resample"], given["fold"])
    ct_cache = given.get("ct_cache")
    return read_cases(
        named(given["cxr"], "--cxr"), where, given["labels"], oracles=named(given["oracle"], "--oracle"),
        ct_cache=None if ct_cache is None else str(ct_cache), dropped=dropped,
    )  # fmt: skip


def probes_of(given: dict[str, Any], cases: MultiCases) -> list[Probe]:
    """Return every method on every system; on an oracle's CT, the linear probe alone."""
    from embedprior.students.config import Budget
    from embedprior.transfer.probes import LINEAR, Probe

    budget = Budget()
    if given["steps"] is not None:
        budget = budget.model_copy(update={"fit": budget.fit.model_copy(update={"steps": given["steps"]})})
    oracles = named(given["oracle"], "--oracle")
    return [
        Probe(system, method, budget)
        for system in cases.systems
        for method in given["methods"]
        if system not in oracles or method == LINEAR
    ]


def write(
    verb: str, given: dict[str, Any], found: Mapping[str, ProbeResult | ZeroShotResult], dropped: list[dict[str, str]],
    alike: Leakage | None = None,
) -> int:  # fmt: skip
    """Write predictions, evidence and tables of one result, or of one for each share; return the exit code.

    ``alike``: of two cohorts, the exams that look alike, and what was compared.
    """
    import pandas as pd

    from embedprior.report.transfer_report import probes_summary
    from embedprior.runs import Run, hash_file, write_json
    from embedprior.tables import write_table

    out = given["out"]
    inputs = {
        name: hash_file(given[name]) for name in ("exams", "pairs", "splits", "to_exams") if given.get(name) is not None
    }
    run = Run(out, f"evaluate-embeddings {verb}", recorded(given), given.get("seed", 0), inputs)
    shares = list(found)
    tables = [result.predictions.assign(**({"share": name} if name else {})) for name, result in found.items()]
    write_table(pd.concat(tables), out / "predictions.csv")
    evidence = {name: result.evidence for name, result in found.items()}
    write_json(out / "evidence.json", evidence[""] if shares == [""] else evidence)
    text = probes_summary(verb, found, alike)
    if alike is not None:
        write_table(alike.duplicates, out / "near_copies.csv")
    skipped = [
        {"exam_id": record["label"], "stage": f"label {name}".strip(), "reason": record["reason"]}
        for name, result in found.items()
        for record in result.skipped
    ]
    run.finish(text, [*dropped, *skipped])
    print(text)
    return attention([*dropped, *skipped])
