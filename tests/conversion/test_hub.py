"""`diffusers-sde convert --push-to-hub`: what the Hub receives, and loading it back, each in a fresh process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

import diffusers_sde
from diffusers_sde.conversion import convert_checkpoint
from diffusers_sde.store import LEDGER_NAME
from tests.checkpoints import FOLDER, arrays, description, relative_error
from tests.hub import TOKEN, stand_in_hub

NAME = "ve_ncsnpp_continuous"
REPOSITORY = "somebody/ncsnpp-tiny"
LOAD = """
import sys
import torch
from safetensors.torch import load_file, save_file
import diffusers_sde
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
assert type(pipe) is diffusers_sde.ScoreSdePipeline, type(pipe)
recorded = load_file(sys.argv[2])
with torch.no_grad():
    save_file({"output": pipe.unet(recorded["x"], recorded["labels"]).sample}, sys.argv[3])
"""


@pytest.fixture
def hub():
    with stand_in_hub() as hub:
        yield hub


@pytest.fixture
def python(hub, tmp_path):
    """Run an interpreter that takes the stand-in for the Hub; its messages, or those of its failure if `fails`."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(Path(diffusers_sde.__file__).parents[1]),
    }

    def run(*command, fails=False, **changes):
        result = subprocess.run(
            [sys.executable, *map(str, command)],
            env=environment | changes,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert (result.returncode != 0) is fails, result.stdout + result.stderr
        return result.stdout + result.stderr

    return run


@pytest.fixture
def push(checkpoint, python, tmp_path):
    """Convert and push; what was printed."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(description(NAME)["config"]))

    def run(output, *options, name=REPOSITORY, **keywords):
        command = ("-m", "diffusers_sde_cli", "convert", checkpoint(NAME), "--config", config, "--output", output)
        return python(*command, "--push-to-hub", name, *options, **keywords)

    return run


def test_round_trip(hub, push, python, tmp_path):
    text = push(tmp_path / "out", "--verify", "--verify-steps", 3)
    assert f"{hub.endpoint}/{REPOSITORY}" in text
    message, files = hub.repositories[REPOSITORY][-1]
    assert "converted by diffusers_sde" in message
    assert len(hub.repositories[REPOSITORY]) == 2  # all in one commit
    paths = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != LEDGER_NAME]
    local = {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in paths}
    assert {path: content for path, content in files.items() if path != ".gitattributes"} == local
    assert set(local) == {
        "README.md",
        "model_index.json",
        "samples.png",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    assert f'from_pretrained("{REPOSITORY}")' in files["README.md"].decode()

    python("-c", LOAD, REPOSITORY, FOLDER / f"{NAME}.safetensors", tmp_path / "output.safetensors")
    output = load_file(tmp_path / "output.safetensors")["output"]
    assert relative_error(output, arrays(NAME)["output_ema"]) < 2e-5
    weights = f"GET /{REPOSITORY}/resolve/{hub.revision(REPOSITORY)}/unet/diffusion_pytorch_model.safetensors"
    assert weights in hub.requests


def test_another_layout_leaves_no_stubs_behind(hub, push, tmp_path):
    """With them diffusers would ask for trust."""
    push(tmp_path / "a", "--layout", "remote_code")
    assert {"pipeline.py", "unet/diffusers_sde.py", "scheduler/diffusers_sde.py"} < set(hub.files(REPOSITORY))
    push(tmp_path / "b")
    assert not [path for path in hub.files(REPOSITORY) if path.endswith(".py")]
    assert "trust_remote_code" not in hub.files(REPOSITORY)["README.md"].decode()


def test_a_refused_upload_keeps_the_folder_and_says_why(hub, push, tmp_path):
    text = push(tmp_path / "out", fails=True, HF_TOKEN="hf_another")
    assert "401" in text and "Traceback" not in text
    assert REPOSITORY not in hub.repositories
    assert type(DiffusionPipeline.from_pretrained(tmp_path / "out")).__name__ == "ScoreSdePipeline"


def test_a_bad_name_is_refused_before_the_work(hub, push, tmp_path):
    assert "Repo id must" in push(tmp_path / "out", name="a name/with spaces", fails=True)
    assert not (tmp_path / "out").exists()
    assert not hub.requests


@pytest.mark.slow
def test_the_converted_pipeline_pushes_by_itself(hub, checkpoint, python, tmp_path):
    """diffusers' own `push_to_hub` of what `convert_checkpoint` returns."""
    convert_checkpoint(checkpoint(NAME), description(NAME)["config"]).save_pretrained(tmp_path / "pipe")
    script = (
        "import sys, diffusers_sde; from diffusers import DiffusionPipeline; "
        "DiffusionPipeline.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2])"
    )
    python("-c", script, tmp_path / "pipe", "somebody/other")
    assert json.loads(hub.files("somebody/other")["model_index.json"])["_class_name"] == "ScoreSdePipeline"
    python("-c", LOAD, "somebody/other", FOLDER / f"{NAME}.safetensors", tmp_path / "output.safetensors")
    output = load_file(tmp_path / "output.safetensors")["output"]
    assert relative_error(output, arrays(NAME)["output_ema"]) < 2e-5
