import json

import pytest

import diffusers_sde.configs
from diffusers_sde.configs import official_config, official_config_names
from diffusers_sde.conversion.convert import build_network, build_scheduler, read_config
from tests.checkpoints import description, reference_json

OFFICIAL = reference_json("official_configs")
# Values that some official files lack; ours have what the others of their kind have.
ADDED = {"beta_min", "beta_max", "bpd_dataset", "enable_bpd", "enable_loss", "enable_sampling", "sde"}


def test_names():
    assert official_config_names() == sorted(OFFICIAL)


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_values(name):
    """Exactly those of the official file, types included."""
    ours, theirs = official_config(name), OFFICIAL[name]
    assert ours.keys() == theirs.keys()
    for section, values in theirs.items():
        if isinstance(values, dict):
            common = {key: ours[section][key] for key in values}
            assert json.dumps(common, sort_keys=True) == json.dumps(values, sort_keys=True)
            assert set(ours[section]) - set(values) <= ADDED
        else:
            assert ours[section] == values


def test_shared_values_are_written_once():
    """The files of single configurations hold what is their own."""
    folder = diffusers_sde.configs._ROOT
    for name in official_config_names():
        own = json.loads((folder / f"{name}.json").read_text())
        defaults = {}
        for default in own.pop("defaults"):
            for section, values in json.loads((folder / "defaults" / f"{default}.json").read_text()).items():
                if isinstance(values, dict):
                    defaults.setdefault(section, {}).update(values)
        for section, values in own.items():
            for key, value in values.items():
                assert defaults.get(section, {}).get(key) != value, f"{name} repeats {section}.{key}"


def test_a_configuration_may_be_changed_by_its_owner():
    config = official_config("vp/ddpm/cifar10")
    config["model"]["ch_mult"].append(7)
    config["data"]["image_size"] = 1
    assert official_config("vp/ddpm/cifar10")["model"]["ch_mult"] == [1, 2, 2, 2]
    assert official_config("vp/ddpm/cifar10")["data"]["image_size"] == 32


def test_wrong_names_are_answered_with_near_ones():
    with pytest.raises(ValueError, match="'ve/cifar10_ncsnpp_continuous'"):
        official_config("ve/cifar10_ncsnp_continuous")
    for name in ("", "../ve/cifar10_ncsnpp", "defaults/common", "ve/cifar10_ncsnpp.json"):
        with pytest.raises(ValueError, match="no official configuration"):
            official_config(name)


def test_configurations_from_anywhere(tmp_path):
    config = official_config("ve/cifar10_ncsnpp")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert read_config("ve/cifar10_ncsnpp") == read_config(path) == read_config(str(path)) == read_config(config)
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read_config(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="no JSON object"):
        read_config(path)
    path.write_text('{"model": {}}')
    with pytest.raises(ValueError, match=r"lacks \['data', 'sampling', 'training'\]"):
        read_config(path)
    with pytest.raises(ValueError, match="no configuration file"):
        read_config(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "section, key, value, message",
    [
        ("model", "name", "unet", "networks that can be converted"),
        ("model", "ch_mult", [2, 2], "must start with 1"),
        ("model", "normalization", "BatchNorm", "can build .GroupNorm. alone"),
        ("model", "nf", None, "lacks 'nf'"),
        ("training", "sde", "xvsde", "allowed are 'vesde', 'vpsde', 'subvpsde'"),
        ("sampling", "snr", None, "lacks 'snr'"),
    ],
)
def test_settings_that_we_cannot_express(section, key, value, message):
    config = description("ve_ncsnpp_discrete")["config"]
    config[section][key] = value
    if value is None:
        del config[section][key]
    with pytest.raises(ValueError, match=message):
        build_network(config)
        build_scheduler(config)
