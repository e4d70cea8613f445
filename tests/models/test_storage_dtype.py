"""Weights stored in another dtype than that of the arithmetic, and loading in half precision."""

import logging

import pytest
import torch
from diffusers import UNet2DModel

from diffusers_sde import DDPMModel, NCSNModel, NCSNppModel, NCSNv2Model, NoiseConditionalClassifier
from tests.tiny import randomise, tiny_network

REFINENET = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16, 16),
    "refine_out_channels": (8, 8, 16, 16),
    "num_train_timesteps": 10,
}

NETWORKS = {
    "ncsnpp_fourier": lambda: tiny_network(progressive="residual", progressive_input="residual"),
    "ncsnpp_positional": lambda: tiny_network(time_embedding_type="positional", resnet_type="ddpm", fir=False),
    "ncsnpp_fir_convolution": lambda: tiny_network(
        resnet_type="ddpm", progressive="output_skip", progressive_input="input_skip", progressive_combine="cat"
    ),
    "ddpm": lambda: randomise(
        DDPMModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, attn_resolutions=(4,), norm_num_groups=4
        )
    ),
    "ncsnv2": lambda: randomise(NCSNv2Model(**REFINENET)),
    "ncsn": lambda: randomise(NCSNModel(**REFINENET)),
    "classifier": lambda: randomise(
        NoiseConditionalClassifier(sample_size=8, blocks_per_group=1, channel_multiplier=1, embedding_features=8)
    ),
    "unet": lambda: randomise(
        UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        )
    ),
}
# Of the largest output: e4m3 has 3 bits of mantissa, so every weight is off by up to 6 %; .
TOLERANCE = 0.25


def output_of(network, dtype=torch.float32):
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = network(x, torch.tensor([3.0, 7.0]))
    return getattr(result, "logits", None) if hasattr(result, "logits") else result.sample


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(
    "dtype, compute_dtype",
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)],
)
@torch.no_grad()
def test_weights_in_8_bits_give_nearly_the_same_output(kind, dtype, compute_dtype):
    """A forward pass that takes its dtype from a stored weight rounds the image to 8 bits, or fails."""
    network = NETWORKS[kind]()
    expected = output_of(network)
    network = network.to(dtype)
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)
    assert any(p.dtype is torch.float8_e4m3fn for p in network.parameters())
    assert network.dtype is compute_dtype
    output = output_of(network, compute_dtype)
    assert output.dtype is compute_dtype
    error = float((output.float() - expected).abs().max() / expected.abs().max())
    assert 1e-4 < error < TOLERANCE  # the weights were rounded, and nothing more than that


@pytest.mark.parametrize("kind", ["ncsnpp_fourier", "classifier"])
@torch.no_grad()
def test_frequencies_stay_in_float32_under_layerwise_casting(kind):
    network = NETWORKS[kind]().to(torch.bfloat16)
    frequencies = network.time_proj.weight.clone()
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    output_of(network, torch.bfloat16)
    assert network.time_proj.weight.dtype is torch.float32
    assert torch.equal(network.time_proj.weight, frequencies)


@pytest.mark.parametrize("kind", ["ncsnpp_fourier", "classifier"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_low_cpu_mem_usage_may_be_false(kind, dtype, tmp_path, caplog):
    """diffusers refuses it for networks with parts in float32, in words that name no way out."""
    network = NETWORKS[kind]()
    network.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="diffusers_sde"):
        loaded = type(network).from_pretrained(tmp_path, low_cpu_mem_usage=False, torch_dtype=dtype)
    assert "low_cpu_mem_usage" in caplog.text
    assert loaded.dtype is dtype
    assert torch.equal(loaded.time_proj.weight, network.time_proj.weight)
    assert torch.equal(loaded.conv_in.weight, network.conv_in.weight.to(dtype))


def test_loading_says_nothing_without_the_argument(tmp_path, caplog):
    tiny_network().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, logger="diffusers_sde"):
        NCSNppModel.from_pretrained(tmp_path)
    assert not caplog.records
