"""Sample grids while a network trains."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from ..schedulers.conventions import CONTINUOUS_FIRST_TIME
from ..sde import score_to_denoised
from ..sde.exponential import step_coefficients
from ..seeding import image_generators
from .components import is_centered_by_network

SAMPLERS = ("fast", "scheduler")
FAST_EVALUATIONS = 20
MAX_FAST_EVALUATIONS = 25

_LAST_LEVEL = 0.05  # sigma / alpha of the last evaluation, whose denoised mean is the image
_RHO = 7.0


class SamplingAborted(Exception):
    """Sampling was given up because the run is to stop."""


def sampler_steps(sampler: str, steps: int | None, scheduler) -> int:
    """Sampling steps of a grid: those asked for, else 20 evaluations, or the scheduler's number of levels."""
    return steps or (FAST_EVALUATIONS if sampler == "fast" else scheduler.config.num_train_timesteps)


@torch.no_grad()
def draw_fast(
    network,
    scheduler,
    *,
    num_images: int,
    num_evaluations: int = FAST_EVALUATIONS,
    seed: int = 0,
    should_abort: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Images of the network by SDE-DPM-Solver++ (2M), which takes one evaluation per step.

    The levels sigma / alpha are spaced by the power 1/7 and end at 0.05, whose denoised mean is the image: the rest
    of the noise lies below one 8-bit level for most of them.

    Args:
        network: in evaluation mode.
        scheduler: of the training.
        num_images: number of images.
        num_evaluations: of the network per image, at least 2.
        seed: of the noise; each image has its own, whatever their number.
        should_abort: asked after each evaluation.

    Returns:
        uint8, shape (num_images, H, W, C).

    Raises:
        SamplingAborted: as soon as `should_abort` is true.

    Reference: Lu et al. 2022, arXiv:2211.01095; Karras et al. 2022, arXiv:2206.00364, Eq. (5)
    """
    sde, score_fn = scheduler.sde, scheduler.score_fn(network)
    device = next(network.parameters()).device
    size = network.config.sample_size
    shape = (num_images, network.config.in_channels, *((size, size) if isinstance(size, int) else size))
    generators = image_generators(seed, range(num_images))

    def noise() -> torch.Tensor:
        return randn_tensor(shape, generators, device, torch.float32)

    times, alphas, sigmas = _levels(sde, num_evaluations)
    x = sde.prior_std * noise()
    means: list[torch.Tensor] = []
    for i, t in enumerate(times):
        if should_abort():
            raise SamplingAborted
        at = torch.full((num_images,), t, device=device)
        means = [score_to_denoised(sde, score_fn(x, at), x, at), *means[:1]]
        if i + 1 < len(times):
            past = [(alphas[j], sigmas[j]) for j in (i, i - 1)][: len(means)]
            step = step_coefficients(past, (alphas[i + 1], sigmas[i + 1]), "denoised", eta=1.0)
            x = step.carry * x + sum(w * mean for w, mean in zip(step.weights, means, strict=True))
            x = x + step.noise_std * noise()
    images = means[0] if is_centered_by_network(network) else (means[0] + 1) / 2
    return (images.permute(0, 2, 3, 1).cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8)


def _levels(sde, count: int) -> tuple[list[float], list[float], list[float]]:
    """Times, alpha and sigma of the evaluations, from the most noise on."""
    ends = torch.tensor([1.0, CONTINUOUS_FIRST_TIME], dtype=torch.float64)
    most, least = (sde.sigma(ends) / sde.alpha(ends)).tolist()
    least = max(least, min(_LAST_LEVEL, most / 2))
    levels = np.linspace(most ** (1 / _RHO), least ** (1 / _RHO), max(count, 2)) ** _RHO
    times = sde.time_of_log_snr(-2 * torch.as_tensor(levels).log()).clamp(CONTINUOUS_FIRST_TIME, 1.0)
    return times.tolist(), sde.alpha(times).tolist(), sde.sigma(times).tolist()


def draw_samples(
    network,
    scheduler,
    *,
    num_images: int,
    num_inference_steps: int,
    seed: int = 0,
    should_abort: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Images of the network by the scheduler's own Predictor-Corrector sampler, from a fixed seed.

    Args:
        network: in evaluation mode.
        scheduler: of the training; a copy of it samples.
        num_images: how many.
        num_inference_steps: sampling steps.
        seed: of the noise.
        should_abort: asked after each step.

    Returns:
        uint8, shape (num_images, H, W, C).

    Raises:
        SamplingAborted: as soon as `should_abort` says so.
    """
    from ..pipelines import ScoreSdePipeline

    pipeline = ScoreSdePipeline(unet=network, scheduler=type(scheduler).from_config(scheduler.config))

    def abort_if_asked(pipeline, step, timestep, tensors):
        if should_abort():
            raise SamplingAborted
        return {}

    pipeline.set_progress_bar_config(desc="samples", leave=False)
    device = next(network.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        generator = torch.Generator(device).manual_seed(seed)
        images = pipeline(
            batch_size=num_images,
            num_inference_steps=num_inference_steps,
            generator=generator,
            output_type="np",
            callback_on_step_end=abort_if_asked,
        ).images
    return (np.asarray(images) * 255).round().clip(0, 255).astype(np.uint8)


class GridBudget:
    """Time that grids may take: a share of the run's.

    Args:
        share: largest part of the wall time, in (0, 1]; 1 for no bound.
    """

    def __init__(self, share: float):
        self.share = share
        self.spent = 0.0
        self._per_evaluation: float | None = None

    def affordable(self, wanted: int, evaluations: int, elapsed: float, guess: float) -> int:
        """Number of images that fit now, at most `wanted`.

        Args:
            wanted: number of images of a whole grid.
            evaluations: of the network per image.
            elapsed: seconds of the run so far, grids included.
            guess: seconds per evaluation and image, where no grid was timed yet.
        """
        if self.share >= 1:
            return wanted
        cost = evaluations * (guess if self._per_evaluation is None else self._per_evaluation)
        return max(0, min(wanted, int((self.share * elapsed - self.spent) / cost))) if cost > 0 else wanted

    def add(self, seconds: float, evaluations: int) -> None:
        """Count a grid of so many evaluations in all."""
        self.spent += seconds
        self._per_evaluation = seconds / max(1, evaluations)


def image_grid(images: np.ndarray) -> np.ndarray:
    """Lay images out row by row, nearly square; empty places are black.

    Args:
        images: uint8, shape (N, H, W, C).

    Returns:
        uint8, shape (rows H, columns W, C).
    """
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    cells[:count] = images
    cells = cells.reshape(rows, columns, height, width, channels)
    return cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def save_grid(images: np.ndarray, path: Path) -> None:
    """Write images (uint8, shape (N, H, W, C)) as one PNG."""
    grid = image_grid(images)
    Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid).save(path, format="PNG")


def log_images(accelerator, images: np.ndarray, step: int) -> None:
    """Give images (uint8, shape (N, H, W, C)) to the trackers."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": images}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"samples": list(images)}, step=step)
