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
        self._sums = torch.zeros(3, device=device)
        self._start_interval()

    def _start_interval(self) -> None:
        self._sums.zero_()
        self._steps = 0
        self._excluded = 0.0
        self._start = time.perf_counter()

    def step(self, loss: torch.Tensor, gradient_norm: torch.Tensor, skipped: torch.Tensor) -> None:
        """Count one optimiser step; all arguments are scalars on the device.

        Args:
            loss: of this process.
            gradient_norm: of the whole gradient.
            skipped: 1 if the step was left out, whose numbers then do not enter the averages; else 0.
        """
        values = torch.stack([loss, gradient_norm.to(loss), torch.ones_like(loss)])
        self._sums += torch.where(skipped > 0, torch.zeros_like(values), values)
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
            `loss` and `gradient_norm` (means over steps and processes; NaN if no step was made), `skipped_steps`,
            `images_per_second` (of all processes).
        """
        loss, gradient_norm, made = accelerator.reduce(self._sums, reduction="mean").tolist()
        loss, gradient_norm = (value / made if made else math.nan for value in (loss, gradient_norm))
        skipped = self._steps - round(made)
        seconds = time.perf_counter() - self._start - self._excluded
        rate = self._steps * self.images_per_step / seconds
        last = self.smoothed_loss
        if math.isfinite(loss):
            self.smoothed_loss = loss if last is None else 0.9 * last + 0.1 * loss
        shown = loss if self.smoothed_loss is None else self.smoothed_loss
        self.bar.set_postfix_str(f"loss {shown:.4g}, {rate:.4g} images/s", refresh=False)
        self._start_interval()
        return {
            "loss": loss,
            "gradient_norm": gradient_norm,
            "skipped_steps": skipped,
            "images_per_second": rate,
        }

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()


class LevelMeans:
    """Means of values per sample by noise level, kept on the device.

    Args:
        num_levels: equal parts of the range of t.
        num_values: values of each sample.
        device: of the values.
    """

    def __init__(self, num_levels: int, num_values: int, device: torch.device):
        self.sums = torch.zeros(num_levels, num_values + 1, device=device)

    def add(self, t: torch.Tensor, *values: torch.Tensor) -> None:
        """Count samples at times in [0, 1]; all arguments of shape (B,). Values that are not finite do not count."""
        levels = (t * len(self.sums)).long().clamp(max=len(self.sums) - 1)
        columns = torch.stack([*(value.float() for value in values), torch.ones_like(t)], dim=1)
        finite = columns.isfinite().all(dim=1, keepdim=True)
        self.sums.index_add_(0, levels, torch.where(finite, columns, torch.zeros_like(columns)))

    def take(self, accelerator) -> list[list[float]]:
        """The means of each level over all processes since the last call; NaN where there was no sample."""
        sums = accelerator.reduce(self.sums, reduction="sum")
        means = (sums[:, :-1] / sums[:, -1:]).tolist()
        self.sums.zero_()
        return means
