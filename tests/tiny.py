"""Small networks for the tests: a real one that runs in milliseconds, and an exact one."""

import torch
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput

from diffusers_sde import NCSNppModel
from diffusers_sde.sde import VESDE, VPSDE, SubVPSDE

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attn_resolutions": (4,),
    "dropout": 0.0,
    "init_scale": 1.0,
}


def tiny_network(seed=0, **options) -> NCSNppModel:
    """An `NCSNppModel` with random parameters, biases and norms included, in evaluation mode."""
    return randomise(NCSNppModel(**{**TINY, **options}), seed)


def assert_alike(a, b):
    """Equal up to what matrix products depend on where in memory a network's weights lie, on some processors."""
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def randomise(network, seed=0):
    """The network with random parameters, biases and norms included, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(draw / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1 + 0.3 * draw)
        if network.config.get("conditional") and network.config.get("time_embedding_type") == "fourier":
            frequencies = torch.randn(network.time_proj.weight.shape, generator=generator)
            network.time_proj.weight.copy_(frequencies * network.config.fourier_scale)
    return network.eval()


def legacy_unet(seed=0, **options) -> UNet2DModel:
    """A small `UNet2DModel` of the shape of the published google/ncsnpp-* repositories."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        return UNet2DModel(
            **{
                "sample_size": 8,
                "in_channels": 3,
                "out_channels": 3,
                "center_input_sample": True,
                "time_embedding_type": "fourier",
                "block_out_channels": (32, 64),
                "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
                "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
                "layers_per_block": 1,
                "mid_block_scale_factor": 2**0.5,
                "norm_eps": 1e-6,
                "norm_num_groups": None,
                "attention_head_dim": None,
                **options,
            }
        ).eval()


class GaussianNetwork(ModelMixin, ConfigMixin):
    """What a perfect network says of data with independent pixels N(mean, std^2).

    The score for `sde="ve"`, conditioned on sigma; epsilon for "vp" and "sub_vp", conditioned on 999 t.
    Counts its calls, keeps its last conditioning, and says NaN from call `nan_from` on.
    """

    @register_to_config
    def __init__(
        self,
        sde: str = "ve",
        mean: float = 0.5,
        std: float = 0.3,
        sample_size: int | tuple[int, int] | None = 8,
        in_channels: int = 1,
        out_channels: int = 1,
        center_input_sample: bool = True,
        block_out_channels: tuple[int, ...] = (4, 4),
        nan_from: int | None = None,
        beta_max: float = 20.0,
    ):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # a network has a dtype and a device
        self.sde = VESDE() if sde == "ve" else {"vp": VPSDE, "sub_vp": SubVPSDE}[sde](0.1, beta_max)
        self.calls = 0
        self.timestep = None

    def forward(self, sample, timestep, return_dict=True):
        timestep = torch.as_tensor(timestep, dtype=torch.float64)
        config = self.config
        if config.sde == "ve":
            alpha, sigma = torch.ones_like(timestep), timestep
        else:
            alpha, sigma = self.sde.alpha(timestep / 999), self.sde.sigma(timestep / 999)
        alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in (alpha, sigma))
        score = (alpha * config.mean - sample.double()) / (alpha**2 * config.std**2 + sigma**2)
        output = (score if config.sde == "ve" else -sigma * score).to(sample.dtype)
        self.calls += 1
        self.timestep = timestep
        if config.nan_from is not None and self.calls > config.nan_from:
            output = output * torch.nan
        return UNet2DOutput(sample=output) if return_dict else (output,)


class ChainNetwork(GaussianNetwork):
    """The same for a DDPM chain of diffusers' default betas: epsilon, conditioned on the label, whole or not."""

    @register_to_config
    def __init__(
        self,
        mean: float = 0.5,
        std: float = 0.3,
        sample_size: int = 8,
        in_channels: int = 1,
        out_channels: int = 1,
        center_input_sample: bool = False,
        block_out_channels: tuple[int, ...] = (4, 4),
    ):
        super().__init__("vp", mean, std, sample_size, in_channels, out_channels, center_input_sample)

    def forward(self, sample, timestep, return_dict=True):
        # log prod (1 - beta_j) = - sum (beta_j + beta_j^2 / 2 + beta_j^3 / 3 + ...), beta_j = a + d j for j < n
        n, a, d = torch.as_tensor(timestep, dtype=torch.float64).reshape(-1, 1, 1, 1) + 1, 1e-4, 1.99e-2 / 999
        first, second, third = n * (n - 1) / 2, n * (n - 1) * (2 * n - 1) / 6, (n * (n - 1) / 2) ** 2
        decay = n * (a + a**2 / 2 + a**3 / 3) + first * d * (1 + a + a**2)
        decay = -(decay + second * d**2 * (1 / 2 + a) + third * d**3 / 3)
        alpha, variance = (decay / 2).exp(), -torch.expm1(decay)
        score = (alpha * self.config.mean - sample.double()) / (alpha**2 * self.config.std**2 + variance)
        output = (-variance.sqrt() * score).to(sample.dtype)
        return UNet2DOutput(sample=output) if return_dict else (output,)
