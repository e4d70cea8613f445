"""Evaluations, time and error of the log-likelihood, beside the algorithm of the official code and torchdiffeq.

    python benchmarks/likelihood.py                 # Gaussian and mixture data with exact scores, 3 x 32 x 32
    python benchmarks/likelihood.py --embedded      # the embedded model on samples of its own

All get the same data and the same Rademacher probe; the error is against a reference solution with that probe, in bits
per dimension, its mean and largest over the batch. "official" is scipy's RK45 at rtol = atol = 1e-5 on the whole batch
as one vector in numpy, with one forward pass for the drift and another one, with its product, for the divergence. Runs
are interleaved; times are medians. Printed last: how many times faster than the official algorithm.
"""

import argparse
import math
import statistics
import time

import numpy as np
import torch

from diffusers_sde.sde import VESDE, VPSDE, Gaussian, GaussianMixture, SubVPSDE, log_likelihood

SDES = {"ve": (VESDE(0.01, 50.0), 1e-5), "vp": (VPSDE(), 1e-3), "subvp": (SubVPSDE(), 1e-3)}


def official(sde, score_fn, x_0, t_start, probe):
    """The official algorithm; returns values and evaluations of the right-hand side."""
    from scipy.integrate import solve_ivp

    shape = x_0.shape
    count = x_0.numel()

    def drift(x, t):
        return sde.probability_flow_drift(x, t, score_fn(x, t))

    def rhs(t, y):
        x = torch.from_numpy(y[:count].reshape(shape)).float()
        times = torch.full((shape[0],), t, dtype=torch.float32)
        with torch.no_grad():
            velocity = drift(x, times)
        with torch.enable_grad():
            x.requires_grad_()
            (gradient,) = torch.autograd.grad((drift(x, times) * probe).sum(), x)
        change = (gradient * probe).flatten(1).sum(dim=1)
        return np.concatenate([velocity.numpy().reshape(-1), change.numpy().reshape(-1)])

    start = np.concatenate([x_0.numpy().reshape(-1), np.zeros(shape[0])])
    solution = solve_ivp(rhs, (t_start, 1.0), start, rtol=1e-5, atol=1e-5, method="RK45")
    latents = torch.from_numpy(solution.y[:count, -1].reshape(shape))
    return sde.prior_log_prob(latents) + torch.from_numpy(solution.y[count:, -1]), solution.nfev


def torchdiffeq_dopri5(sde, score_fn, x_0, t_start, probe):
    """torchdiffeq's dopri5 on the batch, with one forward pass per evaluation."""
    from torchdiffeq import odeint

    evaluations = 0

    def rhs(t, state):
        nonlocal evaluations
        evaluations += 1
        times = t.to(x_0).expand(len(x_0))
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            velocity = sde.probability_flow_drift(x, times, score_fn(x, times))
            (gradient,) = torch.autograd.grad(velocity, x, probe)
        return velocity.detach(), (gradient * probe).flatten(1).sum(dim=1)

    times = torch.tensor([t_start, 1.0])
    states = odeint(rhs, (x_0, x_0.new_zeros(len(x_0))), times, rtol=1e-5, atol=1e-5, method="dopri5")
    return sde.prior_log_prob(states[0][-1].double()) + states[1][-1].double(), evaluations


def ours(solver):
    def run(sde, score_fn, x_0, t_start, probe):
        result = log_likelihood(sde, score_fn, x_0, t_start=t_start, probes=probe[None], solver=solver)
        return result.log_likelihood, float(result.nfe.double().mean())

    return run


METHODS = {
    "official": official,
    "torchdiffeq": torchdiffeq_dopri5,
    "ours, dopri5": ours("dopri5"),
    "ours, adams": ours("adams"),
}


def compare(title, sde, score_fn, x_0, t_start, repeats) -> float:
    """Print one table; returns the speed-up of "ours, adams"."""
    generator = torch.Generator().manual_seed(0)
    probe = 2.0 * torch.randint(0, 2, x_0.shape, generator=generator) - 1
    tight = {"solver": "dopri5", "rtol": 1e-6, "atol": 1e-6}
    reference = log_likelihood(sde, score_fn, x_0, t_start=t_start, probes=probe[None], **tight).log_likelihood
    times, values, evaluations = {name: [] for name in METHODS}, {}, {}
    for _ in range(repeats):
        for name, method in METHODS.items():
            start = time.perf_counter()
            values[name], evaluations[name] = method(sde, score_fn, x_0, t_start, probe)
            times[name].append(time.perf_counter() - start)
    scale = x_0[0].numel() * math.log(2)
    slowest = statistics.median(times["official"])
    print(f"\n{title}\n{'':14}{'evaluations':>12}{'bits/dim: error':>17}{'largest':>9}{'seconds':>9}{'speed-up':>10}")
    for name in METHODS:
        error = (values[name].double() - reference).abs() / scale
        median = statistics.median(times[name])
        row = f"{name:14}{evaluations[name]:12.0f}{error.mean():17.1e}{error.max():9.1e}"
        print(f"{row}{median:9.2f}{slowest / median:10.1f}", flush=True)
    return slowest / statistics.median(times["ours, adams"])


def analytic_targets(batch: int, size: int):
    """Name, SDE, smallest time, score and data of the nine pairs, of 3 x size x size numbers."""
    generator = torch.Generator().manual_seed(1)
    low = torch.rand(64, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(low, size=size, mode="bicubic").clamp(0, 1).flatten(1)
    rough = torch.rand(128, smooth.shape[1], generator=generator)
    for name, (sde, t_start) in SDES.items():
        scale, shift = (1.0, 0.0) if name == "ve" else (2.0, -1.0)  # data in [0, 1] or [-1, 1]
        targets = {
            "Gaussian": Gaussian(scale * 0.5 + shift, scale * 0.25),
            "64 modes": GaussianMixture(torch.ones(64) / 64, scale * smooth + shift, torch.full((64,), scale * 0.1)),
            "128 modes": GaussianMixture(
                torch.ones(128) / 128, scale * rough + shift, torch.full((128,), scale * 0.05)
            ),
        }
        for title, data in targets.items():
            shape = (batch, smooth.shape[1]) if title == "Gaussian" else batch
            yield f"{title}, {name}", sde, t_start, data, data.sample(shape, generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedded", action="store_true", help="the embedded model instead of analytic targets")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--smallest", action="store_true", help="a run of seconds, to see that it works")
    args = parser.parse_args()
    size = 4 if args.smallest else 32
    if args.smallest:
        args.batch, args.repeats = 1, 1
    if args.threads:
        torch.set_num_threads(args.threads)
    speed_ups = []
    if args.embedded:
        from diffusers_sde.sampling import load_pipeline

        pipeline = load_pipeline(device="cpu")
        images = pipeline(
            batch_size=args.batch,
            num_inference_steps=100,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).images
        scheduler, unet = pipeline.scheduler, pipeline.unet

        def score_fn(x, t):
            return scheduler.step_score(unet(x, scheduler.model_timestep(t)).sample, x, t)

        speed_ups.append(compare("embedded model", scheduler.sde, score_fn, images, 1e-5, args.repeats))
    else:
        for title, sde, t_start, data, x_0 in analytic_targets(args.batch, size):

            def score_fn(x, t, data=data, sde=sde):
                return data.score(sde, x, t)

            speed_ups.append(compare(title, sde, score_fn, x_0, t_start, args.repeats))
    print(
        f"\nours, adams, against the official algorithm: {min(speed_ups):.1f} to {max(speed_ups):.1f} times less time"
    )


if __name__ == "__main__":
    main()
