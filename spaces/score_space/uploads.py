"""What users send, checked before any work: pictures, masks, numbers."""

import gradio as gr
import numpy as np
from PIL import Image, ImageChops, ImageOps

from .models import Model

MAX_FILE_SIZE = "10mb"
MAX_PIXELS = 4096 * 4096
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
READING_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
MAX_SEED = 2**53 - 1  # the largest that a browser can write exactly
EDITOR_SIZE = 320


# PIL refuses to open an image of more than twice as many pixels, here and wherever Gradio opens it.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2


class Picture(gr.Image):
    """An image input whose values are PIL images in RGB, checked by `read_picture`."""

    is_template = True  # the browser shows it as its parent

    def preprocess(self, payload):
        return None if payload is None else read_picture(payload.path)


class MaskedPicture(gr.ImageEditor):
    """An image to paint on; its values are the image in RGB and the mask in L, white where painted, or `None`."""

    is_template = True

    def preprocess(self, payload):
        if payload is not None and payload.background is not None:
            read_picture(payload.background.path)
        try:
            parts = super().preprocess(payload)
        except READING_ERRORS as error:
            raise _unreadable() from error
        if parts is None or parts["background"] is None:
            return None
        mask = Image.new("L", parts["background"].size)
        for layer in parts["layers"] or []:
            mask = ImageChops.lighter(mask, layer.getchannel("A").resize(mask.size))
        return _flat(parts["background"]), mask


def read_picture(path: str | None) -> Image.Image:
    """An uploaded file as an upright image in RGB, transparency on black.

    Raises:
        gr.Error: if it is no image that we read, or a large one.
    """
    try:
        with Image.open(path or "", formats=FORMATS) as image:
            mode = image.mode
            if mode in MODES:
                return _flat(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise _refused(
            f"The image is too large: at most {MAX_PIXELS / 1e6:.1f} million pixels are taken. Send a smaller one: "
            "the networks see a few dozen pixels a side."
        ) from error
    except READING_ERRORS as error:
        raise _unreadable() from error
    raise _refused(f"The image has the mode {mode}; taken are images of 8 bits per channel. Convert it first.")


def _refused(message: str) -> gr.Error:
    return gr.Error(message, print_exception=False)


def _unreadable() -> gr.Error:
    return _refused(f"The file is not an image that can be read here. Send one of {', '.join(FORMATS)}.")


def _flat(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")


def fit(image: Image.Image | None, model: Model, what: str = "an image") -> np.ndarray:
    """A picture in the size and channels of a network, its longer side cropped in the middle.

    Returns:
        uint8 of shape (1, H, W, C).

    Raises:
        ValueError: if there is none.
    """
    if image is None:
        raise ValueError(f"{what} is missing: upload one, or take one of the examples.")
    return _fitted(image, model, model.channels)


def fit_grey(image: Image.Image | None, model: Model) -> np.ndarray:
    """The same as a grey image, the mean of its channels: uint8 of shape (1, H, W)."""
    return fit(image, model).mean(axis=-1).round().astype(np.uint8)


def fit_mask(mask: Image.Image, model: Model) -> Image.Image:
    """A mask in the size of a network: white where most of a pixel was painted."""
    return Image.fromarray(255 * (_fitted(mask, model, 1)[0, ..., 0] >= 128).astype(np.uint8))


def _fitted(image: Image.Image, model: Model, channels: int) -> np.ndarray:
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    # Each pixel is the mean of a box, so that an image that was enlarged by a whole number comes back as it was.
    fitted = ImageOps.fit(image.convert(mode), model.size[::-1], Image.Resampling.BOX)
    return np.array(fitted).reshape(1, *model.size, channels)


def whole(name: str, value, low: int, high: int) -> int:
    """A whole number in [low, high].

    Raises:
        ValueError: for anything else.
    """
    number = real(name, value, low, high)
    if number != int(number):
        raise ValueError(f"{name} is {number:g}; give a whole number from {low} to {high}.")
    return int(number)


def real(name: str, value, low: float, high: float) -> float:
    """A number in [low, high].

    Raises:
        ValueError: for anything else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:  # which NaN is not either
        raise ValueError(f"{name} is {value!r:.50}; give a number from {low:g} to {high:g}.")
    return value


def choice(name: str, value, allowed) -> str:
    """One of the allowed values.

    Raises:
        ValueError: for anything else.
    """
    if value not in allowed:
        raise ValueError(f"{name} is {value!r:.50}; allowed are {', '.join(map(str, allowed))}.")
    return value
