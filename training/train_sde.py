#!/usr/bin/env python
"""Train a score network on images by denoising score matching.

accelerate launch training/train_sde.py --train_data_dir photos/ --model_config_name_or_path config.json \
    --sde ve --sigma_max 50 --output_dir my-model

Flags and folders follow diffusers' unconditional training example; `--help` lists them, `training/README.md` explains.
"""

import logging

from diffusers_sde.training import parse_args, train


def main(argv=None) -> int:
    """Train as the command line says; returns the number of optimiser steps taken in all."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("diffusers_sde").setLevel(logging.INFO)
    return train(parse_args(argv))


if __name__ == "__main__":
    main()
