"""Against arrays recorded from the official PyTorch implementation; see tests/reference/README.md."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.oracles import SDES

TABLES = load_file(Path(__file__).parents[1] / "reference" / "sde_tables.safetensors")
T, X = TABLES["t"].double(), TABLES["x"].double()
NUM_STEPS = 1000

# The recorded code works in float32, so numbers carry a few units of 6e-8. It also computes 1 - exp(-y) as written:
# an absolute error of a unit at 1 (1.2e-7) in sigma of sub-VP and in the squares of the two other arrays named here.
FLOAT32 = dict(rtol=2e-6, atol=1e-7)
CANCELLED = dict(rtol=2e-6, atol=2.5e-7)


def recorded(name, quantity):
    return TABLES[f"{name}.{quantity}"].double()


@pytest.mark.parametrize("name", SDES)
def test_drift_and_mean(name):
    """Catches a sign or factor of beta, alpha^2 for alpha."""
    sde = SDES[name]
    torch.testing.assert_close(sde.drift(X, T), recorded(name, "drift"), **FLOAT32)
    torch.testing.assert_close(sde.perturb(X, torch.zeros_like(X), T), recorded(name, "mean"), **FLOAT32)


@pytest.mark.parametrize("name", SDES)
def test_diffusion_and_std(name):
    """Catches sigma of VP for sub-VP, and g of VP for sub-VP."""
    sde = SDES[name]
    diffusion, std = recorded(name, "diffusion"), recorded(name, "std")
    if name == "ve":
        torch.testing.assert_close(sde.diffusion(T), diffusion, **FLOAT32)
        torch.testing.assert_close(sde.sigma(T), std, **FLOAT32)
    else:
        torch.testing.assert_close(sde.diffusion(T).square(), diffusion.square(), **CANCELLED)
        power = 2 if name == "vp" else 1
        torch.testing.assert_close(sde.sigma(T) ** power, std**power, **CANCELLED)


def discretization_times(sde, t):
    """Times of the step that the official code makes at time t: index floor(t (N - 1)) for VE and VP."""
    places = torch.floor(TABLES["t"] * (NUM_STEPS - 1)).double() / (NUM_STEPS - 1)
    return sde.discretization_times(places, NUM_STEPS) or (t, t - 1 / NUM_STEPS)


@pytest.mark.parametrize("name", SDES)
def test_discretization(name):
    """Catches neighbours in the wrong direction, a spacing of 1/N for 1/(N - 1), and noise below the first level."""
    sde = SDES[name]
    a, b = sde.discretize(*discretization_times(sde, T))
    # f = (a - 1) x is a difference of two float32 numbers of the size of x, at most 3.3 here
    expected = recorded(name, "f")
    torch.testing.assert_close((a - 1)[:, None, None, None] * X, expected, rtol=2e-6, atol=4e-7)
    if name == "subvp":
        torch.testing.assert_close(b.square(), recorded(name, "G").square(), rtol=2e-6, atol=2.5e-7 * 20 / NUM_STEPS)
    else:
        # sigma_i^2 - sigma_{i-1}^2 in float32 loses two digits: the two differ by 1.7 %
        torch.testing.assert_close(b, recorded(name, "G"), rtol=2e-5 if name == "ve" else 2e-6, atol=0)


@pytest.mark.parametrize("name", SDES)
def test_prior_log_prob(name):
    """Catches nats per dimension, and a prior of variance 1 for VE."""
    torch.testing.assert_close(SDES[name].prior_log_prob(X), recorded(name, "prior_logp"), rtol=1e-6, atol=0)
