"""Images as users give them, as tensors in [0, 1]."""

import numpy as np
import torch
from PIL import Image

_EIGHT_BIT_MODES = ("L", "LA", "RGB", "RGBA")
_SLACK = 1e-5  # of the range, for values that were mapped there in float32

ImageInput = Image.Image | np.ndarray | torch.Tensor | list[Image.Image] | list[np.ndarray] | list[torch.Tensor]


def read_images(image: ImageInput, channels: int) -> tuple[torch.Tensor, bool]:
    """One batch of images.

    Args:
        image: PIL images of 8 bits; arrays, uint8 or floating point in [0, 1], of shape (H, W), (H, W, C),
            (B, H, W, C), or (B, H, W) if `channels` is 1; tensors likewise of shape (C, H, W) or (B, C, H, W); a list
            of any of these, of one size.
        channels: that the network takes.

    Returns:
        Images in [0, 1], shape (B, channels, H, W), float32, or float64 if they were given so; and whether all of
        them were given in 8 bits.

    Raises:
        ValueError: for another type, shape or number of channels, values outside [0, 1], NaN, or an empty list.
    """
    items = image if isinstance(image, list | tuple) else [image]
    if len(items) == 0:
        raise ValueError("`image` is an empty list; give at least one image.")
    pairs = [_read(item, channels) for item in items]
    shapes = sorted({tuple(x.shape[1:]) for x, _ in pairs})
    if len(shapes) > 1:
        raise ValueError(
            f"`image` has images of shapes {shapes}; one batch needs one shape. Resize or call per shape."
        )
    x = torch.cat([x for x, _ in pairs])
    check_unit_range(x, "`image`")
    return x, all(eight_bit for _, eight_bit in pairs)


def check_unit_range(x: torch.Tensor, name: str) -> None:
    """Refuse NaN, infinity, and values outside [0, 1]."""
    bad = int((~x.isfinite()).sum())
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite values of {x.numel()}; give finite ones in [0, 1].")
    low, high = float(x.min()), float(x.max())
    if low < -_SLACK or high > 1 + _SLACK:
        hint = "divide by 255, or give uint8" if high > 2 else "map [-1, 1] to [0, 1] by x / 2 + 0.5"
        raise ValueError(f"{name} has values in [{low:.4g}, {high:.4g}]; images are in [0, 1]: {hint}.")


def _read(image, channels: int) -> tuple[torch.Tensor, bool]:
    if isinstance(image, Image.Image):
        if image.mode not in _EIGHT_BIT_MODES:
            raise ValueError(
                f"`image` has a PIL image of mode {image.mode!r}; allowed are {', '.join(_EIGHT_BIT_MODES)}. Convert "
                f"it, as by image.convert({'L' if channels == 1 else 'RGB'!r})."
            )
        array = np.array(image)
        return _scaled(torch.from_numpy(_channels_first(array, len(image.getbands()), channels)))
    if isinstance(image, np.ndarray):
        return _scaled(torch.from_numpy(_channels_first(image, None, channels)))
    if isinstance(image, torch.Tensor):
        x = image.detach()
        x = x[None] if x.ndim == 3 else x
        if x.ndim != 4 or x.shape[1] != channels or x.numel() == 0:
            raise ValueError(
                f"`image` has a tensor of shape {tuple(image.shape)}; the network takes {channels} channels: "
                f"({channels}, height, width) or (batch, {channels}, height, width)."
            )
        return _scaled(x)
    raise ValueError(f"`image` is or has a {type(image).__name__}; give PIL images, numpy arrays or tensors.")


def _channels_first(array: np.ndarray, bands: int | None, channels: int) -> np.ndarray:
    """(B, C, H, W), contiguous."""
    x = array
    if x.ndim == 2:
        x = x[None, :, :, None]
    elif x.ndim == 3 and channels == 1 and bands is None and x.shape[-1] != 1:
        x = x[..., None]
    elif x.ndim == 3:
        x = x[None]
    if x.ndim != 4 or x.shape[-1] != channels or x.size == 0:
        raise ValueError(
            f"`image` has an image or array of shape {array.shape}; the network takes {channels} channels: "
            f"(height, width, {channels}) or (batch, height, width, {channels})."
            + (" A grey image goes without the last." if channels == 1 else "")
        )
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _scaled(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
    if x.dtype is torch.uint8:
        return x.float() / 255, True
    if not x.is_floating_point():
        raise ValueError(f"`image` is of type {x.dtype}; allowed are uint8, and floating point in [0, 1].")
    return x.to(torch.promote_types(x.dtype, torch.float32)), False
