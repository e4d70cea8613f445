"""Whole runs of a tiny network, in this process and through `accelerate launch`."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import diffusers_sde
from diffusers_sde.training import Trainer, loop, train
from diffusers_sde.training.ema import averaged_weights
from diffusers_sde.training.history import read_history
from tests.training.launching import launch

WEIGHTS = "diffusion_pytorch_model.safetensors"


def checkpoint_names(folder):
    return sorted((path.name for path in Path(folder).glob("checkpoint-*")), key=lambda name: int(name[11:]))


def assert_same_weights(one, other):
    one, other = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def differ(one, other):
    one, other = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return any(not torch.equal(one[name], other[name]) for name in one)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_layout_of_the_output_folder(make_args, tmp_path):
    args = make_args(checkpointing_steps=3, save_images_steps=2, logger="tensorboard", hub_token="secret")
    assert train(args) == 4
    run = tmp_path / "run"
    model = {"config.json", WEIGHTS}
    state = {"optimizer.bin", "random_states_0.pkl", "training_args.json", "manifest.json"}
    state |= {f"{folder}/{name}" for folder in ("unet", "unet_ema") for name in model}
    assert checkpoint_names(run) == ["checkpoint-3", "checkpoint-4"]
    assert files(run / "checkpoint-3") == files(run / "checkpoint-4") == state
    assert "secret" not in (run / "checkpoint-3" / "training_args.json").read_text()
    pipeline = {"model_index.json", "scheduler/scheduler_config.json"} | {f"unet/{name}" for name in model}
    assert pipeline <= files(run)
    assert {path.name for path in run.iterdir()} == {
        *(".files.jsonl", "checkpoint-3", "checkpoint-4", "logs", "model_index.json", "samples", "scheduler", "unet"),
        *("README.md", "history.jsonl", "curves.png"),
    }
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-2.png", "step-4.png"]
    assert not any("secret" in path.read_text(errors="ignore") for path in run.rglob("*") if path.is_file())


def test_the_pipeline_has_the_averaged_weights_and_samples(make_args, tmp_path):
    run = tmp_path / "run"
    train(
        make_args(
            sigma_max=7, sampling_eps=1e-4, eval_batch_size=3, save_images_steps=9, save_images_sampler="scheduler"
        )
    )
    assert_same_weights(run / "unet", run / "checkpoint-4" / "unet_ema")
    assert differ(run / "unet", run / "checkpoint-4" / "unet")
    pipeline = DiffusionPipeline.from_pretrained(str(run))
    assert type(pipeline) is diffusers_sde.ScoreSdePipeline
    assert (pipeline.scheduler.config.sigma_max, pipeline.scheduler.config.sampling_eps) == (7, 1e-4)
    # The last grid was drawn by the same pipeline with seed 0.
    images = pipeline(
        batch_size=3, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np"
    ).images
    grid = np.asarray(Image.open(run / "samples" / "step-4.png"))
    assert grid.shape == (16, 16)
    np.testing.assert_array_equal(grid[:8, 8:], (images[1, ..., 0] * 255).round().astype(np.uint8))


def test_the_averaged_network_of_a_checkpoint_stands_on_its_own(make_args, tmp_path):
    """Its buffers, the Fourier frequencies, are those of the trained network; its parameters are not."""
    train(make_args())
    folder = tmp_path / "run" / "checkpoint-4"
    average = diffusers_sde.NCSNppModel.from_pretrained(folder / "unet_ema").state_dict()
    trained = diffusers_sde.NCSNppModel.from_pretrained(folder / "unet").state_dict()
    assert torch.equal(average["time_proj.weight"], trained["time_proj.weight"])
    assert not torch.equal(average["conv_in.weight"], trained["conv_in.weight"])
    config = json.loads((folder / "unet_ema" / "config.json").read_text())
    assert (config["optimization_step"], config["decay"]) == (4, 0.999)


def test_averaged_weights_are_given_back(make_args):
    trainer = Trainer(make_args(), start=0.0)
    before = [p.detach().clone() for p in trainer.network.parameters()]
    for shadow in trainer.ema.shadow_params:
        shadow.zero_()
    with pytest.raises(KeyError), averaged_weights(trainer.network.train(), trainer.ema) as network:
        assert not network.training
        assert all((p == 0).all() for p in network.parameters())
        raise KeyError
    assert trainer.network.training
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


POSITIONAL = {"time_embedding_type": "positional", "scale_by_sigma": False, "center_input_sample": False}
RUNS = {
    "ve": {"sde": "ve", "random_flip": True, "gradient_accumulation_steps": 2},
    "vp": {"sde": "vp", "in_memory_limit": 0, "lr_scheduler": "cosine", "loss_reduction": "sum"},
    "subvp": {"sde": "subvp", "mixed_precision": "bf16", "channels_last": True, "adam_weight_decay": 0.1},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_with_the_same_bits(name, make_args, write_network, tmp_path):
    """With dropout, in the middle of an epoch (10 images, batches of 4)."""
    network = {"model_config_name_or_path": write_network(**({} if name == "ve" else POSITIONAL))}
    options = RUNS[name] | network | {"max_train_steps": 8, "save_images_steps": 2, "checkpointing_steps": 5}
    train(make_args(output_dir=tmp_path / "whole", **options))
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "whole" / "checkpoint-5", broken / "checkpoint-5")
    (broken / ".partial-checkpoint-6").mkdir()  # of a process that was killed as it wrote
    assert train(make_args(output_dir=broken, resume_from_checkpoint="latest", **options)) == 8
    for part in ("unet", "checkpoint-8/unet", "checkpoint-8/unet_ema"):
        assert_same_weights(tmp_path / "whole" / part, broken / part)
    assert differ(broken / "checkpoint-8" / "unet", broken / "checkpoint-5" / "unet")


def test_a_run_cut_by_its_time_goes_on_as_if_nothing_had_been(make_args, tmp_path):
    train(make_args(output_dir=tmp_path / "whole"))
    cut = tmp_path / "cut"
    assert train(make_args(output_dir=cut, max_train_seconds=1e-9)) == 1
    assert checkpoint_names(cut) == ["checkpoint-1"]
    assert (cut / "model_index.json").is_file()
    assert train(make_args(output_dir=cut, resume_from_checkpoint=cut / "checkpoint-1")) == 4
    assert_same_weights(tmp_path / "whole" / "unet", cut / "unet")


def test_sigterm_finishes_the_step_saves_and_returns(make_args, tmp_path, monkeypatch):
    step = Trainer._train_step
    previous = signal.getsignal(signal.SIGTERM)

    def killed_in_its_third_step(self, batches):
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", killed_in_its_third_step)
    assert train(make_args(max_train_steps=50, save_images_steps=50)) == 3
    run = tmp_path / "run"
    assert checkpoint_names(run) == ["checkpoint-3"]
    assert_same_weights(run / "unet", run / "checkpoint-3" / "unet_ema")
    assert not (run / "samples").exists()
    assert signal.getsignal(signal.SIGTERM) is previous


def test_sigterm_gives_up_a_grid(make_args, tmp_path, monkeypatch):
    evaluations = []
    forward = diffusers_sde.NCSNppModel.forward

    def killed_while_sampling(self, *args, **kwargs):
        if not self.training:
            evaluations.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(diffusers_sde.NCSNppModel, "forward", killed_while_sampling)
    assert train(make_args(save_images_steps=2, num_inference_steps=25)) == 2
    assert len(evaluations) <= 4
    assert checkpoint_names(tmp_path / "run") == ["checkpoint-2"]


def test_only_the_newest_checkpoints_are_kept(make_args, tmp_path):
    options = {"checkpointing_steps": 2, "checkpoints_total_limit": 2}
    train(make_args(max_train_steps=6, **options))
    assert checkpoint_names(tmp_path / "run") == ["checkpoint-4", "checkpoint-6"]
    train(make_args(max_train_steps=9, resume_from_checkpoint="latest", **options))
    assert checkpoint_names(tmp_path / "run") == ["checkpoint-8", "checkpoint-9"]


def test_an_old_checkpoint_is_there_until_the_new_one_is_complete(make_args, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def disk_full(*_):
        raise OSError("No space left on device")

    train(make_args(max_train_steps=1))
    monkeypatch.setattr(loop.checkpoints, "replace_folder", disk_full)
    with pytest.raises(OSError, match="No space left"):
        train(make_args(max_train_steps=2, checkpoints_total_limit=1, resume_from_checkpoint="latest"))
    assert checkpoint_names(run) == ["checkpoint-1"]


def test_a_folder_with_checkpoints_is_not_trained_in_by_accident(make_args, tmp_path):
    train(make_args(max_train_steps=2))
    with pytest.raises(ValueError, match=r"holds checkpoint-2 of an earlier run.*--resume_from_checkpoint latest"):
        train(make_args())
    assert train(make_args(max_train_steps=3, overwrite_output_dir=True)) == 3
    assert checkpoint_names(tmp_path / "run") == ["checkpoint-3"]


def test_resuming_the_latest_of_none_starts_anew_but_a_named_one_must_exist(make_args):
    assert train(make_args(max_train_steps=1, resume_from_checkpoint="latest")) == 1
    with pytest.raises(ValueError, match=r"checkpoint-7 is not .* holds checkpoint-1"):
        train(make_args(resume_from_checkpoint="checkpoint-7"))


def test_epochs_count_when_no_steps_are_given(make_args):
    """10 images, 4 x 2 per step: 2 epochs are 2.5 steps, rounded up."""
    assert train(make_args(max_train_steps=None, num_epochs=2, gradient_accumulation_steps=2)) == 3


def test_the_learning_rate_counts_optimiser_steps(make_args, tmp_path):
    """The step in the middle of a warm-up of 4 is the third; the log has the rate of the step that it closes."""
    options = {"lr_warmup_steps": 4, "learning_rate": 1e-3, "gradient_accumulation_steps": 3, "logging_steps": 1}
    train(make_args(max_train_steps=3, **options))
    assert [entry["lr"] for entry in read_history(tmp_path / "run")] == [0, pytest.approx(2.5e-4), pytest.approx(5e-4)]


def test_training_lowers_the_loss(make_args, write_parquet, tmp_path):
    """Constant images: the network can come far below 1, the loss of a score of zero."""
    images = [Image.new("L", (8, 8), 128)] * 4
    folder = write_parquet(tmp_path / "grey" / "train.parquet", images).parent
    args = make_args(
        train_data_dir=folder, max_train_steps=150, learning_rate=1e-2, train_batch_size=16, logging_steps=30
    )
    trainer = Trainer(args, start=0.0)
    trainer.run()
    assert trainer.progress.smoothed_loss < 0.7


def test_padding_and_network_of_three_channels(make_args, write_network, tmp_path):
    network = write_network(sample_size=16, in_channels=3, out_channels=3)
    trainer = Trainer(make_args(model_config_name_or_path=network, pad=True, channels=3, resolution=16), start=0.0)
    assert trainer.source.images.shape == (10, 3, 16, 16)
    assert (trainer.source.images[:, :, :4] == 0).all()


def test_the_default_network_suits_the_sde(make_args):
    for sde, suits_ve in (("ve", True), ("vp", False), ("subvp", False)):
        args = make_args(sde=sde, channels=1, resolution=16)
        args.model_config_name_or_path = None
        network = loop.build_network(args)
        assert network.config.scale_by_sigma is suits_ve
        assert (network.config.sample_size, network.config.in_channels) == (16, 1)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ({}, {"channels": 3}, "--channels is 3, the network's in_channels 1; they must agree"),
        ({}, {"resolution": 16}, "--resolution is 16, the network's sample_size 8; they must agree"),
        ({"out_channels": 3}, {}, "in_channels = 1 and out_channels = 3"),
        ({}, {"sde": "vp"}, "scale_by_sigma = True, which suits --sde ve only"),
        ({"time_embedding_type": "positional"}, {}, "set it to 'fourier'"),
        ({"_class_name": "NoSuchModel"}, {}, "class 'NoSuchModel'"),
        ({"in_channels": 5, "out_channels": 5}, {}, "images of 5 channels"),
    ],
)
def test_network_data_and_options_must_fit(make_args, write_network, network, options, message):
    with pytest.raises(ValueError, match=message):
        train(make_args(model_config_name_or_path=write_network(**network), **options))


def test_network_configurations_that_cannot_be_read(make_args, tmp_path):
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad.json is not JSON"):
        train(make_args(model_config_name_or_path=tmp_path / "bad.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a JSON file, nor a folder with"):
        train(make_args(model_config_name_or_path=tmp_path / "empty"))


def test_a_trained_folder_serves_as_network_configuration(make_args, tmp_path):
    train(make_args(max_train_steps=1))
    again = make_args(max_train_steps=1, model_config_name_or_path=tmp_path / "run", output_dir=tmp_path / "again")
    assert train(again) == 1


def test_a_logger_that_is_not_installed_is_refused(make_args, monkeypatch):
    monkeypatch.setattr("accelerate.utils.is_wandb_available", lambda: False)
    with pytest.raises(ValueError, match='--logger wandb is not installed; pip install "wandb"'):
        train(make_args(logger="wandb"))


def test_push_to_hub_creates_the_repository_first_and_uploads_last(make_args, tmp_path, monkeypatch):
    calls = []

    def create_repo(name, **options):
        calls.append((name, options, (tmp_path / "run" / "model_index.json").exists()))
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(**options):
        calls.append((options, (tmp_path / "run" / "model_index.json").exists()))

    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    train(make_args(push_to_hub=True, hub_token="t", hub_private_repo=True))
    (name, create, existed), (upload, complete) = calls
    assert (name, create, existed) == ("run", {"exist_ok": True, "private": True, "token": "t"}, False)
    assert complete
    assert (upload["repo_id"], upload["commit_message"]) == ("me/run", "Step 4")
    assert "checkpoint-*" in upload["ignore_patterns"]


def test_accelerate_launch_and_resume_in_other_processes(make_argv, tmp_path):
    options = {"checkpointing_steps": 3, "random_flip": True, "max_train_steps": 5, "logger": "tensorboard"}
    status, output = launch(make_argv(output_dir=tmp_path / "whole", **options), tmp_path)
    assert status == 0, output
    assert "10 images, in memory" in output
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", broken / "checkpoint-3")
    status, output = launch(make_argv(output_dir=broken, resume_from_checkpoint="latest", **options), tmp_path)
    assert status == 0, output
    assert_same_weights(tmp_path / "whole" / "unet", broken / "unet")
    assert json.loads((broken / "model_index.json").read_text())["_class_name"] == "ScoreSdePipeline"
