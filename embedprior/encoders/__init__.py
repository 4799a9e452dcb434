"""Frozen encoders: exam → 1D embedding, with the preprocessing and provenance that made it."""

from embedprior.encoders.base import Encoder, EncoderSpec, encoder_key
from embedprior.encoders.registry import ENCODERS, create_encoder

__all__ = ["ENCODERS", "Encoder", "EncoderSpec", "create_encoder", "encoder_key"]
