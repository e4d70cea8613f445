"""`diffusers-sde evaluate` from end to end, with a tiny network and an extractor of the test's own."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

import diffusers_sde
from diffusers_sde import ScoreSdePipeline, ScoreSdeVeScheduler
from diffusers_sde.evaluation import sample_shards, score_loss
from diffusers_sde_cli.evaluate import evaluate
from tests.tiny import tiny_network

EXTRACTOR = """
from diffusers_sde.evaluation.extractors import Features

class Halves:
    name, fingerprint, num_features = "halves", "0" * 64, 2
    def __call__(self, images):
        x = images.float() / 255
        features = x.unflatten(-1, (2, -1)).mean(dim=(1, 2, 4))
        return Features(features, 10 * features)

def make(device):
    return Halves()
"""
ALL = ("--metrics", "loss,bpd,fid,is,kid,precision_recall")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Options that name a model, a data set and an extractor."""
    folder = tmp_path_factory.mktemp("given")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    for split, images in (("train", pixels[:8]), ("test", pixels[8:])):
        pictures = [Image.fromarray(image) for image in images]
        dataset = Dataset.from_dict({"picture": pictures}, features=Features({"picture": ImageFeature()}))
        dataset.to_parquet(folder / "data" / f"{split}.parquet")
    network = tiny_network(in_channels=1, out_channels=1)
    ScoreSdePipeline(network, ScoreSdeVeScheduler(sigma_max=2.0)).save_pretrained(folder / "model")
    (folder / "own_extractor.py").write_text(EXTRACTOR)
    sys.path.insert(0, str(folder))
    options = {"model": folder / "model", "data": folder / "data", "extractor": "own_extractor:make"}
    options |= {"bpd-method": "elbo", "num-samples": 10, "steps": 2, "shard-size": 4, "batch-size": 3}
    yield [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    sys.path.remove(str(folder))


def run(*args, expect=0, **environment):
    runner = CliRunner(env={name: str(value) for name, value in environment.items()})
    result = runner.invoke(evaluate, [str(arg) for arg in args])
    assert result.exit_code == expect, result.output
    return result.output


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    """Text and path of a result that was measured without an interruption."""
    output = tmp_path_factory.mktemp("whole") / "result.json"
    return run(*given, *ALL, "--output", output), output


def test_all_metrics_and_where_they_come_from(whole, given):
    text, output = whole
    result = json.loads(output.read_text())
    names = ["loss", "bits_per_dim", "fid", "inception_score", "kid", "precision", "recall"]
    assert list(result["metrics"]) == names
    assert all(np.isfinite(entry["value"]) for entry in result["metrics"].values())
    assert all(name in text for name in names) and f"{result['metrics']['fid']['value']:.4f}" in text
    assert len(result["metrics"]["loss"]["levels"]) == 10
    provenance = result["provenance"]
    assert provenance["extractor"] == {"name": "halves", "sha256": "0" * 64, "num_features": 2}
    assert provenance["samples"]["num_images"] == 10 and provenance["samples"]["mean_nfe"] == 4
    assert provenance["samples"]["source"]["sampler"]["steps"] == 2
    assert provenance["reference"]["split"] == "train" and provenance["reference"]["num_images"] == 8
    assert provenance["loss"]["split"] == "test" and provenance["loss"]["num_images"] == 4
    assert provenance["bits_per_dim"]["method"] == "elbo"
    assert provenance["model"]["name"] == given[1] and provenance["model"]["averaging"] is None
    assert provenance["device"] == "cpu" and provenance["seed"] == 0
    assert {"diffusers_sde", "torch", "diffusers"} <= set(provenance["versions"])
    assert any("biased upwards" in note for note in result["notes"])


def test_the_same_command_again_measures_nothing(whole, given, monkeypatch):
    _, output = whole
    before = output.read_text()
    for owner, name in (
        (sample_shards.SampleShards, "_draw_batch"),
        (score_loss.ScoreLossEvaluation, "_measure"),
        (sys.modules["own_extractor"].Halves, "__call__"),
    ):
        monkeypatch.setattr(owner, name, lambda *args: pytest.fail("measured again"))
    output.rename(output.with_name("before.json"))
    try:
        run(*given, *ALL, "--output", output)
        assert output.read_text() == before
    finally:
        output.with_name("before.json").replace(output)


@pytest.mark.parametrize(
    "owner, name, at", [("shards", "_draw_batch", 3), ("loss", "_measure", 2), ("extractor", "__call__", 4)]
)
def test_an_interrupted_run_gives_the_same_numbers(whole, given, tmp_path, monkeypatch, owner, name, at):
    classes = {"shards": sample_shards.SampleShards, "loss": score_loss.ScoreLossEvaluation}
    owner = classes.get(owner) or sys.modules["own_extractor"].Halves
    original, calls = getattr(owner, name), []

    def interrupted(self, argument):
        calls.append(argument)
        if len(calls) == at:
            raise RuntimeError("killed")
        return original(self, argument)

    output = tmp_path / "result.json"
    monkeypatch.setattr(owner, name, interrupted)
    run(*given, *ALL, "--output", output, expect=1)
    assert len(calls) == at and not output.exists()
    monkeypatch.setattr(owner, name, original)
    run(*given, *ALL, "--output", output)
    assert output.read_text() == whole[1].read_text()


def test_processes_share_the_work_and_never_wait(whole, given, tmp_path):
    output = tmp_path / "result.json"
    text = run(*given, *ALL, "--output", output, RANK=1, WORLD_SIZE=2, LOCAL_RANK=1)
    assert "process 1 of 2 has done its share" in text and not output.exists()
    shards = sorted(path.name for path in (tmp_path / "result.json.parts/samples").glob("shard-*"))
    assert shards == ["shard-00001.safetensors"]
    run(*given, *ALL, "--output", output, RANK=0, WORLD_SIZE=2, LOCAL_RANK=0)
    two, one = (json.loads(path.read_text()) for path in (output, whole[1]))
    for name, entry in one["metrics"].items():
        # Samples are the same bits; rows of losses are measured in other batches, equal up to rounding.
        tolerance = 1e-5 if name in ("loss", "bits_per_dim") else 0
        assert two["metrics"][name]["value"] == pytest.approx(entry["value"], rel=tolerance, abs=0)
    text = run(*given, "--metrics", "is", "--output", tmp_path / "b.json", RANK=1, WORLD_SIZE=2)
    assert "process 1 of 2 has done its share" in text and not (tmp_path / "b.json").exists()


def test_given_images_are_measured_without_a_model(whole, given, tmp_path):
    shards = whole[1].with_name("result.json.parts") / "samples"
    common = [*given[2:6], "--metrics", "fid", "--shard-size", 3, "--output", tmp_path / "a.json"]
    run(*common, "--samples", shards)
    result, expected = (json.loads(path.read_text()) for path in (tmp_path / "a.json", whole[1]))
    assert result["metrics"]["fid"]["value"] == pytest.approx(expected["metrics"]["fid"]["value"], rel=1e-9)
    assert "model" not in result["provenance"]
    assert result["provenance"]["samples"]["mean_nfe"] == 4
    assert (
        result["provenance"]["samples"]["source"]["weights_sha256"]
        == expected["provenance"]["model"]["weights_sha256"]
    )
    images = sample_shards.ShardImages(sample_shards.open_shards(shards))
    (tmp_path / "pictures").mkdir()
    for i in range(10):
        Image.fromarray(images[i][0].numpy()).save(tmp_path / "pictures" / f"{i}.png")
    run(*common, "--samples", tmp_path / "pictures", "--overwrite")
    assert json.loads((tmp_path / "a.json").read_text())["metrics"] == result["metrics"]


def test_statistics_of_a_file(whole, given, tmp_path):
    (statistics,) = whole[1].with_name("result.json.parts").glob("reference-*.npz")
    options = ["--metrics", "fid,kid", "--work-dir", whole[1].with_name("result.json.parts")]
    run(*given[:2], *given[4:], *options, "--statistics", statistics, "--output", tmp_path / "a.json")
    result, expected = (json.loads(path.read_text()) for path in (tmp_path / "a.json", whole[1]))
    assert result["metrics"] == {name: expected["metrics"][name] for name in ("fid", "kid")}
    hashes = [r["provenance"]["reference"]["sha256"] for r in (result, expected)]
    assert hashes[0] == hashes[1]


def test_the_probability_flow(given, tmp_path):
    options = [*given[:6], "--metrics", "is", "--num-samples", 3, "--sampler", "ode", "--output", tmp_path / "a.json"]
    run(*options)
    samples = json.loads((tmp_path / "a.json").read_text())["provenance"]["samples"]
    assert samples["source"]["sampler"] == {"name": "ode", "solver": "adams", "denoise": False}
    assert samples["mean_nfe"] > 4
    assert "--steps goes with --sampler pc only" in run(*options, "--steps", 3, expect=1)


def test_results_side_by_side(whole, given, tmp_path):
    run(*given, "--metrics", "fid,loss", "--num-samples", 6, "--seed", 1, "--output", tmp_path / "b.json")
    text = run("--compare", whole[1], tmp_path / "b.json")
    assert "warning: samples.num_images differs (10, 6): fid cannot be compared." in text
    assert "note: seed differs (0, 1)." in text
    assert "RESULTS go with --compare" in run(whole[1], expect=2)
    assert "needs two results" in run("--compare", whole[1], expect=1)


def test_a_row_of_the_paper_that_was_cut(given, tmp_path):
    assert "table3/ncsnpp-cont-deep-ve" in run("--paper-row", "list")
    row = ["--paper-row", "table1/ve/ancestral/p1000"]
    run(*given[:8], *given[8:], *row, "--output", tmp_path / "a.json")
    result = json.loads((tmp_path / "a.json").read_text())
    assert list(result["metrics"]) == ["fid"]
    sampler = result["provenance"]["samples"]["source"]["sampler"]
    assert sampler["predictor"] == "ancestral_sampling" and sampler["corrector"] == "none"
    paper = result["paper_row"]
    assert paper["published"] == {"fid": {"value": 4.98, "std": 0.06}} and paper["config"] == "ve/cifar10_ddpm"
    assert [departure.split(",")[0] for departure in paper["departures"]] == [
        "num_samples is 10",
        "extractor is own_extractor:make",
        "steps is 2",
    ]
    text = run(*given, *row, "--output", tmp_path / "a.json")
    assert "4.9800 +- 0.0600" in text.replace("\n", "") and "the numbers do not reproduce it" in text


@pytest.mark.parametrize(
    "options, message",
    [
        (["--metrics", "fid,psnr"], "--metrics has psnr; allowed are loss, bpd, fid, is, kid, precision_recall"),
        (["--metrics", ","], "--metrics has nothing"),
        (["--metrics", "loss,fid"], "loss needs --data: what to measure on."),
        (["--metrics", "fid"], "fid needs --data or --statistics: what to compare with."),
        (["--metrics", "is", "--extractor", "nets:none"], "there is no extractor nets:none"),
        (["--metrics", "is", "--paper-row", "best"], "there is no row 'best'"),
    ],
)
def test_what_is_missing_is_said_before_any_work(given, tmp_path, options, message):
    text = run(*given[:2], *options, "--output", tmp_path / "a.json", expect=1)
    assert message in text and not list(tmp_path.iterdir())
    assert "--output is missing" in run(*options[:2], expect=2)


def test_other_settings_are_refused(whole, given):
    text = run(*given, *ALL, "--output", whole[1], "--seed", 1, expect=1)
    assert "holds rows of other settings (seed differ)" in text
    text = run(*given, "--metrics", "is", "--output", whole[1], "--snr", 0.3, expect=1)
    assert "holds shards of other settings (sampler, scheduler_config differ)" in text
    assert "it has 4." in run(*given, *ALL, "--output", whole[1], "--num-images", 9, expect=1)


def test_the_script_takes_the_same_options(given, capsys, tmp_path):
    script = runpy.run_path(str(Path(diffusers_sde.__file__).parents[2] / "training" / "eval_sde.py"))["main"]
    with pytest.raises(SystemExit) as end:
        script([*given, "--metrics", "loss", "--output", str(tmp_path / "a.json")])
    assert end.value.code == 0
    with pytest.raises(SystemExit) as end:
        script(["--bpd", *given[:4], "--method", "elbo", "--num-times", "4", "--output", str(tmp_path / "b.json")])
    assert end.value.code == 0
    assert json.loads((tmp_path / "b.json").read_text())["num_images"] == 4
    assert "loss" in json.loads((tmp_path / "a.json").read_text())["metrics"]
