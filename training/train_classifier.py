#!/usr/bin/env python
"""Train a noise-conditional classifier, whose gradient makes an unconditional model class-conditional.

accelerate launch training/train_classifier.py --train_data_dir train.parquet --label_column label \
    --model_config_name_or_path training/configs/fashion_mnist_classifier.json --output_dir my-classifier

Flags as for `train_sde.py`, with the column of the labels; `training/README.md` explains.
"""

from diffusers_sde.training import parse_classifier_args, run_script, train_classifier


def main(argv=None) -> int:
    """Train as the command line says; returns the number of optimiser steps taken in all."""
    return run_script(train_classifier, parse_classifier_args(argv))


if __name__ == "__main__":
    main()
