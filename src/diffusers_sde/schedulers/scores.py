r"""The score function of a network, by the conventions of the scheduler that it was trained for.

Networks trained on a grid of labels are read between its points as well, so that the score is continuous in time, as
solvers of differential equations need it:

- VP (DDPM): the label is the fraction of a label at which the chain has the noise level of t, and
  score = -epsilon / sigma(t). The official samplers instead divide by the noise level of the label below.
- VE (SMLD): labels are whole numbers to the network; epsilon = -sigma score is interpolated linearly between the two
  neighbours, evaluated in one batch.
"""

from collections.abc import Callable

import torch

from ..sde.broadcasting import expand_to
from ..sde.precision import in_double
from .scheduling_score_sde_vp import ScoreSdeVpScheduler, discrete_vp_sigmas

ScoreFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

CONTINUOUS_FIRST_TIME = 1e-5


def network_score(scheduler, network: torch.nn.Module) -> ScoreFunction:
    """The score function of a network under a scheduler's conventions of conditioning and scaling.

    Args:
        scheduler: a score-SDE scheduler; `model_timestep(t)` conditions the network, `score` scales the output.
        network: called as `network(x, timestep).sample`. It gets `x` in the dtype of its own parameters; the score is
            float32 or the dtype of `x`, whichever is wider.

    Returns:
        `(x, t) -> score` with t of shape (B,), differentiable with respect to `x` and the network's parameters.
    """
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), None)

    def evaluate(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        output = network(x.to(dtype), timestep).sample
        return output.to(torch.promote_types(x.dtype, torch.float32))

    if getattr(scheduler.config, "continuous", True):
        return lambda x, t: scheduler.score(evaluate(x, scheduler.model_timestep(t)), x, t)
    if isinstance(scheduler, ScoreSdeVpScheduler):
        return _discrete_vp_score(scheduler, evaluate)
    if scheduler.output_sigma(torch.ones(())) is None:
        return _discrete_ve_score(scheduler, evaluate)
    return lambda x, t: _scaled(scheduler.sde, evaluate(x, scheduler.model_timestep(t)), t)


def label_times(scheduler) -> torch.Tensor:
    """Times at which the SDE has the noise levels of the labels of a network on a grid; float64 of shape (N,).

    VP: those of the DDPM chain, increasing; a short chain has more noise at its end than the SDE at t = 1, so that its
    last times lie beyond 1. VE: the geometric grid from `sigma_max` down to `sigma_min`.

    Raises:
        ValueError: for sub-VP, of which there is no chain.
    """
    config, sde = scheduler.config, scheduler.sde
    if isinstance(scheduler, ScoreSdeVpScheduler):
        variance = discrete_vp_sigmas(config.beta_min, config.beta_max, config.num_train_timesteps).square()
        return sde.time_of_integral_of_beta(-torch.log1p(-variance))
    if scheduler.output_sigma(torch.ones(())) is None:
        return torch.linspace(1, 0, config.num_train_timesteps, dtype=torch.float64)
    raise ValueError(
        "sub-VP has no chain of noise levels, so its networks are trained on continuous times; leave `continuous` "
        "true."
    )


def first_time(scheduler) -> float:
    """The smallest time that the scheduler's networks were trained for.

    For VP on a grid of labels the time at which the SDE has the noise level of label 0; 1e-5, as in the official
    code, for all others.
    """
    if isinstance(scheduler, ScoreSdeVpScheduler) and not scheduler.config.continuous:
        return float(label_times(scheduler)[0])
    return CONTINUOUS_FIRST_TIME


def score_from_output(scheduler, output: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The score at time t of shape (B,) from what the network says there: itself (VE), or epsilon."""
    if scheduler.output_sigma(torch.ones(())) is None:
        return output
    return _scaled(scheduler.sde, output, t)


def _scaled(sde, epsilon: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -epsilon / expand_to(sde.sigma(t), epsilon)


def _discrete_vp_score(scheduler, evaluate) -> ScoreFunction:
    times = label_times(scheduler)

    def score_fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time = in_double(t).contiguous()
        grid = times.to(time.device)
        above = torch.searchsorted(grid, time).clamp(1, len(grid) - 1)
        fraction = (time - grid[above - 1]) / (grid[above] - grid[above - 1])
        label = (above - 1 + fraction).clamp(0, len(grid) - 1).to(t)
        return _scaled(scheduler.sde, evaluate(x, label), t)

    return score_fn


def _discrete_ve_score(scheduler, evaluate) -> ScoreFunction:
    last = scheduler.config.num_train_timesteps - 1

    def score_fn(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        place = (1 - t) * last
        below = place.floor().clamp(0, max(last - 1, 0))
        labels = torch.cat([below, (below + 1).clamp(max=last)])
        output = evaluate(torch.cat([x, x]), labels.long())
        low, high = (expand_to(scheduler.sde.sigma(1 - labels / max(last, 1)), output) * output).chunk(2)
        return -_scaled(scheduler.sde, torch.lerp(low, high, expand_to(place - below, low)), t)

    return score_fn
