import math
import shlex

import numpy as np
import pytest
import torch

from diffusers_sde.suggest.schedule import DataSummary, moments, nearest_config, round_up, suggest_ve, suggest_vp
from diffusers_sde.training import parse_args
from diffusers_sde.training.components import build_scheduler


def summary(distance=53.4, size=(3, 32, 32)):
    return DataSummary(
        distance, torch.full(size, 0.47, dtype=torch.float64), torch.full(size, 0.06, dtype=torch.float64)
    )


def scheduler_of(flags):
    return build_scheduler(parse_args(["--data", "somewhere", *shlex.split(flags)])).config


def test_moments_of_each_pixel():
    images = np.random.default_rng(0).integers(0, 256, (700, 3, 4, 5), dtype=np.uint8)
    mean, variance = moments(torch.from_numpy(images))
    np.testing.assert_allclose(mean, images.mean(axis=0) / 255, rtol=1e-13)
    np.testing.assert_allclose(variance, images.var(axis=0) / 255**2, rtol=1e-11)


def test_ve_flags_are_those_of_train_sde_and_make_its_scheduler():
    found = suggest_ve(summary(), (0, 1))
    assert (found["sigma_min"], found["sigma_max"], found["num_noise_levels"]) == (0.01, 53.4, 221)
    config = scheduler_of(found["flags"])
    assert (config.sigma_min, config.sigma_max, config.num_train_timesteps) == (0.01, 53.4, 1000)
    config = scheduler_of(found["ald_flags"])
    assert (config.predictor, config.corrector, config.correct_steps) == ("none", "ald", 5)
    assert (config.num_train_timesteps, config.snr) == (221, round(found["ald_snr"], 3))
    assert found["prior"]["separation"] == pytest.approx(1)


def test_ve_of_the_range_from_minus_one_is_twice_as_large():
    unit, centred = suggest_ve(summary(), (0, 1)), suggest_ve(summary(), (-1, 1))
    assert centred["sigma_min"] == 0.02 and centred["sigma_max"] == pytest.approx(2 * unit["sigma_max"], rel=0.01)
    assert centred["ald_snr"] == pytest.approx(unit["ald_snr"], rel=0.01)
    mean = DataSummary(1.0, torch.tensor([0.25]), torch.tensor([0.1])).scaled((-1, 1))
    assert (mean.distance, float(mean.mean), float(mean.variance)) == (2.0, -0.5, pytest.approx(0.4))


@pytest.mark.parametrize("name", ["vp", "subvp"])
def test_vp_keeps_the_official_beta_max_unless_images_show_through(name):
    found = suggest_vp(name, summary(), (-1, 1))
    assert found["beta_max"] == 20 and found["prior"] == found["official_prior"]
    assert 0.5 < found["prior"]["separation"] < 1
    large = suggest_vp(name, summary(400, (3, 256, 256)), (-1, 1))
    assert large["beta_max"] == math.ceil(large["needed_beta_max"]) == 27
    assert large["prior"]["separation"] <= 1 < large["official_prior"]["separation"]
    assert scheduler_of(large["flags"]).beta_max == 27


@pytest.mark.parametrize(
    ("sde", "size", "distance", "expected"),
    [
        ("ve", (32, 32), 53.4, "ve/cifar10_ncsnpp_continuous"),
        ("ve", (72, 72), 90, "ve/celeba_ncsnpp"),
        ("ve", (256, 256), 350, "ve/celebahq_256_ncsnpp_continuous"),
        ("ve", (256, 256), 380, "ve/church_ncsnpp_continuous"),
        ("ve", (1024, 1024), 1300, "ve/celebahq_ncsnpp_continuous"),
        ("vp", (32, 32), 53.4, "vp/cifar10_ddpmpp_continuous"),
        ("subvp", (256, 256), 350, "subvp/cifar10_ddpmpp_continuous"),
    ],
)
def test_the_nearest_official_configuration(sde, size, distance, expected):
    assert nearest_config(sde, size, distance) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(22.4561, 22.5), (22.5, 22.5), (348.0, 348), (1347.2, 1350), (0.3, 0.3), (0.0, 0.0)]
)
def test_rounding_up_to_three_digits(value, expected):
    assert round_up(value) == expected


def test_a_data_set_of_one_image_many_times_is_refused():
    with pytest.raises(ValueError, match="images are all alike"):
        suggest_ve(summary(0.0), (0, 1))
