"""A trained prior: sample CT embeddings for radiograph embeddings, save, load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from embedprior.config import parse_config
from embedprior.errors import BadInput, choose
from embedprior.prior.config import PriorConfig, SamplerConfig, SamplerName, Source, named_sampler
from embedprior.prior.diffusion import Schedule, make_schedule, to_x0
from embedprior.prior.network import Prefix, PriorNetwork
from embedprior.prior.noise import ONE_STEP, SAMPLING, KeyedNoise, keyed_normal
from embedprior.prior.sampling import even_trajectory, log_snr_trajectory, optimal_trajectory, plan, run
from embedprior.prior.scaling import Standardiser
from embedprior.prior.variance import VarianceTable
from embedprior.runs import read_json, write_json

FORMAT = 1
WEIGHTS, DESCRIPTION = "prior.safetensors", "prior.json"
Array = NDArray[np.float32]


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
    """

    config: PriorConfig
    network: PriorNetwork
    target_scaler: Standardiser
    condition_scalers: Mapping[str, Standardiser]
    variance: VarianceTable | None
    encoders: tuple[str, str] = ("", "")

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
    ) -> Array:
        """Return posterior samples (N, samples, D) in the CT embedding's own scale.

        Sample m of case i depends on (seed, i, m) and its condition only, not on the other cases.

        Args:
            condition: (N, Dc) or (N, C, Dc), in its own scale.
            samples: M per case, drawn in one batch; the condition is encoded once.
            sampler: a short name, used with ``steps``, or full settings, which carry their own steps.
            steps: network calls per sample.
            seed: of the noise.
            source: what the condition is; picks its scaler.
            condition_mask: (N, C), True where a condition token is real.
            guidance: weight w; None is the one trained for. The variance table holds for that one alone.

        Raises:
            BadInput: wrong dimension, unknown source or sampler, more steps than timesteps, or an analytic variance
                with a guidance weight that it was not measured with.
        """
        settings = sampler if isinstance(sampler, SamplerConfig) else named_sampler(sampler, steps)
        weight = self.config.process.guidance if guidance is None else guidance
        table = self._table_for(settings, weight)
        schedule = self.schedule
        if settings.trajectory == "optimal":
            trajectory = optimal_trajectory(schedule, self._require_table().scalar(schedule), settings.steps)
        elif settings.trajectory == "log_snr":
            trajectory = log_snr_trajectory(schedule, settings.steps)
        else:
            trajectory = even_trajectory(schedule.timesteps, settings.steps)
        reverse = plan(schedule, settings, trajectory, None if table is None else lambda n: table.at(schedule, n))
        tokens, mask = self._prepare(condition, source, condition_mask)
        dim = self.target_scaler.dim
        draws = 1 + (len(reverse) if any(step.sigma.any() for step in reverse) else 0)
        # Noise of a whole trajectory is drawn ahead: at most 128 MB of it at a time.
        cases = max(1, 2**25 // (draws * dim * samples))
        keyed = KeyedNoise(seed, SAMPLING)
        out = np.empty((len(tokens), samples, dim), dtype=np.float32)
        for start in range(0, len(tokens), cases):
            rows = range(start, min(start + cases, len(tokens)))
            noise = torch.from_numpy(
                np.concatenate([keyed_normal(keyed, m, rows, (draws, dim)) for m in range(samples)])
            ).view(samples, len(rows), draws, dim).transpose(0, 1).flatten(0, 1).to(self.device)
            part = slice(rows.start, rows.stop)
            denoise = self.denoiser(tokens[part], None if mask is None else mask[part], samples, weight)
            drawn = run(reverse, denoise, lambda k, noise=noise: noise[:, k])  # type: ignore[misc]
            out[part] = drawn.cpu().numpy().reshape(len(rows), samples, dim)
        return self.target_scaler.inverse(out)

    def one_step(
        self,
        condition: Array,
        source: Source = "cxr",
        condition_mask: NDArray[np.bool_] | None = None,
        seed: int = 0,
    ) -> Array:
        """Return x0hat at the last timestep, (N, D) in the CT embedding's own scale: the regression E[z_CT | z_CXR].

        One network call on pure noise. This is a mean, not a draw: it has less spread than real CT embeddings.

        Raises:
            BadInput: as in ``sample``.
        """
        tokens, mask = self._prepare(condition, source, condition_mask)
        shape = (self.target_scaler.dim,)
        noise = keyed_normal(KeyedNoise(seed, ONE_STEP), 0, range(len(tokens)), shape)
        denoise = self.denoiser(tokens, mask, 1, self.config.process.guidance)
        predicted = denoise(torch.from_numpy(noise).to(self.device), self.schedule.timesteps)
        return self.target_scaler.inverse(predicted.cpu().numpy())

    def denoiser(
        self, tokens: Tensor, mask: Tensor | None, samples: int, guidance: float
    ) -> Callable[[Tensor, int], Tensor]:
        """Return (x (cases · samples, D), n) ↦ x0hat, float32, with the conditions encoded once.

        Args:
            tokens: (cases, C, Dc) standardised condition tokens.
            mask: (cases, C) or None.
            samples: rows per case, next to each other.
            guidance: w in null + w · (conditional - null).
        """
        network, process, schedule = self.network, self.config.process, self.schedule
        with torch.no_grad():
            prefix = network.encode(tokens, mask).repeat(samples)
            dropped = torch.ones(len(tokens), dtype=torch.bool, device=tokens.device)
            null = network.encode(tokens, mask, dropped) if guidance != 1.0 else None
        if null is not None:
            # Without condition and target the null branch knows only the timestep: one row serves all.
            null = null.rows(0, 1) if process.null == "both" else null.repeat(samples)

        def call(prefix: Prefix, x: Tensor, n: int, drop_target: bool) -> Tensor:
            drop = torch.ones(len(x), dtype=torch.bool, device=x.device) if drop_target else None
            clock = torch.full((len(x),), n, device=x.device)
            return network.step(prefix, x.to(network.query.dtype), clock, drop).float()

        @torch.no_grad()
        def denoise(x: Tensor, n: int) -> Tensor:
            output = call(prefix, x, n, drop_target=False)
            if null is not None:
                both = process.null == "both"
                base = call(null, x[:1] if both else x, n, drop_target=both)
                output = base + guidance * (output - base)
            return to_x0(schedule, process.prediction, output, x, torch.full((len(x),), n))

        return denoise

    def condition_scaler(self, source: str) -> Standardiser:
        """Return the scaler of one source.

        Raises:
            BadInput: the prior never saw that source.
        """
        return choose("condition source", source, self.condition_scalers)

    def to(self, device: str | torch.device, dtype: torch.dtype = torch.float32) -> Prior:
        """Return the prior on a device, its weights in ``dtype`` (bfloat16 pays where matrix units have it)."""
        return replace(self, network=self.network.to(device, dtype))

    def save(self, folder: Path) -> None:
        """Write ``prior.safetensors``, then ``prior.json``, which marks completion, into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors: dict[str, NDArray[np.generic]] = {
            f"network.{name}": value.detach().float().cpu().numpy() for name, value in self.network.state_dict().items()
        }
        for name, scaler in {"target": self.target_scaler, **self.condition_scalers}.items():
            tensors |= {f"scaler.{name}.mean": scaler.mean, f"scaler.{name}.scale": scaler.scale}
        description = {
            "format": FORMAT,
            "config": self.config,
            "condition_dim": self.network.condition_dim,
            "condition_tokens": len(self.network.slots),
            "target_dim": self.network.target_dim,
            "sources": sorted(self.condition_scalers),
            "encoders": list(self.encoders),
            "parameters": self.network.parameter_count(),
            "variance": None,
        }
        if self.variance is not None:
            table = self.variance
            tensors |= {"variance.nodes": table.nodes, "variance.error": table.error, "variance.spread": table.spread}
            description["variance"] = {
                "guidance": table.guidance,
                "weights": "ema",
                "schedule": self.config.process.schedule,
                "measured_on": "validation",
            }
        temporary = folder / f".{WEIGHTS}.tmp"
        save_file(tensors, temporary)
        temporary.replace(folder / WEIGHTS)
        write_json(folder / DESCRIPTION, description)

    @classmethod
    def load(cls, folder: Path | str, device: str | torch.device = "cpu") -> Prior:
        """Return the prior saved in ``folder``; reads safetensors and JSON only, executes nothing.

        Raises:
            BadInput: no prior there, a damaged one, or one of another format.
        """
        folder = Path(folder)
        if not (folder / DESCRIPTION).is_file():
            raise BadInput(f"{folder} holds no trained prior ({DESCRIPTION} is missing). Next: train_prior.py")
        description = read_json(folder / DESCRIPTION)
        if description.get("format") != FORMAT:
            raise BadInput(f"{folder}: prior format {description.get('format')}. Allowed: {FORMAT}.")
        config = parse_config(PriorConfig, description["config"], str(folder / DESCRIPTION))
        try:
            tensors = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{folder / WEIGHTS} can't be read: {error}") from error
        network = new_network(
            config, description["condition_dim"], description["target_dim"], description["condition_tokens"]
        )
        prefix = "network."
        state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in tensors.items() if k.startswith(prefix)}
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise BadInput(f"{folder / WEIGHTS} does not fit its {DESCRIPTION}: {str(error)[:300]}") from error

        def scaler(name: str) -> Standardiser:
            return Standardiser(tensors[f"scaler.{name}.mean"], tensors[f"scaler.{name}.scale"])

        table = description["variance"]
        return cls(
            config=config,
            network=network.eval().to(device),
            target_scaler=scaler("target"),
            condition_scalers={name: scaler(name) for name in description["sources"]},
            variance=None
            if table is None
            else VarianceTable(
                tensors["variance.nodes"], tensors["variance.error"], tensors["variance.spread"], table["guidance"]
            ),
            encoders=(description["encoders"][0], description["encoders"][1]),
        )

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
                f"guidance {guidance} voids the variance table, which was measured at {table.guidance}. "
                f"Allowed: guidance {table.guidance}, or a sampler without the table (ddpm_small, ddim, dpm_solver)."
            )
        return table

    def _prepare(
        self, condition: Array, source: str, mask: NDArray[np.bool_] | None
    ) -> tuple[Tensor, Tensor | None]:
        tokens = condition if condition.ndim == 3 else condition[:, None]
        expected, most = self.network.condition_dim, len(self.network.slots)
        if tokens.ndim != 3 or tokens.shape[-1] != expected or tokens.shape[1] > most:
            raise BadInput(
                f"condition embeddings of shape {condition.shape}. Allowed: (N, {expected}), or (N, C, {expected}) "
                f"with C up to {most}, as in training."
            )
        if not np.isfinite(tokens).all():
            raise BadInput("condition embeddings hold a number that is not finite. Next: embed these exams again")
        scaled = torch.from_numpy(self.condition_scaler(source).forward(tokens))
        scaled = scaled.to(self.device, self.network.query.dtype)
        return scaled, None if mask is None else torch.from_numpy(mask).to(self.device)


def new_network(config: PriorConfig, condition_dim: int, target_dim: int, condition_tokens: int) -> PriorNetwork:
    """Return an untrained network for these settings and embedding sizes (weights from torch's global generator)."""
    return PriorNetwork(
        config.network.size,
        condition_dim,
        target_dim,
        condition_tokens,
        config.process.timesteps,
        null_target=config.process.null == "both",
    )
