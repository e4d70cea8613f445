"""Images as batches of 8-bit tensors, from any position of a run on.

`open_source` decodes a data set once into memory when it fits, else on the fly, or takes it as a stream;
`iterate_batches` walks it. Batches are uint8 until they are on the device.
"""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data import encoded_images, picture_of_row
from .data import ArrayImages
from .images import ImageFormat
from .randomness import ShuffledOrder, crop_fractions, epoch_seed

if TYPE_CHECKING:
    import datasets


class ImagesInMemory:
    """All images as one uint8 tensor, in an endless shuffled order.

    Args:
        images: uint8, shape (N, C, H, W).
        seed: of the order.
    """

    def __init__(self, images: torch.Tensor, seed: int = 0):
        self.images = images
        self.order = ShuffledOrder(len(images), seed)

    @property
    def num_images(self) -> int:
        return len(self.images)

    def batches(self, starts: Iterator[int], batch_size: int) -> Iterator[torch.Tensor]:
        """uint8 batches of the images at the positions [start, start + batch_size), for rising starts."""
        for start in starts:
            yield self.images[self.order.indices(start, batch_size)]

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.num_images} images, in memory ({self.images.nbytes / 1e6:.0f} MB)"


class ImagesOnTheFly:
    """Images decoded when they are needed, in an endless shuffled order.

    Args:
        dataset: rows with "image".
        image_format: what each image is brought to.
        seed: of the order and of the random crops.
        num_threads: that decode ahead.
    """

    def __init__(self, dataset: "datasets.Dataset", image_format: ImageFormat, seed: int, num_threads: int = 0):
        self.dataset = encoded_images(dataset)
        self.image_format = image_format
        self.seed = seed
        self.num_threads = num_threads
        self.order = ShuffledOrder(len(dataset), seed)

    @property
    def num_images(self) -> int:
        return len(self.dataset)

    def batches(self, starts: Iterator[int], batch_size: int) -> Iterator[torch.Tensor]:
        """uint8 batches of the images at the positions [start, start + batch_size), for rising starts."""

        def keys() -> Iterator[tuple[int, int]]:
            for start in starts:
                yield from enumerate(self.order.indices(start, batch_size).tolist(), start)

        def decode(key: tuple[int, int]) -> np.ndarray:
            position, index = key
            image = picture_of_row(self.dataset[index]["image"], index)
            return decode_image(image, self.image_format, self.seed, position)

        return stack_batches(map_ahead(decode, keys(), self.num_threads, 2 * batch_size), batch_size)

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.num_images} images, decoded on the fly"


class ImagesStreamed:
    """Images of a data set that is read as it comes, shuffled within a buffer, epoch after epoch.

    The order is a function of the seed, so that a run is resumed by reading past what it has seen, without decoding
    it. Each process reads the whole stream and decodes its own images.

    Args:
        dataset: rows with "image".
        image_format: what each image is brought to.
        seed: of the order and of the random crops.
        num_threads: that decode ahead.
        buffer_size: images among which the next one is drawn.

    Attributes:
        num_images: of one epoch; `None` until one has been read to its end.
    """

    def __init__(
        self,
        dataset: "datasets.IterableDataset",
        image_format: ImageFormat,
        seed: int,
        num_threads: int = 0,
        buffer_size: int = 10000,
    ):
        self.dataset = encoded_images(dataset)
        self.image_format = image_format
        self.seed = seed
        self.num_threads = num_threads
        self.buffer_size = buffer_size
        self.num_images: int | None = None

    def batches(self, starts: Iterator[int], batch_size: int) -> Iterator[torch.Tensor]:
        """uint8 batches of the images at the positions [start, start + batch_size), for rising starts."""

        def decode(item: tuple[int, dict]) -> np.ndarray:
            position, encoded = item
            return decode_image(picture_of_row(encoded, position), self.image_format, self.seed, position)

        first = next(starts)
        wanted = self._wanted(itertools.chain([first], starts), batch_size, self._rows(first))
        return stack_batches(map_ahead(decode, wanted, self.num_threads, 2 * batch_size), batch_size)

    @staticmethod
    def _wanted(starts: Iterator[int], batch_size: int, rows: Iterator[tuple[int, dict]]):
        """Of the rows with rising positions those of the batches."""
        start = next(starts)
        for position, encoded in rows:
            if position == start + batch_size:
                start = next(starts)
            if position >= start:
                yield position, encoded

    def _rows(self, first: int) -> Iterator[tuple[int, dict]]:
        """(position, encoded image) from position `first` on, without end."""
        epoch = 0 if self.num_images is None else first // self.num_images
        begin = 0 if self.num_images is None else epoch * self.num_images
        while True:
            shuffled = self.dataset.shuffle(seed=epoch_seed(self.seed, epoch), buffer_size=self.buffer_size)
            position = begin - 1
            for position, row in enumerate(shuffled, begin):
                if position >= first:
                    yield position, row["image"]
            if position < begin:
                raise ValueError("the data set is empty; give one with images.")
            self.num_images = position + 1 - begin
            epoch, begin = epoch + 1, position + 1

    def describe(self) -> str:
        """One line for the log."""
        count = "a stream" if self.num_images is None else f"a stream of {self.num_images}"
        return f"{count} of images, shuffled within {self.buffer_size}"


Source = ImagesInMemory | ImagesOnTheFly | ImagesStreamed


def decode_image(image, image_format: ImageFormat, seed: int, position: int) -> np.ndarray:
    """uint8 of shape (C, H, W); the position fixes the random crop."""
    prepared = image_format.prepare(image)
    if image_format.needs_random_crop(prepared):
        return image_format.crop(prepared, crop_fractions(seed, position))
    return image_format.crop(prepared)


def map_ahead(function: Callable[[Any], Any], items: Iterable, num_threads: int, ahead: int) -> Iterator:
    """`map` in order, with up to `ahead` results computed before they are asked for; in place without threads."""
    if num_threads == 0:
        yield from map(function, items)
        return
    items = iter(items)
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    try:
        pending = deque(executor.submit(function, item) for item in itertools.islice(items, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(executor.submit(function, item) for item in itertools.islice(items, 1))
            yield result
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def stack_batches(arrays: Iterator[np.ndarray], batch_size: int) -> Iterator[torch.Tensor]:
    """Batches of consecutive arrays."""
    while batch := list(itertools.islice(arrays, batch_size)):
        yield torch.from_numpy(np.stack(batch))


def open_source(
    dataset: "datasets.Dataset | datasets.IterableDataset | ArrayImages",
    image_format: ImageFormat,
    *,
    seed: int = 0,
    memory_limit: float = 2.0,
    num_threads: int = 0,
    shuffle_buffer_size: int = 10000,
    show_progress: bool = True,
) -> Source:
    """Decode the whole data set into memory if it fits and needs no random crop; else decode on the fly.

    Args:
        dataset: from `load_images`.
        image_format: what each image is brought to.
        seed: of the order and of the random crops.
        memory_limit: largest size of the decoded images, in GB.
        num_threads: that decode on the fly.
        shuffle_buffer_size: of a stream.
        show_progress: whether a progress bar is shown.
    """
    if not hasattr(dataset, "__len__"):
        return ImagesStreamed(dataset, image_format, seed, num_threads, shuffle_buffer_size)
    if isinstance(dataset, ArrayImages) and _fits(dataset, image_format):
        return ImagesInMemory(torch.from_numpy(dataset.array).permute(0, 3, 1, 2).contiguous(), seed)
    on_the_fly = ImagesOnTheFly(dataset, image_format, seed, num_threads)
    height, width = image_format.size
    if len(dataset) * image_format.channels * height * width > memory_limit * 1e9:
        return on_the_fly
    images = _decode_all(dataset, image_format, show_progress)
    return on_the_fly if images is None else ImagesInMemory(images, seed)


def _fits(dataset: ArrayImages, image_format: ImageFormat) -> bool:
    wanted = (*image_format.size, image_format.channels)
    return image_format.crop_size is None and dataset.array.shape[1:] == wanted


def _decode_all(dataset, image_format: ImageFormat, show_progress: bool) -> torch.Tensor | None:
    """uint8, shape (N, C, H, W); `None` if an image needs a random crop."""
    from tqdm.auto import tqdm

    images = np.empty((len(dataset), image_format.channels, *image_format.size), dtype=np.uint8)
    is_array = isinstance(dataset, ArrayImages)
    rows = (dataset[index] for index in range(len(dataset))) if is_array else encoded_images(dataset)
    # A bar that goes to a file gets a line every few seconds.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    bar = tqdm(
        rows,
        total=len(dataset),
        desc="decoding images",
        unit=" images",
        disable=not show_progress,
        mininterval=interval,
    )
    for index, row in enumerate(bar):
        prepared = image_format.prepare(picture_of_row(row["image"], index))
        if image_format.needs_random_crop(prepared):
            bar.close()
            return None
        images[index] = image_format.crop(prepared)
    return torch.from_numpy(images)


def iterate_batches(
    source: Source,
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
        batch_size: images per process and pass.
        first_micro_step: number k of the first pass.
        process_index: r.
        num_processes: of the whole run.

    Yields:
        uint8, shape (batch_size, C, H, W), on the CPU.
    """
    stride = num_processes * batch_size
    starts = itertools.count(first_micro_step * stride + process_index * batch_size, stride)
    return source.batches(starts, batch_size)


def to_data_range(
    images: torch.Tensor,
    centered_by_network: bool,
    flip: torch.Tensor | None = None,
    dequantization: torch.Tensor | None = None,
) -> torch.Tensor:
    """8-bit images as network input.

    Args:
        images: uint8, shape (B, C, H, W).
        centered_by_network: the network's `center_input_sample`: data in [0, 1] if true, else in [-1, 1].
        flip: bool, shape (B,), which images to mirror left to right; `None` for none.
        dequantization: uniform on [0, 1), the shape of `images`, added in units of one level; `None` for none.

    Returns:
        float32, same shape: images / 255, or (images + dequantization) / 256.
    """
    x = images.float()
    x = x / 255 if dequantization is None else (x + dequantization) / 256
    if not centered_by_network:
        x = 2 * x - 1
    return x if flip is None else torch.where(flip[:, None, None, None], x.flip(-1), x)
