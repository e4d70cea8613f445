"""True over reported errors of the adaptive solvers: log-likelihoods, latents of images, and drawn states.

    python benchmarks/solver_error.py                        # all cases, some minutes
    python benchmarks/solver_error.py --smallest             # one case, in seconds

The true error is the difference from a reference: "dopri5" at a fifth of its tolerance or less, in float32 for
networks and in float64 for mixtures. The column "spread" has its largest difference from a second one, "adams" at an
eighth of its tolerances. A ratio above 2 is an error that was understated; one far below 1 was overstated. "checked"
counts the rows that were solved twice, and "cost" has their evaluations in it, over those of the same solver without
the check. Log-densities are compared in bits per dimension, with the probe in common.
"""

import argparse
import itertools
import math

import torch

from diffusers_sde import (
    NCSNppModel,
    ScoreSdeLikelihoodPipeline,
    ScoreSdeSubVpScheduler,
    ScoreSdeVeScheduler,
    ScoreSdeVpScheduler,
    embedded_colour_model_path,
    embedded_model_path,
)
from diffusers_sde.sde import VESDE, VPSDE, GaussianMixture, SubVPSDE, log_likelihood, probability_flow

SDES = {"ve": (VESDE(0.01, 50.0), 1e-5), "vp": (VPSDE(), 1e-3), "subvp": (SubVPSDE(), 1e-3)}


def patterns(size: int, channels: int) -> torch.Tensor:
    """Images in [0, 1]: constant, black, two checkerboards, noise, a dark and a bright blob; dequantized."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    blob = (-((4 * x / size - 2) ** 4) - (3.5 * y / size - 1.75) ** 4).exp()
    images = [0.5 * torch.ones(size, size), torch.zeros(size, size), (x + y) % 2, (x // 4 + y // 4) % 2]
    images += [torch.rand(size, size, generator=generator), blob, 1 - blob]
    images = torch.stack([image.float() for image in images])[:, None].repeat(1, channels, 1, 1)
    return (255 * images + torch.rand(images.shape, generator=generator)) / 256


def samples(pipe, count: int) -> torch.Tensor:
    """Images that the model draws, dequantized; by its Predictor-Corrector sampler."""
    from diffusers_sde import ScoreSdePipeline

    generator = torch.Generator().manual_seed(3)
    sampler = ScoreSdePipeline.from_pipe(pipe)
    sampler.set_progress_bar_config(disable=True)
    images = sampler(batch_size=count, num_inference_steps=100, generator=generator, output_type="pt").images
    return ((255 * images).round() + torch.rand(images.shape, generator=generator)) / 256


def random_network(seed: int, scheduler, gain: float) -> ScoreSdeLikelihoodPipeline:
    """A small network with random parameters: weights of standard deviation `gain` / sqrt(fan-in)."""
    options = {} if isinstance(scheduler, ScoreSdeVeScheduler) else {"time_embedding_type": "positional"}
    if options:
        options |= {"scale_by_sigma": False, "center_input_sample": False}
    network = NCSNppModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        attn_resolutions=(4,),
        dropout=0.0,
        **options,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(gain * draw / fan_in**0.5 if parameter.ndim > 1 else 1 + 0.3 * draw)
    return ScoreSdeLikelihoodPipeline(network.eval(), scheduler)


def network_case(pipe, images):
    """SDE, score function, states at the smallest time, that time."""
    pipe.unet.requires_grad_(False)
    score_fn = pipe._score_function()
    return pipe.scheduler.sde, score_fn, pipe._to_data_range(images), pipe._first_time(None, 0.0)


def mixtures():
    generator = torch.Generator().manual_seed(1)
    for name, (sde, t_start) in SDES.items():
        for std in (0.1, 0.01, 0.001):
            means = torch.rand(16, 48, generator=generator, dtype=torch.float64)
            data = GaussianMixture(torch.ones(16) / 16, means, torch.full((16,), std))

            def score_fn(x, t, data=data, sde=sde):
                return data.score(sde, x, t)

            x = data.sample(8, generator, dtype=torch.float64)
            yield f"mixture of std {std}, {name}", (sde, score_fn, x, t_start)


def networks():
    schedulers = (ScoreSdeVeScheduler, ScoreSdeVpScheduler, ScoreSdeSubVpScheduler)
    for kind in schedulers:
        for seed, gain in ((0, 1.0), (1, 0.5)):
            pipe = random_network(seed, kind(), gain)
            name = kind.__name__.removeprefix("ScoreSde").removesuffix("Scheduler")
            yield f"random network, {name}, gain {gain}", network_case(pipe, patterns(8, 1))


def embedded():
    for name, path in (("Fashion-MNIST, VE", embedded_model_path()), ("CIFAR-10, VP", embedded_colour_model_path())):
        pipe = ScoreSdeLikelihoodPipeline.from_pretrained(path)
        yield f"embedded {name}, patterns", network_case(pipe, patterns(32, pipe.unet.config.in_channels))
        yield f"embedded {name}, own samples", network_case(pipe, samples(pipe, 6))


CASES = {"mixtures": mixtures, "networks": networks, "embedded": embedded}


def bits(sde, score_fn, x, t_start):
    """The log-likelihood in bits per dimension: a function of the solver's options."""
    probe = 2.0 * torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(2)).to(x) - 1
    scale = x[0].numel() * math.log(2)

    def solve(**options):
        result = log_likelihood(sde, score_fn, x, t_start=t_start, probes=probe[None], max_nfe=6000, **options)
        return result.log_likelihood[:, None] / scale, result.error / scale, result

    return solve


def flow(sde, score_fn, x, t_start, t_end):
    def solve(**options):
        with torch.no_grad():
            result = probability_flow(sde, score_fn, x, t_start, t_end, max_nfe=6000, **options)
        return result.x.flatten(1), result.error.double(), result

    return solve


def rows(title: str, solve, tight: float) -> None:
    reference, _, found = solve(solver="dopri5", rtol=tight, atol=tight, check=False)
    second, _, _ = solve(solver="adams", check=True)
    known = found.success
    spread = (second - reference).double().square().mean(dim=1).sqrt()[known]
    for solver in ("adams", "dopri5"):
        value, reported, result = solve(solver=solver)
        _, _, once = solve(solver=solver, check=False)
        good = known & result.success
        error = (value - reference).double().square().mean(dim=1).sqrt()
        ratio = (error / reported.to(error))[good]
        checked = int((result.nfe > once.nfe).sum())
        cost = float(result.nfe.double().mean() / once.nfe.double().mean())
        if not len(ratio):
            print(f"| {title} | {solver} | no reference or no success |", flush=True)
            continue
        print(
            f"| {title} | {solver} | {int(once.nfe.double().mean())} | {cost:.2f} | {checked}/{len(value)} "
            f"| {error[good].median():.1e} | {ratio.median():.2f} | {ratio.max():.2f} "
            f"| {int((ratio > 2).sum())}/{len(ratio)} | {spread.max():.1e} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--quantities", nargs="+", choices=("likelihood", "encode", "draw"))
    parser.add_argument("--tolerance", type=float, default=2e-6, help="of the reference for networks")
    parser.add_argument("--smallest", action="store_true", help="one case, to see that it runs")
    args = parser.parse_args()
    quantities = args.quantities or ("likelihood", "encode", "draw")
    if args.smallest:
        args.cases, quantities = ["mixtures"], ("draw",)
    columns = ("case", "solver", "evaluations", "cost", "checked", "error, median", "true/reported, median")
    columns += ("largest", "above 2", "spread")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in args.cases:
        for title, (sde, score_fn, x, t_start) in itertools.islice(CASES[name](), 1 if args.smallest else None):
            tight = 1e-8 if x.dtype == torch.float64 else args.tolerance
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype) * sde.prior_std
            solvers = {
                "likelihood": bits(sde, score_fn, x, t_start),
                "encode": flow(sde, score_fn, x, t_start, 1.0),
                "draw": flow(sde, score_fn, noise, 1.0, t_start),
            }
            for quantity in quantities:
                rows(f"{title}: {quantity}", solvers[quantity], tight)


if __name__ == "__main__":
    main()
