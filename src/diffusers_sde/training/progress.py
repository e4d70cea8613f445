"""What a run tells while it runs: progress bar, throughput, loss."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Progress:
    """Progress bar and averages over the last interval, without reading a tensor in between.

    Args:
        first_step: optimiser steps taken before.
        max_steps: at which the bar is full.
        images_per_step: over all processes.
        device: of the losses.
        enabled: whether this process shows a bar.
    """

    def __init__(self, first_step: int, max_steps: int, images_per_step: int, device: torch.device, enabled: bool):
        from tqdm.auto import tqdm

        # A bar that goes to a file gets a line every half minute.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(
            total=max_steps,
            initial=first_step,
            desc="training",
            unit=" steps",
            disable=not enabled,
            mininterval=interval,
        )
        self.images_per_step = images_per_step
        self.smoothed_loss: float | None = None
        self._sums = torch.zeros(2, device=device)
        self._start_interval()

    def _start_interval(self) -> None:
        self._sums.zero_()
        self._steps = 0
        self._excluded = 0.0
        self._start = time.perf_counter()

    def step(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> None:
        """Count one optimiser step; both arguments are scalars on the device."""
        self._sums += torch.stack([loss, gradient_norm.to(loss)])
        self._steps += 1
        self.bar.update(1)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count as training."""
        start = time.perf_counter()
        yield
        self._excluded += time.perf_counter() - start

    def summary(self, accelerator) -> dict[str, float]:
        """Averages since the last call; every process must call it.

        Returns:
            `loss` and `gradient_norm` (means over steps and processes), `images_per_second` (of all processes).

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        steps = self._steps
        loss, gradient_norm = (accelerator.reduce(self._sums, reduction="mean") / steps).tolist()
        seconds = time.perf_counter() - self._start - self._excluded
        rate = steps * self.images_per_step / seconds
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} in the {steps} steps up to {self.bar.n}. Resume from the last checkpoint with a "
                "lower --learning_rate, or without --mixed_precision."
            )
        last = self.smoothed_loss
        self.smoothed_loss = loss if last is None else 0.9 * last + 0.1 * loss
        self.bar.set_postfix_str(f"loss {self.smoothed_loss:.4g}, {rate:.4g} images/s", refresh=False)
        self._start_interval()
        return {"loss": loss, "gradient_norm": gradient_norm, "images_per_second": rate}

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
