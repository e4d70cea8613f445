"""Normalisations of feature maps, by name. All of them can be called with labels of noise levels, which most ignore.

Statistics are over the pixels of one channel of one image, with the biased variance and eps = 1e-5, but for group
normalisation, where eps is 1e-6.
"""

import torch
from torch import nn

NORM_TYPES = ("group", "instance", "instance++", "variance")
"""Names that `normalization` takes: GroupNorm, InstanceNorm, InstanceNorm++ and VarianceNorm of the official code."""


def normalization(norm_type: str, channels: int, groups: int) -> nn.Module:
    """A normalisation of C channels.

    Args:
        norm_type: one of `NORM_TYPES`.
        channels: channels C.
        groups: number of groups of `"group"`, a divisor of C.

    Raises:
        ValueError: if there is none of that name, or `groups` does not divide `channels`.
    """
    if norm_type == "group":
        return GroupNorm(groups, channels, eps=1e-6)
    if norm_type == "instance":
        return InstanceNorm(channels)
    if norm_type == "instance++":
        return InstanceNormPlus(channels, None, unbiased=False)
    if norm_type == "variance":
        return VarianceNorm(channels)
    raise ValueError(f"`norm_type` is {norm_type!r}; allowed are {', '.join(map(repr, NORM_TYPES))}.")


class GroupNorm(nn.GroupNorm):
    """Group normalisation."""

    def forward(self, x: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x)


class InstanceNorm(nn.Module):
    """Instance normalisation: weight (x - mu) / s + bias, with mean mu and standard deviation s per channel.

    Unlike `nn.InstanceNorm2d` it takes feature maps of one pixel, of which it leaves the bias.

    Args:
        channels: channels C.
    """

    eps = 1e-5

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        h = (x - mean) / torch.sqrt(variance + self.eps)
        return (h * self.weight[:, None, None] + self.bias[:, None, None]).to(dtype)


class VarianceNorm(nn.Module):
    """Variance normalisation: weight x / s, with the standard deviation s per channel; the mean stays.

    Args:
        channels: channels C.
    """

    eps = 1e-5

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels).normal_(1.0, 0.02))

    def forward(self, x: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))
        variance = torch.var(x, dim=(2, 3), correction=0, keepdim=True)
        return (self.weight[:, None, None] * x / torch.sqrt(variance + self.eps)).to(dtype)


class InstanceNormPlus(nn.Module):
    """Instance normalisation++: gamma ((x - mu) / s + alpha (mu - m) / v) + beta.

    mu and s are mean and standard deviation per channel, m and v those of mu over the channels. The term with alpha
    keeps how the channels' means differ, which instance normalisation loses.

    Args:
        channels: channels C.
        num_classes: number of labels, each with gamma, alpha and beta of its own; `None` for one set for all.
        unbiased: whether v^2 is the unbiased variance.

    Reference: Song and Ermon 2019, arXiv:1907.05600, App. A.1.
    """

    eps = 1e-5

    def __init__(self, channels: int, num_classes: int | None, unbiased: bool):
        super().__init__()
        self.correction = int(unbiased)
        self.embedding = None
        if num_classes is None:
            self.scale = nn.Parameter(torch.empty(channels).normal_(1.0, 0.02))
            self.mean_scale = nn.Parameter(torch.empty(channels).normal_(1.0, 0.02))
            self.bias = nn.Parameter(torch.zeros(channels))
        else:
            self.embedding = nn.Embedding(num_classes, 3 * channels)
            nn.init.normal_(self.embedding.weight[:, : 2 * channels].detach(), 1.0, 0.02)
            nn.init.zeros_(self.embedding.weight[:, 2 * channels :].detach())

    def forward(self, x: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, H, W) and, if there are several sets, integer labels (B,) -> (B, C, H, W)."""
        dtype = x.dtype
        x = x.to(torch.promote_types(dtype, torch.float32))  # variances of large noise do not fit in float16
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        v, m = torch.var_mean(mean, dim=1, correction=self.correction, keepdim=True)
        if self.embedding is None:
            scale, mean_scale, bias = (p[:, None, None] for p in (self.scale, self.mean_scale, self.bias))
        else:
            scale, mean_scale, bias = self.embedding(label)[:, :, None, None].chunk(3, dim=1)
        h = (x - mean) / torch.sqrt(variance + self.eps)
        return (scale * (h + mean_scale * (mean - m) / torch.sqrt(v + self.eps)) + bias).to(dtype)
