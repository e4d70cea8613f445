r"""diffusers' solvers on the networks of any SDE.

diffusers' solvers follow a variance-preserving chain y = sqrt(a) x_0 + sqrt(1 - a) noise. A state of any SDE is one,

    x = c y,    c = sqrt(alpha^2 + sigma^2),    a = alpha^2 / c^2,

so a solver over the chain of the SDE's noise levels is exact if the network is given x, at the time at which the SDE
has the level of the solver's label, and epsilon = -sigma score is returned.

Reference: Karras et al. 2022, arXiv:2206.00364, App. B and C; Song, Meng & Ermon 2021, arXiv:2010.02502, App. B.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from .config import CHAIN_LENGTH, FLOOR, process_scheduler

LabelledNetwork = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def solver_settings(process) -> dict[str, Any]:
    """Config of diffusers' solvers for the networks of a scheduler of ours: length, betas and prediction of a chain.

    Linear betas where they are the process's own, else `trained_betas` for times even from the first at which
    sigma / alpha is at least 0.01, below which 1 - a is lost in diffusers' float32.
    """
    common = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
    linear = process._linear_betas()
    if linear is not None:
        return {**common, "num_train_timesteps": process.config.num_train_timesteps, **linear}
    floor = process.sde.time_of_log_snr(torch.tensor(-2 * math.log(FLOOR), dtype=torch.float64))
    first = max(float(floor), process.config.sampling_eps)
    log_snr = process.sde.log_snr(torch.linspace(first, 1, CHAIN_LENGTH, dtype=torch.float64))
    log_a = torch.cat([torch.zeros(1, dtype=torch.float64), logsigmoid(log_snr)])
    return {**common, "num_train_timesteps": CHAIN_LENGTH, "trained_betas": (-torch.expm1(log_a.diff())).tolist()}


def label_log_snr(solver) -> torch.Tensor:
    """log a / (1 - a) of a solver's chain at its `timesteps`, fractions of labels included; float64 on the host."""
    a = solver.alphas_cumprod.double().cpu()
    log_snr = a.log() - torch.log1p(-a)
    place = solver.timesteps.double().cpu().clamp(0, len(a) - 1)
    below = place.long().clamp(max=max(len(a) - 2, 0))
    return torch.lerp(log_snr[below], log_snr[(below + 1).clamp(max=len(a) - 1)], place - below)


def epsilon_of_steps(solver, network: torch.nn.Module, evaluate: LabelledNetwork) -> Callable:
    """Epsilon that a solver of diffusers' is to be given in each of its steps.

    Args:
        solver: scheduler of diffusers', its timesteps set; made for a network of ours, or of diffusers' own.
        network: called as `network(x, timestep).sample`.
        evaluate: the same as `(x, timestep) -> output`, for networks that take the solver's labels.

    Returns:
        `(y, i) -> epsilon` for the input y of step i, shape (B, ...).
    """
    process = process_scheduler(solver.config)
    if process is None or process.takes_labels:
        return lambda y, i: evaluate(y, solver.timesteps[i])
    sde, score_fn = process.sde, process.score_fn(network)
    times = sde.time_of_log_snr(label_log_snr(solver))
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    scales, sigmas = (alpha.square() + sigma.square()).sqrt().tolist(), sigma.tolist()
    times = times.float().to(solver.timesteps.device)

    def epsilon(y: torch.Tensor, i: int) -> torch.Tensor:
        return -sigmas[i] * score_fn(scales[i] * y, times[i].expand(len(y)))

    return epsilon
