"""On Gaussian data with the exact network, whose samplers have known means and variances."""

import json
import math

import pytest
import torch

from diffusers_sde import ScoreSdePipeline, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from diffusers_sde.suggest.corrector import CorrectorTuning, jackknife_error
from diffusers_sde.suggest.metrics import SlicedWasserstein
from diffusers_sde.suggest.report import conclusion
from tests.oracles import SDES, Gaussian, sampler_moments, seeded
from tests.tiny import GaussianNetwork

STD, SIDE, STEPS = 0.1, 12, 8
GRID = [0.0, 0.2, 0.4, 0.6, 1.0]


def make_pipeline(corrector="langevin", **options):
    scheduler = ScoreSdeVeScheduler(sigma_max=2.0, num_train_timesteps=STEPS, corrector=corrector)
    return ScoreSdePipeline(GaussianNetwork("ve", 0.5, STD, sample_size=SIDE, **options), scheduler)


@pytest.fixture(scope="module")
def metric():
    """With 2000 images of the data as the reference."""
    metric = SlicedWasserstein(SIDE**2, num_projections=64)
    metric.set_reference(metric.features(data(2000, 0)))
    return metric


def data(n, seed):
    x = Gaussian(0.5, STD).sample((n, 1, SIDE, SIDE), seeded(seed), torch.float64)
    return (255 * x).round().clamp(0, 255).byte()


@pytest.fixture
def tune(metric, tmp_path):
    def make(pipeline=None, **options):
        defaults = {"num_samples": 128, "batch_size": 64}
        return CorrectorTuning(pipeline or make_pipeline(), metric, tmp_path / "snr.json", **{**defaults, **options})

    return make


def theory(snr, corrector):
    """Distance of the sampler's Gaussian from the data's, without sampling error."""
    options = {"snr": snr, "corrector": corrector} if snr else {"corrector": "none"}
    scheduler = ScoreSdeVeScheduler(sigma_max=2.0, num_train_timesteps=STEPS, **options)
    sde = type(SDES["ve"])(0.01, 2.0)
    mean, variance = sampler_moments(sde, Gaussian(0.5, STD), scheduler, STEPS)
    return math.hypot(mean - 0.5, math.sqrt(variance) - STD)


@pytest.mark.parametrize("corrector", ["langevin", "ald"])
def test_distances_and_the_best_value_are_those_of_theory(tune, metric, corrector):
    """Squared distances exceed the theory's by that of as many images of data, the error of sampling."""
    tuning = tune(make_pipeline(corrector))
    floor = metric.distance(metric.features(data(128, 1)))
    points = tuning.run(GRID)
    expected = [theory(snr, corrector) for snr in GRID]
    assert [point["snr"] for point in points] == GRID
    for point, value in zip(points, expected):
        tolerance = 4 * point["standard_error"] + 1e-3
        assert math.sqrt(max(point["distance"] ** 2 - floor**2, 0)) == pytest.approx(value, abs=tolerance)
    best = min(GRID, key=lambda snr: expected[GRID.index(snr)])
    rows = {row["snr"]: row for row in tuning.comparison()}
    assert points[GRID.index(best)]["distance"] == pytest.approx(min(p["distance"] for p in points), abs=2e-3)
    worse = [snr for snr, value in zip(GRID, expected) if value > min(expected) + 0.02]
    assert 0.0 in worse and (corrector == "ald" or 1.0 in worse)
    assert not any(rows[snr]["level"] for snr in worse)


def test_zero_stands_for_no_corrector(tune):
    pipeline = make_pipeline()
    tune(pipeline).run([0.0])
    assert pipeline.unet.calls == 2 * STEPS  # two batches, the predictor alone
    tune(pipeline).run([0.2])
    assert pipeline.unet.calls == 2 * STEPS + 4 * STEPS


def test_all_values_see_the_same_noise(tune):
    """The error of a difference is far below what two independent draws would have."""
    tuning = tune(make_pipeline("ald"))
    first, second = tuning.run([0.2, 0.21])
    difference = tuning.comparison()[0 if first["distance"] > second["distance"] else 1]
    assert 0 < difference["standard_error"] < 0.2 * math.hypot(first["standard_error"], second["standard_error"])


def test_the_error_is_that_of_repeated_draws(tune):
    points = [tune(seed=seed, overwrite=True).run([0.2])[0] for seed in range(12)]
    spread = torch.tensor([point["distance"] for point in points]).std()
    errors = torch.tensor([point["standard_error"] for point in points])
    assert float(errors.mean()) == pytest.approx(float(spread), rel=0.5)


def test_jackknife_of_a_mean_is_the_error_of_the_mean():
    values = torch.randn(8, generator=seeded(), dtype=torch.float64)
    leave_out = [float((values.sum() - value) / 7) for value in values]
    assert jackknife_error(leave_out) == pytest.approx(float(values.std()) / math.sqrt(8), rel=1e-12)


def test_a_run_goes_on_and_other_settings_do_not_touch_it(tune, tmp_path):
    steps = []
    tune().run([0.2], lambda: steps.append(1))
    assert len(steps) == 2 * STEPS
    before = json.loads((tmp_path / "snr.json").read_text())
    tuning = tune()
    assert tuning.missing([0.2, 0.4]) == [0.4]
    tuning.run([0.2, 0.4], lambda: steps.append(1))
    assert len(steps) == 4 * STEPS
    after = json.loads((tmp_path / "snr.json").read_text())
    assert after["points"]["0.2"] == before["points"]["0.2"] and set(after["points"]) == {"0.2", "0.4"}
    with pytest.raises(ValueError, match=r"values of other settings \(seed, steps differ\)"):
        tune(seed=1, steps=9)
    with pytest.raises(ValueError, match=r"\(scheduler_config differ\)"):
        tune(make_pipeline("ald"))
    assert tune(seed=1, overwrite=True).points == []
    assert json.loads((tmp_path / "snr.json").read_text()) == after


def test_values_do_not_depend_on_the_batch_or_the_order(tune, tmp_path):
    together = tune().run([0.2, 0.4])
    (tmp_path / "snr.json").unlink()
    apart = tune(batch_size=50)
    apart.run([0.4])
    for a, b in zip(together, apart.run([0.2])):
        assert a["distance"] == pytest.approx(b["distance"], rel=1e-5)


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ({0.2: 3, 0.5: 1, 1.0: 2}, [0.35, 0.75]),
        ({0.0: 1, 0.1: 2, 0.2: 3}, [0.05]),
        ({0.1: 3, 0.2: 2, 0.3: 1}, [0.25, 0.4]),
        ({0.1: 1}, [0.2]),
    ],
)
def test_the_finer_grid_halves_both_sides_of_the_best(tune, tmp_path, distances, expected):
    tuning = tune()
    record = json.loads(json.dumps({"settings": tuning._settings(), "points": {}}))
    record["points"] = {f"{snr:g}": {"snr": snr, "distance": distance} for snr, distance in distances.items()}
    (tmp_path / "snr.json").write_text(json.dumps(record))
    assert tune().finer_grid() == expected


def test_what_cannot_be_tuned(tune):
    network = GaussianNetwork("vp", 0.5, STD, sample_size=SIDE)
    with pytest.raises(ValueError, match="Choose one by --corrector, langevin or ald"):
        tune(ScoreSdePipeline(network, ScoreSdeVpScheduler(corrector="none")))
    with pytest.raises(ValueError, match="num_samples is 15; errors need at least 16"):
        tune(num_samples=15)
    with pytest.raises(ValueError, match=r"with snr 0.2: the state became NaN or infinite at step 1"):
        tune(make_pipeline(nan_from=2)).run([0.2])


def rows(*differences, level=0.01):
    return [
        {"snr": 0.1 * (i + 1), "difference": d, "standard_error": 0.0, "level": d <= level}
        for i, d in enumerate(differences)
    ]


@pytest.mark.parametrize(
    ("comparison", "expected"),
    [
        (rows(0.3, 0.0, 0.2), "Best: --snr 0.2."),
        (rows(0.3, 0.0, 0.005), "not known to be worse: --snr 0.3."),
        (rows(0.3, 0.2, 0.0), "upper end of the grid; try larger ones"),
        (rows(0.0, 0.005), "do not tell. Take more of them"),
    ],
)
def test_no_more_is_said_than_is_known(comparison, expected):
    assert expected in conclusion(comparison)
