"""Against what Song & Ermon 2020 publish, quadrature, simulation, and exact Gaussian data."""

import math

import pytest
import torch

from diffusers_sde.configs import official_config
from diffusers_sde.sde import VESDE, VPSDE, SubVPSDE, make_corrector
from diffusers_sde.suggest.noise_levels import (
    beta_max_of,
    geometric_ratio,
    langevin_snr,
    langevin_step_size,
    langevin_variance,
    num_noise_levels,
    overlap_of,
    prior_mismatch,
)
from tests.oracles import seeded

# Numbers per image, sigma_max and levels that the paper uses; and steps and epsilon where they follow its rule.
PUBLISHED = {3 * 32**2: (50, 232), 3 * 64**2: (90, 500), 3 * 96**2: (140, 788), 3 * 128**2: (190, 1086)}
STEPS = {3 * 32**2: (5, 6.2e-6), 3 * 64**2: (5, 3.3e-6), 3 * 128**2: (3, 1.8e-6)}
CONFIGS = {3 * 32**2: "cifar10", 3 * 64**2: "celeba", 3 * 128**2: "bedroom"}


@pytest.mark.parametrize("dimension", PUBLISHED)
def test_published_numbers_of_levels(dimension):
    """All four have one overlap, 0.567 by the paper's formula; its "about 0.5" taken exactly needs 6 % fewer."""
    sigma_max, levels = PUBLISHED[dimension]
    ratio = (sigma_max / 0.01) ** (1 / (levels - 1))
    assert overlap_of(ratio, dimension) == pytest.approx(0.567, abs=1e-3)
    assert num_noise_levels(0.01, sigma_max, geometric_ratio(dimension, 0.567)) == pytest.approx(levels, abs=1)
    fewer = num_noise_levels(0.01, sigma_max, geometric_ratio(dimension))
    assert fewer / levels == pytest.approx(0.946, abs=3e-3)


@pytest.mark.parametrize("dimension", STEPS)
def test_published_step_sizes_and_the_official_snr(dimension):
    (sigma_max, levels), (steps, published) = PUBLISHED[dimension], STEPS[dimension]
    ratio = (sigma_max / 0.01) ** (1 / (levels - 1))
    epsilon = langevin_step_size(0.01, ratio, steps)
    assert epsilon == pytest.approx(published, rel=0.02)
    config = official_config(f"ve/ncsnv2/{CONFIGS[dimension]}")
    assert (config["model"]["sigma_max"], config["model"]["num_scales"]) == (sigma_max, levels)
    assert config["sampling"]["n_steps_each"] == steps
    assert langevin_snr(epsilon, 0.01) == pytest.approx(config["sampling"]["snr"], rel=0.015)


@pytest.mark.parametrize("dimension", [100, 3072])
def test_the_overlap_is_that_of_the_norms_of_noise(dimension):
    """Share of draws of the higher level whose norm is within three standard deviations of the lower one's."""
    ratio, sigma = geometric_ratio(dimension), 0.7
    norm = ratio * sigma * torch.randn(4000, dimension, generator=seeded()).norm(dim=1)
    # The paper's interval has the width of the higher level: 3 gamma sigma / sqrt(2).
    inside = (norm - math.sqrt(dimension) * sigma).abs() < 3 * ratio * sigma / math.sqrt(2)
    assert inside.double().mean() == pytest.approx(0.5, abs=0.035)


@pytest.mark.parametrize("dimension", [64, 784, 3072, 3 * 1024**2])
@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.9])
def test_the_ratio_solves_its_equation(dimension, overlap):
    assert overlap_of(geometric_ratio(dimension, overlap), dimension) == pytest.approx(overlap, abs=1e-9)


def test_levels_reach_both_ends_at_no_more_than_the_ratio():
    assert num_noise_levels(1, 8, 2.0) == 4
    assert num_noise_levels(1, 8.1, 2.0) == 5
    with pytest.raises(ValueError, match="images are all alike"):
        num_noise_levels(0.01, 0.0, 2.0)


def test_ratios_that_do_not_exist():
    with pytest.raises(ValueError, match="the overlap is 1"):
        geometric_ratio(3072, 1.0)
    with pytest.raises(ValueError, match="noise in 3 dimensions"):
        geometric_ratio(3)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_variance_is_that_of_the_ald_corrector_on_one_data_point(steps):
    """The package's own corrector at the snr of epsilon, on x_0 = 0: its updates are linear, followed exactly."""
    sde, t, ratio = VESDE(0.01, 50.0), torch.tensor(0.6, dtype=torch.float64), 1.2
    sigma = float(sde.sigma(t))
    epsilon = 3e-5
    corrector = make_corrector("ald", sde, langevin_snr(epsilon, 0.01))
    variance = (ratio * sigma) ** 2
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for _ in range(steps):
        gain = float(corrector.update(one, t, t, -one / sigma**2, zero)[0])
        noise = float(corrector.update(zero, t, t, zero, one)[0])
        variance = gain**2 * variance + noise**2
    expected = langevin_variance(torch.tensor(epsilon / 0.01**2, dtype=torch.float64), ratio, steps)
    assert float(expected) == pytest.approx(variance / sigma**2, rel=1e-12)


def test_the_step_size_is_the_best_one():
    ratio, epsilon = 1.0376, langevin_step_size(0.01, 1.0376, 5)
    around = torch.tensor([0.98, 1.0, 1.02], dtype=torch.float64) * epsilon / 0.01**2
    distance = (langevin_variance(around, ratio, 5) - 1).abs()
    assert distance[1] < distance[0] and distance[1] < distance[2]
    assert langevin_step_size(0.02, ratio, 5) == pytest.approx(4 * epsilon)


@pytest.mark.parametrize("sde", [VESDE(0.01, 20.0), VPSDE(0.1, 6.0), SubVPSDE(0.1, 6.0)])
def test_mismatch_of_gaussian_data_by_quadrature(sde):
    mean, variance = torch.tensor([0.3, -0.8], dtype=torch.float64), torch.tensor([0.2, 0.05], dtype=torch.float64)
    found = prior_mismatch(sde, mean, variance, distance=3.0)
    one = torch.ones((), dtype=torch.float64)
    alpha, sigma = sde.alpha(one), sde.sigma(one)
    std = (alpha**2 * variance + sigma**2).sqrt()
    z = torch.linspace(-12, 12, 20001, dtype=torch.float64)[:, None]
    weight = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    x = alpha * mean + std * z
    log_ratio = -(z**2) / 2 - std.log() + (x / sde.prior_std) ** 2 / 2 + math.log(sde.prior_std)
    assert found.kl == pytest.approx(float(torch.trapezoid(weight * log_ratio, z, dim=0).sum()), rel=1e-9)
    # Both are monotone images of one z: the optimal coupling in one dimension.
    cost = torch.trapezoid(weight * (x - sde.prior_std * z) ** 2, z, dim=0).sum()
    assert found.wasserstein == pytest.approx(float(cost.sqrt()), rel=1e-9)
    assert found.alpha == float(alpha) and found.separation == pytest.approx(float(3 * alpha / sigma))


@pytest.mark.parametrize("distance", [10.0, 107.0, 800.0])
def test_beta_max_separates_like_sigma_max(distance):
    beta_max = beta_max_of(distance)
    nothing = torch.zeros(1, dtype=torch.float64)
    assert prior_mismatch(VESDE(0.01, distance), nothing, nothing, distance).separation == pytest.approx(1)
    assert prior_mismatch(VPSDE(0.1, beta_max), nothing, nothing, distance).separation == pytest.approx(1)
    sub_vp = prior_mismatch(SubVPSDE(0.1, beta_max), nothing, nothing, distance).separation
    assert sub_vp == pytest.approx(1 + 1 / (2 * distance**2), rel=1e-4)
