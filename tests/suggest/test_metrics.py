import math

import pytest
import torch

from diffusers_sde.evaluation.distances import frechet_distance
from diffusers_sde.evaluation.extractors import Features
from diffusers_sde.suggest.metrics import FrechetDistance, SlicedWasserstein, squared_wasserstein
from tests.oracles import seeded


def grey(mean, std, n, seed):
    """8-bit images of 6 x 6 independent Gaussian pixels; mean and std in units of [0, 1]."""
    x = mean + std * torch.randn(n, 1, 6, 6, generator=seeded(seed), dtype=torch.float64)
    return (255 * x).round().clamp(0, 255).byte()


class MeanAndSpread:
    """An extractor whose features are known: mean and standard deviation of the pixels."""

    name, fingerprint, num_features = "mean and spread", "0" * 64, 2

    def __call__(self, images):
        x = images.flatten(1).float() / 255
        return Features(torch.stack([x.mean(dim=1), x.std(dim=1)], dim=1))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 3), (4, 6), (5, 7), (8, 3), (1, 9)])
def test_wasserstein_between_sets_of_any_sizes(n, m):
    """Against sets of equal size, each number repeated as often as the other set has numbers, paired in order."""
    a = torch.randn(n, 4, generator=seeded(0), dtype=torch.float64).sort(dim=0).values
    b = torch.randn(m, 4, generator=seeded(1), dtype=torch.float64).sort(dim=0).values
    paired = (a.repeat_interleave(m, dim=0) - b.repeat_interleave(n, dim=0)).square().mean(dim=0)
    torch.testing.assert_close(squared_wasserstein(a, b), paired, rtol=1e-13, atol=0)


def test_a_shift_moves_every_quantile():
    a = torch.randn(50, 3, generator=seeded(0), dtype=torch.float64).sort(dim=0).values
    torch.testing.assert_close(squared_wasserstein(a, a + 0.3), torch.full((3,), 0.09, dtype=torch.float64))


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.2), (0.4, 0.1), (0.55, 0.05)])
def test_sliced_distance_of_gaussian_pixels(mean, std):
    """Every projection is Gaussian: SW^2 = (m - m')^2 E (sum u)^2 + (s - s')^2."""
    metric = SlicedWasserstein(36, num_projections=100)
    metric.set_reference(metric.features(grey(0.5, 0.1, 4000, 0)))
    expected = math.hypot((mean - 0.5) * metric.directions.sum(dim=0).square().mean().sqrt(), std - 0.1)
    assert metric.distance(metric.features(grey(mean, std, 4000, 1))) == pytest.approx(expected, abs=2.5e-3)


def test_directions_are_fixed_by_the_seed_and_of_length_one():
    first, same, other = (SlicedWasserstein(36, 8, seed).directions for seed in (0, 0, 1))
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert SlicedWasserstein(36, 3000).directions.sum(dim=0).square().mean() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(8, dtype=torch.float64))
    white = torch.full((1, 1, 6, 6), 255, dtype=torch.uint8)
    torch.testing.assert_close(SlicedWasserstein(36, 8).features(white)[0], first.sum(dim=0))


def test_frechet_distance_of_known_features():
    metric, extractor = FrechetDistance(MeanAndSpread()), MeanAndSpread()
    data, samples = grey(0.5, 0.1, 3000, 0), grey(0.45, 0.15, 2000, 1)
    metric.set_reference(torch.cat([metric.features(batch) for batch in data.split(900)]))
    moments = []
    for images in (samples, data):
        features = extractor(images).features.double()
        centred = features - features.mean(dim=0)
        moments += [features.mean(dim=0), centred.T @ centred / (len(images) - 1)]
    assert metric.distance(metric.features(samples)) == pytest.approx(frechet_distance(*moments), rel=1e-12)
    assert metric.distance(metric.features(samples)) == pytest.approx(0.05**2 + 0.05**2, rel=0.06)
