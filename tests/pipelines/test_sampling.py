"""`ScoreSdePipeline` as a user calls it."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_sde import (
    ScoreSdePipeline,
    ScoreSdePipelineOutput,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
)
from tests.tiny import GaussianNetwork, legacy_unet, tiny_network

SCHEDULERS = {
    "ve": lambda **options: ScoreSdeVeScheduler(**{"sigma_max": 50.0, **options}),
    "vp": lambda **options: ScoreSdeVpScheduler(**{"corrector": "langevin", **options}),
    "sub_vp": lambda **options: ScoreSdeSubVpScheduler(**{"corrector": "langevin", **options}),
}


def make_pipe(network=None, scheduler=None):
    pipe = ScoreSdePipeline(network or tiny_network(), scheduler or SCHEDULERS["ve"]())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def sample(pipe, seed=0, **options):
    options = {"num_inference_steps": 25, "output_type": "latent", **options}
    return pipe(**{"generator": seeded(seed), **options}).images


# ---------------------------------------------------------------------------------------------------------------------
# Moments: with a perfect network of Gaussian data, samples are Gaussian and their moments known
# ---------------------------------------------------------------------------------------------------------------------

MEAN, STD = 0.3, 0.2


def moments_of_sampler(sde, num_steps):
    """Mean and standard deviation after each step's x <- a x + b + c z, of the official predictor of each SDE."""
    times = np.linspace(1.0, {"ve": 1e-5}.get(sde, 1e-3), num_steps)
    mean, variance = 0.0, 50.0**2 if sde == "ve" else 1.0
    levels = np.append(np.geomspace(50.0, 0.01, num_steps), 0.0) ** 2
    for i, t in enumerate(times):
        beta, integral = 0.1 + 19.9 * t, 0.1 * t + 9.95 * t**2
        if sde == "ve":  # reverse diffusion
            alpha, sigma, drift, g2 = 1.0, 0.01 * 5000.0**t, 0.0, levels[i] - levels[i + 1]
        else:  # Euler-Maruyama
            alpha, drift = np.exp(-integral / 2), beta / 2 / num_steps
            sigma = np.sqrt(1 - alpha**2) if sde == "vp" else 1 - alpha**2
            g2 = beta * (1 if sde == "vp" else 1 - np.exp(-2 * integral)) / num_steps
        precision = 1 / (alpha**2 * STD**2 + sigma**2)
        a, b = 1 + drift - g2 * precision, g2 * precision * alpha * MEAN
        last = i == num_steps - 1
        mean, variance = a * mean + b, a**2 * variance + (0 if last else g2)
    return mean, np.sqrt(variance)


@pytest.mark.parametrize("sde", SCHEDULERS)
def test_moments_of_samples(sde):
    pipe = make_pipe(GaussianNetwork(sde, MEAN, STD), SCHEDULERS[sde](corrector="none"))
    x = sample(pipe, batch_size=64, height=16, width=16, num_inference_steps=150)
    mean, std = moments_of_sampler(sde, 150)
    n = x.numel()  # five standard errors each
    assert abs(x.mean() - mean) < 5 * std / n**0.5
    assert abs(x.std() - std) < 5 * std / (2 * n) ** 0.5
    assert abs(mean - MEAN) < 0.01 and abs(std / STD - 1) < 0.1  # and that is about the data


@pytest.mark.parametrize("sde, snr", [("ve", 0.1), ("vp", 0.05), ("sub_vp", 0.05)])
@pytest.mark.parametrize("corrector", ["langevin", "ald"])
def test_correctors_bring_samples_nearer_to_the_data(sde, snr, corrector):
    """Corrected samples have the data's standard deviation within 4 %, or half the predictor's error."""
    errors = {}
    for name in ("none", corrector):
        scheduler = SCHEDULERS[sde](corrector=name, snr=snr, correct_steps=3)
        x = sample(make_pipe(GaussianNetwork(sde, MEAN, STD), scheduler), batch_size=64, num_inference_steps=50)
        errors[name] = abs(float(x.std()) / STD - 1)
        assert abs(x.mean() - MEAN) < 0.04
    assert errors[corrector] < max(0.04, errors["none"] / 2), errors


@pytest.mark.parametrize("sde", SCHEDULERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_network(sde, dtype):
    """The network runs in half precision, the state stays in float32; moments are those of the data to 5 %."""
    network = GaussianNetwork(sde, MEAN, STD).to(dtype)
    seen = set()
    network.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
    x = sample(make_pipe(network, SCHEDULERS[sde](corrector="none")), batch_size=64, num_inference_steps=300)
    assert seen == {dtype}
    assert x.dtype is torch.float32
    assert abs(x.mean() - MEAN) < 0.02
    assert abs(x.std() / STD - 1) < 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_of_real_networks(dtype):
    networks = [tiny_network(scale_by_sigma=True), legacy_unet()]
    for network in networks:
        images = sample(make_pipe(network.to(dtype)), output_type="np", num_inference_steps=5)
        assert images.dtype == np.float32
        assert np.isfinite(images).all()


# ---------------------------------------------------------------------------------------------------------------------
# Number of evaluations and what the network is told
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, calls_per_step",
    [
        ({}, 2),
        ({"correct_steps": 3}, 4),
        ({"correct_steps": 0}, 1),
        ({"corrector": "none"}, 1),
        ({"corrector": "none", "correct_steps": 2}, 1),
        ({"predictor": "none"}, 1),
        ({"predictor": "none", "corrector": "none"}, 0),
    ],
)
def test_number_of_network_evaluations(options, calls_per_step):
    network = GaussianNetwork()
    sample(make_pipe(network, ScoreSdeVeScheduler(**options)), num_inference_steps=7)
    assert network.calls == 7 * calls_per_step


def test_number_of_steps_is_by_default_that_of_training():
    network = GaussianNetwork("vp")
    pipe = make_pipe(network, ScoreSdeVpScheduler(num_train_timesteps=30))
    sample(pipe, num_inference_steps=None)
    assert network.calls == pipe.num_timesteps == 30


@pytest.mark.parametrize(
    "scheduler, first, last",
    [
        (
            ScoreSdeVeScheduler(sigma_min=0.02, sigma_max=30.0, sampling_eps=0.1, corrector="none"),
            30.0,
            0.02 * 1500**0.1,
        ),
        (ScoreSdeVeScheduler(continuous=False, num_train_timesteps=11, corrector="none"), 0, 10),
        (ScoreSdeVpScheduler(sampling_eps=0.01), 999.0, 9.99),
        (ScoreSdeVpScheduler(continuous=False, num_train_timesteps=101, sampling_eps=0.01), 100.0, 1.0),
        (ScoreSdeSubVpScheduler(sampling_eps=0.01), 999.0, 9.99),
    ],
)
def test_what_the_network_is_conditioned_on(scheduler, first, last):
    network = GaussianNetwork("ve" if isinstance(scheduler, ScoreSdeVeScheduler) else "vp", std=1e3)
    seen = []
    network.register_forward_hook(lambda module, *_: seen.append(float(module.timestep)))
    sample(make_pipe(network, scheduler), num_inference_steps=25)
    assert seen[0] == pytest.approx(first, rel=1e-6)
    assert seen[-1] == pytest.approx(last, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("sde", SCHEDULERS)
def test_channels_and_non_square_sizes(channels, sde):
    network = tiny_network(
        in_channels=channels, out_channels=channels, sample_size=(4, 12), scale_by_sigma=sde == "ve"
    )
    pipe = make_pipe(network, SCHEDULERS[sde](corrector="none"))
    steps = {"num_inference_steps": 3}
    assert sample(pipe, batch_size=2, output_type="np", **steps).shape == (2, 4, 12, channels)
    assert sample(pipe, batch_size=2, output_type="pt", **steps).shape == (2, channels, 4, 12)
    assert sample(pipe, height=10, width=6, output_type="pt", **steps).shape == (1, channels, 10, 6)
    assert sample(pipe, height=8, output_type="pt", **steps).shape == (1, channels, 8, 12)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pil_images(channels, mode):
    pipe = make_pipe(tiny_network(in_channels=channels, out_channels=channels))
    options = {"batch_size": 2, "num_inference_steps": 3, "height": 6, "width": 10}
    output = pipe(generator=seeded(0), **options)
    assert isinstance(output, ScoreSdePipelineOutput)
    assert len(output.images) == 2
    for image, array in zip(output.images, sample(pipe, output_type="np", **options), strict=True):
        assert image.mode == mode
        assert image.size == (10, 6)
        expected = (array * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(np.asarray(image).reshape(expected.shape), expected)


@pytest.mark.parametrize("center_input_sample", [True, False])
@pytest.mark.parametrize("network", [tiny_network, legacy_unet])
def test_forms_of_the_output(network, center_input_sample):
    """Images are in [0, 1] whatever the data range, the latent state is as it is."""
    pipe = make_pipe(network(center_input_sample=center_input_sample), ScoreSdeVeScheduler(sigma_max=1.0))
    state = sample(pipe, batch_size=2, num_inference_steps=8)
    assert state.dtype is torch.float32
    assert not state.requires_grad
    assert state.min() < -1 and state.max() > 1  # unclamped
    expected = (state if center_input_sample else state / 2 + 0.5).clamp(0, 1)
    assert ((expected > 0) & (expected < 1)).float().mean() > 0.1  # not a comparison of clamped pixels
    images = sample(pipe, batch_size=2, num_inference_steps=8, output_type="pt")
    torch.testing.assert_close(images, expected)
    array = sample(pipe, batch_size=2, num_inference_steps=8, output_type="np")
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, images.permute(0, 2, 3, 1).numpy())


def test_tuple_and_legacy_key():
    pipe = make_pipe()
    output = pipe(num_inference_steps=3, generator=seeded(0), output_type="np")
    assert output["sample"] is output.images is output["images"] is output[0]
    (images,) = pipe(num_inference_steps=3, generator=seeded(0), output_type="np", return_dict=False)
    np.testing.assert_array_equal(images, output.images)


# ---------------------------------------------------------------------------------------------------------------------
# Randomness
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SCHEDULERS)
def test_seed_decides(sde):
    pipe = make_pipe(GaussianNetwork(sde), SCHEDULERS[sde]())
    before = torch.get_rng_state()
    first = sample(pipe, seed=1)
    assert torch.equal(sample(pipe, seed=1), first)
    assert not torch.equal(sample(pipe, seed=2), first)
    assert torch.equal(torch.get_rng_state(), before)  # all noise is the generator's
    without = [sample(pipe, generator=None) for _ in range(2)]
    assert not torch.equal(*without)


@pytest.mark.parametrize("network", ["exact", "real"])
@pytest.mark.parametrize("sde", SCHEDULERS)
def test_image_does_not_depend_on_its_batch(sde, network):
    """A list of generators: each image is the one that its generator gives alone."""
    network = GaussianNetwork(sde) if network == "exact" else tiny_network(scale_by_sigma=sde == "ve")
    pipe = make_pipe(network, SCHEDULERS[sde](**{"sigma_max": 3.0} if sde == "ve" else {}))
    together = sample(pipe, batch_size=3, generator=[seeded(i) for i in (5, 6, 7)])
    alone = torch.cat([sample(pipe, generator=seeded(i)) for i in (5, 6, 7)])
    listed = torch.cat([sample(pipe, generator=[seeded(i)]) for i in (5, 6, 7)])
    assert torch.equal(alone, listed)
    assert (together - alone).abs().max() < 1e-5 * alone.abs().max()
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_batch_norm_of_the_official_code_couples_images():
    """What the default avoids."""
    pipe = make_pipe(GaussianNetwork(), SCHEDULERS["ve"](corrector_norm="batch"))
    together = sample(pipe, batch_size=3, generator=[seeded(i) for i in (5, 6, 7)])
    assert (together[:1] - sample(pipe, generator=seeded(5))).abs().max() > 1e-4


def test_list_of_generators_with_a_scheduler_of_diffusers():
    pipe = make_pipe(GaussianNetwork("vp", center_input_sample=False), DDPMScheduler(clip_sample=False))
    together = sample(pipe, batch_size=2, generator=[seeded(1), seeded(2)])
    alone = torch.cat([sample(pipe, generator=seeded(i)) for i in (1, 2)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_latents_are_the_initial_state(dtype):
    pipe = make_pipe(GaussianNetwork())
    generator = seeded(3)
    latents = torch.randn(2, 1, 8, 8, generator=generator).to(dtype) * 50.0
    given = latents.clone()
    x = sample(pipe, batch_size=2, latents=latents, generator=generator)
    assert torch.equal(latents, given)
    assert x.dtype is torch.promote_types(dtype, torch.float32)
    if dtype is torch.float32:
        assert torch.equal(x, sample(pipe, seed=3, batch_size=2))
    moved = sample(pipe, batch_size=2, latents=latents + 40.0, generator=seeded(3))
    assert not torch.allclose(moved, x)


# ---------------------------------------------------------------------------------------------------------------------
# Callbacks, progress, offload
# ---------------------------------------------------------------------------------------------------------------------


def test_callback_sees_every_step():
    pipe = make_pipe(GaussianNetwork())
    seen = []

    def callback(pipeline, step, timestep, kwargs):
        assert type(pipeline) is ScoreSdePipeline and pipeline.unet is pipe.unet
        assert pipeline.num_timesteps == len(pipeline.scheduler.timesteps) == 6
        seen.append((step, float(timestep), kwargs["latents"].clone()))

    x = sample(pipe, num_inference_steps=6, callback_on_step_end=callback)
    assert [step for step, _, _ in seen] == list(range(6))
    np.testing.assert_allclose([t for _, t, _ in seen], np.linspace(1, 1e-5, 6), rtol=1e-5)
    assert torch.equal(seen[-1][2], x)
    assert not torch.equal(seen[-2][2], x)
    assert torch.equal(sample(pipe, num_inference_steps=6), x)  # looking on changed nothing


def test_callback_replaces_the_state():
    pipe = make_pipe(GaussianNetwork())

    def freeze(pipeline, step, timestep, kwargs):
        return {"latents": torch.full_like(kwargs["latents"], 0.25)} if step == 5 else {}

    x = sample(pipe, num_inference_steps=6, callback_on_step_end=freeze)
    assert torch.equal(x, torch.full_like(x, 0.25))

    def restart(pipeline, step, timestep, kwargs):
        return {"latents": -kwargs["latents"]} if step == 0 else kwargs

    assert not torch.equal(
        sample(pipe, num_inference_steps=6, callback_on_step_end=restart), sample(pipe, num_inference_steps=6)
    )


def test_callback_may_ask_for_nothing():
    seen = []
    sample(
        make_pipe(GaussianNetwork()),
        num_inference_steps=2,
        callback_on_step_end=lambda *args: seen.append(args[3]),
        callback_on_step_end_tensor_inputs=[],
    )
    assert seen == [{}, {}]


def test_progress_bar_can_be_configured(capsys):
    pipe = ScoreSdePipeline(GaussianNetwork(), SCHEDULERS["ve"]())
    pipe.set_progress_bar_config(desc="drawing garments", ascii=True)
    sample(pipe, num_inference_steps=4)
    shown = capsys.readouterr().err
    assert "drawing garments" in shown and "4/4" in shown
    pipe.set_progress_bar_config(disable=True)
    sample(pipe, num_inference_steps=4)
    assert capsys.readouterr().err == ""


def test_offload_sequence_names_every_network():
    pipe = make_pipe()
    networks = [name for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)]
    assert pipe.model_cpu_offload_seq.split("->") == networks == ["unet"]


def test_network_of_diffusers():
    """UNet2DModel, also with a positional embedding for VP."""
    pipe = make_pipe(legacy_unet(), ScoreSdeVeScheduler(sigma_max=5.0))
    assert sample(pipe, batch_size=2, height=12, width=8, num_inference_steps=3).shape == (2, 3, 12, 8)
    unet = legacy_unet(
        time_embedding_type="positional",
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        center_input_sample=False,
    )
    assert sample(make_pipe(unet, ScoreSdeVpScheduler())).isfinite().all()
