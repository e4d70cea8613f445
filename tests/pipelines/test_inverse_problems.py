"""`ScoreSdeInverseProblemPipeline`: samples against exact posteriors, and what a user can ask for.

With 300 samples the sampling error of the mean is 0.06 posterior standard deviations. The bounds below are what each
method does with 100 to 200 steps on these priors, its bias included; `benchmarks/posterior.py` prints the figures.
"""

import pytest
import torch

from diffusers_sde import ScoreSdePipeline, ScoreSdeVeScheduler
from diffusers_sde.pipelines.inverse import DPS, PiGDM, Replacement, denoise
from diffusers_sde.pipelines.pipeline_score_sde_inverse_problem import METHODS, ScoreSdeInverseProblemPipeline
from diffusers_sde.sde.operators import BlockAverage, Blur, GreyAxis, RandomProjection
from exact_posteriors import (
    BINOMIAL,
    OPERATORS,
    SCHEDULERS,
    SHAPE,
    ExactNetwork,
    field,
    matrix_of,
    measure,
    posterior_errors,
    two_fields,
    white,
)
from tests.oracles import SDES, seeded
from tests.tiny import GaussianNetwork, assert_alike, tiny_network


def rand(*shape):
    return torch.rand(*shape, generator=seeded(11))


def make_pipe(network=None, scheduler=None):
    pipe = ScoreSdeInverseProblemPipeline(network or tiny_network(), scheduler or ScoreSdeVeScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def restore(pipe, measurement, operator, seed=0, **options):
    options = {"num_inference_steps": 3, "output_type": "latent", **options}
    return pipe(measurement, operator, **{"generator": seeded(seed), **options}).images


# ---------------------------------------------------------------------------------------------------------------------
# The conditions themselves
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_std", [0.0, 0.05])
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("sde", SDES)
def test_pigdm_is_exact_for_independent_gaussian_pixels(sde, name, noise_std):
    """The guided score is that of p_t given y, to 1e-5, at all times."""
    sde, operator, prior = SDES[sde], OPERATORS[name], white()
    y = measure(prior, operator, noise_std)
    exact = prior.posterior(matrix_of(operator), y.flatten(), noise_std)
    condition = PiGDM(sde, operator, y.expand(6, *y.shape[1:]), noise_std, data_std=0.2)
    for t in torch.tensor([1e-3, 0.05, 0.3, 0.7, 1.0], dtype=torch.float64):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        x = alpha * exact.sample(6, seeded(2)).reshape(6, *SHAPE)
        x = x + sigma * torch.randn(6, *SHAPE, generator=seeded(1), dtype=torch.float64)
        score = condition.score(lambda x: prior.score(x.flatten(1), alpha, sigma).reshape(x.shape), x, t)  # noqa: B023
        expected = exact.score(x.flatten(1), alpha, sigma).reshape(x.shape)
        assert (score - expected).norm() < 1e-5 * expected.norm(), float(t)


@pytest.mark.parametrize("sde", SDES)
def test_derivative_of_the_denoised_mean(sde):
    """D and D'^T v by one evaluation, against automatic differentiation of D itself; rows scaled apart."""
    sde, prior, t = SDES[sde], two_fields(), torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x = torch.randn(3, *SHAPE, generator=seeded(2), dtype=torch.float64) * sigma
    v = torch.randn(3, *SHAPE, generator=seeded(3), dtype=torch.float64)
    v = v * torch.tensor([1e6, 1.0, 0.0]).view(3, 1, 1, 1)
    calls = []

    def score_fn(x):
        calls.append(1)
        return prior.score(x.flatten(1), alpha, sigma).reshape(x.shape)

    score, denoised, pull_back = denoise(sde, score_fn, x, t)
    pulled = pull_back(v)
    assert len(calls) == 1 and not (score.requires_grad or denoised.requires_grad or pulled.requires_grad)
    x = x.requires_grad_()
    expected = (x + sigma**2 * score_fn(x)) / alpha
    torch.testing.assert_close(denoised, expected.detach())
    torch.testing.assert_close(pulled, torch.autograd.grad(expected, x, v)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OPERATORS)
def test_replacement_writes_the_measurement_into_the_state(name):
    """A x becomes alpha y plus noise of the missing variance; what A does not see stays bit by bit for pixels."""
    sde, operator, t = SDES["vp"], OPERATORS[name], torch.tensor(0.3, dtype=torch.float64)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    y = measure(field(), operator, 0.0).expand(4000, *[-1] * (operator.A(torch.zeros(1, *SHAPE)).ndim - 1))
    x = torch.randn(4000, *SHAPE, generator=seeded(), dtype=torch.float64)
    rest = x - operator.A_dagger(operator.A(x))
    for noise_std in (0.0, 0.9 * matrix_of(operator).norm(dim=1).max()) if name != "blur" else (0.0,):
        condition = Replacement(sde, operator, y, noise_std)
        projected = condition.project(x, t, seeded(1))
        torch.testing.assert_close(projected - operator.A_dagger(operator.A(projected)), rest, rtol=0, atol=1e-6)
        offset = operator.A_dagger(operator.A(projected) - alpha * y)
        variance = sigma**2 - (alpha * 0.9) ** 2 * bool(noise_std)
        expected = variance * torch.diag(operator_projection(operator))
        torch.testing.assert_close(offset.flatten(1).var(dim=0), expected, rtol=0, atol=0.1 * variance)
    assert torch.equal(condition.project(x, torch.tensor(1e-4), seeded(1)), x) == (noise_std > 0)
    exact = Replacement(sde, operator, y)
    torch.testing.assert_close(operator.A(exact.finish(x)), y, rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.finish(x), exact.start(x))
    assert torch.equal(condition.finish(x), x) == (noise_std > 0)


def operator_projection(operator):
    count = torch.Size(SHAPE).numel()
    images = torch.eye(count, dtype=torch.float64).reshape(count, *SHAPE)
    return operator.A_dagger(operator.A(images)).flatten(1)


def test_dps_steps_down_the_norm_of_the_residual():
    sde, operator, prior, t = SDES["vp"], OPERATORS["block average"], two_fields(), torch.tensor(0.2).double()
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    y = measure(prior, operator, 0.0, count=3)
    x = torch.randn(3, *SHAPE, generator=seeded(2), dtype=torch.float64).requires_grad_()

    def score_fn(x):
        return prior.score(x.flatten(1), alpha, sigma).reshape(x.shape)

    norms = (y - operator.A((x + sigma**2 * score_fn(x)) / alpha)).flatten(1).norm(dim=1)
    (gradient,) = torch.autograd.grad(norms.sum(), x)
    condition = DPS(sde, operator, y, scale=0.3)
    torch.testing.assert_close(condition.score(score_fn, x, t), score_fn(x).detach())
    shifted = condition.project(x, t, None)
    torch.testing.assert_close(shifted, x - 0.3 * gradient)
    assert torch.equal(condition.finish(x), x)  # one step per gradient


# ---------------------------------------------------------------------------------------------------------------------
# Exact posteriors
# ---------------------------------------------------------------------------------------------------------------------

# Error of the mean in posterior standard deviations, and of the ratio of standard deviations.
BOUNDS = {"pigdm": (0.25, 0.15), "dps": (1.4, 0.4), "replacement": (0.6, 0.4)}
RUNS = [
    (method, sde, name, prior, noise_std)
    for method in METHODS
    for sde in SCHEDULERS
    for name in OPERATORS
    for prior in (field, two_fields)
    for noise_std in (0.0, 0.05)
    if not (method == "replacement" and name == "blur" and noise_std)
]
QUICK = {
    ("pigdm", "ve", "mask", two_fields, 0.05),
    ("pigdm", "ve", "blur", two_fields, 0.0),
    ("pigdm", "vp", "grey axis", field, 0.05),
    ("pigdm", "sub_vp", "block average", two_fields, 0.05),
    ("pigdm", "vp", "projection", two_fields, 0.0),
    ("dps", "ve", "grey axis", two_fields, 0.0),
    ("dps", "vp", "mask", field, 0.0),
    ("dps", "sub_vp", "block average", field, 0.05),
    ("replacement", "ve", "mask", two_fields, 0.0),
    ("replacement", "vp", "grey axis", field, 0.05),
    ("replacement", "vp", "projection", field, 0.0),
    ("replacement", "sub_vp", "block average", field, 0.05),
}


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(r, marks=() if r in QUICK else pytest.mark.slow, id=f"{'-'.join(r[:3])}-{r[3].__name__}-{r[4]}")
        for r in RUNS
    ],
)
def test_samples_are_from_the_posterior(run):
    method, sde, name, prior, noise_std = run
    mean, std = BOUNDS[method]
    found = posterior_errors(method, sde, name, prior(), noise_std, steps=100 if run in QUICK else 200)
    assert found["mean"] < mean and abs(found["std"] - 1) < std, found
    if noise_std == 0:
        assert found["fit"] < (0.06 if method == "dps" else 1e-5), found
    elif method != "dps":
        assert 0.6 * noise_std < found["fit"] < 2 * noise_std, found


@pytest.mark.parametrize("method", METHODS)
def test_data_in_minus_one_to_one(method):
    """The same image, measurement and noise in units of [0, 1] for a network of the other data range."""
    mean, std = BOUNDS[method]
    noise_std = 0.0 if method == "replacement" else 0.05
    found = posterior_errors(method, "vp", "block average", field(), noise_std, centered=True)
    assert found["mean"] < mean and abs(found["std"] - 1) < std, found


@pytest.mark.parametrize(
    "predictor, probability_flow",
    [
        ("euler_maruyama", False),
        ("euler_maruyama", True),
        ("reverse_diffusion", False),
        ("reverse_diffusion", True),
        ("ancestral_sampling", False),
    ],
)
def test_every_predictor_samples_the_posterior(predictor, probability_flow):
    options = {"sigma_max": 10.0, "predictor": predictor, "probability_flow": probability_flow}
    found = posterior_errors("pigdm", "ve", "mask", field(), 0.05, steps=60, **options)
    assert found["mean"] < 0.3 and abs(found["std"] - 1) < 0.15, found


def test_covariance_of_many_samples():
    """Not its trace alone: all covariances of 48 numbers, of a case without bias."""
    found = posterior_errors("pigdm", "ve", "grey axis", white(), 0.05, steps=100, count=2000)
    assert found["mean"] < 0.05 and abs(found["std"] - 1) < 0.05, found
    assert found["covariance"] < 0.18, found  # 0.15 is the sampling error of so many


# ---------------------------------------------------------------------------------------------------------------------
# Batches, sizes, operators
# ---------------------------------------------------------------------------------------------------------------------


def test_samples_of_one_measurement_lie_side_by_side():
    operator = OPERATORS["block average"]
    y = measure(field(), operator, 0.0, count=2).float()
    for method in METHODS:
        pipe = make_pipe(ExactNetwork().of(field()))
        images = restore(pipe, y, operator, method=method, num_samples=3, num_inference_steps=100)
        assert images.shape == (6, *SHAPE)
        distances = (operator.A(images) - y.repeat_interleave(3, dim=0)).abs().amax(dim=(1, 2, 3))
        assert distances.max() < (0.1 if method == "dps" else 1e-5), method
        assert (images[0] - images[1]).abs().max() > 0.05


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_sample_does_not_depend_on_its_batch(method, noise_std):
    scheduler = ScoreSdeVeScheduler(sigma_max=3.0, corrector="none")
    pipe = make_pipe(tiny_network(), scheduler)
    operator = OPERATORS["projection" if method == "replacement" else "blur"]
    operator = RandomProjection((3, 8, 8), 30, seeded()) if method == "replacement" else operator
    y = operator.A(torch.rand(2, 3, 8, 8, generator=seeded(3)))
    options = {"method": method, "noise_std": noise_std, "num_inference_steps": 5}
    together = restore(pipe, y, operator, num_samples=2, generator=[seeded(i) for i in range(4)], **options)
    alone = [restore(pipe, y[i // 2, None], operator, generator=[seeded(i)], **options) for i in range(4)]
    assert (together - torch.cat(alone)).abs().max() < 1e-4 * together.abs().max()


@pytest.mark.parametrize("method", METHODS)
def test_one_evaluation_of_the_network_per_update(method):
    network = GaussianNetwork(sample_size=8)
    pipe = make_pipe(network, ScoreSdeVeScheduler(correct_steps=2))
    before = torch.get_rng_state()
    restore(pipe, torch.full((2, 1, 4, 4), 0.6), BlockAverage(2), method=method, num_inference_steps=7)
    assert network.calls == 7 * 3
    assert torch.equal(torch.get_rng_state(), before)  # all noise is the generator's


@pytest.mark.parametrize("size", [(7, 9), (3, 8), (11, 12), (1, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_any_size(method, size):
    """Sides that strides of 4 do not divide, smaller and larger than in training: the measurement is kept to."""
    network = tiny_network(block_out_channels=(8, 8, 8), sample_size=8)
    pipe, operator = make_pipe(network, ScoreSdeVeScheduler(sigma_max=2.0)), GreyAxis()
    y = operator.A(torch.rand(1, 3, *size, generator=seeded()))
    state = restore(pipe, y, operator, method=method, height=size[0], width=size[1])
    assert state.shape == (1, 3, *size)
    if method != "dps":
        measured = operator.A(state / 2 + 0.5 if pipe._centered else state)
        torch.testing.assert_close(measured, y, rtol=0, atol=1e-6 * max(1, float(state.abs().max())))


def test_latents_are_the_draw_from_the_prior():
    pipe = make_pipe(scheduler=ScoreSdeVeScheduler(sigma_max=2.0, corrector="none"))
    operator, generator = BlockAverage(3), seeded(3)
    y = rand(1, 3, 3, 3)
    latents = 2.0 * torch.randn(1, 3, 10, 10, generator=generator)  # 9 x 9, padded
    options = {"height": 9, "width": 9}
    given = restore(pipe, y, operator, latents=latents, generator=generator, **options)
    assert torch.equal(given, restore(pipe, y, operator, seed=3, **options))


class Duck:
    """Another package's operator: the two methods, and nothing else."""

    def __init__(self, operator):
        self.A, self.A_adjoint = operator.A, operator.A_adjoint


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_without_a_pseudo_inverse(name, noise_std):
    pipe = make_pipe(ExactNetwork().of(field()), SCHEDULERS["ve"](sigma_max=2.0))
    y = measure(field(), OPERATORS[name], noise_std)
    options = {"noise_std": noise_std, "num_inference_steps": 20}
    expected = restore(pipe, y, OPERATORS[name], **options)
    torch.testing.assert_close(restore(pipe, y, Duck(OPERATORS[name]), **options), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_network(method, dtype):
    """The state stays in float32; rounding errors of D' at sigma = 1348 do not make guidance explode."""
    prior, operator = white(), OPERATORS["block average"]
    y = measure(prior, operator, 0.0).float()
    pipe = make_pipe(ExactNetwork().of(prior).to(dtype))
    options = {"data_std": 0.2, "num_inference_steps": 50, "num_samples": 50}
    state = restore(pipe, y, operator, method=method, **options)
    assert state.dtype is torch.float32
    assert (operator.A(state) - y).abs().max() < (0.1 if method == "dps" else 1e-5)
    assert abs(state.std(dim=0).mean() / 0.173 - 1) < 0.2  # 0.2 less the block's mean


def test_forms_of_the_output():
    pipe = make_pipe(scheduler=ScoreSdeVeScheduler(sigma_max=1.0))
    y = rand(2, 3, 4, 4)
    state = restore(pipe, y, BlockAverage(2))
    images = restore(pipe, y, BlockAverage(2), output_type="pt")
    expected = (state / 2 + 0.5 if pipe._centered else state).clamp(0, 1)
    torch.testing.assert_close(images, expected)
    pictures = restore(pipe, y, BlockAverage(2), output_type="pil")
    assert [p.size for p in pictures] == [(8, 8)] * 2
    output = pipe(y, BlockAverage(2), num_inference_steps=2, output_type="np")
    assert output["sample"] is output.images and output.images.shape == (2, 8, 8, 3)
    assert len(pipe(y, BlockAverage(2), num_inference_steps=2, return_dict=False)) == 1


def test_callback_sees_every_step():
    seen = []

    def callback(pipeline, step, timestep, kwargs):
        seen.append((step, pipeline.num_timesteps, kwargs["latents"].shape))

    y = rand(1, 3, 3, 3)
    restore(make_pipe(), y, BlockAverage(3), height=9, width=9, callback_on_step_end=callback)
    assert seen == [(i, 3, (1, 3, 10, 10)) for i in range(3)]


def test_components_are_shared_and_saved(tmp_path):
    plain = ScoreSdePipeline(tiny_network(), ScoreSdeVeScheduler(sigma_max=3.0))
    pipe = ScoreSdeInverseProblemPipeline.from_pipe(plain)
    assert pipe.unet is plain.unet and pipe.scheduler.config == plain.scheduler.config
    assert ScoreSdePipeline.from_pipe(pipe).unet is plain.unet
    plain.save_pretrained(tmp_path)
    loaded = ScoreSdeInverseProblemPipeline.from_pretrained(tmp_path)
    y = rand(1, 3, 4, 4)
    for p in (pipe, loaded):
        p.set_progress_bar_config(disable=True)
    assert_alike(restore(pipe, y, BlockAverage(2)), restore(loaded, y, BlockAverage(2)))


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------

WRONG = Duck(BlockAverage(2))
WRONG.A_adjoint = BlockAverage(2).A_dagger


@pytest.mark.parametrize(
    "options, message",
    [
        ({"operator": WRONG}, r"`A_adjoint` is not the adjoint of a linear `A`: <A u, v> = "),
        ({"operator": torch.nn.AvgPool2d(2)}, "AvgPool2d, has no A and no A_adjoint"),
        ({"measurement": rand(1, 3, 5, 4)}, r"rows of shape \(3, 5, 4\); this operator measures \(3, 4, 4\)"),
        ({"measurement": rand(3, 4, 4)}, r"rows of shape \(4, 4\); this operator measures \(3, 4, 4\)"),
        ({"measurement": rand(0, 3, 4, 4)}, r"has shape \(0, 3, 4, 4\); \(batch, ...\) is needed"),
        ({"measurement": torch.full((1, 3, 4, 4), torch.nan)}, "48 NaN or infinite values of 48"),
        ({"measurement": torch.ones(1, 3, 4, 4, dtype=torch.uint8)}, "torch.uint8; give a tensor of floating point"),
        ({"measurement": rand(1)}, r"has shape \(1,\); \(batch, ...\) is needed"),
        ({"measurement": [1.0]}, "is a list; give a tensor"),
        ({"height": 12}, r"this operator measures \(3, 6, 4\) of an image of shape \(3, 12, 8\)"),
        ({"height": 0}, "`height` is 0; it must be"),
        ({"width": 7}, "8 x 7 have no whole blocks of 2 x 2"),
        ({"method": "ddrm"}, "`method` is 'ddrm'; allowed are 'pigdm', 'dps', 'replacement'"),
        ({"noise_std": -0.1}, "`noise_std` is -0.1; it must be finite and at least 0"),
        ({"noise_std": float("nan")}, "`noise_std` is nan"),
        ({"guidance_scale": 0.0}, "`guidance_scale` is 0.0; it must be finite and above 0"),
        ({"data_std": float("inf")}, "`data_std` is inf"),
        ({"method": "replacement", "guidance_scale": 2.0}, "'replacement' has no guidance"),
        ({"method": "replacement", "noise_std": 0.1}, "does not go with corrector 'langevin'"),
        ({"num_samples": 0}, "`num_samples` is 0"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0"),
        ({"num_samples": 2, "generator": [seeded()]}, "list of 1 for a batch of 2"),
        ({"latents": torch.zeros(2, 3, 8, 8)}, r"`latents` has shape \(2, 3, 8, 8\); \(1, 3, 8, 8\) is needed"),
        ({"output_type": "numpy"}, "`output_type` is 'numpy'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"\['noise'\]; allowed are"),
    ],
)
def test_arguments_that_are_refused(options, message):
    network = GaussianNetwork(in_channels=3, out_channels=3)
    arguments = {"measurement": rand(1, 3, 4, 4), "operator": BlockAverage(2), **options}
    with pytest.raises(ValueError, match=message):
        restore(make_pipe(network), **arguments)
    assert network.calls == 0


def test_replacement_with_noise_needs_one_noise_level():
    pipe = make_pipe(scheduler=ScoreSdeVeScheduler(corrector="none"))
    with pytest.raises(ValueError, match=r"needs A A\* = c I.*Use method 'pigdm' or 'dps'"):
        restore(pipe, rand(1, 3, 8, 8), Blur(BINOMIAL), method="replacement", noise_std=0.1)


def test_inference_mode_is_refused_where_gradients_are_needed():
    with torch.inference_mode():
        for method in ("pigdm", "dps"):
            with pytest.raises(ValueError, match=f"method '{method}' differentiates the network"):
                restore(make_pipe(), rand(1, 3, 4, 4), BlockAverage(2), method=method)
        restore(make_pipe(), rand(1, 3, 4, 4), BlockAverage(2), method="replacement")


def test_nan_of_the_network_is_reported():
    with pytest.raises(ValueError, match="NaN or infinite at step 1"):
        restore(make_pipe(GaussianNetwork(nan_from=3)), rand(1, 1, 4, 4), BlockAverage(2))
