"""Pipelines for the command line, and folders of images that a run fills and another one goes on with."""

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from . import __version__
from .assets import embedded_model_path
from .pipelines.base import place
from .store import (
    SETTINGS_NAME,
    Ledger,
    as_json,
    claim,
    file_digest,
    is_plain_file,
    locked_folder,
    read_settings,
    replacement,
    shorten,
)

GRID_NAME = "grid.png"
FLOW_NOTE = (
    "Note: the embedded model is poor at high noise. Its probability flow ends in noise for nearly every second draw, "
    "and passes through it between two images; Predictor-Corrector sampling does not."
)
_MARKS = ("model", "scheduler", "dtype", "diffusers_sde")
_RESULT = re.compile(r"\d{5,}\.png|grid\.png")
_GRID_PIXELS = 2**25
_END_OF_PNG = b"IEND\xaeB`\x82"


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
    try:
        pipeline = pipeline_class.from_pretrained(path, **(components or {}))
    except OSError as error:
        # Of a name that is no folder diffusers tells what kept it from the Hub, and not that it is no folder.
        if Path(path).exists():
            raise
        reason = str(error).strip().split("\n")[-1][:200]
        raise OSError(
            f"there is no folder {path}, and no model of that name was found on the Hub or among its downloads "
            f"({reason}). Give the folder of a pipeline, or ORG/NAME on the Hub."
        ) from error
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
    name, embedded = pipeline.config.get("_name_or_path") or "", Path(embedded_model_path())
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
    """`count` images in a folder, with the settings that fix them; a context in which no other run writes there.

    The folder may hold other files, which are neither counted nor touched. Files of earlier runs are known by the
    folder's record, see `store.Ledger`; in folders of versions that kept none, by their names.

    Args:
        folder: folder of the results, made if it does not exist.
        settings: what fixes the images; whatever JSON takes.
        count: number of images.
        overwrite: whether images that a run of other settings wrote there may be removed.
        inputs: files and folders that the run reads, none of which may be removed or replaced.
        grid: whether `write_grid` will be called.

    Raises:
        ValueError: on entering, if another run is at work in the folder; if it holds images of other settings which
            may not be replaced; if a name that the run would write is taken by something else, or by an input.
        OSError: on entering, if the folder cannot be written to.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: dict,
        count: int,
        overwrite: bool = False,
        inputs: Iterable[str | Path] = (),
        grid: bool = True,
    ):
        self.folder, self.count, self.overwrite = Path(folder), count, overwrite
        self.settings, self.inputs = as_json(settings), [Path(path) for path in inputs]
        self._targets = [self.path(index).name for index in range(count)] + [GRID_NAME] * grid

    def __enter__(self) -> "ImageFolder":
        with ExitStack() as stack:
            stack.enter_context(locked_folder(self.folder))
            self._claim()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()

    def _claim(self) -> None:
        """Make the folder this run's own, or raise before anything in it is changed."""
        found = read_settings(self.folder / SETTINGS_NAME, "pictures", _MARKS)
        self._ledger = ledger = Ledger(self.folder)
        recorded = ledger.exists() or found is None
        listed = ledger.names() if recorded else filter(_RESULT.fullmatch, sorted(os.listdir(self.folder)))
        whole, damaged = self._sort(listed, recorded)
        if not all(map(_RESULT.fullmatch, whole)):
            raise ValueError(f"{self.folder} was written by another command. Choose another --output.")
        self._replaceable = {*whole, *damaged}
        self._check_targets()
        goes_on = found == self.settings
        self._check_inputs([*damaged, *({GRID_NAME} & {*whole})] if goes_on else [*whole, *damaged], goes_on)
        claim(
            self.folder,
            self.settings,
            what="pictures",
            marks=_MARKS,
            results=lambda: [self.folder / name for name in sorted(self._replaceable)],
            stems=r"\d{5,}|grid|\.files",
            reset=lambda: None if goes_on and ledger.exists() else ledger.begin(whole if goes_on else ()),
            overwrite=self.overwrite,
        )
        self._drawn = set(whole) if goes_on else set()

    def _sort(self, names: Iterable[str], recorded: bool) -> tuple[list[str], list[str]]:
        """Names of results that are as they were written, and of those that are cut off or empty."""
        whole, damaged = [], []
        for name in names:
            path = self.folder / name
            if self._ledger.owns(name) or (not recorded and is_plain_file(path) and _is_whole_png(path)):
                whole.append(name)
            elif is_plain_file(path) and _is_damaged_png(path):
                damaged.append(name)
        return whole, damaged

    def _check_targets(self) -> None:
        taken = [name for name in self._targets if not self._may_write(name)]
        if taken:
            raise ValueError(
                f"{self.folder} holds {shorten(taken)}, which this run would write and which no earlier run has "
                "written as it is. Move what is there, or choose another --output."
            )

    def _may_write(self, name: str) -> bool:
        return name in self._replaceable or not os.path.lexists(self.folder / name)

    def _check_inputs(self, doomed: Sequence[str], goes_on: bool) -> None:
        """Refuse to lose an input among the files that are to be removed or replaced."""
        for given in self.inputs:
            if not given.exists():
                continue  # a name on the Hub
            for path in (self.folder / name for name in doomed):
                within = given.is_dir() and not goes_on and given.resolve() in path.resolve().parents
                if within or given.samefile(path):
                    raise ValueError(
                        f"{path} is {'part of ' * within}an input, {given}, and would be removed or replaced. Choose "
                        "another --output."
                    )

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

        missing = [index for index in range(self.count) if self.path(index).name not in self._drawn]
        batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not show_progress) as progress:
            task = progress.add_task("sampling, steps", total=len(batches) * steps)

            def on_step_end(pipeline, step, timestep, tensors):
                progress.advance(task)
                return {}

            for done, indices in enumerate(batches, start=1):
                for index, image in zip(indices, draw(indices, on_step_end), strict=True):
                    self._save(image, self.path(index).name)
                progress.update(task, completed=done * steps)

    def image(self, index: int) -> Image.Image:
        """Image `index`, when it is drawn."""
        with Image.open(self.path(index)) as image:
            image.load()
            return image

    def write_grid(self, rows: Sequence[Sequence[Image.Image | int]], min_width: int = 1024) -> "Grid":
        """Write rows of pictures of one size as one picture.

        Args:
            rows: rows of pictures, not all of one length; a number stands for the image of this index.
            min_width: width to about which a smaller grid is enlarged, by a whole number, unless its height would
                exceed four times that.

        Returns:
            The file, with the number of rows in it: as many as a picture of some 30 million pixels holds. Where not
            even one does, all pictures are made smaller by a whole number.
        """

        def get(entry: Image.Image | int, factor: int = 1) -> Image.Image:
            image = self.image(entry) if isinstance(entry, int) else entry
            return image if factor <= 1 else image.convert("L" if image.mode == "L" else "RGB").reduce(factor)

        first, columns = get(rows[0][0]), max(map(len, rows))
        smaller = math.ceil(math.sqrt(columns * first.width * first.height / _GRID_PIXELS))
        width, height = get(rows[0][0], smaller).size
        fitting = max(1, _GRID_PIXELS // (columns * width * height))
        shown = [[get(entry, smaller) for entry in row] for row in rows[:fitting]]
        mode = "L" if all(image.mode == "L" for row in shown for image in row) else "RGB"
        grid = Image.new(mode, (columns * width, len(shown) * height))
        for i, row in enumerate(shown):
            for j, image in enumerate(row):
                grid.paste(image.convert(mode), (j * width, i * height))
        factor = max(1, min(min_width // grid.width, 4 * min_width // grid.height))
        grid = grid.resize((factor * grid.width, factor * grid.height), Image.Resampling.NEAREST)
        self._save(grid, GRID_NAME)
        return Grid(self.folder / GRID_NAME, len(shown), len(rows))

    def _save(self, image: Image.Image, name: str) -> None:
        if not self._may_write(name):
            raise ValueError(f"{self.folder / name} has appeared during this run and is not replaced. Move it.")
        path = self.folder / name
        with replacement(path, before=lambda partial: self._ledger.add(name, file_digest(partial))) as partial:
            image.save(partial, format="PNG")
        self._replaceable.add(name)


@dataclass(frozen=True)
class Grid:
    """A picture of rows of pictures.

    Args:
        path: its file.
        num_shown: number of rows in it.
        num_rows: number of rows that there are.
    """

    path: Path
    num_shown: int
    num_rows: int

    def __str__(self) -> str:
        cut = f" (the first {self.num_shown} of {self.num_rows} rows)" if self.num_shown < self.num_rows else ""
        return f"{self.path}{cut}"


def _is_whole_png(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()  # reads all chunks but the last, and their checksums, and decodes nothing
    except Image.DecompressionBombError:
        return True
    except Exception:  # whatever Pillow raises, of six classes, for what it cannot read
        return False
    return _END_OF_PNG in path.read_bytes()


def _is_damaged_png(path: Path) -> bool:
    """Look whether a file is a PNG that is cut off or changed, or empty; another format is whole in its own way."""
    with path.open("rb") as file:
        start = file.read(8)
    return b"\x89PNG\r\n\x1a\n".startswith(start) and not _is_whole_png(path)
