"""Two processes, or several passes per step, make the steps of one process with a larger batch."""

import ctypes
import json
import shlex
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from diffusers_sde.training import list_checkpoints, parse_args, train
from diffusers_sde.training.accelerator import resolve_batch_sizes
from diffusers_sde.training.card import command
from diffusers_sde.training.guard import FiniteGuard
from diffusers_sde.training.history import read_history
from diffusers_sde.training.memory import keep_freed_memory
from tests.training.launching import launch

WEIGHTS = "diffusion_pytorch_model.safetensors"
STEPS = 12


@pytest.fixture
def options(write_network):
    """A run without dropout, whose numbers differ between processes."""
    return {
        "model_config_name_or_path": write_network(dropout=0.0),
        "max_train_steps": STEPS,
        "logging_steps": 1,
        "lr_warmup_steps": 1,
        "learning_rate": 1e-3,
        "random_flip": True,
        "uniform_dequantization": True,
        "total_batch_size": 8,
        "train_batch_size": None,
    }


def losses(run):
    return torch.tensor([entry["loss"] for entry in read_history(run)])


def weights(run):
    return torch.cat([tensor.flatten() for tensor in load_file(run / "unet" / WEIGHTS).values()])


def assert_same_run(one, other):
    """Up to the order of sums in float32."""
    assert len(losses(one)) == STEPS
    torch.testing.assert_close(losses(one), losses(other), rtol=1e-4, atol=0)
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=2e-5)


def test_two_processes_make_the_steps_of_one(make_argv, make_args, tmp_path, options):
    """Over gloo, resumed in the middle of an epoch (10 images); the curve falls, so that it says something."""
    one, two = tmp_path / "one", tmp_path / "two"
    train(make_args(output_dir=one, **options))
    argv = make_argv(output_dir=two, checkpointing_steps=7, **options)
    status, output = launch(argv, tmp_path, num_processes=2)
    assert status == 0, output[-3000:]
    assert "4 images x 1 passes x 2 processes = 8 images per step" in output
    assert_same_run(one, two)
    assert losses(one).std() > 0.01
    train(make_args(output_dir=tmp_path / "first", **options | {"max_train_steps": 1}))
    travelled = (weights(one) - weights(tmp_path / "first")).abs().max()
    assert (weights(one) - weights(two)).abs().max() < 0.01 * travelled

    again = tmp_path / "again"
    shutil.copytree(two / "checkpoint-7", again / "checkpoint-7")
    argv = make_argv(output_dir=again, checkpointing_steps=7, resume_from_checkpoint="latest", **options)
    status, output = launch(argv, tmp_path, num_processes=2)
    assert status == 0, output[-3000:]
    assert torch.equal(weights(again), weights(two))


@pytest.mark.parametrize("passes", [2, 8])
def test_passes_of_a_step_make_the_step_of_one_pass(make_args, tmp_path, options, passes):
    one, several = tmp_path / "one", tmp_path / "several"
    train(make_args(output_dir=one, **options))
    train(make_args(output_dir=several, gradient_accumulation_steps=passes, **options))
    assert_same_run(one, several)


def test_a_problem_of_the_main_process_ends_all(make_argv, tmp_path):
    """The other process does not wait for ever."""
    (tmp_path / "run" / "checkpoint-3").mkdir(parents=True)
    status, output = launch(make_argv(), tmp_path, num_processes=2)
    assert status != 0
    assert "holds checkpoint-3 of an earlier run" in output
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-3"]


@pytest.mark.parametrize(
    ("total", "per_pass", "passes", "processes", "expected"),
    [
        (None, None, 1, 4, (16, 1)),
        (None, 3, 5, 4, (3, 5)),
        (128, None, None, 4, (32, 1)),
        (128, None, 2, 4, (16, 2)),
        (128, 8, None, 4, (8, 4)),
        (128, 8, 4, 4, (8, 4)),
    ],
)
def test_batch_sizes(make_args, total, per_pass, passes, processes, expected):
    args = make_args(total_batch_size=total, train_batch_size=per_pass, gradient_accumulation_steps=passes)
    resolve_batch_sizes(args, processes)
    assert (args.train_batch_size, args.gradient_accumulation_steps) == expected


@pytest.mark.parametrize(
    ("per_pass", "passes", "by"), [(48, None, "--train_batch_size 48"), (None, 3, "--gradient_accumulation_steps 3")]
)
def test_a_total_that_cannot_be_shared_out(make_args, per_pass, passes, by):
    args = make_args(total_batch_size=128, train_batch_size=per_pass, gradient_accumulation_steps=passes)
    with pytest.raises(ValueError, match=f"--total_batch_size 128 cannot be shared out over 2 processes with {by}"):
        resolve_batch_sizes(args, 2)


def test_what_a_run_says_of_itself(make_args, tmp_path, options):
    """The card has plan, command, curves and samples; the history loss by noise level, norm, decay and speed."""
    run = tmp_path / "run"
    train(make_args(save_images_steps=50, hub_token="secret", **options))
    card = (run / "README.md").read_text()
    for part in (
        "library_name: diffusers",
        "![Samples](samples/step-12.png)",
        "![Loss and gradient norm](curves.png)",
        "The weights are an exponential moving average with decay 0.999.",
        "8 images x 1 passes x 1 processes = 8 images per step",
        "    --learning_rate 0.001 \\\n",
        "    --random_flip \\\n",
        "| 12 |",
    ):
        assert part in card, card
    assert "secret" not in card
    entry = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
    expected = {"step", "loss", "gradient_norm", "skipped_steps", "images_per_second", "lr", "ema_decay", "epoch"}
    assert set(entry) == expected | {f"loss/level_{level}" for level in range(5)}
    assert entry["ema_decay"] == pytest.approx(13 / 22)  # (1 + n) / (10 + n) for n = 12
    assert entry["epoch"] == pytest.approx(12 * 8 / 10)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_sharded_weights_are_refused(make_args, monkeypatch, kind):
    """Nothing would tell that averages and checkpoints are of a shard only."""
    monkeypatch.setattr("accelerate.Accelerator.distributed_type", DistributedType(kind))
    with pytest.raises(ValueError, match=f"asks for {kind}, which shards the weights"):
        train(make_args())


def test_less_memory_and_more_speed_change_no_step(make_args, tmp_path, options):
    one = tmp_path / "one"
    train(make_args(output_dir=one, **options))
    for name in ("gradient_checkpointing", "no-channels_last"):
        train(make_args(output_dir=tmp_path / name, **options | {name: True}))
        assert_same_run(one, tmp_path / name)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        [
            "--random_flip",
            "--learning_rate",
            "0.001",
            "--resolution",
            "16x24",
            "--no-channels_last",
            "--no-continuous",
        ],
        [
            *("--config", "subvp/cifar10_ddpmpp_continuous", "--set", "model.nf=32", "model.ch_mult=[1, 2]"),
            # The first two are defaults without a configuration.
            *("--no-random_flip", "--ema_decay", "0.999", "--sde", "subvp", "--sampling_eps", "0.001", "--pad"),
        ],
    ],
)
def test_the_command_of_the_card_makes_the_same_run(argv):
    args = parse_args(["--data", "my photos", *argv])
    words = shlex.split(command(args).replace("\\\n", ""))
    assert words[:3] == ["accelerate", "launch", "training/train_sde.py"]
    assert parse_args(words[3:]) == args


def test_memory_is_kept_where_the_c_library_can(monkeypatch):
    assert keep_freed_memory() is hasattr(ctypes.CDLL(None), "mallopt")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert keep_freed_memory() is False


@pytest.mark.slow
def test_a_compiled_network_makes_the_same_steps(make_args, tmp_path, options):
    one, compiled = tmp_path / "one", tmp_path / "compiled"
    train(make_args(output_dir=one, **options))
    train(make_args(output_dir=compiled, torch_compile=True, **options))
    assert_same_run(one, compiled)


def test_bfloat16_follows_float32(make_args, tmp_path, options):
    one, half = tmp_path / "one", tmp_path / "half"
    train(make_args(output_dir=one, **options))
    AcceleratorState._reset_state(reset_partial_state=True)
    train(make_args(output_dir=half, mixed_precision="bf16", **options))
    torch.testing.assert_close(losses(half), losses(one), rtol=0.02, atol=0)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(half / "unet" / WEIGHTS).values())


@pytest.mark.parametrize("sde", ["ve", "vp", "subvp"])
def test_sliced_score_matching_trains(make_args, write_network, tmp_path, options, sde):
    """Through attention, whose fused kernels have no second derivative."""
    network = {} if sde == "ve" else {"time_embedding_type": "positional", "scale_by_sigma": False}
    options = options | {"model_config_name_or_path": write_network(dropout=0.0, attn_resolutions=[4], **network)}
    run = tmp_path / sde
    train(make_args(output_dir=run, sde=sde, loss="sliced", **options | {"max_train_steps": 40}))
    curve = losses(run)
    assert curve.isfinite().all()
    assert curve[-10:].mean() < curve[:10].mean()


def test_a_scaler_that_skips_steps_is_given_time():
    """In float16 overflows are the scaler's way to its scale."""
    plain, scaled = (
        FiniteGuard(None if s else SimpleNamespace(), torch.device("cpu"), scaled=s) for s in (False, True)
    )
    for step in range(1, 31):
        assert plain.check(torch.tensor(torch.inf)) == scaled.check(torch.tensor(torch.nan)) == 1
        assert (plain.gives_up(step), scaled.gives_up(step)) == (step >= 10, step >= 30)
    assert plain.optimizer.found_inf == 1
    assert scaled.check(torch.tensor(3.0)) == 0
    assert scaled.in_a_row == 0
