"""Pipelines for the command line, and folders of images that a run fills and another one goes on with."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from . import __version__
from .assets import embedded_model_path
from .pipelines.base import place

SETTINGS_NAME = "settings.json"
GRID_NAME = "grid.png"


def load(
    pipeline_class: type[DiffusionPipeline],
    model: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    components: dict | None = None,
    **scheduler_overrides,
) -> DiffusionPipeline:
    """A pipeline on its device, with some of the scheduler's settings replaced.

    Args:
        pipeline_class: what to load the model as.
        model: folder or Hub repository; the embedded model if `None`.
        device: a GPU if there is one and `None` is given.
        dtype: precision of the network.
        components: that the model lacks, by name.
        scheduler_overrides: settings of the scheduler; those that are `None` are left alone.

    Raises:
        ValueError: if a setting is not the scheduler's, or not allowed.
        OSError: if there is no such model.
    """
    path = embedded_model_path() if model is None else model
    pipeline = pipeline_class.from_pretrained(path, **(components or {}))
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


def pipeline_settings(pipeline: DiffusionPipeline) -> dict:
    """What of a pipeline fixes its images, as JSON takes it."""
    name, embedded = pipeline.config.get("_name_or_path") or "", embedded_model_path()
    if Path(name) == embedded:
        name = "embedded"
    elif Path(name).parent == embedded.parent:
        name = f"embedded {Path(name).name}"
    return {
        "model": name,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "scheduler": {
            name: value for name, value in pipeline.scheduler.config.items() if name != "_diffusers_version"
        },
        "diffusers_sde": __version__,
    }


class ImageFolder:
    """`count` images in a folder, with the settings that fix them.

    Args:
        folder: created if it does not exist.
        settings: what fixes the images; whatever JSON takes.
        count: number of images.
        overwrite: whether images of other settings in the folder may be replaced.

    Raises:
        ValueError: if the folder holds images of other settings.
    """

    def __init__(self, folder: str | Path, settings: dict, count: int, overwrite: bool = False):
        self.folder, self.count = Path(folder), count
        path = self.folder / SETTINGS_NAME
        wanted = json.loads(json.dumps(settings))
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

    def draw(self, draw: Callable, batch_size: int, steps: int, show_progress: bool = True) -> None:
        """Draw the images that are missing.

        Args:
            draw: `(indices, on_step_end) -> images`, the PIL images of these numbers; `on_step_end` is for the
                pipeline to call after each step, if it does.
            batch_size: most images at once.
            steps: of the pipeline for a batch.
            show_progress: whether a progress bar is shown.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        missing = [index for index in range(self.count) if not self.path(index).is_file()]
        batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not show_progress) as progress:
            task = progress.add_task("sampling, steps", total=len(batches) * steps)

            def on_step_end(pipeline, step, timestep, tensors):
                progress.advance(task)
                return {}

            for done, indices in enumerate(batches, start=1):
                for index, image in zip(indices, draw(indices, on_step_end), strict=True):
                    save_png(image, self.path(index))
                progress.update(task, completed=done * steps)

    def images(self) -> list[Image.Image]:
        """All images, when they are drawn."""
        return [Image.open(self.path(index)) for index in range(self.count)]

    def write_grid(self, rows: list[list[Image.Image]], min_width: int = 1024) -> Path:
        """Write rows of pictures of one size as one picture; returns its path.

        Args:
            rows: of pictures, not all of one length.
            min_width: width to about which smaller ones are enlarged, by a whole number, unless they become four times
                as high.
        """
        (width, height), columns = rows[0][0].size, max(map(len, rows))
        mode = "L" if all(image.mode == "L" for row in rows for image in row) else "RGB"
        grid = Image.new(mode, (columns * width, len(rows) * height))
        for i, row in enumerate(rows):
            for j, image in enumerate(row):
                grid.paste(image.convert(mode), (j * width, i * height))
        factor = max(1, min(min_width // grid.width, 4 * min_width // grid.height))
        grid = grid.resize((factor * grid.width, factor * grid.height), Image.Resampling.NEAREST)
        save_png(grid, self.folder / GRID_NAME)
        return self.folder / GRID_NAME


def save_png(image: Image.Image, path: Path) -> None:
    """Write a file that is complete or absent."""
    partial = path.with_suffix(".part")
    image.save(partial, format="PNG")
    partial.replace(path)
