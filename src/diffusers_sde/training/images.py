"""From a picture of a data set to an 8-bit array of the training size."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..data import flatten

_MODE_OF_CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_CHANNELS_OF_MODE = {mode: channels for channels, mode in _MODE_OF_CHANNELS.items()}
_LOSSLESS = {(1, 2), (1, 3), (1, 4), (2, 4), (3, 4)}


@dataclass(frozen=True)
class ImageFormat:
    """Size and channels of training images, and how other images are brought to them.

    Args:
        size: (height, width) in pixels.
        channels: 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha.
        convert: whether conversions that lose something (colour to grey, alpha to a black background) are wanted.
        pad: whether an image that fits inside `size` gets a black border instead of being resized.
        center_crop: whether the crop to `size` is central; else its place is drawn by the caller.
        crop_size: side in pixels of the central square that is cut out before all else.
    """

    size: tuple[int, int]
    channels: int
    convert: bool = False
    pad: bool = False
    center_crop: bool = False
    crop_size: int | None = None

    def prepare(self, image: Image.Image) -> Image.Image:
        """Bring the channels and the size right, up to a crop: the result covers `size`.

        Raises:
            ValueError: if the image is not 8-bit, or loses something by the conversion and `convert` is not set.
        """
        image = self._cut_square(self._to_mode(image))
        height, width = self.size
        if image.size == (width, height):
            return image
        if self.pad and image.width <= width and image.height <= height:
            canvas = Image.new(image.mode, (width, height))
            canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
            return canvas
        scale = max(height / image.height, width / image.width)
        covering = (max(width, round(scale * image.width)), max(height, round(scale * image.height)))
        return image.resize(covering, Image.Resampling.BILINEAR)

    def needs_random_crop(self, prepared: Image.Image) -> bool:
        """Whether `crop` needs a drawn place for this image."""
        return not self.center_crop and prepared.size != self.size[::-1]

    def crop(self, prepared: Image.Image, fractions: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
        """Cut `size` out of a prepared image.

        Args:
            prepared: what `prepare` returned.
            fractions: share in [0, 1) of the superfluous rows and columns that is cut above and at the left.

        Returns:
            uint8, shape (channels, height, width).
        """
        height, width = self.size
        top = int(fractions[0] * (prepared.height - height + 1))
        left = int(fractions[1] * (prepared.width - width + 1))
        array = np.asarray(prepared).reshape(prepared.height, prepared.width, self.channels)
        return array[top : top + height, left : left + width].transpose(2, 0, 1).copy()

    def _cut_square(self, image: Image.Image) -> Image.Image:
        side = self.crop_size
        if side is None:
            return image
        if min(image.size) < side:
            raise ValueError(
                f"the data set has an image of {image.height} x {image.width} pixels, from which no square of "
                f"{side} x {side} can be cut; give a smaller --crop_size, or leave it out."
            )
        left, top = (image.width - side) // 2, (image.height - side) // 2
        return image.crop((left, top, left + side, top + side))

    def _to_mode(self, image: Image.Image) -> Image.Image:
        if self.channels not in _MODE_OF_CHANNELS:
            raise ValueError(
                f"images of {self.channels} channels were asked for; pictures have 1 (grey), 2 (grey + alpha), 3 "
                "(RGB), 4 (RGB + alpha). More channels can be trained on from an npz file of the network's size."
            )
        target = _MODE_OF_CHANNELS[self.channels]
        if image.mode == target:
            return image
        found = _CHANNELS_OF_MODE.get(image.mode)
        if found is None:
            raise ValueError(
                f"the data set has an image of mode {image.mode!r}; allowed are {', '.join(_CHANNELS_OF_MODE)}, as "
                "`data.read_picture` returns them."
            )
        if found != self.channels and (found, self.channels) not in _LOSSLESS and not self.convert:
            raise ValueError(
                f"the data set has an image of {found} channels (mode {image.mode!r}), the network takes "
                f"{self.channels}. Pass --channels {self.channels} to convert the images, or take a network with "
                f"in_channels = {found}."
            )
        return (image if target.endswith("A") else flatten(image)).convert(target)
