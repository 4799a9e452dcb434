"""A sequence model over slices: an exam's tokens, in order and of any number, become one embedding.

Recurrent layers over slice features with a pool on top are what INSPECT's image pipeline uses for pulmonary embolism
(Huang et al. 2023); its max pool sees the zero padding, this one does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from embedprior.nn.config import SequenceShape
from embedprior.nn.network import Standardised
from embedprior.nn.standardise import Standardiser
from embedprior.nn.training import seeded
from embedprior.nn.transformer import SliceTransformer

Tokens = Float[np.ndarray, "tokens inputs"]


class SequenceModel(Standardised):
    """Standardise → dropout → recurrent layers or a transformer → pool over the real tokens → dropout → linear.

    Mean and spread of the tokens are those of the training exams, and are part of the weights.
    """

    def __init__(self, inputs: int, config: SequenceShape) -> None:
        super().__init__(inputs)
        self.pool, self.max_tokens = config.pool, config.max_tokens
        width = 2 * config.hidden
        self.transformer = None
        if config.cell == "transformer":
            self.transformer = SliceTransformer(inputs, width, config.layers)
        else:
            cell = {"gru": nn.GRU, "lstm": nn.LSTM}[config.cell]
            self.recurrent = cell(inputs, config.hidden, config.layers, batch_first=True, bidirectional=True)
        self.attention = nn.Linear(width, 1) if "attention" in config.pool else None
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(2 * width if config.pool == "attention and max" else width, config.dim)

    def fit_scale_of_exams(self, exams: Sequence[Tokens]) -> None:
        """Take mean and spread from the tokens of the training exams; a constant dimension keeps spread 1."""
        scaler = Standardiser.fit(exams)
        self.mean.copy_(torch.from_numpy(scaler.mean))
        self.scale.copy_(torch.from_numpy(scaler.scale))

    def forward(
        self, tokens: Float[Tensor, "exams longest inputs"], lengths: Int[Tensor, " exams"]
    ) -> Float[Tensor, "exams dim"]:
        """Return the embeddings; what lies past an exam's length is never read."""
        scaled = self.dropout(self.standardise(tokens))
        if self.transformer is not None:
            first, outputs = self.transformer(scaled, lengths).split([1, scaled.shape[1]], dim=1)
            if self.pool == "class token":
                one: Tensor = self.out(self.dropout(first[:, 0]))
                return one
        else:
            packed = pack_padded_sequence(scaled, lengths.cpu(), batch_first=True, enforce_sorted=False)
            outputs, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        position = torch.arange(outputs.shape[1], device=tokens.device)
        length = rearrange(lengths.to(tokens.device), "exams -> exams 1")
        real = rearrange(position < length, "exams longest -> exams longest 1")
        pooled: list[Tensor] = []
        if self.attention is not None:
            share = self.attention(outputs).masked_fill(~real, -torch.inf).softmax(dim=1)
            pooled.append((share * outputs).sum(dim=1))
        if "max" in self.pool:
            pooled.append(outputs.masked_fill(~real, -torch.inf).amax(dim=1))
        if self.pool == "mean":
            pooled.append((outputs * real).sum(dim=1) / real.sum(dim=1))
        embedding: Tensor = self.out(self.dropout(torch.cat(pooled, dim=1)))
        return embedding


def centre_crop(exam: Tokens, most: int) -> Tokens:
    """Return at most ``most`` neighbouring tokens around the middle.

    Example:
        >>> centre_crop(np.arange(5.0)[:, None], 3)[:, 0].tolist()
        [1.0, 2.0, 3.0]
    """
    start = max(0, (len(exam) - most) // 2)
    return exam[start : start + most]


def pad(exams: Sequence[Tokens], most: int) -> tuple[Float[Tensor, "exams longest inputs"], Int[Tensor, " exams"]]:
    """Return the exams, cropped and padded to one length, and how many tokens of each are real."""
    cropped = [torch.from_numpy(np.array(centre_crop(exam, most), dtype=np.float32)) for exam in exams]
    return pad_sequence(cropped, batch_first=True), torch.tensor([len(exam) for exam in cropped])


def new_sequence(exams: Sequence[Tokens], config: SequenceShape, seed: int) -> SequenceModel:
    """Return an untrained model whose scale is that of these exams' tokens."""
    with seeded(seed, "initial weights", "sequence"):
        model = SequenceModel(exams[0].shape[1], config)
    model.fit_scale_of_exams(exams)
    return model


@torch.no_grad()
def embed(model: SequenceModel, exams: Sequence[Tokens], batch: int = 64) -> Float[np.ndarray, "exams dim"]:
    """Return the embeddings of these exams, without dropout."""
    model.eval()
    parts = [
        model(*pad(exams[start : start + batch], model.max_tokens)).numpy() for start in range(0, len(exams), batch)
    ]
    return np.concatenate(parts) if parts else np.empty((0, model.out.out_features), np.float32)
