r"""A bound on the log-density from denoising: no differential equation, no divergence.

    log p(x_0) >= - KL(p(x_1 | x_0) || p_1)                                                       prior
                  - 1/2 int_{t_min}^1 g^2 / sigma^2 E |noise + sigma s(x_t, t)|^2 dt              diffusion
                  + E log N(x_0; denoised(x_tmin), sigma^2 / alpha^2 at t_min)                    reconstruction

for the generative process that starts from the prior p_1, follows the reverse-time SDE to t_min, and ends with a
Gaussian about the denoised state. As g^2 / sigma^2 = -d log_snr / dt, the integral is one over log_snr of
|noise + sigma s|^2 / 2, and times uniform in log_snr are the importance sampling that removes the weight.

The expectations over the noise have the control variate b (|noise|^2 - D) with b = (c^2 / (c^2 + s^2))^2 and
s = sigma / alpha, which is what remains of |noise|^2 for Gaussian data of variance c^2. Times uniform in t have a
weight that grows like 1 / t towards t_min: the estimate is unbiased, but has rare large terms, and its standard error
is too small where none was drawn.

Reference: Song, Durkan, Murray & Ermon 2021, arXiv:2101.09258, Thm. 3 and App. B (the same bound, with the entropy of
p(x_0 | x_tmin) and the cross-entropy of the prior in place of the two KL divergences), Sec. 4.2 (importance sampling);
Kingma et al. 2021, arXiv:2107.00630, Eq. (11) and (14).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .base import SDE
from .divergence import ScoreFunction
from .precision import in_double

TIME_SAMPLINGS = ("importance", "uniform")


@dataclass
class ElboResult:
    """Terms of the bound in nats, one entry per row, float64 of shape (B,); on the host where the device has none.

    Args:
        log_likelihood_bound: prior + diffusion + reconstruction; at most log p(x_0) in expectation.
        standard_error: of `log_likelihood_bound`, over times and noise.
        prior: - KL(p(x_1 | x_0) || p_1), exact.
        diffusion: estimate of minus the integral.
        reconstruction: estimate of E log p(x_0 | x_tmin).
    """

    log_likelihood_bound: torch.Tensor
    standard_error: torch.Tensor
    prior: torch.Tensor
    diffusion: torch.Tensor
    reconstruction: torch.Tensor


def elbo_times(sde: SDE, uniform: torch.Tensor, t_min: float, time_sampling: str = "importance") -> torch.Tensor:
    """Times for `denoising_elbo`, one in each of K equal strata of log_snr ("importance") or of time ("uniform").

    Args:
        sde: the forward process.
        uniform: numbers in [0, 1), shape (K, B).
        t_min: smallest time, in (0, 1).
        time_sampling: "importance" or "uniform".

    Returns:
        Times in [t_min, 1], shape (K, B), float64; on the host where the device of `uniform` has none.

    Raises:
        ValueError: if `time_sampling` is unknown, or `t_min` not allowed.
    """
    if time_sampling not in TIME_SAMPLINGS:
        allowed = ", ".join(map(repr, TIME_SAMPLINGS))
        raise ValueError(f"time_sampling is {time_sampling!r}; allowed are {allowed}.")
    if not 0 < t_min < 1:
        raise ValueError(f"t_min is {t_min}; it must lie between 0 and 1.")
    count = len(uniform)
    uniform = in_double(uniform)
    place = (torch.arange(count, dtype=torch.float64, device=uniform.device)[:, None] + uniform) / count
    if time_sampling == "uniform":
        return t_min + (1 - t_min) * place
    first, last = _log_snr_range(sde, t_min)
    return sde.time_of_log_snr(last + (first - last) * place).clamp(t_min, 1.0)


def denoising_elbo(
    sde: SDE,
    score_fn: ScoreFunction,
    x_0: torch.Tensor,
    t: torch.Tensor,
    noise: Callable[[], torch.Tensor],
    *,
    t_min: float,
    num_reconstructions: int = 4,
    time_sampling: str = "importance",
) -> ElboResult:
    """The bound for every row, by K + `num_reconstructions` evaluations of the score.

    Args:
        sde: the forward process.
        score_fn: `(x, t) -> score`, row by row.
        x_0: data, shape (B, ...).
        t: times from `elbo_times`, shape (K, B), K at least 2.
        noise: gives a new standard normal tensor of the shape of `x_0` at each call.
        t_min: smallest time, in (0, 1).
        num_reconstructions: draws of the noise for the last term, at least 2.
        time_sampling: by which `t` was laid.

    Raises:
        ValueError: if there are too few times or reconstructions for a standard error.
    """
    sde.check()
    if len(t) < 2 or num_reconstructions < 2:
        raise ValueError(
            f"{len(t)} times and {num_reconstructions} reconstructions; at least 2 of each are needed for a standard "
            "error."
        )
    squares = torch.stack([_residual(sde, score_fn, x_0, time, noise()) for time in t])
    values = -0.5 * _time_weight(sde, t, t_min, time_sampling) * squares
    start = t.new_full((len(x_0),), t_min)
    variance = (-sde.log_snr(start)).exp()
    dims = x_0[0].numel()
    ends = [_residual(sde, score_fn, x_0, start, noise()) for _ in range(num_reconstructions)]
    ends = -0.5 * (dims * (2 * math.pi * variance).log() + torch.stack(ends))
    # Times lie in strata: what varies from one to the next is the noise, more than the value.
    spread = (values[1:] - values[:-1]).square().sum(dim=0) / (2 * len(t) * (len(t) - 1))
    prior, diffusion, reconstruction = -_prior_divergence(sde, x_0), values.mean(dim=0), ends.mean(dim=0)
    standard_error = (spread + ends.var(dim=0) / num_reconstructions).sqrt()
    return ElboResult(prior + diffusion + reconstruction, standard_error, prior, diffusion, reconstruction)


def _residual(sde: SDE, score_fn: ScoreFunction, x_0, t, noise) -> torch.Tensor:
    """|noise + sigma s|^2 less its control variate; float64 of shape (B,)."""
    x = sde.perturb(x_0, noise, t)
    score = score_fn(x, t.to(x))
    noise, score, x_0 = (in_double(v.flatten(1)) for v in (noise, score, x_0))
    square = (noise + sde.sigma(t)[:, None] * score).square().sum(dim=1)
    c = x_0.var(dim=1).clamp(min=1e-4)
    share = (c / (c + (-sde.log_snr(t)).exp())).square()
    return square - share * (noise.square().sum(dim=1) - x_0.shape[1])


def _time_weight(sde: SDE, t: torch.Tensor, t_min: float, time_sampling: str) -> torch.Tensor | float:
    if time_sampling == "uniform":
        return (1 - t_min) * (sde.diffusion(t) / sde.sigma(t)).square()
    first, last = _log_snr_range(sde, t_min)
    return first - last


def _log_snr_range(sde: SDE, t_min: float) -> tuple[float, float]:
    return tuple(float(value) for value in sde.log_snr(torch.tensor([t_min, 1.0], dtype=torch.float64)))


def _prior_divergence(sde: SDE, x_0: torch.Tensor) -> torch.Tensor:
    """KL(N(alpha(1) x_0, sigma(1)^2 I) || N(0, prior_std^2 I)), shape (B,)."""
    alpha, sigma = (float(c(torch.ones((), dtype=torch.float64))) for c in (sde.alpha, sde.sigma))
    dims, ratio = x_0[0].numel(), sigma / sde.prior_std
    square = in_double(x_0.flatten(1)).square().sum(dim=1)
    return 0.5 * dims * (ratio**2 - 1 - 2 * math.log(ratio)) + 0.5 * (alpha / sde.prior_std) ** 2 * square
