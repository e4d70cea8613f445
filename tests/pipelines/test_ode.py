"""`ScoreSdeOdePipeline`: samples, latents and images in between, against closed forms and the official code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

from diffusers_sde import (
    ScoreSdeOdePipeline,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
)
from diffusers_sde.conversion import convert_checkpoint
from diffusers_sde.pipelines.pipeline_score_sde_ode import slerp
from tests.checkpoints import REFERENCE, description, relative_error, write_checkpoint
from tests.tiny import ChainNetwork, GaussianNetwork, legacy_unet, tiny_network

MEAN, STD = 0.4, 0.2
SCHEDULERS = {
    "ve": lambda: ScoreSdeVeScheduler(sigma_max=50.0),
    "vp": ScoreSdeVpScheduler,
    "sub_vp": ScoreSdeSubVpScheduler,
}


def make_pipe(sde="ve", **options):
    network = GaussianNetwork(sde, MEAN, STD, center_input_sample=sde == "ve", **options).double()
    return ScoreSdeOdePipeline(network, SCHEDULERS[sde]())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian_map(pipe, latents, t):
    """The flow of Gaussian data from 1 to t: an affine map that keeps (x - alpha m) / sqrt(V)."""
    sde = pipe.scheduler.sde
    alpha, sigma = ([float(f(torch.tensor(s, dtype=torch.float64))) for s in (1.0, t)] for f in (sde.alpha, sde.sigma))
    scale = [(a**2 * STD**2 + s**2) ** 0.5 for a, s in zip(alpha, sigma, strict=True)]
    return (latents - alpha[0] * MEAN) * scale[1] / scale[0] + alpha[1] * MEAN


@pytest.mark.parametrize("solver, tolerance", [("dopri5", 1e-7), ("adams", 1e-5)])
@pytest.mark.parametrize("sde", SCHEDULERS)
def test_samples_are_the_closed_form_of_their_latents(sde, solver, tolerance):
    pipe = make_pipe(sde)
    z = pipe.scheduler.init_noise_sigma * torch.randn(2, 1, 8, 4, generator=seeded(), dtype=torch.float64)
    output = pipe.decode(z, solver=solver, rtol=tolerance, atol=tolerance, output_type="latent")
    expected = gaussian_map(pipe, z, pipe.scheduler.config.sampling_eps)
    assert bool(output.success.all())
    # Local errors add up over a path: ten times the tolerance.
    assert float((output.images - expected).abs().max()) < 10 * tolerance
    rms = (output.images - expected).square().flatten(1).mean(dim=1).sqrt()
    assert bool((rms < 2 * output.error + 1e-9).all())
    assert torch.equal(output.latents, z)


@pytest.mark.parametrize("solver", ["adams", "dopri5"])
@pytest.mark.parametrize("sde", SCHEDULERS)
def test_decode_undoes_encode(sde, solver):
    pipe = make_pipe(sde, in_channels=3, out_channels=3)
    image = torch.rand(2, 3, 4, 8, generator=seeded())
    encoded = pipe.encode(image, solver=solver)
    decoded = pipe.decode(encoded.latents, solver=solver, output_type="pt")
    assert float((decoded.images - image).abs().max()) < 1e-3  # the tolerance of "adams"; a grey level is 4e-3
    assert float((encoded.latents - encoded.latents.mean()).std()) > 0.5  # and it went somewhere
    assert encoded.nfe.shape == decoded.nfe.shape == (2,)


@pytest.mark.parametrize("make", [tiny_network, legacy_unet], ids=["ours", "UNet2DModel"])
def test_networks_come_back_to_the_image(make):
    """To 0.02, and over few times: a random field squeezes images flat, which no solver undoes."""
    pipe = ScoreSdeOdePipeline(make(), ScoreSdeVeScheduler(sigma_max=5.0))
    image = torch.rand(1, 3, 8, 16, generator=seeded())
    settings = {"solver": "dopri5", "rtol": 1e-5, "atol": 1e-5, "sampling_eps": 0.9}
    latents = pipe.encode(image, **settings).latents
    assert float((latents - image).abs().max()) > 0.5
    assert float((pipe.decode(latents, output_type="pt", **settings).images - image).abs().max()) < 0.02


def test_latents_are_the_same_for_two_parametrisations():
    """One process, one score; a network of 999 t and one of the labels of a DDPM chain under diffusers' scheduler."""
    continuous = make_pipe("vp")
    discrete = ScoreSdeOdePipeline(ChainNetwork(MEAN, STD).double(), DDPMScheduler())
    image = torch.rand(2, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    settings = {"solver": "dopri5", "rtol": 1e-6, "atol": 1e-6, "sampling_eps": 2e-3}
    a, b = (pipe.encode(image, **settings).latents for pipe in (continuous, discrete))
    assert float((a - b).abs().max()) < 1e-3
    assert float((a - gaussian_map(continuous, 2 * image - 1, 2e-3)).abs().max()) > 0.1  # not the map to 2e-3 itself
    other = make_pipe("sub_vp").encode(image, **settings).latents
    assert float((a - other).abs().max()) > 1e-2  # and another process has other latents


@pytest.mark.parametrize("solver", ["adams", "dopri5"])
def test_an_image_does_not_depend_on_its_batch(solver):
    pipe = make_pipe("vp", in_channels=2, out_channels=2)
    generators = [seeded(seed) for seed in (1, 2, 3)]
    together = pipe(3, generators, solver=solver, output_type="latent")
    alone = pipe(1, seeded(2), solver=solver, output_type="latent")
    assert torch.equal(together.images[1], alone.images[0])
    assert together.nfe[1] == alone.nfe[0]


def test_temperature_scales_the_latents():
    pipe = make_pipe("vp")
    full, half = (pipe(2, seeded(), temperature=t, output_type="latent") for t in (1.0, 0.5))
    torch.testing.assert_close(half.latents, 0.5 * full.latents)
    assert half.images.std() < 0.6 * full.images.std()


def test_denoising_ends_at_the_clean_mean():
    pipe = make_pipe("vp")
    settings = {"solver": "dopri5", "rtol": 1e-8, "atol": 1e-8, "sampling_eps": 0.1, "output_type": "latent"}
    plain, clean = (pipe(1, seeded(), denoise=d, **settings) for d in (False, True))
    t = torch.tensor(0.1, dtype=torch.float64)
    alpha, sigma = float(pipe.scheduler.sde.alpha(t)), float(pipe.scheduler.sde.sigma(t))
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    # float32: the latents were drawn in it
    torch.testing.assert_close(clean.images, MEAN + gain * (plain.images - alpha * MEAN), rtol=0, atol=2e-6)
    assert clean.nfe == plain.nfe + 1


def test_interpolation_keeps_its_ends_and_the_length_of_latents():
    pipe = make_pipe("vp")
    a, b = torch.rand(2, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    path = pipe.interpolate(a, b, 5, batch_size=2, output_type="pt")
    assert path.images.shape == (5, 1, 8, 8)
    assert float((path.images[0] - a).abs().max()) < 1e-3
    assert float((path.images[-1] - b).abs().max()) < 1e-3
    assert path.nfe.shape == path.success.shape == (5,)
    ends = path.latents.flatten(1)[[0, -1]].norm(dim=1)
    middle = path.latents[2].norm()
    cosine = torch.nn.functional.cosine_similarity(*path.latents.flatten(1)[[0, -1]], dim=0)
    # (a + b) / (2 cos(w / 2)), w the angle between
    expected = (path.latents[0] + path.latents[-1]).norm() / (2 * ((1 + cosine) / 2).sqrt())
    assert middle.item() == pytest.approx(expected.item(), rel=1e-9)
    assert ends.min() * 0.95 < middle < ends.max() * 1.05


def test_slerp_of_parallel_and_opposite_vectors():
    a = torch.tensor([[3.0, 4.0]])
    half = torch.tensor([0.5])
    torch.testing.assert_close(slerp(a, 2 * a, half), 1.5 * a)
    torch.testing.assert_close(slerp(a, torch.zeros(1, 2), half), 0.5 * a)
    quarter = slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([1 / 3]))
    torch.testing.assert_close(quarter, torch.tensor([[3**0.5 / 2, 0.5]]))


def test_output_types_and_inputs_agree():
    pipe = make_pipe("vp", in_channels=3, out_channels=3)
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    forms = [Image.fromarray(array), array, torch.from_numpy(array).permute(2, 0, 1), [array.astype(np.float32) / 255]]
    latents = [pipe.encode(form).latents for form in forms]
    assert all(torch.equal(latents[0], other) for other in latents[1:])
    decoded = pipe.decode(latents[0])
    assert np.array_equal(np.asarray(decoded.images[0]), array)
    assert decoded["sample"] is decoded.images
    assert isinstance(pipe(1, seeded(), return_dict=False), tuple)
    assert isinstance(pipe.interpolate(array, array, 2).images[1], Image.Image)


def test_a_tolerance_out_of_reach_is_flagged_and_something_returned():
    pipe = make_pipe("ve")
    for solver, limit in (("dopri5", 40), ("adams", 30)):
        output = pipe(2, seeded(), solver=solver, rtol=1e-9, atol=1e-9, max_nfe=limit, output_type="latent")
        assert output.success.tolist() == [False, False]
        assert int(output.nfe.max()) <= limit
        assert bool(output.images.isfinite().all())


@pytest.mark.parametrize("name", ["ve_ncsnpp_continuous", "vp_ddpmpp_continuous", "subvp_ddpmpp_continuous"])
def test_official_images(name, tmp_path):
    """Images that the official code (RK45, tolerance 1e-5) made of recorded latents, to 1e-3 of the largest."""
    recorded = load_file(Path(REFERENCE) / "ode" / f"{name}.safetensors")
    converted = convert_checkpoint(write_checkpoint(tmp_path, name), description(name)["config"])
    pipe = ScoreSdeOdePipeline(converted.unet, converted.scheduler)
    end = round(float(recorded["eps"]), 6)
    x = pipe.decode(recorded["latents"], sampling_eps=end, solver="dopri5", output_type="latent").images
    x = x / 2 + 0.5 if pipe._centered else x
    assert relative_error(x, recorded["image"]) < 1e-3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -1.0}, r"`temperature` is -1.0; it must be finite and at least 0"),
        ({"sampling_eps": 1.0}, r"`sampling_eps` is 1.0; it is a time, at least 0 and below 1"),
        ({"solver": "heun"}, r"solver is 'heun'; allowed are 'dopri5', 'adams'"),
        ({"rtol": -1.0}, r"rtol = -1.0"),
        ({"max_nfe": 1}, r"max_nfe = 1"),
        ({"output_type": "jpg"}, r"`output_type` is 'jpg'"),
        ({"latents": torch.zeros(2, 1, 8, 8)}, r"`latents` has shape \(2, 1, 8, 8\); \(1, 1, 8, 8\) is needed"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make_pipe()(**options)


def test_bad_images_and_latents():
    pipe = make_pipe()
    with pytest.raises(ValueError, match=r"`latents` has shape \(8, 8\)"):
        pipe.decode(torch.zeros(8, 8))
    with pytest.raises(ValueError, match="`n` is 1; it must be an integer of at least 2"):
        pipe.interpolate(torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), 1)
    with pytest.raises(ValueError, match=r"shapes \(1, 1, 8, 8\) and \(2, 1, 8, 8\); give one image each"):
        pipe.interpolate(torch.zeros(1, 8, 8), torch.zeros(2, 1, 8, 8), 3)
    with pytest.raises(ValueError, match="7 x 8; this network takes positive multiples of 2"):
        pipe.encode(torch.zeros(1, 7, 8))
