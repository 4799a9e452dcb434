"""Text encoders of radiology reports: a local Hugging Face folder, or the text tower of a CLIP model (BiomedCLIP).

A report is a UTF-8 text file, an exam of modality REPORT. Nothing of its text goes anywhere but through the network:
not into a cache, an error or a log.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from embedprior.cohort.reports import checked_sections, chosen_sections
from embedprior.encoders.config import Precision
from embedprior.encoders.frozen import FrozenEncoder, Network
from embedprior.encoders.loaders import (
    configuration_of,
    hugging_face_model,
    open_clip_configuration,
    open_clip_model,
    own_weights,
    read_by_library,
)  # fmt: skip
from embedprior.errors import BadInput, nearest, require_extra
from embedprior.imaging.files import UnreadableExam
from embedprior.runs import hash_file, hash_of

Pool = Literal["class token", "mean"]
TRANSFORM_VERSION = 1
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "merges.txt")


class TextReader:
    """Text file → (2, length): token ids, and 1 where there is a token. Longer reports are cut at ``length`` tokens.

    Args:
        tokenize: text → ids and mask, each of ``length``.
        length: tokens.
        vocabulary: hash of what the tokenizer is made of.
        sections: that are read, such as ``findings,impression``; none: the whole text.
    """

    parts, modality = False, "REPORT"

    def __init__(
        self, tokenize: Callable[[str], tuple[Sequence[int], Sequence[int]]], length: int, vocabulary: str,
        sections: str | Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._tokenize, self._length, self._vocabulary = tokenize, length, vocabulary
        self._sections = checked_sections(sections)

    def read(self, root: Path | str, path: str) -> Int[np.ndarray, "two length"]:
        """Return one report.

        Raises:
            UnreadableExam: no such file, no text, empty, or without the sections that are read; the message holds
                nothing of it.
        """
        name = Path(path).name
        try:
            data = (Path(root) / path).read_bytes()
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise UnreadableExam(f"{name}: not UTF-8 text, and this encoder reads reports") from None
        except OSError as error:
            raise UnreadableExam(f"{name}: {error.strerror}") from None
        if "\0" in text or not text.strip():
            raise UnreadableExam(f"{name}: no text in it, and this encoder reads reports")
        if self._sections:
            text = chosen_sections(text, self._sections)
            if not text:
                raise UnreadableExam(f"{name}: no section {' or '.join(self._sections)} in it")
        return np.array(self._tokenize(text), dtype=np.int64)

    def record(self) -> dict[str, Any]:
        """Return what goes into the cache key."""
        whole = {
            "transform_version": TRANSFORM_VERSION, "reader": "text", "length": self._length,
            "vocabulary": self._vocabulary,
        }  # fmt: skip
        return whole | ({"sections": list(self._sections)} if self._sections else {})


class TextEncoder(FrozenEncoder):
    """A frozen text network behind a ``TextReader``."""

    def prepare(self, batch: np.ndarray[Any, Any]) -> Tensor:
        """Return token ids and mask (n, 2, length) on the network's device."""
        return torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)


class HuggingFaceText(TextEncoder):
    """A text model in a folder of the Hugging Face hub, copied here: ``hf-text:FOLDER``.

    Args:
        model: the folder, with ``config.json``, the weights and the tokenizer's files; none of its code is run.
        random_init: random weights, stamped into the cache key. For trials of the plumbing only.
        pool: the first token's output, or the mean over the real tokens.
        length: tokens that are read; None = as many as the model has positions, at most 512.
        sections: of the report that are read, such as ``findings,impression``; none: the whole text.
        precision, device: see ``FrozenEncoder``.
        licence: of the weights.

    Raises:
        BadInput: no such folder, a damaged file in it, weights that lack a tensor, or a bad option.
    """

    def __init__(
        self, model: str, random_init: bool = False, pool: Pool = "class token", length: int | None = None,
        sections: str | Sequence[str] = (), precision: Precision = "fp32", device: str = "cpu",
        licence: str = "that of the weights",
    ) -> None:  # fmt: skip
        allowed = get_args(Pool)
        if pool not in allowed:
            raise BadInput(f"pool '{pool}'. Allowed: {', '.join(allowed)}.{nearest(pool, allowed)}")
        folder = Path(model)
        network, config, digest, source = hugging_face_model(folder, random_init)
        with read_by_library(folder, "the tokenizer (tokenizer.json, vocab.txt)"):
            tokenizer = require_extra("transformers", "hf").AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        most = min(int(length or 512), int(getattr(config, "max_position_embeddings", 512)))

        def tokenize(text: str) -> tuple[Sequence[int], Sequence[int]]:
            found = tokenizer(text, truncation=True, max_length=most, padding="max_length")
            return found["input_ids"], found["attention_mask"]

        def features(batch: Tensor) -> Tensor:
            ids, mask = batch.unbind(1)
            states: Tensor = network(input_ids=ids, attention_mask=mask).last_hidden_state
            if pool == "class token":
                return states[:, 0]
            real = rearrange(mask, "n length -> n length 1").to(states.dtype)
            return (states * real).sum(1) / real.sum(1)

        vocabulary = hash_of([hash_file(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()])
        found = Network(
            network, features, int(config.hidden_size), (), (), source, digest, licence, pool,
            configuration=configuration_of(folder / "config.json"),
        )  # fmt: skip
        super().__init__(
            f"hf-text:{folder.name}", found, TextReader(tokenize, most, vocabulary, sections), precision, device
        )


class OpenClipText(TextEncoder):
    """The text tower of an open_clip model: ``open_clip-text:NAME``, or ``open_clip-text:local-dir:FOLDER``.

    BiomedCLIP's folder names the repository of its PubMedBERT; its tokenizer and configuration must be in the local
    cache of the Hugging Face hub, or ``hf_model_name`` in ``open_clip_config.json`` a local folder.

    Args:
        model: name or folder.
        weights: of the whole model, both towers; None = the folder's.
        random_init: random weights, stamped into the cache key. For trials of the plumbing only.
        sections: of the report that are read, such as ``findings,impression``; none: the whole text.
        precision, device: see ``FrozenEncoder``.
        licence: of the weights.

    Raises:
        BadInput: unknown model, no weights, or weights that do not fit.
    """

    def __init__(
        self, model: str, weights: Path | str | None = None, random_init: bool = False,
        sections: str | Sequence[str] = (), precision: Precision = "fp32", device: str = "cpu",
        licence: str = "that of the weights",
    ) -> None:  # fmt: skip
        network, file, _, name = open_clip_model(model)
        spoken = f"open_clip-text:{name}"
        digest, source = own_weights(spoken, network, weights or file, random_init, f"open_clip's {name}")
        tokenizer = require_extra("open_clip", "clip").get_tokenizer(model)
        sample = tokenizer(["chest"])[0]

        def tokenize(text: str) -> tuple[Sequence[int], Sequence[int]]:
            ids = tokenizer([text])[0]
            return ids.tolist(), (ids != 0).long().tolist()

        def features(batch: Tensor) -> Tensor:
            found: Tensor = network.encode_text(batch[:, 0])
            return found

        with torch.inference_mode():
            dim = int(network.encode_text(sample[None]).shape[-1])
        vocabulary = hash_of([type(tokenizer).__name__, tokenize("no acute cardiopulmonary abnormality")])
        found = Network(
            network, features, dim, (), (), source, digest, licence, "text projection",
            configuration=open_clip_configuration(model),
        )  # fmt: skip
        reader = TextReader(tokenize, len(sample), vocabulary, sections)
        super().__init__(spoken, found, reader, precision, device)
