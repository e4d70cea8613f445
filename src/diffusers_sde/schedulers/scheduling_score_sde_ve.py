"""Scheduler of the variance-exploding SDE."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..sde import VESDE
from ..sde.broadcasting import expand_to
from .base import ScoreSdeSchedulerBase


class ScoreSdeVeScheduler(ScoreSdeSchedulerBase, SchedulerMixin, ConfigMixin):
    r"""Predictor-Corrector scheduler of the VE SDE; its networks predict the score.

    The first six keys and their defaults are those of diffusers' class of the same name, so its configs load.

    Args:
        num_train_timesteps (`int`, *optional*, defaults to 2000):
            Length of the label grid of discretely trained networks; number of sampling steps if none are set.
        snr (`float`, *optional*, defaults to 0.15): Signal-to-noise ratio of the corrector's steps.
        sigma_min (`float`, *optional*, defaults to 0.01): Noise at t = 0, in units of the data.
        sigma_max (`float`, *optional*, defaults to 1348.0): Noise at t = 1.
        sampling_eps (`float`, *optional*, defaults to 1e-5): Time at which sampling ends.
        correct_steps (`int`, *optional*, defaults to 1): Corrector steps per predictor step.
        predictor (`str`, *optional*, defaults to `"reverse_diffusion"`):
            `"reverse_diffusion"`, `"euler_maruyama"`, `"ancestral_sampling"`, `"none"`, or a registered name.
        corrector (`str`, *optional*, defaults to `"langevin"`): `"langevin"`, `"ald"`, `"none"`, or a registered name.
        probability_flow (`bool`, *optional*, defaults to `False`):
            Whether the predictor follows the probability-flow ODE.
        continuous (`bool`, *optional*, defaults to `True`):
            Whether the network is conditioned on sigma, or on the label of a grid from `sigma_max` down.
        denoise_final (`bool`, *optional*, defaults to `True`): Whether the last step is made without noise.
        corrector_norm (`str`, *optional*, defaults to `"sample"`):
            `"sample"`: each image has its own corrector step size and does not depend on its batch;
            `"batch"`: the batch means of the official code.

    Reference: Song et al. 2021, arXiv:2011.13456, Algorithm 2 and 4.
    """

    prediction = "score"

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 2000,
        snr: float = 0.15,
        sigma_min: float = 0.01,
        sigma_max: float = 1348.0,
        sampling_eps: float = 1e-5,
        correct_steps: int = 1,
        predictor: str = "reverse_diffusion",
        corrector: str = "langevin",
        probability_flow: bool = False,
        continuous: bool = True,
        denoise_final: bool = True,
        corrector_norm: str = "sample",
    ):
        self._setup(VESDE(sigma_min, sigma_max))

    def model_timestep(self, timestep: float | torch.Tensor) -> torch.Tensor:
        """sigma(t) for continuously trained networks, else the label, counted from the highest noise; same shape."""
        t = torch.as_tensor(timestep)
        if self.config.continuous:
            return self.sde.sigma(t)
        return ((1 - t) * (self.config.num_train_timesteps - 1)).round().long()

    def label_times(self) -> torch.Tensor:
        """Times of the geometric grid from `sigma_max` (label 0) down to `sigma_min`; float64 of shape (N,)."""
        return torch.linspace(1, 0, self.config.num_train_timesteps, dtype=torch.float64)

    def _output_at(self, evaluate, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Whole labels for a discrete network (SMLD): sigma score is interpolated between the two neighbours."""
        if self.config.continuous:
            return super()._output_at(evaluate, x, t)
        last = self.config.num_train_timesteps - 1
        place = (1 - t) * last
        below = place.floor().clamp(0, max(last - 1, 0))
        # Both neighbours in one batch.
        labels = torch.cat([below, (below + 1).clamp(max=last)])
        output = evaluate(torch.cat([x, x]), labels.long())
        low, high = (expand_to(self.sde.sigma(1 - labels / max(last, 1)), output) * output).chunk(2)
        return torch.lerp(low, high, expand_to(place - below, low)) / expand_to(self.sde.sigma(t), low)
