"""NCSN++ and DDPM++: the U-Nets of score-based generative modelling through SDEs.

One network covers both families and every official configuration: DDPM++ is NCSN++ with positional embedding, plain
resampling and no progressive input. Its output depends on the SDE it was trained for: the score itself for VE
(`scale_by_sigma`), the noise prediction epsilon for VP and sub-VP.

Reference: Song et al. 2021, arXiv:2011.13456, Sec. 4 and App. H.
"""

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import Timesteps
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..loading import CheckedNetwork
from .activations import activation
from .attention import AttentionBlock
from .embeddings import Float32Frequencies, GaussianFourierProjection, time_embedding
from .initialization import conv2d, linear
from .inputs import ScoreNetworkOutput, check_sample, noise_level, sigma_of_label
from .resampling import Downsample, Upsample


def _norm_groups(channels: int) -> int:
    """At most 32 groups of at least 4 channels: the official number, or the next below that divides `channels`."""
    return next(groups for groups in range(min(channels // 4, 32), 0, -1) if channels % groups == 0)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_norm_groups(channels), channels, eps=1e-6)


def _attention(channels: int, options: "_Options") -> AttentionBlock:
    return AttentionBlock(channels, _norm_groups(channels), options.init_scale, options.residual_scale)


@dataclass(frozen=True)
class _Options:
    """What all blocks of one network have in common."""

    act_fn: str
    embedding_dim: int | None
    dropout: float
    init_scale: float
    residual_scale: float
    fir_kernel: tuple[float, ...] | None
    resnet_type: str
    resample_with_conv: bool

    def resampler(self, module: type, channels: int) -> nn.Module:
        """The module that changes the resolution of the main path."""
        if self.resnet_type == "biggan":
            return ResnetBlock(channels, channels, self, resample=module(channels, fir_kernel=self.fir_kernel))
        return module(channels, fir_kernel=self.fir_kernel, use_conv=self.resample_with_conv)


class ResnetBlock(nn.Module):
    """Residual block: norm, act, [resample], conv, + embedding, norm, act, dropout, conv.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        options: settings shared by the network.
        resample: parameter-free `Downsample` or `Upsample` applied to both branches (the BigGAN block).
    """

    def __init__(self, in_channels: int, out_channels: int, options: _Options, resample: nn.Module | None = None):
        super().__init__()
        self.is_biggan = options.resnet_type == "biggan"
        self.residual_scale = options.residual_scale
        self.act = activation(options.act_fn)
        self.resample = resample
        self.norm1 = _group_norm(in_channels)
        self.conv1 = conv2d(in_channels, out_channels)
        self.time_emb_proj = None if options.embedding_dim is None else linear(options.embedding_dim, out_channels)
        self.norm2 = _group_norm(out_channels)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = conv2d(out_channels, out_channels, init_scale=options.init_scale)
        self.conv_shortcut = None
        if in_channels != out_channels or resample is not None:
            # The DDPM block's shortcut starts small, the BigGAN block's does not.
            scale = 1.0 if self.is_biggan else 0.1
            self.conv_shortcut = conv2d(in_channels, out_channels, kernel_size=1, init_scale=scale)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        """(B, C, H, W) and the activated embedding (B, D) -> (B, C', H', W')."""
        h = self.act(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        if self.time_emb_proj is not None:
            h = h + self.time_emb_proj(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(self.act(self.norm2(h))))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return (x + h) * self.residual_scale


class InputSkip(nn.Module):
    """Progressive input by skips: the resampled image joins the features after a 1 x 1 convolution."""

    def __init__(self, image_channels: int, channels: int, options: _Options, combine: str):
        super().__init__()
        self.combine = combine
        self.downsample = Downsample(image_channels, fir_kernel=options.fir_kernel)
        self.conv = conv2d(image_channels, channels, kernel_size=1)

    def forward(self, h: torch.Tensor, pyramid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pyramid = self.downsample(pyramid)
        skip = self.conv(pyramid)
        return (torch.cat([skip, h], dim=1) if self.combine == "cat" else skip + h), pyramid


class InputResidual(nn.Module):
    """Progressive input by residuals: a downsampled copy of the previous sum is added to the features."""

    def __init__(self, pyramid_channels: int, channels: int, options: _Options):
        super().__init__()
        self.residual_scale = options.residual_scale
        self.downsample = Downsample(pyramid_channels, channels, options.fir_kernel, use_conv=True)

    def forward(self, h: torch.Tensor, pyramid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = (self.downsample(pyramid) + h) * self.residual_scale
        return h, h


class OutputSkip(nn.Module):
    """Progressive output by skips: an image per level, summed from the lowest resolution up."""

    def __init__(self, channels: int, image_channels: int, options: _Options, first: bool):
        super().__init__()
        self.act = activation(options.act_fn)
        self.upsample = None if first else Upsample(image_channels, fir_kernel=options.fir_kernel)
        self.norm = _group_norm(channels)
        self.conv = conv2d(channels, image_channels, init_scale=options.init_scale)

    def forward(self, h: torch.Tensor, pyramid: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.conv(self.act(self.norm(h)))
        return h, image if self.upsample is None else self.upsample(pyramid) + image


class OutputResidual(nn.Module):
    """Progressive output by residuals: an upsampled copy of the previous sum is added to the features."""

    def __init__(self, pyramid_channels: int | None, channels: int, options: _Options):
        super().__init__()
        self.residual_scale = options.residual_scale
        self.upsample = None
        if pyramid_channels is None:
            self.act = activation(options.act_fn)
            self.norm = _group_norm(channels)
            self.conv = conv2d(channels, channels)
        else:
            self.upsample = Upsample(pyramid_channels, channels, options.fir_kernel, use_conv=True)

    def forward(self, h: torch.Tensor, pyramid: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        if self.upsample is None:
            return h, self.conv(self.act(self.norm(h)))
        h = (self.upsample(pyramid) + h) * self.residual_scale
        return h, h


class DownBlock(nn.Module):
    """One level of the encoder: residual blocks, attention after each, then halving of the resolution.

    Args:
        in_channels: channels of the input.
        channels: channels of the level.
        num_layers: number of residual blocks.
        has_attention: whether an attention block follows each.
        options: settings shared by the network.
        has_downsampler: false for the lowest resolution.
        progressive: the progressive-input module of the level, if any.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_layers: int,
        has_attention: bool,
        options: _Options,
        has_downsampler: bool,
        progressive: nn.Module | None,
    ):
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else channels, channels, options) for i in range(num_layers)
        )
        self.attentions = nn.ModuleList(_attention(channels, options) for _ in range(num_layers * has_attention))
        self.downsampler = options.resampler(Downsample, channels) if has_downsampler else None
        self.progressive = progressive

    def forward(self, h: torch.Tensor, embedding: torch.Tensor | None, pyramid: torch.Tensor | None):
        """Features, embedding, input pyramid -> features, pyramid, one skip per residual block and downsampler."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            h = resnet(h, embedding)
            if self.attentions:
                h = self.attentions[i](h)
            skips.append(h)
        if self.downsampler is not None:
            h = self.downsampler(h, embedding) if isinstance(self.downsampler, ResnetBlock) else self.downsampler(h)
            if self.progressive is not None:
                h, pyramid = self.progressive(h, pyramid)
            skips.append(h)
        return h, pyramid, skips


class MidBlock(nn.Module):
    """Lowest resolution: residual block, attention, residual block."""

    def __init__(self, channels: int, options: _Options):
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, options) for _ in range(2))
        self.attention = _attention(channels, options)

    def forward(self, h: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        return self.resnets[1](self.attention(self.resnets[0](h, embedding)), embedding)


class UpBlock(nn.Module):
    """One level of the decoder: residual blocks fed with skips, attention once, then doubling of the resolution.

    Args:
        in_channels: channels of the input.
        skip_channels: channels of the skips, in the order of use.
        channels: channels of the level.
        has_attention: whether an attention block follows the residual blocks.
        options: settings shared by the network.
        has_upsampler: false for the highest resolution.
        progressive: the progressive-output module of the level, if any.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: list[int],
        channels: int,
        has_attention: bool,
        options: _Options,
        has_upsampler: bool,
        progressive: nn.Module | None,
    ):
        super().__init__()
        widths = [in_channels] + [channels] * (len(skip_channels) - 1)
        self.resnets = nn.ModuleList(
            ResnetBlock(width + skip, channels, options) for width, skip in zip(widths, skip_channels, strict=True)
        )
        self.attention = _attention(channels, options) if has_attention else None
        self.progressive = progressive
        self.upsampler = options.resampler(Upsample, channels) if has_upsampler else None

    def forward(self, h: torch.Tensor, embedding: torch.Tensor | None, pyramid: torch.Tensor | None, *skips):
        """Features, embedding, output pyramid and skips in the order of use -> features, pyramid."""
        for resnet, skip in zip(self.resnets, skips, strict=True):
            h = resnet(torch.cat([h, skip], dim=1), embedding)
        if self.attention is not None:
            h = self.attention(h)
        if self.progressive is not None:
            h, pyramid = self.progressive(h, pyramid)
        if self.upsampler is not None:
            h = self.upsampler(h, embedding) if isinstance(self.upsampler, ResnetBlock) else self.upsampler(h)
        return h, pyramid


_CHOICES = {
    "resnet_type": ("biggan", "ddpm"),
    "time_embedding_type": ("fourier", "positional"),
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
}


class NCSNppModel(Float32Frequencies, CheckedNetwork, ModelMixin, ConfigMixin):
    r"""NCSN++ / DDPM++ score network with the calling convention of `UNet2DModel`.

    The defaults are those of the official VE CIFAR-10 configuration.

    Parameters:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to 32):
            Height and width of the training images. Other sizes work as long as every level divides them.
        in_channels (`int`, *optional*, defaults to 3): Channels of the input.
        out_channels (`int`, *optional*, defaults to 3): Channels of the output.
        center_input_sample (`bool`, *optional*, defaults to `True`):
            Whether inputs are in [0, 1] and mapped to [-1, 1] by the network (official `centered = False`).
        block_out_channels (`tuple[int]`, *optional*, defaults to `(128, 256, 256, 256)`):
            Channels of each level, highest resolution first; multiples of 4.
        layers_per_block (`int`, *optional*, defaults to 4): Residual blocks per level of the encoder.
        attn_resolutions (`tuple[int]`, *optional*, defaults to `(16,)`):
            Resolutions (of `sample_size`'s larger side) whose levels have attention.
        resnet_type (`str`, *optional*, defaults to `"biggan"`): `"biggan"` or `"ddpm"`.
        resample_with_conv (`bool`, *optional*, defaults to `True`):
            Whether `"ddpm"` networks change resolution with a convolution.
        fir (`bool`, *optional*, defaults to `True`): Whether resampling is filtered by `fir_kernel`.
        fir_kernel (`tuple[float]`, *optional*, defaults to `(1, 3, 3, 1)`): Taps of the separable filter, even number.
        progressive (`str`, *optional*, defaults to `"none"`): `"none"`, `"output_skip"` or `"residual"`.
        progressive_input (`str`, *optional*, defaults to `"residual"`): `"none"`, `"input_skip"` or `"residual"`.
        progressive_combine (`str`, *optional*, defaults to `"sum"`): `"sum"` or `"cat"`, for `"input_skip"`.
        time_embedding_type (`str`, *optional*, defaults to `"fourier"`):
            `"fourier"` features of log sigma, or `"positional"` encoding of the time label.
        fourier_scale (`float`, *optional*, defaults to 16.0): Standard deviation of the Fourier frequencies.
        conditional (`bool`, *optional*, defaults to `True`): Whether the network sees the noise level.
        skip_rescale (`bool`, *optional*, defaults to `True`): Whether residual sums are divided by sqrt(2).
        scale_by_sigma (`bool`, *optional*, defaults to `True`): Whether the output is divided by sigma (VE).
        sigma_min (`float`, *optional*, defaults to 0.01): Smallest sigma of the label grid, see `num_train_timesteps`.
        sigma_max (`float`, *optional*, defaults to 50.0): Largest sigma of the label grid.
        num_train_timesteps (`int`, *optional*, defaults to 1000):
            Length of the geometric grid from `sigma_max` (label 0) to `sigma_min`, by which a network with positional
            embedding and `scale_by_sigma` turns labels into sigmas. Unused otherwise.
        act_fn (`str`, *optional*, defaults to `"silu"`):
            Activation function: `"elu"`, `"relu"`, `"lrelu"` (of slope 0.2), `"silu"` or another name of diffusers.
        dropout (`float`, *optional*, defaults to 0.1): Dropout probability in residual blocks.
        init_scale (`float`, *optional*, defaults to 0.0): Variance factor of the last layer of each branch at start.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DownBlock", "MidBlock", "UpBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = True,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 256),
        layers_per_block: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        resnet_type: str = "biggan",
        resample_with_conv: bool = True,
        fir: bool = True,
        fir_kernel: tuple[float, ...] = (1, 3, 3, 1),
        progressive: str = "none",
        progressive_input: str = "residual",
        progressive_combine: str = "sum",
        time_embedding_type: str = "fourier",
        fourier_scale: float = 16.0,
        conditional: bool = True,
        skip_rescale: bool = True,
        scale_by_sigma: bool = True,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        num_train_timesteps: int = 1000,
        act_fn: str = "silu",
        dropout: float = 0.1,
        init_scale: float = 0.0,
    ):
        super().__init__()
        self._check_config()
        base = block_out_channels[0]
        self.act = activation(act_fn)
        options = _Options(
            act_fn=act_fn,
            embedding_dim=4 * base if conditional else None,
            dropout=dropout,
            init_scale=init_scale,
            residual_scale=math.sqrt(0.5) if skip_rescale else 1.0,
            fir_kernel=tuple(fir_kernel) if fir else None,
            resnet_type=resnet_type,
            resample_with_conv=resample_with_conv,
        )
        self.time_proj = self.time_embedding = None
        if conditional:
            self._build_embedding(base)
        self.conv_in = conv2d(in_channels, base)
        size = sample_size if isinstance(sample_size, int) else max(sample_size)
        has_attention = [size // 2**i in attn_resolutions for i in range(len(block_out_channels))]
        skips = self._build_encoder(options, has_attention)
        self.mid_block = MidBlock(skips[-1], options)
        self._build_decoder(options, has_attention, skips)
        self.conv_norm_out = self.conv_out = None
        if progressive != "output_skip":
            self.conv_norm_out = _group_norm(base)
            self.conv_out = conv2d(base, out_channels, init_scale=init_scale)
        self.gradient_checkpointing = False

    def _check_config(self) -> None:
        for key, allowed in _CHOICES.items():
            if self.config[key] not in allowed:
                raise ValueError(f"`{key}` is {self.config[key]!r}; allowed are {', '.join(map(repr, allowed))}.")
        widths = tuple(self.config.block_out_channels)
        if not widths or any(width < 4 or width % 4 for width in widths):
            raise ValueError(f"`block_out_channels` is {widths}; it needs at least one level, each a multiple of 4.")
        if self.config.progressive_input != "input_skip" and self.config.progressive_combine == "cat":
            raise ValueError('`progressive_combine="cat"` has a meaning only with `progressive_input="input_skip"`.')

    def _build_embedding(self, base: int) -> None:
        if self.config.time_embedding_type == "fourier":
            self.time_proj = GaussianFourierProjection(base, self.config.fourier_scale)
            features = 2 * base
        else:
            self.time_proj = Timesteps(base, flip_sin_to_cos=False, downscale_freq_shift=1)
            features = base
        self.time_embedding = time_embedding(features, 4 * base, self.config.act_fn)

    def _build_encoder(self, options: _Options, has_attention: list[bool]) -> list[int]:
        """Builds `down_blocks`; returns the channels of all skips in the order in which they arise."""
        config = self.config
        channels = config.block_out_channels[0]
        pyramid_channels = config.in_channels
        skips = [channels]
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(config.block_out_channels):
            last = i == len(config.block_out_channels) - 1
            progressive = None
            out_channels = width
            if config.progressive_input == "input_skip" and not last:
                progressive = InputSkip(pyramid_channels, width, options, config.progressive_combine)
                out_channels = 2 * width if config.progressive_combine == "cat" else width
            elif config.progressive_input == "residual" and not last:
                progressive = InputResidual(pyramid_channels, width, options)
                pyramid_channels = width
            self.down_blocks.append(
                DownBlock(channels, width, config.layers_per_block, has_attention[i], options, not last, progressive)
            )
            skips += [width] * config.layers_per_block + ([] if last else [out_channels])
            channels = out_channels
        return skips

    def _build_decoder(self, options: _Options, has_attention: list[bool], skips: list[int]) -> None:
        config = self.config
        channels = skips[-1]
        skips = list(skips)
        pyramid_channels = None
        self.up_blocks = nn.ModuleList()
        for i in reversed(range(len(config.block_out_channels))):
            width = config.block_out_channels[i]
            progressive = None
            if config.progressive == "output_skip":
                progressive = OutputSkip(width, config.out_channels, options, first=pyramid_channels is None)
            elif config.progressive == "residual":
                progressive = OutputResidual(pyramid_channels, width, options)
            pyramid_channels = width
            block_skips = [skips.pop() for _ in range(config.layers_per_block + 1)]
            self.up_blocks.append(UpBlock(channels, block_skips, width, has_attention[i], options, i > 0, progressive))
            channels = width

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
            timestep (`torch.Tensor`, `float` or `int`):
                Noise level of shape () or (B,): sigma for Fourier embedding, the time label for positional embedding.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return an `ScoreNetworkOutput`.

        Returns:
            `ScoreNetworkOutput` or a tuple: the output of shape (B, C_out, H, W) in the dtype of `sample`.

        Raises:
            ValueError: if channels or size do not fit the network, or `timestep` the batch.
        """
        check_sample(sample, self.config.in_channels, self.downsample_factor)
        level = noise_level(sample, timestep)
        dtype = self.dtype  # that of the arithmetic, however the weights are stored
        h = sample.to(dtype)
        if self.config.center_input_sample:
            h = 2 * h - 1
        h = self._unet(h, self._embed(level, dtype))
        if self.config.scale_by_sigma:
            h = h.float() / self._sigma(level)[:, None, None, None]
        h = h.to(sample.dtype)
        return ScoreNetworkOutput(sample=h) if return_dict else (h,)

    def _sigma(self, level: torch.Tensor) -> torch.Tensor:
        config = self.config
        if config.time_embedding_type == "fourier":
            return level
        return sigma_of_label(level, config.sigma_min, config.sigma_max, config.num_train_timesteps)

    def _embed(self, level: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
        """Activated embedding of shape (B, 4 base channels), or None for an unconditional network."""
        if self.time_proj is None:
            return None
        return self.act(self.time_embedding(self.time_proj(level).to(dtype)))

    def _unet(self, x: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        h, pyramid, skips = self.conv_in(x), x, []
        skips.append(h)
        for block in self.down_blocks:
            h, pyramid, block_skips = self._run(block, h, embedding, pyramid)
            skips += block_skips
        h = self._run(self.mid_block, h, embedding)
        pyramid = None
        for block in self.up_blocks:
            h, pyramid = self._run(block, h, embedding, pyramid, *(skips.pop() for _ in block.resnets))
        return pyramid if self.conv_out is None else self.conv_out(self.act(self.conv_norm_out(h)))

    def _run(self, block: nn.Module, *args):
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)
