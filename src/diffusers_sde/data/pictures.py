"""From a picture file to an upright picture of 8 bits: the one reader of all commands, of training and of the Space.

- Formats: those of `FORMATS`, told by their content, so that nothing reaches an external interpreter.
- Size: at most `MAX_PIXELS` pixels, known from the header, before anything is decoded.
- Modes: L, LA, RGB or RGBA. Palettes are looked up, CMYK, YCbCr and HSV become RGB, one bit becomes 0 and 255, 16 bits
  are scaled and rounded (65535 becomes 255). Other numbers have no stated range and are refused.
- Transparency, of a palette or a colour key too, becomes an alpha channel; `flatten` lays it on a background.
- Orientation: as the camera's tag has it. Of an animation the first frame is read.
"""

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_PIXELS = 2**26  # 8192 x 8192
_ORIENTATION = 274
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")
_COLOURS = ("CMYK", "YCbCr", "HSV", "RGBX")
_MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA"}
_MODES |= {"RGBa": "RGBA"} | dict.fromkeys(_SIXTEEN_BITS, "L") | dict.fromkeys(_COLOURS, "RGB")

Source = str | os.PathLike | bytes


@dataclass(frozen=True)
class PictureHeader:
    """Size and mode of a picture, as `read_picture` will return it.

    Args:
        height: number of pixels from top to bottom, upright.
        width: number of pixels from left to right.
        mode: "L", "LA", "RGB" or "RGBA".
    """

    height: int
    width: int
    mode: str


def read_picture(source: Source, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An upright picture of 8 bits in mode L, LA, RGB or RGBA.

    Args:
        source: path of a regular file, or the bytes of one.
        name: stands in messages for the path.
        max_pixels: largest height times width.

    Raises:
        ValueError: for what is no picture of `FORMATS`, is damaged or too large, or has values without a stated
            range; the message begins with the name.
        OSError: if the file is missing, is no regular file, or may not be read.
    """
    name = _name(source, name)
    with _stream(source, name) as stream:
        image = _open(stream, name, max_pixels)
        mode = _mode(image, name)
        try:
            image.load()
            return _in_mode(ImageOps.exif_transpose(image), mode)
        except Exception as error:  # whatever the decoders make of a damaged file
            raise _damaged(name, error) from error


def read_header(source: Source, name: str | None = None, max_pixels: int = MAX_PIXELS) -> PictureHeader:
    """Size and mode of a picture, without its pixels; arguments and errors are those of `read_picture`."""
    name = _name(source, name)
    with _stream(source, name) as stream:
        image = _open(stream, name, max_pixels)
        mode = _mode(image, name)
        try:
            turned = _lies_on_its_side(image)
        except Exception as error:
            raise _damaged(name, error) from error
    width, height = image.size[::-1] if turned else image.size
    return PictureHeader(height, width, mode)


def flatten(image: Image.Image, background: str = "black") -> Image.Image:
    """A picture without alpha channel, L or RGB: what shows through is the background."""
    if image.mode not in ("LA", "RGBA"):
        return image
    opaque = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(opaque, image.convert("RGBA")).convert("L" if image.mode == "LA" else "RGB")


def _lies_on_its_side(image: Image.Image) -> bool:
    """Whether height and width are still to be exchanged."""
    tags = image.getexif()
    if image.format == "TIFF" and image.size != (tags.get(256), tags.get(257)):
        return False  # PIL turns these itself, and their size from the start
    return tags.get(_ORIENTATION) in (5, 6, 7, 8)


def _name(source: Source, name: str | None) -> str:
    return name or ("the picture" if isinstance(source, bytes) else os.fspath(source))


def _stream(source: Source, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not stat.S_ISREG(os.stat(source).st_mode):
        kind = "a folder" if Path(source).is_dir() else "neither a file nor a folder"  # a pipe, a device
        raise OSError(f"{name} is {kind}; give a picture file.")
    return open(source, "rb")  # closed by the caller


def _open(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """What is known from the header.

    The decoders are asked themselves rather than by `Image.open`, which warns of large pictures and has one bound for
    a whole process.
    """
    Image.init()
    start = stream.read(16)
    for name_of_format in FORMATS:
        factory, accepts = Image.OPEN[name_of_format]
        try:
            if accepts is not None and accepts(start) is not True:
                continue
            stream.seek(0)
            image = factory(stream, "")
        except Exception as error:
            raise _damaged(name, error) from error
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(
                f"{name} has {height} x {width} pixels; at most {max_pixels / 1e6:.1f} million are read. Make it "
                "smaller first."
            )
        return image
    raise ValueError(f"{name} is not a picture that can be read here; give one of {', '.join(FORMATS)}.")


def _damaged(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} is a damaged picture: {str(error)[:200] or type(error).__name__}. Save it anew.")


def _mode(image: Image.Image, name: str) -> str:
    """The mode of the result."""
    mode = _MODES.get(image.mode)
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # how PIL shows some of 16 bits
        mode = "L"
    if mode is None:
        kind = {"F": "floating-point values", "I": "32-bit integers"}.get(image.mode)
        if kind is None:
            raise ValueError(f"{name} has the mode {image.mode!r}, which is not read here. Save it as grey or RGB.")
        raise ValueError(
            f"{name} has {kind}, of which no file states what is black and what white. Save it with 8 or 16 bits per "
            "channel."
        )
    if "transparency" in image.info:
        return {"L": "LA", "RGB": "RGBA"}.get(mode, mode)
    return mode


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """A loaded, upright picture in 8 bits."""
    if image.mode not in (*_SIXTEEN_BITS, "I"):
        return image if image.mode == mode else image.convert(mode)
    values = np.asarray(image).astype(np.uint32)
    result = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if mode == "LA":
        result.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return result
