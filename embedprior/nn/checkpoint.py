"""What a stopped training needs to go on bit for bit. No pickle: safetensors and JSON.

There is no generator state to keep: every random number is keyed by (seed, step, example).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from embedprior.errors import BadInput
from embedprior.runs import read_record, write_json, write_tensors, write_text
from embedprior.runs.integrity import changed_files, file_records, has_own_checksum, refuse_other_format, with_checksum

STATE = "resume.json"
FORMAT = 2
"""2: the state carries checksums."""


@dataclass
class Progress:
    """Where a training stands.

    Attributes:
        step: steps done.
        best_step, best_score: the validation that chose the checkpoint; None before the first.
        history: one record a validation, where the training keeps them here.
    """

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class State:
    """A stopped training.

    Attributes:
        progress: step and best validation.
        weights: state dicts by name: network, ema, best.
        optimiser: the optimiser's state dict.
        loss_scale: that of the loss scale of fp16; empty in another precision.
    """

    progress: Progress
    weights: dict[str, dict[str, Tensor]]
    optimiser: dict[str, Any]
    loss_scale: dict[str, Any] = field(default_factory=dict)


def save_state(
    folder: Path,
    fingerprint: Mapping[str, str],
    progress: Progress,
    weights: Mapping[str, Mapping[str, Tensor]],
    optimiser: Mapping[str, Any],
    loss_scale: Mapping[str, Any] | None = None,
) -> None:
    """Write the state of step ``progress.step``; a kill at any instant leaves the last complete one.

    Args:
        folder: of the training.
        fingerprint: data and settings by name, compared on resume.
        progress: step and best validation.
        weights: named state dicts: network, ema, best.
        optimiser: ``optimizer.state_dict()``.
        loss_scale: ``GradScaler.state_dict()``, where one is in use.
    """
    tensors: dict[str, Tensor] = {}
    for group, values in weights.items():
        tensors |= {f"{group}.{name}": value.detach().cpu() for name, value in values.items()}
    scalars: dict[str, dict[str, float]] = {}
    for index, state in optimiser["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value.detach().cpu()
            else:
                scalars.setdefault(str(index), {})[name] = value
    file = folder / f"resume-{progress.step}.safetensors"
    write_tensors(file, {name: value.contiguous() for name, value in tensors.items()})
    record = {
        "format": FORMAT,
        "fingerprint": dict(fingerprint),
        "step": progress.step,
        "best_step": progress.best_step,
        "best_score": progress.best_score,
        "history": progress.history,
        "file": file.name,
        "files": file_records(folder, [file]),
        "groups": optimiser["param_groups"],
        "scalars": scalars,
        "loss_scale": dict(loss_scale or {}),
    }
    write_json(folder / STATE, with_checksum(record))
    for old in folder.glob("resume-*.safetensors"):
        if old != file:
            old.unlink()


def load_state(folder: Path, fingerprint: Mapping[str, str], steps: int) -> State | None:
    """Return the state of the training in ``folder``, or None when no training was begun in ``folder``.

    Args:
        folder: of the training.
        fingerprint: data and settings by name.
        steps: that are to be done in all.

    Raises:
        BadInput: the training there had other data or settings (named), is further already, or can't be read.
    """
    if not (folder / STATE).is_file():
        return None
    record = read_record(folder / STATE)
    again = f"Next: delete {folder}, or choose another --out, and train again"
    if "fingerprint" in record:
        refuse_other_format(str(folder / STATE), record.get("format", 1), FORMAT, again.removeprefix("Next: "))
    if not has_own_checksum(record):
        raise BadInput(f"{folder / STATE} no longer has the contents it was written with. {again}")
    begun = record["fingerprint"]
    differing = [name for name in fingerprint if begun.get(name) != fingerprint[name]]
    if differing:
        name = differing[0]
        values = f": {begun.get(name)} there, {fingerprint[name]} here" if "." in name else ""
        others = f" (and {', '.join(differing[1:])})" if len(differing) > 1 else ""
        raise BadInput(
            f"{folder} holds a training (at step {record['step']}) of another {name}{values}{others}. "
            "Next: choose another --out, or delete the folder"
        )
    if steps < record["step"]:
        raise BadInput(
            f"{folder}: {record['step']} steps are done, training.steps is {steps}. Allowed: as many or more."
        )
    file = folder / record["file"]
    try:
        tensors = load_file(file)
        whole = not any(changed_files(folder, record["files"]))
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file} can't be read: {error}. {again}") from error
    if not whole:
        raise BadInput(f"{file} no longer has the contents it was written with. {again}")
    weights: dict[str, dict[str, Tensor]] = {}
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in record["scalars"].items()}
    for name, value in tensors.items():
        group, rest = name.split(".", 1)
        if group == "optimiser":
            index, key = rest.split(".", 1)
            state.setdefault(int(index), {})[key] = value
        else:
            weights.setdefault(group, {})[rest] = value
    progress = Progress(record["step"], record["best_step"], record["best_score"], record.get("history", []))
    return State(progress, weights, {"state": state, "param_groups": record["groups"]}, record.get("loss_scale", {}))


def drop_later_metrics(file: Path, step: int) -> None:
    """Remove the lines of ``metrics.jsonl`` after ``step``: a resumed training writes them again."""
    if file.is_file():
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_text(file, "".join(f"{line}\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line).get("step", 0))
    except json.JSONDecodeError:
        # The last line of a killed run may be cut short.
        return float("inf")


def clone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a copy of a state dict that later training can't change."""
    with torch.no_grad():
        return {name: value.detach().clone() for name, value in state.items()}
