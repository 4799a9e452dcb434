"""Maps from a radiograph's embedding to a CT's (affine, kernel, network): what the regressions fit and save."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from embedprior.nn.config import FitConfig
from embedprior.nn.network import Mlp, predict
from embedprior.nn.standardise import Standardiser
from embedprior.nn.training import tensor

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

    def taken_over(self, weight: float, scaler: Standardiser) -> Affine:
        """Return the same map of inputs standardised by ``scaler``, its predictions times the weight."""
        return Affine(scaler.mean, scaler.scale, weight * self.weights, weight * self.offset)


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

    def taken_over(self, weight: float, scaler: Standardiser) -> Kernel:
        """Return the same map of inputs standardised by ``scaler``, its predictions times the weight."""
        mean, scale, dual, offset = scaler.mean, scaler.scale, weight * self.dual, weight * self.offset
        return replace(self, mean=mean, scale=scale, dual=dual, offset=offset)


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

    def taken_over(self, weight: float, scaler: Standardiser) -> Network:
        """Return the same map of inputs standardised by ``scaler``, its predictions times the weight."""
        network = copy.deepcopy(self.network)
        network.mean.copy_(tensor(scaler.mean))
        network.scale.copy_(tensor(scaler.scale))
        return Network(network, weight * self.offset, weight * self.spread, self.config)


RegressionTerm = Affine | Kernel | Network


def summed(terms: Sequence[Term], cxr: Float[Array, "cases cxr_dim"]) -> Float[Array, "cases ct_dim"]:
    """Return the sum of the stages' predictions."""
    return np.asarray(np.sum([term(cxr) for term in terms], axis=0))


def size_of(term: RegressionTerm) -> int:
    """Return the number of fitted coefficients."""
    if isinstance(term, Network):
        return sum(p.numel() for p in term.network.parameters())
    return int(term.weights.size + term.offset.size if isinstance(term, Affine) else term.dual.size + term.offset.size)


def read_network(arrays: dict[str, Array], config: FitConfig) -> Network:
    state = {k.removeprefix("network."): tensor(v) for k, v in arrays.items() if k.startswith("network.")}
    network = Mlp(state["mean"].numel(), len(arrays["offset"]), config)
    network.load_state_dict(state)
    return Network(network.eval(), arrays["offset"], arrays["spread"], config)
