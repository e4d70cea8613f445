import ast
import re
from pathlib import Path

import pytest

import diffusers_sde.training
from diffusers_sde.training import build_parser, parse_args
from diffusers_sde.training.options import check_args


def refuse(capsys, *argv):
    with pytest.raises(SystemExit) as exit_info:
        parse_args(list(argv))
    assert exit_info.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "neither of --dataset_name and --train_data_dir given; give exactly one"),
        (["--dataset_name", "a", "--train_data_dir", "b"], "both of --dataset_name and --train_data_dir given"),
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
    by_name = {"sigma_min", "sigma_max", "beta_min", "beta_max", "sampling_eps"}  # read in a loop over their names
    used = set(re.findall(r"args\.(\w+)", source)) | by_name
    assert set(flags) - used == set()


def test_help_fits_the_parser(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse_args(["--help"])
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--learning_rate LEARNING_RATE peak learning rate of AdamW (default: 0.0002)" in text
    assert "(default: None)" not in text
