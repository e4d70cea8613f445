"""NCSNv2: the improved noise-conditional score network, which sees the noise level only in the scale of its output.

Reference: Song and Ermon 2020, arXiv:2006.09011, App. B.
"""

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from ..loading import CheckedNetwork
from .refinenet import RefineNetMixin, RefineNetOptions


class NCSNv2Model(RefineNetMixin, CheckedNetwork, ModelMixin, ConfigMixin):
    r"""NCSNv2 score network with the calling convention of `UNet2DModel`.

    The defaults are those of the official CIFAR-10 configuration (up to 96 pixels). The official variants, in
    multiples of the base width:

    | pixels | `block_out_channels` | `dilations` | `refine_out_channels` |
    |---|---|---|---|
    | below 96 | 1, 2, 2, 2 | 1, 1, 2, 4 | 1, 2, 2, 2 |
    | 96 to 128 | 1, 2, 2, 4, 4 | 1, 1, 1, 2, 4 | 1, 1, 2, 2, 4 |
    | 129 to 256 | 1, 2, 2, 2, 4, 4 | 1, 1, 1, 1, 2, 4 | 1, 1, 2, 2, 2, 4 |

    This is the network of the official JAX code. The official PyTorch code has the same one but cannot build it.

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
        refine_out_channels (`tuple[int]`, *optional*, defaults to `(128, 256, 256, 256)`):
            Channels of the refine block of each level, highest resolution first.
        interpolation (`str`, *optional*, defaults to `"bilinear"`): `"bilinear"` or `"nearest"`.
        scale_by_sigma (`bool`, *optional*, defaults to `True`): Whether the output is divided by sigma.
        sigma_min (`float`, *optional*, defaults to 0.01): Smallest sigma of the label grid.
        sigma_max (`float`, *optional*, defaults to 50.0): Largest sigma of the label grid, that of label 0.
        num_train_timesteps (`int`, *optional*, defaults to 232): Length of the geometric label grid.
        act_fn (`str`, *optional*, defaults to `"elu"`):
            Activation function: `"elu"`, `"relu"`, `"lrelu"` (of slope 0.2), `"silu"` or another name of diffusers.
        norm_type (`str`, *optional*, defaults to `"instance++"`):
            Normalisation of the backbone: `"instance++"`, `"instance"`, `"variance"` or `"group"` (32 groups).
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
        refine_out_channels: tuple[int, ...] = (128, 256, 256, 256),
        interpolation: str = "bilinear",
        scale_by_sigma: bool = True,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        num_train_timesteps: int = 232,
        act_fn: str = "elu",
        norm_type: str = "instance++",
    ):
        super().__init__()
        if interpolation not in ("bilinear", "nearest"):
            raise ValueError(f"`interpolation` is {interpolation!r}; allowed are 'bilinear', 'nearest'.")
        options = RefineNetOptions(
            act_fn=act_fn,
            num_classes=None,
            unbiased=False,
            pooling="max",
            interpolation=interpolation,
            align_corners=False,
            norm_type=norm_type,
        )
        self._build(options)
