"""A bundle: the models of one method of a study, with all that a score needs, every file under a checksum.

Safetensors and JSON only: no code and no pickle in it, and none is run when it is read. The folder is a valid folder of
the Hugging Face hub: ``README.md`` with front matter, ``config.json``, weights as safetensors.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedprior.deploy.card import model_card
from embedprior.encoders.base import key8
from embedprior.errors import BadInput, nearest
from embedprior.evidence.method_metrics import YOUDEN, choose_threshold
from embedprior.runs import artifacts_root, hash_of, read_json, write_json, write_text
from embedprior.runs.integrity import changed_files, has_own_checksum, sealed_manifest, with_checksum
from embedprior.students.storage import DESCRIPTION
from embedprior.tables import read_table

FORMAT = 1
MANIFEST, CONFIG, CARD, MODELS = "manifest.json", "config.json", "README.md", "models"
SUFFIXES = (".json", ".safetensors", ".md")
"""The only kinds of file a bundle holds."""
LEFT_OUT = ("patients_seen", "fit")
"""Facts of a kept model that stay in the study: patient ids, and keys of its artifacts."""
IN_THE_TABLE = ("design", "method", "resample", "fold", "seed", "model")


def build_bundle(
    study: Path | str,
    method: str,
    out: Path | str,
    *,
    design: str | None = None,
    resample: int | None = None,
    fold: int | None = None,
    seed: int | None = None,
    threshold: float | None = None,
) -> Path:
    """Write the bundle of one method of a study; return its folder.

    Args:
        study: folder of a finished study that kept its models (``keep: last`` or ``all``).
        method: its name in the study.
        out: folder of the bundle; it must not exist.
        design: of the study; None where the method is in one only.
        resample, fold, seed: only the models of these; None = all that were kept. A score is the mean over the models.
        threshold: declared operating point; None = Youden's point of each model on its own validation patients, and
            their mean for several models.

    Raises:
        BadInput: no such study or method, no model kept of it, a method that needs CT at inference, or ``out`` exists.
    """
    study, out = Path(study), Path(out)
    if out.exists():
        raise BadInput(f"{out} exists. Next: give a folder that does not, or delete it.")
    if not (study / "evidence.json").is_file():
        raise BadInput(f"no finished study in {study} (evidence.json is missing). Next: embedprior study run")
    chosen = _models(study, method, design, {"resample": resample, "fold": fold, "seed": seed})
    name = str(chosen["design"].iloc[0])
    folders = [artifacts_root(study) / str(folder) for folder in chosen["model"]]
    abouts = [read_json(folder / DESCRIPTION)["about"] for folder in folders]
    evidence = read_json(study / "evidence.json")["designs"][name]
    point = {"threshold": threshold, "source": "declared"} if threshold is not None else _threshold(study, chosen)
    first = abouts[0]
    config = {
        "format": FORMAT,
        "library": "embedprior",
        "method": method,
        "design": name,
        "label": first["label"],
        "inputs": first["inputs"],
        "cxr_dim": first["cxr_dim"],
        "encoder": {"key": first["encoder"], "spec": first["encoder_spec"], "options": first["encoder_options"]},
        "models": len(folders),
        "operating_point": point,
        "evidence": _evidence(evidence, method),
        "patients": {part: len({p for a in abouts for p in a["patients_seen"][part]}) for part in ("train", "val")},
        "research_use_only": True,
    }
    flow: list[dict[str, Any]] = [
        {str(k): v for k, v in row.items()} for row in pd.read_csv(study / "cohort" / "flow.csv").to_dict("records")
    ]
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for number, folder in enumerate(folders):
            _copy_model(folder, work / MODELS / str(number))
        write_json(work / CONFIG, config)
        write_text(work / CARD, model_card(config, flow))
        write_json(work / MANIFEST, sealed_manifest(work, {"format": FORMAT, "kind": "embedprior bundle"}))
        verify(work)
        try:
            work.rename(out)
        except OSError as error:
            if not out.exists():
                raise
            raise BadInput(f"{out} was made meanwhile, by another process. Next: give another folder") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


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
    if record.get("format") != FORMAT:
        raise BadInput(f"{refuse}format {record.get('format')}. Allowed: {FORMAT}.")
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
    predictions = read_table(study / "predictions.csv", ("method", "design"))
    names = sorted(set(predictions["method"]))
    if method not in names:
        raise BadInput(f"{study} has no method '{method}'. Allowed: {', '.join(names)}.{nearest(method, names)}")
    if not (study / "models.csv").is_file():
        raise BadInput(
            f"{study} kept no model. Next: set 'keep: all' in its configuration and run it again; fits are reused"
        )
    table = read_table(study / "models.csv", IN_THE_TABLE)
    own = table[table["method"] == method]
    if own.empty:
        raise BadInput(
            f"no model of '{method}' was kept: it needs CT at inference, or reads no picture. "
            f"Allowed: {', '.join(sorted(set(table['method'])))}."
        )
    designs = sorted(set(own["design"]))
    if design is None and len(designs) > 1:
        raise BadInput(f"'{method}' is in several designs: {', '.join(designs)}. Next: --design NAME")
    if design is not None and design not in designs:
        raise BadInput(f"no model of design '{design}'. Allowed: {', '.join(designs)}.{nearest(design, designs)}")
    own = own[own["design"] == (design or designs[0])]
    for column, wanted in places.items():
        if wanted is not None:
            allowed = sorted(int(v) for v in own[column].unique())
            if wanted not in allowed:
                raise BadInput(f"no model of {column} {wanted}. Allowed: {', '.join(map(str, allowed))}.")
            own = own[own[column] == wanted]
    return own


def _threshold(study: Path, models: pd.DataFrame) -> dict[str, Any]:
    """Return the operating point: Youden's on each model's validation patients, their mean for several models."""
    rows = read_table(study / "predictions.csv", ("method", "design", "split", "score", "label"))
    rows = rows[(rows["split"] == "val") & (rows["method"] == models["method"].iloc[0])]
    rows = rows[rows["design"] == models["design"].iloc[0]]
    found = []
    for place in models[["resample", "fold", "seed"]].itertuples(index=False):
        own = rows[(rows["resample"] == place.resample) & (rows["fold"] == place.fold) & (rows["seed"] == place.seed)]
        value = choose_threshold((own["label"] == 1).to_numpy(), own["score"].to_numpy(dtype=float), YOUDEN)
        found += [] if value is None else [value]
    if len(found) < len(models):
        reason = "no validation patients of both classes: set 'validation: true' in the design, or give --threshold"
        return {"threshold": None, "source": None, "reason": reason}
    source = "Youden's point on the validation patients" + (", mean over the models" if len(found) > 1 else "")
    return {"threshold": float(np.mean(found)), "source": source, "of_each_model": found}


def _evidence(evidence: dict[str, Any], method: str) -> dict[str, Any]:
    """Return what the study says of the method: its row, and every comparison it takes part in, as they stand."""
    (row,) = [r for r in evidence["methods"] if r["method"] == method][:1] or [{}]
    kept = ("auc", "ci_low", "ci_high", "ci_method", "n_pos", "n_neg", "n_patients", "n_seeds", "reason")
    panel = row.get("metrics") or {}
    shown = ("sensitivity", "specificity", "ppv", "npv", "brier", "calibration_slope", "calibration_intercept")
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
