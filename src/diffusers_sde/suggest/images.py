"""The images of a data set: their sizes and modes, and their pixels in 8 bits as training sees them."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data import PictureHeader, encoded_images, header_of_row, picture_of_row
from ..evaluation.splits import SplitImages
from ..training.data import load_images
from ..training.images import ImageFormat

if TYPE_CHECKING:
    import datasets

    from ..training.data import ArrayImages

    Rows = datasets.Dataset | ArrayImages

SIZE_FACTOR = 8
"""The default network halves images three times."""


def open_rows(
    data: str, split: str = "train", *, config_name: str | None = None, image_column: str | None = None
) -> "Rows":
    """One split of a data set with its images alone, in a column "image".

    Args:
        data: what `train_sde.py --data` takes: local files, or a name on the Hub.
        split: "train" is found as `train_sde.py` finds it, another one by the name of a file or folder.
        config_name: configuration of the data set on the Hub.
        image_column: by default the first that holds images.

    Raises:
        ValueError: if there is no such data set, split or column.
    """
    if split == "train":
        source = "train_data_dir" if Path(data).exists() else "dataset_name"
        return load_images(**{source: data}, dataset_config_name=config_name, image_column=image_column)
    images = SplitImages(data, split, (1, 1), 1, config_name=config_name, image_column=image_column)
    return images.rows if images.column == "image" else images.rows.rename_column(images.column, "image")


@dataclass(frozen=True)
class Survey:
    """What the headers of the images say.

    Args:
        sizes: number of images by (height, width).
        modes: number of images by mode: L, LA, RGB or RGBA.
    """

    sizes: Counter
    modes: Counter


def survey(rows: "Rows") -> Survey:
    """Read the headers of all images, not their pixels."""
    sizes, modes = Counter(), Counter()
    for header in _headers(rows):
        sizes[header.height, header.width] += 1
        modes[header.mode] += 1
    return Survey(sizes, modes)


def _headers(rows) -> Iterator[PictureHeader]:
    """Sizes and modes, without decoding where images are encoded."""
    rows = encoded_images(rows)
    for index in range(len(rows)):
        yield header_of_row(rows[index]["image"], index)


def propose_size(found: Survey) -> tuple[int, int]:
    """The size of all images, rounded up to what the default network takes.

    Raises:
        ValueError: if the images differ in size.
    """
    if len(found.sizes) > 1:
        common = ", ".join(f"{h} x {w} ({n} images)" for (h, w), n in found.sizes.most_common(3))
        raise ValueError(
            f"the images have {len(found.sizes)} sizes, the commonest {common}. Give --size with --resize, or with "
            "--pad if they are all smaller."
        )
    height, width = next(iter(found.sizes))
    return -(-height // SIZE_FACTOR) * SIZE_FACTOR, -(-width // SIZE_FACTOR) * SIZE_FACTOR


def propose_channels(found: Survey) -> int:
    """The fewest channels to which all images can be brought without loss."""
    has_colour = any(mode.startswith("RGB") for mode in found.modes)
    return (3 if has_colour else 1) + any(mode.endswith("A") for mode in found.modes)


def choose_format(
    found: Survey, size: tuple[int, int] | None, channels: int | None, *, pad: bool, resize: bool
) -> ImageFormat:
    """Size and channels to train on, and how the images are brought to them.

    Args:
        found: what the images are.
        size: (height, width); by default that of all images, rounded up and padded.
        channels: by default the fewest without loss.
        pad: whether smaller images get a black border.
        resize: whether images of other sizes are resized and cropped at the centre.

    Raises:
        ValueError: if the images have other sizes and neither `pad` nor `resize` brings them to `size`.
    """
    if size is None:
        size, pad = propose_size(found), not resize
    outside = {(h, w) for h, w in found.sizes if (h, w) != size and not (pad and h <= size[0] and w <= size[1])}
    if outside and not resize:
        height, width = max(outside)
        raise ValueError(
            f"an image has {height} x {width} pixels, --size is {size[0]} x {size[1]}. Pad small images with --pad, "
            "or resize with --resize."
        )
    pad = pad and any((h, w) != size for h, w in found.sizes)
    convert = channels is not None
    channels = propose_channels(found) if channels is None else channels
    return ImageFormat(size, channels, convert=convert, pad=pad, center_crop=True)


def pixels(
    rows: "Rows",
    image_format: ImageFormat,
    indices: Sequence[int],
    on_progress: Callable[[int], None] = lambda done: None,
) -> torch.Tensor:
    """Decoded images.

    Args:
        rows: with a column "image".
        image_format: what each is brought to.
        indices: their numbers.
        on_progress: called with 1 for each image.

    Returns:
        uint8, shape (len(indices), C, H, W).
    """
    images = np.empty((len(indices), image_format.channels, *image_format.size), dtype=np.uint8)
    rows = encoded_images(rows)
    for place, index in enumerate(map(int, indices)):
        images[place] = image_format.crop(image_format.prepare(picture_of_row(rows[index]["image"], index)))
        on_progress(1)
    return torch.from_numpy(images)
