#!/usr/bin/env python
"""Evaluate a score network.

accelerate launch training/eval_sde.py --metrics loss,fid,is --model my-model --data photos/ --output result.json
accelerate launch training/eval_sde.py --bpd --model my-model --data photos/ --split test --output bpd.json

The options are those of `diffusers-sde evaluate`, see `--help`; with `--bpd` those of `diffusers-sde likelihood`,
which measures bits per dimension alone, with more options. Processes share the work and never wait for each other.
"""

import sys


def main(argv=None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--bpd" in argv:
        from diffusers_sde_cli.likelihood import likelihood

        argv.remove("--bpd")
        likelihood.main(args=argv, prog_name="eval_sde.py --bpd")
    else:
        from diffusers_sde_cli.evaluate import evaluate

        evaluate.main(args=argv, prog_name="eval_sde.py")


if __name__ == "__main__":
    main()
