"""What the three schedulers share: the sampling grid, noise drawing and step outputs over `diffusers_sde.sde`."""

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from ..loading import CheckedConfig, check_config
from ..sde import SDE, make_corrector, make_predictor
from ..sde.arguments import whole_number
from .config import TravellingConfig
from .conventions import NetworkConventions


@dataclass
class ScoreSdeSchedulerOutput(BaseOutput):
    """Result of one predictor or corrector step.

    Args:
        prev_sample (`torch.Tensor`): The next state, of the shape and dtype of the given one.
        prev_sample_mean (`torch.Tensor`): The same step without noise.
    """

    prev_sample: torch.Tensor
    prev_sample_mean: torch.Tensor


class ScoreSdeSchedulerBase(TravellingConfig, CheckedConfig, NetworkConventions):
    """Common part of the schedulers; concrete classes add diffusers' mixins, the config and the SDE.

    The time grid is that of the official sampler: `timesteps` runs evenly from 1 to `sampling_eps` in as many points
    as there are steps; `times` are the same as float64 on the host. What a predictor's discretisation sees are the
    times of `Predictor.times`.
    """

    order = 1
    _compatibles: list[str] = []

    def _setup(self, sde: SDE) -> None:
        """Check config and SDE, and lay a grid of `num_train_timesteps`; the last line of every `__init__`."""
        config = self.config
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        check_config(type(self), settings, type(self).__name__)
        if not 0 <= config.sampling_eps < 1:
            raise ValueError(f"`sampling_eps` is {config.sampling_eps}; it is a time, at least 0 and below 1.")
        sde.check()
        self.sde = sde
        self.predictor = make_predictor(config.predictor, sde, config.probability_flow)
        self.corrector = make_corrector(config.corrector, sde, config.snr, config.corrector_norm)
        self.init_noise_sigma = sde.prior_std
        self._lay_grid(config.num_train_timesteps, device=None)
        self._register_process()

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [cls]  # a network fits the SDE it was trained for

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def step_index(self) -> int | None:
        """Number of predictor steps made since `set_timesteps`; `None` before the first step."""
        return self._step_index

    @property
    def num_correct_steps(self) -> int:
        """Corrector steps per predictor step: `correct_steps`, or 0 without a corrector."""
        return self.config.correct_steps if self.corrector.needs_score else 0

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay the sampling grid anew.

        Args:
            num_inference_steps (`int`): Number of predictor steps, at least 1.
            device (`str` or `torch.device`, *optional*): Where `timesteps` shall live.

        Raises:
            ValueError: if the number is not allowed, or too small for the discretisation of VP.
        """
        num_inference_steps = whole_number("num_inference_steps", num_inference_steps)
        self._lay_grid(num_inference_steps, device)
        if self.predictor.uses_discretization:
            self.sde.discretize(*self._predictor_times)  # refuses a grid that is too coarse, before any work
        if self.num_correct_steps:
            self.sde.discretize(*self._corrector_times)

    def _lay_grid(self, num_steps: int, device: str | torch.device | None) -> None:
        self.num_inference_steps = num_steps
        timesteps = torch.linspace(1.0, self.config.sampling_eps, num_steps, dtype=torch.float32)
        self.timesteps = timesteps.to(device)
        # Coefficients are taken from host scalars in float64: no small kernels, no synchronisation.
        self.times = timesteps.double()
        places = torch.linspace(1.0, 0.0, num_steps, dtype=torch.float64)
        self._predictor_times = self.predictor.times(places, self.times, num_steps)
        self._corrector_times = self.corrector.times(places, self.times, num_steps)
        self._step_index: int | None = None

    def index_for_timestep(self, timestep: float | torch.Tensor) -> int:
        """Place of `timestep` in `timesteps`; a time off the grid counts as the nearest on it."""
        return int((self.times - float(timestep)).abs().argmin())

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at a later step of the grid, as when a loop begins at `timesteps[begin_index]`.

        Raises:
            ValueError: if the grid has no such step.
        """
        if not 0 <= begin_index < self.num_inference_steps:
            raise ValueError(
                f"`begin_index` is {begin_index}; the grid has steps 0 to {self.num_inference_steps - 1}."
            )
        self._step_index = begin_index

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """The sample as it is: these networks take the state itself."""
        return sample

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | float
    ) -> torch.Tensor:
        """alpha(t) x_0 + sigma(t) noise for times in [0, 1] of shape () or (B,); dtype of `original_samples`.

        Raises:
            ValueError: for other times, such as the integer labels of discrete schedulers.
        """
        t = torch.as_tensor(timesteps, dtype=torch.float32, device=original_samples.device)
        if bool(((t < 0) | (t > 1)).any()):
            raise ValueError(
                f"`timesteps` are in [{float(t.min()):.4g}, {float(t.max()):.4g}]; times of this scheduler lie in "
                "[0, 1], as in `timesteps`."
            )
        dtype = torch.promote_types(original_samples.dtype, torch.float32)
        return self.sde.perturb(original_samples.to(dtype), noise.to(dtype), t).to(original_samples.dtype)

    def step_correct(
        self,
        model_output: torch.Tensor | None,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> ScoreSdeSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One corrector step at the current time; comes before `step_pred` of the same time.

        Args:
            model_output (`torch.Tensor`): Output of the network for `sample`; `None` will do for corrector "none".
            sample (`torch.Tensor`): State x of shape (B, ...).
            generator (`torch.Generator` or a list of them, *optional*): Source of the noise.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreSdeSchedulerOutput`.

        Returns:
            `ScoreSdeSchedulerOutput` or a tuple of the next state and its mean.
        """
        index = self._current_index(None)
        t, s = (times[index] for times in self._corrector_times)
        draws = self.corrector.draws_noise
        return self._update(self.corrector, t, s, index, model_output, sample, generator, draws, return_dict)

    def step_pred(
        self,
        model_output: torch.Tensor | None,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> ScoreSdeSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One predictor step to the next time of the grid; the last one is free of noise with `denoise_final`.

        Args:
            model_output (`torch.Tensor`):
                Output of the network for `sample` at `timestep`; `None` will do for predictor "none".
            timestep (`float` or `torch.Tensor`):
                Current time. As in diffusers' other schedulers it places the first step; the rest follow the grid.
            sample (`torch.Tensor`): State x of shape (B, ...).
            generator (`torch.Generator` or a list of them, *optional*): Source of the noise.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreSdeSchedulerOutput`.

        Returns:
            `ScoreSdeSchedulerOutput` or a tuple of the next state and its mean.
        """
        index = self._current_index(timestep)
        t, s = (times[index] for times in self._predictor_times)
        last = index == self.num_inference_steps - 1 and self.config.denoise_final
        draws = self.predictor.draws_noise and not last
        output = self._update(self.predictor, t, s, index, model_output, sample, generator, draws, return_dict)
        self._step_index = index + 1
        return output

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> ScoreSdeSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The plain diffusers step: `step_pred`."""
        return self.step_pred(model_output, timestep, sample, generator, return_dict)

    def _current_index(self, timestep: float | torch.Tensor | None) -> int:
        if self._step_index is None:
            self._step_index = 0 if timestep is None else self.index_for_timestep(timestep)
        if self._step_index >= self.num_inference_steps:
            raise ValueError(
                f"all {self.num_inference_steps} steps of the grid are made; call `set_timesteps` to sample again."
            )
        return self._step_index

    def _update(self, part, t, s, index, model_output, sample, generator, draws, return_dict):
        """Apply a predictor or corrector in float32 or better, with noise drawn if `draws`."""
        if model_output is not None and model_output.shape != sample.shape:
            raise ValueError(
                f"`model_output` has shape {tuple(model_output.shape)}, `sample` {tuple(sample.shape)}; a score has "
                "the shape of its sample."
            )
        if isinstance(generator, list) and len(generator) not in (1, len(sample)):
            raise ValueError(
                f"`generator` is a list of {len(generator)} for a batch of {len(sample)}; give one per sample."
            )
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        score = self.step_score(model_output, x, self.times[index]) if part.needs_score else None
        noise = randn_tensor(x.shape, generator, x.device, x.dtype) if draws else torch.zeros_like(x)
        x_next, x_mean = part.update(x, t, s, score, noise)
        x_next, x_mean = x_next.to(sample.dtype), x_mean.to(sample.dtype)
        return ScoreSdeSchedulerOutput(x_next, x_mean) if return_dict else (x_next, x_mean)
