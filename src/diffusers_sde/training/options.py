"""Command line of `training/train_sde.py`.

Names follow diffusers' unconditional training example where the meaning is the same.
"""

import argparse
from collections.abc import Sequence

from .losses import REDUCTIONS

SDES = ("ve", "vp", "subvp")
LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
PRECISIONS = ("no", "fp16", "bf16")
LOGGERS = ("tensorboard", "wandb", "none")
SECRETS = ("hub_token",)

_SDE_FLAGS = {
    "ve": ("sigma_min", "sigma_max"),
    "vp": ("beta_min", "beta_max"),
    "subvp": ("beta_min", "beta_max"),
}
_POSITIVE = (
    "resolution train_batch_size eval_batch_size num_epochs max_train_steps gradient_accumulation_steps "
    "checkpointing_steps checkpoints_total_limit logging_steps num_inference_steps learning_rate max_grad_norm "
    "max_train_seconds"
).split()
_NOT_NEGATIVE = (
    "lr_warmup_steps adam_weight_decay save_images_steps dataloader_num_workers in_memory_limit seed"
).split()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a value that is not allowed ends the program with a message (exit status 2).

    Args:
        argv: arguments without the program's name, by default those of the process.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        check_args(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def check_args(args: argparse.Namespace) -> None:
    """Check what argparse cannot.

    Raises:
        ValueError: saying what was seen, what is allowed and what to do.
    """
    for name, allowed in (
        ("sde", SDES),
        ("mixed_precision", (None, *PRECISIONS)),
        ("lr_scheduler", LR_SCHEDULERS),
        ("logger", LOGGERS),
        ("loss_reduction", REDUCTIONS),
    ):
        value = getattr(args, name)
        if value not in allowed:
            raise ValueError(f"--{name} is {value!r}; allowed are {', '.join(str(a) for a in allowed if a)}.")
    if (args.dataset_name is None) == (args.train_data_dir is None):
        seen = "neither" if args.dataset_name is None else "both"
        raise ValueError(f"{seen} of --dataset_name and --train_data_dir given; give exactly one of the two.")
    _check_ranges(args)
    foreign = {flag for flags in _SDE_FLAGS.values() for flag in flags} - set(_SDE_FLAGS[args.sde])
    for name in sorted(foreign):
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name} = {getattr(args, name)} has no meaning for --sde {args.sde}, which takes "
                f"{' and '.join('--' + flag for flag in _SDE_FLAGS[args.sde])}; leave it out."
            )


def _check_ranges(args: argparse.Namespace) -> None:
    for name in _POSITIVE:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}; it must be positive.")
    for name in _NOT_NEGATIVE:
        if not getattr(args, name) >= 0:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must not be negative.")
    for name in ("ema_decay", "adam_beta1", "adam_beta2"):
        if not 0 <= getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}; it must be at least 0 and below 1.")
    for name in ("sampling_eps", "training_eps"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1:
            raise ValueError(f"--{name} is {value}; it is a time and must lie between 0 and 1 (usual: 1e-5 to 1e-3).")


class DefaultsHelpFormatter(argparse.HelpFormatter):
    """Shows the default of every flag that has one."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == argparse.SUPPRESS:
            return action.help
        return f"{action.help} (default: %(default)s)"


def build_parser() -> argparse.ArgumentParser:
    """All flags with their defaults."""
    parser = argparse.ArgumentParser(
        prog="train_sde.py",
        description="Train a score network by denoising score matching. Run with: accelerate launch train_sde.py ...",
        formatter_class=DefaultsHelpFormatter,
    )
    for add in (add_data_flags, _add_model, add_optimisation_flags, add_run_flags, _add_samples, add_hub_flags):
        add(parser)
    return parser


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the data."""
    group = parser.add_argument_group("data (exactly one of --dataset_name and --train_data_dir)")
    group.add_argument("--dataset_name", help="data set on the Hub (or any name that datasets.load_dataset takes)")
    group.add_argument("--dataset_config_name", help="configuration of that data set, if it has several")
    group.add_argument(
        "--train_data_dir", help="folder of images, folder of parquet files (train split only), or one parquet file"
    )
    group.add_argument("--image_column", help="column of the images; default: the first one that holds images")
    group.add_argument("--cache_dir", help="where data sets are cached; default: the cache of Hugging Face datasets")
    group.add_argument(
        "--resolution", type=int, help="side of the training images in pixels; default: the network's sample_size"
    )
    group.add_argument(
        "--channels",
        type=int,
        help="convert images to this many channels (1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha); default: the "
        "network's in_channels, and a conversion that loses something is an error",
    )
    group.add_argument(
        "--pad", action="store_true", help="give images smaller than the resolution a black border, don't resize them"
    )
    group.add_argument(
        "--center_crop", action="store_true", help="crop images that are not square at the centre; default: at random"
    )
    group.add_argument("--random_flip", action="store_true", help="mirror half of the images, drawn at each step")
    group.add_argument(
        "--in_memory_limit",
        type=float,
        default=2.0,
        help="decode the data set once into memory if it takes at most this many GB (8 bits per value); else, or if "
        "images need random crops, decode at each step",
    )
    group.add_argument(
        "--dataloader_num_workers", type=int, default=0, help="processes that decode images not held in memory"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network and SDE")
    group.add_argument(
        "--model_config_name_or_path",
        help="network configuration: a JSON file, a folder with config.json, or a Hub repository; default: "
        "NCSNppModel with its default configuration, suited to the data and the SDE",
    )
    group.add_argument("--sde", default="ve", help=f"one of {', '.join(SDES)}")
    group.add_argument("--sigma_min", type=float, help="VE: smallest noise, in data units; default: 0.01")
    group.add_argument("--sigma_max", type=float, help="VE: largest noise, in data units; default: 50")
    group.add_argument("--beta_min", type=float, help="VP, sub-VP: beta(0), per unit of time; default: 0.1")
    group.add_argument("--beta_max", type=float, help="VP, sub-VP: beta(1), per unit of time; default: 20")
    group.add_argument(
        "--sampling_eps", type=float, help="smallest time in sampling, 0 to 1; default: the scheduler's"
    )
    group.add_argument(
        "--training_eps", type=float, default=1e-5, help="smallest time in training, 0 to 1 (official code: 1e-5)"
    )
    group.add_argument(
        "--loss_reduction",
        default="mean",
        help="over the values of one image: mean, or sum for half the sum (official VE configs)",
    )


def add_optimisation_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the optimiser."""
    group = parser.add_argument_group("optimisation")
    group.add_argument("--train_batch_size", type=int, default=16, help="images per process and forward pass")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="forward passes per step")
    group.add_argument("--num_epochs", type=int, default=100, help="passes over the data, unless --max_train_steps")
    group.add_argument("--max_train_steps", type=int, help="optimiser steps; overrides --num_epochs")
    group.add_argument(
        "--max_train_seconds",
        type=float,
        help="save and stop after this many seconds of wall time since the start of the program; the learning rate "
        "follows the steps, not the time",
    )
    group.add_argument("--learning_rate", type=float, default=2e-4, help="peak learning rate of AdamW")
    group.add_argument("--lr_scheduler", default="constant_with_warmup", help=f"one of {', '.join(LR_SCHEDULERS)}")
    group.add_argument("--lr_warmup_steps", type=int, default=5000, help="optimiser steps of linear warm-up")
    group.add_argument("--adam_beta1", type=float, default=0.9, help="decay of the gradient average")
    group.add_argument("--adam_beta2", type=float, default=0.999, help="decay of the squared gradient average")
    group.add_argument("--adam_weight_decay", type=float, default=0.0, help="decoupled weight decay")
    group.add_argument("--adam_epsilon", type=float, default=1e-8, help="added to the root of the squared average")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="clip the norm of the whole gradient to this")
    group.add_argument("--ema_decay", type=float, default=0.999, help="largest decay per step of the weight average")
    group.add_argument(
        "--mixed_precision",
        help=f"one of {', '.join(PRECISIONS)}; weights, loss and score stay float32; default: what accelerate says",
    )
    group.add_argument("--channels_last", action="store_true", help="keep images in channels_last memory order")
    group.add_argument("--torch_compile", action="store_true", help="compile the network with torch.compile")
    group.add_argument("--seed", type=int, default=0, help="fixes weights, data order and noise; not negative")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the run: output, checkpoints, logs."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--output_dir", default="sde-model", help="gets the final pipeline, checkpoint-N/, samples/ and logs/"
    )
    group.add_argument(
        "--overwrite_output_dir", action="store_true", help="remove the checkpoints of an earlier run and start anew"
    )
    group.add_argument("--checkpointing_steps", type=int, default=500, help="optimiser steps between checkpoints")
    group.add_argument(
        "--checkpoints_total_limit", type=int, help="keep this many checkpoints, remove the oldest; default: keep all"
    )
    group.add_argument(
        "--resume_from_checkpoint", help="a checkpoint-N folder, or latest (starts anew if there is none)"
    )
    group.add_argument("--logger", default="tensorboard", help=f"one of {', '.join(LOGGERS)}")
    group.add_argument("--logging_dir", default="logs", help="for the logger, inside --output_dir")
    group.add_argument("--logging_steps", type=int, default=50, help="optimiser steps between log entries")


def _add_samples(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sample grids")
    group.add_argument(
        "--save_images_steps",
        type=int,
        default=5000,
        help="optimiser steps between grids samples/step-N.png, with one more at the end; 0 for none",
    )
    group.add_argument("--eval_batch_size", type=int, default=16, help="images per grid")
    group.add_argument("--num_inference_steps", type=int, default=1000, help="sampling steps per grid")


def add_hub_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the Hub."""
    group = parser.add_argument_group("Hub")
    group.add_argument("--push_to_hub", action="store_true", help="upload --output_dir, less checkpoints, at the end")
    group.add_argument("--hub_model_id", help="repository; default: the name of --output_dir, in your own space")
    group.add_argument("--hub_token", help="token with write access; default: the one you are logged in with")
    group.add_argument("--hub_private_repo", action="store_true", help="create the repository as a private one")
