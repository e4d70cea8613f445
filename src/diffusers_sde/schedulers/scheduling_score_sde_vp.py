"""Scheduler of the variance-preserving SDE."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..loading.configs import BETAS, check_config
from ..sde import VPSDE
from ..sde.precision import in_double
from .base import ScoreSdeSchedulerBase
from .linear_betas import vp_settings


class ScoreSdeVpScheduler(ScoreSdeSchedulerBase, SchedulerMixin, ConfigMixin):
    r"""Predictor-Corrector scheduler of the VP SDE; its networks predict epsilon.

    Args:
        num_train_timesteps (`int`, *optional*, defaults to 1000):
            Length of the label grid of discretely trained networks; number of sampling steps if none are set.
        snr (`float`, *optional*, defaults to 0.16): Signal-to-noise ratio of the corrector's steps.
        beta_min (`float`, *optional*, defaults to 0.1): beta(0).
        beta_max (`float`, *optional*, defaults to 20.0): beta(1).
        sampling_eps (`float`, *optional*, defaults to 1e-3): Time at which sampling ends.
        correct_steps (`int`, *optional*, defaults to 1): Corrector steps per predictor step.
        predictor (`str`, *optional*, defaults to `"euler_maruyama"`):
            `"euler_maruyama"`, `"reverse_diffusion"`, `"ancestral_sampling"`, `"none"`, or a registered name.
        corrector (`str`, *optional*, defaults to `"none"`): `"langevin"`, `"ald"`, `"none"`, or a registered name.
        probability_flow (`bool`, *optional*, defaults to `False`):
            Whether the predictor follows the probability-flow ODE.
        continuous (`bool`, *optional*, defaults to `True`):
            Whether the network was trained on continuous time, and is conditioned on 999 t; otherwise on the label of
            the grid of `num_train_timesteps` (DDPM).
        denoise_final (`bool`, *optional*, defaults to `True`): Whether the last step is made without noise.
        corrector_norm (`str`, *optional*, defaults to `"sample"`):
            `"sample"`: each image has its own corrector step size and does not depend on its batch;
            `"batch"`: the batch means of the official code.

    Reference: Song et al. 2021, arXiv:2011.13456, Algorithm 3 and 5.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        snr: float = 0.16,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        sampling_eps: float = 1e-3,
        correct_steps: int = 1,
        predictor: str = "euler_maruyama",
        corrector: str = "none",
        probability_flow: bool = False,
        continuous: bool = True,
        denoise_final: bool = True,
        corrector_norm: str = "sample",
    ):
        self._setup(VPSDE(beta_min, beta_max))
        self._chain_sigmas = None if continuous else chain_sigmas(beta_min, beta_max, num_train_timesteps)
        self._label_times = None if continuous else self.label_times()

    @classmethod
    def _settings_of_chain(cls, config, name: str) -> dict:
        check_config(cls, {key: config[key] for key in config if key in BETAS}, name)
        return vp_settings(config, name)

    def _linear_betas(self) -> dict | None:
        """The chain of a discrete network; for a continuous one that whose labels are 999 t, to half a label."""
        config = self.config
        length = config.num_train_timesteps
        if config.beta_max >= length or (config.continuous and (length != 1000 or config.beta_max > 0.05 * length)):
            return None
        ends = {"beta_start": config.beta_min / length, "beta_end": config.beta_max / length}
        return {**ends, "beta_schedule": "linear", "trained_betas": None}

    def output_sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        """sigma(t); for discretely trained networks that of the DDPM chain at the label below."""
        if self._chain_sigmas is None:
            return super().output_sigma(timestep)
        label = (timestep * (self.config.num_train_timesteps - 1)).long()
        return self._chain_sigmas.to(label.device)[label]

    def label_times(self) -> torch.Tensor:
        """Times at which the SDE has the noise levels of the DDPM chain, increasing; float64 of shape (N,).

        A short chain has more noise at its end than the SDE at t = 1, so that its last times lie beyond 1.
        """
        config = self.config
        variance = chain_sigmas(config.beta_min, config.beta_max, config.num_train_timesteps).square()
        return self.sde.time_of_integral_of_beta(-torch.log1p(-variance))

    def first_time(self) -> float:
        """Time of label 0 for discretely trained networks, else 1e-5."""
        return super().first_time() if self._label_times is None else float(self._label_times[0])

    def _output_at(self, evaluate, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """A discrete network (DDPM) gets the fraction of a label at which the chain has the noise level of t."""
        if self._label_times is None:
            return super()._output_at(evaluate, x, t)
        time = in_double(t).contiguous()
        grid = self._label_times.to(time.device)
        above = torch.searchsorted(grid, time).clamp(1, len(grid) - 1)
        fraction = (time - grid[above - 1]) / (grid[above] - grid[above - 1])
        return evaluate(x, (above - 1 + fraction).clamp(0, len(grid) - 1).to(t))


def chain_sigmas(beta_min: float, beta_max: float, num_train_timesteps: int) -> torch.Tensor:
    """Noise levels sqrt(1 - prod (1 - beta_i)) of the DDPM chain of that length; float64 of shape (N,)."""
    betas = torch.linspace(beta_min, beta_max, num_train_timesteps, dtype=torch.float64) / num_train_timesteps
    return (-torch.expm1(torch.log1p(-betas).cumsum(0))).sqrt()
