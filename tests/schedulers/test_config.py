"""Configs: what is refused, what is saved, what of diffusers' loads."""

import json

import diffusers
import pytest

from diffusers_sde import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler

CLASSES = [ScoreSdeVeScheduler, ScoreSdeVpScheduler, ScoreSdeSubVpScheduler]
every_scheduler = pytest.mark.parametrize("cls", CLASSES)
COMMON = {
    "num_train_timesteps": 123,
    "snr": 0.07,
    "sampling_eps": 0.02,
    "correct_steps": 2,
    "predictor": "reverse_diffusion",
    "corrector": "ald",
    "probability_flow": True,
    "continuous": False,
    "denoise_final": False,
    "corrector_norm": "batch",
}
OWN = {
    ScoreSdeVeScheduler: {"sigma_min": 0.02, "sigma_max": 33.0},
    ScoreSdeVpScheduler: {"beta_min": 0.2, "beta_max": 15.0},
    ScoreSdeSubVpScheduler: {"beta_min": 0.2, "beta_max": 15.0},
}
LEGACY = {  # as in published repositories of 2022
    "_class_name": "ScoreSdeVeScheduler",
    "_diffusers_version": "0.1.2",
    "correct_steps": 2,
    "num_train_timesteps": 1500,
    "sampling_eps": 1e-4,
    "sigma_max": 348.0,
    "sigma_min": 0.02,
    "snr": 0.075,
    "tensor_format": "pt",
}
SIX_KEYS = ("correct_steps", "num_train_timesteps", "sampling_eps", "sigma_max", "sigma_min", "snr")


def check_is_built_from(scheduler, config):
    for key, value in config.items():
        assert scheduler.config[key] == value, key
    assert len(scheduler.timesteps) == config["num_train_timesteps"]
    assert float(scheduler.timesteps[-1]) == pytest.approx(config["sampling_eps"], rel=1e-5)
    for key in ("sigma_min", "sigma_max", "beta_min", "beta_max"):
        assert key not in config or getattr(scheduler.sde, key) == config[key]


@every_scheduler
def test_every_key_is_saved_and_loaded(cls, tmp_path):
    """Values differ from all defaults, so that a key which is dropped on either way shows."""
    config = COMMON | OWN[cls]
    scheduler = cls(**config)
    scheduler.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == cls.__name__
    assert config.items() <= saved.items()
    check_is_built_from(cls.from_pretrained(tmp_path), config)
    check_is_built_from(cls.from_config(scheduler.config), config)


@pytest.mark.parametrize("other", CLASSES)
@every_scheduler
def test_a_config_of_another_process_is_refused(cls, other, tmp_path):
    """VP and sub-VP share all key names: the config has to tell them apart, directly, saved, or after a detour."""
    scheduler = other(**COMMON | OWN[other])
    scheduler.save_pretrained(tmp_path)
    detour = diffusers.DDIMScheduler.from_config(scheduler.config)
    ways = [lambda: cls.from_config(scheduler.config), lambda: cls.from_pretrained(tmp_path)]
    ways.append(lambda: cls.from_config(detour.config))
    for way in ways:
        if cls is other:
            check_is_built_from(way(), COMMON | OWN[cls])
        else:
            with pytest.raises(ValueError, match=f"Take {other.__name__}"):
                way()


@every_scheduler
def test_a_config_is_left_as_it_was_by_sampling(cls):
    scheduler = cls()
    before = dict(scheduler.config)
    scheduler.set_timesteps(50)
    assert dict(scheduler.config) == before


def test_defaults_of_ve_are_those_of_diffusers():
    ours, theirs = ScoreSdeVeScheduler().config, diffusers.ScoreSdeVeScheduler().config
    assert {key: ours[key] for key in SIX_KEYS} == {key: theirs[key] for key in SIX_KEYS}


def test_a_scheduler_of_diffusers_turns_into_ours():
    config = {key: LEGACY[key] for key in SIX_KEYS}
    check_is_built_from(ScoreSdeVeScheduler.from_config(diffusers.ScoreSdeVeScheduler(**config).config), config)


def test_a_legacy_config_loads(tmp_path):
    """`tensor_format` was a key up to diffusers 0.3, and says nothing."""
    (tmp_path / "scheduler_config.json").write_text(json.dumps(LEGACY))
    config = {key: LEGACY[key] for key in SIX_KEYS}
    check_is_built_from(ScoreSdeVeScheduler.from_pretrained(tmp_path), config)
    check_is_built_from(ScoreSdeVeScheduler.from_config(LEGACY), config)


@every_scheduler
@pytest.mark.parametrize(
    "wrong",
    [
        {"num_train_timesteps": 0},
        {"num_train_timesteps": -5},
        {"num_train_timesteps": 10.5},
        {"num_train_timesteps": True},
        {"snr": 0.0},
        {"snr": -0.1},
        {"snr": float("nan")},
        {"snr": float("inf")},
        {"sampling_eps": -1e-3},
        {"sampling_eps": 1.0},
        {"sampling_eps": float("nan")},
        {"correct_steps": -1},
        {"correct_steps": 1.5},
        {"predictor": "heun"},
        {"corrector": "mala"},
        {"corrector_norm": "mean"},
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_name(cls, wrong):
    """The message names the argument and what was seen."""
    ((key, value),) = wrong.items()
    with pytest.raises(ValueError) as error:
        cls(**wrong)
    assert key in str(error.value) and str(value) in str(error.value)


@pytest.mark.parametrize("sigmas", [(0.0, 50.0), (-0.01, 50.0), (50.0, 0.01), (1.0, 1.0)])
def test_sigmas_out_of_order_are_refused(sigmas):
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        ScoreSdeVeScheduler(sigma_min=sigmas[0], sigma_max=sigmas[1])


@pytest.mark.parametrize("cls", CLASSES[1:])
def test_betas_out_of_order_are_refused(cls):
    with pytest.raises(ValueError, match="beta_min <= beta_max"):
        cls(beta_min=20.0, beta_max=0.1)


def test_the_first_grid_of_a_short_vp_chain_does_not_stand_in_the_way():
    """A network trained on 10 steps may be sampled with 100: only a grid that is asked for is refused."""
    scheduler = ScoreSdeVpScheduler(num_train_timesteps=10, predictor="reverse_diffusion")
    scheduler.set_timesteps(100)
    with pytest.raises(ValueError, match="euler_maruyama"):
        scheduler.set_timesteps(10)
