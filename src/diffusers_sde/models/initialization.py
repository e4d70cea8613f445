"""Weight initialisation of the DDPM family."""

import math

import torch
from torch import nn


@torch.no_grad()
def scaled_xavier_uniform_(weight: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Fill `weight` from U(-a, a) with variance `scale` / mean(fan_in, fan_out), in place.

    Args:
        weight: tensor of shape (out, in, ...).
        scale: factor on the variance; 0 stands for 1e-10, which keeps residual branches silent at the start
            without making their gradients exactly zero.

    Returns:
        The same tensor.
    """
    return nn.init.xavier_uniform_(weight, gain=math.sqrt(1e-10 if scale == 0 else scale))


def conv2d(in_channels: int, out_channels: int, kernel_size: int = 3, init_scale: float = 1.0) -> nn.Conv2d:
    """Shape-preserving convolution with `scaled_xavier_uniform_` weights and zero bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    scaled_xavier_uniform_(conv.weight, init_scale)
    nn.init.zeros_(conv.bias)
    return conv


def linear(in_features: int, out_features: int, init_scale: float = 1.0) -> nn.Linear:
    """Linear layer with `scaled_xavier_uniform_` weights and zero bias."""
    layer = nn.Linear(in_features, out_features)
    scaled_xavier_uniform_(layer.weight, init_scale)
    nn.init.zeros_(layer.bias)
    return layer
