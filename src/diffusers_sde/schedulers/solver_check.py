"""A solver of diffusers' proven on a network that is known in closed form, before it is let near a real one.

Whether a class of diffusers' can sample from a chain of epsilon predictions stands in no attribute: consistency
models, inverse solvers and others have the same settings. So each is asked once to draw N(0.3, 0.25^2) from its exact
network.
"""

import copy
import inspect
import json
from functools import lru_cache

import torch

from .solvers import label_log_snr

MEAN, STD = 0.3, 0.25
NUMBERS = 4096
STEPS = 20, 40
SMALL, LARGE = 0.1, 0.3  # errors in units of STD: right, and still right if it shrinks
SHRINKS = 0.75  # by which at least an error of first order shrinks between the two runs


class _ByConfig:
    """A solver, equal to others of its class and config."""

    def __init__(self, solver):
        self.solver = solver
        self.key = (type(solver), json.dumps(dict(solver.config), sort_keys=True, default=repr))

    def __eq__(self, other):
        return self.key == other.key

    def __hash__(self):
        return hash(self.key)


def check_solver(solver) -> None:
    """Draw from the exact network of the solver's own chain, twice; cached for each class and config.

    Raises:
        ValueError: if mean or standard deviation do not come right with the number of steps, or the solver fails.
    """
    problem = _problem(_ByConfig(solver))
    if problem is not None:
        raise ValueError(problem)


@lru_cache(maxsize=256)
def _problem(key: _ByConfig) -> str | None:
    most = key.solver.config.num_train_timesteps
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)
            runs = [draw_gaussian(copy.deepcopy(key.solver), min(steps, most)) for steps in STEPS]
        moments = [(float(x.mean()), float(x.std())) for x in runs]
    except Exception as error:  # whatever a foreign class may raise
        return f"its steps fail with {type(error).__name__}: {error}".split("\n")[0].rstrip(".")
    coarse, fine = (max(abs(mean - MEAN) / STD, abs(std / STD - 1)) for mean, std in moments)
    if fine < SMALL or (fine < LARGE and fine < SHRINKS * coarse):
        return None
    mean, std = moments[-1]
    return (
        f"in {STEPS[-1]} steps over a network known in closed form it draws N({mean:.3g}, {std:.3g}^2) instead of "
        f"N({MEAN}, {STD}^2), and more steps do not mend it"
    )


def draw_gaussian(solver, num_steps: int) -> torch.Tensor:
    """Last state of a solver run with the exact epsilon of N(0.3, 0.25^2), from the exact state of its first label."""
    solver.set_timesteps(num_steps)
    a = torch.sigmoid(label_log_snr(solver)).tolist()
    place = (torch.arange(NUMBERS, dtype=torch.float64) + 0.5) / NUMBERS
    noise = (2**0.5 * torch.erfinv(2 * place - 1))[torch.randperm(NUMBERS)].float().reshape(1, 1, -1, 32)
    marginal = (a[0] * STD**2 + 1 - a[0]) ** 0.5
    x = (a[0] ** 0.5 * MEAN + marginal * noise) / solver.scale_model_input(torch.ones(1), solver.timesteps[0])
    generator = {"generator": torch.Generator().manual_seed(0)} if takes_generator(solver) else {}
    for t, a_t in zip(solver.timesteps, a, strict=True):
        y = solver.scale_model_input(x, t)
        epsilon = (1 - a_t) ** 0.5 * (y - a_t**0.5 * MEAN) / (a_t * STD**2 + 1 - a_t)
        x = solver.step(epsilon, t, x, return_dict=False, **generator)[0]
    return x


def takes_generator(solver) -> bool:
    """Whether `step` takes the source of its noise."""
    return "generator" in inspect.signature(solver.step).parameters
