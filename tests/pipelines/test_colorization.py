"""`ScoreSdeColorizationPipeline`: the grey image is kept, the colours are drawn from the posterior."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_sde import ScoreSdePipeline, ScoreSdeVeScheduler
from diffusers_sde.pipelines.inverse import Replacement
from diffusers_sde.pipelines.pipeline_score_sde_colorization import ScoreSdeColorizationPipeline, with_grey
from diffusers_sde.pipelines.pipeline_score_sde_inverse_problem import METHODS
from diffusers_sde.sde.operators import GreyAxis
from exact_posteriors import SCHEDULERS, SHAPE, ExactNetwork, errors, matrix_of, two_fields
from tests.oracles import SDES, seeded
from tests.tiny import GaussianNetwork, tiny_network


def rand(*shape):
    return torch.rand(*shape, generator=seeded(11))


def make_pipe(network=None, scheduler=None):
    pipe = ScoreSdeColorizationPipeline(network or tiny_network(), scheduler or ScoreSdeVeScheduler(sigma_max=3.0))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def colorize(pipe, image, seed=0, **options):
    options = {"num_inference_steps": 3, "output_type": "pt", **options}
    return pipe(image, **{"generator": seeded(seed), **options}).images


@pytest.mark.parametrize("center_input_sample", [True, False])
@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("method", METHODS)
def test_grey_channel_is_the_input(method, channels, center_input_sample):
    """To 1e-5, for states far outside of [0, 1], too; image by image."""
    options = {"in_channels": channels, "out_channels": channels, "center_input_sample": center_input_sample}
    pipe = make_pipe(tiny_network(**options))
    grey = torch.rand(2, 1, 8, 8, generator=seeded(1))
    grey[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    images = colorize(pipe, grey, method=method, num_samples=2)
    assert images.shape == (4, channels, 8, 8)
    assert 0 <= images.min() and images.max() <= 1
    expected = grey.repeat_interleave(2, dim=0)
    torch.testing.assert_close(images.mean(dim=1, keepdim=True), expected, rtol=0, atol=1e-5)
    assert (images[0] - images[1]).abs().max() > 0.1  # samples differ
    assert (images - expected).abs().mean() > 0.05  # and have colours


def test_colours_that_leave_the_range_are_moved_towards_grey():
    colour = torch.tensor([[0.9, 0.5, 0.4], [0.2, 0.3, 0.1], [2.0, -1.0, -1.0], [0.5, 0.5, 0.5]]).T.reshape(1, 3, 1, 4)
    grey = torch.tensor([0.6, 0.8, 0.25, 0.0]).reshape(1, 1, 1, 4)
    result = with_grey(colour, grey)
    torch.testing.assert_close(result[0, :, 0, 0], torch.tensor([0.9, 0.5, 0.4]))  # as it was
    torch.testing.assert_close(result[0, :, 0, 1], torch.tensor([0.8, 0.9, 0.7]))  # on another grey
    torch.testing.assert_close(result[0, :, 0, 2], torch.tensor([0.75, 0.0, 0.0]))  # to the edge
    assert torch.equal(result[0, :, 0, 3], torch.zeros(3))
    chroma = result - grey
    assert (torch.linalg.cross(chroma, colour - colour.mean(dim=1, keepdim=True), dim=1).abs() < 1e-6).all()  # hue
    assert (colour.clamp(0, 1).mean(dim=1) - 0.0)[0, 0, 2] != 0.0  # which clamping would have changed


@pytest.mark.parametrize("sde, method", [("ve", "replacement"), ("vp", "pigdm"), ("sub_vp", "replacement")])
def test_colours_are_from_the_posterior(sde, method):
    prior, operator = two_fields(), GreyAxis()
    grey = prior.sample(1, seeded(5)).reshape(1, *SHAPE).mean(dim=1, keepdim=True)
    pipe = make_pipe(ExactNetwork(sde).of(prior), SCHEDULERS[sde]())
    options = {"num_samples": 400, "num_inference_steps": 100, "output_type": "latent", "data_std": 0.2}
    state = colorize(pipe, grey, method=method, **options)
    y = operator.A(grey.expand(1, *SHAPE))
    posterior = prior.posterior(matrix_of(operator), y.flatten(), 0.0)
    found = errors(state, posterior, matrix_of(operator), y)
    assert found["mean"] < 0.1 and abs(found["std"] - 1) < 0.15 and found["fit"] < 1e-5, found


def test_start_has_the_grey_image_and_no_noise_in_it():
    """The official start has noise of other channels there."""
    grey = rand(1, 1, 4, 4)
    condition = Replacement(SDES["ve"], GreyAxis(), 3**0.5 * grey)
    prior = 50 * torch.randn(1, 3, 4, 4, generator=seeded())
    start = condition.start(prior)
    torch.testing.assert_close(start.mean(dim=1, keepdim=True), grey, rtol=0, atol=1e-4)
    torch.testing.assert_close(start - grey, prior - prior.mean(dim=1, keepdim=True), rtol=0, atol=1e-4)


def test_forms_of_the_input_and_output():
    array = np.random.default_rng(0).integers(0, 256, (7, 9), dtype=np.uint8)
    pipe = make_pipe()
    forms = [Image.fromarray(array), array, array[..., None], torch.from_numpy(array)[None], [Image.fromarray(array)]]
    results = [colorize(pipe, form, output_type="np") for form in forms]
    assert all((result == results[0]).all() for result in results)
    assert results[0].shape == (1, 7, 9, 3)
    (picture,) = colorize(pipe, forms[0], output_type="pil")
    assert (picture.mode, picture.size) == ("RGB", (9, 7))
    means = np.asarray(picture).astype(float).mean(axis=-1)
    assert np.abs(means - array).max() <= 0.5
    output = pipe(array, num_inference_steps=2, output_type="np")
    assert output["sample"] is output.images
    assert len(pipe(array, num_inference_steps=2, return_dict=False)) == 1


def test_sample_does_not_depend_on_its_batch():
    grey = rand(2, 1, 8, 8)
    together = colorize(make_pipe(), grey, num_samples=2, generator=[seeded(i) for i in range(4)])
    alone = [colorize(make_pipe(), grey[i // 2], generator=[seeded(i)]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)


def test_components_are_shared():
    plain = ScoreSdePipeline(tiny_network(), ScoreSdeVeScheduler(sigma_max=3.0))
    assert ScoreSdeColorizationPipeline.from_pipe(plain).unet is plain.unet


@pytest.mark.parametrize(
    "image, message",
    [
        (rand(3, 8, 8), r"`image` has a tensor of shape \(3, 8, 8\); colorization takes grey images"),
        (rand(1, 3, 8, 8), r"a tensor of shape \(1, 3, 8, 8\); colorization takes grey"),
        (np.zeros((8, 8, 3)), r"an array of shape \(8, 8, 3\); colorization takes grey"),
        (Image.new("RGB", (8, 8)), r"a PIL image of mode 'RGB'; .*image.convert\('L'\)"),
        ([rand(1, 8, 8), rand(3, 8, 8)], r"a tensor of shape \(3, 8, 8\)"),
        (torch.full((1, 8, 8), torch.nan), "64 NaN"),
        (rand(1, 8, 8) * 255, "divide by 255"),
        ("grey.png", "is or has a str"),
    ],
)
def test_images_that_are_refused(image, message):
    network = GaussianNetwork(in_channels=3, out_channels=3)
    with pytest.raises(ValueError, match=message):
        colorize(make_pipe(network), image)
    assert network.calls == 0


def test_network_without_colours_is_refused():
    with pytest.raises(ValueError, match="makes images of 1 channel; colorization needs"):
        colorize(make_pipe(GaussianNetwork()), rand(1, 8, 8))
