"""RefineNet over a dilated ResNet: the skeleton of NCSN and NCSNv2.

A ResNet computes features per level: the first levels halve the resolution, the last ones dilate their convolutions
instead. From the lowest level up, a refine block joins the features of a level with what came from below.

Reference: Song and Ermon 2019, arXiv:1907.05600, App. A; Song and Ermon 2020, arXiv:2006.09011, App. B;
Lin et al. 2017, arXiv:1611.06612.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .activations import activation
from .inputs import ScoreNetworkOutput, check_sample, noise_level, sigma_of_label
from .normalization import InstanceNormPlus, normalization

_NORM_GROUPS = 32


@dataclass(frozen=True)
class RefineNetOptions:
    """What all blocks of one network have in common.

    Args:
        act_fn: activation function, see `activation`.
        num_classes: number of noise labels if the normalisations see them, everywhere; otherwise `None`, and the
            refine blocks have no normalisation.
        unbiased: whether the variance over channels in the normalisations is the unbiased one.
        pooling: `"max"` or `"avg"`, in the chained residual pooling.
        interpolation: `"bilinear"` or `"nearest"`, in the fusion.
        align_corners: whether bilinear interpolation maps corner pixels on corner pixels.
        norm_type: normalisation of the backbone, see `normalization`; with labels `"instance++"` alone.
    """

    act_fn: str
    num_classes: int | None
    unbiased: bool
    pooling: str
    interpolation: str
    align_corners: bool
    norm_type: str = "instance++"

    def norm(self, channels: int) -> nn.Module:
        """A normalisation of the backbone."""
        if self.norm_type == "instance++":
            return InstanceNormPlus(channels, self.num_classes, self.unbiased)
        return normalization(self.norm_type, channels, _NORM_GROUPS)

    def refine_norm(self, channels: int) -> nn.Module | None:
        """A normalisation of the refine blocks, if they have any."""
        return None if self.num_classes is None else self.norm(channels)

    def resize(self, h: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Bring features to another resolution."""
        if h.shape[2:] == size:
            return h
        corners = self.align_corners if self.interpolation == "bilinear" else None
        return F.interpolate(h, size=size, mode=self.interpolation, align_corners=corners)


def _conv(in_channels: int, out_channels: int, dilation: int = 1, bias: bool = True, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, padding=dilation * (size // 2), dilation=dilation, bias=bias)


class RefineNetResnetBlock(nn.Module):
    """Residual block of the backbone: norm, act, conv, norm, act, conv, [mean of 2 x 2 pixels].

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        options: settings shared by the network.
        dilation: dilation of the 3 x 3 convolutions.
        first: whether the block opens a level below the first; it halves the resolution if it is not dilated.
    """

    def __init__(
        self, in_channels: int, out_channels: int, options: RefineNetOptions, dilation: int = 1, first: bool = False
    ):
        super().__init__()
        self.halves = first and dilation == 1
        self.act = activation(options.act_fn)
        hidden = in_channels if first else out_channels
        self.norm1 = options.norm(in_channels)
        self.conv1 = _conv(in_channels, hidden, dilation)
        self.norm2 = options.norm(hidden)
        self.conv2 = _conv(hidden, out_channels, dilation)
        self.conv_shortcut = None
        if first or in_channels != out_channels:
            self.conv_shortcut = _conv(in_channels, out_channels, dilation, size=1 if dilation == 1 else 3)

    def forward(self, x: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        """(B, C, H, W) and integer labels (B,) -> (B, C', H, W), or (B, C', H/2, W/2)."""
        h = self.conv1(self.act(self.norm1(x, label)))
        h = self.conv2(self.act(self.norm2(h, label)))
        if self.halves:  # averaging commutes with the 1 x 1 convolution of the shortcut
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class RefineNetDownBlock(nn.Module):
    """One level of the backbone: residual blocks."""

    def __init__(self, resnets: list[nn.Module]):
        super().__init__()
        self.resnets = nn.ModuleList(resnets)

    def forward(self, h: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        for resnet in self.resnets:
            h = resnet(h, label)
        return h


class ResidualConvUnit(nn.Module):
    """x + conv(act(conv(act(x)))), with a normalisation before each activation if the options say so."""

    def __init__(self, channels: int, options: RefineNetOptions):
        super().__init__()
        self.act = activation(options.act_fn)
        self.norm1, self.norm2 = options.refine_norm(channels), options.refine_norm(channels)
        self.conv1, self.conv2 = _conv(channels, channels, bias=False), _conv(channels, channels, bias=False)

    def forward(self, x: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        h = x
        for norm, conv in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            h = conv(self.act(h if norm is None else norm(h, label)))
        return x + h


class ResidualConvUnits(RefineNetDownBlock):
    """Residual convolution units, one after the other."""

    def __init__(self, channels: int, num_units: int, options: RefineNetOptions):
        super().__init__([ResidualConvUnit(channels, options) for _ in range(num_units)])


class MultiResolutionFusion(nn.Module):
    """Sum of the inputs, each after a convolution, at the resolution of the first."""

    def __init__(self, in_channels: list[int], out_channels: int, options: RefineNetOptions):
        super().__init__()
        self.options = options
        self.norms = nn.ModuleList(
            norm for norm in (options.refine_norm(channels) for channels in in_channels) if norm is not None
        )
        self.convs = nn.ModuleList(_conv(channels, out_channels) for channels in in_channels)

    def forward(self, hs: list[torch.Tensor], label: torch.Tensor | None) -> torch.Tensor:
        size, total = hs[0].shape[2:], None
        for i, h in enumerate(hs):
            h = self.convs[i](self.norms[i](h, label) if self.norms else h)
            h = self.options.resize(h, size)
            total = h if total is None else total + h
        return total


class ChainedResidualPooling(nn.Module):
    """act(x) plus two branches, each pooled and convolved from the one before."""

    def __init__(self, channels: int, options: RefineNetOptions, num_stages: int = 2):
        super().__init__()
        self.act = activation(options.act_fn)
        self.pool = nn.MaxPool2d(5, 1, 2) if options.pooling == "max" else nn.AvgPool2d(5, 1, 2)
        stages = range(num_stages)
        self.norms = nn.ModuleList(n for n in (options.refine_norm(channels) for _ in stages) if n is not None)
        self.convs = nn.ModuleList(_conv(channels, channels, bias=False) for _ in stages)

    def forward(self, x: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        total = branch = self.act(x)
        for i, conv in enumerate(self.convs):
            branch = conv(self.pool(self.norms[i](branch, label) if self.norms else branch))
            total = branch + total
        return total


class RefineBlock(nn.Module):
    """Join the features of one level with those refined below it.

    Args:
        in_channels: channels of each input: of the level and, except at the lowest, from below.
        out_channels: channels of the output.
        options: settings shared by the network.
        num_output_units: residual convolution units at the end.
    """

    def __init__(self, in_channels: list[int], out_channels: int, options: RefineNetOptions, num_output_units: int):
        super().__init__()
        self.adapters = nn.ModuleList(ResidualConvUnits(channels, 2, options) for channels in in_channels)
        self.fusion = MultiResolutionFusion(in_channels, out_channels, options) if len(in_channels) > 1 else None
        self.pooling = ChainedResidualPooling(out_channels, options)
        self.output = ResidualConvUnits(out_channels, num_output_units, options)

    def forward(self, label: torch.Tensor | None, *inputs: torch.Tensor) -> torch.Tensor:
        """Integer labels (B,) and features, those of the level first -> features of the level's resolution."""
        hs = [adapter(h, label) for adapter, h in zip(self.adapters, inputs, strict=True)]
        h = hs[0] if self.fusion is None else self.fusion(hs, label)
        return self.output(self.pooling(h, label), label)


class RefineNetMixin:
    """Layers and forward pass of `NCSNModel` and `NCSNv2Model`, which add diffusers' mixins and the config."""

    def _build(self, options: RefineNetOptions) -> None:
        config = self.config
        widths = tuple(config.block_out_channels)
        if not widths or not len(widths) == len(config.dilations) == len(config.refine_out_channels):
            raise ValueError(
                f"`block_out_channels` is {widths}, `dilations` {tuple(config.dilations)}, `refine_out_channels` "
                f"{tuple(config.refine_out_channels)}; they need one entry per level."
            )
        if config.refine_out_channels[-1] != widths[-1]:
            raise ValueError(
                f"the last of `refine_out_channels` is {config.refine_out_channels[-1]}; at the lowest level it must "
                f"be that of `block_out_channels`, {widths[-1]}."
            )
        self.act = activation(options.act_fn)
        self.conv_in = _conv(config.in_channels, widths[0])
        self._build_blocks(options, widths)
        self.norm_out = options.norm(config.refine_out_channels[0])
        self.conv_out = _conv(config.refine_out_channels[0], config.out_channels)
        self.gradient_checkpointing = False

    def _build_blocks(self, options: RefineNetOptions, widths: tuple[int, ...]) -> None:
        config = self.config
        self.down_blocks = nn.ModuleList()
        channels = widths[0]
        for i, (width, dilation) in enumerate(zip(widths, config.dilations, strict=True)):
            first = RefineNetResnetBlock(channels, width, options, dilation, first=i > 0)
            self.down_blocks.append(RefineNetDownBlock([first, RefineNetResnetBlock(width, width, options, dilation)]))
            channels = width
        self.refine_blocks = nn.ModuleList()
        below: list[int] = []
        for i in reversed(range(len(widths))):
            width = config.refine_out_channels[i]
            self.refine_blocks.append(RefineBlock([widths[i], *below], width, options, 1 if i else 3))
            below = [width]

    @property
    def downsample_factor(self) -> int:
        """Height and width of inputs must be multiples of this."""
        return 2 ** sum(dilation == 1 for dilation in self.config.dilations[1:])

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, return_dict: bool = True
    ) -> ScoreNetworkOutput | tuple[torch.Tensor]:
        r"""Evaluate the network.

        Args:
            sample (`torch.Tensor`): Noisy images of shape (B, C_in, H, W), in the data range plus noise.
            timestep (`torch.Tensor`, `float` or `int`):
                Label of the noise level, of shape () or (B,); 0 is the highest noise, a fraction is cut off.
            return_dict (`bool`, *optional*, defaults to `True`): Whether to return a `ScoreNetworkOutput`.

        Returns:
            `ScoreNetworkOutput` or a tuple: the score of shape (B, C_out, H, W) in the dtype of `sample`.

        Raises:
            ValueError: if channels or size do not fit the network, or `timestep` the batch.
        """
        config = self.config
        check_sample(sample, config.in_channels, self.downsample_factor)
        level = noise_level(sample, timestep)
        h = sample.to(self.dtype)  # that of the arithmetic, however the weights are stored
        if config.center_input_sample:
            h = 2 * h - 1
        h = self._refinenet(h, level.long())
        if config.scale_by_sigma:
            sigma = sigma_of_label(level, config.sigma_min, config.sigma_max, config.num_train_timesteps)
            h = h.float() / sigma[:, None, None, None]
        h = h.to(sample.dtype)
        return ScoreNetworkOutput(sample=h) if return_dict else (h,)

    def _refinenet(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        h, features = self.conv_in(x), []
        for block in self.down_blocks:
            h = self._run(block, h, label)
            features.append(h)
        refined: tuple[torch.Tensor, ...] = ()
        for block in self.refine_blocks:
            refined = (self._run(block, label, features.pop(), *refined),)
        return self.conv_out(self.act(self.norm_out(refined[0], label)))

    def _run(self, block: nn.Module, *args):
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)
