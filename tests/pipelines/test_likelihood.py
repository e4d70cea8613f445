"""`ScoreSdeLikelihoodPipeline`: densities, bits, probes, dequantization, by closed forms and the official code."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file

from diffusers_sde import (
    ScoreSdeLikelihoodPipeline,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
    from_diffusers_scheduler,
)
from diffusers_sde.conversion import convert_checkpoint
from tests.checkpoints import REFERENCE, description, write_checkpoint
from tests.oracles import Gaussian, seeded
from tests.tiny import ChainNetwork, GaussianNetwork, legacy_unet, tiny_network

MEAN, STD = 0.4, 0.2
SCHEDULERS = {
    "ve": lambda: ScoreSdeVeScheduler(sigma_max=50.0),
    "vp": ScoreSdeVpScheduler,
    "sub_vp": ScoreSdeSubVpScheduler,
}
LOG2 = math.log(2)
TIGHT = {"solver": "dopri5", "rtol": 1e-7, "atol": 1e-7, "exact_trace": True}


def make_pipe(sde="ve", **options):
    network = GaussianNetwork(sde, MEAN, STD, center_input_sample=sde == "ve", **options).double()
    return ScoreSdeLikelihoodPipeline(network, SCHEDULERS[sde]())


def exact(pipe, x_0, latents, t=1e-5):
    """log p_t(x_0) of the model: the data's, but for the prior, which p_1 is only approximately."""
    data, sde = Gaussian(MEAN, STD), pipe.scheduler.sde
    end = torch.tensor(1.0, dtype=torch.float64)
    prior = sde.prior_log_prob(latents) - data.log_prob(sde, latents, end)
    return data.log_prob(sde, x_0, torch.tensor(t, dtype=torch.float64)) + prior


def images(batch=2, channels=1, height=8, width=4, seed=0):
    return torch.rand(batch, channels, height, width, generator=seeded(seed), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------------------------------
# Densities and bits
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver, tolerance", [("dopri5", 1e-7), ("adams", 1e-7)])
@pytest.mark.parametrize("sde", SCHEDULERS)
def test_bits_per_dim_of_gaussian_data(sde, solver, tolerance):
    pipe, image = make_pipe(sde, in_channels=3, out_channels=3), images(channels=3, height=2)
    settings = TIGHT | {"solver": solver, "rtol": tolerance, "atol": tolerance}
    output = pipe(image, "none", bin_width=1 / 256, **settings)
    x_0 = image if sde == "ve" else 2 * image - 1
    nats = exact(pipe, x_0, output.latents)
    # A bin is 1/256 of [0, 1], so 2/256 of [-1, 1].
    bits = -nats / (24 * LOG2) + (8 if sde == "ve" else 7)
    assert float((output.bits_per_dim - bits).abs().max()) < 1e-4
    assert float((output.log_likelihood - nats).abs().max()) < 1e-4 * 24 * LOG2
    assert bool(output.success.all()) and output.standard_error.tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_probes_are_unbiased(kind):
    """On isotropic data Rademacher probes are exact; Gaussian ones have the variance that theory gives."""
    pipe, image = make_pipe("vp"), images(1)
    settings = {"solver": "dopri5", "rtol": 1e-5, "atol": 1e-5}
    truth = pipe(image, "none", exact_trace=True, **settings).log_likelihood
    output = pipe(image, "none", num_probes=400, probe_kind=kind, generator=seeded(), **settings)
    error = abs(float(output.log_likelihood - truth))
    if kind == "rademacher":
        assert error < 1e-3
        return
    sde, t = pipe.scheduler.sde, torch.tensor([1e-5, 1.0], dtype=torch.float64)
    variance = sde.alpha(t) ** 2 * STD**2 + sde.sigma(t) ** 2
    # int div dt = D / 2 log(V_1 / V_0) for the flow; |v|^2 / D has the variance 2 / D.
    growth = 0.5 * (variance[1] / variance[0]).log() - (sde.alpha(t[1]) / sde.alpha(t[0])).log()
    expected = float(32 * growth * (2 / 32 / 400) ** 0.5)
    assert float(output.standard_error) == pytest.approx(expected, rel=0.15)
    assert error < 4 * expected
    assert error > 1e-6  # the probes were used


def test_uniform_dequantization_is_that_of_the_official_code():
    pipe = make_pipe("vp")
    array = np.random.default_rng(0).integers(0, 256, (2, 4, 4), dtype=np.uint8)
    output = pipe(array, generator=seeded(3), exact_trace=True)
    noise = torch.rand(2, 1, 4, 4, generator=seeded(3))
    y = (torch.from_numpy(array)[:, None].float() + noise) / 256
    plain = pipe(y, "none", bin_width=1 / 256, exact_trace=True)
    torch.testing.assert_close(output.log_likelihood, plain.log_likelihood, rtol=1e-5, atol=0)
    torch.testing.assert_close(output.bits_per_dim, plain.bits_per_dim, rtol=1e-5, atol=0)


def test_more_dequantizations_are_a_log_mean_of_densities():
    pipe, image = make_pipe("vp"), (images(height=4) * 255).round() / 255
    one = [torch.rand(image.shape, generator=g) for g in [seeded(5)] for _ in range(3)]
    output = pipe(image, num_dequantizations=3, generator=seeded(5), exact_trace=True)
    parts = [pipe((255 * image + u) / 256, "none", exact_trace=True) for u in one]
    nats = torch.stack([part.log_likelihood for part in parts])
    torch.testing.assert_close(output.log_likelihood, nats.logsumexp(dim=0) - math.log(3), rtol=1e-5, atol=1e-4)
    assert torch.equal(output.nfe, sum(part.nfe for part in parts))
    assert float((nats.mean(dim=0) - output.log_likelihood).abs().min()) > 1e-3  # not the mean of the logarithms


def test_bits_need_a_bin_width():
    pipe = make_pipe("vp")
    array = np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)
    continuous = torch.from_numpy(array)[None].float() / 255
    assert pipe(continuous, "none").bits_per_dim is None
    for image in (array, Image.fromarray(array), torch.from_numpy(array)[None], [array]):
        assert pipe(image, "none", exact_trace=True).bits_per_dim is not None
    eight, five = (pipe(continuous, "none", exact_trace=True, bin_width=w).bits_per_dim for w in (1 / 256, 1 / 32))
    torch.testing.assert_close(eight - five, torch.full_like(eight, 3.0))


def test_a_function_dequantizes():
    pipe, image = make_pipe("vp"), images()
    output = pipe(image, lambda x, generator: 0.5 * x, exact_trace=True)
    assert torch.equal(output.log_likelihood, pipe(0.5 * image, "none", exact_trace=True).log_likelihood)
    assert output.bits_per_dim is None
    with pytest.raises(ValueError, match=r"what `dequantization` returned has values in \[\S+, 2\.\d+\]"):
        pipe(image, lambda x, generator: 3 * x)
    with pytest.raises(ValueError, match=r"`dequantization` returned \(1, 8, 4\); a tensor of shape \(2, 1, 8, 4\)"):
        pipe(image, lambda x, generator: x[0])


# ---------------------------------------------------------------------------------------------------------------------
# Rows
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adams", "dopri5"])
def test_an_image_does_not_depend_on_its_batch(solver):
    pipe, image = make_pipe("vp"), (images(3) * 255).round() / 255
    generators = [seeded(seed) for seed in (1, 2, 3)]
    together = pipe(image, generator=generators, num_probes=2, solver=solver)
    alone = pipe(image[1:2], generator=[seeded(2)], num_probes=2, solver=solver)
    for name in ("log_likelihood", "bits_per_dim", "latents", "nfe", "standard_error", "error"):
        torch.testing.assert_close(together[name][1:2], alone[name], rtol=1e-9, atol=1e-9, msg=name)
    assert together.log_likelihood[0] != together.log_likelihood[1]


def test_given_probes_are_taken():
    pipe, image = make_pipe("vp"), images()
    probes = torch.randn(3, *image.shape, generator=seeded(), dtype=torch.float64)
    output = pipe(image, "none", probes=probes)
    single = [pipe(image, "none", probes=p[None]).log_likelihood for p in probes]
    torch.testing.assert_close(output.log_likelihood, torch.stack(single).mean(dim=0), rtol=1e-3, atol=0)
    assert bool((output.standard_error > 0).all())
    assert pipe(image, "none", probes=probes[:1]).standard_error.isnan().all()  # one probe does not know its error
    with pytest.raises(ValueError, match=r"`probes` has shape \(3, 2, 1, 4, 8\)"):
        pipe(image, "none", probes=probes.transpose(3, 4))


def test_a_tolerance_out_of_reach_is_flagged_and_something_returned():
    for solver, limit in (("dopri5", 40), ("adams", 30)):
        output = make_pipe()(images(), "none", solver=solver, rtol=1e-9, atol=1e-9, max_nfe=limit)
        assert output.success.tolist() == [False, False]
        assert int(output.nfe.max()) <= limit
        assert bool(output.log_likelihood.isfinite().all())


@pytest.mark.parametrize("make", [tiny_network, legacy_unet], ids=["ours", "UNet2DModel"])
def test_networks_of_any_kind_and_half_precision(make):
    network = make().to(torch.bfloat16)
    pipe = ScoreSdeLikelihoodPipeline(network, ScoreSdeVeScheduler(sigma_max=2.0))
    output = pipe(images(1, 3, 8, 16), "none", sampling_eps=0.8, max_nfe=60, generator=seeded())
    assert output.latents.dtype is torch.float64
    assert bool(output.log_likelihood.isfinite().all())
    assert output.bits_per_dim is None


def test_saving_loading_and_tuples(tmp_path):
    pipe = ScoreSdeLikelihoodPipeline(tiny_network(), DDPMScheduler())
    assert isinstance(pipe.scheduler, ScoreSdeVpScheduler)
    pipe.save_pretrained(tmp_path)
    again = ScoreSdeLikelihoodPipeline.from_pretrained(tmp_path)
    image = images(1, 3, 8, 8).float()
    a, b = (p(image, "none", sampling_eps=0.9, generator=seeded(), return_dict=False) for p in (pipe, again))
    assert len(a) == 8 and a[1] is None
    torch.testing.assert_close(a[0], b[0])


# ---------------------------------------------------------------------------------------------------------------------
# diffusers' networks and schedulers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [DDPMScheduler(), DDIMScheduler()])
def test_epsilon_networks_of_diffusers_through_their_betas(scheduler):
    pipe = ScoreSdeLikelihoodPipeline(ChainNetwork(MEAN, STD).double(), scheduler)
    image = images()
    output = pipe(image, "none", solver="dopri5", rtol=1e-6, atol=1e-6, exact_trace=True)
    start = pipe.scheduler.first_time()
    nats = exact(pipe, 2 * image - 1, output.latents, start)
    assert float((output.log_likelihood - nats).abs().max()) / (32 * LOG2) < 1e-4
    # The data are at the noise level of label 0.
    assert float(pipe.scheduler.sde.sigma(torch.tensor(start))) == pytest.approx(1e-2, rel=1e-3)


def test_labels_between_the_trained_ones_are_those_of_the_noise_level():
    scheduler = from_diffusers_scheduler(DDPMScheduler())
    network = ChainNetwork(MEAN, STD).double()
    chain = DDPMScheduler().alphas_cumprod.double()
    t = scheduler.sde.time_of_log_snr((chain / (1 - chain)).log()[[0, 1, 10, 500, 990]])
    x = torch.randn(5, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    expected = Gaussian(MEAN, STD).score(scheduler.sde, x, t)
    torch.testing.assert_close(scheduler.score_fn(network)(x, t), expected, rtol=1e-4, atol=1e-4)


def test_discrete_ve_networks_are_interpolated_between_labels():
    """The exact network, asked at whole labels alone, gives the exact score to the square of the grid spacing."""

    class Labelled(GaussianNetwork):
        def forward(self, sample, timestep, return_dict=True):
            assert timestep.dtype is torch.int64
            return super().forward(sample, 50.0 * 5000.0 ** (-timestep.double() / 199), return_dict)

    scheduler = ScoreSdeVeScheduler(sigma_max=50.0, num_train_timesteps=200, continuous=False)
    score_fn = scheduler.score_fn(Labelled("ve", MEAN, STD).double())
    t = torch.tensor([0.0, 0.1234, 0.5, 0.77, 1.0], dtype=torch.float64)
    x = scheduler.sde.sigma(t)[:, None, None, None] * torch.randn(5, 1, 4, 4, generator=seeded(), dtype=torch.float64)
    expected = Gaussian(MEAN, STD).score(scheduler.sde, x, t)
    scaled = scheduler.sde.sigma(t)[:, None, None, None] * (score_fn(x, t) - expected)
    assert float(scaled.abs().max()) < 1e-3
    assert float(scaled[[0, 4]].abs().max()) < 1e-9  # on the grid itself


@pytest.mark.parametrize(
    "scheduler, message",
    [
        (DDPMScheduler(prediction_type="v_prediction"), "prediction_type is .v_prediction., and the network"),
        (DDPMScheduler(beta_schedule="squaredcos_cap_v2"), "'squaredcos_cap_v2'; the VP SDE has linear"),
        (DDPMScheduler(trained_betas=[1e-3] * 1000), "DDPMScheduler has trained_betas"),
        (DDIMScheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr = True"),
        (FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler .* does not follow a chain"),
    ],
)
def test_schedulers_that_are_no_vp_sde(scheduler, message):
    with pytest.raises(ValueError, match=message):
        ScoreSdeLikelihoodPipeline(ChainNetwork(), scheduler)


def test_conversion_keeps_the_process():
    converted = from_diffusers_scheduler(EulerDiscreteScheduler(num_train_timesteps=500, beta_end=0.03))
    assert (converted.config.beta_min, converted.config.beta_max) == (0.05, 15.0)
    assert (converted.config.num_train_timesteps, converted.config.continuous) == (500, False)
    assert from_diffusers_scheduler(converted) is converted


# ---------------------------------------------------------------------------------------------------------------------
# The official code
# ---------------------------------------------------------------------------------------------------------------------


def official(name, folder):
    recorded = load_file(Path(REFERENCE) / "ode" / f"{name}.safetensors")
    converted = convert_checkpoint(write_checkpoint(folder, name), description(name)["config"])
    return ScoreSdeLikelihoodPipeline(converted.unet, converted.scheduler), recorded, round(float(recorded["eps"]), 6)


def test_official_bits_with_the_official_probe(tmp_path):
    """scipy's RK45 of tolerance 1e-5 in the official code; rows are independent here, so one is enough."""
    pipe, recorded, start = official("ve_ncsnpp_continuous", tmp_path)
    row = slice(0, 1)
    settings = {"solver": "dopri5", "rtol": 3e-5, "atol": 3e-5, "sampling_eps": start, "bin_width": 1 / 256}
    output = pipe(recorded["data"][row], "none", probes=recorded["hutchinson"][None, row], **settings)
    assert abs(float(output.bits_per_dim) - float(recorded["bpd"][0])) < 2e-3
    error = (output.latents - recorded["encoded"][row]).square().mean().sqrt()
    assert float(error / recorded["encoded"][row].square().mean().sqrt()) < 1e-2


def test_the_error_under_a_rough_network_is_the_true_one(tmp_path):
    """The path leaves the solution, and the estimate of one run was a twentieth of the true error, with success.

    The official solution is itself up to 7e-3 bits per dimension off.
    """
    pipe, recorded, start = official("vp_ddpmpp_continuous", tmp_path)
    row = slice(0, 1)
    probes = recorded["hutchinson"][None, row]
    image = (recorded["data"][row] + 1) / 2
    output = pipe(image, "none", probes=probes, sampling_eps=start, bin_width=1 / 256, max_nfe=3000)
    bits = float(output.error) / recorded["data"][0].numel() / math.log(2)
    assert abs(float(output.bits_per_dim) - float(recorded["bpd"][0])) < 2 * bits + 7e-3
    assert int(output.nfe) > 100  # it was solved twice


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ve_ncsnpp_continuous", "vp_ddpmpp_continuous", "subvp_ddpmpp_continuous"])
def test_official_algorithm_over_our_functions(name, tmp_path):
    """scipy's RK45 over the whole batch at once, as in the official code, over our score, divergence and SDE.

    Its own error is several times 1e-3 bits per dimension for VP and sub-VP (a solution at a tenth of the tolerance
    is 7e-3 away), so that solvers of one tolerance agree to 1e-2 only, while the same algorithm agrees to 1e-3 with
    the same number of evaluations.
    """
    from scipy.integrate import solve_ivp

    from diffusers_sde.sde import score_and_divergence

    pipe, recorded, start = official(name, tmp_path)
    sde, score_fn, x_0 = pipe.scheduler.sde, pipe.scheduler.score_fn(pipe.unet), recorded["data"]
    dims = x_0[0].numel()

    def rhs(t, y):
        x, time = torch.from_numpy(y[: x_0.numel()]).reshape(x_0.shape).float(), torch.full((len(x_0),), t)
        score, divergence = score_and_divergence(score_fn, x, time, recorded["hutchinson"][None])
        growth = dims * sde.drift_coefficient(time) - sde.diffusion(time).square() / 2 * divergence[0]
        return np.concatenate([sde.probability_flow_drift(x, time, score).numpy().ravel(), growth.numpy()])

    begin = np.concatenate([x_0.numpy().ravel(), np.zeros(len(x_0))])
    end = solve_ivp(rhs, (start, 1.0), begin, rtol=1e-5, atol=1e-5, method="RK45")
    latents = torch.from_numpy(end.y[: x_0.numel(), -1]).reshape(x_0.shape)
    nats = sde.prior_log_prob(latents) + torch.from_numpy(end.y[x_0.numel() :, -1])
    bits = -nats / (dims * LOG2) + (7 if pipe._centered else 8)
    assert float((bits - recorded["bpd"]).abs().max()) < 1e-3
    # The network is rough, so rounding decides on single steps: 3.4 % more evaluations on another processor.
    assert end.nfev == pytest.approx(int(recorded["nfe"][1]), rel=0.06)

    image = x_0 / 2 + 0.5 if pipe._centered else x_0
    settings = {"solver": "dopri5", "rtol": 1e-5, "atol": 1e-5, "sampling_eps": start, "bin_width": 1 / 256}
    output = pipe(image, "none", probes=recorded["hutchinson"][None], **settings)
    assert float((output.bits_per_dim - recorded["bpd"]).abs().max()) < 1e-2


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------

GOOD = torch.zeros(2, 1, 8, 8)


@pytest.mark.parametrize(
    "image, message",
    [
        (GOOD + 2.5, r"`image` has values in \[2.5, 2.5\]; images are in \[0, 1\]: divide by 255"),
        (GOOD - 1.0, r"values in \[-1, -1\]; images are in \[0, 1\]: map \[-1, 1\]"),
        (torch.where(GOOD.cumsum(-1) == 0, torch.nan, 0.0), r"128 NaN or infinite values of 128"),
        (GOOD.expand(2, 3, 8, 8), r"tensor of shape \(2, 3, 8, 8\); the network takes 1 channels"),
        (GOOD[0, 0], r"tensor of shape \(8, 8\)"),
        (GOOD.long(), r"type torch.int64; allowed are uint8"),
        (np.zeros((8, 8, 3), np.uint8)[None], r"shape \(1, 8, 8, 3\); the network takes 1 channels"),
        (Image.new("RGB", (8, 8)), r"shape \(8, 8, 3\); the network takes 1 channels"),
        (Image.new("F", (8, 8)), r"mode 'F'"),
        (Image.new("CMYK", (8, 8)), r"mode 'CMYK'; allowed are L, LA, RGB, RGBA and I;16"),
        (torch.zeros(1, 7, 8), r"7 x 8; this network takes positive multiples of 2"),
        ([], r"empty list"),
        ("image.png", r"is or has a str; give PIL images"),
        ([torch.zeros(1, 8, 8), torch.zeros(1, 8, 4)], r"shapes \[\(1, 8, 4\), \(1, 8, 8\)\]; one batch needs one"),
    ],
)
def test_images_that_are_refused(image, message):
    pipe = make_pipe()
    with pytest.raises(ValueError, match=message):
        pipe(image)
    assert pipe.unet.calls == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dequantization": "variational"}, r"'variational'; allowed are 'uniform', 'none', or a function"),
        ({"num_dequantizations": 0}, r"`num_dequantizations` is 0"),
        ({"num_dequantizations": 2, "dequantization": "none"}, r"above 1 with dequantization='none'"),
        ({"num_probes": 0}, r"`num_probes` is 0"),
        ({"probe_kind": "cauchy"}, r"'cauchy'; allowed are 'rademacher', 'gaussian'"),
        ({"bin_width": 0.0}, r"`bin_width` is 0.0"),
        ({"bin_width": 0.3}, r"`bin_width` is 0.3; uniform dequantization needs 1 / levels"),
        ({"bin_width": 1 / 32, "image": GOOD + 0.25}, r"of a level off the 32 levels"),
        ({"image": GOOD + 0.123}, r"of a level off the 256 levels .*dequantization='none'"),
        ({"generator": [seeded()]}, r"`generator` is a list of 1 for a batch of 2"),
        ({"sampling_eps": -0.1}, r"`sampling_eps` is -0.1"),
        ({"exact_trace": True, "probes": torch.ones(1, 2, 1, 8, 8)}, r"`exact_trace` takes no probes"),
        ({"solver": "heun"}, r"solver is 'heun'"),
    ],
)
def test_arguments_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_pipe()(**{"image": GOOD, **options})


# ---------------------------------------------------------------------------------------------------------------------
# The denoising bound
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SCHEDULERS)
def test_the_bound_is_not_above_the_likelihood(sde):
    pipe, image = make_pipe(sde), images(16)
    output = pipe.elbo(image, num_times=128, dequantization="none", bin_width=1 / 256, generator=seeded())
    x_0 = image if sde == "ve" else 2 * image - 1
    nats = Gaussian(MEAN, STD).log_prob(pipe.scheduler.sde, x_0, torch.tensor(0.0))
    error = float(output.standard_error.square().mean().sqrt()) / 4
    assert float((output.log_likelihood_bound - nats).mean()) < 3 * error
    bits = -output.log_likelihood_bound / (32 * LOG2) + (8 if sde == "ve" else 7)
    torch.testing.assert_close(output.bits_per_dim, bits)
    assert torch.equal(output.log_likelihood_bound, output.prior + output.diffusion + output.reconstruction)
    torch.testing.assert_close(output.bits_per_dim_standard_error, output.standard_error / (32 * LOG2))


def test_the_bound_of_an_image_does_not_depend_on_its_batch():
    pipe, image = make_pipe("vp"), (images(3) * 255).round() / 255
    together = pipe.elbo(image, 8, generator=[seeded(seed) for seed in (1, 2, 3)])
    alone = pipe.elbo(image[1:2], 8, generator=[seeded(2)])
    torch.testing.assert_close(together.log_likelihood_bound[1:2], alone.log_likelihood_bound)
    assert pipe.unet.calls == 2 * (8 + 4)
    with pytest.raises(ValueError, match="1 times and 4 reconstructions"):
        pipe.elbo(image, 1)
