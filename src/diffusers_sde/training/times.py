r"""At which times a score network is trained, and with which weights.

Uniform times with the weight lambda(t) = sigma(t)^2 of denoising score matching are the paper's choice. With
lambda(t) = g(t)^2 the loss bounds the negative log-likelihood, and what it weighs is

    int_{t_min}^1 g^2 / sigma^2 E |sigma s(x_t, t) + noise|^2 dt.

The factor g^2 / sigma^2 = - d log_snr / dt grows like 1 / t, which uniform times turn into rare, large losses. Times
uniform in log_snr have a density proportional to that factor; what is left of it is the constant
log_snr(t_min) - log_snr(1), whatever the SDE.

Networks on a grid of labels (SMLD, DDPM) are trained at the times at which the SDE has the noise levels of the labels,
so that their losses are the continuous one at these times.

Reference: Song et al. 2021, arXiv:2011.13456, Eq. (1), (3) and (7); Song, Durkan, Murray & Ermon 2021,
arXiv:2101.09258, Sec. 4.2 (importance sampling).
"""

from dataclasses import dataclass

import torch

from ..sde.precision import in_double

WEIGHTINGS = ("score", "likelihood")
TIME_SAMPLINGS = ("uniform", "importance")


@dataclass(frozen=True)
class NoiseLevels:
    """The noise levels of a batch.

    Attributes:
        t: times in (0, 1], float32, shape (B,).
        timestep: what the network is conditioned on there, shape (B,).
        weight: by which the losses |sigma s + noise|^2 are multiplied, shape (B,); `None` for 1.
    """

    t: torch.Tensor
    timestep: torch.Tensor
    weight: torch.Tensor | None = None


class TrainingTimes:
    """Turns uniform numbers into noise levels.

    Args:
        scheduler: of the network; `continuous` in its config decides between times and labels.
        t_min: smallest time, in (0, 1); without meaning for labels.
        weighting: "score" for lambda = sigma^2, "likelihood" for lambda = g^2.
        time_sampling: "uniform", or "importance" for times uniform in log_snr, which goes with "likelihood".

    Raises:
        ValueError: if a value is unknown, or the combination has no meaning.
    """

    def __init__(self, scheduler, *, t_min: float = 1e-5, weighting: str = "score", time_sampling: str = "uniform"):
        for name, value, allowed in (
            ("weighting", weighting, WEIGHTINGS),
            ("time_sampling", time_sampling, TIME_SAMPLINGS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed are {', '.join(map(repr, allowed))}.")
        if time_sampling == "importance" and weighting != "likelihood":
            raise ValueError(
                f"time_sampling 'importance' is made for weighting 'likelihood'; weighting is {weighting!r}. Give "
                "both, or leave the times uniform."
            )
        self.scheduler = scheduler
        self.continuous = scheduler.config.continuous
        if not self.continuous and weighting != "score":
            raise ValueError(
                f"weighting {weighting!r} is an integral over continuous times; networks on a grid of labels are "
                "trained with 'score'. Train with continuous times, or leave the weighting out."
            )
        self.t_min = t_min
        self.weighting = weighting
        self.time_sampling = time_sampling
        self._label_times = None if self.continuous else scheduler.label_times().float()

    def __call__(self, uniform: torch.Tensor) -> NoiseLevels:
        """Noise levels from numbers in [0, 1), float32 of shape (B,)."""
        if not self.continuous:
            return self._at_labels(uniform)
        sde = self.scheduler.sde
        if self.time_sampling == "importance":
            place = in_double(uniform)
            low, high = sde.log_snr(torch.tensor([1.0, self.t_min], dtype=torch.float64, device=place.device))
            t = sde.time_of_log_snr(torch.lerp(low, high, place)).float().to(uniform.device).clamp(self.t_min, 1)
            weight = ((high - low) / (1 - self.t_min)).float().to(t.device).expand_as(t)
        else:
            t = uniform * (1 - self.t_min) + self.t_min
            weight = sde.diffusion(t).square() / sde.sigma(t).square() if self.weighting == "likelihood" else None
        return NoiseLevels(t, self.scheduler.model_timestep(t), weight)

    def _at_labels(self, uniform: torch.Tensor) -> NoiseLevels:
        self._label_times = self._label_times.to(uniform.device)
        count = len(self._label_times)
        labels = (uniform * count).long().clamp(max=count - 1)
        return NoiseLevels(self._label_times[labels], labels)
