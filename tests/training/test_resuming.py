"""Resumed runs take the options as typed, or refuse them; what the log says is what runs."""

import re

import pytest
import torch
from safetensors.torch import load_file

from diffusers_sde.training import Trainer, build_parser, list_checkpoints, train
from diffusers_sde.training.classifier_options import build_classifier_parser
from diffusers_sde.training.history import read_history
from diffusers_sde.training.resuming import APPLIED, COMPARED_BY_EFFECT, FIXED, FREE, check_resumed
from diffusers_sde.training.schedule import learning_rate_schedule

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SHORT = {"max_train_steps": 4, "logging_steps": 1, "lr_warmup_steps": 1}


def test_every_option_is_classified_once():
    """A new option must be applied, refused or free; forgotten, it would be ignored without a word."""
    options = {a.dest for p in (build_parser(), build_classifier_parser()) for a in p._actions} - {"help"}
    classes = [FIXED, APPLIED, COMPARED_BY_EFFECT, FREE]
    assert options == set().union(*classes)
    assert sum(map(len, classes)) == len(options)


def test_a_resumed_run_takes_learning_rate_and_optimiser_as_typed(make_args, tmp_path, caplog):
    """The checkpoint's values would stay in the optimiser, while the log has the new ones."""
    train(make_args(learning_rate=1e-3, **SHORT))
    typed = {"learning_rate": 1e-5, "adam_weight_decay": 0.1, "adam_beta1": 0.5, "adam_beta2": 0.9}
    typed |= {"adam_epsilon": 1e-3, "max_grad_norm": 0.5, "ema_decay": 0.1, "max_train_steps": 8}
    trainer = Trainer(make_args(resume_from_checkpoint="latest", **SHORT | typed), start=0.0)
    trainer.run()
    assert [entry["lr"] for entry in read_history(tmp_path / "run")[3:]] == [1e-3, *[pytest.approx(1e-5)] * 4]
    (group,) = trainer.optimizer.param_groups
    assert (group["lr"], group["betas"]) == (pytest.approx(1e-5), (0.5, 0.9))
    assert (group["weight_decay"], group["eps"]) == (0.1, 1e-3)
    assert trainer.max_grad_norm == 0.5
    assert trainer.ema.cur_decay_value == 0.1
    for name in typed:
        assert f"resumed with --{name} " in caplog.text
    assert "--seed" not in caplog.text


def test_a_small_learning_rate_moves_the_weights_little(make_args, tmp_path):
    """By the weights, not by what the run says of itself: Adam moves each by about the rate in a step."""
    train(make_args(learning_rate=1e-3, **SHORT))
    before = load_file(tmp_path / "run" / "checkpoint-4" / WEIGHTS)
    changes = {"learning_rate": 1e-6, "max_train_steps": 5, "resume_from_checkpoint": "latest"}
    train(make_args(**SHORT | changes))
    after = load_file(tmp_path / "run" / "checkpoint-5" / WEIGHTS)
    moved = max((after[name] - before[name]).abs().max().item() for name in after)
    assert 1e-7 < moved < 1e-5


def test_a_cosine_schedule_goes_on_to_the_new_end(make_args, tmp_path):
    cosine = SHORT | {"lr_scheduler": "cosine", "learning_rate": 1e-3}
    train(make_args(**cosine))
    train(make_args(**cosine | {"max_train_steps": 8, "resume_from_checkpoint": "latest"}))
    rates = [entry["lr"] for entry in read_history(tmp_path / "run")]
    whole = learning_rate_schedule("cosine", 1e-3, 1, 8)
    assert rates[4:] == pytest.approx([whole(step) for step in range(4, 8)])
    assert rates[4] > rates[5] > rates[6] > rates[7] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "--seed is 3, it was 0"),
        ({"sigma_max": 9}, "sde.sigma_max is 9.0, it was 50.0"),
        (
            {"no-continuous": True, "num_train_timesteps": 7},
            "time_embedding_type = 'fourier', but with --no-continuous",
        ),
        ({"train_batch_size": 8}, "images_per_step is 8, it was 4"),
        ({"num_train_timesteps": 20}, "sde.num_train_timesteps is 20, it was"),
    ],
)
def test_what_makes_it_another_run_is_refused(make_args, tmp_path, changes, message):
    train(make_args(max_train_steps=1))
    with pytest.raises(ValueError, match=re.escape(message)):
        train(make_args(resume_from_checkpoint="latest", **changes))
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-1"]


def test_other_data_and_another_network_are_refused(make_args, write_network, write_parquet, tmp_path):
    from tests.training.conftest import random_image

    train(make_args(max_train_steps=1))
    for count, message in ((9, "num_images is 9, it was 10"), (10, "data_digest is")):
        data = write_parquet(tmp_path / f"{count}.parquet", [random_image(100 + i) for i in range(count)])
        with pytest.raises(ValueError, match=message):
            train(make_args(resume_from_checkpoint="latest", train_data_dir=data))
    with pytest.raises(ValueError, match=r"network.dropout is 0.2, it was 0.1"):
        train(make_args(resume_from_checkpoint="latest", model_config_name_or_path=write_network(dropout=0.2)))


def test_the_same_batch_in_other_parts_goes_on(make_args):
    train(make_args(max_train_steps=1))
    parts = {"train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert train(make_args(max_train_steps=2, resume_from_checkpoint="latest", **parts)) == 2


def test_options_of_a_checkpoint_before_facts_are_compared_by_value():
    now = {"seed": 1, "learning_rate": 1e-3, "facts": {"images_per_step": 4}}
    assert check_resumed({"seed": 1, "learning_rate": 1e-2}, now, "c") == ["--learning_rate 0.001 instead of 0.01"]
    with pytest.raises(ValueError, match="--seed is 1, it was 2"):
        check_resumed({"seed": 2}, now, "c")


def test_the_advice_after_numbers_that_are_not_finite_works(make_args, tmp_path):
    """Resumed from the checkpoint before, with a lower learning rate, as the message says; nothing is patched."""
    train(make_args(checkpointing_steps=2, **SHORT))
    bad = {"learning_rate": 1e12, "max_train_steps": 60, "resume_from_checkpoint": "latest", "max_grad_norm": 0}
    with pytest.raises(FloatingPointError, match="resume from an earlier checkpoint with a lower --learning_rate"):
        train(make_args(**SHORT | bad))
    again = {"learning_rate": 1e-4, "max_train_steps": 8, "resume_from_checkpoint": "checkpoint-4"}
    assert train(make_args(**SHORT | again)) == 8
    entries = read_history(tmp_path / "run")
    assert [entry["step"] for entry in entries] == list(range(1, 9))
    assert all(entry["loss"] is not None and entry["skipped_steps"] == 0 for entry in entries)
    weights = load_file(tmp_path / "run" / WEIGHTS)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_warm_up_that_is_longer_than_the_run_is_told(make_args, caplog):
    train(make_args(max_train_steps=2, lr_warmup_steps=5000, learning_rate=1e-3))
    assert "--lr_warmup_steps 5000 is not below the 2 steps of the run: the learning rate ends at 2e-07" in caplog.text
