#!/usr/bin/env python
"""Train a score network on images by score matching.

accelerate launch training/train_sde.py --config ve/cifar10_ncsnpp_continuous --data photos/ --output_dir my-model

Flags and folders follow diffusers' unconditional training example; `--help` lists them, `training/README.md` explains.
"""

from diffusers_sde.training import parse_args, run_script, train


def main(argv=None) -> int:
    """Train as the command line says; returns the number of optimiser steps taken in all."""
    return run_script(train, parse_args(argv))


if __name__ == "__main__":
    main()
