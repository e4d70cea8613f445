"""The card: which row of the paper, with what settings, and the code to run."""

import dataclasses
import re

import pytest

from diffusers_sde.configs import official_config, official_config_names
from diffusers_sde.conversion import convert
from diffusers_sde.conversion.convert import build_scheduler
from diffusers_sde.conversion.model_card import SampleGrid, checkpoint_number, model_card
from diffusers_sde.conversion.paper import paper_row
from tests.checkpoints import description

RECORDED = {"ncsnpp": "ve_ncsnpp_continuous", "ddpm": "vp_ddpm_discrete"}


@pytest.fixture
def conversion(checkpoint):
    """A small conversion that passes for one of an official configuration."""

    def build(name, **changes):
        config = official_config(name)
        recorded = RECORDED[config["model"]["name"]]
        small = convert(checkpoint(recorded), description(recorded)["config"])
        pipeline = type(small.pipeline)(small.pipeline.unet, build_scheduler(config))
        return dataclasses.replace(small, pipeline=pipeline, config=config, config_name=name, **changes)

    return build


def test_the_headline_numbers():
    assert paper_row("ve/cifar10_ncsnpp_deep_continuous").fid == 2.20
    assert paper_row("ve/cifar10_ncsnpp_deep_continuous").inception_score == 9.89
    assert paper_row("subvp/cifar10_ddpmpp_deep_continuous").bits_per_dim == 2.99


def test_rows_belong_to_configurations():
    known = [name for name in official_config_names() if paper_row(name) is not None]
    assert len(known) == 16
    assert paper_row(None) is None and paper_row("ve/cifar10_ddpm") is None
    for name in known:
        row = paper_row(name)
        if row.bits_per_dim is not None:  # the likelihood is that of the ODE: never one without the other
            assert row.fid_ode is not None and not name.startswith("ve/")


@pytest.mark.parametrize(
    "name, title, cells",
    [
        (
            "ve/cifar10_ncsnpp_deep_continuous",
            "NCSN++ deep with the VE SDE in continuous time on CIFAR-10",
            "2.20 | 9.89 | - | -",
        ),
        (
            "vp/cifar10_ddpmpp_continuous",
            "DDPM++ with the VP SDE in continuous time on CIFAR-10",
            "2.55 | 9.58 | 3.93 | 3.16",
        ),
        ("vp/ddpm/cifar10", "DDPM with the VP SDE in discrete time on CIFAR-10", "3.24 | - | 3.37 | 3.28"),
        (
            "subvp/cifar10_ddpmpp_deep_continuous",
            "DDPM++ deep with the sub-VP SDE in continuous time on CIFAR-10",
            "2.41 | 9.57 | 2.92 | 2.99",
        ),
    ],
)
def test_row_and_settings(conversion, name, title, cells):
    card = model_card(conversion(name))
    assert f"\n# {title}\n" in card
    assert f"| {cells} |\n" in card
    assert "none was measured on this repository" in card
    assert f"`{paper_row(name).official_name or name}`" in card
    config = official_config(name)
    for key, value in (("predictor", config["sampling"]["predictor"]), ("snr", config["sampling"]["snr"])):
        assert f"| `{key}` | `{value}` |" in card


def test_256_pixels_want_the_smaller_snr(conversion):
    card = model_card(conversion("ve/church_ncsnpp_continuous"))
    assert "| `snr` | `0.075` |" in card
    assert "LSUN church outdoor" in card and "with pictures and without numbers" in card


@pytest.mark.parametrize(
    "step, number, words",
    [
        (1300000, 26, "`checkpoint_26`, which is the last one of its training"),
        (400000, 8, "`checkpoint_8`, which is not the last one of its training"),
        (400001, None, ""),
        (None, None, ""),
    ],
)
def test_which_of_the_two_checkpoints(conversion, step, number, words):
    """FID belongs to one, likelihoods to another."""
    found = conversion("vp/cifar10_ddpmpp_continuous", step=step)
    assert checkpoint_number(found) == number
    card = model_card(found)
    assert words in card and ("This file has the step" in card) is (number is not None)


def test_raw_weights_do_not_claim_the_row(conversion):
    card = model_card(conversion("vp/cifar10_ddpmpp_continuous", use_ema=False))
    assert "this repository holds the raw ones" in card


@pytest.mark.parametrize("layout", ["diffusers_sde", "native", "remote_code"])
def test_the_code_is_that_of_the_layout(conversion, layout):
    card = model_card(conversion("ve/ffhq_256_ncsnpp_continuous"), layout, "somebody/model", SampleGrid("s.png", 7))
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    compile(code, "card", "exec")
    assert 'from_pretrained("somebody/model"' in code
    assert ("import diffusers_sde" in code) is (layout == "diffusers_sde")
    assert ("trust_remote_code=True" in code) is (layout == "remote_code")
    assert "![Samples](s.png)" in card and "Drawn in 7 steps" in card


def test_no_row_no_claim(conversion):
    assert "None that belong to this configuration are known" in model_card(conversion("ve/cifar10_ddpm"))
