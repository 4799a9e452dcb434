"""Weight files from elsewhere: found, read without executing anything in them, and loaded tensor by tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from embedprior.errors import BadInput
from embedprior.runs.files import write_tensors

if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pth.tar")
ORDER = "order"
"""Entry of a safetensors header that lists the tensors in their order elsewhere; the format itself keeps none."""
WRAPPERS = ("state_dict", "model_state", "model")
"""Names under which published files keep their tensors, beside settings or an optimiser."""


def find_weights(name: str, given: Path | str | None, command: str) -> Path:
    """Return the weight file of an encoder: the one given, or ``$EMBEDPRIOR_HOME/weights/NAME`` with a known ending.

    Args:
        name: of the encoder.
        given: ``--weights``; a relative path is also looked for under ``$EMBEDPRIOR_HOME/weights``.
        command: that gets the file, for the message.

    Raises:
        BadInput: no such file.
    """
    home = os.environ.get("EMBEDPRIOR_HOME")
    store = Path(home) / "weights" if home else None
    if given is not None:
        places = [Path(given), *([store / given] if store is not None else [])]
    else:
        places = [store / (name.replace(":", "-").replace("/", "-") + suffix) for suffix in SUFFIXES] if store else []
    for place in places:
        if place.is_file():
            return place
    if given is not None:
        raise BadInput(f"no weights at {given}. Next: --weights FILE ({command})")
    where = f"or put the file at {store}/{name}.pth" if store else "or set EMBEDPRIOR_HOME and use its folder weights/"
    raise BadInput(
        f"encoder '{name}' needs weights. Next: {command}; then --weights FILE, {where}; or --random-init for a trial "
        "of the plumbing"
    )


def read_tensors(file: Path | str, after: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a ``.safetensors`` file, or of one that ``torch.save`` wrote, by name, on the CPU.

    A file that keeps them beside other things under one of ``WRAPPERS`` gives those.

    Args:
        file: what to read. Its suffix tells the two formats apart.
        after: how the message goes on: what to give instead.

    Raises:
        BadInput: damaged, no weight file, or a pickle that would run code.
    """
    file = Path(file)
    import torch
    from safetensors import safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                stored = (opened.metadata() or {}).get(ORDER)
                names = json.loads(stored) if stored else list(opened.keys())
                return {name: opened.get_tensor(name) for name in names}
        found = torch.load(file, map_location="cpu", weights_only=True)
    # torch, pickle, zipfile and safetensors each raise their own kinds for a damaged file
    except Exception as error:
        raise BadInput(f"{file.name} can't be read as weights ({type(error).__name__}). {after}") from None
    if isinstance(found, Mapping) and not _all_tensors(found):
        found = next((found[name] for name in WRAPPERS if _all_tensors(found.get(name))), None)
    if not _all_tensors(found):
        raise BadInput(f"{file.name} holds no table of tensors. {after}")
    return {str(name): value for name, value in found.items()}


def write_weights(tensors: Mapping[str, torch.Tensor], file: Path | str) -> None:
    """Write tensors as safetensors, in an order that ``read_tensors`` gives back."""
    whole = {name: values.clone().contiguous() for name, values in tensors.items()}
    write_tensors(Path(file), whole, {ORDER: json.dumps(list(tensors))})


def without_prefix(tensors: Mapping[str, torch.Tensor], prefixes: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return the tensors without prefixes that all their names have (``module.`` of DataParallel, ``backbone.``).

    Example:
        >>> without_prefix({"module.net.a": 1, "module.net.b": 2}, ["module.", "net."])
        {'a': 1, 'b': 2}
    """
    found = dict(tensors)
    for prefix in prefixes:
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def load_strictly(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], file: str, what: str) -> None:
    """Copy tensors into a model: every one of them, and nothing else.

    Args:
        model: the network.
        tensors: by the names of its ``state_dict``.
        file: they come from, for messages.
        what: the network, for messages.

    Raises:
        BadInput: a missing, an unknown or a misshapen tensor; the first is named.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    misshapen = [n for n, v in tensors.items() if n in expected and v.shape != expected[n].shape]
    for names, problem in ((missing, "lacks tensor"), (unknown, "holds a tensor that is not known,")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise BadInput(f"{file} does not fit {what}: it {problem} '{names[0]}'{more}.")
    if misshapen:
        name = misshapen[0]
        raise BadInput(
            f"{file} does not fit {what}: tensor '{name}' has shape {tuple(tensors[name].shape)}, not "
            f"{tuple(expected[name].shape)}."
        )
    model.load_state_dict(dict(tensors), strict=True)


def _all_tensors(found: object) -> bool:
    import torch

    return isinstance(found, Mapping) and bool(found) and all(isinstance(v, torch.Tensor) for v in found.values())
