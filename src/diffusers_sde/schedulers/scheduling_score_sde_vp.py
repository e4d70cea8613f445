"""Scheduler of the variance-preserving SDE."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..loading.configs import BETAS, check_config
from ..sde import VPSDE
from .base import EpsilonSchedulerMixin, ScoreSdeSchedulerBase, discrete_vp_sigmas
from .linear_betas import vp_settings


class ScoreSdeVpScheduler(EpsilonSchedulerMixin, ScoreSdeSchedulerBase, SchedulerMixin, ConfigMixin):
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
        self._discrete_sigmas = None if continuous else discrete_vp_sigmas(beta_min, beta_max, num_train_timesteps)

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        """A scheduler from a config: one of this class, or of diffusers' `DDPMScheduler` and its like.

        Linear betas of the latter become `beta_min = beta_start * N`, `beta_max = beta_end * N`, `continuous = False`.

        Args:
            config: mapping of settings.
            return_unused_kwargs: whether to return those of `kwargs` that are no settings, too.
            **kwargs: settings that replace those of `config`.

        Raises:
            ValueError: if `config` has another schedule of betas, or its network predicts another thing than epsilon.
        """
        if config is not None and "beta_start" in config:
            check_config(cls, {key: config[key] for key in config if key in BETAS}, cls.__name__)
            config = vp_settings(config, config.get("_class_name", "the scheduler"))
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def output_sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        """sigma(t); for discretely trained networks that of the DDPM chain at the label below."""
        if self._discrete_sigmas is None:
            return super().output_sigma(timestep)
        label = (timestep * (self.config.num_train_timesteps - 1)).long()
        return self._discrete_sigmas.to(label.device)[label]
