import ast
import re
from pathlib import Path

import pytest

import diffusers_sde.training
from diffusers_sde.training import build_parser, parse_args
from diffusers_sde.training.accelerator import build_accelerator, resolve_batch_sizes
from diffusers_sde.training.components import _SETTINGS
from diffusers_sde.training.options import check_args


def refuse(capsys, *argv):
    with pytest.raises(SystemExit) as exit_info:
        parse_args(list(argv))
    assert exit_info.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "none of --data, --dataset_name and --train_data_dir given; give exactly one"),
        (["--dataset_name", "a", "--train_data_dir", "b"], "--dataset_name and --train_data_dir of --data,"),
        (["--data", "b", "--set", "model.nf=3"], "--set model.nf=3 changes an official configuration; name one by"),
        (["--data", "b", "--config", "ve/cifar"], "no official configuration 've/cifar'; the nearest are 've/"),
        (
            ["--data", "b", "--config", "ve/cifar10_ncsnpp_continuous", "--set", "model.ff=3"],
            "--set 'model.ff=3': the configuration has no value of that name; give KEY=VALUE, with a key such as",
        ),
        (["--data", "b", "--resolution", "12x"], "argument --resolution: invalid image_size value: '12x'"),
        (["--data", "b", "--loss", "sliced", "--torch_compile"], "second derivatives, which torch.compile does not"),
        (["--data", "b", "--loss_weighting", "g2"], "--loss_weighting is 'g2'; allowed are score, likelihood"),
        (["--data", "b", "--crop_size", "0"], "--crop_size is 0; it must be positive"),
        (["--data", "b", "--max_grad_norm", "-1"], "--max_grad_norm is -1.0; it must not be negative"),
        (["--train_data_dir", "b", "--sde", "xy"], "--sde is 'xy'; allowed are ve, vp, subvp"),
        (["--train_data_dir", "b", "--mixed_precision", "fp8"], "'fp8'; allowed are no, fp16, bf16"),
        (["--train_data_dir", "b", "--lr_scheduler", "step"], "'step'; allowed are linear, cosine"),
        (["--train_data_dir", "b", "--logger", "csv"], "'csv'; allowed are tensorboard, wandb, none"),
        (["--train_data_dir", "b", "--loss_reduction", "max"], "'max'; allowed are mean, sum"),
        (["--train_data_dir", "b", "--train_batch_size", "0"], "--train_batch_size is 0; it must be positive"),
        (["--train_data_dir", "b", "--learning_rate", "nan"], "--learning_rate is nan; it must be positive"),
        (["--train_data_dir", "b", "--seed", "-1"], "--seed is -1; it must not be negative"),
        (["--train_data_dir", "b", "--ema_decay", "1"], "--ema_decay is 1.0; it must be at least 0 and below 1"),
        (["--train_data_dir", "b", "--training_eps", "2"], "--training_eps is 2.0; it is a time"),
        (
            ["--train_data_dir", "b", "--sde", "vp", "--sigma_max", "9"],
            "--sigma_max = 9.0 has no meaning for --sde vp",
        ),
        (["--train_data_dir", "b", "--beta_min", "1"], "which takes --sigma_min and --sigma_max; leave it out"),
    ],
)
def test_wrong_values_are_refused_with_what_is_allowed(capsys, argv, message):
    assert message in " ".join(refuse(capsys, *argv).split())


PRESET = ["--data", "b", "--config", "ve/cifar10_ncsnpp_continuous"]


def test_what_is_typed_wins_over_a_configuration(capsys):
    """Its 1,300,001 steps and 128 images would hide the epochs and passes that were asked for."""
    assert (parse_args(PRESET).max_train_steps, parse_args(PRESET).total_batch_size) == (1300001, 128)
    args = parse_args([*PRESET, "--num_epochs", "2"])
    assert (args.num_epochs, args.max_train_steps) == (2, None)
    args = parse_args([*PRESET, "--train_batch_size", "16", "--gradient_accumulation_steps", "2"])
    resolve_batch_sizes(args, 1)
    assert (args.train_batch_size, args.gradient_accumulation_steps) == (16, 2)
    error = refuse(capsys, *PRESET, "--num_epochs", "2", "--max_train_steps", "9")
    assert "--num_epochs and --max_train_steps both say how long to train" in error


def test_total_and_parts_must_agree():
    typed = ["--total_batch_size", "64", "--train_batch_size", "16", "--gradient_accumulation_steps", "2"]
    args = parse_args([*PRESET, *typed])
    with pytest.raises(ValueError, match="--total_batch_size 64 is not 1 processes x --train_batch_size 16 x"):
        resolve_batch_sizes(args, 1)
    resolve_batch_sizes(args, 2)


def test_passes_of_accelerates_environment_are_made(make_args, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    args = make_args()
    build_accelerator(args)
    assert args.gradient_accumulation_steps == 4


def test_arguments_made_in_python_are_checked_too(make_args):
    args = make_args()
    args.sde = "VE"
    with pytest.raises(ValueError, match="--sde is 'VE'"):
        check_args(args)


def test_every_flag_is_used_and_explained():
    flags = {action.dest: action.help for action in build_parser()._actions if action.dest != "help"}
    assert all(flags.values())
    source = "".join(
        ast.unparse(ast.parse(path.read_text()))
        for path in Path(diffusers_sde.training.__file__).parent.glob("*.py")
        if path.name != "options.py"
    )
    by_name = set(_SETTINGS) | {"resume_from_checkpoint"}  # read in a loop over their names
    used = set(re.findall(r"args\.(\w+)", source)) | by_name
    assert set(flags) - used == set()


def test_help_fits_the_parser(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_args(["--help"])
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--learning_rate LEARNING_RATE peak learning rate of AdamW (default: 0.0002)" in text
    assert "(default: None)" not in text
