"""DDPM; its parity with the official code is in tests/conversion."""

import math

import pytest
import torch
from diffusers import UNet2DModel

from diffusers_sde.models import DDPMModel
from diffusers_sde.models.ddpm import DDPMResnetBlock

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attn_resolutions": (4,),
    "norm_num_groups": 4,
    "dropout": 0.0,
}


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(seed=0, **options):
    """A small network with random parameters, biases and norms included."""
    model = DDPMModel(**{**TINY, **options}).eval()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            noise = draw(*p.shape, seed=1000 * seed + i)
            p.copy_(noise / p[0].numel() ** 0.5 if p.ndim > 1 else 1 + 0.3 * noise)
    return model


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("resample_with_conv", [True, False])
@pytest.mark.parametrize("scale_by_sigma", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_option_runs_and_trains(conditional, resample_with_conv, scale_by_sigma, channels):
    """Forward and backward, non-square; every parameter has a part in the result."""
    model = network(
        conditional=conditional,
        resample_with_conv=resample_with_conv,
        scale_by_sigma=scale_by_sigma,
        in_channels=channels,
        out_channels=channels,
    )
    x, labels = draw(2, channels, 4, 12), torch.tensor([3.0, 700.0])
    output = model(x, labels).sample
    assert output.shape == x.shape
    (output * draw(*x.shape, seed=1)).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    with torch.no_grad():
        reacts = not torch.equal(model(x, labels + 100).sample, output)
    assert reacts == (conditional or scale_by_sigma)


@torch.no_grad()
def test_calling_convention():
    model = network()
    x = draw(2, 3, 8, 8)
    output = model(x, torch.tensor([5.0, 5.0])).sample
    for timestep in (5, 5.0, torch.tensor(5), torch.tensor([5])):
        assert torch.equal(model(x, timestep).sample, output)
    assert torch.equal(model(x, 5, return_dict=False)[0], output)
    assert not torch.equal(model(x, 5.5).sample, output)  # fractions of a label count
    half = network().to(torch.bfloat16)(x.bfloat16(), 5).sample
    assert half.dtype == torch.bfloat16
    assert (half.float() - output).abs().max() < 0.1 * output.abs().max()
    for bad in (x[0], x[:, :1], x[..., :7], x[..., :0]):
        with pytest.raises(ValueError, match="`sample`"):
            model(bad, 5)
    with pytest.raises(ValueError, match="`timestep` has shape"):
        model(x, torch.ones(3))


@torch.no_grad()
def test_centred_input():
    model, plain = network(center_input_sample=True), network()
    x = draw(2, 3, 8, 8)
    assert torch.equal(model(x, 7).sample, plain(2 * x - 1, 7).sample)


@torch.no_grad()
def test_output_is_divided_by_sigma_of_the_label():
    grid = {"sigma_min": 0.02, "sigma_max": 30.0, "num_train_timesteps": 50}
    model, plain = network(scale_by_sigma=True, **grid), network()
    x, labels = draw(3, 3, 8, 8), torch.tensor([0, 17, 49])
    sigmas = torch.exp(torch.linspace(math.log(30.0), math.log(0.02), 50, dtype=torch.float64)).float()[labels]
    torch.testing.assert_close(model(x, labels).sample, plain(x, labels).sample / sigmas[:, None, None, None])


def test_residual_block_against_its_formula():
    block = DDPMResnetBlock(8, 12, 5, norm_groups=4, act_fn="silu", dropout=0.0).double().eval()
    with torch.no_grad():
        for i, p in enumerate(block.parameters()):
            p.copy_(draw(*p.shape, seed=i))
    x, embedding = draw(2, 8, 4, 6, dtype=torch.float64), draw(2, 5, dtype=torch.float64)

    def norm(h, layer):
        groups = h.reshape(2, 4, -1)
        std = (groups.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        h = ((groups - groups.mean(-1, True)) / std).reshape(h.shape)
        return h * layer.weight[:, None, None] + layer.bias[:, None, None]

    def swish(h):
        return h / (1 + torch.exp(-h))

    h = block.conv1(swish(norm(x, block.norm1)))
    h = h + (embedding @ block.time_emb_proj.weight.T + block.time_emb_proj.bias)[:, :, None, None]
    h = block.conv2(swish(norm(h, block.norm2)))
    shortcut = torch.einsum("oc,bchw->bohw", block.conv_shortcut.weight[:, :, 0, 0], x)
    torch.testing.assert_close(block(x, embedding), h + shortcut + block.conv_shortcut.bias[:, None, None])


@torch.no_grad()
def test_unet_of_diffusers_expresses_it():
    """With one attention of each decoder level in use and the others silenced."""
    ours = network(block_out_channels=(32, 64), norm_num_groups=32)
    theirs = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        norm_eps=1e-6,
        norm_num_groups=32,
        freq_shift=1,
        flip_sin_to_cos=False,
        downsample_padding=0,
    ).eval()
    theirs.load_state_dict(_as_unet(ours, theirs.state_dict()))
    x, labels = draw(2, 3, 8, 16), torch.tensor([4.0, 800.0])
    expected = ours(x, labels).sample
    torch.testing.assert_close(theirs(x, labels).sample, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def _as_unet(model, wanted):
    state, result = model.state_dict(), {}
    for name in wanted:
        ours = name.replace("downsamplers.0", "downsampler").replace("upsamplers.0", "upsampler")
        ours = ours.replace("mid_block.attentions.0", "mid_block.attention")
        if ours.startswith("up_blocks") and ".attentions." in ours:
            head, _, tail = ours.partition(".attentions.")
            number, _, rest = tail.partition(".")
            ours = f"{head}.attention.{rest}"
            if int(number) < model.config.layers_per_block:
                result[name] = torch.zeros_like(wanted[name])
                continue
        ours = ours.replace("group_norm", "norm").replace("to_out.0", "to_out")
        for k, part in enumerate(("to_q.", "to_k.", "to_v.")):
            if part in ours:
                result[name] = state[ours.replace(part, "to_qkv.")].chunk(3)[k]
        if name not in result:
            result[name] = state[ours]
    return result


def test_gradient_checkpointing_changes_nothing():
    model = network().train()
    x = draw(2, 3, 8, 8)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(x, 3).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_save_and_load(tmp_path):
    model = network(conditional=False)
    model.save_pretrained(tmp_path)
    x = draw(2, 3, 8, 8)
    assert torch.equal(DDPMModel.from_pretrained(tmp_path)(x, 0).sample, model(x, 0).sample)


def test_silent_at_the_start():
    """New networks give nearly nothing, as their last layers have a variance of 1e-10."""
    with torch.no_grad():
        assert 0 < DDPMModel(**TINY).eval()(draw(2, 3, 8, 8), 1).sample.abs().max() < 1e-3


def test_refusals():
    with pytest.raises(ValueError, match="multiple of `norm_num_groups`"):
        DDPMModel(**{**TINY, "block_out_channels": (8, 10)})
    with pytest.raises(ValueError, match="`layers_per_block`"):
        DDPMModel(**{**TINY, "layers_per_block": 0})
