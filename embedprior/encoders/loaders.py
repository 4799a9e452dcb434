"""Networks named by where they come from: timm, torch.hub, open_clip, the Hugging Face hub, torchxrayvision.

Every one reads radiographs, or slices of a CT volume after a profile (``reader=slices``). The preprocessing numbers are
those of the model's own configuration. Nothing is downloaded unless the user says so: weights are local files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from embedprior.encoders.config import Precision
from embedprior.encoders.frozen import Network, seeded_build
from embedprior.encoders.pictures import IMAGENET, SLICES, PictureEncoder, random_weights
from embedprior.encoders.readers import ReaderName
from embedprior.errors import BadInput, EmbedpriorError, nearest, require_extra
from embedprior.imaging.radiographs import Geometry
from embedprior.runs import hash_file, hash_of, read_json
from embedprior.weights import find_weights, load_strictly, read_tensors, without_prefix

PREFIXES = ("module.", "model.", "encoder.", "backbone.")
HEADS = ("head.", "fc.", "classifier.")
OPEN_CLIP_CONFIG = "open_clip_config.json"


class NamedEncoder(PictureEncoder):
    """Base of the loaders: ``model`` is what follows the colon; other options as ``PictureEncoder``."""

    loader = ""

    def __init__(
        self, model: str, weights: Path | str | None = None, random_init: bool = False,
        geometry: Geometry = "letterbox", reader: ReaderName = "radiograph", profile: str = SLICES, every: int = 1,
        precision: Precision = "fp32", device: str = "cpu", licence: str = "that of the weights",
    ) -> None:  # fmt: skip
        self.model, self._licence = model, licence
        self.name = f"{self.loader}:{model}"  # type: ignore[misc]
        self._found = self._load(weights, random_init)
        self._start(reader, profile, every, geometry, weights, random_init, precision, device)

    def network(self, weights: Path | str | None, random_init: bool) -> Network:
        """Return the network that was loaded."""
        return self._found

    def _load(self, weights: Path | str | None, random_init: bool) -> Network:
        raise NotImplementedError


def own_weights(
    name: str, module: torch.nn.Module, weights: Path | str | None, random_init: bool, what: str
) -> tuple[str, str]:
    """Load a weight file strictly, its head left out where the network has none; return hash and source.

    Args:
        name: of the encoder.
        module: that is loaded into.
        weights: the file; None = ``$EMBEDPRIOR_HOME/weights/NAME``.
        random_init: keep the random weights.
        what: the network, for messages.

    Raises:
        BadInput: no such file, or a tensor that does not fit.
    """
    if random_init:
        return random_weights()
    file = find_weights(name, weights, f"--weights FILE is a state_dict of {what}")
    tensors = without_prefix(read_tensors(file, f"Next: --weights FILE, a state_dict of {what}"), PREFIXES)
    own = module.state_dict()
    kept = {n: v for n, v in tensors.items() if n in own or not n.startswith(HEADS)}
    load_strictly(module, kept, file.name, what)
    return hash_file(file), f"local:{file.name}"


class TimmEncoder(NamedEncoder):
    """Any model of timm with a local checkpoint: DINOv3, EVA-X and others."""

    loader = "timm"

    def _load(self, weights: Path | str | None, random_init: bool) -> Network:
        timm = require_extra("timm", "timm")
        if self.model not in timm.list_models() and self.model.partition(".")[0] not in timm.list_models():
            raise BadInput(f"timm has no model '{self.model}'.{nearest(self.model, timm.list_models())}")
        model: Any = seeded_build(lambda: timm.create_model(self.model, pretrained=False, num_classes=0))
        config = timm.data.resolve_data_config({}, model=model)
        self.side = int(config["input_size"][-1])  # type: ignore[misc]
        digest, source = own_weights(self.name, model, weights, random_init, f"timm's {self.model}")
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        tokens = None
        if hasattr(model, "num_prefix_tokens"):

            def tokens(images: Tensor) -> Tensor:
                found: Tensor = model.forward_features(images)[:, prefix:]
                return found

        return Network(
            model, model, int(model.num_features), tuple(config["mean"]), tuple(config["std"]), source, digest,
            self._licence, f"timm's {getattr(model, 'global_pool', 'pool') or 'token'}", "", tokens,
        )  # fmt: skip


class TorchHubEncoder(NamedEncoder):
    """A model of a ``torch.hub`` repository: ``torchhub:OWNER/REPO@COMMIT/NAME``, or ``torchhub:FOLDER/NAME`` (local).

    A repository is code that runs: a remote one must be pinned to a commit of 40 digits, a local one is yours.
    """

    loader = "torchhub"

    def _load(self, weights: Path | str | None, random_init: bool) -> Network:
        where, _, entry = self.model.rpartition("/")
        if not where:
            raise BadInput(f"torchhub:{self.model}. Allowed: torchhub:FOLDER/NAME, or torchhub:OWNER/REPO@COMMIT/NAME")
        code, contents = where, ""
        if Path(where).is_dir():
            contents = code_of(Path(where))
            options: dict[str, Any] = {"source": "local"}
            code = Path(where).resolve().name
            self.name = f"{self.loader}:{code}/{entry}"  # type: ignore[misc]
        else:
            repository, _, commit = where.partition("@")
            if len(commit) != 40 or repository.count("/") != 1:
                raise BadInput(
                    f"torchhub:{self.model}: '{where}' is no folder, and no OWNER/REPO@COMMIT with all 40 digits of "
                    "the commit. Next: git clone it and give the folder, or pin the commit"
                )
            where, options = f"{repository}:{commit}", {"trust_repo": True}
        model: Any = seeded_build(lambda: torch.hub.load(where, entry, pretrained=False, **options))
        digest, source = own_weights(self.name, model, weights, random_init, f"{entry} of {code}")

        def features(images: Tensor) -> Tensor:
            found: Tensor = model(images)
            return found

        tokens = None
        if hasattr(model, "forward_features"):

            def tokens(images: Tensor) -> Tensor:
                found: Tensor = model.forward_features(images)["x_norm_patchtokens"]
                return found

        dim = int(getattr(model, "embed_dim", 0)) or int(features(torch.zeros(1, 3, self.side, self.side)).shape[-1])
        return Network(
            model, features, dim, *IMAGENET, f"{source}, code {code}", digest, self._licence, "the model's output",
            "", tokens, configuration=contents,
        )  # fmt: skip


def code_of(folder: Path) -> str:
    """Return the hash of every Python file in a folder with its place there; a pinned commit needs none.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> before = code_of(folder)
        >>> _ = (folder / "hubconf.py").write_text("dependencies = []")
        >>> code_of(folder) == before
        False
    """
    files = sorted(file for file in folder.rglob("*.py") if file.is_file())
    return hash_of([[file.relative_to(folder).as_posix(), hash_file(file)] for file in files])


class OpenClipEncoder(NamedEncoder):
    """The image tower of an open_clip model: ``open_clip:NAME`` with ``--weights``, or ``open_clip:local-dir:FOLDER``.

    A local folder holds ``open_clip_config.json`` (the architecture, mean, deviation and size) and its weights.
    """

    loader = "open_clip"

    def _load(self, weights: Path | str | None, random_init: bool) -> Network:
        model, found, numbers, name = open_clip_model(self.model)
        weights = weights or found
        self.name = f"{self.loader}:{name}"  # type: ignore[misc]
        size = numbers.get("size", model.visual.image_size)
        self.side = int(size[0] if isinstance(size, (tuple, list)) else size)  # type: ignore[misc]
        digest, source = own_weights(self.name, model, weights, random_init, f"open_clip's {name}")
        mean, std = (tuple(numbers.get(k, getattr(model.visual, f"image_{k}"))) for k in ("mean", "std"))

        def features(images: Tensor) -> Tensor:
            found: Tensor = model.encode_image(images)
            return found

        dim = int(features(torch.zeros(1, 3, self.side, self.side)).shape[-1])
        return Network(
            model, features, dim, mean, std, source, digest, self._licence, "image projection",
            configuration=open_clip_configuration(self.model),
        )  # fmt: skip


def open_clip_configuration(model: str) -> str:
    """Return the hash of a local folder's configuration; empty for a model that open_clip knows by name.

    Raises:
        BadInput: the folder has none.
    """
    folder = Path(model.removeprefix("local-dir:"))
    return configuration_of(folder / OPEN_CLIP_CONFIG) if model.startswith("local-dir:") else ""


def open_clip_model(model: str) -> tuple[Any, Path | None, dict[str, Any], str]:
    """Return a CLIP model of open_clip without weights, the weight file of its folder, preprocessing numbers and name.

    Args:
        model: a name of open_clip, or ``local-dir:FOLDER``.

    Raises:
        BadInput: open_clip is not installed, has no such model, or the folder has no configuration.
    """
    clip = require_extra("open_clip", "clip")
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:"))
        config = read_json(folder / OPEN_CLIP_CONFIG)
        made: Any = seeded_build(lambda: clip.create_model(model, load_weights=False))
        file = next((f for f in sorted(folder.glob("open_clip_*")) if f.suffix != ".json"), None)
        return made, file, config.get("preprocess_cfg", {}), folder.name
    if model not in clip.list_models():
        raise BadInput(f"open_clip has no model '{model}'.{nearest(model, clip.list_models())}")
    return seeded_build(lambda: clip.create_model(model)), None, {}, model


class HuggingFaceEncoder(NamedEncoder):
    """A folder of the Hugging Face hub, copied here: RAD-DINO, MedSigLIP and other vision models of transformers.

    ``config.json`` and ``preprocessor_config.json`` are read; the folder runs no code of its own.
    """

    loader = "hf"

    def _load(self, weights: Path | str | None, random_init: bool) -> Network:
        folder = Path(self.model)
        whole, config, digest, source = hugging_face_model(folder, random_init)
        numbers = read_json(folder / "preprocessor_config.json")
        for key in ("image_mean", "image_std"):
            if key not in numbers:
                raise BadInput(f"{folder / 'preprocessor_config.json'} has no '{key}'.")
        size = numbers.get("crop_size") or numbers.get("size") or {}
        self.side = int(size.get("height") or size.get("shortest_edge") or 224)  # type: ignore[misc]
        self.name = f"{self.loader}:{folder.name}"  # type: ignore[misc]
        model: Any = getattr(whole, "vision_model", whole)
        config = getattr(config, "vision_config", config)

        def tokens(images: Tensor) -> Tensor:
            found: Tensor = model(pixel_values=images).last_hidden_state[:, 1:]
            return found

        def features(images: Tensor) -> Tensor:
            out = model(pixel_values=images)
            pooled: Tensor | None = getattr(out, "pooler_output", None)
            return out.last_hidden_state[:, 0] if pooled is None else pooled

        return Network(
            model, features, int(config.hidden_size), tuple(numbers["image_mean"]), tuple(numbers["image_std"]),
            source, digest, self._licence, "the model's pooled output", "", tokens,
            configuration=configuration_of(folder / "config.json"),
        )  # fmt: skip


def configuration_of(file: Path) -> str:
    """Return the hash of what a configuration says, whatever its spaces and order.

    Epsilons, activations and numbers of heads stand there, and leave no trace in the weights.

    Raises:
        BadInput: it can't be read.
    """
    return hash_of(read_json(file))


def hugging_face_model(folder: Path, random_init: bool) -> tuple[Any, Any, str, str]:
    """Return the model of a folder with its configuration, and hash and source of its weights.

    Every tensor of the model is in the file; names are transformers' own affair, and no code of the folder runs.

    Raises:
        BadInput: no configuration or weights there, damaged ones, weights that lack a tensor, or transformers is not
            installed.
    """
    transformers = require_extra("transformers", "hf")
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder}: no config.json there. Next: huggingface-cli download NAME --local-dir FOLDER")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    read_json(folder / "config.json")
    with read_by_library(folder, "config.json"):
        config = transformers.AutoConfig.from_pretrained(folder, **local)
    if random_init:
        return seeded_build(lambda: transformers.AutoModel.from_config(config)), config, *random_weights()
    file = next((f for f in (folder / "model.safetensors", folder / "pytorch_model.bin") if f.is_file()), None)
    if file is None:
        raise BadInput(f"hf:{folder.name}: no model.safetensors there. Next: huggingface-cli download it too")
    with read_by_library(folder, f"{file.name} with config.json"):
        model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True, **local)
    for kind in ("missing_keys", "mismatched_keys"):
        wrong = sorted(str(key) for key in info[kind])
        if wrong:
            raise BadInput(f"{file.name} does not fit {folder.name}: {kind.replace('_', ' ')}, first '{wrong[0]}'.")
    return model, config, hash_file(file), f"local:{folder.name}"


@contextmanager
def read_by_library(folder: Path, what: str) -> Iterator[None]:
    """Name the folder where another library can't read a file in it; for damage it raises errors of every kind.

    Args:
        folder: copied from the Hugging Face hub.
        what: is read.

    Raises:
        BadInput: the library raised an error.
    """
    try:
        yield
    except (EmbedpriorError, ImportError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise BadInput(
            f"{folder}: {what} can't be read: {said}. Next: huggingface-cli download NAME --local-dir FOLDER again"
        ) from error


class TorchXrayEncoder(NamedEncoder):
    """A DenseNet-121 of torchxrayvision: ``txrv:densenet121-res224-all`` and the like, one channel in [-1024, 1024].

    The published files are pickled modules, which are never executed: convert one once, where you trust it, with
    ``torch.save(model.state_dict(), FILE)``.
    """

    loader = "txrv"

    def _load(self, weights: Path | str | None, random_init: bool) -> Network:
        xray = require_extra("torchxrayvision", "txrv")
        if not self.model.startswith("densenet121"):
            raise BadInput(f"txrv:{self.model}. Allowed: densenet121-res224-NAME.")
        model: Any = seeded_build(lambda: xray.models.DenseNet(weights=None, num_classes=18))
        if random_init:
            digest, source = random_weights()
        else:
            file = find_weights(self.name, weights, "torch.save(xrv.models.DenseNet(weights=NAME).state_dict(), FILE)")
            tensors = without_prefix(read_tensors(file, "Next: a state_dict, not the pickled module"), ("module.",))
            kept = {n: v for n, v in tensors.items() if n in model.state_dict() or n != "op_threshs"}
            load_strictly(model, kept, file.name, "torchxrayvision's DenseNet-121")
            digest, source = hash_file(file), f"local:{file.name}"

        def cells(images: Tensor) -> Tensor:
            return rearrange(torch.relu(model.features(images)), "n dim rows columns -> n (rows columns) dim")

        # [0, 1] to [-1024, 1024]: (v − 0.5) / (1 / 2048)
        return Network(
            model, lambda images: cells(images).mean(1), 1024, (0.5,), (1 / 2048,), source, digest, "Apache-2.0",
            "global average after ReLU", self.model.rpartition("-")[2], cells, channels=1,
        )  # fmt: skip
