"""Command line of `training/train_classifier.py`: the flags of `training/train_sde.py` that have a meaning here."""

import argparse
from collections.abc import Sequence

from .options import (
    DefaultsHelpFormatter,
    add_data_flags,
    add_hub_flags,
    add_optimisation_flags,
    add_run_flags,
    check_args,
    prefer_typed,
    typed_options,
)


def parse_classifier_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a value that is not allowed ends the program with a message (exit status 2).

    Args:
        argv: arguments without the program's name, by default those of the process.
    """
    parser = build_classifier_parser()
    args = parser.parse_args(argv)
    try:
        prefer_typed(args, typed_options(build_classifier_parser(), argv))
        check_args(args)
    except ValueError as error:
        parser.error(str(error))
    return args


def build_classifier_parser() -> argparse.ArgumentParser:
    """All flags with their defaults."""
    parser = argparse.ArgumentParser(
        prog="train_classifier.py",
        description="Train a noise-conditional classifier by cross-entropy on noisy images. Run with: accelerate "
        "launch train_classifier.py ...",
        formatter_class=DefaultsHelpFormatter,
    )
    for add in (_add_labels, add_data_flags, _add_model, add_optimisation_flags, add_run_flags, add_hub_flags):
        add(parser)
    parser.set_defaults(output_dir="noise-conditional-classifier", **_SCORE_NETWORKS_ONLY)
    return parser


# What the loop of score networks reads and a classifier has no flag for: no sample grids, and the perturbation of VE,
# under which all noise levels are met.
_SCORE_NETWORKS_ONLY = {
    "config": None,
    "set": [],
    "sde": "ve",
    **dict.fromkeys(("beta_min", "beta_max", "num_train_timesteps", "continuous", "sampling_eps")),
    **dict.fromkeys(("predictor", "corrector", "snr", "correct_steps")),
    "loss": "denoising",
    "loss_weighting": "score",
    "time_sampling": "uniform",
    "loss_reduction": "mean",
    "save_images_steps": 0,
    "eval_batch_size": 1,
    "num_inference_steps": 1,
    "save_images_sampler": "fast",
    "save_images_time_share": 0.1,
}


def _add_labels(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("labels")
    group.add_argument("--label_column", default="label", help="column of the classes, whole numbers from 0 on")
    group.add_argument(
        "--validation_data_dir",
        help="folder of images, or parquet file, with the same columns: at the end, accuracy there by noise level",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network and noise")
    group.add_argument(
        "--model_config_name_or_path",
        required=True,
        help="configuration of a NoiseConditionalClassifier: a JSON file, or a folder with config.json",
    )
    group.add_argument(
        "--sigma_min", type=float, default=0.01, help="smallest noise sigma / alpha, for images in [0, 1]"
    )
    group.add_argument(
        "--sigma_max", type=float, default=50.0, help="largest noise sigma / alpha, for images in [0, 1]"
    )
    group.add_argument(
        "--training_eps", type=float, default=1e-5, help="share of the range of log sigma cut off below, 0 to 1"
    )
