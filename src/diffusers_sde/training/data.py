"""Data sets of images as batches of 8-bit tensors.

`load_images` finds the images (Hub name, imagefolder, parquet), `open_source` decodes them once into memory when they
fit, else on the fly; `iterate_batches` walks the shuffled order from any position. Batches are uint8 until they are on
the device.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .images import ImageFormat
from .randomness import ShuffledOrder, crop_fractions

if TYPE_CHECKING:
    import datasets

_HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")


def load_images(
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    train_data_dir: str | None = None,
    image_column: str | None = None,
    cache_dir: str | None = None,
) -> "datasets.Dataset":
    """Open the `train` split of a data set and keep its image column alone, renamed to "image".

    Args:
        dataset_name: name on the Hub, or whatever else `datasets.load_dataset` takes.
        dataset_config_name: its configuration, if it has several.
        train_data_dir: a folder of images, a folder of parquet files, or one parquet file.
        image_column: name of the column; by default the first that holds images.
        cache_dir: where `datasets` keeps its files.

    Raises:
        ValueError: unless exactly one source is given; if the path or the column does not exist, or no column holds
            images.
    """
    import datasets

    if (dataset_name is None) == (train_data_dir is None):
        seen = "neither" if dataset_name is None else "both"
        raise ValueError(f"{seen} of --dataset_name and --train_data_dir given; give exactly one of the two.")
    if dataset_name is not None:
        source = {"path": dataset_name, "name": dataset_config_name}
    else:
        source = local_files(Path(train_data_dir))
    try:
        dataset = datasets.load_dataset(**source, split="train", cache_dir=cache_dir)
    except (datasets.exceptions.DatasetsError, ValueError) as error:
        raise ValueError(
            f"the train split of {dataset_name or train_data_dir} cannot be read: {error} Give another data set, or "
            "look up its configurations and splits."
        ) from error
    if len(dataset) == 0:
        raise ValueError(f"the train split of {dataset_name or train_data_dir} is empty; give one with images.")
    column = find_image_column(dataset.features, image_column)
    dataset = dataset.select_columns([column])
    if column != "image":
        dataset = dataset.rename_column(column, "image")
    return dataset.cast_column("image", datasets.Image())


def local_files(path: Path) -> dict:
    """Arguments for `datasets.load_dataset` that open `path`: a folder of images, or parquet files.

    Raises:
        ValueError: if `path` does not exist, or holds neither.
    """
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    if not path.exists():
        raise ValueError(f"--train_data_dir {path} does not exist; give a folder of images, or parquet files.")
    files = train_parquet_files(path)
    if files:
        return {"path": "parquet", "data_files": {"train": files}}
    if path.is_file():
        raise ValueError(f"--train_data_dir is the file {path}; allowed are a .parquet file or a folder.")
    if not any(file.suffix.lower() in ImageFolder.EXTENSIONS for file in path.rglob("*")):
        seen = sorted(entry.name for entry in path.iterdir())[:10]
        raise ValueError(
            f"no image and no parquet file under --train_data_dir {path} (it holds {seen or 'nothing'}); give a "
            "folder of images, a folder of parquet files, or one parquet file."
        )
    return {"path": "imagefolder", "data_dir": str(path)}


def train_parquet_files(path: Path) -> list[str]:
    """The parquet files of the train split under `path`, sorted; empty if there is no parquet file at all.

    Files or folders named train* are taken if there are any; else all but those named like a held-out split.

    Raises:
        ValueError: if only held-out splits are there.
    """
    if path.is_file():
        return [str(path)] if path.suffix == ".parquet" else []
    files = sorted(path.rglob("*.parquet"))
    train = [file for file in files if _split_of(file, path) == "train"]
    chosen = train or [file for file in files if _split_of(file, path) is None]
    if files and not chosen:
        raise ValueError(
            f"{path} holds only {', '.join(file.name for file in files[:5])}; a train split is needed "
            "(train.parquet or train-*.parquet). To train on another one, give that file itself."
        )
    return [str(file) for file in chosen]


def _split_of(file: Path, root: Path) -> str | None:
    relative = file.relative_to(root)
    for name in (relative.stem, *(folder.name for folder in relative.parents)):
        word = name.replace("_", "-").split("-")[0].split(".")[0].lower()
        if word == "train" or word in _HELD_OUT:
            return word
    return None


def find_image_column(features, name: str | None = None) -> str:
    """Name of the image column.

    Args:
        features: of a `datasets.Dataset`.
        name: the column that the user asked for, if any.

    Raises:
        ValueError: if it does not exist or cannot hold images; the message lists the columns.
    """
    listing = ", ".join(f"{column} ({_describe(feature)})" for column, feature in features.items())
    if name is not None and name not in features:
        raise ValueError(f"the data set has no column {name!r}; it has: {listing}.")
    if name is not None and not _may_hold_images(features[name], named=True):
        raise ValueError(f"column {name!r} holds no images; the data set has: {listing}.")
    for column in features if name is None else (name,):
        if _may_hold_images(features[column], named=name is not None):
            return column
    raise ValueError(
        f"the data set has no column of images; it has: {listing}. Give a data set with one, or name the column that "
        "holds encoded images or paths by --image_column."
    )


def _may_hold_images(feature, named: bool) -> bool:
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return named and getattr(feature, "dtype", None) in ("binary", "large_binary", "string", "large_string")


def _describe(feature) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


class ImagesInMemory:
    """All images as one uint8 tensor.

    Args:
        images: uint8, shape (N, C, H, W).
    """

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, order: ShuffledOrder, starts: Iterator[int], batch_size: int) -> Iterator[torch.Tensor]:
        """uint8 batches of the images at the positions [start, start + batch_size) of the order."""
        for start in starts:
            yield self.images[order.indices(start, batch_size)]


class ImagesOnTheFly(torch.utils.data.Dataset):
    """Images decoded when they are needed, by worker processes if asked for.

    Args:
        dataset: of one column "image".
        image_format: what each image is brought to.
        seed: of the random crops.
        num_workers: processes that decode; 0 decodes in the training process.
    """

    def __init__(self, dataset: "datasets.Dataset", image_format: ImageFormat, seed: int, num_workers: int = 0):
        self.dataset = dataset
        self.image_format = image_format
        self.seed = seed
        self.num_workers = num_workers

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        """The image of a (position, index) pair; the position fixes its random crop."""
        position, index = key
        prepared = self.image_format.prepare(self.dataset[index]["image"])
        if self.image_format.needs_random_crop(prepared):
            return torch.from_numpy(self.image_format.crop(prepared, crop_fractions(self.seed, position)))
        return torch.from_numpy(self.image_format.crop(prepared))

    def batches(self, order: ShuffledOrder, starts: Iterator[int], batch_size: int) -> Iterator[torch.Tensor]:
        """uint8 batches of the images at the positions [start, start + batch_size) of the order."""
        keys = ([*enumerate(order.indices(start, batch_size).tolist(), start)] for start in starts)
        # An own generator, so that starting the workers leaves the global one as it is.
        return iter(
            torch.utils.data.DataLoader(
                self, batch_sampler=_Once(keys), num_workers=self.num_workers, generator=torch.Generator()
            )
        )


class _Once:
    """A batch sampler over an iterator."""

    def __init__(self, keys: Iterator[list[tuple[int, int]]]):
        self.keys = keys

    def __iter__(self):
        return self.keys


def open_source(
    dataset: "datasets.Dataset",
    image_format: ImageFormat,
    *,
    seed: int = 0,
    memory_limit: float = 2.0,
    num_workers: int = 0,
    show_progress: bool = True,
) -> ImagesInMemory | ImagesOnTheFly:
    """Decode the whole data set into memory if it fits and needs no random crop; else decode on the fly.

    Args:
        dataset: of one column "image".
        image_format: what each image is brought to.
        seed: of the random crops.
        memory_limit: largest size of the decoded images, in GB.
        num_workers: processes that decode on the fly.
        show_progress: whether a progress bar is shown.
    """
    on_the_fly = ImagesOnTheFly(dataset, image_format, seed, num_workers)
    height, width = image_format.size
    if len(dataset) * image_format.channels * height * width > memory_limit * 1e9:
        return on_the_fly
    images = _decode_all(dataset, image_format, show_progress)
    return on_the_fly if images is None else ImagesInMemory(images)


def _decode_all(dataset, image_format: ImageFormat, show_progress: bool) -> torch.Tensor | None:
    """uint8, shape (N, C, H, W); `None` if an image needs a random crop."""
    from tqdm.auto import tqdm

    images = np.empty((len(dataset), image_format.channels, *image_format.size), dtype=np.uint8)
    rows = tqdm(dataset, desc="decoding images", unit=" images", disable=not show_progress, mininterval=1.0)
    for index, row in enumerate(rows):
        prepared = image_format.prepare(row["image"])
        if image_format.needs_random_crop(prepared):
            rows.close()
            return None
        images[index] = image_format.crop(prepared)
    return torch.from_numpy(images)


def iterate_batches(
    source: ImagesInMemory | ImagesOnTheFly,
    order: ShuffledOrder,
    *,
    batch_size: int,
    first_micro_step: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> Iterator[torch.Tensor]:
    """Endless batches of one process from a given place of the order on.

    Pass k of process r takes the positions from (k num_processes + r) batch_size on: batches run on over the ends of
    epochs, are never short, and a run is resumed by its place alone.

    Args:
        source: from `open_source`.
        order: of the same size.
        batch_size: images per process and pass.
        first_micro_step: number k of the first pass.
        process_index: r.
        num_processes: of the whole run.

    Yields:
        uint8, shape (batch_size, C, H, W), on the CPU.
    """

    def starts() -> Iterator[int]:
        micro_step = first_micro_step
        while True:
            yield (micro_step * num_processes + process_index) * batch_size
            micro_step += 1

    return source.batches(order, starts(), batch_size)


def to_data_range(images: torch.Tensor, centered_by_network: bool, flip: torch.Tensor | None = None) -> torch.Tensor:
    """8-bit images as network input.

    Args:
        images: uint8, shape (B, C, H, W).
        centered_by_network: the network's `center_input_sample`: data in [0, 1] if true, else in [-1, 1].
        flip: bool, shape (B,), which images to mirror left to right; `None` for none.

    Returns:
        float32, same shape.
    """
    x = images.float() / 255
    if not centered_by_network:
        x = 2 * x - 1
    return x if flip is None else torch.where(flip[:, None, None, None], x.flip(-1), x)


def describe(source: ImagesInMemory | ImagesOnTheFly) -> str:
    """One line for the log."""
    in_memory = isinstance(source, ImagesInMemory)
    place = f"in memory ({source.images.nbytes / 1e6:.0f} MB)" if in_memory else "decoded on the fly"
    return f"{len(source)} images, {place}"
