"""Likelihood of a data set: rows, processes, resuming, provenance, and the command line."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffusers_sde import NCSNppModel, ScoreSdeLikelihoodPipeline, ScoreSdeVeScheduler, ScoreSdeVpScheduler
from diffusers_sde.evaluation import LikelihoodEvaluation, SplitImages
from diffusers_sde.evaluation.likelihood import summary
from diffusers_sde_cli.main import main
from tests.tiny import GaussianNetwork

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8))


def evaluation(folder, **options):
    network = GaussianNetwork("vp", 0.0, 0.5, center_input_sample=False)
    pipeline = ScoreSdeLikelihoodPipeline(network, ScoreSdeVpScheduler())
    settings = {"batch_size": 2, "options": {"num_probes": 2}, **options}
    result = LikelihoodEvaluation(pipeline, IMAGES, folder / "bpd.json", **settings)
    result.claim()
    return result


def test_rows_are_the_pipelines_and_the_summary_is_theirs(tmp_path):
    result = evaluation(tmp_path).run()
    assert [row["index"] for row in result["rows"]] == [0, 1, 2, 3, 4]
    bits = np.array([row["bits_per_dim"] for row in result["rows"]])
    assert result["bits_per_dim"]["mean"] == pytest.approx(bits.mean(), rel=1e-12)
    assert result["bits_per_dim"]["standard_error"] == pytest.approx(bits.std(ddof=1) / 5**0.5, rel=1e-9)
    assert 1 < bits.min() and bits.max() < 30
    assert json.loads((tmp_path / "bpd.json").read_text()) == result
    with (tmp_path / "bpd.csv").open() as file:
        assert [float(row["bits_per_dim"]) for row in csv.DictReader(file)] == bits.tolist()
    settings = result["settings"]
    assert settings["options"] == {"num_probes": 2} and settings["seed"] == 0
    assert {"diffusers_sde", "torch", "diffusers"} <= set(settings["versions"])
    assert settings["scheduler_config"]["beta_max"] == 20.0 and len(settings["weights_sha256"]) == 64


def test_two_processes_give_the_total_of_one(tmp_path):
    """In turn here; that neither waits for the other is what makes that a test."""
    one = evaluation(tmp_path / "a", batch_size=5).run()
    first, second = (evaluation(tmp_path / "b", process_index=i, num_processes=2) for i in (0, 1))
    assert first.run() is None
    assert not (tmp_path / "b" / "bpd.json").exists()
    two = second.run()
    for name in ("bits_per_dim", "log_likelihood"):
        for key in ("mean", "standard_error"):
            assert two[name][key] == pytest.approx(one[name][key], rel=1e-6)
    assert sorted(second.rows()) == [0, 1, 2, 3, 4]
    first_rows = (tmp_path / "b" / "bpd.json.parts" / "rows-0-of-2.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in first_rows] == [0, 2, 4]


def test_a_run_goes_on_after_a_crash(tmp_path):
    whole = evaluation(tmp_path / "a").run()
    interrupted = evaluation(tmp_path / "b", num_processes=2)
    interrupted.run()
    part = tmp_path / "b" / "bpd.json.parts" / "rows-0-of-2.jsonl"
    part.write_text(part.read_text()[:-20])  # the last line is cut off
    again = evaluation(tmp_path / "b")
    assert sorted(again.rows()) == [0, 2]
    measured = []
    again._measure, measure = lambda indices: measured.extend(indices) or measure(indices), again._measure
    assert again.run()["bits_per_dim"]["mean"] == pytest.approx(whole["bits_per_dim"]["mean"], rel=1e-6)
    assert measured == [1, 3, 4]
    resumed = evaluation(tmp_path / "b", num_processes=2)  # its own file had the torn line
    assert sorted(resumed.rows()) == [0, 1, 2, 3, 4]
    resumed.run()
    assert part.read_text().endswith("\n")


def test_more_images_can_be_asked_for_later(tmp_path):
    few = evaluation(tmp_path, num_images=2).run()
    many = evaluation(tmp_path).run()
    assert many["rows"][:2] == few["rows"]
    assert many["num_images"] == 5


def test_rows_of_other_settings_are_kept(tmp_path):
    evaluation(tmp_path).run()
    with pytest.raises(ValueError, match=r"holds rows of other settings \(seed differ\).*--overwrite"):
        evaluation(tmp_path, seed=1)
    other = evaluation(tmp_path / "c", seed=1)
    first = json.loads((tmp_path / "bpd.json").read_text())
    assert other.run()["rows"][0]["bits_per_dim"] != first["rows"][0]["bits_per_dim"]
    other.output, other.folder = tmp_path / "bpd.json", tmp_path / "bpd.json.parts"
    other.claim(overwrite=True)
    assert other.rows() == {}


def test_the_bound_and_a_network_that_fails(tmp_path):
    bound = evaluation(tmp_path / "a", method="elbo", options={"num_times": 4}).run()
    assert "nfe" not in bound["rows"][0] and math.isfinite(bound["bits_per_dim"]["mean"])
    rows = [{"bits_per_dim": v, "log_likelihood": v, "nfe": 3, "success": v is not None} for v in (1.0, None, 2.0)]
    result = summary(rows)
    assert result["bits_per_dim"]["mean"] == 1.5
    assert (result["num_not_finite"], result["num_not_converged"]) == (1, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_images": 6}, "num_images is 6; the split has 5 images"),
        ({"method": "both"}, "method is 'both'; allowed are 'ode', 'elbo'"),
        ({"process_index": 2, "num_processes": 2}, "process 2 of 2"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        evaluation(tmp_path, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Data sets and the command line
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Parquet of two splits, of 6 x 6 and 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("data")
    for split, size in (("train", 6), ("test", 8)):
        pictures = [Image.fromarray(image[0, :size, :size].numpy()) for image in IMAGES[:3]]
        dataset = Dataset.from_dict({"picture": pictures}, features=Features({"picture": ImageFeature()}))
        dataset.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_splits_are_read_as_they_are(data, tmp_path):
    test = SplitImages(str(data), "test", (8, 8), 1)
    assert len(test) == 3
    assert all(torch.equal(test[i], IMAGES[i]) for i in range(3))
    train = SplitImages(str(data), "train", (8, 8), 1)
    with pytest.raises(ValueError, match=r"image 0 has 6 x 6 pixels, the network takes 8 x 8. Pad small images"):
        train[0]
    padded = SplitImages(str(data), "train", (8, 8), 1, pad=True)[1]
    assert torch.equal(padded[:, 1:7, 1:7], IMAGES[1][:, :6, :6]) and not padded[:, 0].any()
    with pytest.raises(ValueError, match="no parquet file of split 'validation', only test-00000"):
        SplitImages(str(data), "validation", (8, 8), 1)
    (tmp_path / "test").mkdir()
    Image.fromarray(IMAGES[2, 0].numpy()).save(tmp_path / "test" / "a.png")
    assert torch.equal(SplitImages(str(tmp_path), "test", (8, 8), 1)[0], IMAGES[2])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    options = {"block_out_channels": (8, 8), "layers_per_block": 1, "attn_resolutions": (4,), "init_scale": 1.0}
    network = NCSNppModel(sample_size=8, in_channels=1, out_channels=1, **options)
    ScoreSdeLikelihoodPipeline(network, ScoreSdeVeScheduler(sigma_max=2.0)).save_pretrained(folder)
    return folder


def run(*args, expect=0, **environment):
    result = CliRunner(env={name: str(value) for name, value in environment.items()}).invoke(
        main, ["likelihood", *map(str, args)]
    )
    assert result.exit_code == expect, result.output
    return result.output


def test_the_command_alone_and_as_two_processes(data, model, tmp_path):
    common = ("--model", model, "--data", data, "--method", "elbo", "--num-times", 4)
    text = run(*common, "--output", tmp_path / "one.json")
    one = json.loads((tmp_path / "one.json").read_text())
    assert f"{one['bits_per_dim']['mean']:.4f}" in text and "3 images" in text
    assert one["settings"]["split"] == "test" and one["settings"]["model"] == str(model)
    text = run(*common, "--output", tmp_path / "two.json", RANK=1, WORLD_SIZE=2, LOCAL_RANK=1)
    assert "process 1 of 2 is done" in text
    run(*common, "--output", tmp_path / "two.json", RANK=0, WORLD_SIZE=2, LOCAL_RANK=0)
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["bits_per_dim"]["mean"] == pytest.approx(one["bits_per_dim"]["mean"], rel=1e-5)


def test_bad_options_are_one_line(data, model, tmp_path):
    common = ("--model", model, "--output", tmp_path / "x.json")
    assert "no parquet file of split 'dev'" in run(*common, "--data", data, "--split", "dev", expect=1)
    assert "the split has 3 images" in run(*common, "--data", data, "--num-images", 9, expect=1)
    assert "--solver" in run(*common, "--data", data, "--solver", "heun", expect=2)
    assert not (tmp_path / "x.json").exists()
