"""A run: its own pipeline over a shared network, counted, stopped, limited, and looked at while it goes on."""

# ruff: noqa: E402  (what needs gradio is imported after the check that it is there)

import threading
import time

import numpy as np
import pytest
import torch

gr = pytest.importorskip("gradio", reason="the Space needs gradio: pip install -e '.[demo]'")

from score_space import runs
from score_space.models import FASHION, MODELS, Model, ModelCache
from score_space.pictures import noisy_picture, to_pictures
from score_space.tabs import generate, likelihood

from diffusers_sde import (
    ScoreSdePipeline,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
    embedded_model_path,
)
from diffusers_sde.seeding import image_generators
from tests.oracles import Gaussian, seeded
from tests.tiny import GaussianNetwork

SCHEDULERS = {"ve": ScoreSdeVeScheduler, "vp": ScoreSdeVpScheduler, "sub_vp": ScoreSdeSubVpScheduler}
SETTINGS = {"method": generate.METHODS[0], "steps": 10, "overrides": {}, "seed": 3}


def gaussian_model(sde="ve", centered=False) -> Model:
    network = GaussianNetwork(sde, mean=0.4, std=0.2, center_input_sample=not centered)
    return Model(network.requires_grad_(False), SCHEDULERS[sde]())


@pytest.fixture
def model(monkeypatch):
    """A `Model` of Gaussian images, the answer to every name."""
    model = gaussian_model()
    monkeypatch.setattr(runs, "MODELS", ModelCache(1, lambda name: model))
    return model


def last(snapshots):
    return list(snapshots)[-1]


def arrays(images):
    return np.stack([np.asarray(image) for image in images])


def test_images_are_those_of_the_pipeline_alone():
    found = last(runs.stream(generate.draw, FASHION, 2, SETTINGS))
    pipeline = ScoreSdePipeline.from_pretrained(embedded_model_path())
    expected = pipeline(batch_size=2, num_inference_steps=10, generator=image_generators(3, range(2))).images
    assert np.array_equal(arrays(found.result), arrays(expected))
    assert found.evaluations == 20
    assert found.seconds > 0


def test_runs_at_the_same_time_do_not_mix(model, monkeypatch):
    """Different grids and samplers on one network: each as if it were alone."""
    monkeypatch.setattr(runs, "PREVIEW_SECONDS", 0.01)
    settings = [
        {**SETTINGS, "steps": 20 + i, "seed": i, "overrides": {"corrector": ("none", "langevin")[i % 2]}}
        for i in range(6)
    ]
    alone = [arrays(last(runs.stream(generate.draw, "", 2, one)).result) for one in settings]
    results = [None] * len(settings)

    def work(i):
        results[i] = arrays(last(runs.stream(generate.draw, "", 2, settings[i])).result)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(settings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(a, b) for a, b in zip(alone, results, strict=True))
    assert model.scheduler.step_index is None  # the shared one has never stepped


@pytest.mark.parametrize("method", generate.METHODS)
def test_closing_the_generator_stops_the_network(model, monkeypatch, method):
    monkeypatch.setattr(runs, "PREVIEW_SECONDS", 0.05)
    model.network.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    stream = runs.stream(generate.draw, "", 1, {**SETTINGS, "method": method, "steps": 1000})
    next(stream)
    assert next(stream).evaluations > 0
    stream.close()
    calls = model.network.calls
    time.sleep(0.1)
    assert model.network.calls == calls < 30


def test_nothing_is_done_before_the_generator_is_in_gradios_hands(model):
    """What is cancelled before its first value is never closed, so there must be nothing to stop."""
    stream = runs.stream(generate.draw, "", 1, SETTINGS)
    assert next(stream).evaluations == 0
    time.sleep(0.1)
    assert model.network.calls == 0


def test_a_run_ends_when_its_time_is_over(model, monkeypatch):
    monkeypatch.setattr(runs.MeteredNetwork.__init__, "__defaults__", (0.2,))
    model.network.register_forward_pre_hook(lambda *_: time.sleep(0.01))
    with pytest.raises(gr.Error, match=r"more than 0\.2 s.*fewer steps"):
        last(runs.stream(generate.draw, "", 1, {**SETTINGS, "steps": 1000}))
    assert model.network.calls < 30


def test_too_large_a_batch_is_refused(model, monkeypatch):
    monkeypatch.setattr(runs, "MAX_NUMBERS", 3 * 8 * 8)
    with pytest.raises(gr.Error, match="at most 3"):
        last(runs.stream(generate.draw, "", 4, SETTINGS))


def test_errors_of_a_pipeline_are_shown_and_cannot_write_html(model):
    with pytest.raises(gr.Error) as caught:
        last(runs.stream(generate.draw, "", 1, {**SETTINGS, "overrides": {"predictor": "<b>none</b>"}}))
    assert "&lt;b&gt;" in caught.value.message
    assert "<b>" not in caught.value.message


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("sde", SCHEDULERS)
def test_the_preview_is_the_mean_of_the_image_given_the_state(sde, centered):
    model = gaussian_model(sde, centered)
    run = runs.Run(model, 3)
    data, forward = Gaussian(0.4, 0.2), model.scheduler.sde
    t = torch.tensor(0.3, dtype=torch.float64)
    x = forward.perturb(data.sample((3, 1, 8, 8), seeded()), torch.randn(3, 1, 8, 8, generator=seeded(1)), t)
    assert run.guess() is None
    with torch.no_grad():
        run.network(x, model.scheduler.model_timestep(t))
    expected = to_pictures(data.denoised(forward, x, t), model)
    assert np.abs(arrays(run.guess()).astype(int) - arrays(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("sde", SCHEDULERS)
def test_the_time_is_read_from_what_the_network_is_told(sde, continuous):
    scheduler = SCHEDULERS[sde](continuous=continuous)
    t = torch.linspace(0.05, 1, 7, dtype=torch.float64)
    assert torch.allclose(runs.time_of(scheduler, scheduler.model_timestep(t)), t, atol=1.1e-3)


def test_a_state_is_shown_in_its_own_contrast():
    model = gaussian_model()
    x = torch.rand(1, 8, 8, generator=seeded())
    shown = np.asarray(noisy_picture(x, 0.0, model)) / 255
    assert np.abs(shown - x[0].numpy()).max() < 0.05  # sigma_min of VE is 0.01
    sigma = float(model.scheduler.sde.sigma(torch.tensor(1.0)))
    noise = sigma * torch.randn(1, 8, 8, generator=seeded(1))
    shown = np.asarray(noisy_picture(noise, 1.0, model)) / 255
    assert 0.15 < shown.std() < 0.35
    assert abs(shown.mean() - 0.5) < 0.1


@pytest.mark.parametrize("sde", SCHEDULERS)
def test_the_density_along_the_flow_is_exact_on_gaussian_data(sde):
    """The flow keeps z = (x - alpha m) / sqrt(V), so log p_t(x_t) = -|z|^2 / 2 - D log(2 pi V) / 2 at all t."""
    run = runs.Run(gaussian_model(sde), 1)
    forward = run.model.scheduler.sde
    latents = forward.prior_std * torch.randn(1, 1, 8, 8, generator=seeded())
    data, one = Gaussian(0.4, 0.2), torch.ones((), dtype=torch.float64)
    mean, variance = data.moments(forward, latents, one)
    z = (latents.double() - mean) / variance.sqrt()
    curve = list(likelihood.density_curve(run, latents, image_generators(0, [0])))
    assert [t for t, _ in curve] == [1.0, *likelihood.TIMES]
    for t, value in curve[1:]:
        _, variance = data.moments(forward, latents, torch.tensor(t))
        expected = -0.5 * (z.square().mean() + torch.log(2 * torch.pi * variance).mean())
        assert value == pytest.approx(float(expected), abs=0.02)


def test_the_networks_are_only_read():
    before = {name: p.clone() for name, p in MODELS.get(FASHION).network.state_dict().items()}
    last(runs.stream(generate.draw, FASHION, 1, SETTINGS))
    assert all(torch.equal(p, before[name]) for name, p in MODELS.get(FASHION).network.state_dict().items())
