"""`diffusers-sde sample`: files, reproducibility, resuming, messages."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from diffusers_sde import NCSNppModel, ScoreSdePipeline, ScoreSdeSubVpScheduler, ScoreSdeVeScheduler
from diffusers_sde_cli.main import main

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "attn_resolutions": (4,),
    "init_scale": 1.0,  # an output that depends on the input from the start
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    scheduler = ScoreSdeVeScheduler(sigma_max=2.0, num_train_timesteps=5)
    ScoreSdePipeline(NCSNppModel(**TINY), scheduler).save_pretrained(folder)
    return folder


def run(*args, expect=0):
    result = CliRunner().invoke(main, ["sample", *map(str, args)])
    assert result.exit_code == expect, result.output
    return result.output


def pixels(folder, index):
    return np.asarray(Image.open(folder / f"{index:05d}.png"))


def test_images_do_not_depend_on_the_batch(model, tmp_path):
    run("--model", model, "--num-images", 3, "--batch-size", 3, "--output", tmp_path / "a")
    run("--model", model, "--num-images", 5, "--batch-size", 2, "--output", tmp_path / "b")
    for index in range(3):
        # Convolutions may sum in another order for another batch size: one grey level at most.
        difference = pixels(tmp_path / "a", index).astype(int) - pixels(tmp_path / "b", index)
        assert np.abs(difference).max() <= 1
    assert np.abs(pixels(tmp_path / "a", 0).astype(int) - pixels(tmp_path / "a", 1)).max() > 10


def test_the_seed_changes_the_images(model, tmp_path):
    run("--model", model, "--num-images", 1, "--output", tmp_path / "a")
    run("--model", model, "--num-images", 1, "--seed", 1, "--output", tmp_path / "b")
    assert np.abs(pixels(tmp_path / "a", 0).astype(int) - pixels(tmp_path / "b", 0)).max() > 10


def test_a_run_goes_on_with_the_missing_images_only(model, tmp_path):
    run("--model", model, "--num-images", 3, "--output", tmp_path)
    expected = pixels(tmp_path, 1)
    (tmp_path / "00001.png").unlink()
    kept = (tmp_path / "00000.png").stat().st_mtime_ns
    run("--model", model, "--num-images", 3, "--output", tmp_path)
    assert np.abs(pixels(tmp_path, 1).astype(int) - expected).max() <= 1
    assert (tmp_path / "00000.png").stat().st_mtime_ns == kept


def test_other_settings_do_not_touch_what_is_there(model, tmp_path):
    run("--model", model, "--num-images", 1, "--output", tmp_path)
    before = pixels(tmp_path, 0)
    message = run("--model", model, "--num-images", 1, "--steps", 6, "--output", tmp_path, expect=1)
    assert "steps differ" in message
    assert "--overwrite" in message
    assert np.array_equal(pixels(tmp_path, 0), before)
    run("--model", model, "--num-images", 1, "--steps", 6, "--output", tmp_path, "--overwrite")
    assert json.loads((tmp_path / "settings.json").read_text())["steps"] == 6
    assert not np.array_equal(pixels(tmp_path, 0), before)


def test_the_grid_shows_all_images_enlarged(model, tmp_path):
    run("--model", model, "--num-images", 3, "--output", tmp_path)
    grid = np.asarray(Image.open(tmp_path / "grid.png"))
    assert grid.shape == (512, 512, 3)  # 2 x 2 places of 8 pixels, 32 times
    assert np.array_equal(grid[:256:32, 256::32], pixels(tmp_path, 1))
    assert not grid[256:, 256:].any()


def test_scheduler_settings_can_be_overridden(model, tmp_path):
    options = ("--predictor", "euler_maruyama", "--corrector", "none", "--probability-flow")
    run("--model", model, "--num-images", 1, *options, "--output", tmp_path)
    scheduler = json.loads((tmp_path / "settings.json").read_text())["scheduler"]
    assert (scheduler["predictor"], scheduler["corrector"]) == ("euler_maruyama", "none")
    assert scheduler["probability_flow"] is True


def test_half_precision(model, tmp_path):
    run("--model", model, "--num-images", 1, "--dtype", "bfloat16", "--output", tmp_path)
    assert pixels(tmp_path, 0).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--predictor", "magic"), ("euler_maruyama", "reverse_diffusion", "ancestral_sampling")),
        (("--num-images", 0), ("--num-images",)),
        (("--steps", -1), ("--steps",)),
        (("--dtype", "int8"), ("float32", "bfloat16")),
    ],
)
def test_bad_options_list_what_is_allowed(model, tmp_path, options, words):
    message = run("--model", model, "--output", tmp_path / "new", *options, expect=2)
    assert all(word in message for word in words)
    assert not (tmp_path / "new").exists()


def test_a_missing_model_is_one_line(tmp_path):
    message = run("--model", tmp_path / "nothing", "--output", tmp_path / "new", expect=1)
    assert "Traceback" not in message
    assert "nothing" in message


def test_a_combination_without_meaning_is_refused(tmp_path):
    network = NCSNppModel(**TINY, center_input_sample=False, scale_by_sigma=False, time_embedding_type="positional")
    ScoreSdePipeline(network, ScoreSdeSubVpScheduler()).save_pretrained(tmp_path / "model")
    options = ("--model", tmp_path / "model", "--predictor", "ancestral_sampling", "--output", tmp_path / "new")
    assert "reverse_diffusion" in run(*options, expect=1)
