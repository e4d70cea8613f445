#!/usr/bin/env python
"""Train a noise-conditional classifier, whose gradient makes an unconditional score network class-conditional.

accelerate launch training/train_classifier.py --train_data_dir photos.parquet --label_column label \
    --model_config_name_or_path config.json --sigma_max 50 --output_dir my-classifier

Flags and folders are those of `train_sde.py`; `--help` lists them.
"""

import logging

from diffusers_sde.training.classifier import train_classifier
from diffusers_sde.training.classifier_options import parse_classifier_args


def main(argv=None) -> int:
    """Train as the command line says; returns the number of optimiser steps taken in all."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("diffusers_sde").setLevel(logging.INFO)
    return train_classifier(parse_classifier_args(argv))


if __name__ == "__main__":
    main()
