"""Noise-conditional image classifier: a wide residual network that also sees the noise level.

Its gradient turns an unconditional score into a class-conditional one.

Reference: Song et al. 2021, arXiv:2011.13456, Sec. 5 and App. I; Zagoruyko and Komodakis 2016, arXiv:1605.07146.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn

from ..loading import CheckedNetwork
from .embeddings import Float32Frequencies, GaussianFourierProjection
from .inputs import check_sample, noise_level


@dataclass
class NoiseConditionalClassifierOutput(BaseOutput):
    """Output of `NoiseConditionalClassifier`.

    Args:
        logits: tensor of shape (B, num_classes).
    """

    logits: torch.Tensor


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-5)


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1 if stride == 1 else 0, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class WideResnetBlock(nn.Module):
    """norm, ReLU, conv, + embedding, norm, ReLU, conv; the shortcut is averaged and filled up with zero channels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output, not fewer.
        embedding_dim: features of the embedding.
        stride: 1, or 2 to halve the resolution.
        activate_shortcut: whether the shortcut leaves after the first ReLU rather than before the first norm.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, stride: int, activate_shortcut: bool):
        super().__init__()
        self.stride = stride
        self.activate_shortcut = activate_shortcut
        self.new_channels = out_channels - in_channels
        self.norm1 = _norm(in_channels)
        self.conv1 = _conv(in_channels, out_channels, stride)
        self.time_emb_proj = nn.Linear(embedding_dim, out_channels)
        self.norm2 = _norm(out_channels)
        self.conv2 = _conv(out_channels, out_channels)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) and the activated embedding (B, D) -> (B, C', H', W')."""
        h = F.relu(self.norm1(x))
        if self.activate_shortcut:
            x = h
        if self.stride == 2:
            # With stride 2, "same" padding is one pixel, at the bottom and right.
            h, x = F.pad(h, (0, 1, 0, 1)), F.avg_pool2d(x, 2)
        h = self.conv1(h) + self.time_emb_proj(embedding)[:, :, None, None]
        h = self.conv2(F.relu(self.norm2(h)))
        return h + F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


class WideResnetGroup(nn.Module):
    """Blocks of one resolution."""

    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            h = block(h, embedding)
        return h


class NoiseConditionalClassifier(Float32Frequencies, CheckedNetwork, ModelMixin, ConfigMixin):
    r"""Wide residual network for log p(y given x_t), conditioned on the noise level sigma.

    The defaults are those of the official CIFAR-10 classifier for the VE SDE.

    Parameters:
        sample_size (`int`, *optional*, defaults to 32): Height and width of the training images.
        in_channels (`int`, *optional*, defaults to 3): Channels of the input.
        num_classes (`int`, *optional*, defaults to 10): Number of classes.
        blocks_per_group (`int`, *optional*, defaults to 4): Residual blocks per resolution.
        channel_multiplier (`int`, *optional*, defaults to 10): Width of the three resolutions in units of 16, 32, 64.
        embedding_features (`int`, *optional*, defaults to 128): Number of Fourier frequencies.
        fourier_scale (`float`, *optional*, defaults to 16.0): Standard deviation of the Fourier frequencies.
        image_mean (`tuple[float]`, *optional*): Mean per channel of the data, in [0, 1]; by default CIFAR-10's.
        image_std (`tuple[float]`, *optional*): Standard deviation per channel, likewise.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["WideResnetGroup"]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        num_classes: int = 10,
        blocks_per_group: int = 4,
        channel_multiplier: int = 10,
        embedding_features: int = 128,
        fourier_scale: float = 16.0,
        image_mean: tuple[float, ...] = (0.49139968, 0.48215841, 0.44653091),
        image_std: tuple[float, ...] = (0.24703223, 0.24348513, 0.26158784),
    ):
        super().__init__()
        if len(image_mean) != in_channels or len(image_std) != in_channels:
            raise ValueError(
                f"`image_mean` and `image_std` have {len(image_mean)} and {len(image_std)} values; they need one per "
                f"channel, {in_channels}."
            )
        embedding_dim = 4 * embedding_features
        self.time_proj = GaussianFourierProjection(embedding_features, fourier_scale)
        self.time_embedding = TimestepEmbedding(2 * embedding_features, embedding_dim)
        self.conv_in = _conv(in_channels, 16)
        channels = 16
        self.groups = nn.ModuleList()
        for i in range(3):
            width = 16 * 2**i * channel_multiplier
            blocks = []
            for j in range(blocks_per_group):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(WideResnetBlock(channels, width, embedding_dim, stride, i == 0 and j == 0))
                channels = width
            self.groups.append(WideResnetGroup(blocks))
        self.norm_out = _norm(channels)
        self.linear_out = nn.Linear(channels, num_classes)
        self.gradient_checkpointing = False

    @property
    def downsample_factor(self) -> int:
        """Height and width of inputs must be multiples of this."""
        return 4

    def forward(
        self, sample: torch.Tensor, sigma: torch.Tensor | float, return_dict: bool = True
    ) -> NoiseConditionalClassifierOutput | tuple[torch.Tensor]:
        r"""Logits of the classes of noisy images.

        Args:
            sample (`torch.Tensor`): x_t of shape (B, C, H, W): data in [0, 1], plus noise.
            sigma (`torch.Tensor` or `float`): Standard deviation of the noise, shape () or (B,).
            return_dict (`bool`, *optional*, defaults to `True`):
                Whether to return a `NoiseConditionalClassifierOutput`.

        Returns:
            `NoiseConditionalClassifierOutput` or a tuple: logits of shape (B, num_classes) in the dtype of `sample`.

        Raises:
            ValueError: if channels or size do not fit the network, or `sigma` the batch.
        """
        check_sample(sample, self.config.in_channels, self.downsample_factor)
        level = noise_level(sample, sigma)
        dtype = self.dtype  # that of the arithmetic, however the weights are stored
        embedding = F.silu(self.time_embedding(self.time_proj(level).to(dtype)))
        h = self.conv_in(self._standardize(sample).to(dtype))
        for group in self.groups:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                h = self._gradient_checkpointing_func(group, h, embedding)
            else:
                h = group(h, embedding)
        h = F.relu(self.norm_out(h)).mean(dim=(2, 3))
        logits = self.linear_out(h).to(sample.dtype)
        return NoiseConditionalClassifierOutput(logits=logits) if return_dict else (logits,)

    def _standardize(self, sample: torch.Tensor) -> torch.Tensor:
        """Standardise by the data's statistics per channel, then each image by its own; float32 or better."""
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self.config.image_mean, self.config.image_std))
        x = (x - mean) / std
        variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
        return (x - mean) / variance.clamp(min=1 / x[0].numel()).sqrt()
