"""The rows of the paper's tables are data: they agree with the official configurations and the official README."""

import pytest

from diffusers_sde.configs import official_config, official_config_names
from diffusers_sde.conversion.paper import paper_row as published_row
from diffusers_sde.evaluation.evaluate_command import METRICS
from diffusers_sde.evaluation.paper_table import beside_published, paper_row, paper_rows, with_row
from diffusers_sde.schedulers import ScoreSdeSubVpScheduler, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from diffusers_sde_cli.evaluate import evaluate

ROWS = paper_rows()
SCHEDULERS = {"ve": ScoreSdeVeScheduler, "vp": ScoreSdeVpScheduler, "subvp": ScoreSdeSubVpScheduler}
KEY_OF_METRIC = {"fid": "fid", "is": "inception_score", "bpd": "bits_per_dim"}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_complete(name):
    row = ROWS[name]
    assert row["config"] in official_config_names()
    assert name.startswith(row["table"].lower().replace(" ", ""))
    settings = row["settings"]
    assert set(settings) <= {parameter.name for parameter in evaluate.params}
    assert set(settings["metrics"]) <= set(METRICS)
    assert {KEY_OF_METRIC[metric] for metric in settings["metrics"]} == set(row["published"])
    assert settings["num_samples"] == 50000 and settings["extractor"] == "inception"
    chosen = {key: settings[key] for key in ("predictor", "corrector", "snr", "probability_flow") if key in settings}
    if settings["sampler"] == "pc":
        SCHEDULERS[row["config"].split("/")[0]](**chosen)  # refuses what has no meaning
        assert ("snr" in settings) == (settings["corrector"] != "none")
    else:
        assert not chosen and settings["solver"] == "dopri5"


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("table3")])
def test_table_3_has_the_samplers_of_the_official_configurations(name):
    row, settings = ROWS[name], ROWS[name]["settings"]
    config = official_config(row["config"])
    sampling = config["sampling"]
    assert settings["sampler"] == sampling["method"] and settings["steps"] == config["model"]["num_scales"]
    for key in ("predictor", "corrector", "probability_flow"):
        assert settings[key] == sampling[key]
    if settings["corrector"] != "none":
        assert settings["snr"] == sampling["snr"] and settings["correct_steps"] == sampling["n_steps_each"]
    assert settings["denoise"] == sampling["noise_removal"]
    assert settings["num_samples"] == config["eval"]["num_samples"]
    known = published_row(row["config"])
    assert row["published"] == {"fid": {"value": known.fid}, "inception_score": {"value": known.inception_score}}


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("table2")])
def test_table_2_has_the_numbers_of_the_official_readme(name):
    known = published_row(ROWS[name]["config"])
    expected = {"fid": {"value": known.fid_ode}, "bits_per_dim": {"value": known.bits_per_dim}}
    assert ROWS[name]["published"] == expected


def test_table_1_compares_samplers_of_equal_cost():
    """P2000, C2000 and PC1000 evaluate the network 2000 times, P1000 half as often."""
    for name, row in ROWS.items():
        if row["table"] in ("Table 1", "Table 4"):
            settings = row["settings"]
            per_step = (settings["predictor"] != "none") + settings.get("correct_steps", 0)
            assert settings["steps"] * per_step == (1000 if name.endswith("/p1000") else 2000)
            assert set(row["published"]["fid"]) == {"value", "std"}
    assert sum(row["table"] in ("Table 1", "Table 4") for row in ROWS.values()) == 20


def test_options_of_the_user_go_before_the_row_and_are_told():
    row = paper_row("table3/ncsnpp-cont-deep-ve")
    defaults = dict.fromkeys(row["settings"]) | {"output": "x"}
    provenance = {"model": {"scheduler": "ScoreSdeVeScheduler"}}
    full = with_row(defaults, row, set())
    assert full["steps"] == 1000 and full["output"] == "x"
    assert beside_published(row, full, provenance)["departures"] == []
    cut = with_row({**defaults, "num_samples": 1000}, row, {"num_samples"})
    assert cut["num_samples"] == 1000 and cut["steps"] == 1000
    beside = beside_published(row, cut, {"model": {"scheduler": "ScoreSdeVpScheduler"}})
    assert beside["departures"] == [
        "num_samples is 1000, and 50000 in the row: the numbers do not reproduce it.",
        "the model has a ScoreSdeVpScheduler; the row is one of ve/cifar10_ncsnpp_deep_continuous, with a "
        "ScoreSdeVeScheduler.",
    ]
    assert beside["published"]["fid"] == {"value": 2.2}
    with pytest.raises(ValueError, match=r"there is no row 'best'; --paper-row list"):
        paper_row("best")
