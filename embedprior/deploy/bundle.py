"""A bundle: the models of one method of a study, with all that a score needs, every file under a checksum.

Safetensors and JSON only: no code and no pickle in it, and none is run when it is read. The folder is a valid folder of
the Hugging Face hub: ``README.md`` with front matter, ``config.json``, weights as safetensors.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from embedprior.deploy.card import model_card
from embedprior.deploy.operating import choose_operating_point, fit_calibration, held_out_rates
from embedprior.deploy.scan import identifying_terms, traces
from embedprior.encoders.base import key8
from embedprior.errors import BadInput, nearest
from embedprior.runs import (
    Lock,
    artifacts_root,
    fsync,
    hash_file,
    hash_of,
    make_folder,
    read_json,
    write_json,
    write_text,
)
from embedprior.runs.files import explain_full_disk
from embedprior.runs.integrity import (
    CHECKSUM,
    changed_files,
    has_own_checksum,
    refuse_changed_result,
    refuse_damaged_artifact,
    refuse_other_format,
    sealed_manifest,
    with_checksum,
)
from embedprior.students.storage import DESCRIPTION
from embedprior.study.final import read_final
from embedprior.tables import read_table
from embedprior.weights import read_tensors, write_weights

FORMAT = 2
MANIFEST, CONFIG, CARD, MODELS, ENCODER = "manifest.json", "config.json", "README.md", "models", "encoder"
WEIGHTS = "encoder.safetensors"
SUFFIXES = (".json", ".safetensors", ".md")
"""The only kinds of file a bundle holds."""
LEFT_OUT = ("patients_seen", "fit")
"""Facts of a kept model that stay in the study: patient ids, and keys of its artifacts."""
OF_THIS_MACHINE = ("weights", "device", "repo")
"""Options of an encoder that say where its files lie, or what computes it."""
IN_THE_TABLE = ("design", "method", "resample", "fold", "seed", "model")


def build_bundle(
    study: Path | str,
    method: str,
    out: Path | str,
    *,
    final: bool = False,
    design: str | None = None,
    resample: int | None = None,
    fold: int | None = None,
    seed: int | None = None,
    threshold: float | None = None,
    encoder_weights: Path | str | None = None,
    licence: str = "",
) -> Path:
    """Write the bundle of one method of a study; return its folder.

    Args:
        study: folder of a finished study that kept its models (``keep: last`` or ``all``).
        method: its name in the study.
        out: folder of the bundle; it must not exist.
        final: the models that ``train final`` fitted on everybody, instead of those of the study's folds.
        design: of the study; None where the method is in one only.
        resample, fold, seed: only the models of these; None = all that were kept. A score is the mean over the models.
        threshold: declared operating point; None = Youden's point of each model on its own validation patients, and
            their mean for several models.
        encoder_weights: also put the X-ray encoder's weights in: the file, or the folder of an encoder trained by this
            package. None = the encoder is named by its key, and whoever predicts must have its weights.
        licence: of the model, for the card; what the data and the encoder's weights allow is yours to know.

    Raises:
        BadInput: no such study or method, no model kept of it, a method that needs CT at inference, other weights than
            the study's, a file of the study that was changed since, ``out`` exists or is being written, or a patient
            would leave a trace in it.
    """
    study, out = Path(study), Path(out)
    lock = Lock(out.with_name(f".{out.name}.lock"))
    if out.exists():
        lock.remove_if_stale()  # of one that was killed just after the bundle had its name
        raise BadInput(f"{out} exists. Next: give a folder that does not, or delete it.")
    make_folder(out.parent)
    if not (study / "evidence.json").is_file():
        raise BadInput(f"no finished study in {study} (evidence.json is missing). Next: embedprior study run")
    found = read_json(study / "evidence.json")
    if "designs" not in found:
        raise BadInput(
            f"{study} is no folder of 'embedprior study run'. Next: embedprior study run --config demo_kfold --data "
            f"{study}/cohort --keep last --out STUDY"
        )
    if final:
        name = _design_of(study, method, design)
        chosen, validation = read_final(study, name, method)
    else:
        chosen = _models(study, method, design, {"resample": resample, "fold": fold, "seed": seed})
        name = str(chosen["design"].iloc[0])
        validation = _rows(study, name, method)
    held_out = _rows(study, name, method)
    validation = _of_the_models(validation[validation["split"] == "val"], chosen)
    folders = [artifacts_root(study) / str(folder) for folder in chosen["model"]]
    for folder in folders:
        refuse_damaged_artifact(folder)
    for read in ("evidence.json", "cohort/flow.csv"):
        refuse_changed_result(study / read)
    abouts = [read_json(folder / DESCRIPTION)["about"] for folder in folders]
    evidence = found["designs"][name]
    if threshold is None:
        point = choose_operating_point(validation, chosen)
    else:
        point = {"threshold": threshold, "source": "declared"}
    calibration, reason = fit_calibration(validation)
    first = abouts[0]
    config = {
        "format": FORMAT,
        "library": "embedprior",
        "method": method,
        "design": name,
        "label": first["label"],
        "inputs": first["inputs"],
        "cxr_dim": first["cxr_dim"],
        "encoder": {
            "name": first.get("encoder_name"), "key": first["encoder"], "spec": _public(first["encoder_spec"]),
            "options": {k: v for k, v in (first["encoder_options"] or {}).items() if k not in OF_THIS_MACHINE},
            "weights": None,
        },
        "models": len(folders),
        "final": final,
        "operating_point": point | {"held_out": held_out_rates(held_out, evidence["unit"], threshold)},
        "calibration": (calibration.to_dict() if calibration else None),
        "calibration_reason": reason,
        "evidence": _evidence(evidence, method),
        "patients": {part: len({p for a in abouts for p in a["patients_seen"][part]}) for part in ("train", "val")},
        "plan": read_json(study / "plan.json")["hash"],
        "licence": licence,
        "research_use_only": True,
    }  # fmt: skip
    flow: list[dict[str, Any]] = [
        {str(k): v for k, v in row.items()} for row in pd.read_csv(study / "cohort" / "flow.csv").to_dict("records")
    ]
    if not lock.acquire():
        raise BadInput(f"{out} is being written by {lock.owner()}. Next: wait until it is done, or give another folder")
    work = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(work, ignore_errors=True)  # of one that was killed
        with explain_full_disk(out):
            for number, folder in enumerate(folders):
                _copy_model(folder, work / MODELS / str(number))
            if encoder_weights is not None:
                config["encoder"]["weights"] = include_weights(Path(encoder_weights), first["encoder"], work / ENCODER)
            write_json(work / CONFIG, config)
            write_text(work / CARD, model_card(config, flow))
            refuse_traces(work, study)
            write_json(work / MANIFEST, sealed_manifest(work, {"format": FORMAT, "kind": "embedprior bundle"}))
            verify(work)
            for file in [*work.rglob("*"), work]:
                fsync(file)
        work.rename(out)
        fsync(out.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        lock.release()
    return out


def refuse_traces(folder: Path, study: Path) -> None:
    """Check that nothing in a bundle names a patient of the study, an exam, a file or this machine.

    Raises:
        BadInput: the first trace, by file and kind; never the id itself.
    """
    found = traces(folder, identifying_terms(study))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise BadInput(
            f"the bundle would name somebody: {found[0]}{more}. Nothing was written. Next: take it out of the study's "
            "configuration (names of designs and methods), or report it as a fault of embedprior"
        )


def include_weights(given: Path, key: dict[str, Any], target: Path) -> dict[str, Any]:
    """Copy an encoder's weights into a bundle as safetensors; return what ``config.json`` says of them.

    Args:
        given: the weight file that the study's encoder was made with, or the folder of an encoder trained here.
        key: of the encoder; its ``weights_sha256`` must be that of the file.
        target: folder in the bundle.

    Raises:
        BadInput: no such file, other weights, or a form that a bundle can't hold.
    """
    if given.is_dir():
        files = [
            f for f in sorted(given.iterdir()) if f.suffix in (".safetensors", ".json") and f.name != "artifact.json"
        ]
        weights = [f for f in files if f.suffix == ".safetensors"]
    else:
        files = weights = [given] if given.is_file() else []
    if len(weights) != 1:
        raise BadInput(f"no weights at {given}. Allowed: a weight file, or a folder with one .safetensors file.")
    digest = hash_file(weights[0])
    if digest != key["weights_sha256"]:
        raise BadInput(
            f"{weights[0].name} is not what the study's embeddings were made with: its sha256 begins with "
            f"{digest[:12]}, not {str(key['weights_sha256'])[:12]}. Next: give the file that the study's encoder was "
            "loaded from"
        )
    target.mkdir(parents=True)
    for file in files:
        if file.suffix == ".json":
            content = read_json(file)
            public = {k: v for k, v in content.items() if k not in LEFT_OUT}
            write_json(target / file.name, with_checksum(public) if CHECKSUM in content else public)
        elif file.suffix == ".safetensors":
            shutil.copyfile(file, target / file.name)
        else:
            write_weights(read_tensors(file, "Next: leave --encoder-weights out"), target / WEIGHTS)
    (made,) = target.glob("*.safetensors")
    place = ENCODER if given.is_dir() else f"{ENCODER}/{made.name}"
    return {"path": place, "sha256": hash_file(made), "of": digest}


def _public(spec: dict[str, Any]) -> dict[str, Any]:
    """Return an encoder's provenance without the name that a local weight file happens to have."""
    source = str(spec.get("source", ""))
    return {**spec, "source": "local weights"} if source.startswith("local:") else dict(spec)


def _rows(study: Path, design: str, method: str) -> pd.DataFrame:
    """Return every prediction of one method in one design."""
    rows = read_table(study / "predictions.csv", ("method", "design", "split", "score", "label"))
    return rows[(rows["method"] == method) & (rows["design"].astype(str) == design)]


def _of_the_models(rows: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the fits whose models are bundled."""
    return rows.merge(models[["resample", "fold", "seed"]].drop_duplicates(), on=["resample", "fold", "seed"])


def _design_of(study: Path, method: str, design: str | None) -> str:
    """Return the design that has a method.

    Raises:
        BadInput: none has it, or several do and none is named.
    """
    rows = read_table(study / "predictions.csv", ("method", "design"))
    names = sorted(set(rows["method"]))
    if method not in names:
        raise BadInput(f"{study} has no method '{method}'. Allowed: {', '.join(names)}.{nearest(method, names)}")
    designs = sorted(set(rows.loc[rows["method"] == method, "design"].astype(str)))
    if design is None and len(designs) > 1:
        raise BadInput(f"'{method}' is in several designs: {', '.join(designs)}. Next: --design NAME")
    if design is not None and design not in designs:
        raise BadInput(f"no model of design '{design}'. Allowed: {', '.join(designs)}.{nearest(design, designs)}")
    return design or designs[0]


def verify(folder: Path) -> str:
    """Check every byte of a bundle; return its id, the sha256 of its manifest.

    Raises:
        BadInput: no bundle, another format, a file that was changed, is missing, was added or is of another kind, or a
            name that leads out of the folder.
    """
    if not (folder / MANIFEST).is_file():
        raise BadInput(f"no bundle in {folder} ({MANIFEST} is missing). Next: embedprior bundle --study DIR --out DIR")
    record = read_json(folder / MANIFEST)
    refuse = f"the bundle {folder} is refused: "
    if not isinstance(record, dict) or not isinstance(record.get("files"), dict) or not has_own_checksum(record):
        raise BadInput(f"{refuse}{MANIFEST} no longer has the contents it was written with.")
    refuse_other_format(f"{refuse}it", record.get("format"), FORMAT, "embedprior bundle again, from its study")
    for name in record["files"]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BadInput(f"{refuse}'{name}' leads out of its folder.")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise BadInput(f"{refuse}'{name}' is a link.")
        if path.is_file() and name != MANIFEST and name not in record["files"]:
            raise BadInput(f"{refuse}'{name}' is none of its files.")
        if path.is_file() and path.suffix not in SUFFIXES:
            raise BadInput(f"{refuse}'{name}' is of no kind that a bundle holds ({', '.join(SUFFIXES)}).")
    changed = next(changed_files(folder, record["files"]), "")
    if changed:
        raise BadInput(f"{refuse}{changed}.")
    return hash_of(record)


def _models(study: Path, method: str, design: str | None, places: dict[str, int | None]) -> pd.DataFrame:
    """Return the rows of ``models.csv`` that were asked for."""
    name = _design_of(study, method, design)
    if not (study / "models.csv").is_file():
        raise BadInput(
            f"{study} kept no model. Next: set 'keep: all' in its configuration and run it again; fits are reused"
        )
    table = read_table(study / "models.csv", IN_THE_TABLE)
    own = table[(table["method"] == method) & (table["design"].astype(str) == name)]
    if own.empty:
        raise BadInput(
            f"no model of '{method}' was kept: it needs CT at inference, or reads no picture. "
            f"Allowed: {', '.join(sorted(set(table['method'])))}."
        )
    for column, wanted in places.items():
        if wanted is not None:
            allowed = sorted(int(v) for v in own[column].unique())
            if wanted not in allowed:
                raise BadInput(f"no model of {column} {wanted}. Allowed: {', '.join(map(str, allowed))}.")
            own = own[own[column] == wanted]
    return own


def _evidence(evidence: dict[str, Any], method: str) -> dict[str, Any]:
    """Return what the study says of the method: its row, and every comparison it takes part in, as they stand."""
    (row,) = [r for r in evidence["methods"] if r["method"] == method][:1] or [{}]
    kept = ("auc", "ci_low", "ci_high", "ci_method", "n_pos", "n_neg", "n_patients", "n_seeds", "reason")
    panel = row.get("metrics") or {}
    shown = ("brier", "calibration_slope", "calibration_intercept")
    comparisons = [c for c in evidence["comparisons"] if method in (c["a"], c["b"])]
    fields = ("a", "b", "delta", "ci_low", "ci_high", "p", "p_holm", "verdict", "reason")
    return {
        **{name: row.get(name) for name in kept},
        "metrics": {name: panel[name] for name in shown if name in panel},
        "comparisons": [{name: c.get(name) for name in fields} for c in comparisons],
        "warnings": list(evidence.get("warnings", ())),
    }


def _copy_model(source: Path, target: Path) -> None:
    """Copy a kept model's weights and settings; what names a patient stays behind."""
    target.mkdir(parents=True)
    for file in sorted(source.rglob("*")):
        inside = file.relative_to(source)
        if file.is_file() and file.suffix in SUFFIXES and file.name not in (DESCRIPTION, "artifact.json"):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / inside)
    description = read_json(source / DESCRIPTION)
    about = {k: v for k, v in description["about"].items() if k not in LEFT_OUT}
    write_json(target / DESCRIPTION, with_checksum({**description, "about": about}))


def encoder_label(config: dict[str, Any]) -> str:
    """Return the encoder's name with the short hash of its key."""
    key = config["encoder"]["key"]
    return f"{key['encoder']}@{key8(key)}"
