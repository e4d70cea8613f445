"""NCSN: the first noise-conditional score network, whose normalisations have parameters of their own per noise level.

Reference: Song and Ermon 2019, arXiv:1907.05600, App. A.
"""

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from ..loading import CheckedNetwork
from .refinenet import RefineNetMixin, RefineNetOptions


class NCSNModel(RefineNetMixin, CheckedNetwork, ModelMixin, ConfigMixin):
    r"""NCSN score network with the calling convention of `UNet2DModel`.

    The defaults are those of the official CIFAR-10 configuration. Neither official code base can build this network
    as published; it is that of the paper: conditional instance normalisation++ (with the unbiased variance over
    channels) before every convolution but the first, average pooling, bilinear interpolation that aligns corners.

    Parameters:
        sample_size (`int` or `tuple[int, int]`, *optional*, defaults to 32):
            Height and width of the training images. Other sizes work as long as every undilated level divides them.
        in_channels (`int`, *optional*, defaults to 3): Channels of the input.
        out_channels (`int`, *optional*, defaults to 3): Channels of the output.
        center_input_sample (`bool`, *optional*, defaults to `True`):
            Whether inputs are in [0, 1] and mapped to [-1, 1] by the network (official `centered = False`).
        block_out_channels (`tuple[int]`, *optional*, defaults to `(128, 256, 256, 256)`):
            Channels of each level of the backbone, highest resolution first.
        dilations (`tuple[int]`, *optional*, defaults to `(1, 1, 2, 4)`):
            Dilation of each level. A level below the first halves the resolution if its dilation is 1.
        refine_out_channels (`tuple[int]`, *optional*, defaults to `(128, 128, 256, 256)`):
            Channels of the refine block of each level, highest resolution first.
        scale_by_sigma (`bool`, *optional*, defaults to `False`): Whether the output is divided by sigma.
        sigma_min (`float`, *optional*, defaults to 0.01): Smallest sigma of the label grid.
        sigma_max (`float`, *optional*, defaults to 1.0): Largest sigma of the label grid, that of label 0.
        num_train_timesteps (`int`, *optional*, defaults to 10): Number of labels.
        act_fn (`str`, *optional*, defaults to `"elu"`):
            Activation function: `"elu"`, `"relu"`, `"lrelu"` (of slope 0.2), `"silu"` or another name of diffusers.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["RefineNetDownBlock", "RefineBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = True,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 256),
        dilations: tuple[int, ...] = (1, 1, 2, 4),
        refine_out_channels: tuple[int, ...] = (128, 128, 256, 256),
        scale_by_sigma: bool = False,
        sigma_min: float = 0.01,
        sigma_max: float = 1.0,
        num_train_timesteps: int = 10,
        act_fn: str = "elu",
    ):
        super().__init__()
        options = RefineNetOptions(
            act_fn=act_fn,
            num_classes=num_train_timesteps,
            unbiased=True,
            pooling="avg",
            interpolation="bilinear",
            align_corners=True,
        )
        self._build(options)
