"""What users send, checked before any work: pictures, masks, numbers."""

import gradio as gr
import numpy as np
from PIL import Image, ImageChops, ImageOps

from diffusers_sde import data

from .models import Model

MAX_FILE_SIZE = "10mb"
MAX_PIXELS = 4096 * 4096
MAX_SEED = 2**53 - 1  # the largest that a browser can write exactly
EDITOR_SIZE = 320
MAX_LAYERS = 16  # the page makes one


class Picture(gr.Image):
    """An image input whose values are PIL images in RGB, checked by `read_picture`."""

    is_template = True  # the browser shows it as its parent

    def preprocess(self, payload):
        return None if payload is None else read_picture(_content(payload))


class MaskedPicture(gr.ImageEditor):
    """An image to paint on; its values are the image in RGB and the mask in L, white where painted, or `None`.

    The files are read here rather than by `gr.ImageEditor`, which opens whatever PIL can.
    """

    is_template = True

    def preprocess(self, payload):
        parts = payload
        if payload is not None and payload.id is not None:  # what the browser sent in pieces, as bytes
            parts = self.blob_storage.pop(payload.id, None)
        if parts is None or parts.background is None:
            return None
        if len(parts.layers or []) > MAX_LAYERS:
            raise gr.Error(f"The drawing has more than {MAX_LAYERS} layers.", print_exception=False)
        image = read_picture(_content(parts.background), "white")  # as the page shows it
        mask = Image.new("L", image.size)
        for layer in parts.layers or []:
            if layer is not None:
                painted = _read(_content(layer)).convert("RGBA").getchannel("A")
                mask = ImageChops.lighter(mask, painted.resize(mask.size))
        return image, mask


def read_picture(source: str | bytes, background: str = "black") -> Image.Image:
    """An uploaded file as an upright image in RGB.

    Args:
        source: path or content of the file.
        background: colour behind what is transparent.

    Raises:
        gr.Error: if it is no image that can be read, or a large one.
    """
    return data.flatten(_read(source), background).convert("RGB")


def _read(source: str | bytes) -> Image.Image:
    try:
        return data.read_picture(source, "The image", MAX_PIXELS)
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except OSError as error:  # whose text may have a path of the server
        raise gr.Error("The image is not there any more; upload it again.", print_exception=False) from error


def _content(part) -> str | bytes:
    """Content or path of a file that a client sent."""
    if isinstance(part, bytes | bytearray | memoryview):
        return bytes(part)
    if not part.path:
        raise gr.Error("Send the image as a file.", print_exception=False)
    return part.path


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
