"""The learning rate as a function of the step, so that a resumed run has nothing to read but its options."""

from collections.abc import Callable

import torch


def learning_rate_schedule(name: str, peak: float, warmup_steps: int, max_steps: int) -> Callable[[int], float]:
    """Learning rate of each optimiser step, counted from 0.

    Args:
        name: schedule of diffusers' `get_scheduler`.
        peak: largest learning rate.
        warmup_steps: steps of linear warm-up.
        max_steps: steps of the whole run.

    Raises:
        ValueError: if the schedule takes none of these values.
    """
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup_steps, num_training_steps=max_steps)
    factor = schedule.lr_lambdas[0]
    return lambda step: peak * factor(step)
