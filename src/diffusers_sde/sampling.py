"""Sets of images in a folder, each a function of (seed, index); what `diffusers-sde sample` does."""

import json
import math
from pathlib import Path

import torch
from diffusers.utils import make_image_grid
from PIL import Image

from . import __version__
from .assets import embedded_model_path
from .pipelines import ScoreSdePipeline
from .pipelines.base import place
from .seeding import image_generators

SETTINGS_NAME = "settings.json"
GRID_NAME = "grid.png"


def load_pipeline(
    model: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    **scheduler_overrides,
) -> ScoreSdePipeline:
    """A pipeline on its device, with some of the scheduler's settings replaced.

    Args:
        model: folder or Hub repository; the embedded model if `None`.
        device: a GPU if there is one and `None` is given.
        dtype: precision of the network.
        scheduler_overrides: settings of the scheduler; those that are `None` are left alone.

    Raises:
        ValueError: if a setting is not the scheduler's, or not allowed.
        OSError: if there is no such model.
    """
    pipeline = ScoreSdePipeline.from_pretrained(embedded_model_path() if model is None else model)
    overrides = {name: value for name, value in scheduler_overrides.items() if value is not None}
    unknown = [name for name in overrides if name not in pipeline.scheduler.config]
    if unknown:
        raise ValueError(
            f"{type(pipeline.scheduler).__name__} has no setting {', '.join(unknown)}; leave "
            f"{'it' if len(unknown) == 1 else 'them'} out for this model."
        )
    if overrides:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **overrides)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return place(pipeline, device, dtype)


class SampleSet:
    """`num_images` images in a folder, with the settings that fix them.

    Args:
        pipeline: what draws.
        folder: created if it does not exist.
        num_images: size of the set.
        steps: predictor steps; the scheduler's `num_train_timesteps` if `None`.
        seed: of the set.
        overwrite: whether a set with other settings in the folder may be replaced.

    Raises:
        ValueError: if the folder holds images of other settings.
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
    ):
        self.pipeline = pipeline
        self.folder = Path(folder)
        self.num_images = num_images
        self.steps = pipeline.scheduler.config.num_train_timesteps if steps is None else steps
        self.seed = seed
        self._claim_folder(overwrite)

    def _settings(self) -> dict:
        scheduler = self.pipeline.scheduler
        model = self.pipeline.config.get("_name_or_path") or ""
        return {
            "model": "embedded" if Path(model) == embedded_model_path() else model,
            "dtype": str(self.pipeline.unet.dtype).removeprefix("torch."),
            "scheduler": {name: value for name, value in scheduler.config.items() if name != "_diffusers_version"},
            "steps": self.steps,
            "seed": self.seed,
            "diffusers_sde": __version__,
        }

    def _claim_folder(self, overwrite: bool) -> None:
        path = self.folder / SETTINGS_NAME
        wanted = json.loads(json.dumps(self._settings()))
        pictures = sorted(self.folder.glob("*.png")) if self.folder.is_dir() else []
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if pictures and found != wanted:
            if not overwrite:
                known = found if isinstance(found, dict) else {}
                differing = [key for key in wanted if known.get(key) != wanted[key]]
                raise ValueError(
                    f"{self.folder} holds {len(pictures)} pictures of other settings ({', '.join(differing)} differ). "
                    "Choose another folder, or pass --overwrite to replace them."
                )
            for picture in pictures:
                picture.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def path(self, index: int) -> Path:
        """File of image `index`."""
        return self.folder / f"{index:05d}.png"

    def draw(self, batch_size: int, show_progress: bool = True) -> None:
        """Draw the images that are missing.

        Args:
            batch_size: images per network evaluation; it does not change the images.
            show_progress: whether a progress bar is shown.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        missing = [index for index in range(self.num_images) if not self.path(index).is_file()]
        batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
        self.pipeline.set_progress_bar_config(disable=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not show_progress) as progress:
            task = progress.add_task("sampling, steps", total=len(batches) * self.steps)

            def advance(pipeline, step, timestep, tensors):
                progress.advance(task)
                return {}

            for indices in batches:
                images = self.pipeline(
                    batch_size=len(indices),
                    num_inference_steps=self.steps,
                    generator=image_generators(self.seed, indices),
                    callback_on_step_end=advance,
                ).images
                for index, image in zip(indices, images, strict=True):
                    _save_png(image, self.path(index))

    def write_grid(self) -> Path:
        """Write all images as one picture, enlarged by a whole number if they are small; returns its path."""
        images = [Image.open(self.path(index)) for index in range(self.num_images)]
        columns = math.ceil(math.sqrt(len(images)))
        rows = math.ceil(len(images) / columns)
        blank = Image.new(images[0].mode, images[0].size)
        grid = make_image_grid(images + [blank] * (rows * columns - len(images)), rows, columns)
        grid = grid if images[0].mode != "L" else grid.convert("L")
        factor = max(1, 512 // grid.width)
        grid = grid.resize((factor * grid.width, factor * grid.height), Image.Resampling.NEAREST)
        _save_png(grid, self.folder / GRID_NAME)
        return self.folder / GRID_NAME


def _save_png(image: Image.Image, path: Path) -> None:
    """Write a file that is complete or absent."""
    partial = path.with_suffix(".part")
    image.save(partial, format="PNG")
    partial.replace(path)
