"""What the checks share: promises kept are collected, the first broken one is raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


class CheckFailed(AssertionError):
    """A promise of a protocol that is not kept."""


class Promises:
    """The promises that one implementation kept so far."""

    def __init__(self, subject: str) -> None:
        self.subject, self.kept = subject, list[str]()

    def require(self, condition: bool, promise: str, seen: str) -> None:
        """Note a promise as kept.

        Args:
            condition: whether it was.
            promise: in words, as a statement about the subject.
            seen: what was seen instead, and what to do about it.

        Raises:
            CheckFailed: it was not kept.
        """
        if not condition:
            raise CheckFailed(f"{self.subject}: not true that {promise}: {seen}")
        if promise not in self.kept:
            self.kept.append(promise)

    def attempt(self, call: Callable[[], T], promise: str) -> T:
        """Return what a call returns.

        Raises:
            CheckFailed: it raised something.
        """
        try:
            return call()
        except Exception as error:
            raise CheckFailed(
                f"{self.subject}: not true that {promise}: it raised {type(error).__name__}: {error}"
            ) from error

    def require_error(self, call: Callable[[], Any], kinds: type[Exception], promise: str) -> None:
        """Note that a call was refused with an error of one kind.

        Raises:
            CheckFailed: it was not refused, or with an error of another kind.
        """
        try:
            call()
        except kinds:
            self.require(True, promise, "")
        except Exception as error:
            self.require(False, promise, f"it raised {type(error).__name__}: {error}. Allowed: {kinds.__name__}")
        else:
            self.require(False, promise, f"it raised nothing. Next: raise {kinds.__name__}")


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Return whether two arrays are equal in shape and every number."""
    return bool(one.shape == other.shape and np.array_equal(one, other))


def furthest(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> str:
    """Return in words how far two arrays are apart."""
    if one.shape != other.shape:
        return f"shapes {one.shape} and {other.shape}"
    return f"up to {np.abs(np.asarray(one, float) - np.asarray(other, float)).max():.3g} apart"


def random_streams() -> tuple[bytes, bytes]:
    """Return the states of numpy's and torch's global random generators."""
    import torch

    state: Any = np.random.get_state()  # noqa: NPY002  (what is read is the global stream)
    return state[1].tobytes(), torch.get_rng_state().numpy().tobytes()
