"""Random numbers keyed by what they are for, so that no process count, batch mate or restart can change them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Streams never share a key: the same seed, step and example give unrelated numbers in each.
TRAINING, VALIDATION, VARIANCE, SAMPLING, ORDER, ONE_STEP, TEACHER = range(7)


class KeyedNoise:
    """A Philox generator that is moved to the start of stream (seed, purpose, step, example) on demand."""

    def __init__(self, seed: int, purpose: int) -> None:
        self._bits = np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64))
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def at(self, step: int, example: int) -> np.random.Generator:
        """Return the generator at the start of one stream; it is valid until the next call."""
        # The low counter word stays free for the draws; setting the state is 5x quicker than a new generator.
        self._state["state"]["counter"][:] = (0, 0, step, example)
        self._state["buffer_pos"] = 4
        self._state["has_uint32"] = 0
        self._bits.state = self._state
        return self._generator


@dataclass(frozen=True)
class StepDraws:
    """What one training step needs beside its data.

    Attributes:
        timestep: (B,) uniform on 1..N.
        drop: (B, 2) uniform on [0, 1): condition and noised-target dropout.
        noise: (B, D) standard normal, float32.
        condition: (B, *condition_shape) standard normal, float32; None when it was not asked for.
    """

    timestep: NDArray[np.int64]
    drop: NDArray[np.float64]
    noise: NDArray[np.float32]
    condition: NDArray[np.float32] | None = None


def training_draws(
    source: KeyedNoise,
    step: int,
    examples: NDArray[np.int64],
    dim: int,
    timesteps: int,
    condition_shape: tuple[int, ...] | None = None,
) -> StepDraws:
    """Return the draws of these examples at this step; each depends on (seed, step, example) alone."""
    timestep = np.empty(len(examples), dtype=np.int64)
    drop = np.empty((len(examples), 2))
    noise = np.empty((len(examples), dim), dtype=np.float32)
    condition = None if condition_shape is None else np.empty((len(examples), *condition_shape), dtype=np.float32)
    for row, example in enumerate(examples):
        generator = source.at(step, int(example))
        uniform = generator.random(3)
        timestep[row] = 1 + int(uniform[0] * timesteps)
        drop[row] = uniform[1:]
        generator.standard_normal(dtype=np.float32, out=noise[row])
        if condition is not None:
            generator.standard_normal(dtype=np.float32, out=condition[row])
    return StepDraws(timestep, drop, noise, condition)


def keyed_normal(source: KeyedNoise, step: int, examples: Iterable[int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return (len(examples), *shape) standard normal float32 numbers, one stream per example."""
    return np.stack([source.at(step, example).standard_normal(shape, dtype=np.float32) for example in examples])


def batch_at(seed: int, step: int, batch: int, count: int) -> NDArray[np.int64]:
    """Return the ``batch`` example indices of one step.

    Steps cut an endless row of shuffled passes over the ``count`` examples into equal batches, so every example
    is seen equally often and the batch of a step needs no memory of the steps before it.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    order = KeyedNoise(seed, ORDER)
    passes = {int(p): order.at(int(p), 0).permutation(count) for p in np.unique(positions // count)}
    return np.array([passes[int(p // count)][p % count] for p in positions], dtype=np.int64)
