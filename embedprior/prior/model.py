"""A trained prior: sample it, predict with it, save and load it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedprior.config import parse_config
from embedprior.errors import BadInput, choose
from embedprior.nn.stages import StageWeight
from embedprior.nn.standardise import Standardiser, TargetSpace
from embedprior.prior.config import PriorConfig, SamplerConfig, SamplerName, Source, named_sampler
from embedprior.prior.data import Array
from embedprior.prior.diffusion import ONE_STEP, SAMPLING, KeyedNoise, Schedule, keyed_normal, make_schedule
from embedprior.prior.network import PriorNetwork
from embedprior.prior.regression import Regression, coefficients
from embedprior.prior.samplers import (
    Conditions,
    Denoise,
    ReverseStep,
    VarianceTable,
    denoiser,
    draw,
    even_trajectory,
    log_snr_trajectory,
    noise_of_steps,
    optimal_trajectory,
    plan,
    states,
)
from embedprior.prior.storage import DESCRIPTION, WEIGHTS, Tensors, read_files, require, write_files
from embedprior.runs import inner_bar


@dataclass(frozen=True)
class Prior:
    """p(z_CT | z_CXR), ready to sample.

    Attributes:
        config: how it was made.
        network: averaged (EMA) weights of the checkpoint with the best validation loss.
        target_scaler: of the CT embeddings; the one of pretraining when fine-tuned.
        condition_scalers: by source, "drr" and "cxr".
        variance: the Analytic-DPM table; None when there is none yet.
        encoders: encoder keys of condition and target; empty when unknown.
        regressions: by source, the ridge regression of the target on its embeddings; empty when the process has none.
        spaces: by source, the whitened units in which the target is noised; empty when the process does not whiten.
        record: what its training found out, JSON types: how it was chosen, how it does on the validation pairs.

    Example:
        >>> from embedprior.prior.config import NetworkConfig, ProcessConfig
        >>> config = PriorConfig(network=NetworkConfig(preset="tiny"), process=ProcessConfig(timesteps=50))
        >>> network = new_network(config, condition_dim=6, target_dim=8, condition_tokens=1)
        >>> units = Standardiser(np.zeros(8), np.ones(8))
        >>> prior = Prior(config, network, units, {"cxr": Standardiser(np.zeros(6), np.ones(6))}, variance=None)
        >>> prior.sample(np.zeros((3, 6), np.float32), samples=5, sampler="ddim", steps=10).shape
        (3, 5, 8)
        >>> prior.one_step(np.zeros((3, 6), np.float32)).shape
        (3, 8)
    """

    config: PriorConfig
    network: PriorNetwork
    target_scaler: Standardiser
    condition_scalers: Mapping[str, Standardiser]
    variance: VarianceTable | None
    encoders: tuple[str, str] = ("", "")
    regressions: Mapping[str, Regression] = field(default_factory=dict)
    spaces: Mapping[str, TargetSpace] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def schedule(self) -> Schedule:
        """The noising process."""
        return make_schedule(self.config.process)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.network.query.device

    def sample(
        self,
        condition: Array,
        samples: int = 8,
        sampler: SamplerName | SamplerConfig = "analytic",
        steps: int = 64,
        seed: int = 0,
        source: Source = "cxr",
        condition_mask: NDArray[np.bool_] | None = None,
        guidance: float | None = None,
        cases: Sequence[int] | None = None,
        progress: bool = False,
    ) -> Array:
        """Return posterior samples (N, samples, D) in the CT embedding's own scale.

        Sample m of case i depends on (seed, key of i, m) and its condition only, not on the other cases.

        Args:
            condition: (N, Dc) or (N, C, Dc), in its own scale.
            samples: M per case, drawn in one batch; the condition is encoded once.
            sampler: a short name, used with ``steps``, or full settings, which carry their own steps.
            steps: network calls per sample.
            seed: of the noise.
            source: what the condition is; picks its scaler.
            condition_mask: (N, C), True where a condition token is real.
            guidance: weight w; None is the configured one. The variance table holds at 1 alone; see ``caveats``.
            cases: N numbers below 2^64 that key the noise of each case; None numbers them from 0.
            progress: show a bar on a terminal where it takes more than a few seconds.

        Raises:
            BadInput: wrong dimension, unknown source or sampler, more steps than timesteps, or an analytic variance
                with a guidance weight other than 1.
        """
        weight, reverse = self._plan(sampler, steps, guidance)
        conditions = self._checked_conditions(condition, source, condition_mask)
        keys = range(len(conditions)) if cases is None else cases
        noise = KeyedNoise(seed, SAMPLING)
        with inner_bar("samples", len(conditions) * len(reverse)) if progress else nullcontext() as bar:
            advance = None if bar is None else bar.update
            drawn = self.draw(conditions, reverse, samples, noise, weight, keys, advance)
        return self.target_space(source).inverse(drawn)

    def path(
        self,
        condition: Array,
        at: Sequence[float] = (0.0, 0.5, 1.0),
        sampler: SamplerName | SamplerConfig = "analytic",
        steps: int = 64,
        seed: int = 0,
        source: Source = "cxr",
        condition_mask: NDArray[np.bool_] | None = None,
        guidance: float | None = None,
        cases: Sequence[int] | None = None,
    ) -> list[Array]:
        """Return the first sample of every case, (N, D), at shares ``at`` of its steps (0: pure noise, 1: finished).

        Arguments, scale and errors as in ``sample``; the last of them equals ``sample(...)[:, 0]``.
        """
        weight, reverse = self._plan(sampler, steps, guidance)
        conditions = self._checked_conditions(condition, source, condition_mask)
        keys = range(len(conditions)) if cases is None else cases
        noise = noise_of_steps(KeyedNoise(seed, SAMPLING), reverse, keys, 1, self.target_scaler.dim, self.device)
        path = list(states(reverse, self.denoiser(conditions, 1, weight), noise))
        return [self.target_space(source).inverse(path[round(share * len(reverse))].cpu().numpy()) for share in at]

    def draw(
        self,
        conditions: Conditions,
        reverse: Sequence[ReverseStep],
        samples: int,
        noise: KeyedNoise,
        guidance: float,
        cases: Sequence[int],
        advance: Callable[[int], object] | None = None,
    ) -> Array:
        """Return standardised samples (cases, samples, D) by a plan of reverse steps.

        Args:
            conditions: the cases' conditions.
            reverse, samples, noise, cases: see ``samplers.draw``.
            guidance: weight w.
            advance: called at each step with the number of cases that took it.
        """

        def denoise_part(rows: slice) -> Denoise:
            denoise = self.denoiser(conditions.rows(rows), samples, guidance)
            if advance is None:
                return denoise

            def counted(x: Tensor, n: int) -> Tensor:
                advance(rows.stop - rows.start)
                return denoise(x, n)

            return counted

        return draw(denoise_part, reverse, cases, samples, self.target_scaler.dim, noise, self.device)

    def one_step(
        self,
        condition: Array,
        source: Source = "cxr",
        condition_mask: NDArray[np.bool_] | None = None,
        seed: int = 0,
        cases: Sequence[int] | None = None,
    ) -> Array:
        """Return x0hat at the last timestep, (N, D) in the CT embedding's own scale: the regression E[z_CT | z_CXR].

        One network call on pure noise. This is a mean, not a draw: it has less spread than real CT embeddings.

        Raises:
            BadInput: as in ``sample``.
        """
        conditions = self._checked_conditions(condition, source, condition_mask)
        keys = range(len(conditions)) if cases is None else cases
        noise = keyed_normal(KeyedNoise(seed, ONE_STEP), 0, keys, (self.target_scaler.dim,))
        denoise = self.denoiser(conditions, 1, self.config.process.guidance)
        predicted = denoise(torch.from_numpy(noise).to(self.device), self.schedule.timesteps)
        return self.target_space(source).inverse(predicted.cpu().numpy())

    def denoiser(self, conditions: Conditions, samples: int, guidance: float) -> Denoise:
        """Return (x (cases · samples, D), n) ↦ x0hat; see ``samplers.denoiser``."""
        table = self.variance
        share = None if table is None or table.share is None else table.network_share
        return denoiser(self.network, self.config.process, self.schedule, conditions, samples, guidance, share)

    def standardise_conditions(self, tokens: Array, mask: NDArray[np.bool_] | None, source: str) -> Conditions:
        """Return conditions (N, C, Dc), in their own scale, standardised (on the CPU)."""
        scaled = self.condition_scaler(source).forward(tokens)
        ridge = None
        if self.regressions:
            predicted = self.regressions[source](scaled, mask)
            ridge = torch.from_numpy(self.target_space(source).from_standardised(predicted))
        return Conditions(torch.from_numpy(scaled), None if mask is None else torch.from_numpy(mask), ridge)

    @property
    def regression_size(self) -> int:
        """How many numbers the regression of one source holds, beside the network's parameters."""
        kind = self.config.process.regression
        return coefficients(kind, self.network.condition_dim, self.network.target_dim)

    def caveats(self, guidance: float | None = None) -> list[str]:
        """Return what does not hold of samples drawn at this guidance weight, in words, to be written beside them."""
        weight = self.config.process.guidance if guidance is None else guidance
        caveats = []
        if weight != 1.0:
            caveats.append(
                f"guidance {weight:g}: the variance table and the calibration of the mean of the head are void "
                "(both hold at guidance 1)"
            )
        if self.config.objective.auxiliary_weights:
            terms = ", ".join(f"{name} {value:g}" for name, value in self.config.objective.auxiliary_weights.items())
            caveats.append(
                f"trained with {terms}: x0hat is no longer the posterior mean; read Brier score and calibration slope "
                "beside the AUC"
            )
        if self.config.process.prediction == "epsilon":
            caveats.append("prediction epsilon: the one-step output is next to the training mean, not the regression")
        if "checkpoint" in self.record:
            caveats.append(self.record["checkpoint"])
        found = self.record.get("validation", {})
        return [*caveats, *found.get("warnings", []), *found.get("notes", [])]

    def check_encoders(self, condition: str = "", target: str = "") -> None:
        """Refuse embeddings of another encoder than the prior was trained on; an unknown one ("") is not compared.

        Raises:
            BadInput: naming both.
        """
        for what, mine, other in zip(("condition", "target"), self.encoders, (condition, target), strict=True):
            if mine and other and mine != other:
                raise BadInput(
                    f"{what} encoder: '{other}' here, '{mine}' in this prior. They must be equal. "
                    f"Next: embed with '{mine}', or train a prior on '{other}'"
                )

    def condition_scaler(self, source: str) -> Standardiser:
        """Return the scaler of one source.

        Raises:
            BadInput: the prior never saw that source.
        """
        return choose("condition source", source, self.condition_scalers)

    def target_space(self, source: str) -> TargetSpace:
        """Return the units in which the targets of one source are noised."""
        return self.spaces.get(source, TargetSpace(self.target_scaler))

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> Prior:
        """Return a copy on a device, its weights in ``dtype`` (bfloat16 pays where matrix units have it)."""
        # Module.to changes the module itself: the prior at hand would lose its digits.
        return replace(self, network=copy.deepcopy(self.network).to(device, dtype))

    def save(self, folder: Path | str) -> None:
        """Write ``prior.safetensors``, then ``prior.json``, which marks completion, into ``folder``."""
        tensors: Tensors = {
            f"network.{k}": v.detach().float().cpu().numpy() for k, v in self.network.state_dict().items()
        }
        for name, scaler in {"target": self.target_scaler, **self.condition_scalers}.items():
            tensors |= {f"scaler.{name}.mean": scaler.mean, f"scaler.{name}.scale": scaler.scale}
        for name, fitted in self.regressions.items():
            tensors |= {f"regression.{name}.weights": fitted.weights, f"regression.{name}.offset": fitted.offset}
        for name, space in self.spaces.items():
            assert space.whitening is not None
            assert space.unwhitening is not None
            tensors |= {f"space.{name}.whitening": space.whitening, f"space.{name}.unwhitening": space.unwhitening}
        description = {
            "config": self.config,
            "condition_dim": self.network.condition_dim,
            "condition_tokens": len(self.network.slots),
            "target_dim": self.network.target_dim,
            "sources": sorted(self.condition_scalers),
            "regressions": {
                name: None if fitted.first_stage is None else vars(fitted.first_stage)
                for name, fitted in sorted(self.regressions.items())
            },
            "spaces": sorted(self.spaces),
            "encoders": list(self.encoders),
            "parameters": self.network.parameter_count(),
            "caveats": self.caveats(),
            "record": dict(self.record),
            "variance": None,
        }
        if self.variance is not None:
            table = self.variance
            tensors |= {"variance.nodes": table.nodes, "variance.error": table.error, "variance.spread": table.spread}
            if table.share is not None:
                tensors |= {"variance.share": table.share}
            description["variance"] = {
                "guidance": table.guidance,
                "weights": "ema",
                "schedule": self.config.process.schedule,
                "measured_on": "validation",
            }
        write_files(Path(folder), tensors, description)

    @classmethod
    def load(cls, folder: Path | str, device: str | torch.device = "cpu") -> Prior:
        """Return the prior saved in ``folder``; reads safetensors and JSON only, executes nothing.

        Raises:
            BadInput: no prior there, a damaged one, or one of another format.
        """
        folder = Path(folder)
        tensors, description = read_files(folder)
        config = parse_config(PriorConfig, description["config"], str(folder / DESCRIPTION))
        sizes = (description["condition_dim"], description["target_dim"], description["condition_tokens"])
        with torch.random.fork_rng(devices=[]):  # weights that are overwritten must not move the caller's stream
            network = new_network(config, *sizes)
        sources, regressions = description["sources"], description["regressions"]
        names = [f"network.{name}" for name in network.state_dict()]
        names += [f"scaler.{name}.{part}" for name in ("target", *sources) for part in ("mean", "scale")]
        names += [f"regression.{name}.{part}" for name in regressions for part in ("weights", "offset")]
        names += [f"space.{name}.{part}" for name in description["spaces"] for part in ("whitening", "unwhitening")]
        names += [f"variance.{part}" for part in ("nodes", "error", "spread")] if description["variance"] else []
        require(tensors, names, folder)
        prefix = "network."
        state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in tensors.items() if k.startswith(prefix)}
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise BadInput(f"{folder / WEIGHTS} does not fit its {DESCRIPTION}: {str(error)[:300]}") from error

        def parts(kind: str, name: str, *fields: str) -> list[NDArray[Any]]:
            return [tensors[f"{kind}.{name}.{part}"] for part in fields]

        def regression(name: str, taken_over: Mapping[str, Any] | None) -> Regression:
            weights, offset = parts("regression", name, "weights", "offset")
            if taken_over is None:
                return Regression(weights, offset)
            losses = {float(weight): loss for weight, loss in taken_over["losses"].items()}
            return Regression(weights, offset, StageWeight(taken_over["weight"], losses, taken_over["measured_on"]))

        variance = None
        if description["variance"]:
            table: list[NDArray[Any]] = [tensors[f"variance.{part}"] for part in ("nodes", "error", "spread")]
            share: NDArray[Any] | None = tensors.get("variance.share")
            variance = VarianceTable(table[0], table[1], table[2], description["variance"]["guidance"], share)
        units = Standardiser(*parts("scaler", "target", "mean", "scale"))
        return cls(
            config=config,
            network=network.eval().to(device),
            target_scaler=units,
            condition_scalers={name: Standardiser(*parts("scaler", name, "mean", "scale")) for name in sources},
            variance=variance,
            encoders=(description["encoders"][0], description["encoders"][1]),
            regressions={name: regression(name, taken_over) for name, taken_over in regressions.items()},
            record=description["record"],
            spaces={
                name: TargetSpace(units, *parts("space", name, "whitening", "unwhitening"))
                for name in description["spaces"]
            },
        )

    def _plan(
        self, sampler: SamplerName | SamplerConfig, steps: int, guidance: float | None
    ) -> tuple[float, list[ReverseStep]]:
        """Return the guidance weight and the reverse steps."""
        settings = sampler if isinstance(sampler, SamplerConfig) else named_sampler(sampler, steps)
        weight = self.config.process.guidance if guidance is None else guidance
        if weight != 1.0 and self.config.process.condition_dropout == 0.0:
            raise BadInput(
                f"guidance {weight:g}: this prior was trained without a null branch (condition_dropout 0). Allowed: 1. "
                "Next: train it with process.condition_dropout 0.1"
            )
        table = self._table_for(settings, weight)
        schedule = self.schedule
        if settings.trajectory == "optimal":
            trajectory = optimal_trajectory(schedule, self._require_table().scalar(schedule), settings.steps)
        elif settings.trajectory == "log_snr":
            trajectory = log_snr_trajectory(schedule, settings.steps)
        else:
            trajectory = even_trajectory(schedule.timesteps, settings.steps)
        variance = None if table is None else lambda n: table.at(schedule, n)
        return weight, plan(schedule, settings, trajectory, variance)

    def _require_table(self) -> VarianceTable:
        if self.variance is None:
            raise BadInput("this prior has no variance table. Allowed: ddpm_small, ddpm_big, ddim, dpm_solver.")
        return self.variance

    def _table_for(self, settings: SamplerConfig, guidance: float) -> VarianceTable | None:
        if settings.trajectory != "optimal" and not settings.variance.startswith("analytic"):
            return None
        table = self._require_table()
        if table.guidance != guidance:
            raise BadInput(
                f"guidance {guidance} voids the variance table, which holds at {table.guidance}. "
                f"Allowed: guidance {table.guidance}, or a sampler without the table (ddpm_small, ddim, dpm_solver)."
            )
        return table

    def _checked_conditions(self, condition: Array, source: str, mask: NDArray[np.bool_] | None) -> Conditions:
        tokens = condition if condition.ndim == 3 else condition[:, None]
        expected, most = self.network.condition_dim, len(self.network.slots)
        if tokens.ndim != 3 or tokens.shape[-1] != expected or tokens.shape[1] > most:
            raise BadInput(
                f"condition embeddings of shape {condition.shape}. Allowed: (N, {expected}), or (N, C, {expected}) "
                f"with C up to {most}, as in training."
            )
        if not np.isfinite(tokens).all():
            raise BadInput("condition embeddings hold a number that is not finite. Next: embed these exams again")
        return self.standardise_conditions(tokens, mask, source).to(self.device, self.network.query.dtype)


def new_network(config: PriorConfig, condition_dim: int, target_dim: int, condition_tokens: int) -> PriorNetwork:
    """Return an untrained network for these settings and embedding sizes (weights from torch's global generator)."""
    return PriorNetwork(
        config.network.size,
        condition_dim,
        target_dim,
        condition_tokens,
        config.process.timesteps,
        null_target=config.process.null_branch == "drops_both",
    )
