"""Resampling by a factor of two, with a FIR filter or plainly, with a learned convolution or without parameters.

The separable filter `k` has unit gain and suppresses aliasing as in StyleGAN2:

    down: y = (x * k)[::2, ::2]          up: y = 4 (zero-stuffed x) * k

Each is one strided depthwise (transposed) convolution; zero-stuffed or full-resolution images are never built.

Reference: Song et al. 2021, arXiv:2011.13456, App. H; Karras et al. 2020, arXiv:1912.04958.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .initialization import scaled_xavier_uniform_


def fir_kernel_2d(kernel: tuple[float, ...]) -> torch.Tensor:
    """Outer product of a 1-D filter with itself, scaled to unit sum.

    Args:
        kernel: taps of the separable filter: an even number (the output grid is centred), symmetric.

    Returns:
        float32 tensor of shape (n, n).

    Raises:
        ValueError: if `kernel` is no such filter.
    """
    kernel = tuple(kernel)
    if len(kernel) % 2 or kernel != kernel[::-1] or sum(kernel) == 0:
        raise ValueError(
            f"`fir_kernel` is {kernel}; a filter for resampling by two is symmetric, with an even number of taps and "
            "a non-zero sum, for instance (1, 3, 3, 1)."
        )
    taps = torch.tensor(kernel, dtype=torch.float32)
    return torch.outer(taps, taps) / taps.sum() ** 2


def _depthwise_filter(kernel: tuple[float, ...], channels: int, gain: float) -> torch.Tensor:
    """The filter once per channel, (channels, 1, n, n)."""
    return (gain * fir_kernel_2d(kernel)).expand(channels, 1, -1, -1).contiguous()


class Downsample(nn.Module):
    """Halve height and width: (B, C, H, W) -> (B, C', H/2, W/2).

    Args:
        in_channels: channels C.
        out_channels: channels C', with `use_conv`; otherwise C' = C.
        fir_kernel: taps of the filter; `None` averages 2 x 2 pixels or leaves it to the convolution.
        use_conv: whether a 3 x 3 convolution of stride 2 follows the filter.
    """

    def __init__(self, in_channels: int, out_channels: int | None = None, fir_kernel=None, use_conv: bool = False):
        super().__init__()
        self.conv = None
        if use_conv:
            self.conv = nn.Conv2d(in_channels, out_channels or in_channels, kernel_size=3, stride=2)
            scaled_xavier_uniform_(self.conv.weight)
            nn.init.zeros_(self.conv.bias)
        # Follows from the config, so it is not saved; loading in half precision leaves it in float32.
        taps = None if fir_kernel is None else _depthwise_filter(fir_kernel, in_channels, gain=1.0)
        self.register_buffer("filter", taps, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.filter is None:
            # With stride 2, "same" padding is one pixel, at the bottom and right.
            return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))
        fir, taps = self.filter.to(x.dtype), self.filter.shape[-1]
        if self.conv is None:
            return F.conv2d(x, fir, stride=2, padding=taps // 2 - 1, groups=x.shape[1])
        return self.conv(F.conv2d(x, fir, padding=taps // 2, groups=x.shape[1]))


class Upsample(nn.Module):
    """Double height and width: (B, C, H, W) -> (B, C', 2H, 2W).

    Args:
        in_channels: channels C.
        out_channels: channels C', with `use_conv`; otherwise C' = C.
        fir_kernel: taps of the filter; `None` repeats pixels.
        use_conv: whether a 3 x 3 convolution is part of it: transposed and before the filter, or after the repetition.
    """

    def __init__(self, in_channels: int, out_channels: int | None = None, fir_kernel=None, use_conv: bool = False):
        super().__init__()
        out_channels = out_channels or in_channels
        self.conv = self.bias = None
        if use_conv and fir_kernel is None:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
            nn.init.zeros_(self.conv.bias)
        elif use_conv:
            self.conv = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=3, stride=2, bias=False)
            self.bias = nn.Parameter(torch.zeros(out_channels))  # added after the filter
        if use_conv:
            scaled_xavier_uniform_(self.conv.weight)
        # Gain 4, since three of four pixels are zero before the filter.
        taps = None if fir_kernel is None else _depthwise_filter(fir_kernel, out_channels, gain=4.0)
        self.register_buffer("filter", taps, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.filter is None:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            return x if self.conv is None else self.conv(x)
        fir, taps = self.filter.to(x.dtype), self.filter.shape[-1]
        if self.conv is None:
            return F.conv_transpose2d(x, fir, stride=2, padding=taps // 2 - 1, groups=x.shape[1])
        x = F.conv2d(self.conv(x), fir, padding=taps // 2 - 1, groups=fir.shape[0])
        return x + self.bias.to(x.dtype)[:, None, None]
