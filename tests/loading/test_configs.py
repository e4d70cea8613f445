"""Configs of strangers: what is allowed, and the message for what is not."""

import json

import diffusers
import pytest

from diffusers_sde import NCSNModel, NCSNppModel, NoiseConditionalClassifier, ScoreSdePipeline, ScoreSdeVeScheduler
from diffusers_sde.loading import CheckedConfig, CheckedNetwork, components, read_config
from diffusers_sde.pipelines.base import AnyScheduler, ScoreNetwork
from tests.tiny import TINY, legacy_unet, tiny_network


@pytest.fixture
def folder(tmp_path):
    ScoreSdePipeline(tiny_network(), ScoreSdeVeScheduler()).save_pretrained(tmp_path)
    return tmp_path


def set_key(path, key, value):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {key: value}))


@pytest.mark.parametrize(
    ("file", "key", "value", "allowed"),
    [
        ("unet/config.json", "layers_per_block", 10**9, "an integer from 1 to 32"),
        ("unet/config.json", "layers_per_block", "2", "an integer from 1 to 32"),
        (
            "unet/config.json",
            "block_out_channels",
            [4] * 10**5,
            "a list of at most 12, each an integer from 1 to 4096",
        ),
        ("unet/config.json", "sample_size", 10**9, "an integer from 1 to 4096 or a list of 2"),
        ("unet/config.json", "dropout", None, "a finite number"),
        ("unet/config.json", "fourier_scale", float("nan"), "a finite number"),
        ("unet/config.json", "fir", 1, "true or false"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9, "an integer from 1 to 100000"),
        ("scheduler/scheduler_config.json", "correct_steps", 10**9, "an integer from 0 to 1000"),
        ("scheduler/scheduler_config.json", "sigma_max", float("inf"), "a finite number"),
        ("scheduler/scheduler_config.json", "snr", [0.1], "a finite number"),
    ],
)
@pytest.mark.parametrize("loader", [ScoreSdePipeline, diffusers.DiffusionPipeline])
def test_a_bad_value_is_refused_with_file_key_value_and_what_is_allowed(folder, loader, file, key, value, allowed):
    """Before, such configs took gigabytes or minutes, or ended in a TypeError without the key."""
    set_key(folder / file, key, value)
    with pytest.raises(ValueError) as caught:
        loader.from_pretrained(folder)
    message = str(caught.value)
    assert str(folder / file) in message
    assert f"`{key}` is {value!r:.40}"[:40] in message
    assert f"allowed is {allowed}" in message


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize("loader", [ScoreSdePipeline, diffusers.DiffusionPipeline])
def test_schedulers_of_diffusers_are_checked_before_they_allocate(tmp_path, loader, name):
    """10^9 time steps in a config of a few bytes took over 8 GB."""
    ScoreSdePipeline(tiny_network(), getattr(diffusers, name)()).save_pretrained(tmp_path)
    assert type(loader.from_pretrained(tmp_path).scheduler) is getattr(diffusers, name)
    for value in (10**9, "many", None, 0):
        set_key(tmp_path / "scheduler" / "scheduler_config.json", "num_train_timesteps", value)
        with pytest.raises(ValueError, match=r"scheduler_config\.json: `num_train_timesteps` is .* from 1 to 100000"):
            loader.from_pretrained(tmp_path)


@pytest.mark.parametrize("loader", [ScoreSdePipeline, diffusers.DiffusionPipeline])
def test_the_network_of_diffusers_is_checked_and_stays_its_own(tmp_path, loader):
    ScoreSdePipeline(legacy_unet(), ScoreSdeVeScheduler()).save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path)
    assert type(loaded.unet) is diffusers.UNet2DModel
    loaded.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DModel"]
    set_key(tmp_path / "unet" / "config.json", "layers_per_block", 2**63)
    with pytest.raises(ValueError, match=r"config\.json: `layers_per_block` is 9223372036854775808"):
        loader.from_pretrained(tmp_path)


def test_what_a_constructor_of_diffusers_cannot_take_is_reported(tmp_path):
    """An unknown kind of embedding ends in an UnboundLocalError there."""
    ScoreSdePipeline(legacy_unet(), ScoreSdeVeScheduler()).save_pretrained(tmp_path)
    set_key(tmp_path / "unet" / "config.json", "time_embedding_type", "x")
    with pytest.raises(ValueError, match="unet: diffusers' UNet2DModel cannot be built from its config: UnboundLocal"):
        ScoreSdePipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested more than 8 deep"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "nested more than 8 deep"),
        ("", "not valid JSON"),
        ("null", "holds a JSON NoneType"),
        (json.dumps(["x" * 2_000_000]), "has 2000004 bytes; a config has at most 1000000"),
        ('{"items": 1}', "`items` is no setting"),
        ('{"quantization_config": {"quant_method": "bitsandbytes"}}', "`quantization_config` is no setting"),
    ],
)
def test_what_is_no_config_is_refused_by_name(folder, text, message):
    for file in ("unet/config.json", "scheduler/scheduler_config.json"):
        (folder / file).write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            NCSNppModel.from_pretrained(folder, subfolder="unet")
        assert str(folder / "unet" / "config.json") in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    "entry",
    [7, None, ["diffusers"], ["os", "system"], ["diffusers", "AutoencoderKL"], ["diffusers_sde", "__version__"]],
    ids=str,
)
@pytest.mark.parametrize("loader", [ScoreSdePipeline, diffusers.DiffusionPipeline])
def test_an_index_that_names_no_component_is_refused(folder, loader, entry):
    for component in ("unet", "scheduler"):
        index = (folder / "model_index.json").read_text()
        set_key(folder / "model_index.json", component, entry)
        with pytest.raises(ValueError, match=f"model_index.json: `{component}` is"):
            loader.from_pretrained(folder)
        (folder / "model_index.json").write_text(index)


def test_constructors_have_the_same_bounds():
    for build in (
        lambda: NCSNppModel(**TINY | {"layers_per_block": 10**9}),
        lambda: NCSNModel(num_train_timesteps=10**9),
        lambda: NoiseConditionalClassifier(blocks_per_group=10**9),
        lambda: NoiseConditionalClassifier(channel_multiplier=0),
        lambda: ScoreSdeVeScheduler(num_train_timesteps=10**9),
        lambda: ScoreSdeVeScheduler.from_config({"sigma_max": "x"}),
    ):
        with pytest.raises(ValueError, match=r"` is .*; allowed is"):
            build()


def test_every_component_of_a_pipeline_is_checked():
    """A class that is added without the mixin would be loaded unchecked."""
    for cls in (*ScoreNetwork.__args__, NoiseConditionalClassifier):
        ours = cls if cls.__module__.startswith("diffusers_sde") else getattr(components, cls.__name__)
        assert issubclass(ours, CheckedNetwork)
    for cls in AnyScheduler.__args__:
        ours = cls if cls.__module__.startswith("diffusers_sde") else getattr(components, cls.__name__)
        assert issubclass(ours, CheckedConfig)
