"""Images that a command is given: files, or some of a data set, in 8 bits; and their pictures and hashes."""

import hashlib
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from ..data import read_picture
from ..training.images import ImageFormat


def read_inputs(pipeline, options: dict) -> tuple[torch.Tensor, list[dict]]:
    """The images of a command, and what identifies them.

    Args:
        pipeline: whose network takes them.
        options: of the command, see `options.image_options`.

    Returns:
        uint8 of shape (n, C, H, W), and a name and a hash for each.

    Raises:
        ValueError: if an image cannot be read or the network does not take it, or they differ in size.
    """
    paths, data, split, indices, pad, resize = (
        options[name] for name in ("images", "data", "split", "index", "pad", "resize")
    )
    if bool(paths) == (data is not None):
        raise click.UsageError("give either image files, or --data with a data set and --index.")
    if data is None and indices is not None:
        raise click.UsageError("--index goes with --data.")
    indices = [0] if indices is None else indices
    channels = pipeline.unet.config.in_channels
    if data is None:
        size = pipeline._image_size(None, None) if pad or resize else None
        images, names = [read_file(path, channels, size, pad, resize) for path in paths], [str(p) for p in paths]
    else:
        from ..evaluation.splits import SplitImages

        rows = SplitImages(data, split, pipeline._image_size(None, None), channels, pad=pad, resize=resize)
        if max(indices) >= len(rows):
            raise ValueError(f"--index has {max(indices)}; split {split!r} has images 0 to {len(rows) - 1}.")
        images, names = [rows[i] for i in indices], [f"{data}:{split}:{i}" for i in indices]
    sizes = sorted({tuple(image.shape[1:]) for image in images})
    if len(sizes) > 1:
        raise ValueError(f"the images have sizes {sizes} (height, width); run once per size, or pass --resize.")
    return torch.stack(images), [{"name": n, "sha256": digest(image)} for n, image in zip(names, images)]


def read_file(path: Path, channels: int, size: tuple[int, int] | None, pad: bool, resize: bool) -> torch.Tensor:
    """One image file as uint8 of shape (channels, H, W), of its own size or brought to `size` by `pad` or `resize`."""
    image = read_picture(path)
    if channels == 1 and image.mode == "RGB" and np.ptp(np.asarray(image), axis=-1).max() == 0:
        image = image.convert("L")  # a grey image that was saved in colour
    fits = size is not None and image.height <= size[0] and image.width <= size[1]
    target = size if resize or (pad and fits) else (image.height, image.width)
    form = ImageFormat(target, channels, convert=resize, pad=pad, center_crop=True)
    try:
        return torch.from_numpy(form.crop(form.prepare(image)))
    except ValueError as error:
        raise ValueError(
            f"{path} has mode {image.mode!r}, the network takes images of {channels} channels. Convert it"
            + (f": {error}" if resize else ", or pass --resize, which converts, too.")
        ) from error


def hidden_part(part: str, size: tuple[int, int]) -> Image.Image:
    """Mask of a half, or of the central quarter."""
    height, width = size
    rows = {"upper": slice(height // 2), "lower": slice(height // 2, height), "centre": _middle(height)}
    columns = {"left": slice(width // 2), "right": slice(width // 2, width), "centre": _middle(width)}
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[rows.get(part, slice(None)), columns.get(part, slice(None))] = 255
    return Image.fromarray(mask)


def _middle(length: int) -> slice:
    return slice(length // 4, length - length // 4)


def pictures(images: torch.Tensor) -> list[Image.Image]:
    """PIL images of uint8 of shape (n, C, H, W)."""
    arrays = images.permute(0, 2, 3, 1).byte().numpy()
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def digest(x: torch.Tensor) -> str:
    """Hash of the numbers in a tensor."""
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()
