"""Sample grids while a network trains."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image


class SamplingAborted(Exception):
    """Sampling was given up because the run is to stop."""


def draw_samples(
    network,
    scheduler,
    *,
    num_images: int,
    num_inference_steps: int,
    seed: int = 0,
    should_abort: Callable[[], bool] = lambda: False,
) -> np.ndarray:
    """Images of the network by Predictor-Corrector sampling, from a fixed seed.

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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    Image.fromarray(grid[..., 0] if grid.shape[-1] == 1 else grid).save(partial, format="PNG")
    partial.replace(path)


def log_images(accelerator, images: np.ndarray, step: int) -> None:
    """Give images (uint8, shape (N, H, W, C)) to the trackers."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": images}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"samples": list(images)}, step=step)
