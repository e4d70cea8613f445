#!/usr/bin/env python
"""Evaluate a score network on a data set.

torchrun --nproc-per-node 2 training/eval_sde.py --bpd --model my-model --data photos/ --split test --output bpd.json

`--bpd` takes the options of `diffusers-sde likelihood`, see `--bpd --help`. Processes share the images and never wait
for each other, so they may need different numbers of network evaluations.
"""

import sys

from diffusers_sde.cli import likelihood


def main(argv=None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--bpd" not in argv:
        sys.exit("nothing to evaluate; give --bpd, and see --bpd --help for its options.")
    argv.remove("--bpd")
    likelihood.main(args=argv, prog_name="eval_sde.py --bpd")


if __name__ == "__main__":
    main()
