"""The noise schedule that stands in a file, against that of the configuration: the file decides, or it is refused."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from diffusers_sde.configs import official_config
from diffusers_sde.conversion import convert, convert_checkpoint
from diffusers_sde.conversion.noise_levels import schedule_of_file
from diffusers_sde_cli.main import main
from tests.checkpoints import arrays, checkpoint_content, description, relative_error

CONTINUOUS, DISCRETE = "ve_ncsnpp_continuous", "ve_ncsnpp_discrete"
VP = ["vp_ddpm_discrete", "vp_ddpmpp_continuous", "subvp_ddpmpp_continuous"]
BEDROOM, CHURCH = "ve/bedroom_ncsnpp_continuous", "ve/church_ncsnpp_continuous"


def levels(first, last, number, dtype=torch.float64):
    """Noise levels as the official code computes them."""
    return torch.from_numpy(np.exp(np.linspace(np.log(first), np.log(last), number))).to(dtype)


def converted(tmp_path, name, tables, use_ema=True):
    """A recorded checkpoint with other tables, under its own configuration."""
    content = checkpoint_content(name)
    for key, table in tables.items():
        content["model"][f"module.{key}"] = table
    torch.save(content, tmp_path / "file")
    return convert(tmp_path / "file", description(name)["config"], use_ema)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("number", [1000, 2000])
@pytest.mark.parametrize("use_ema", [True, False])
def test_the_file_decides_on_the_noise_levels(tmp_path, dtype, number, use_ema):
    """A network trained further up to 90 must not be sampled from 50, where its configuration's scheduler begins."""
    conversion = converted(tmp_path, CONTINUOUS, {"sigmas": levels(90, 0.01, number, dtype)}, use_ema)
    found = conversion.pipeline.scheduler.config
    assert (found.sigma_max, found.sigma_min, found.num_train_timesteps) == (90, 0.01, number)
    network = conversion.pipeline.unet.config
    assert (network.sigma_max, network.sigma_min, network.num_train_timesteps) == (90, 0.01, number)
    assert conversion.config["model"]["sigma_max"] == 90
    assert conversion.changes[0] == "sigma_max is 90, from the file; the configuration has 50"
    assert len(conversion.changes) == 1 + (number != 1000)


@pytest.mark.parametrize("name", [CONTINUOUS, DISCRETE, "ve_ncsnpp_skip_continuous", *VP])
def test_files_that_agree_change_nothing(checkpoint, name):
    config = description(name)["config"]
    conversion = convert(checkpoint(name), config)
    assert conversion.changes == () and conversion.config == config
    assert ("model.sigmas" in conversion.unused) == (name in VP)


@torch.no_grad()
def test_a_discrete_network_divides_by_the_levels_of_the_file(checkpoint, tmp_path):
    """Its output at a label is that of the old table, times the old level over the new one."""
    recorded = arrays(DISCRETE)
    new = converted(tmp_path, DISCRETE, {"sigmas": levels(90, 0.02, 100)}).pipeline
    labels = recorded["labels"].long()
    expected = recorded["output_ema"] * (levels(50, 0.01, 100) / levels(90, 0.02, 100))[labels, None, None, None]
    assert relative_error(new.unet(recorded["x"], recorded["labels"]).sample, expected) < 2e-5
    assert (new.scheduler.config.sigma_max, new.scheduler.config.sigma_min) == (90, 0.02)


@pytest.mark.parametrize(
    "table, message",
    [
        (torch.linspace(50, 0.01, 100, dtype=torch.float64), "no geometric sequence"),
        (levels(50, 0.01, 100) * (1 + 1e-3 * torch.arange(100) % 7), "no geometric sequence"),
        (levels(50, 0.01, 100).flip(0), "fall from sigma_max to sigma_min"),
        (-levels(50, 0.01, 100), "fall from sigma_max to sigma_min"),
        (torch.zeros(100), "fall from sigma_max to sigma_min"),
        (levels(50, 0.01, 100)[None], "a sequence of at least 2"),
        (levels(50, 0.01, 100)[:1], "a sequence of at least 2"),
        (torch.full((100,), torch.nan), "NaN or infinite"),
        (torch.arange(100, 0, -1), "is of type int64"),
    ],
    ids=["linear", "bent", "rising", "negative", "zero", "two dimensions", "one level", "nan", "whole numbers"],
)
def test_tables_that_no_scheduler_has(tmp_path, table, message):
    with pytest.raises(ValueError, match=message) as error:
        converted(tmp_path, DISCRETE, {"sigmas": table})
    assert str(tmp_path / "file") in str(error.value)


@pytest.mark.parametrize("name", VP)
def test_vp_takes_the_number_of_levels_alone(tmp_path, name):
    """Their values are those of the default and mean nothing; there are as many as the SDE has steps."""
    conversion = converted(tmp_path, name, {"sigmas": levels(50, 0.01, 250)})
    found = conversion.pipeline.scheduler.config
    assert (found.num_train_timesteps, found.beta_min, found.beta_max) == (250, 0.1, 20)
    assert [change.split()[0] for change in conversion.changes] == ["num_scales"]


@pytest.mark.parametrize("name", VP)
def test_a_vp_configuration_is_refused_for_other_noise_levels(tmp_path, name):
    with pytest.raises(ValueError, match=r"run from 90 to 0\.01, but the configuration has sigma_max 50"):
        converted(tmp_path, name, {"sigmas": levels(90, 0.01, 100)})


def test_levels_tell_configurations_with_one_network_apart():
    config = official_config(CHURCH)
    with pytest.raises(ValueError, match=f"2000 from 378 to 0.01, are not those of {CHURCH} but of {BEDROOM}, which"):
        schedule_of_file(config, {"sigmas": levels(378, 0.01, 2000)}, CHURCH)
    assert schedule_of_file(config, {"sigmas": levels(380, 0.01, 2000)}, CHURCH).changes == ()
    # As a file of one's own it is what the network was trained further from, and 90 is in no official configuration.
    assert schedule_of_file(config, {"sigmas": levels(378, 0.01, 2000)}).config["model"]["sigma_max"] == 378
    assert schedule_of_file(config, {"sigmas": levels(90, 0.01, 2000)}, CHURCH).config["model"]["sigma_max"] == 90
    assert config["model"]["sigma_max"] == 380


def betas(beta_min, beta_max, number):
    """Tables of DDPM, in float32 as usual."""
    exact = torch.linspace(beta_min / number, beta_max / number, number, dtype=torch.float64)
    products = torch.cumprod(1 - exact, 0)
    tables = {"betas": exact, "alphas": 1 - exact, "alphas_cumprod": products, "sqrt_alphas_cumprod": products.sqrt()}
    return {key: table.float() for key, table in tables.items()}


def test_betas_of_the_file():
    config = description("vp_ddpm_discrete")["config"]
    assert schedule_of_file(config, betas(0.1, 20, 100)).changes == ()
    found = schedule_of_file(config, betas(0.2, 15, 400)).config["model"]
    assert (found["beta_min"], found["beta_max"], found["num_scales"]) == (0.2, 15, 400)
    quadratic = betas(0.1, 20, 100)["betas"] ** 2
    for tables, message in (
        ({"betas": quadratic}, "no linear sequence"),
        (betas(0.1, 20, 100) | {"alphas_cumprod": betas(0.1, 10, 100)["alphas_cumprod"]}, "does not follow"),
        (betas(0.1, 20, 100) | {"sigmas": levels(50, 0.01, 200)}, "not as many as its noise levels"),
        ({"alphas_cumprod": betas(0.1, 20, 100)["alphas_cumprod"]}, "without 'betas'"),
    ):
        with pytest.raises(ValueError, match=message):
            schedule_of_file(config, tables)
    with pytest.raises(ValueError, match="belong to the VP SDE"):
        schedule_of_file(description(CONTINUOUS)["config"], betas(0.1, 20, 100))


@pytest.mark.parametrize("use_ema", [True, False])
def test_betas_among_the_weights(tmp_path, use_ema):
    """They are no trained parameters, of which the moving average has one tensor each."""
    conversion = converted(tmp_path, "vp_ddpm_discrete", betas(0.1, 10, 100), use_ema)
    assert conversion.pipeline.scheduler.config.beta_max == 10
    with pytest.warns(UserWarning, match=r"file: beta_max is 10, from the file; the configuration has 20"):
        convert_checkpoint(tmp_path / "file", description("vp_ddpm_discrete")["config"], use_ema)


def test_command_and_card_tell_what_was_taken_from_the_file(tmp_path):
    content = checkpoint_content(CONTINUOUS)
    content["model"]["module.sigmas"] = levels(90, 0.01, 1000)
    content["[/red]\n| x |"] = content["ema"]["decay"] = 0.5
    torch.save(content, tmp_path / "file")
    (tmp_path / "config.json").write_text(json.dumps(description(CONTINUOUS)["config"]))
    arguments = [tmp_path / "file", "--config", tmp_path / "config.json", "--output", tmp_path / "out"]
    result = CliRunner().invoke(main, ["convert", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (result.output, card):
        assert "sigma_max is 90, from the file; the configuration has 50" in text
        assert "decay 0.5, from the file; the configuration has 0.999" in text
        assert "optimizer" in text and "(other)" in text and "/red" not in text


def test_a_changed_network_claims_no_published_results(checkpoint):
    """The paper's FID is that of the network with the noise levels of its configuration."""
    conversion = convert(checkpoint(CONTINUOUS), description(CONTINUOUS)["config"])
    fields = {**vars(conversion), "config_name": CHURCH}
    assert type(conversion)(**fields).official_name == CHURCH
    assert type(conversion)(**{**fields, "changes": ("sigma_max is 90",)}).official_name is None
