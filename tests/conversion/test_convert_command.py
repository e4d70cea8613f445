"""`diffusers-sde convert`: what is written, said and refused, and what a killed run leaves."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import SafetensorError

import diffusers_sde
from diffusers_sde import NoiseConditionalClassifier, ScoreSdePipeline
from diffusers_sde.configs import official_config_names
from diffusers_sde.conversion import convert, convert_classifier
from diffusers_sde.conversion.output import whole_folder
from diffusers_sde.store import locked_file
from diffusers_sde_cli.main import main
from tests.checkpoints import arrays, description, relative_error

NAME = "ve_ncsnpp_continuous"
NATIVE = "vp_ddpm_discrete"
ROOT = Path(diffusers_sde.__file__).parents[2]


def run(*args, expect=0):
    result = CliRunner().invoke(main, ["convert", *map(str, args)])
    assert result.exit_code == expect, result.output
    return result.output


@pytest.fixture
def arguments(checkpoint, tmp_path):
    """CHECKPOINT --config FILE of a recorded checkpoint."""

    def build(name=NAME):
        path = tmp_path / f"{name}.json"
        config = description(name)
        path.write_text(json.dumps(config.get("config", config)))
        return [checkpoint(name), "--config", path]

    return build


def assert_converted(folder, name=NAME, key="output_ema"):
    recorded = arrays(name)
    pipe = DiffusionPipeline.from_pretrained(folder)
    with torch.no_grad():
        assert relative_error(pipe.unet(recorded["x"], recorded["labels"]).sample, recorded[key]) < 2e-5
    return pipe


# ---------------------------------------------------------------------------------------------------------------------
# What is written and said
# ---------------------------------------------------------------------------------------------------------------------


def test_folder_and_summary(arguments, tmp_path):
    text = run(*arguments(), "--output", tmp_path / "out")
    assert type(assert_converted(tmp_path / "out")) is ScoreSdePipeline
    for words in ("NCSN++ (NCSNppModel)", "48,755", "VE SDE in continuous time", "moving average", "0.999", "pytorch"):
        assert words in text
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]  # nothing is left beside it


def test_raw_weights(arguments, tmp_path):
    assert "raw" in run(*arguments(), "--output", tmp_path / "out", "--no-ema")
    assert_converted(tmp_path / "out", key="output")


def test_native_layout(arguments, tmp_path):
    run(*arguments(NATIVE), "--output", tmp_path / "out", "--layout", "native", "--verify", "--verify-steps", 2)
    assert type(assert_converted(tmp_path / "out", NATIVE)).__name__ == "DDPMPipeline"
    assert "import diffusers_sde" not in (tmp_path / "out" / "README.md").read_text()


def test_native_layout_is_refused_with_the_reason(arguments, tmp_path):
    text = run(*arguments(), "--output", tmp_path / "out", "--layout", "native", expect=1)
    assert "`progressive` is 'none' and must be 'output_skip'" in text
    assert not (tmp_path / "out").exists()


def test_remote_code_layout(arguments, tmp_path):
    run(*arguments(), "--output", tmp_path / "out", "--layout", "remote_code")
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"][0] == "pipeline"
    assert "trust_remote_code=True" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", [NAME, NATIVE, "subvp_ddpmpp_continuous", "jax_y_ncsnv2"])
def test_verify_draws_a_grid(arguments, tmp_path, name):
    run(*arguments(name), "--output", tmp_path / "out", "--verify", "--verify-steps", 3)
    grid = np.asarray(Image.open(tmp_path / "out" / "samples.png"))
    assert grid.shape == (32, 32, 3) and grid.std() > 1
    assert "![Samples](samples.png)" in (tmp_path / "out" / "README.md").read_text()
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out")  # the sampler of the check is not what is saved
    expected = convert(*arguments(name)[::2]).pipeline.scheduler
    assert all(pipe.scheduler.config[key] == expected.config[key] for key in expected.config if key[0] != "_")


def test_verify_finds_a_network_that_overflows(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers_sde.NCSNppModel._sigma", lambda self, level: torch.zeros_like(level))
    text = run(*arguments(), "--output", tmp_path / "out", "--verify", "--verify-steps", 3, expect=1)
    assert "NaN or infinite" in text
    assert not (tmp_path / "out").exists()


def test_classifier(checkpoint, tmp_path):
    path = checkpoint("jax_classifier")
    text = run(path, "--classifier", "--output", tmp_path / "out")
    assert "NoiseConditionalClassifier" in text and "681,658" in text
    found = NoiseConditionalClassifier.from_pretrained(tmp_path / "out").state_dict()
    expected = convert_classifier(path).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "NoiseConditionalClassifier.from_pretrained" in (tmp_path / "out" / "README.md").read_text()


def test_list():
    lines = run("--list").splitlines()
    assert [line.split()[0] for line in lines] == official_config_names()
    assert any("ve/cifar10_ncsnpp_deep_continuous" in line and "FID 2.20" in line for line in lines)


def test_the_script_does_the_same():
    script = ROOT / "conversion" / "convert_score_sde_checkpoint.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(script), "--list"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    assert result.stdout == run("--list")


# ---------------------------------------------------------------------------------------------------------------------
# What is refused
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["checkpoint", "--config", "--output"])
def test_missing_arguments(arguments, tmp_path, missing):
    path, *config = arguments()
    options = {"checkpoint": [path], "--config": config, "--output": ["--output", tmp_path / "out"]}
    del options[missing]
    text = run(*(argument for part in options.values() for argument in part), expect=2)
    assert f"{missing.upper() if missing == 'checkpoint' else missing} is missing" in text


def test_classifier_takes_no_configuration(arguments, tmp_path):
    assert "--classifier goes with" in run(*arguments(), "--classifier", "--output", tmp_path / "out", expect=2)


@pytest.mark.parametrize("config", ["ve/cifar10_ncsnpp_continous", "nowhere.json"])
def test_unknown_configuration(checkpoint, tmp_path, config):
    text = run(checkpoint(NAME), "--config", config, "--output", tmp_path / "out", expect=1)
    assert "'ve/cifar10_ncsnpp_continuous'" in text or "there is no configuration file nowhere.json" in text


def test_wrong_configuration_writes_nothing(checkpoint, tmp_path):
    text = run(checkpoint(NAME), "--config", "ve/cifar10_ncsnpp_continuous", "--output", tmp_path / "out", expect=1)
    assert "of another shape" in text and "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_output_that_is_not_empty(arguments, tmp_path):
    out = tmp_path / "out"
    run(*arguments(), "--output", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "--overwrite" in run(*arguments(), "--output", out, "--no-ema", expect=1)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    run(*arguments(), "--output", out, "--no-ema", "--overwrite")
    assert_converted(out, key="output")


def test_overwrite_spares_what_is_no_model(arguments, checkpoint, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    text = run(*arguments(), "--output", tmp_path / "home", "--overwrite", expect=1)
    assert "has no record of a conversion" in text and (tmp_path / "home" / "letter.txt").exists()
    assert "is a file" in run(*arguments(), "--output", tmp_path / "home" / "letter.txt", "--overwrite", expect=1)
    run(*arguments(), "--output", tmp_path / "out")
    path = tmp_path / "out" / "checkpoint.pth"
    path.write_bytes(checkpoint(NAME).read_bytes())
    options = arguments()[1:]
    assert "--overwrite would remove" in run(path, *options, "--output", tmp_path / "out", "--overwrite", expect=1)
    assert path.exists()


FOREIGN = ("left.txt", "unet/mine.txt", "history.jsonl", "checkpoint-2/unet/config.json", "notes/")


@pytest.mark.parametrize("name", FOREIGN)
def test_overwrite_spares_what_the_conversion_did_not_write(arguments, tmp_path, name):
    """Checkpoints of a run that was trained there, for instance; an edited card is no longer the conversion's."""
    out = tmp_path / "out"
    run(*arguments(), "--output", out)
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if name.endswith("/") else path.write_text("{}")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    text = " ".join(run(*arguments(), "--output", out, "--overwrite", expect=1).split())
    assert name.split("/")[0] in text and "not as a conversion wrote it" in text
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before and path.exists()


def test_overwrite_spares_what_the_user_has_changed(arguments, tmp_path):
    out = tmp_path / "out"
    run(*arguments(), "--output", out)
    (out / "README.md").write_text("my own words")
    (out / "unet" / "config.json").rename(tmp_path / "config.json")
    (out / "unet" / "config.json").symlink_to(tmp_path / "config.json")
    text = run(*arguments(), "--output", out, "--overwrite", expect=1)
    assert "README.md, unet/config.json" in " ".join(text.split())
    assert (out / "README.md").read_text() == "my own words"


def test_overwrite_spares_a_model_of_another_origin(arguments, tmp_path):
    """`save_pretrained`, a training run or a download has the same index; nothing says that it can be made again."""
    out = tmp_path / "out"
    run(*arguments(), "--output", tmp_path / "first")
    DiffusionPipeline.from_pretrained(tmp_path / "first").save_pretrained(out)
    text = run(*arguments(), "--output", out, "--overwrite", expect=1)
    assert "no record of a conversion" in " ".join(text.split()) and "model_index.json" in text
    assert_converted(out)


def test_a_file_that_appears_during_the_conversion_is_not_lost(arguments, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(*arguments(), "--output", out)
    save = ScoreSdePipeline.save_pretrained

    def slow(*args, **kwargs):
        (out / "late.txt").write_text("mine")
        return save(*args, **kwargs)

    monkeypatch.setattr(ScoreSdePipeline, "save_pretrained", slow)
    assert "late.txt" in run(*arguments(), "--output", out, "--overwrite", expect=1)
    assert (out / "late.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]


def test_two_conversions_into_one_folder_are_refused(arguments, tmp_path):
    with locked_file(tmp_path / "out"):
        assert "another run is writing to" in " ".join(
            run(*arguments(), "--output", tmp_path / "out", expect=1).split()
        )
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_error_and_the_old_model_stays(arguments, tmp_path, monkeypatch):
    """safetensors has an error class of its own, which was a traceback."""
    out = tmp_path / "out"
    run(*arguments(), "--output", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def full(tensors, path, **options):
        Path(path).write_bytes(bytes(100))
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    text = " ".join(run(*arguments(), "--output", out, "--no-ema", "--overwrite", expect=1).split())
    assert f"{out} cannot be written" in text and "No space left on device" in text
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["out"]


def test_an_empty_folder_will_do(arguments, tmp_path):
    (tmp_path / "out").mkdir()
    run(*arguments(), "--output", tmp_path / "out")
    assert_converted(tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------------------
# Killed runs
# ---------------------------------------------------------------------------------------------------------------------

HANG = """
import sys, time
import pathlib
import safetensors.torch
from diffusers_sde_cli.main import main

def hang(*args, **kwargs):
    print("hanging", flush=True)
    time.sleep(600)

def half(tensors, path, **kwargs):
    pathlib.Path(path).write_bytes(bytes(1000))
    hang()

if sys.argv[1] == "weights":
    safetensors.torch.save_file = half
else:
    rename = pathlib.Path.rename
    pathlib.Path.rename = lambda old, new: rename(old, new) if pathlib.Path(new).name == ".out.old" else hang()
main(["convert", *sys.argv[2:]])
"""


def kill_at(place, *args):
    """Start a run, wait until it is at `place`, and kill it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", HANG, place, *map(str, args)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert line == "hanging\n"
    assert process.returncode == -signal.SIGKILL


def loads(folder):
    try:
        DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


def test_killed_while_writing(arguments, tmp_path):
    out = tmp_path / "out"
    kill_at("weights", *arguments(), "--output", out)
    left = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert [path.name for path in left] == [".out.partial"]
    assert (left[0] / "unet" / "diffusion_pytorch_model.safetensors").is_file()  # it was within its work
    assert not loads(out) and not loads(left[0])
    run(*arguments(), "--output", out)
    assert_converted(out)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]


def test_killed_while_replacing(arguments, tmp_path):
    """Between the old one's leaving and the new one's coming: nothing is lost, and a rerun ends it."""
    out = tmp_path / "out"
    run(*arguments(), "--output", out)
    kill_at("rename", *arguments(), "--output", out, "--no-ema", "--overwrite")
    assert not out.exists()
    assert_converted(tmp_path / ".out.old")
    run(*arguments(), "--output", out, "--no-ema", "--overwrite")
    assert_converted(out, key="output")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]


def test_an_error_while_replacing_keeps_the_old(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as partial:
        (partial / "new").touch()
        raise RuntimeError
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_replacement_took_away_comes_back(tmp_path):
    """Even if the next run fails, too."""
    (tmp_path / ".out.old").mkdir()
    (tmp_path / ".out.old" / "old").touch()
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out"):
        raise RuntimeError
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["old"]


# ---------------------------------------------------------------------------------------------------------------------
# The card
# ---------------------------------------------------------------------------------------------------------------------


def test_metadata_of_the_card(arguments, tmp_path):
    run(*arguments(), "--output", tmp_path / "out")
    _, metadata, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(metadata)
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "diffusers"
    assert metadata["pipeline_tag"] == "unconditional-image-generation"
    assert {"diffusers", "score-sde", "unconditional-image-generation"} <= set(metadata["tags"])
    assert "| `snr` | `0.16` |" in text and "None that belong to this configuration are known." in text
