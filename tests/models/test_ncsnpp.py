import itertools
import math

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from diffusers_sde import NCSNppModel
from diffusers_sde.models.attention import AttentionBlock
from diffusers_sde.models.embeddings import GaussianFourierProjection
from diffusers_sde.models.ncsnpp import ResnetBlock, _Options
from diffusers_sde.models.resampling import Downsample, Upsample, fir_kernel_2d
from tests.tiny import TINY, tiny_network


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative_error(a, b):
    return float((a - b).abs().max() / b.abs().max())


# ---------------------------------------------------------------------------------------------------------------------
# Every option
# ---------------------------------------------------------------------------------------------------------------------

STRUCTURES = list(
    itertools.product(
        ("biggan", "ddpm"),
        (True, False),
        (True, False),
        ("none", "output_skip", "residual"),
        (("none", "sum"), ("input_skip", "sum"), ("input_skip", "cat"), ("residual", "sum")),
    )
)
FLAGS = list(itertools.product(("fourier", "positional"), *[(True, False)] * 4))


# Flags that change no wiring: all 32 combinations, three times, shuffled over the structures.
FLAGS_OF = np.random.default_rng(0).permutation(3 * len(FLAGS)) % len(FLAGS)


def options_of(index):
    resnet_type, fir, resample_with_conv, progressive, (progressive_input, combine) = STRUCTURES[index]
    embedding, conditional, skip_rescale, scale_by_sigma, center = FLAGS[FLAGS_OF[index]]
    return {
        "resnet_type": resnet_type,
        "fir": fir,
        "resample_with_conv": resample_with_conv,
        "progressive": progressive,
        "progressive_input": progressive_input,
        "progressive_combine": combine,
        "time_embedding_type": embedding,
        "conditional": conditional,
        "skip_rescale": skip_rescale,
        "scale_by_sigma": scale_by_sigma,
        "center_input_sample": center,
    }


def test_grid_of_options_has_all_pairs():
    seen = {
        frozenset([(a, str(o[a])), (b, str(o[b]))])
        for o in map(options_of, range(len(STRUCTURES)))
        for a, b in itertools.combinations(o, 2)
    }
    values = {}
    for o in map(options_of, range(len(STRUCTURES))):
        for key, value in o.items():
            values.setdefault(key, set()).add(str(value))
    wanted = {
        frozenset([(a, va), (b, vb)])
        for a, b in itertools.combinations(values, 2)
        for va, vb in itertools.product(values[a], values[b])
    }
    refused = {("progressive_input", "none"), ("progressive_input", "residual")}  # "cat" has no meaning there
    impossible = {frozenset([pair, ("progressive_combine", "cat")]) for pair in refused}
    assert wanted - seen == impossible


@pytest.mark.parametrize("index", range(len(STRUCTURES)))
def test_every_option_runs_and_trains(index):
    """Forward and backward, non-square, 1, 3 or 4 channels; every parameter has a part in the result."""
    options = options_of(index)
    channels = (1, 3, 4)[index % 3]
    network = tiny_network(index, in_channels=channels, out_channels=channels, **options)
    x = draw(2, channels, 4, 12)
    timestep = torch.tensor([0.3, 20.0])
    output = network(x, timestep).sample
    assert output.shape == x.shape
    assert output.isfinite().all()
    weights = draw(*output.shape, seed=1)  # a plain sum would hide what the last norm cancels
    (output * weights).mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not idle
    with torch.no_grad():
        reacts = not torch.equal(network(x, timestep * 3).sample, output)
    assert reacts == (options["conditional"] or options["scale_by_sigma"])


@pytest.mark.parametrize("in_channels, out_channels", [(1, 1), (2, 2), (4, 4), (3, 6)])
@pytest.mark.parametrize("progressive", ["none", "output_skip"])
def test_any_number_of_channels(in_channels, out_channels, progressive):
    network = tiny_network(in_channels=in_channels, out_channels=out_channels, progressive=progressive)
    assert network(draw(2, in_channels, 8, 8), 1.0).sample.shape == (2, out_channels, 8, 8)


def test_sample_size_may_be_a_pair():
    network = tiny_network(sample_size=(4, 8), attn_resolutions=(4,))
    assert len(network.down_blocks[1].attentions) == 1  # by the larger side
    assert network(draw(1, 3, 4, 8), 1.0).sample.shape == (1, 3, 4, 8)


# ---------------------------------------------------------------------------------------------------------------------
# What single options mean
# ---------------------------------------------------------------------------------------------------------------------


def twin(network, **changes):
    """The same weights in a network with other options."""
    other = NCSNppModel(**{**network.config, **changes}).eval()
    other.load_state_dict(network.state_dict())
    return other


@torch.no_grad()
def test_centred_input():
    network = tiny_network(center_input_sample=True)
    x = draw(2, 3, 8, 8)
    expected = twin(network, center_input_sample=False)(2 * x - 1, 0.7).sample
    torch.testing.assert_close(network(x, 0.7).sample, expected, rtol=0, atol=0)


@torch.no_grad()
def test_output_is_divided_by_sigma():
    network = tiny_network(scale_by_sigma=True)
    x, sigma = draw(2, 3, 8, 8), torch.tensor([0.02, 30.0])
    expected = twin(network, scale_by_sigma=False)(x, sigma).sample / sigma[:, None, None, None]
    torch.testing.assert_close(network(x, sigma).sample, expected)


@torch.no_grad()
def test_output_is_divided_by_sigma_of_the_label():
    grid = {"sigma_min": 0.02, "sigma_max": 30.0, "num_train_timesteps": 50}
    network = tiny_network(scale_by_sigma=True, time_embedding_type="positional", **grid)
    x, labels = draw(3, 3, 8, 8), torch.tensor([0, 17, 49])
    sigmas = torch.exp(torch.linspace(math.log(30.0), math.log(0.02), 50, dtype=torch.float64)).float()[labels]
    expected = twin(network, scale_by_sigma=False)(x, labels).sample / sigmas[:, None, None, None]
    torch.testing.assert_close(network(x, labels).sample, expected)


@torch.no_grad()
def test_unconditional_network_ignores_the_time():
    network = tiny_network(conditional=False, scale_by_sigma=False)
    assert not any("time" in name for name in network.state_dict())
    x = draw(2, 3, 8, 8)
    assert torch.equal(network(x, 0.1).sample, network(x, 9.0).sample)


@torch.no_grad()
def test_dropout_acts_in_training_only():
    network = tiny_network(dropout=0.5)
    x = draw(2, 3, 8, 8)
    assert torch.equal(network(x, 1.0).sample, network(x, 1.0).sample)
    network.train()
    assert not torch.equal(network(x, 1.0).sample, network(x, 1.0).sample)


@torch.no_grad()
def test_branches_are_silent_at_the_start():
    """init_scale = 0 stands for a variance of 1e-10: weights, and so branch outputs, of the order 1e-5."""
    network = NCSNppModel(**{**TINY, "init_scale": 0.0, "scale_by_sigma": False}).eval()
    x = draw(2, 3, 8, 8)
    assert 0 < network(x, 1.0).sample.abs().max() < 1e-3
    block = network.mid_block.resnets[0]
    h, embedding = draw(2, 16, 4, 4), draw(2, 32)
    torch.testing.assert_close(block(h, embedding), h * math.sqrt(0.5), rtol=0, atol=1e-3)
    torch.testing.assert_close(network.mid_block.attention(h), h * math.sqrt(0.5), rtol=0, atol=1e-3)
    loud = NCSNppModel(**{**TINY, "init_scale": 1.0, "scale_by_sigma": False}).eval()
    assert loud(x, 1.0).sample.abs().max() > 0.1


def test_attention_is_where_it_was_asked_for():
    network = NCSNppModel(**{**TINY, "block_out_channels": (8, 8, 8), "attn_resolutions": (8, 2), "sample_size": 8})
    assert [len(block.attentions) for block in network.down_blocks] == [1, 0, 1]
    assert [block.attention is not None for block in network.up_blocks] == [True, False, True]


# ---------------------------------------------------------------------------------------------------------------------
# Resampling against zero-stuffing, convolving, decimating in float64
# ---------------------------------------------------------------------------------------------------------------------


def correlate(x, w, stride=1):
    """y[b, o, i, j] = sum x[b, c, stride i + u, stride j + v] w[o, c, u, v], no padding."""
    windows = sliding_window_view(x, w.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bcijuv,ocuv->boij", windows, w)


def blur(x, taps, before, after, gain=1.0):
    """Convolve each channel of the padded image with the separable filter of unit sum times `gain`."""
    k = np.outer(taps, taps)[::-1, ::-1] / sum(taps) ** 2 * gain
    x = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))
    return np.einsum("bcijuv,uv->bcij", sliding_window_view(x, k.shape, axis=(2, 3)), k)


def zero_stuff(x):
    y = np.zeros((*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]))
    y[:, :, ::2, ::2] = x
    return y


def transposed(x, w):
    """Stride 2: y[b, o, 2 i + u, 2 j + v] += x[b, c, i, j] w[c, o, u, v]."""
    height, width = x.shape[2:]
    y = np.zeros((x.shape[0], w.shape[1], 2 * height + 1, 2 * width + 1))
    for u, v in itertools.product(range(3), range(3)):
        y[:, :, u : u + 2 * height : 2, v : v + 2 * width : 2] += np.einsum("bcij,co->boij", x, w[:, :, u, v])
    return y


FILTERS = [(1, 1), (1, 3, 3, 1), (1, 2, 5, 5, 2, 1)]


def randomise(module):
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=10 + i))
    return module.double()


def compare(module, x, expected):
    """Exact up to the float32 in which the taps of the filter are held."""
    output = module(torch.from_numpy(x)).detach().numpy()
    assert output.shape == expected.shape
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("taps", FILTERS)
def test_fir_downsampling(taps):
    x = draw(2, 3, 6, 10, dtype=torch.float64).numpy()
    pad = len(taps) - 2
    compare(Downsample(3, fir_kernel=taps).double(), x, blur(x, taps, (pad + 1) // 2, pad // 2)[:, :, ::2, ::2])


@pytest.mark.parametrize("taps", FILTERS)
def test_fir_upsampling(taps):
    x = draw(2, 3, 6, 10, dtype=torch.float64).numpy()
    pad = len(taps) - 2
    expected = blur(zero_stuff(x), taps, (pad + 1) // 2 + 1, pad // 2, gain=4)
    compare(Upsample(3, fir_kernel=taps).double(), x, expected)


@pytest.mark.parametrize("taps", FILTERS)
def test_fir_downsampling_with_convolution(taps):
    """Blur, then the strided convolution."""
    x = draw(2, 3, 6, 10, dtype=torch.float64).numpy()
    module = randomise(Downsample(3, 5, fir_kernel=taps, use_conv=True))
    weight, bias = (p.detach().numpy() for p in (module.conv.weight, module.conv.bias))
    pad = len(taps) - 2 + 2
    expected = correlate(blur(x, taps, (pad + 1) // 2, pad // 2), weight, stride=2) + bias[:, None, None]
    compare(module, x, expected)


@pytest.mark.parametrize("taps", FILTERS[1:])
def test_fir_upsampling_with_convolution(taps):
    """The transposed convolution, then blur; the bias last."""
    x = draw(2, 3, 6, 10, dtype=torch.float64).numpy()
    module = randomise(Upsample(3, 5, fir_kernel=taps, use_conv=True))
    weight, bias = (p.detach().numpy() for p in (module.conv.weight, module.bias))
    pad = len(taps) - 2 - 2
    expected = blur(transposed(x, weight), taps, (pad + 1) // 2 + 1, pad // 2 + 1, gain=4) + bias[:, None, None]
    compare(module, x, expected)


def test_plain_resampling():
    x = draw(2, 3, 6, 10, dtype=torch.float64).numpy()
    compare(Downsample(3), x, x.reshape(2, 3, 3, 2, 5, 2).mean(axis=(3, 5)))
    compare(Upsample(3), x, x.repeat(2, axis=2).repeat(2, axis=3))


def test_plain_resampling_with_convolution():
    x = draw(2, 3, 6, 10, dtype=torch.float64).numpy()
    for module in (randomise(Downsample(3, 5, use_conv=True)), randomise(Upsample(3, 5, use_conv=True))):
        weight, bias = (p.detach().numpy() for p in (module.conv.weight, module.conv.bias))
        if isinstance(module, Downsample):
            expected = correlate(np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1))), weight, stride=2)
        else:
            stretched = x.repeat(2, axis=2).repeat(2, axis=3)
            expected = correlate(np.pad(stretched, ((0, 0), (0, 0), (1, 1), (1, 1))), weight)
        compare(module, x, expected + bias[:, None, None])


def test_resampling_keeps_a_constant_image():
    """Unit gain: inside, where the padding is not seen, a constant stays."""
    x = torch.ones(1, 2, 12, 12)
    inside = (..., slice(2, -2), slice(2, -2))
    for taps in FILTERS:
        for module in (Downsample(2, fir_kernel=taps), Upsample(2, fir_kernel=taps)):
            torch.testing.assert_close(module(x)[inside], torch.ones_like(module(x)[inside]))


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, 3, 2, 1), (-1, 1, 1, -1)])
def test_filters_that_do_not_fit_are_refused(taps):
    with pytest.raises(ValueError, match="symmetric, with an even number of taps"):
        fir_kernel_2d(taps)
    with pytest.raises(ValueError, match="fir_kernel"):
        NCSNppModel(**TINY, fir_kernel=taps)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks against their formulas in float64
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_attention_against_an_explicit_softmax():
    block = randomise(AttentionBlock(16, norm_groups=4, init_scale=1.0, residual_scale=0.5))
    x = draw(2, 16, 3, 5, dtype=torch.float64)
    groups = x.reshape(2, 4, -1)
    normed = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    normed = normed.reshape(x.shape) * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    weights, biases = block.to_qkv.weight.chunk(3), block.to_qkv.bias.chunk(3)
    q, k, v = (
        torch.einsum("oc,bchw->bohw", w, normed) + b[:, None, None] for w, b in zip(weights, biases, strict=True)
    )
    logits = torch.einsum("bchw,bcij->bhwij", q, k) / math.sqrt(16)
    attention = logits.flatten(3).softmax(-1).reshape(logits.shape)
    h = torch.einsum("bhwij,bcij->bchw", attention, v)
    h = torch.einsum("oc,bchw->bohw", block.to_out.weight, h) + block.to_out.bias[:, None, None]
    torch.testing.assert_close(block(x), (x + h) * 0.5, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("resnet_type", ["biggan", "ddpm"])
@pytest.mark.parametrize("resample", [None, Downsample, Upsample])
@torch.no_grad()
def test_residual_block_against_its_formula(resnet_type, resample):
    options = _Options("silu", 12, 0.1, 1.0, math.sqrt(0.5), (1, 3, 3, 1), resnet_type, True)
    resampler = None if resample is None else resample(8, fir_kernel=(1, 3, 3, 1))
    block = randomise(ResnetBlock(8, 16, options, resampler)).eval()
    x, embedding = draw(2, 8, 4, 6, dtype=torch.float64), draw(2, 12, dtype=torch.float64)
    F = torch.nn.functional
    h = F.silu(F.group_norm(x, 2, block.norm1.weight, block.norm1.bias, 1e-6))
    if resampler is not None:
        h, x = resampler(h), resampler(x)
    h = F.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1)
    h = h + F.linear(embedding, block.time_emb_proj.weight, block.time_emb_proj.bias)[:, :, None, None]
    h = F.silu(F.group_norm(h, 4, block.norm2.weight, block.norm2.bias, 1e-6))
    h = F.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    x = F.conv2d(x, block.conv_shortcut.weight, block.conv_shortcut.bias)
    torch.testing.assert_close(block(*(draw(2, 8, 4, 6, dtype=torch.float64), embedding)), (x + h) / math.sqrt(2))


def test_fourier_features():
    embedding = GaussianFourierProjection(6, scale=16.0)
    sigma = torch.tensor([0.01, 0.37, 1.0, 50.0])
    angles = 2 * np.pi * np.log(sigma.double().numpy())[:, None] * embedding.weight.double().numpy()
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    # An angle of a = 2 pi 16 log 100 ~ 500 or so carries the float32 rounding of its factors: a few 1e-7 of it.
    np.testing.assert_allclose(embedding(sigma).numpy(), expected, rtol=0, atol=5e-7 * np.abs(angles).max())
    weights = GaussianFourierProjection(20000, scale=16.0).weight
    assert abs(weights.std() / 16 - 1) < 5 / math.sqrt(2 * 20000)  # five standard errors


@pytest.mark.parametrize("base", [8, 12])
def test_positional_embedding(base):
    """[sin, cos](t / 10000^(i / (half - 1))), as in the official code."""
    network = tiny_network(time_embedding_type="positional", block_out_channels=(base, 16))
    t = torch.tensor([0.0, 0.4, 17.0, 999.0])
    half = base // 2
    angles = t.double().numpy()[:, None] * np.exp(-math.log(10000) / (half - 1) * np.arange(half))
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(network.time_proj(t).numpy(), expected, rtol=0, atol=2e-7 * 999)


# ---------------------------------------------------------------------------------------------------------------------
# Calling convention
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embedding", ["fourier", "positional"])
@torch.no_grad()
def test_forms_of_one_timestep_are_equal(embedding):
    network = tiny_network(time_embedding_type=embedding)
    x = draw(3, 3, 8, 8)
    level = 0.37 if embedding == "fourier" else 37.0
    forms = [level, torch.tensor(level), torch.tensor([level]), torch.full((3,), level)]
    forms += [torch.full((3,), level, dtype=torch.float64), np.float32(level)]
    if embedding == "positional":
        forms += [37, torch.tensor(37), torch.full((3,), 37)]
    outputs = [network(x, form).sample for form in forms]
    assert outputs[0].isfinite().all()
    for output in outputs[1:]:
        assert torch.equal(output, outputs[0])


@torch.no_grad()
def test_each_image_has_its_own_timestep():
    network = tiny_network()
    x, sigma = draw(2, 3, 8, 8), torch.tensor([0.1, 7.0])
    together = network(x, sigma).sample
    for i in range(2):
        assert relative_error(network(x[i : i + 1], sigma[i]).sample, together[i : i + 1]) < 1e-5  # float32
    assert relative_error(network(x, sigma.flip(0)).sample, together) > 0.1


@torch.no_grad()
def test_tuple_output():
    network = tiny_network()
    x = draw(1, 3, 8, 8)
    (output,) = network(x, 1.0, return_dict=False)
    assert torch.equal(output, network(x, 1.0).sample)
    assert torch.equal(output, network(x, 1.0)[0])


@pytest.mark.parametrize(
    "shape, timestep, message",
    [
        ((2, 3, 8, 8), torch.ones(3), r"`timestep` has shape \(3,\); allowed are \(\) and \(2,\)"),
        ((2, 3, 8, 8), torch.ones(2, 1), r"`timestep` has shape \(2, 1\)"),
        ((2, 1, 8, 8), 1.0, r"shape \(2, 1, 8, 8\); this network takes \(batch, 3,"),
        ((3, 8, 8), 1.0, r"shape \(3, 8, 8\); this network takes"),
        ((2, 3, 8, 7), 1.0, r"8 x 7 pixels; height and width must be positive multiples of 2"),
        ((2, 3, 9, 8), 1.0, r"9 x 8 pixels; height and width must be positive multiples of 2"),
        ((2, 3, 0, 8), 1.0, r"0 x 8 pixels; height and width must be positive multiples of 2"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(shape, timestep, message):
    with pytest.raises(ValueError, match=message):
        tiny_network()(torch.zeros(shape), timestep)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resnet_type": "resnet"}, r"`resnet_type` is 'resnet'; allowed are 'biggan', 'ddpm'"),
        ({"time_embedding_type": "learned"}, r"'learned'; allowed are 'fourier', 'positional'"),
        ({"progressive": "input_skip"}, r"'input_skip'; allowed are 'none', 'output_skip', 'residual'"),
        ({"progressive_input": "output_skip"}, r"'output_skip'; allowed are 'none', 'input_skip', 'residual'"),
        ({"progressive_combine": "concat"}, r"'concat'; allowed are 'sum', 'cat'"),
        ({"progressive_combine": "cat", "progressive_input": "residual"}, r"only with `progressive_input=\"input_sk"),
        ({"progressive_combine": "cat", "progressive_input": "none"}, r"only with `progressive_input=\"input_sk"),
        ({"block_out_channels": ()}, r"`block_out_channels` is \(\)"),
        ({"block_out_channels": (8, 10)}, r"`block_out_channels` is \(8, 10\); .* multiple of 4"),
        ({"layers_per_block": 0}, r"`layers_per_block` is 0; allowed is an integer from 1"),
        ({"act_fn": "sine"}, r"sine"),
    ],
)
def test_options_that_do_not_exist_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        NCSNppModel(**{**TINY, **options})


# ---------------------------------------------------------------------------------------------------------------------
# Precision, memory, speed, files
# ---------------------------------------------------------------------------------------------------------------------

HALF_TOLERANCE = {
    torch.bfloat16: 0.1,
    torch.float16: 0.01,
}  # about ten times the rounding of 20 layers; seen 0.02, 0.003


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["to", "half", "load"])
@torch.no_grad()
def test_half_precision_keeps_the_frequencies(tmp_path, dtype, way):
    network = tiny_network()
    frequencies = network.time_proj.weight.clone()
    x, sigma = draw(2, 3, 8, 8), torch.tensor([0.37, 5.0])
    expected = network(x, sigma).sample
    if way == "load":
        network.save_pretrained(tmp_path)
        network = NCSNppModel.from_pretrained(tmp_path, torch_dtype=dtype)
    elif way == "half":
        network = network.half() if dtype is torch.float16 else network.bfloat16()
    else:
        network = network.to(dtype)
    assert network.dtype is dtype
    assert network.conv_in.weight.dtype is dtype
    assert network.time_proj.weight.dtype is torch.float32
    assert torch.equal(network.time_proj.weight, frequencies)
    output = network(x.to(dtype), sigma).sample
    assert output.dtype is dtype
    assert relative_error(output.float(), expected) < HALF_TOLERANCE[dtype]


@pytest.mark.parametrize("network_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale_by_sigma", [True, False])
@torch.no_grad()
def test_output_has_the_dtype_of_the_sample(network_dtype, dtype, scale_by_sigma):
    network = tiny_network(scale_by_sigma=scale_by_sigma).to(network_dtype)
    assert network(draw(1, 3, 8, 8).to(dtype), 1.0).sample.dtype is dtype


@torch.no_grad()
def test_float64_network_is_more_exact_than_float32():
    """Nothing in between is cut to float32, frequencies and filters (exact in it) aside."""
    network = tiny_network(time_embedding_type="positional", scale_by_sigma=False).double()
    x = draw(1, 3, 8, 8, dtype=torch.float64)
    step = 1e-9 * draw(1, 3, 8, 8, seed=1, dtype=torch.float64)
    difference = network(x + step, 3.0).sample - network(x, 3.0).sample
    half = network(x + step / 2, 3.0).sample - network(x, 3.0).sample
    torch.testing.assert_close(half * 2, difference, rtol=1e-3, atol=1e-3 * float(difference.abs().max()))


@torch.no_grad()
def test_save_and_load(tmp_path):
    network = tiny_network(progressive="output_skip", progressive_input="input_skip", progressive_combine="cat")
    network.save_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    loaded = NCSNppModel.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == network.state_dict().keys()
    assert not any("filter" in name for name in network.state_dict())  # follows from the config
    x = draw(2, 3, 8, 8)
    assert torch.equal(loaded(x, 0.5).sample, network(x, 0.5).sample)
    plain = {k: v for k, v in network.config.items() if not k.startswith("_")}
    reloaded = {k: v for k, v in loaded.config.items() if not k.startswith("_")}
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in reloaded.items()
    }


def test_gradient_checkpointing_changes_no_gradient():
    x, sigma = draw(2, 3, 8, 8), torch.tensor([0.3, 4.0])
    gradients, evaluations = [], []
    for checkpointing in (False, True):
        network = tiny_network(progressive="residual").train()
        if checkpointing:
            network.enable_gradient_checkpointing()
        calls = []
        network.mid_block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        network(x, sigma).sample.square().mean().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
        evaluations.append(len(calls))
    assert evaluations == [1, 2]  # it was in force
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("resnet_type, fir", [("biggan", True), ("ddpm", True), ("ddpm", False)])
@torch.no_grad()
def test_channels_last_changes_nothing(resnet_type, fir):
    network = tiny_network(resnet_type=resnet_type, fir=fir, progressive="residual")
    x = draw(2, 3, 8, 12)
    expected = network(x, 0.5).sample
    network = network.to(memory_format=torch.channels_last)
    output = network(x.to(memory_format=torch.channels_last), 0.5).sample
    assert relative_error(output, expected) < 1e-5  # float32, other order of summation


COMPILED = {
    "biggan_fir_fourier": {"progressive": "output_skip", "progressive_input": "input_skip"},
    "ddpm_positional": {
        "resnet_type": "ddpm",
        "fir": False,
        "time_embedding_type": "positional",
        "progressive_input": "none",
        "scale_by_sigma": False,
    },
}


@pytest.mark.parametrize("options", COMPILED.values(), ids=COMPILED)
@torch.no_grad()
def test_compiles_without_a_graph_break(options):
    network = tiny_network(**options)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x = draw(2, 3, 8, 8)
    for timestep in (torch.tensor(0.5), torch.tensor([0.5, 9.0])):
        torch.testing.assert_close(compiled(x, timestep).sample, network(x, timestep).sample)
    torch._dynamo.reset()
