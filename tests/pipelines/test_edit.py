"""`ScoreSdeEditPipeline`: SDEdit and CODE on Gaussian data against closed forms, sizes, bad input."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image

from diffusers_sde import (
    ScoreSdeOdePipeline,
    ScoreSdePipeline,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
)
from diffusers_sde.pipelines.padding import Padding, size_factor
from diffusers_sde.pipelines.pipeline_score_sde_edit import ScoreSdeEditPipeline
from tests.oracles import Gaussian, coefficients, forward_step, predictor_step, seeded, step_times
from tests.tiny import ChainNetwork, GaussianNetwork, assert_alike, legacy_unet, tiny_network

MEAN, STD = 0.4, 0.2  # of the model, in its data range
IMAGE_MEAN, IMAGE_STD = 0.6, 0.1  # of the images, in [0, 1]
SCHEDULERS = {"ve": ScoreSdeVeScheduler, "vp": ScoreSdeVpScheduler, "sub_vp": ScoreSdeSubVpScheduler}
STEPS = 50
# Mean and standard deviation of 32768 independent numbers, to five of their own standard errors.
RELATIVE = 5 / 32768**0.5


def make_pipe(sde="ve", scheduler=None, **options):
    network = GaussianNetwork(sde, MEAN, STD, center_input_sample=sde == "ve", **options).double()
    return ScoreSdeEditPipeline(network, SCHEDULERS[sde](**(scheduler or {})))


def images(seed=0):
    return Gaussian(IMAGE_MEAN, IMAGE_STD).sample((8, 1, 64, 64), seeded(seed), torch.float64).clamp(0, 1)


def image_moments(pipe):
    """Mean and variance of the images in the data range."""
    return (2 * IMAGE_MEAN - 1, 4 * IMAGE_STD**2) if pipe._centered else (IMAGE_MEAN, IMAGE_STD**2)


def marginal(sde, t):
    """alpha(t) m and V(t) of the model."""
    alpha, sigma, _, _ = coefficients(sde, t)
    return alpha * MEAN, alpha**2 * STD**2 + sigma**2


def langevin_moments(sde, t, mean, variance, snr, num_steps, a=1.0):
    """Mean and variance after steps of the "ald" corrector at t."""
    center, total = marginal(sde, t)
    epsilon = 2 * (a * snr * coefficients(sde, t)[1]) ** 2
    for _ in range(num_steps):
        mean = center + (1 - epsilon / total) * (mean - center)
        variance = (1 - epsilon / total) ** 2 * variance + 2 * epsilon
    return mean, variance


def sdedit_moments(pipe, num_steps):
    """Mean and variance after the last `num_steps` of the grid, from images with noise to their first time."""
    sde, config = pipe.scheduler.sde, pipe.scheduler.config
    times = [1 - (1 - config.sampling_eps) * step / (STEPS - 1) for step in range(STEPS)][-num_steps:]
    alpha, sigma, _, _ = coefficients(sde, times[0])
    mean, variance = image_moments(pipe)
    mean, variance = alpha * mean, alpha**2 * variance + sigma**2
    for step, t in enumerate(times, start=STEPS - num_steps):
        if config.corrector == "ald":
            a, _ = forward_step(sde, t, t - 1 / STEPS)
            mean, variance = langevin_moments(sde, t, mean, variance, config.snr, config.correct_steps, a)
        center, total = marginal(sde, t)
        p, q, r = predictor_step(sde, config.predictor, False, *step_times(sde, config.predictor, t, step, STEPS))
        mean = (p - q / total) * mean + q / total * center
        variance = (p - q / total) ** 2 * variance + (r**2 if step < STEPS - 1 else 0.0)
    return mean, variance


def assert_moments(x, mean, variance, tolerance=RELATIVE):
    assert float(x.mean()) == pytest.approx(mean, abs=tolerance * variance**0.5)
    assert float(x.std()) == pytest.approx(variance**0.5, rel=tolerance)


@pytest.mark.parametrize("strength", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("corrector", ["none", "ald"])
@pytest.mark.parametrize("sde", SCHEDULERS)
def test_sdedit_has_the_moments_of_its_chain(sde, corrector, strength):
    predictor = "reverse_diffusion" if sde == "ve" else "euler_maruyama"
    pipe = make_pipe(sde, {"predictor": predictor, "corrector": corrector})
    x = pipe(images(), strength, STEPS, generator=seeded(1), output_type="latent").images
    assert_moments(x, *sdedit_moments(pipe, round(strength * STEPS)))


@pytest.mark.parametrize("sde", SCHEDULERS)
def test_strength_goes_from_the_image_to_the_model(sde):
    pipe = make_pipe(sde, {"corrector": "none"})
    x_0 = images()
    settings = {"num_inference_steps": 400, "output_type": "latent"}
    barely = pipe(x_0, 0.0025, generator=seeded(1), **settings).images
    wholly = pipe(x_0, 1.0, generator=seeded(1), **settings).images
    assert float((barely - pipe._to_data_range(x_0)).abs().max()) < 0.06  # sigma is 0.01 at the first time
    assert_moments(wholly, MEAN, STD**2, tolerance=0.04)  # the bias of 400 steps

    def correlation(x):
        return float(torch.corrcoef(torch.stack([x.flatten(), x_0.flatten()]))[0, 1])

    assert correlation(barely) > 0.99
    assert abs(correlation(wholly)) < RELATIVE


@pytest.mark.parametrize("num_steps", [0, 3, 1000])
@pytest.mark.parametrize("sde", SCHEDULERS)
def test_code_has_the_moments_of_its_chain(sde, num_steps):
    pipe = make_pipe(sde)
    options = {"time": 0.4, "snr": 0.1, "confidence": None, "generator": seeded(1), "output_type": "latent"}
    output = pipe.code(images(), num_langevin_steps=num_steps, **options)
    sde, end = pipe.scheduler.sde, pipe.scheduler.config.sampling_eps
    center, total = marginal(sde, options["time"])
    first, least = marginal(sde, end)
    mean, variance = image_moments(pipe)
    # The flow keeps (x - alpha m) / sqrt(V).
    mean, variance = center + (mean - first) * (total / least) ** 0.5, variance * total / least
    mean, variance = langevin_moments(sde, options["time"], mean, variance, options["snr"], num_steps)
    assert_moments(output.latents, mean, variance)
    assert_moments(output.images, first + (mean - center) * (least / total) ** 0.5, variance * least / total)
    assert bool(output.success.all())
    if num_steps == 1000:  # nothing of the images is left but the bias 1 + snr^2 sigma^2 / V of the steps
        assert_moments(output.images, MEAN, STD**2, tolerance=0.02)


@pytest.mark.parametrize("solver", ["adams", "dopri5"])
@pytest.mark.parametrize("sde", SCHEDULERS)
def test_code_without_steps_returns_the_image(sde, solver):
    image = torch.rand(2, 1, 8, 8, generator=seeded())
    output = make_pipe(sde).code(image, 0.7, 0, confidence=None, solver=solver, output_type="pt")
    assert float((output.images - image).abs().max()) < 2e-3  # half a grey level
    assert float((output.latents - output.latents.mean()).std()) > 0.3  # and it went somewhere
    assert output.nfe.shape == output.error.shape == (2,)


@pytest.mark.parametrize("sde", SCHEDULERS)
def test_confidence_clips_the_latent_to_where_images_come_to_lie(sde):
    pipe = make_pipe(sde)
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:] = 1  # three and more of the model's standard deviations off on both sides
    wide = pipe.code(image, 0.3, 0, confidence=None).latents
    narrow = pipe.code(image, 0.3, 0, confidence=0.1).latents
    alpha, sigma, _, _ = coefficients(pipe.scheduler.sde, 0.3)
    low = -alpha - 0.1 * sigma if pipe._centered else -0.1 * sigma
    high = alpha + 0.1 * sigma
    torch.testing.assert_close(narrow, wide.clamp(low, high), rtol=0, atol=1e-6)
    assert wide.max() > high + 0.01 or wide.min() < low - 0.01
    unclipped = pipe.code(image, 0.3, 0, confidence=1e6).latents
    assert torch.equal(unclipped, wide)


@pytest.mark.parametrize("method", ["sdedit", "code"])
def test_a_result_does_not_depend_on_its_batch(method):
    pipe = make_pipe("vp")
    a, b = torch.rand(2, 1, 1, 8, 8, generator=seeded())
    edit = pipe if method == "sdedit" else pipe.code
    options = {"strength": 0.5, "num_inference_steps": 40} if method == "sdedit" else {"num_langevin_steps": 3}
    together = edit(torch.cat([a, b]), num_samples=2, generator=[seeded(k) for k in range(4)], **options)
    alone = edit(b, generator=seeded(2), **options)  # the first of the second image
    assert np.array_equal(np.asarray(together.images[2]), np.asarray(alone.images[0]))
    assert not np.array_equal(np.asarray(together.images[2]), np.asarray(together.images[3]))


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 12), (13, 30)])
@pytest.mark.parametrize("make", [tiny_network, legacy_unet], ids=["ours", "UNet2DModel"])
def test_any_size(make, size):
    pipe = ScoreSdeEditPipeline(make(), ScoreSdeVeScheduler(sigma_max=5.0))
    image = torch.rand(1, 3, *size, generator=seeded())
    edited = pipe(image, 0.5, 4, generator=seeded(), output_type="pt").images
    coded = pipe.code(image, 0.2, 1, generator=seeded(), output_type="pt").images
    assert edited.shape == coded.shape == image.shape
    assert float((coded - image).abs().mean()) < 0.1  # where it was, not shifted


def test_the_border_repeats_the_outermost_pixels_and_goes_again():
    x = torch.arange(15.0).reshape(1, 1, 3, 5)
    padding = Padding(3, 5, 4)
    padded = padding.pad(x)
    rows, columns = [0, 1, 2, 2], [0, 0, 1, 2, 3, 4, 4, 4]
    assert torch.equal(padded, x[:, :, rows][..., columns])
    assert torch.equal(padding.crop(padded), x)
    assert torch.equal(Padding(3, 5, 1).pad(x), x)
    assert padding.pad(x > 7).dtype is torch.bool
    assert size_factor(tiny_network()) == size_factor(legacy_unet()) == 2


def test_a_chain_under_the_scheduler_of_diffusers():
    pipe = ScoreSdeEditPipeline(ChainNetwork(MEAN, STD).double(), DDPMScheduler())
    x = pipe(images(), 1.0, 200, generator=seeded(1), output_type="latent").images
    assert_moments(x, MEAN, STD**2, tolerance=0.05)


def test_callbacks_progress_and_output_types():
    pipe = make_pipe("ve", in_channels=3, out_channels=3)
    array = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    steps = []

    def callback(pipeline, step, timestep, tensors):
        steps.append((step, pipeline.num_timesteps, tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])}

    image = pipe(Image.fromarray(array), 0.5, 10, callback_on_step_end=callback).images[0]
    assert steps == [(step, 5, (1, 3, 8, 6)) for step in range(5, 10)]
    assert image.size == (6, 8) and not np.asarray(image).any()
    forms = [Image.fromarray(array), array, torch.from_numpy(array).permute(2, 0, 1)]
    edited = [pipe(form, 0.3, 10, generator=seeded(), output_type="np").images for form in forms]
    assert all(np.array_equal(edited[0], other) for other in edited)
    assert edited[0].shape == (1, 8, 6, 3)
    (alone,) = pipe(array, 0.3, 10, generator=seeded(), return_dict=False)
    assert isinstance(alone[0], Image.Image)
    assert len(pipe.code(array, 0.3, 0, return_dict=False)) == 5
    assert pipe.code(array, 0.3, 0)["sample"][0].size == (6, 8)


def test_saved_loaded_and_shared(tmp_path):
    scheduler = ScoreSdeVeScheduler(sigma_max=5.0, num_train_timesteps=6)
    pipe = ScoreSdeEditPipeline(tiny_network(), scheduler)
    pipe.save_pretrained(tmp_path)
    image = torch.rand(1, 3, 8, 8, generator=seeded())
    expected = pipe(image, 0.5, generator=seeded(), output_type="pt").images
    loaded = ScoreSdeEditPipeline.from_pretrained(tmp_path)
    shared = ScoreSdeEditPipeline.from_pipe(ScoreSdePipeline(pipe.unet, scheduler))
    for other in (loaded, shared):
        assert_alike(other(image, 0.5, generator=seeded(), output_type="pt").images, expected)
    assert shared.unet is pipe.unet
    assert ScoreSdeOdePipeline.from_pipe(shared).unet is pipe.unet
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path), ScoreSdeEditPipeline)


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_strength_is_a_fraction(strength):
    with pytest.raises(ValueError, match=r"`strength` is .*; it must lie in \(0, 1\]"):
        make_pipe()(torch.zeros(1, 8, 8), strength, 10)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"strength": 0.01, "num_inference_steps": 10}, r"makes none of 10 steps; give at least 0.1, or more steps"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0"),
        ({"num_samples": 0}, "`num_samples` is 0"),
        ({"num_samples": 3, "generator": [seeded()]}, "`generator` is a list of 1 for a batch of 3"),
        ({"output_type": "jpg"}, "`output_type` is 'jpg'"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, r"has \['x'\]"),
        ({"image": torch.full((1, 8, 8), 2.0)}, r"values in \[2, 2\]; images are in \[0, 1\]"),
        ({"image": torch.full((1, 8, 8), torch.nan)}, "64 NaN or infinite values of 64"),
        ({"image": torch.zeros(3, 8, 8)}, r"shape \(3, 8, 8\); the network takes 1 channels"),
        ({"image": []}, "empty list"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make_pipe()(**{"image": torch.zeros(1, 8, 8), "num_inference_steps": 10, **options})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"time": 0.0}, r"`time` is 0.0; it must lie above 1e-05"),
        ({"time": 1.5}, "`time` is 1.5"),
        ({"time": float("nan")}, "`time` is nan"),
        ({"num_langevin_steps": -1}, "`num_langevin_steps` is -1; it must be an integer of at least 0"),
        ({"num_langevin_steps": 2.0}, "`num_langevin_steps` is 2.0"),
        ({"confidence": -1.0}, "`confidence` is -1.0; it must be finite and at least 0, or `None`"),
        ({"confidence": float("nan")}, "`confidence` is nan"),
        ({"snr": 0.0}, "`snr` is 0.0"),
        ({"solver": "heun"}, "solver is 'heun'"),
        ({"num_samples": -1}, "`num_samples` is -1"),
        ({"generator": [seeded()] * 2}, "`generator` is a list of 2 for a batch of 1"),
    ],
)
def test_bad_arguments_of_code(options, message):
    with pytest.raises(ValueError, match=message):
        make_pipe().code(**{"image": torch.zeros(1, 8, 8), **options})


def test_a_state_that_is_not_finite_is_an_error():
    pipe = make_pipe("ve", nan_from=3)
    with pytest.raises(ValueError, match="NaN or infinite at step"):
        pipe(torch.zeros(1, 8, 8), 1.0, 10)
    pipe = make_pipe("ve")
    with pytest.raises(ValueError, match="NaN or infinite at step"):
        pipe.code(torch.zeros(1, 8, 8), 0.9, 500, snr=50.0)
