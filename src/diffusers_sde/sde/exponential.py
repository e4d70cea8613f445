r"""Exponential multistep steps of the reverse process: the linear part exact, the network's part extrapolated.

With lambda = log(alpha / sigma), which grows along the reverse process, w = x / sigma obeys for every SDE and eta >= 0

    dw = (w - (1 + eta^2) epsilon) dlambda + sqrt(2) eta dW             (epsilon prediction)
    dw = ((1 + eta^2) (alpha / sigma) D - eta^2 w) dlambda + sqrt(2) eta dW      (data prediction, D the denoised mean)

eta = 0 is the probability flow, eta = 1 the reverse-time SDE; all have the marginals p_t. A step of order k replaces
epsilon or D by the polynomial in lambda through its last k values and integrates what is left exactly:

    x_s = carry x_t + sum_j weights_j value_j + noise_std z.

Order 1 on epsilon with eta = 0 is DDIM, order 2 on D is DPM-Solver++ (2M), with eta = 1 SDE-DPM-Solver++ (2M).

Reference: Lu et al. 2022, arXiv:2211.01095; Zhang & Chen 2023, arXiv:2204.13902; Xue et al. 2023, arXiv:2309.05019
(SA-Solver, Eq. 5 to 14, of which tau is eta).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PREDICTIONS = ("epsilon", "denoised")
MAX_ORDER = 4

# Exact to rounding for the polynomials here times exponentials over any step between noise levels that occur.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)


@dataclass(frozen=True)
class StepCoefficients:
    """Coefficients of one step x_s = carry x_t + sum_j weights_j value_j + noise_std z.

    Args:
        carry: factor on the state.
        weights: factors on the values of epsilon or the denoised mean, newest first.
        noise_std: standard deviation of the noise; 0 for the probability flow.
    """

    carry: float
    weights: tuple[float, ...]
    noise_std: float


def step_coefficients(
    past: Sequence[tuple[float, float]], target: tuple[float, float], prediction: str = "epsilon", eta: float = 0.0
) -> StepCoefficients:
    """Coefficients of a step from the newest of the past evaluations.

    Args:
        past: alpha and sigma of the evaluations that enter, newest first; their number, 1 to 4, is the order.
        target: alpha and sigma at the end of the step, of less noise.
        prediction: "epsilon" or "denoised", the values that are extrapolated.
        eta: share of the reverse SDE's noise, at least 0: 0 for the probability flow, 1 for the SDE.

    Returns:
        Coefficients in the units of the state x.

    Raises:
        ValueError: if an argument is not allowed, or the noise does not fall from the oldest evaluation to the target.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"`prediction` is {prediction!r}; allowed are {', '.join(map(repr, PREDICTIONS))}.")
    if not 1 <= len(past) <= MAX_ORDER:
        raise ValueError(f"`past` has {len(past)} evaluations; a step takes 1 to {MAX_ORDER}.")
    if not 0 <= eta < math.inf:
        raise ValueError(f"`eta` is {eta}; it is a share of noise, at least 0.")
    (alpha_t, sigma_t), (alpha_s, sigma_s) = past[0], target
    levels = np.array([math.log(alpha / sigma) for alpha, sigma in past])
    step = math.log(alpha_s / sigma_s) - levels[0]
    if step <= 0 or (np.diff(levels) >= 0).any():
        raise ValueError(
            "sigma / alpha has to fall from the oldest evaluation to the target; it is "
            f"{', '.join(f'{math.exp(-level):.4g}' for level in [*levels[::-1], step + levels[0]])}."
        )
    both = 1 + eta**2
    if prediction == "epsilon":
        carry, scale, rate = alpha_s / alpha_t, -both * sigma_s, 1.0
        noise_std = eta * sigma_s * math.sqrt(math.expm1(2 * step)) if eta else 0.0
    else:
        carry, scale, rate = sigma_s / sigma_t * math.exp(-(eta**2) * step), both * alpha_s, -both
        noise_std = sigma_s * math.sqrt(-math.expm1(-2 * eta**2 * step))
    weights = scale * _integrals(levels - levels[0], step, rate)
    return StepCoefficients(carry, tuple(map(float, weights)), noise_std)


def _integrals(nodes: np.ndarray, step: float, rate: float) -> np.ndarray:
    """int_0^step exp(rate (step - u)) l_j(u) du of the Lagrange polynomials l_j through `nodes`."""
    places = 0.5 * step * (_NODES + 1)
    basis = np.ones((len(nodes), len(places)))
    for j, node in enumerate(nodes):
        for other in np.delete(nodes, j):
            basis[j] *= (places - other) / (node - other)
    return basis @ (0.5 * step * _WEIGHTS * np.exp(rate * (step - places)))
