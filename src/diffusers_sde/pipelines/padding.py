"""Images of any size for networks that halve their sides: a border around what they see, cropped from what they say.

The border repeats the outermost pixels, and is as wide on one side as on the other, to one pixel.
"""

import torch


class Padding:
    """The border that makes both sides multiples of a factor.

    Args:
        height: of the image, in pixels.
        width: likewise.
        factor: that a network's strides make; see `size_factor`.
    """

    def __init__(self, height: int, width: int, factor: int):
        self._sides = [(length, -length % factor // 2, length + -length % factor) for length in (height, width)]

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """`x` of any dtype and shape (..., height, width) with the border."""
        for dim, (length, before, padded) in zip((-2, -1), self._sides):
            if padded > length:
                places = torch.arange(padded, device=x.device) - before
                x = x.index_select(dim, places.clamp(0, length - 1))
        return x

    def crop(self, x: torch.Tensor) -> torch.Tensor:
        """`x` of shape (..., padded height, padded width) without the border."""
        for dim, (length, before, _) in zip((-2, -1), self._sides):
            x = x.narrow(dim, before, length)
        return x


def size_factor(network: torch.nn.Module) -> int:
    """What the sides of a network's images must be multiples of."""
    factor = getattr(network, "downsample_factor", None)
    if factor is None:  # UNet2DModel: one halving per level but the last; networks without levels take any size
        factor = 2 ** (len(getattr(network.config, "block_out_channels", None) or (1,)) - 1)
    return factor
