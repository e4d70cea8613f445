"""DDPM: the U-Net of Ho et al. 2020, as it was trained for the VE, VP and sub-VP SDEs.

It differs from DDPM++ (`NCSNppModel`) in what surrounds the same skeleton: a fixed number of normalisation groups
or another normalisation, residual sums as they are, no residual blocks that resample.

Reference: Ho et al. 2020, arXiv:2006.11239, App. B; Song et al. 2021, arXiv:2011.13456, App. C.
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..loading import CheckedNetwork
from .activations import activation
from .attention import AttentionBlock
from .embeddings import time_embedding
from .initialization import conv2d, linear
from .inputs import ScoreNetworkOutput, check_sample, noise_level, sigma_of_label
from .normalization import normalization
from .resampling import Downsample, Upsample


class DDPMResnetBlock(nn.Module):
    """Residual block: norm, act, conv, + embedding, norm, act, dropout, conv.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        embedding_dim: features of the embedding, or `None` for an unconditional network.
        norm_groups: groups of both normalisations.
        act_fn: activation function, see `activation`.
        dropout: dropout probability.
        norm_type: both normalisations, see `normalization`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int | None,
        norm_groups: int,
        act_fn: str,
        dropout: float,
        norm_type: str = "group",
    ):
        super().__init__()
        self.act = activation(act_fn)
        self.norm1 = normalization(norm_type, in_channels, norm_groups)
        self.conv1 = conv2d(in_channels, out_channels)
        self.time_emb_proj = None if embedding_dim is None else linear(embedding_dim, out_channels)
        self.norm2 = normalization(norm_type, out_channels, norm_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv2d(out_channels, out_channels, init_scale=0.0)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = conv2d(in_channels, out_channels, kernel_size=1, init_scale=0.1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        """(B, C, H, W) and the activated embedding (B, D) -> (B, C', H, W)."""
        h = self.conv1(self.act(self.norm1(x)))
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(self.act(self.norm2(h))))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class DDPMDownBlock(nn.Module):
    """One level of the encoder: residual blocks, attention after each, then halving of the resolution.

    Args:
        resnets: the residual blocks.
        attentions: as many attention blocks, or none.
        downsampler: `Downsample`, or `None` for the lowest resolution.
    """

    def __init__(self, resnets: list[nn.Module], attentions: list[nn.Module], downsampler: nn.Module | None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attentions = nn.ModuleList(attentions)
        self.downsampler = downsampler

    def forward(self, h: torch.Tensor, embedding: torch.Tensor | None) -> list[torch.Tensor]:
        """Features and embedding -> one skip per residual block and downsampler; the last one goes on."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, embedding)
            if self.attentions:
                h = self.attentions[i](h)
            skips.append(h)
        if self.downsampler is not None:
            skips.append(self.downsampler(h))
        return skips


class DDPMMidBlock(nn.Module):
    """Lowest resolution: residual block, attention, residual block."""

    def __init__(self, resnets: list[nn.Module], attention: nn.Module):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attention = attention

    def forward(self, h: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        return self.resnets[1](self.attention(self.resnets[0](h, embedding)), embedding)


class DDPMUpBlock(nn.Module):
    """One level of the decoder: residual blocks fed with skips, attention once, then doubling of the resolution.

    Args:
        resnets: the residual blocks.
        attention: attention block after them, or `None`.
        upsampler: `Upsample`, or `None` for the highest resolution.
    """

    def __init__(self, resnets: list[nn.Module], attention: nn.Module | None, upsampler: nn.Module | None):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.attention = attention
        self.upsampler = upsampler

    def forward(self, h: torch.Tensor, embedding: torch.Tensor | None, *skips: torch.Tensor) -> torch.Tensor:
        """Features, embedding and skips in the order of use -> features."""
        for resnet, skip in zip(self.resnets, skips, strict=True):
            h = resnet(torch.cat([h, skip], dim=1), embedding)
        if self.attention is not None:
            h = self.attention(h)
        return h if self.upsampler is None else self.upsampler(h)


class DDPMModel(CheckedNetwork, ModelMixin, ConfigMixin):
    r"""DDPM score network with the calling convention of `UNet2DModel`.

    The defaults are those of the official VP CIFAR-10 configuration. `UNet2DModel` expresses the conditional network
    without `scale_by_sigma` exactly, if the attentions that it has in excess are silenced.

    Parameters:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to 32):
            Height and width of the training images. Other sizes work as long as every level divides them.
        in_channels (`int`, *optional*, defaults to 3): Channels of the input.
        out_channels (`int`, *optional*, defaults to 3): Channels of the output.
        center_input_sample (`bool`, *optional*, defaults to `False`):
            Whether inputs are in [0, 1] and mapped to [-1, 1] by the network (official `centered = False`).
        block_out_channels (`tuple[int]`, *optional*, defaults to `(128, 256, 256, 256)`):
            Channels of each level, highest resolution first; multiples of `norm_num_groups`.
        layers_per_block (`int`, *optional*, defaults to 2): Residual blocks per level of the encoder.
        attn_resolutions (`tuple[int]`, *optional*, defaults to `(16,)`):
            Resolutions (of `sample_size`'s larger side) whose levels have attention.
        resample_with_conv (`bool`, *optional*, defaults to `True`):
            Whether the resolution is changed with a convolution.
        conditional (`bool`, *optional*, defaults to `True`): Whether the network sees the time label.
        scale_by_sigma (`bool`, *optional*, defaults to `False`): Whether the output is divided by sigma (VE).
        sigma_min (`float`, *optional*, defaults to 0.01): Smallest sigma of the label grid, see `num_train_timesteps`.
        sigma_max (`float`, *optional*, defaults to 50.0): Largest sigma of the label grid.
        num_train_timesteps (`int`, *optional*, defaults to 1000):
            Length of the geometric grid from `sigma_max` (label 0) to `sigma_min`, by which `scale_by_sigma` turns
            labels into sigmas. Unused otherwise.
        act_fn (`str`, *optional*, defaults to `"silu"`):
            Activation function: `"elu"`, `"relu"`, `"lrelu"` (of slope 0.2), `"silu"` or another name of diffusers.
        dropout (`float`, *optional*, defaults to 0.1): Dropout probability in residual blocks.
        norm_num_groups (`int`, *optional*, defaults to 32): Groups of every normalisation.
        norm_type (`str`, *optional*, defaults to `"group"`):
            Normalisation: `"group"`, `"instance"`, `"instance++"` or `"variance"`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DDPMDownBlock", "DDPMMidBlock", "DDPMUpBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 256),
        layers_per_block: int = 2,
        attn_resolutions: tuple[int, ...] = (16,),
        resample_with_conv: bool = True,
        conditional: bool = True,
        scale_by_sigma: bool = False,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        num_train_timesteps: int = 1000,
        act_fn: str = "silu",
        dropout: float = 0.1,
        norm_num_groups: int = 32,
        norm_type: str = "group",
    ):
        super().__init__()
        self._check_config()
        base = block_out_channels[0]
        self.act = activation(act_fn)
        self.time_proj = self.time_embedding = None
        if conditional:
            self.time_proj = Timesteps(base, flip_sin_to_cos=False, downscale_freq_shift=1)
            self.time_embedding = time_embedding(base, 4 * base, act_fn)
        self.conv_in = conv2d(in_channels, base)
        size = sample_size if isinstance(sample_size, int) else max(sample_size)
        has_attention = [size // 2**i in attn_resolutions for i in range(len(block_out_channels))]
        skips = self._build_encoder(has_attention)
        lowest = block_out_channels[-1]
        self.mid_block = DDPMMidBlock([self._resnet(lowest, lowest) for _ in range(2)], self._attention(lowest))
        self._build_decoder(has_attention, skips)
        self.conv_norm_out = normalization(norm_type, base, norm_num_groups)
        self.conv_out = conv2d(base, out_channels, init_scale=0.0)
        self.gradient_checkpointing = False

    def _check_config(self) -> None:
        widths, groups = tuple(self.config.block_out_channels), self.config.norm_num_groups
        if not widths or any(width < 1 or width % groups for width in widths):
            raise ValueError(
                f"`block_out_channels` is {widths}; it needs at least one level, each a multiple of `norm_num_groups` "
                f"({groups})."
            )

    def _resnet(self, in_channels: int, out_channels: int) -> DDPMResnetBlock:
        config = self.config
        embedding_dim = 4 * config.block_out_channels[0] if config.conditional else None
        return DDPMResnetBlock(
            in_channels,
            out_channels,
            embedding_dim,
            config.norm_num_groups,
            config.act_fn,
            config.dropout,
            config.norm_type,
        )

    def _attention(self, channels: int) -> AttentionBlock:
        return AttentionBlock(channels, self.config.norm_num_groups, norm_type=self.config.norm_type)

    def _build_encoder(self, has_attention: list[bool]) -> list[int]:
        """Builds `down_blocks`; returns the channels of all skips in the order in which they arise."""
        config = self.config
        channels, layers = config.block_out_channels[0], config.layers_per_block
        skips = [channels]
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(config.block_out_channels):
            resnets = [self._resnet(channels if j == 0 else width, width) for j in range(layers)]
            attentions = [self._attention(width) for _ in range(layers * has_attention[i])]
            last = i == len(config.block_out_channels) - 1
            downsampler = None if last else Downsample(width, use_conv=config.resample_with_conv)
            self.down_blocks.append(DDPMDownBlock(resnets, attentions, downsampler))
            skips += [width] * (layers + (not last))
            channels = width
        return skips

    def _build_decoder(self, has_attention: list[bool], skips: list[int]) -> None:
        config = self.config
        channels, skips = skips[-1], list(skips)
        self.up_blocks = nn.ModuleList()
        for i in reversed(range(len(config.block_out_channels))):
            width = config.block_out_channels[i]
            resnets = []
            for _ in range(config.layers_per_block + 1):
                resnets.append(self._resnet(channels + skips.pop(), width))
                channels = width
            attention = self._attention(width) if has_attention[i] else None
            upsampler = Upsample(width, use_conv=config.resample_with_conv) if i else None
            self.up_blocks.append(DDPMUpBlock(resnets, attention, upsampler))

    @property
    def downsample_factor(self) -> int:
        """Height and width of inputs must be multiples of this."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, return_dict: bool = True
    ) -> ScoreNetworkOutput | tuple[torch.Tensor]:
        r"""Evaluate the network.

        Args:
            sample (`torch.Tensor`): Noisy images of shape (B, C_in, H, W), in the data range plus noise.
            timestep (`torch.Tensor`, `float` or `int`): Time label of shape () or (B,); need not be a whole number.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreNetworkOutput`.

        Returns:
            `ScoreNetworkOutput` or a tuple: the output of shape (B, C_out, H, W) in the dtype of `sample`.

        Raises:
            ValueError: if channels or size do not fit the network, or `timestep` the batch.
        """
        check_sample(sample, self.config.in_channels, self.downsample_factor)
        label = noise_level(sample, timestep)
        dtype = self.dtype  # that of the arithmetic, however the weights are stored
        h = sample.to(dtype)
        if self.config.center_input_sample:
            h = 2 * h - 1
        embedding = None
        if self.time_proj is not None:
            embedding = self.act(self.time_embedding(self.time_proj(label).to(dtype)))
        h = self._unet(h, embedding)
        if self.config.scale_by_sigma:
            config = self.config
            sigma = sigma_of_label(label, config.sigma_min, config.sigma_max, config.num_train_timesteps)
            h = h.float() / sigma[:, None, None, None]
        h = h.to(sample.dtype)
        return ScoreNetworkOutput(sample=h) if return_dict else (h,)

    def _unet(self, x: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        skips = [self.conv_in(x)]
        for block in self.down_blocks:
            skips += self._run(block, skips[-1], embedding)
        h = self._run(self.mid_block, skips[-1], embedding)
        for block in self.up_blocks:
            h = self._run(block, h, embedding, *(skips.pop() for _ in block.resnets))
        return self.conv_out(self.act(self.conv_norm_out(h)))

    def _run(self, block: nn.Module, *args):
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)
