"""Command line of `training/train_sde.py`.

Names follow diffusers' unconditional training example where the meaning is the same.
"""

import argparse
from collections.abc import Sequence

from .losses import REDUCTIONS
from .presets import preset_defaults, read_preset
from .samples import MAX_FAST_EVALUATIONS, SAMPLERS
from .times import TIME_SAMPLINGS, WEIGHTINGS

SDES = ("ve", "vp", "subvp")
LR_SCHEDULERS = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")
PRECISIONS = ("no", "fp16", "bf16")
LOSSES = ("denoising", "sliced")
LOGGERS = ("tensorboard", "wandb", "none")
SECRETS = ("hub_token",)

_SDE_FLAGS = {
    "ve": ("sigma_min", "sigma_max"),
    "vp": ("beta_min", "beta_max"),
    "subvp": ("beta_min", "beta_max"),
}
_POSITIVE = (
    "channels crop_size train_batch_size total_batch_size eval_batch_size num_epochs max_train_steps "
    "gradient_accumulation_steps checkpointing_steps checkpoints_total_limit logging_steps num_inference_steps "
    "learning_rate max_train_seconds num_train_timesteps snr shuffle_buffer_size"
).split()
_NOT_NEGATIVE = (
    "lr_warmup_steps adam_weight_decay save_images_steps dataloader_num_workers in_memory_limit seed max_grad_norm "
    "correct_steps"
).split()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a value that is not allowed ends the program with a message (exit status 2).

    Args:
        argv: arguments without the program's name, by default those of the process.
    """
    parser = build_parser()
    try:
        first, _ = _config_parser().parse_known_args(argv)
        if first.config is not None:
            parser.set_defaults(**preset_defaults(read_preset(first.config, first.set)))
        args = parser.parse_args(argv)
        prefer_typed(args, typed_options(build_parser(), argv))
        check_args(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def _config_parser() -> argparse.ArgumentParser:
    """What has to be known before the other flags have their defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_config(parser)
    return parser


def typed_options(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> set[str]:
    """Names of the options that stand on the command line."""
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    parser._defaults.clear()
    return set(vars(parser.parse_args(argv)))


def prefer_typed(args: argparse.Namespace, typed: set[str]) -> None:
    """Let typed options win over those of an official configuration that mean the same in other words.

    Raises:
        ValueError: if both numbers of steps were typed.
    """
    if {"num_epochs", "max_train_steps"} <= typed:
        raise ValueError("--num_epochs and --max_train_steps both say how long to train; give one of them.")
    if "num_epochs" in typed:
        args.max_train_steps = None
    if {"train_batch_size", "gradient_accumulation_steps"} <= typed and "total_batch_size" not in typed:
        args.total_batch_size = None


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
        ("loss_weighting", WEIGHTINGS),
        ("time_sampling", TIME_SAMPLINGS),
        ("loss", LOSSES),
        ("save_images_sampler", SAMPLERS),
    ):
        value = getattr(args, name)
        if value not in allowed:
            raise ValueError(f"--{name} is {value!r}; allowed are {', '.join(str(a) for a in allowed if a)}.")
    _check_data(args)
    _check_ranges(args)
    _check_combinations(args)
    foreign = {flag for flags in _SDE_FLAGS.values() for flag in flags} - set(_SDE_FLAGS[args.sde])
    for name in sorted(foreign):
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name} = {getattr(args, name)} has no meaning for --sde {args.sde}, which takes "
                f"{' and '.join('--' + flag for flag in _SDE_FLAGS[args.sde])}; leave it out."
            )


def _check_data(args: argparse.Namespace) -> None:
    given = [name for name in ("data", "dataset_name", "train_data_dir") if getattr(args, name) is not None]
    if len(given) > 1 or not (given or args.dry_run):
        seen = " and ".join(f"--{name}" for name in given) or "none"
        raise ValueError(f"{seen} of --data, --dataset_name and --train_data_dir given; give exactly one of them.")


def _check_combinations(args: argparse.Namespace) -> None:
    if args.resume_from_checkpoint is not None and args.overwrite_output_dir:
        raise ValueError(
            "--resume_from_checkpoint goes on with a run, --overwrite_output_dir starts anew; give one of them."
        )
    steps = args.num_inference_steps
    if args.save_images_sampler == "fast" and steps is not None and steps > MAX_FAST_EVALUATIONS:
        raise ValueError(
            f"--num_inference_steps is {steps}; with --save_images_sampler fast it is at most {MAX_FAST_EVALUATIONS}. "
            "Pass --save_images_sampler scheduler for the official sampler."
        )
    if not 0 < args.save_images_time_share <= 1:
        raise ValueError(f"--save_images_time_share is {args.save_images_time_share}; it is above 0 and at most 1.")
    if args.set and args.config is None:
        raise ValueError(f"--set {args.set[0]} changes an official configuration; name one by --config.")
    if args.loss == "sliced" and args.torch_compile:
        raise ValueError(
            "--loss sliced needs second derivatives, which torch.compile does not give; leave --torch_compile out."
        )


def _check_ranges(args: argparse.Namespace) -> None:
    for name in _POSITIVE:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name} is {value}; it must be positive.")
    for name in _NOT_NEGATIVE:
        value = getattr(args, name)
        if value is not None and not value >= 0:
            raise ValueError(f"--{name} is {value}; it must not be negative.")
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
        description="Train a score network by score matching. Run with: accelerate launch train_sde.py ...",
        formatter_class=DefaultsHelpFormatter,
    )
    for add in (_add_config, add_data_flags, _add_model, _add_loss):
        add(parser)
    for add in (add_optimisation_flags, add_run_flags, _add_samples, add_hub_flags):
        add(parser)
    return parser


def image_size(text: str) -> int | tuple[int, int]:
    """Read `32` as 32 and `32x48` as (32, 48): height, width.

    Raises:
        ValueError: if it is neither.
    """
    sides = [int(part) for part in text.lower().split("x")]
    if len(sides) > 2 or min(sides) < 1:
        raise ValueError(text)
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _add_switch(group, name: str, explanation: str, default: bool | None = False) -> None:
    """A flag --name with its opposite --no-name, which undoes what an official configuration says."""
    group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default, help=explanation)


def _add_config(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("official configuration")
    group.add_argument(
        "--config",
        help="name of an official configuration, such as ve/cifar10_ncsnpp_continuous, or a JSON file of one; it "
        "gives network, SDE, loss and the defaults of the flags below",
    )
    group.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change values of it, as model.nf=64 model.dropout=0"
    )


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the data."""
    group = parser.add_argument_group("data (exactly one of --data, --dataset_name and --train_data_dir)")
    group.add_argument("--data", help="what --train_data_dir takes if it exists, else what --dataset_name takes")
    group.add_argument("--dataset_name", help="data set on the Hub (or any name that datasets.load_dataset takes)")
    group.add_argument("--dataset_config_name", help="configuration of that data set, if it has several")
    group.add_argument(
        "--train_data_dir",
        help="folder of images, folder of parquet or arrow files (train split only), folder of save_to_disk, one "
        "parquet file, or one npz file of 8-bit images (N, H, W) or (N, H, W, C)",
    )
    group.add_argument(
        "--image_column", help="column (npz: array) of the images; default: the first one that holds images"
    )
    group.add_argument("--cache_dir", help="where data sets are cached; default: the cache of Hugging Face datasets")
    group.add_argument(
        "--streaming", action="store_true", help="read the data set as it comes instead of storing it first"
    )
    group.add_argument(
        "--shuffle_buffer_size", type=int, default=10000, help="images among which --streaming draws the next one"
    )
    group.add_argument(
        "--resolution",
        type=image_size,
        help="size of the training images in pixels, as 32 or 32x48 (height x width); default: the network's "
        "sample_size",
    )
    group.add_argument(
        "--channels",
        type=int,
        help="convert images to this many channels (1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha; npz: any, without "
        "conversion); default: the network's in_channels, and a conversion that loses something is an error",
    )
    group.add_argument(
        "--crop_size", type=int, help="first cut this central square out of images (pixels; official CelebA: 140)"
    )
    group.add_argument(
        "--pad", action="store_true", help="give images smaller than the resolution a black border, don't resize them"
    )
    _add_switch(group, "center_crop", "crop images of another shape at the centre; default: at random")
    _add_switch(group, "random_flip", "mirror half of the images, drawn at each step")
    _add_switch(group, "uniform_dequantization", "add uniform noise of one 8-bit level, drawn at each step")
    group.add_argument(
        "--in_memory_limit",
        type=float,
        default=2.0,
        help="decode the data set once into memory if it takes at most this many GB (8 bits per value); else, or if "
        "images need random crops, decode at each step",
    )
    group.add_argument(
        "--dataloader_num_workers", type=int, default=2, help="threads that decode images not held in memory"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network and SDE")
    group.add_argument(
        "--model_config_name_or_path",
        help="network configuration: a JSON file, a folder with config.json, or a Hub repository; default: that of "
        "--config, or NCSNppModel with its default configuration, suited to the data and the SDE",
    )
    group.add_argument("--sde", default="ve", help=f"one of {', '.join(SDES)}")
    group.add_argument("--sigma_min", type=float, help="VE: smallest noise, in data units; default: 0.01")
    group.add_argument("--sigma_max", type=float, help="VE: largest noise, in data units; default: 50")
    group.add_argument("--beta_min", type=float, help="VP, sub-VP: beta(0), per unit of time; default: 0.1")
    group.add_argument("--beta_max", type=float, help="VP, sub-VP: beta(1), per unit of time; default: 20")
    _add_switch(
        group,
        "continuous",
        "condition the network on continuous time (default), or on the label of a grid of noise levels (SMLD, DDPM)",
        default=None,
    )
    group.add_argument(
        "--num_train_timesteps", type=int, help="noise levels of that grid, and steps of the official sampler"
    )
    group.add_argument("--predictor", help="of the sampler that is saved; default: the scheduler's")
    group.add_argument("--corrector", help="likewise")
    group.add_argument("--snr", type=float, help="signal-to-noise ratio of the corrector; likewise")
    group.add_argument("--correct_steps", type=int, help="corrector steps per predictor step; likewise")
    group.add_argument(
        "--sampling_eps", type=float, help="smallest time in sampling, 0 to 1; default: the scheduler's"
    )


def _add_loss(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loss")
    group.add_argument("--loss", default="denoising", help="denoising or sliced score matching")
    group.add_argument(
        "--loss_weighting",
        default="score",
        help="lambda(t): score for sigma(t)^2, or likelihood for g(t)^2, which bounds the negative log-likelihood",
    )
    group.add_argument(
        "--time_sampling",
        default="uniform",
        help="uniform, or importance: with --loss_weighting likelihood, at far less variance",
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
    group.add_argument(
        "--train_batch_size",
        type=int,
        help="images per process and forward pass; default: what --total_batch_size leaves, or 16",
    )
    group.add_argument("--gradient_accumulation_steps", type=int, help="forward passes per step; default: 1")
    group.add_argument(
        "--total_batch_size",
        type=int,
        help="images per optimiser step over all processes and passes; with --train_batch_size it fixes the passes",
    )
    group.add_argument("--num_epochs", type=int, help="passes over the data; default: 100, or what --config says")
    group.add_argument("--max_train_steps", type=int, help="optimiser steps, instead of --num_epochs")
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
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="clip the norm of the gradient; 0: never")
    group.add_argument("--ema_decay", type=float, default=0.999, help="largest decay per step of the weight average")
    group.add_argument(
        "--mixed_precision",
        help=f"one of {', '.join(PRECISIONS)}; weights, loss and score stay float32; default: what accelerate says",
    )
    _add_switch(group, "channels_last", "keep images in channels_last memory order, which is faster", default=True)
    group.add_argument(
        "--gradient_checkpointing", action="store_true", help="less memory, one more forward pass per step"
    )
    group.add_argument("--torch_compile", action="store_true", help="compile the network with torch.compile")
    group.add_argument("--seed", type=int, default=0, help="fixes weights, data order and noise; not negative")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the run: output, checkpoints, logs."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--output_dir", default="sde-model", help="gets the final pipeline, checkpoint-N/, samples/ and logs/"
    )
    group.add_argument(
        "--overwrite_output_dir",
        action="store_true",
        help="start anew where an earlier run was: its checkpoints, grids and history go, its model when the new one "
        "is there, files of others never",
    )
    group.add_argument("--checkpointing_steps", type=int, default=500, help="optimiser steps between checkpoints")
    group.add_argument(
        "--checkpoints_total_limit", type=int, help="keep this many checkpoints, remove the oldest; default: keep all"
    )
    group.add_argument(
        "--resume_from_checkpoint", help="a checkpoint-N folder, or latest (starts if none was written yet)"
    )
    group.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="print what would be trained, and how, and stop"
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
    group.add_argument(
        "--save_images_sampler",
        default="fast",
        help="fast: SDE-DPM-Solver++ (2M) in at most 25 evaluations of the network; scheduler: the scheduler's "
        "Predictor-Corrector, as officially",
    )
    group.add_argument(
        "--num_inference_steps",
        type=int,
        help="sampling steps per grid; default: 20 (fast), or as many as the scheduler has noise levels",
    )
    group.add_argument(
        "--save_images_time_share",
        type=float,
        default=0.1,
        help="largest share of the run's time that fast grids take, above 0 and at most 1 for no bound: grids are "
        "left out, the last one has fewer images",
    )


def add_hub_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the Hub."""
    group = parser.add_argument_group("Hub")
    group.add_argument("--push_to_hub", action="store_true", help="upload --output_dir, less checkpoints, at the end")
    group.add_argument("--hub_model_id", help="repository; default: the name of --output_dir, in your own space")
    group.add_argument("--hub_token", help="token with write access; default: the one you are logged in with")
    group.add_argument("--hub_private_repo", action="store_true", help="create the repository as a private one")
