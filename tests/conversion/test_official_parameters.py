"""Names and shapes of the full-size official networks against ours, without memory for either."""

import pytest
import torch

from diffusers_sde import NCSNppModel
from diffusers_sde.configs import official_config, official_config_names
from diffusers_sde.conversion.architectures import build_architecture
from diffusers_sde.conversion.convert import build_scheduler
from diffusers_sde.conversion.fitting import fitting_configs, structure
from diffusers_sde.conversion.pytorch import trained_names
from diffusers_sde.models import DDPMModel, NCSNModel, NCSNv2Model
from tests.checkpoints import reference_json

OFFICIAL = reference_json("official_parameters")
REPAIRED = reference_json("repaired_parameters")
CLASSES = {"ncsnpp": NCSNppModel, "ddpm": DDPMModel, "ncsn": NCSNModel}


def official_shapes(name):
    """Names and shapes of the state dict."""
    if name in OFFICIAL:
        return {entry[0]: entry[1] for kind in ("parameters", "buffers") for entry in OFFICIAL[name][kind]}
    return dict(REPAIRED[name])


def config_of(name):
    """The configuration; "NAME as NETWORK" is that of another size of network."""
    name, _, network = name.partition(" as ")
    config = official_config(name)
    if network:
        config["model"]["name"] = network
    return config


@pytest.mark.parametrize("name", sorted({**OFFICIAL, **REPAIRED}))
def test_bijection(name):
    config, shapes = config_of(name), official_shapes(name)
    architecture = build_architecture(config, "pytorch")
    assert type(architecture.network) is CLASSES.get(config["model"]["name"], NCSNv2Model)
    official = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    converted = architecture.convert(official)  # raises for missing, left-over and mis-shaped ones
    assert converted.keys() == architecture.network.state_dict().keys()
    used = [key for source in architecture.parameter_map.values() for key in source.names]
    assert len(used) == len(set(used))
    assert set(shapes) - set(used) == set(architecture.ignored) & set(shapes)


def test_every_official_configuration_is_covered():
    known = {name.partition(" as ")[0] for name in (*OFFICIAL, *REPAIRED)}
    assert known == set(official_config_names())
    assert not set(OFFICIAL) & set(REPAIRED)


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_order_of_the_moving_average(name):
    """It is stored without names, in the order of the trained parameters."""
    parameters = OFFICIAL[name]["parameters"]
    expected = [key for key, _, trained in parameters if trained]
    # A state dict has the parameters in the same order, with the buffers among them.
    buffers = [entry[0] for entry in OFFICIAL[name]["buffers"]]
    assert trained_names(buffers + [key for key, *_ in parameters]) == expected


@pytest.mark.parametrize("name", official_config_names())
def test_scheduler(name):
    config = official_config(name)
    scheduler = build_scheduler(config)
    sde = {"vesde": "ScoreSdeVe", "vpsde": "ScoreSdeVp", "subvpsde": "ScoreSdeSubVp"}[config["training"]["sde"]]
    assert type(scheduler).__name__ == f"{sde}Scheduler"
    assert len(scheduler) == config["model"]["num_scales"]
    assert scheduler.config.snr == config["sampling"]["snr"]
    labels = scheduler.model_timestep(torch.tensor([1.0, 0.0]))
    if config["model"]["name"].startswith(("ncsnv2", "ncsn_")) or config["model"]["name"] == "ncsn":
        assert labels.tolist() == [0, config["model"]["num_scales"] - 1]


def test_parameters_tell_which_configurations_fit():
    shapes = official_shapes("ve/ffhq_256_ncsnpp_continuous")
    expected = [f"ve/{data}_ncsnpp_continuous" for data in ("bedroom", "celebahq_256", "church", "ffhq_256")]
    assert fitting_configs(shapes, "pytorch") == expected
    assert fitting_configs(official_shapes("ve/ncsn/celeba"), "pytorch") == [
        f"ve/ncsn/{name}" for name in ("celeba", "celeba_5", "cifar10", "cifar10_5")
    ]


def test_jax_names_of_every_configuration():
    """They differ per class, so they are unique, and count without gaps but for what has no parameters."""
    networks = {structure(official_config(name)): name for name in official_config_names()}
    for name in networks.values():
        config = official_config(name)
        if config["model"]["name"] == "ncsn":
            with pytest.raises(ValueError, match="cannot build NCSN"):
                build_architecture(config, "jax")
            continue
        architecture = build_architecture(config, "jax")
        names = [key for source in architecture.parameter_map.values() for key in source.names]
        assert len(names) == len(set(names))
        assert all("." not in key for key in names)
