"""Sets of images in a folder, each a function of (seed, index); what `diffusers-sde sample` does."""

import math
from pathlib import Path

import torch

from .image_folder import Grid, ImageFolder, load, pipeline_settings
from .pipelines import ScoreSdePipeline
from .seeding import image_generators


def load_pipeline(
    model: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    **scheduler_overrides,
) -> ScoreSdePipeline:
    """A `ScoreSdePipeline`; see `image_folder.load`."""
    return load(ScoreSdePipeline, model, device=device, dtype=dtype, **scheduler_overrides)


class SampleSet:
    """`num_images` images in a folder, with the settings that fix them; a context, see `ImageFolder`.

    Args:
        pipeline: what draws.
        folder: folder of the images, made if it does not exist.
        num_images: size of the set.
        steps: predictor steps; the scheduler's `num_train_timesteps` if `None`.
        seed: seed of the set.
        overwrite: whether a set with other settings in the folder may be replaced.
        grid: whether `write_grid` will be called.
    """

    def __init__(
        self,
        pipeline: ScoreSdePipeline,
        folder: str | Path,
        *,
        num_images: int,
        steps: int | None = None,
        seed: int = 0,
        overwrite: bool = False,
        grid: bool = True,
    ):
        self.pipeline = pipeline
        self.steps = pipeline.scheduler.config.num_train_timesteps if steps is None else steps
        self.seed = seed
        settings = {**pipeline_settings(pipeline), "steps": self.steps, "seed": seed}
        self.images = ImageFolder(folder, settings, num_images, overwrite, grid=grid)

    def __enter__(self) -> "SampleSet":
        self.images.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.images.__exit__(*error)

    def draw(self, batch_size: int, show_progress: bool = True) -> None:
        """Draw the images that are missing.

        Args:
            batch_size: images per network evaluation; it does not change the images.
            show_progress: whether a progress bar is shown.
        """
        self.pipeline.set_progress_bar_config(disable=True)

        def draw(indices: list[int], on_step_end):
            return self.pipeline(
                batch_size=len(indices),
                num_inference_steps=self.steps,
                generator=image_generators(self.seed, indices),
                callback_on_step_end=on_step_end,
            ).images

        self.images.draw(draw, batch_size, self.steps, show_progress)

    def write_grid(self) -> Grid:
        """Write the images as one square picture, enlarged by a whole number if they are small."""
        count = self.images.count
        columns = math.ceil(math.sqrt(count))
        rows = [range(start, min(start + columns, count)) for start in range(0, count, columns)]
        return self.images.write_grid(rows, min_width=512)
