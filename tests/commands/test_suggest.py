"""`diffusers-sde suggest noise` and `suggest snr`: what they print and write, and what they refuse."""

import json
import shlex

import numpy as np
import pytest
from click.testing import CliRunner

from diffusers_sde import ScoreSdePipeline, ScoreSdeVeScheduler
from diffusers_sde.training import parse_args
from diffusers_sde_cli.suggest import suggest
from tests.tiny import GaussianNetwork


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 grey images of 7 x 6 pixels as npz, image 3 black and image 5 white."""
    images = np.random.default_rng(0).integers(100, 120, (40, 7, 6), dtype=np.uint8)
    images[3], images[5] = 0, 255
    path = tmp_path_factory.mktemp("some data") / "images.npz"
    np.savez(path, images=images)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    scheduler = ScoreSdeVeScheduler(sigma_max=2.0, num_train_timesteps=8, snr=0.2)
    ScoreSdePipeline(GaussianNetwork("ve", 0.5, 0.1), scheduler).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """A test split of images like those of the model."""
    import datasets
    from PIL import Image

    random = np.random.default_rng(1)
    arrays = (255 * (0.5 + 0.1 * random.standard_normal((48, 8, 8)))).clip(0, 255).round().astype(np.uint8)
    features = datasets.Features({"image": datasets.Image()})
    folder = tmp_path_factory.mktemp("parquet")
    rows = datasets.Dataset.from_dict({"image": [Image.fromarray(array) for array in arrays]}, features=features)
    rows.to_parquet(folder / "test.parquet")
    return folder


def run(*args, expect=0):
    result = CliRunner().invoke(suggest, [*map(str, args)])
    assert result.exit_code == expect, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result


def words(text):
    """The text without the lines of tables, and its own breaks."""
    return " ".join(text.replace("│", " ").split())


def test_json_has_the_distance_and_flags_that_train_sde_takes(data):
    report = json.loads(run("noise", "--data", data, "--json").stdout)
    largest = report["largest_distance"]
    assert largest["distance"] == pytest.approx(42**0.5) and sorted(largest["pair"]) == [3, 5] and largest["exact"]
    assert (report["data"]["height"], report["data"]["width"], report["data"]["channels"]) == (8, 8, 1)
    assert report["data"]["sizes"] == [[7, 6, 40]] and report["data"]["pad"]
    assert report["ve"]["sigma_max"] == 6.49
    for flags in (report["ve"]["flags"], report["ve"]["ald_flags"], report["vp"]["flags"], report["subvp"]["flags"]):
        args = parse_args(shlex.split(f"{report['data_flags']} {flags}"))
        assert (args.data, args.resolution, args.pad, args.channels) == (str(data), 8, True, 1)
    centred = json.loads(run("noise", "--data", data, "--json", "--data-range=-1,1").stdout)
    assert centred["ve"]["sigma_max"] == 13.0 and centred["vp"] == report["vp"]


def test_the_table_says_where_its_numbers_come_from(data):
    text = words(run("noise", "--data", data).stdout)
    for part in (
        "VE sigma_max",
        "6.49",
        "Technique 2",
        "all pairs of 40 images",
        "padded to 8 x 8",
        "--sde subvp --beta_min 0.1 --beta_max 20",
    ):
        assert part in text


def test_a_subset_gives_a_lower_bound_that_sweeps_improve(data):
    """The two extremes are among the 40 but hardly both among the 4: the sweeps find them all the same."""
    report = json.loads(run("noise", "--data", data, "--num-images", 4, "--seed", 1, "--json").stdout)
    largest = report["largest_distance"]
    assert largest["num_images"] == 4 and not largest["exact"] and largest["upper_bound"] is None
    assert sorted(largest["pair"]) == [3, 5] and largest["distance"] == pytest.approx(42**0.5)
    text = words(run("noise", "--data", data, "--num-images", 4, "--seed", 1).stdout)
    assert ">= 6.4807" in text and "A lower bound" in text
    cut = json.loads(run("noise", "--data", data, "--max-pairs", 1, "--json").stdout)["largest_distance"]
    assert not cut["exact"] and cut["distance"] < cut["upper_bound"]
    by_memory = run("noise", "--data", data, "--memory-limit", 64 * 5 / 1e9, "--json").stdout
    assert json.loads(by_memory)["largest_distance"]["num_images"] == 5


def test_sizes_and_data_that_do_not_fit_are_refused(data, tmp_path):
    assert "--size is 4 x 6" in run("noise", "--data", data, "--size", "4x6", expect=1).output
    report = json.loads(run("noise", "--data", data, "--size", "4x6", "--resize", "--json").stdout)
    assert report["data_flags"].endswith("--resolution 4x6 --center_crop --channels 1")
    assert "neither a number of pixels" in run("noise", "--data", data, "--size", "4by6", expect=2).output
    assert "none.npz" in run("noise", "--data", tmp_path / "none.npz", expect=1).output


def test_tuning_writes_values_and_says_how_clear_they_are(model, parquet, tmp_path):
    output = tmp_path / "out" / "snr.json"
    common = ("snr", "--model", model, "--data", parquet, "--num-samples", 16, "--output", output)
    text = run(*common, "--snr-grid", "0,0.5,5", "--refine", 0).stdout
    record = json.loads(output.read_text())
    assert sorted(record["points"]) == ["0", "0.5", "5"]
    none, good, strong = (record["points"][snr]["distance"] for snr in ("0", "0.5", "5"))
    assert strong > 2 * good and good < none and good < 1.5 * record["floor"]
    assert "Best: --snr 0.5" in text and "no corrector" in text and "held-back" in text
    settings = record["settings"]
    assert (settings["num_data"], settings["steps"], settings["metric"]) == (48, 8, "sliced")
    run(*common, "--snr-grid", "0,0.5,5", "--refine", 1)
    assert sorted(json.loads(output.read_text())["points"]) == ["0", "0.25", "0.5", "2.75", "5"]
    assert "seed differ" in run(*common, "--seed", 1, expect=1).output


def test_what_tuning_refuses(model, parquet, tmp_path):
    common = ("snr", "--model", model, "--data", parquet, "--output", tmp_path / "snr.json")
    assert "at least 50 are needed" in run(*common, "--num-samples", 25, expect=1).output
    assert "Choose one by --corrector" in run(*common, "--num-samples", 16, "--corrector", "none", expect=1).output
    assert "not a list like" in run(*common, "--snr-grid", "0.1,-1", expect=2).output
    message = run(*common, "--num-samples", 16, "--metric", "frechet", expect=1).output
    assert "the classifier takes (1, 32, 32)" in words(message)
    assert not (tmp_path / "snr.json").exists()
