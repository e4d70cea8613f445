"""Grids while a network trains: few evaluations, the right distribution, little of the run's time."""

import numpy as np
import pytest
import torch
from PIL import Image

import diffusers_sde
from diffusers_sde.training import train
from diffusers_sde.training.samples import GridBudget, draw_fast
from tests.tiny import GaussianNetwork

SCHEDULERS = {
    "ve": diffusers_sde.ScoreSdeVeScheduler,
    "vp": diffusers_sde.ScoreSdeVpScheduler,
    "sub_vp": diffusers_sde.ScoreSdeSubVpScheduler,
}


@pytest.mark.parametrize("sde", SCHEDULERS)
def test_the_fast_sampler_draws_the_distribution_of_a_perfect_network(sde):
    """Pixels N(0.5, 0.2^2) in [0, 1], which are N(0, 0.4^2) in [-1, 1]: both data ranges.

    20 steps of order 2 draw too wide by a tenth at most; with more the deviation becomes that of the denoised means
    at sigma / alpha = 0.05, E[x_0 | y] with variance std^4 / (std^2 + 0.05^2), cut to the range of images.
    """
    centred = sde == "ve"
    mean, std = (0.5, 0.2) if centred else (0.0, 0.4)
    network = GaussianNetwork(sde=sde, mean=mean, std=std, center_input_sample=centred)
    scheduler = SCHEDULERS[sde](**({"sigma_max": 50.0} if centred else {}))
    denoised = std**2 / (std**2 + 0.05**2) ** 0.5 * (1.0 if centred else 0.5)
    expected = (0.5 + denoised * np.random.default_rng(0).standard_normal(10**6)).clip(0, 1).std()
    for count, within in ((20, 0.15), (160, 0.015)):
        calls = network.calls
        images = draw_fast(network, scheduler, num_images=256, num_evaluations=count) / 255
        assert network.calls - calls == count
        assert images.mean() == pytest.approx(0.5, abs=0.01)
        assert images.std() == pytest.approx(expected, rel=within)


def test_an_image_does_not_depend_on_their_number():
    network = GaussianNetwork()
    scheduler = SCHEDULERS["ve"](sigma_max=50.0)
    few, many = (draw_fast(network, scheduler, num_images=count, num_evaluations=4) for count in (2, 5))
    np.testing.assert_array_equal(few, many[:2])


def test_a_run_spends_at_most_25_evaluations_on_a_grid_by_default(make_args, monkeypatch):
    """As many as the scheduler has levels, 1000, would take far longer than the training."""
    evaluations = []
    forward = diffusers_sde.NCSNppModel.forward

    def counted(self, *args, **kwargs):
        evaluations.append(not self.training)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(diffusers_sde.NCSNppModel, "forward", counted)
    train(make_args(max_train_steps=2, save_images_steps=1, num_inference_steps=None))
    assert sum(evaluations) == 2 * 20


def test_grids_take_their_share_of_the_time(make_args, tmp_path, caplog):
    """Those in between are left out, the last one has fewer images; the log has both."""
    caplog.set_level("INFO")
    options = {"max_train_steps": 40, "save_images_steps": 2, "num_inference_steps": 20, "eval_batch_size": 64}
    train(make_args(save_images_time_share=0.1, **options))
    grids = [path.name for path in (tmp_path / "run" / "samples").glob("*.png")]
    assert len(grids) < 10
    assert "is left out, as grids may take 10% of the run's time and took" in caplog.text
    if "step-40.png" in grids and "of 64 images" in caplog.text:
        assert Image.open(tmp_path / "run" / "samples" / "step-40.png").size < (64, 64)


def test_the_budget_by_hand():
    """100 s of training at 0.1 s per evaluation and image: 10 s pay for 5 images of 20 evaluations."""
    budget = GridBudget(0.1)
    assert budget.affordable(16, 20, elapsed=100.0, guess=0.1) == 5
    budget.add(8.0, 80)  # the same speed, measured
    assert budget.affordable(16, 20, elapsed=100.0, guess=9.0) == 1
    assert budget.affordable(16, 20, elapsed=500.0, guess=9.0) == 16
    assert GridBudget(1.0).affordable(16, 20, elapsed=0.0, guess=9.0) == 16


def test_options_of_grids_are_checked(make_args, capsys):
    for options, message in (
        ({"num_inference_steps": 26}, "with --save_images_sampler fast it is at most 25"),
        ({"save_images_time_share": 0}, "--save_images_time_share is 0.0; it is above 0"),
        ({"save_images_sampler": "adams"}, "'adams'; allowed are fast, scheduler"),
    ):
        with pytest.raises(SystemExit):
            make_args(**options)
        assert message in " ".join(capsys.readouterr().err.split())
    assert make_args(num_inference_steps=1000, save_images_sampler="scheduler").num_inference_steps == 1000


def test_the_random_numbers_of_training_are_left_alone():
    state = torch.get_rng_state()
    draw_fast(GaussianNetwork(), SCHEDULERS["ve"](sigma_max=50.0), num_images=1, num_evaluations=3)
    assert torch.equal(state, torch.get_rng_state())
