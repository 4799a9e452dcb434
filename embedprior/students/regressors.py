"""Fitted regressions of the CT embedding, and the student that scores them by the teacher head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file
from scipy.special import expit

from embedprior.config import parse_config
from embedprior.runs import read_json, write_json
from embedprior.students.base import Cases, Head
from embedprior.students.student import save_head
from embedprior.students.training import Account
from embedprior.teachers.config import FitConfig
from embedprior.teachers.fitting import Mlp, predict, tensor
from embedprior.teachers.head import TeacherHead

Array = np.ndarray[Any, Any]
Term = Callable[[Array], Array]


@dataclass(frozen=True)
class Affine:
    """((x − mean) / scale) · weights + offset."""

    mean: Array
    scale: Array
    weights: Array
    offset: Array

    def __call__(self, cxr: Float[Array, "cases cxr_dim"]) -> Float[Array, "cases ct_dim"]:
        """Return the predicted CT embeddings."""
        return np.asarray(((cxr - self.mean) / self.scale) @ self.weights + self.offset)

    def arrays(self) -> dict[str, Array]:
        """Return what it consists of."""
        return {k: np.asarray(v) for k, v in vars(self).items()}


@dataclass(frozen=True)
class Kernel:
    """Σ_i exp(−gamma · ‖x − x_i‖²) · dual_i + offset on standardised x."""

    mean: Array
    scale: Array
    anchors: Array
    dual: Array
    gamma: Array
    offset: Array

    def __call__(self, cxr: Float[Array, "cases cxr_dim"]) -> Float[Array, "cases ct_dim"]:
        """Return the predicted CT embeddings."""
        x = (cxr - self.mean) / self.scale
        square = (x**2).sum(1)[:, None] + (self.anchors**2).sum(1)[None] - 2 * x @ self.anchors.T
        return np.asarray(np.exp(-self.gamma * np.maximum(square, 0)) @ self.dual + self.offset)

    def arrays(self) -> dict[str, Array]:
        """Return what it consists of."""
        return {k: np.asarray(v) for k, v in vars(self).items()}


@dataclass(frozen=True)
class Network:
    """An MLP in place of a matrix; the target is standardised while it is fitted."""

    network: Mlp
    offset: Array
    spread: Array
    config: FitConfig

    def __call__(self, cxr: Float[Array, "cases cxr_dim"]) -> Float[Array, "cases ct_dim"]:
        """Return the predicted CT embeddings."""
        return np.asarray(predict(self.network, cxr).astype(np.float64) * self.spread + self.offset)

    def arrays(self) -> dict[str, Array]:
        """Return what it consists of."""
        weights = {f"network.{k}": v.numpy() for k, v in self.network.state_dict().items()}
        return {"offset": self.offset, "spread": self.spread, **weights}


@dataclass(frozen=True)
class RegressionStudent:
    """Regression of the CT embedding, then the teacher head.

    Attributes:
        terms: summed, one a stage.
        head: frozen.
        account: what the fit cost; None when it was read from a folder.
    """

    terms: tuple[Affine | Kernel | Network, ...]
    head: Head
    account: Account | None = field(default=None, compare=False)
    kind: ClassVar[str] = "regression"

    def regression(self, cxr: Float[Array, "cases cxr_dim"]) -> Float[Array, "cases ct_dim"]:
        """Return the predicted CT embeddings."""
        return summed(self.terms, cxr)

    def scores(self, cases: Cases) -> Float[Array, " cases"]:
        """Return the head's probability at the predicted CT embedding."""
        return np.asarray(expit(self.head.logits(self.regression(cases.cxr)).astype(np.float64)))

    def save(self, folder: Path) -> None:
        """Write the terms (safetensors), their kinds (JSON) and the head."""
        described = []
        for number, term in enumerate(self.terms):
            arrays = {k: np.ascontiguousarray(v) for k, v in term.arrays().items()}
            save_file(arrays, folder / f"term-{number}.safetensors")
            described.append({"kind": type(term).__name__, "config": getattr(term, "config", None)})
        write_json(folder / "terms.json", described)
        (folder / "head").mkdir(exist_ok=True)
        save_head(self.head, folder / "head")

    @classmethod
    def load(cls, folder: Path) -> RegressionStudent:
        """Read a student back; runs no code from the files."""
        terms: list[Affine | Kernel | Network] = []
        for number, described in enumerate(read_json(folder / "terms.json")):
            arrays = load_file(folder / f"term-{number}.safetensors")
            if described["kind"] == "Network":
                config = parse_config(FitConfig, described["config"], str(folder / "terms.json"))
                terms.append(_network(arrays, config))
            else:
                terms.append((Kernel if described["kind"] == "Kernel" else Affine)(**arrays))
        return cls(tuple(terms), TeacherHead.load(folder / "head"))


def summed(terms: Sequence[Term], cxr: Float[Array, "cases cxr_dim"]) -> Float[Array, "cases ct_dim"]:
    """Return the sum of the stages' predictions."""
    return np.asarray(np.sum([term(cxr) for term in terms], axis=0))


def standard(values: Array) -> tuple[Array, Array]:
    """Return mean and spread by column (spread 1 for a constant column), in double precision."""
    wide = values.astype(np.float64)
    spread = wide.std(0)
    return wide.mean(0), np.where(spread > 1e-6, spread, 1.0)


def size_of(term: Affine | Kernel | Network) -> int:
    """Return the number of fitted coefficients."""
    if isinstance(term, Network):
        return sum(p.numel() for p in term.network.parameters())
    return int(term.weights.size + term.offset.size if isinstance(term, Affine) else term.dual.size + term.offset.size)


def _network(arrays: dict[str, Array], config: FitConfig) -> Network:
    state = {k.removeprefix("network."): tensor(v) for k, v in arrays.items() if k.startswith("network.")}
    network = Mlp(state["mean"].numel(), len(arrays["offset"]), config)
    network.load_state_dict(state)
    return Network(network.eval(), arrays["offset"], arrays["spread"], config)
