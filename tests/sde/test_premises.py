"""SDEs that break a premise of the solvers are refused, at construction of a scheduler and by every solver."""

import math

import pytest
import torch

from diffusers_sde.sde import SDE, VESDE, VPSDE, Gaussian, SubVPSDE, log_likelihood, make_predictor, probability_flow
from diffusers_sde.sde.elbo import denoising_elbo


class Cosine(SDE):
    """alpha = cos(pi t last / 2): the textbook's at last = 1, where nothing of the data is left."""

    prior_std = 1.0

    def __init__(self, last: float = 1.0):
        self.last = last

    def alpha(self, t):
        return (0.5 * math.pi * self.last * t).cos()

    def sigma(self, t):
        return (0.5 * math.pi * self.last * t).sin()


@pytest.mark.parametrize("sde", [VESDE(0.01, 50.0), VESDE(0.01, 1348.0), VPSDE(), VPSDE(0.1, 5.0), SubVPSDE()])
def test_the_sdes_of_the_paper_pass(sde):
    sde.check()


@pytest.mark.parametrize("call", ["predictor", "flow", "likelihood", "elbo"])
def test_the_textbook_cosine_is_refused_wherever_it_is_given(call):
    """It sampled to mean 2.7e6, and "adams" was 13 nats off with success True."""
    sde, x = Cosine(), torch.zeros(2, 4, dtype=torch.float64)
    calls = {
        "predictor": lambda: make_predictor("euler_maruyama", sde),
        "flow": lambda: probability_flow(sde, lambda x, t: -x, x, 1.0, 1e-3),
        "likelihood": lambda: log_likelihood(sde, lambda x, t: -x, x, t_start=1e-3, exact_trace=True),
        "elbo": lambda: denoising_elbo(sde, lambda x, t: -x, x, x[:2], lambda: x, t_min=1e-3),
    }
    with pytest.raises(ValueError, match="keep alpha above"):
        calls[call]()


def test_a_process_towards_a_mean_is_refused_as_it_is_defined():
    """Ornstein-Uhlenbeck towards 2: 4,028 nats off with success True; half of the code ignored the overrides."""
    for name in ("drift", "perturb", "prior_sample", "prior_log_prob"):
        with pytest.raises(ValueError, match="shift the data instead"):
            type("OU", (VPSDE,), {name: lambda self, *args: args[0] + 2})
    mixin = type("Mixin", (), {"drift": lambda self, x, t: 2 - x})
    with pytest.raises(ValueError, match="overrides drift"):
        type("OU", (mixin, VPSDE), {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prior_std": 2.0}, "prior_std"),
        ({"prior_std": None}, "prior_std is None"),
        ({"alpha": lambda self, t: 0.9 * VPSDE.alpha(self, t)}, "divide alpha by alpha"),
        ({"sigma": lambda self, t: 1 - t}, "small at t = 0"),
        ({"sigma": lambda self, t: VPSDE.sigma(self, t) * torch.where(t < 0.3, 1.0, 0.2)}, "does not increase"),
        ({"sigma": lambda self, t: VPSDE.sigma(self, t) / (1 - t)}, "not finite"),
        ({"drift_coefficient": lambda self, t: -self.beta(t)}, "drift_coefficient gives"),
        ({"diffusion": lambda self, t: self.beta(t)}, "diffusion gives"),
        ({"time_of_log_snr": lambda self, value: torch.sigmoid(-value)}, "time_of_log_snr gives"),
        ({"log_snr": lambda self, t: -t}, "log_snr gives"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_premise_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        type("Wrong", (VPSDE,), changes)().check()


def test_a_cosine_that_ends_early_is_right():
    """The remedy of the message; what is left of the data at t = 1, alpha = 1.6e-3, and t_start cost 0.02 nats."""
    sde, data = Cosine(0.999), Gaussian(0.5, 0.3)
    score = lambda x, t: data.score(sde, x, t)  # noqa: E731
    x = torch.tensor([[0.2], [0.5], [1.0]], dtype=torch.float64)
    result = log_likelihood(sde, score, x, t_start=1e-4, exact_trace=True, solver="adams")
    expected = -0.5 * ((x[:, 0] - 0.5) / 0.3) ** 2 - math.log(0.3) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(result.log_likelihood, expected, rtol=0, atol=0.02)
