"""The diffusion prior in scikit-learn's manners: settings in the constructor, ``fit`` on arrays in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin

from embedprior.config import load_config, parse_config
from embedprior.errors import BadInput
from embedprior.prior.config import (
    NetworkConfig,
    PriorConfig,
    ProcessConfig,
    SamplerName,
    TrainingConfig,
    TrainPriorConfig,
)
from embedprior.prior.data import Array, PairArrays
from embedprior.prior.model import Prior
from embedprior.runs import read_json, seed_for, write_json

SETTINGS = "estimator.json"
SMALL = PriorConfig(
    settings="given",
    network=NetworkConfig(preset="tiny"),
    process=ProcessConfig(condition_noise=1.0, regression="ridge"),
    training=TrainingConfig(steps=1500, lr=1e-3, ema=0.999, validate_every=100, patience=6, variance_nodes=17),
)
"""What a mapping of settings is laid over: for a few hundred to a few thousand pairs on a CPU."""
STEPS = 1500
"""Of a training whose settings are chosen automatically."""


class DiffusionPrior(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Diffusion prior p(CT embedding | X-ray embedding), trained on paired embeddings in memory.

    Args:
        steps: optimiser steps, at most; None = those of ``config``. Training stops early when the validation loss no
            longer falls.
        val_fraction: share of the patients (``groups`` of ``fit``) that choose the checkpoint and measure the variance
            of the sampler; unused when ``fit`` is given ``validation``.
        sampler: ``"analytic"`` (Analytic-DPM), ``"analytic_diag"``, ``"ddpm_small"``, ``"ddpm_big"``, ``"ddim"`` or
            ``"dpm_solver"``.
        sampling_steps: network calls per sample.
        config: every other setting. None compares a few candidates for network, process and training on the validation
            pairs (``settings: auto``). Otherwise a ``PriorConfig``, the name or path of a file (as in
            ``configs/prior/``), or a mapping of settings over those of a small network: ``{"training": {"lr": 3e-4}}``.
        seed: of the initial weights, the validation patients, the noise and the samples.
        progress: show a progress bar on standard error while training.

    Attributes:
        prior_: the trained prior, after ``fit`` or ``load``.
        n_features_in_: length of an X-ray embedding.
        n_outputs_: length of a CT embedding.

    Source: Ho et al., NeurIPS 2020 (DDPM); Ramesh et al. 2022, arXiv 2204.06125 (the prior on embeddings); Bao et al.,
    ICLR 2022 (Analytic-DPM). Formulas: ``docs/prior.md``.

    Example:
        >>> import numpy as np
        >>> from embedprior import DiffusionPrior
        >>> rng = np.random.default_rng(0)
        >>> ct = rng.normal(size=(200, 4))
        >>> cxr = ct @ rng.normal(size=(4, 6)) + rng.normal(size=(200, 6))
        >>> prior = DiffusionPrior(steps=100).fit(cxr[:160], ct[:160])
        >>> prior.predict(cxr[160:]).shape                      # the mean E[z_CT | z_CXR]
        (40, 4)
        >>> prior.sample(cxr[160:], n_samples=8).shape          # draws from p(z_CT | z_CXR)
        (40, 8, 4)
        >>> prior.score(cxr[160:], ct[160:]) > 0.5              # R² of the mean
        True
    """

    def __init__(
        self,
        *,
        steps: int | None = None,
        val_fraction: float = 0.2,
        sampler: SamplerName = "analytic",
        sampling_steps: int = 16,
        config: PriorConfig | dict[str, Any] | str | Path | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.steps = steps
        self.val_fraction = val_fraction
        self.sampler = sampler
        self.sampling_steps = sampling_steps
        self.config = config
        self.seed = seed
        self.progress = progress

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        validation: tuple[ArrayLike, ArrayLike] | None = None,
    ) -> Self:
        """Train the prior on pairs, row by row.

        Args:
            X: (N, Dc) X-ray embeddings, or (N, C, Dc) for C condition tokens (views, slices, patches).
            y: (N, D) CT embeddings of the same pairs.
            groups: (N,) patient of each pair, so that no patient trains and validates; None = one patient a pair.
            validation: (X, y) of other patients that choose the checkpoint, instead of ``val_fraction``.

        Returns:
            The estimator itself.

        Raises:
            BadInput: rows that do not match, a number that is not finite, fewer than two patients, or a setting that
                is not allowed.

        Example:
            >>> import numpy as np
            >>> from embedprior import DiffusionPrior
            >>> rng = np.random.default_rng(0)
            >>> ct, patients = rng.normal(size=(100, 2)), np.arange(100) // 2     # two pairs a patient
            >>> prior = DiffusionPrior(steps=20).fit(ct @ [[1, 2, 0], [0, 1, 1]], ct, groups=patients)
            >>> prior.n_features_in_, prior.n_outputs_
            (3, 2)
        """
        from embedprior.prior.trainer import train_prior

        config = self._config()
        condition, target = _matrix("X", X, (2, 3)), _matrix("y", y, (2,))
        if len(condition) != len(target):
            raise BadInput(f"X has {len(condition)} rows, y has {len(target)}. They must be pairs, row by row.")
        if validation is None:
            patients = _patients(groups, len(condition))
            aside = self._set_aside(patients)
            train = _pairs(condition[~aside], target[~aside], patients[~aside])
            val = _pairs(condition[aside], target[aside], patients[aside])
        else:
            train = _pairs(condition, target, _patients(groups, len(condition)))
            other, wanted = _matrix("validation X", validation[0], (2, 3)), _matrix("validation y", validation[1], (2,))
            if len(other) != len(wanted):
                raise BadInput(f"validation X has {len(other)} rows, y has {len(wanted)}. They must be pairs.")
            val = _pairs(other, wanted, np.array([f"validation {n}" for n in range(len(other))]))
        with tempfile.TemporaryDirectory(prefix="embedprior-") as folder:
            self.prior_ = train_prior(train, val, config, Path(folder), show_progress=self.progress)
        return self._fitted(self.prior_)

    def predict(self, X: ArrayLike) -> Float[np.ndarray, "cases dim"]:
        """Return the mean E[z_CT | z_CXR], (N, D) in the CT embedding's own scale: the regression, not a draw.

        Args:
            X: (N, Dc) or (N, C, Dc) X-ray embeddings.

        Raises:
            BadInput: not fitted, another width than in training, or a number that is not finite.

        Example:
            >>> import numpy as np
            >>> from embedprior import DiffusionPrior
            >>> ct = np.random.default_rng(0).normal(size=(100, 2))
            >>> DiffusionPrior(steps=20).fit(3 * ct, ct).predict(3 * ct[:5]).shape
            (5, 2)
        """
        return self._ready().one_step(_matrix("X", X, (2, 3)), seed=self.seed)

    def sample(
        self, X: ArrayLike, n_samples: int = 8, *, seed: int | None = None
    ) -> Float[np.ndarray, "cases samples dim"]:
        """Return draws of the CT embedding, (N, n_samples, D) in its own scale.

        A draw depends on its own row, its place and the seed, not on the other rows.

        Args:
            X: (N, Dc) or (N, C, Dc) X-ray embeddings.
            n_samples: draws a case.
            seed: of the noise; None = that of the estimator.

        Raises:
            BadInput: as ``predict``, or an unknown sampler.

        Example:
            >>> import numpy as np
            >>> from embedprior import DiffusionPrior
            >>> ct = np.random.default_rng(0).normal(size=(100, 2))
            >>> prior = DiffusionPrior(steps=20, sampling_steps=8).fit(3 * ct, ct)
            >>> draws = prior.sample(3 * ct[:5], n_samples=4)
            >>> draws.shape, bool((draws[:, 0] != draws[:, 1]).all())
            ((5, 4, 2), True)
        """
        if n_samples < 1:
            raise BadInput(f"n_samples is {n_samples}. Allowed: 1 or more.")
        prior, chosen = self._ready(), self.seed if seed is None else seed
        return prior.sample(_matrix("X", X, (2, 3)), n_samples, self.sampler, self.sampling_steps, chosen)

    def predict_head(
        self, X: ArrayLike, head: Callable[[Array], ArrayLike], n_samples: int = 64, *, seed: int | None = None
    ) -> Float[np.ndarray, " cases"]:
        """Return the mean of a CT classifier's probability over draws, (N,): an estimate of p(label | X-ray).

        It is one where the head is calibrated and the label depends on the X-ray only through the CT embedding. The
        head at the mean, ``head(predict(X))``, is not, when the head is not linear.

        Args:
            X: (N, Dc) or (N, C, Dc) X-ray embeddings.
            head: (M, D) CT embeddings ↦ (M,) probabilities, such as ``lambda z: model.predict_proba(z)[:, 1]``.
            n_samples: draws a case.
            seed: of the noise; None = that of the estimator.

        Raises:
            BadInput: as ``sample``, or a head that does not give one number a row.

        Example:
            >>> import numpy as np
            >>> from embedprior import DiffusionPrior
            >>> ct = np.random.default_rng(0).normal(size=(100, 2))
            >>> prior = DiffusionPrior(steps=20, sampling_steps=8).fit(3 * ct, ct)
            >>> prior.predict_head(3 * ct[:5], lambda z: 1 / (1 + np.exp(-z[:, 0]))).shape
            (5,)
        """
        drawn = self.sample(X, n_samples, seed=seed)
        found = np.asarray(head(drawn.reshape(-1, drawn.shape[-1])), dtype=np.float64)
        if found.shape != (drawn.shape[0] * drawn.shape[1],):
            hint = " Next: lambda z: model.predict_proba(z)[:, 1]" if found.ndim == 2 else ""
            raise BadInput(
                f"the head gave shape {found.shape} for {drawn.shape[0] * drawn.shape[1]} embeddings. "
                f"Allowed: one probability a row.{hint}"
            )
        return np.asarray(found.reshape(drawn.shape[:2]).mean(axis=1))

    def save(self, folder: Path | str) -> None:
        """Write the fitted prior (``prior.safetensors``, ``prior.json``) and these settings; nothing is pickled.

        Args:
            folder: made when it is not there.

        Raises:
            BadInput: not fitted.

        Example:
            >>> import numpy as np
            >>> from embedprior import DiffusionPrior
            >>> ct = np.random.default_rng(0).normal(size=(100, 2))
            >>> prior = DiffusionPrior(steps=20).fit(3 * ct, ct)
            >>> prior.save("prior")
            >>> bool((DiffusionPrior.load("prior").predict(3 * ct) == prior.predict(3 * ct)).all())
            True
        """
        prior, folder = self._ready(), Path(folder)
        prior.save(folder)
        names = ("steps", "val_fraction", "sampler", "sampling_steps", "seed")
        write_json(folder / SETTINGS, {name: getattr(self, name) for name in names})

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Return a fitted prior; executes nothing in its folder.

        Args:
            folder: of ``save``, or of ``train_prior.py``.

        Raises:
            BadInput: no prior there, or a damaged one.

        Example: see ``save``.
        """
        folder = Path(folder)
        prior = Prior.load(folder)
        settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
        return cls(config=prior.config, **settings)._fitted(prior)

    def _fitted(self, prior: Prior) -> Self:
        self.prior_ = prior
        self.n_features_in_ = prior.network.condition_dim
        self.n_outputs_ = prior.network.target_dim
        return self

    def _ready(self) -> Prior:
        if not hasattr(self, "prior_"):
            raise BadInput("this DiffusionPrior is not fitted. Next: fit(X, y), or DiffusionPrior.load(folder)")
        return self.prior_

    def _config(self) -> PriorConfig:
        if isinstance(self.config, PriorConfig):
            config = self.config
        elif isinstance(self.config, (str, Path)):
            config = load_config(TrainPriorConfig, str(self.config), "prior").prior
        elif self.config is None:
            config = PriorConfig(settings="auto", training=TrainingConfig(steps=STEPS))
        else:
            config = parse_config(PriorConfig, _over(SMALL.model_dump(), dict(self.config)), "config")
        training: dict[str, Any] = {"seed": self.seed} | ({} if self.steps is None else {"steps": self.steps})
        changed = config.model_dump() | {"training": config.training.model_dump() | training}
        return parse_config(PriorConfig, changed, "DiffusionPrior")

    def _set_aside(self, patients: NDArray[np.str_]) -> NDArray[np.bool_]:
        if not 0 < self.val_fraction < 1:
            raise BadInput(f"val_fraction is {self.val_fraction}. Allowed: above 0 and below 1, such as 0.2.")
        names = sorted(set(patients.tolist()))
        if len(names) < 2:
            raise BadInput(f"{len(names)} patient given. Allowed: at least 2, one to learn from and one to validate.")
        order = np.random.default_rng(seed_for(self.seed, "patients set aside")).permutation(len(names))
        count = min(len(names) - 1, max(1, round(self.val_fraction * len(names))))
        return np.isin(patients, [names[i] for i in order[:count]])


def _over(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    found = dict(settings)
    for name, value in changes.items():
        inner = isinstance(value, dict) and isinstance(found.get(name), dict)
        found[name] = _over(found[name], value) if inner else value
    return found


def _matrix(name: str, values: ArrayLike, axes: tuple[int, ...]) -> Array:
    allowed = "(N, D)" if axes == (2,) else "(N, D) or (N, tokens, D)"
    try:
        array: Array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{name} is no array of numbers ({error}). Allowed: {allowed}.") from error
    if array.ndim not in axes or 0 in array.shape:
        hint = " Next: X[None] for one case." if array.ndim == 1 else ""
        raise BadInput(f"{name} has shape {array.shape}. Allowed: {allowed}, at least one row.{hint}")
    bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
    if bad.size:
        raise BadInput(
            f"{name} holds a number that is not finite in rows {bad[:5].tolist()} ({bad.size} such). "
            "Next: embed these exams again, or leave the pairs out"
        )
    return array


def _patients(groups: ArrayLike | None, n: int) -> NDArray[np.str_]:
    if groups is None:
        return np.array([f"pair {number}" for number in range(n)])
    given = np.asarray(groups, dtype=object)
    if given.shape != (n,):
        raise BadInput(f"groups has shape {given.shape}, but there are {n} pairs. Allowed: ({n},).")
    missing = np.flatnonzero(pd.isna(given))
    if missing.size:
        raise BadInput(f"groups names no patient in rows {missing[:5].tolist()} ({missing.size} such).")
    return given.astype(str)


def _pairs(condition: Array, target: Array, patients: NDArray[np.str_]) -> PairArrays:
    ids = [f"{patient}, row {number}" for number, patient in enumerate(patients)]
    return PairArrays(condition, target, ids, "cxr", patients=patients.tolist())
