"""Our networks as `UNet2DModel`: equal outputs, whole parameters at full size, refusals, and loading without us.

Outputs agree to 1e-5 of their largest value in float32: the two add in another order.
"""

import os
import subprocess
import sys

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DModel
from safetensors.torch import load_file

from diffusers_sde import DDPMModel, NCSNppModel, NCSNv2Model, ScoreSdePipeline
from diffusers_sde.configs import official_config, official_config_names
from diffusers_sde.conversion import native_network, native_pipeline
from diffusers_sde.conversion.architectures import build_network
from diffusers_sde.conversion.convert import build_scheduler
from diffusers_sde.schedulers import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from tests.checkpoints import relative_error
from tests.tiny import randomise

SKIPS = {"progressive": "output_skip", "progressive_input": "input_skip"}
NCSNPP = {"sample_size": 16, "block_out_channels": (32, 128, 128), "attn_resolutions": (8,), "layers_per_block": 1}
NCSNV2 = {"block_out_channels": (8,) * 4, "refine_out_channels": (8,) * 4}
DDPM = {"sample_size": 16, "block_out_channels": (32, 64), "attn_resolutions": (8,), "layers_per_block": 2}
EXACT_VE = {
    *("ve/bedroom_ncsnpp_continuous", "ve/celebahq_256_ncsnpp_continuous", "ve/church_ncsnpp_continuous"),
    *("ve/ffhq_256_ncsnpp_continuous", "ve/celebahq_ncsnpp_continuous", "ve/ffhq_ncsnpp_continuous"),
}
EXACT_VP = {"vp/ddpm/bedroom", "vp/ddpm/celebahq", "vp/ddpm/church", "vp/ddpm/cifar10"}


def ncsnpp(**options):
    return randomise(NCSNppModel(**{**NCSNPP, **SKIPS, **options}))


def num_values(network):
    return sum(tensor.numel() for tensor in network.state_dict().values())


def ddpm(**options):
    return randomise(DDPMModel(**{**DDPM, **options}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attn_resolutions": (16, 4)},
        {"attn_resolutions": ()},
        {"block_out_channels": (128,), "attn_resolutions": (16,)},
        {"layers_per_block": 2, "block_out_channels": (64, 128)},
        {"center_input_sample": False},
    ],
    ids=str,
)
@torch.no_grad()
def test_ncsnpp(options):
    if 16 in options.get("attn_resolutions", ()):
        options = {"block_out_channels": (128, 128, 128), **options}
    network = ncsnpp(**options)
    native = native_network(network)
    x, sigma = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 40.0])
    assert type(native) is UNet2DModel and not native.training
    assert relative_error(native(x, sigma).sample, network(x, sigma).sample) < 1e-5
    assert num_values(native) == num_values(network)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attn_resolutions": (16, 8)},
        {"attn_resolutions": ()},
        {"in_channels": 1, "out_channels": 1},
        {"norm_num_groups": 16},
        {"layers_per_block": 1, "center_input_sample": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_ddpm(options):
    network = ddpm(**options)
    native = native_network(network)
    x = torch.randn(2, network.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3.0, 700.0])
    assert relative_error(native(x, labels).sample, network(x, labels).sample) < 1e-5


def test_the_comparison_sees_what_it_is_about():
    """With the excess attentions left as they were initialised, DDPM is another network."""
    network = ddpm()
    native = native_network(network)
    excess = native.up_blocks[0].attentions[0]
    assert not excess.to_out[0].weight.any() and not excess.to_out[0].bias.any()
    x, labels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        for theirs, ours in zip(excess.parameters(), native.up_blocks[0].attentions[-1].parameters(), strict=True):
            theirs.copy_(ours)
        assert relative_error(native(x, labels).sample, network(x, labels).sample) > 1e-2


@pytest.mark.parametrize("name", official_config_names())
def test_official_configurations(name):
    """At full size, without memory for it: the whole network fits, or there is a reason why not."""
    config = official_config(name)
    with torch.device("meta"):
        network = build_network(config)
    scheduler = build_scheduler(config)
    if name in EXACT_VE | EXACT_VP:
        pipeline = native_pipeline(network, scheduler)
        assert type(pipeline).__name__ == ("ScoreSdeVePipeline" if name in EXACT_VE else "DDPMPipeline")
        excess = num_values(pipeline.unet) - num_values(network)
        assert excess == 0 if name in EXACT_VE else excess > 0
        return
    with pytest.raises(ValueError, match="Keep the layout 'diffusers_sde'"):
        native_pipeline(network, scheduler)
    if name in ("subvp/cifar10_ddpm_continuous", "vp/ddpm/cifar10_continuous"):
        assert type(native_network(network)) is UNet2DModel  # the sampler alone is at fault


@pytest.mark.parametrize(
    "network, reason",
    [
        (lambda: ncsnpp(progressive="none"), "`progressive` is 'none' and must be 'output_skip'"),
        (lambda: ncsnpp(fir_kernel=(1, 1)), r"`fir_kernel` is \(1, 1\)"),
        (lambda: ncsnpp(in_channels=1, out_channels=1), "`in_channels` is 1 and must be 3"),
        (lambda: ncsnpp(block_out_channels=(32, 64, 64)), "attentions.0.norm has 16 groups of 64 channels, and 32"),
        (lambda: ncsnpp(block_out_channels=(32, 48, 48)), "it cannot be built with such channels"),
        (lambda: ddpm(scale_by_sigma=True), "`scale_by_sigma` is True"),
        (lambda: ddpm(conditional=False), "`conditional` is False"),
        (lambda: ddpm(resample_with_conv=False), "`resample_with_conv` is False"),
        (lambda: NCSNv2Model(**NCSNV2), "nothing like the layers of NCSNv2Model"),
    ],
)
def test_refused_networks(network, reason):
    with pytest.raises(ValueError, match=reason):
        native_network(network())


@pytest.mark.parametrize(
    "network, scheduler, reason",
    [
        (ncsnpp, ScoreSdeVeScheduler(corrector="none"), "`corrector` is 'none' and must be 'langevin'"),
        (ncsnpp, ScoreSdeVeScheduler(denoise_final=False), "`denoise_final` is False"),
        (ncsnpp, ScoreSdeVpScheduler(continuous=False, predictor="ancestral_sampling"), r"images in \[-1, 1\]"),
        (ddpm, ScoreSdeVeScheduler(), r"images in \[0, 1\]"),
        (ddpm, ScoreSdeVpScheduler(), "`continuous` is True"),
        (ddpm, ScoreSdeSubVpScheduler(), "no scheduler like ScoreSdeSubVpScheduler"),
    ],
)
def test_refused_samplers(network, scheduler, reason):
    with pytest.raises(ValueError, match=reason):
        native_pipeline(network(), scheduler)


def test_ve_samples_are_the_same_seed_for_seed():
    """diffusers' pipeline draws in our order; its corrector norm is the official batch mean."""
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=12, sigma_max=0.3, snr=0.05, corrector_norm="batch")
    network = ncsnpp()
    native = native_pipeline(network, scheduler)
    images = []
    for pipe in (ScoreSdePipeline(network, scheduler), native):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        output = pipe(batch_size=2, num_inference_steps=12, generator=generator, output_type="np")
        images.append(torch.as_tensor(output.images))
    assert (images[0] - images[1]).abs().max() < 1e-4
    assert ((images[0] > 0) & (images[0] < 1)).float().mean() > 0.1


def test_ddpm_steps_are_ancestral_sampling():
    """Noise levels, mean and variance of every step are those of our scheduler for discretely trained networks."""
    ours = ScoreSdeVpScheduler(continuous=False, predictor="ancestral_sampling")
    theirs = native_pipeline(ddpm(), ours).scheduler
    times = (torch.arange(1000, dtype=torch.float64) + 0.25) / 999  # labels are cut off
    sigmas = (1 - theirs.alphas_cumprod.double()).sqrt()  # of float32 products
    torch.testing.assert_close(ours.output_sigma(times), sigmas, rtol=2e-4, atol=0)
    theirs.set_timesteps(1000)
    ours.set_timesteps(1000)
    x, output = torch.randn(2, 1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for place in (0, 300, 998):
        label = theirs.timesteps[place]
        ours.set_timesteps(1000)
        expected = ours.step_pred(output, ours.timesteps[place], x, generator=torch.Generator().manual_seed(1))
        found = theirs.step(output, label, x, generator=torch.Generator().manual_seed(1)).prev_sample
        torch.testing.assert_close(found, expected.prev_sample, rtol=1e-4, atol=1e-4)


BARE = """
import sys
sys.modules["diffusers_sde"] = None  # not importable, whether installed or not
import torch
from safetensors.torch import save_file
from diffusers import DiffusionPipeline

for folder, out in zip(sys.argv[1::2], sys.argv[2::2]):
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe).__module__.startswith("diffusers."), type(pipe)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = pipe.unet(x, torch.tensor([2.0, 30.0])).sample
    image = torch.as_tensor(pipe(num_inference_steps=3, output_type="np").images).contiguous()
    save_file({"output": output, "image": image, "name": torch.tensor(list(type(pipe).__name__.encode()))}, out)
"""


def test_loads_and_draws_without_this_package(tmp_path):
    networks = {"ve": ncsnpp(), "vp": ddpm()}
    discrete = ScoreSdeVpScheduler(continuous=False, predictor="ancestral_sampling", beta_max=10.0)
    native_pipeline(networks["ve"], ScoreSdeVeScheduler(sigma_max=348.0, snr=0.075)).save_pretrained(tmp_path / "ve")
    native_pipeline(networks["vp"], discrete).save_pretrained(tmp_path / "vp")
    paths = [str(tmp_path / name) for name in ("ve", "ve.safetensors", "vp", "vp.safetensors")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", BARE, *paths], env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr
    for name, title in (("ve", "ScoreSdeVePipeline"), ("vp", "DDPMPipeline")):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert bytes(found["name"].tolist()).decode() == title
        assert found["image"].shape == (1, 16, 16, 3) and found["image"].isfinite().all()
        x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = networks[name](x, torch.tensor([2.0, 30.0])).sample
        assert relative_error(found["output"], expected) < 1e-5
    ve, vp = (DiffusionPipeline.from_pretrained(tmp_path / name).scheduler for name in ("ve", "vp"))
    assert type(ve) is diffusers.ScoreSdeVeScheduler and (ve.config.sigma_max, ve.config.snr) == (348.0, 0.075)
    assert (vp.config.beta_start, vp.config.beta_end) == (0.1 / 1000, 10.0 / 1000)
    assert (vp.config.clip_sample, vp.config.variance_type) == (False, "fixed_large")


def test_native_repositories_load_through_our_pipeline_again(tmp_path):
    scheduler = ScoreSdeVeScheduler(sigma_max=348.0, snr=0.075, num_train_timesteps=7)
    native_pipeline(ncsnpp(), scheduler).save_pretrained(tmp_path)
    again = ScoreSdePipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is ScoreSdeVeScheduler
    assert {k: v for k, v in again.scheduler.config.items() if not k.startswith("_")} == {
        k: v for k, v in scheduler.config.items() if not k.startswith("_")
    }
