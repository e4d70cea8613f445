"""NCSNv2 and what it shares with NCSN; parity with the official JAX code is in tests/conversion."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffusers_sde.models import NCSNv2Model
from diffusers_sde.models.refinenet import (
    ChainedResidualPooling,
    InstanceNormPlus,
    MultiResolutionFusion,
    RefineNetOptions,
    RefineNetResnetBlock,
)

VARIANTS = {
    64: ((4, 8, 8, 8), (1, 1, 2, 4), (4, 8, 8, 8), 2),
    128: ((4, 8, 8, 16, 16), (1, 1, 1, 2, 4), (4, 4, 8, 8, 16), 4),
    256: ((4, 8, 8, 8, 16, 16), (1, 1, 1, 1, 2, 4), (4, 4, 8, 8, 8, 16), 8),
}
OPTIONS = RefineNetOptions("elu", None, False, "max", "bilinear", False)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomise(module):
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.add_(0.2 * draw(*p.shape, seed=i))
    return module


def network(variant=64, **options):
    widths, dilations, refine, _ = VARIANTS[variant]
    config = {"block_out_channels": widths, "dilations": dilations, "refine_out_channels": refine}
    torch.random.default_generator.manual_seed(0)
    return randomise(NCSNv2Model(**{**config, "sample_size": 16, "num_train_timesteps": 10, **options}).eval())


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_option_runs_and_trains(variant, channels, interpolation):
    model = network(variant, in_channels=channels, out_channels=channels, interpolation=interpolation)
    factor = VARIANTS[variant][-1]
    assert model.downsample_factor == factor
    x = draw(2, channels, 2 * factor, 3 * factor)
    output = model(x, torch.tensor([0, 9])).sample
    assert output.shape == x.shape
    (output * draw(*x.shape, seed=1)).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    with pytest.raises(ValueError, match=f"positive multiples of {factor}"):
        model(x[..., :-1], 0)


@torch.no_grad()
def test_the_label_only_scales_the_output():
    model, plain = network(sigma_max=30.0, sigma_min=0.02), network(scale_by_sigma=False)
    x, labels = draw(3, 3, 8, 8), torch.tensor([0, 4, 9])
    sigmas = torch.exp(torch.linspace(math.log(30.0), math.log(0.02), 10, dtype=torch.float64)).float()[labels]
    expected = plain(x, labels).sample
    assert torch.equal(plain(x, 3).sample, expected)
    torch.testing.assert_close(model(x, labels).sample, expected / sigmas[:, None, None, None])
    assert torch.equal(model(x, labels, return_dict=False)[0], model(x, labels).sample)
    centred = network(scale_by_sigma=False, center_input_sample=False)
    assert torch.equal(centred(2 * x - 1, labels).sample, expected)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_instance_normalisation_plus(unbiased, num_classes):
    """Against the formula of the paper, per image, in float64."""
    norm = randomise(InstanceNormPlus(5, num_classes, unbiased).double())
    x, labels = draw(2, 5, 4, 6, dtype=torch.float64) * 3 + 1, torch.tensor([2, 0])
    output = norm(x, labels)
    for b in range(2):
        if num_classes is None:
            gamma, alpha, beta = norm.scale, norm.mean_scale, norm.bias
        else:
            gamma, alpha, beta = norm.embedding.weight[labels[b]].split(5)
        mu = x[b].mean(dim=(1, 2))
        m, v = mu.mean(), ((mu - mu.mean()) ** 2).sum() / (5 - unbiased)
        for k in range(5):
            s2 = ((x[b, k] - mu[k]) ** 2).mean()
            normed = (x[b, k] - mu[k]) / (s2 + 1e-5).sqrt() + alpha[k] * (mu[k] - m) / (v + 1e-5).sqrt()
            torch.testing.assert_close(output[b, k], gamma[k] * normed + beta[k])


def test_instance_normalisation_of_large_noise_in_half_precision():
    norm = InstanceNormPlus(5, None, False)
    x = 500 * draw(2, 5, 8, 8)
    torch.testing.assert_close(norm.half()(x.half(), None).float(), norm.float()(x, None), rtol=0.01, atol=0.01)


@torch.no_grad()
@pytest.mark.parametrize("dilation", [1, 2, 4])
def test_first_blocks_of_levels_halve_or_dilate(dilation):
    block = randomise(RefineNetResnetBlock(3, 6, OPTIONS, dilation, first=True)).double()
    x = draw(2, 3, 8, 12, dtype=torch.float64)

    def conv(h, layer):
        pad = dilation * (layer.weight.shape[-1] // 2)
        h = F.conv2d(F.pad(h, (pad,) * 4), layer.weight, layer.bias, dilation=dilation)
        return h

    def halve(h):
        return h.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5)) if dilation == 1 else h

    h = conv(F.elu(block.norm1(x, None)), block.conv1)
    h = halve(conv(F.elu(block.norm2(h, None)), block.conv2))
    assert h.shape[2:] == ((4, 6) if dilation == 1 else (8, 12))
    torch.testing.assert_close(block(x, None), h + halve(conv(x, block.conv_shortcut)))


@torch.no_grad()
def test_pooling_sees_no_zeros_at_the_border():
    """Maxima of the pixels there are; a padding with zeros would hide negative ones."""
    pooling = ChainedResidualPooling(2, OPTIONS, num_stages=1)
    pooling.convs[0].weight.zero_()
    pooling.convs[0].weight[range(2), range(2), 1, 1] = 1.0
    x = -1 - draw(1, 2, 6, 6).abs()
    expected = F.elu(x) + F.max_pool2d(F.elu(x), 5, 1, 2)
    torch.testing.assert_close(pooling(x, None), expected)
    assert pooling(x, None).max() < 0


@torch.no_grad()
def test_fusion_interpolates_between_pixel_centres():
    fusion = MultiResolutionFusion([1, 1], 1, OPTIONS)
    for conv in fusion.convs:
        conv.weight.zero_()
        conv.bias.zero_()
        conv.weight[0, 0, 1, 1] = 1.0
    low = torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2)
    row = fusion([torch.zeros(1, 1, 4, 4), low], None)[0, 0, 1]
    torch.testing.assert_close(row, torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_gradient_checkpointing_changes_nothing():
    model = network()
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
    model = network(128)
    model.save_pretrained(tmp_path)
    x = draw(2, 3, 8, 8)
    assert torch.equal(NCSNv2Model.from_pretrained(tmp_path)(x, 2).sample, model(x, 2).sample)


def test_refusals():
    with pytest.raises(ValueError, match="one entry per level"):
        network(dilations=(1, 1, 2))
    with pytest.raises(ValueError, match="at the lowest level"):
        network(refine_out_channels=(4, 8, 8, 4))
    with pytest.raises(ValueError, match="'bilinear', 'nearest'"):
        network(interpolation="cubic")
    with pytest.raises(ValueError, match="'elu', 'relu', 'silu'"):
        network(act_fn="tanh")
