"""Samples of inverse problems against exact posteriors: every method, SDE and operator.

    python benchmarks/posterior.py

The prior is a mixture of two smooth Gaussian fields on 3 x 4 x 4 pixels of standard deviation 0.2, its score exact
(`exact_posteriors.py`), so that all error is the method's and the sampler's. Printed for measurements without noise
and with noise of 0.05: the error of the mean in posterior standard deviations (0.05 of it from the number of samples),
the ratio of standard deviations, and the root mean square of y - A x per measured direction. Replacement runs without
corrector where there is noise, and not for blur, which it refuses.
"""

import argparse
import time

from diffusers_sde.pipelines.pipeline_score_sde_inverse_problem import METHODS
from exact_posteriors import OPERATORS, SCHEDULERS, posterior_errors, two_fields

NOISE_STDS = (0.0, 0.05)


def cells(method: str, sde: str, name: str, options: dict) -> str:
    """Three figures per noise level."""
    text = ""
    for noise_std in NOISE_STDS:
        if method == "replacement" and name == "blur" and noise_std:
            text += f"{'refused':>24}"
            continue
        found = posterior_errors(method, sde, name, two_fields(), noise_std, **options)
        text += f"{found['mean']:8.2f}{found['std']:8.2f}{found['fit']:8.3f}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="predictor steps, each with one corrector step")
    parser.add_argument("--samples", type=int, default=400, help="per measurement")
    parser.add_argument("--dps-scale", type=float, default=0.3, help="guidance_scale of DPS")
    parser.add_argument("--smallest", action="store_true", help="a run of seconds, to see that it works")
    arguments = parser.parse_args()
    if arguments.smallest:
        arguments.steps, arguments.samples = 21, 2  # VP takes more than 20
    options = {"steps": arguments.steps, "count": arguments.samples, "scale": arguments.dps_scale}
    start = time.perf_counter()
    print(f"{'':39}" + "".join(f"{f'noise {noise_std}':^24}" for noise_std in NOISE_STDS))
    print(f"{'method':13}{'sde':9}{'operator':17}" + f"{'mean':>8}{'std':>8}{'fit':>8}" * 2)
    for method in METHODS:
        for sde in SCHEDULERS:
            for name in OPERATORS:
                print(f"{method:13}{sde:9}{name:17}" + cells(method, sde, name, options), flush=True)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
