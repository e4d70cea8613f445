"""Images as users give them, as tensors in [0, 1]."""

import numpy as np
import torch
from PIL import Image

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_UNKNOWN_RANGE_MODES = ("I", "F")
_SLACK = 1e-5  # of the range, for values that were mapped there in float32

ImageInput = Image.Image | np.ndarray | torch.Tensor | list[Image.Image] | list[np.ndarray] | list[torch.Tensor]


def read_images(image: ImageInput, channels: int, name: str = "image") -> tuple[torch.Tensor, int | None]:
    """One batch of images.

    Args:
        image: PIL images of 8 or 16 bits; arrays, uint8, uint16 or floating point in [0, 1], of shape (H, W),
            (H, W, C), (B, H, W, C), or (B, H, W) if `channels` is 1; tensors of the same types of shape (C, H, W) or
            (B, C, H, W); a list of any of these, of one size.
        channels: number that the network takes.
        name: argument, for messages.

    Returns:
        Images in [0, 1], shape (B, channels, H, W), float32, or float64 if they were given so; and the number of
        levels in which all of them were given, 256 or 65536, or `None` for floating point or several.

    Raises:
        ValueError: for another type, shape or number of channels, values outside [0, 1], NaN, or an empty list.
    """
    items = image if isinstance(image, list | tuple) else [image]
    if len(items) == 0:
        raise ValueError(f"`{name}` is an empty list; give at least one image.")
    pairs = [_read(item, channels, name) for item in items]
    shapes = sorted({tuple(x.shape[1:]) for x, _ in pairs})
    if len(shapes) > 1:
        raise ValueError(
            f"`{name}` has images of shapes {shapes}; one batch needs one shape. Resize or call per shape."
        )
    x = torch.cat([x for x, _ in pairs])
    check_unit_range(x, f"`{name}`")
    levels = {levels for _, levels in pairs}
    return x, levels.pop() if len(levels) == 1 else None


def check_unit_range(x: torch.Tensor, name: str) -> None:
    """Refuse NaN, infinity, and values outside [0, 1]."""
    bad = int((~x.isfinite()).sum())
    if bad:
        raise ValueError(f"{name} has {bad} NaN or infinite values of {x.numel()}; give finite ones in [0, 1].")
    low, high = float(x.min()), float(x.max())
    if low < -_SLACK or high > 1 + _SLACK:
        hint = "map [-1, 1] to [0, 1] by x / 2 + 0.5"
        if high > 2:
            hint = "divide by 255, or give uint8" if high < 256 else "divide by the largest level, 65535 for 16 bits"
        raise ValueError(f"{name} has values in [{low:.4g}, {high:.4g}]; images are in [0, 1]: {hint}.")


def check_pil_mode(image: Image.Image, channels: int, name: str) -> None:
    """Refuse a PIL image whose values are not levels of 8 or 16 bits, with the way to make them so.

    Raises:
        ValueError: naming a conversion that keeps the picture.
    """
    mode, bands = image.mode, _MODES.get(channels, "RGB")
    if mode in _UNKNOWN_RANGE_MODES:
        kind = "whole numbers of 32 bits" if mode == "I" else "floating-point numbers"
        raise ValueError(
            f"`{name}` has a PIL image of mode {mode!r}: {kind}, of which the picture does not state the range, and "
            "image.convert would cut them off at 255. Divide by the largest level, and give the array: "
            f"np.asarray(image, dtype=np.float32) / 65535 for a picture of 16 bits, / 255 for one of 8 bits"
            f"{', / 1 if its values are in [0, 1]' if mode == 'F' else ''}."
        )
    if mode not in (*_MODES.values(), *_SIXTEEN_BIT_MODES):
        raise ValueError(
            f"`{name}` has a PIL image of mode {mode!r}; allowed are {', '.join(_MODES.values())} and I;16. Convert "
            f"it, as by image.convert({bands!r})."
        )


def _read(image, channels: int, name: str) -> tuple[torch.Tensor, int | None]:
    if isinstance(image, Image.Image):
        check_pil_mode(image, channels, name)
        array = _channels_first(np.array(image), len(image.getbands()), channels, name)
        return _scaled(_tensor_of(array, name), name)
    if isinstance(image, np.ndarray):
        return _scaled(_tensor_of(_channels_first(image, None, channels, name), name), name)
    if isinstance(image, torch.Tensor):
        x = image.detach()
        x = x[None] if x.ndim == 3 else x
        if x.ndim != 4 or x.shape[1] != channels or x.numel() == 0:
            raise ValueError(
                f"`{name}` has a tensor of shape {tuple(image.shape)}; the network takes {channels} channels: "
                f"({channels}, height, width) or (batch, {channels}, height, width)."
            )
        return _scaled(x, name)
    raise ValueError(f"`{name}` is or has a {type(image).__name__}; give PIL images, numpy arrays or tensors.")


def _channels_first(array: np.ndarray, bands: int | None, channels: int, name: str) -> np.ndarray:
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
            f"`{name}` has an image or array of shape {array.shape}; the network takes {channels} channels: "
            f"(height, width, {channels}) or (batch, height, width, {channels})."
            + (" A grey image goes without the last." if channels == 1 else "")
        )
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _tensor_of(array: np.ndarray, name: str) -> torch.Tensor:
    """Array of any byte order as a tensor of the same values."""
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    if native.dtype.kind == "f" and native.dtype.itemsize > 8:
        native = native.astype(np.float64)
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise ValueError(_wrong_type(name, array.dtype)) from error


def _scaled(x: torch.Tensor, name: str) -> tuple[torch.Tensor, int | None]:
    if x.dtype in (torch.uint8, torch.uint16):
        levels = 256 if x.dtype is torch.uint8 else 65536
        return x.float() / (levels - 1), levels
    if not x.is_floating_point():
        raise ValueError(_wrong_type(name, x.dtype))
    return x.to(torch.promote_types(x.dtype, torch.float32)), None


def _wrong_type(name: str, dtype) -> str:
    return (
        f"`{name}` is of type {dtype}; allowed are uint8, uint16, and floating point in [0, 1]. Convert levels of 0 "
        "to 255 to uint8, or divide by the largest level."
    )
