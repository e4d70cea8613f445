"""Runs that are killed, or meet a full disk or numbers that are not finite."""

import os
import random
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from diffusers_sde.training import CheckpointError, Trainer, list_checkpoints, train
from diffusers_sde.training.checkpoints import checkpoint_step, damage
from diffusers_sde.training.history import read_history
from tests.training.launching import SCRIPT, launch, start

WEIGHTS = "diffusion_pytorch_model.safetensors"

# Dropout, two passes per step, flips and dequantization: every random number takes part.
LONG = {
    "max_train_steps": 60,
    "checkpointing_steps": 7,
    "checkpoints_total_limit": 2,
    "gradient_accumulation_steps": 2,
    "random_flip": True,
    "uniform_dequantization": True,
    "logging_steps": 5,
}


def same_weights(one, other):
    one, other = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def bits(run, step):
    """Everything that a run hands on, as bytes by name; pickles as their tensors."""
    folder = run / f"checkpoint-{step}"
    tensors = {
        f"{part}/{name}": value
        for part in ("unet", "unet_ema")
        for name, value in load_file(folder / part / WEIGHTS).items()
    }
    optimizer = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    tensors |= {f"adam/{i}/{name}": value for i, state in optimizer.items() for name, value in state.items()}
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


# A slow step leaves time to be killed in; the sleep draws no random number.
SLOW_SCRIPT = f"""
import runpy, time
from diffusers_sde.training import Trainer
step = Trainer._train_step
def slow(self, batches):
    time.sleep(0.05)
    return step(self, batches)
Trainer._train_step = slow
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


def kill_until_done(argv, folder, kills, seed, lasting):
    """Start the run again and again, and kill it at random moments; returns the moments of the kills that met it."""
    (folder / "slow.py").write_text(SLOW_SCRIPT)
    generator, met = random.Random(seed), 0
    while met < kills:
        process = start(argv, folder, script=folder / "slow.py")
        wait_for_training(process, folder)
        time.sleep(generator.uniform(0, lasting))
        met += process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.returncode == 0:  # done before it could be killed
            break
    status, output = launch(argv, folder, script=folder / "slow.py")
    assert status == 0, output[-3000:]
    return met


def wait_for_training(process, folder):
    """Until this start of the run has said that it trains."""
    starts = (folder / "output.txt").read_text().count("done\n")
    while process.poll() is None and (folder / "output.txt").read_text().count(" done\n") <= starts:
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("kills", "steps"), [(5, 60), pytest.param(30, 250, marks=pytest.mark.slow)], ids=["5 kills", "30 kills"]
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(make_argv, tmp_path, kills, steps):
    """Each start has time for about a checkpoint and a half: the run gets on, and is killed while it writes, too."""
    options = LONG | {"max_train_steps": steps}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    status, output = launch(make_argv(output_dir=whole, **options), tmp_path)
    assert status == 0, output[-3000:]
    argv = make_argv(output_dir=broken, resume_from_checkpoint="latest", **options)
    met = kill_until_done(argv, tmp_path, kills, seed=kills, lasting=1.0)
    assert met >= kills
    assert bits(whole, steps) == bits(broken, steps)
    assert same_weights(whole / "unet", broken / "unet")
    strip = [{k: v for k, v in e.items() if k != "images_per_second"} for e in read_history(broken)]
    assert [entry["step"] for entry in strip] == list(range(5, steps + 1, 5))
    assert len(list_checkpoints(broken)) == 2
    assert all(damage(path) is None for path in list_checkpoints(broken))


def test_a_damaged_latest_checkpoint_costs_its_steps_only(make_args, tmp_path, caplog):
    options = LONG | {"max_train_steps": 20}
    train(make_args(output_dir=tmp_path / "whole", **options))
    run = tmp_path / "run"
    train(make_args(output_dir=run, **options | {"max_train_steps": 14}))
    path = run / "checkpoint-14" / "unet" / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert train(make_args(output_dir=run, resume_from_checkpoint="latest", **options)) == 20
    assert f"checkpoint-14 is damaged: the checksum of unet/{WEIGHTS} differs" in caplog.text
    assert bits(tmp_path / "whole", 20) == bits(run, 20)


def test_sigterm_to_the_script_saves_and_exits_with_0(make_argv, tmp_path):
    argv = make_argv(**LONG | {"max_train_steps": 2000, "checkpointing_steps": 10000})
    (tmp_path / "slow.py").write_text(SLOW_SCRIPT)
    process = start(argv, tmp_path, script=tmp_path / "slow.py")
    wait_for_training(process, tmp_path)
    time.sleep(0.5)
    child = int(os.popen(f"pgrep -P {process.pid} -f slow.py").read().split()[0])
    os.kill(child, signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    output = (tmp_path / "output.txt").read_text()
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    assert f"stopping at step {checkpoint_step(checkpoint)}: SIGTERM" in output
    assert (tmp_path / "run" / "model_index.json").is_file()


def full(*_, **__):
    raise OSError(28, "No space left on device")


FULL_DISK = {
    "network": ("diffusers_sde.NCSNppModel.save_pretrained", full),
    "optimizer": ("accelerate.checkpointing.save", full),
    "manifest": ("diffusers_sde.training.checkpoints.write_manifest", full),
    "rename": ("diffusers_sde.training.checkpoints.replace_folder", full),
}


@pytest.mark.parametrize("part", FULL_DISK)
def test_a_full_disk_leaves_the_last_checkpoint_intact(make_args, tmp_path, monkeypatch, part):
    run = tmp_path / "run"
    train(make_args(max_train_steps=2))
    monkeypatch.setattr(*FULL_DISK[part])
    with pytest.raises(
        CheckpointError, match=r"checkpoint-4 could not be written .*No space left.*checkpoint-2 is int"
    ):
        train(make_args(max_train_steps=4, checkpoints_total_limit=1, resume_from_checkpoint="latest"))
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-2"]
    assert damage(run / "checkpoint-2") is None
    assert not list(run.glob(".partial-checkpoint*"))
    assert train(make_args(max_train_steps=4, resume_from_checkpoint="latest")) == 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=3m tmpfs {folder} 2>/dev/null") != 0:
        pytest.skip("a small file system can be mounted by root only")
    yield folder
    os.system(f"umount -l {folder}")


def test_a_disk_that_is_really_full(make_argv, small_disk, tmp_path):
    """Checkpoints of 0.1 MB on 3 MB, all kept, with a ballast that leaves room for a few."""
    (small_disk / "ballast").write_bytes(b"\0" * 2_200_000)
    argv = make_argv(output_dir=small_disk / "run", max_train_steps=60, checkpointing_steps=1, logger="none")
    status, output = launch(argv, tmp_path)
    assert status == 1
    assert "could not be written" in output
    assert "Traceback" not in output
    good = list_checkpoints(small_disk / "run")
    assert good
    assert all(damage(path) is None for path in good)
    (small_disk / "ballast").unlink()
    steps = checkpoint_step(good[-1]) + 1
    argv = make_argv(
        output_dir=small_disk / "run", max_train_steps=steps, resume_from_checkpoint="latest", logger="none"
    )
    status, output = launch(argv, tmp_path)
    assert status == 0, output[-2000:]


def poison(monkeypatch, bad_steps, value=torch.nan):
    """The loss is not finite in these steps."""
    loss = Trainer._loss
    monkeypatch.setattr(
        Trainer, "_loss", lambda self, *args: loss(self, *args) * (value if self.step in bad_steps else 1.0)
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_step_that_is_not_finite_is_left_out_and_counted(make_args, tmp_path, monkeypatch, value):
    """Weights and Adam are as if the step had not been; the step counts, so that learning rate and data go on."""
    states = {}
    step = Trainer._train_step

    def remember(self, batches):
        result = step(self, batches)
        states[self.step] = (
            [p.detach().clone() for p in self.network.parameters()],
            {name: value.clone() for name, value in self.optimizer.state[next(iter(self.optimizer.state))].items()},
        )
        return result

    monkeypatch.setattr(Trainer, "_train_step", remember)
    poison(monkeypatch, {3}, value)
    assert train(make_args(max_train_steps=6, lr_warmup_steps=1, logging_steps=3)) == 6
    for before, after in ((2, 3),):
        assert all(torch.equal(a, b) for a, b in zip(states[before][0], states[after][0], strict=True))
        assert all(torch.equal(states[before][1][name], states[after][1][name]) for name in states[before][1])
    assert not all(torch.equal(a, b) for a, b in zip(states[3][0], states[4][0], strict=True))
    assert all(p.isfinite().all() for p in states[5][0])
    history = read_history(tmp_path / "run")
    assert [entry["skipped_steps"] for entry in history] == [0, 1]
    assert all(entry["loss"] is not None for entry in history)


def test_ten_bad_steps_in_a_row_stop_the_run_with_the_state_saved(make_args, tmp_path, monkeypatch):
    poison(monkeypatch, set(range(5, 100)))
    with pytest.raises(FloatingPointError, match=r"not finite in the last 10 steps up to 15\. The state is saved"):
        train(make_args(max_train_steps=50))
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    assert checkpoint.name == "checkpoint-15"
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "unet" / WEIGHTS).values())
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert train(make_args(max_train_steps=17, resume_from_checkpoint="latest")) == 17


def test_nine_bad_steps_in_a_row_do_not(make_args, monkeypatch):
    poison(monkeypatch, {*range(2, 11), *range(12, 21)})
    assert train(make_args(max_train_steps=22)) == 22


def test_resuming_from_an_earlier_checkpoint_sets_the_later_ones_aside(make_args, tmp_path, caplog):
    run = tmp_path / "run"
    train(make_args(max_train_steps=6, checkpointing_steps=2))
    assert train(make_args(max_train_steps=5, resume_from_checkpoint="checkpoint-2")) == 5
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-2", "checkpoint-5"]
    assert "checkpoint-6 is later than" in caplog.text
    assert sorted(path.name for path in run.glob("abandoned-*")) == [
        "abandoned-checkpoint-4",
        "abandoned-checkpoint-6",
    ]
    assert [entry["step"] for entry in read_history(run)] == [2, 4, 5]


def test_the_history_of_a_killed_run_has_no_step_twice(make_args, tmp_path):
    run = tmp_path / "run"
    train(make_args(max_train_steps=8, checkpointing_steps=3))
    shutil.rmtree(run / "checkpoint-8")
    with (run / "history.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')  # cut by the kill
    train(make_args(max_train_steps=10, checkpointing_steps=3, resume_from_checkpoint="latest"))
    assert [entry["step"] for entry in read_history(run)] == [2, 4, 6, 8, 10]


def test_a_stream_is_resumed_with_the_same_bits(make_args, tmp_path):
    options = LONG | {"max_train_steps": 12, "streaming": True, "shuffle_buffer_size": 4, "checkpointing_steps": 5}
    whole = tmp_path / "whole"
    train(make_args(output_dir=whole, **options))
    broken = tmp_path / "broken"
    train(make_args(output_dir=broken, **options | {"max_train_steps": 5}))
    train(make_args(output_dir=broken, resume_from_checkpoint="latest", **options))
    assert bits(whole, 12) == bits(broken, 12)
    with pytest.raises(
        ValueError, match="a stream of images tells its length only at its end; give --max_train_steps"
    ):
        train(make_args(streaming=True, max_train_steps=None, output_dir=tmp_path / "other"))
