"""No float64 on a device that has none; the same numbers as on the CPU."""

import pytest
import torch

from diffusers_sde.sde import VPSDE, Gaussian, log_likelihood, precision, probability_flow
from diffusers_sde.sde.elbo import denoising_elbo, elbo_times
from tests.fake_device import DEVICE, FakeDevice, FakeTensor, to_device
from tests.oracles import seeded


@pytest.fixture(autouse=True)
def device():
    precision.has_float64.cache_clear()
    with FakeDevice():
        yield
    precision.has_float64.cache_clear()


def score_fn(x, t):
    sde = VPSDE()
    alpha, sigma = (c(t)[:, None] for c in (sde.alpha, sde.sigma))
    return -(x - 0.3 * alpha) / (0.16 * alpha**2 + sigma**2) - 0.05 * torch.sin(x)


def run(what, x, solver):
    options = {"solver": solver, "max_nfe": 2000}
    if what == "flow":
        return probability_flow(VPSDE(), score_fn, x, 1.0, 1e-3, **options)
    if what == "check":
        return log_likelihood(VPSDE(), score_fn, x, exact_trace=True, check=True, **options)
    return log_likelihood(VPSDE(), score_fn, x, generator=seeded(1), num_probes=2, **options)


def test_the_fake_device_refuses_float64_and_the_host():
    """A test of the test: without it, nothing below could fail."""
    x = torch.zeros(3, device=DEVICE)
    assert isinstance(x, FakeTensor)
    for make in (lambda: x.double(), lambda: torch.zeros(3, dtype=torch.float64, device=DEVICE)):
        with pytest.raises(TypeError, match="float64"):
            make()
    with pytest.raises(RuntimeError, match="on one device"):
        x + torch.ones(3)
    assert not precision.has_float64(DEVICE)
    assert precision.has_float64(torch.device("cpu"))
    assert precision.in_double(x).device.type == "cpu"


@pytest.mark.parametrize("what", ["flow", "likelihood", "check"])
@pytest.mark.parametrize("solver", ["adams", "dopri5"])
def test_solvers_give_the_numbers_of_the_cpu(what, solver):
    x = torch.randn(3, 4, generator=seeded())
    expected, found = run(what, x, solver), run(what, to_device(x), solver)
    for name, value in vars(found).items():
        value = value.inner if isinstance(value, FakeTensor) else value
        assert torch.equal(value, vars(expected)[name]) or value.isnan().all(), name


def test_the_bound_gives_the_numbers_of_the_cpu():
    x = torch.randn(3, 4, generator=seeded())

    def bound(x):
        uniform, generator = torch.rand(8, 3, generator=seeded(1)).to(x.device), seeded(2)
        t = elbo_times(VPSDE(), uniform, 1e-3)
        noise = lambda: torch.randn(3, 4, generator=generator).to(x.device)  # noqa: E731
        return denoising_elbo(VPSDE(), score_fn, x, t, noise, t_min=1e-3).log_likelihood_bound

    assert torch.equal(bound(to_device(x)), bound(x))


@pytest.mark.parametrize(("solver", "bound"), [("dopri5", 2e-5), ("adams", 1e-4)])
def test_states_of_float32_cost_little(solver, bound):
    """Against the closed form, in nats per dimension: what is left on a device without float64."""
    sde, data = VPSDE(), Gaussian(0.3, 0.4)
    x = data.sample((4, 16), seeded())
    result = log_likelihood(
        sde, lambda x, t: -(x - 0.3 * sde.alpha(t)[:, None]) / (0.16 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2)[:, None],
        to_device(x), t_start=1e-3, exact_trace=True, solver=solver, rtol=1e-4 if solver == "adams" else None,
        atol=1e-6 if solver == "adams" else None,
    )  # fmt: skip
    latents = result.latents.inner
    exact = data.log_prob(sde, x.double(), torch.tensor(1e-3))
    exact = exact + sde.prior_log_prob(latents.double()) - data.log_prob(sde, latents.double(), torch.tensor(1.0))
    assert ((result.log_likelihood - exact).abs() / 16).max() < bound
