"""Schedulers of diffusers in our pipeline, ours in diffusers' loop."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from diffusers_sde import ScoreSdePipeline, ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from tests.tiny import GaussianNetwork

MEAN, STD = 0.3, 0.2

# The chain of 1000 steps of which the VP SDE of beta 0.1 to 20 is the limit.
CHAIN = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear"}

SWAPPED = {
    "ddpm": (DDPMScheduler(**CHAIN, clip_sample=False), 1000),
    "ddim": (DDIMScheduler(**CHAIN, clip_sample=False, timestep_spacing="trailing"), 200),
    "dpm_solver": (DPMSolverMultistepScheduler(**CHAIN), 200),
    "unipc": (UniPCMultistepScheduler(**CHAIN), 200),
    "deis": (DEISMultistepScheduler(**CHAIN), 200),
    "pndm": (PNDMScheduler(**CHAIN, skip_prk_steps=True), 200),
    "euler": (EulerDiscreteScheduler(**CHAIN), 300),
    "heun": (HeunDiscreteScheduler(**CHAIN), 100),
}


@pytest.mark.parametrize("name", SWAPPED)
def test_scheduler_of_diffusers_draws_the_data(name):
    scheduler, num_steps = SWAPPED[name]
    pipe = ScoreSdePipeline(GaussianNetwork("vp", MEAN, STD, center_input_sample=False), scheduler)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    options = {"batch_size": 64, "num_inference_steps": num_steps, "generator": generator}
    x = pipe(**options, output_type="latent").images
    # Five standard errors of 4096 pixels are 0.0156 for the mean and 5.5 % for the standard deviation.
    assert abs(x.mean() - MEAN) < 5 * STD / 4096**0.5
    assert abs(x.std() / STD - 1) < 5 / 8192**0.5
    images = pipe(**options, output_type="pt").images  # the network's data range is [-1, 1]
    assert abs(images.mean() - (MEAN / 2 + 0.5)) < 5 * STD / 2 / 4096**0.5


def test_config_of_diffusers_becomes_the_same_process():
    """Our discretely conditioned VP and diffusers' DDPM have the same forward process, label by label."""
    ours, theirs = ScoreSdeVpScheduler(continuous=False), DDPMScheduler(**CHAIN)
    labels = torch.arange(0, 1000, 111)
    expected = (1 - theirs.alphas_cumprod[labels]).sqrt()
    torch.testing.assert_close(ours.output_sigma(labels / 999).float(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "sde, scheduler",
    [
        ("ve", ScoreSdeVeScheduler(sigma_max=50.0, corrector="none")),
        ("vp", ScoreSdeVpScheduler()),
        ("sub_vp", ScoreSdeSubVpScheduler()),
    ],
)
def test_ours_in_a_loop_as_diffusers_writes_it(sde, scheduler):
    network = GaussianNetwork(sde, MEAN, STD)
    generator = torch.Generator().manual_seed(5)
    scheduler.set_timesteps(40)
    x = torch.randn(2, 1, 8, 8, generator=generator) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), scheduler.model_timestep(t)).sample
        x = scheduler.step(output, t, x, generator=generator).prev_sample
    pipe = ScoreSdePipeline(network, scheduler)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(2, 40, torch.Generator().manual_seed(5), output_type="latent").images
    assert torch.equal(x, expected)
