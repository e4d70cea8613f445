r"""A multistep solver of the probability-flow ODE that needs few evaluations.

In y = x / alpha and s = sigma / alpha the ODE of every SDE is the same,

    dy/ds = epsilon(alpha y, t(s)),

and epsilon changes slowly along a path. It is interpolated by polynomials in w = log sqrt(s^2 + delta^2) and
integrated over s exactly: an exponential Adams-Bashforth predictor and Adams-Moulton corrector with one evaluation per
node, at the predicted state (PEC). Nodes are uniform in w: geometric for s well above delta, uniform below it, where
epsilon is proportional to s.

The evaluation at the predicted state y_p is carried over to the corrected one y_c to first order, at no cost, with one
number g for the Jacobian: the mean div_y epsilon / D where the divergence is known, else that of Gaussian data. So y_c
solves y_c = base + c_0 (epsilon(y_p) + g (y_c - y_p)).

The difference of corrector and predictor, relative to the step, tells the local error: on smooth paths a small share
of that difference is left, and all of it where it is as large as the step.

Reference: Hairer, Norsett & Wanner, Solving ODEs I, Sec. III.1; Zhang & Chen 2023, arXiv:2204.13902 (exponential
integrators); Zhao et al. 2023, arXiv:2302.04867 (predictor and corrector sharing evaluations).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from .base import SDE

DELTA = 0.01  # noise below which nodes are uniform in s, in units of the data
ORDER = 3
FIRST_NODES = 25  # of a first run; on image-sized data it reaches 1e-3 bits per dimension
GROWTH = 1.5  # of the number of nodes where a run's error is too large
_QUADRATURE = np.polynomial.legendre.leggauss(16)
# What the error estimates take of the differences that they see. Chosen on Gaussian data and on mixtures of 2 to 128
# modes in 2 to 3072 dimensions: the estimate is hardly ever below half the error, mostly several times it.
_SHARE, _LEAST_SHARE = 2.0, 0.04
_QUADRATURE_ERROR = 0.5
DATA_STD = 0.3  # of the Gaussian data that stand in where nothing better is known


@dataclass(frozen=True)
class Node:
    """One time of the solver.

    Args:
        t: time.
        alpha: mean coefficient there.
        s: sigma / alpha there.
    """

    t: float
    alpha: float
    s: float


@dataclass
class Path:
    """What a run leaves behind.

    Args:
        x: state at the last node, shape (B, D).
        nodes: the nodes.
        divergences: div_y epsilon at each node, shape (N, P, B); empty if it was not asked for.
        changes: at each node but the first, estimate of the local error of y, root mean square; shape (N - 1, B).
        defects: what it changes in log p_t, in nats, shape (N - 1, B).
    """

    x: torch.Tensor
    nodes: list[Node]
    divergences: list[torch.Tensor] = field(default_factory=list)
    changes: list[torch.Tensor] = field(default_factory=list)
    defects: list[torch.Tensor] = field(default_factory=list)


def warp(s: np.ndarray | float) -> np.ndarray:
    """w(s) = arsinh(s / delta): proportional to s below delta, logarithmic above."""
    return np.arcsinh(np.asarray(s) / DELTA)


def lay_nodes(sde: SDE, t_start: float, t_end: float, num_nodes: int) -> list[Node]:
    """Nodes uniform in w from `t_start` to `t_end`, both included."""

    def ratio(t: float) -> float:
        return math.exp(-0.5 * float(sde.log_snr(torch.tensor(t, dtype=torch.float64))))

    first, last = ratio(t_start), ratio(t_end)
    w = np.linspace(warp(first), warp(last), num_nodes)
    s = DELTA * np.sinh(w)
    t = sde.time_of_log_snr(torch.from_numpy(-2 * np.log(s[1:-1])))
    times = [t_start, *t.tolist(), t_end]
    ratios = [first, *s[1:-1].tolist(), last]
    alphas = sde.alpha(torch.tensor(times, dtype=torch.float64)).tolist()
    return [Node(*values) for values in zip(times, alphas, ratios, strict=True)]


def adams_weights(support: list[float], start: float, end: float) -> list[float]:
    """Integrals over s from `start` to `end` of the Lagrange polynomials in w on `support`."""
    points, weights = _QUADRATURE
    s = 0.5 * (end - start) * points + 0.5 * (start + end)
    w, nodes = warp(s), warp(np.array(support))
    result = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        basis = np.prod((w[:, None] - others) / (node - others), axis=1)
        result.append(0.5 * (end - start) * float(weights @ basis))
    return result


EpsilonFunction = Callable[[torch.Tensor, float], tuple[torch.Tensor, torch.Tensor | None]]


def adams_predict_correct(epsilon_fn: EpsilonFunction, x: torch.Tensor, nodes: list[Node]) -> Path:
    """Follow the ODE through `nodes`, one evaluation at each.

    Args:
        epsilon_fn: `(x, t) -> (epsilon, div_x epsilon)` with shapes (B, D) and (P, B), or `None` for the second.
        x: states at the first node, shape (B, D).
        nodes: from `lay_nodes`, at least 2.
    """
    path = Path(x, nodes)
    s = [node.s for node in nodes]
    y = x / nodes[0].alpha

    def evaluate(y: torch.Tensor, node: Node) -> tuple[torch.Tensor, torch.Tensor | None]:
        epsilon, divergence = epsilon_fn(node.alpha * y, node.t)
        if divergence is not None:
            path.divergences.append(node.alpha * divergence)
        return epsilon, divergence

    history = [evaluate(y, nodes[0])[0]]  # newest first
    for n in range(1, len(nodes)):
        support = s[max(0, n - ORDER) : n][::-1]
        weights = adams_weights(support, s[n - 1], s[n])
        predicted = y + sum(c * epsilon for c, epsilon in zip(weights, history, strict=False))
        epsilon, divergence = evaluate(predicted, nodes[n])

        support = s[max(0, n + 1 - ORDER) : n + 1][::-1]
        weights = adams_weights(support, s[n - 1], s[n])
        corrected = y + sum(c * e for c, e in zip(weights, [epsilon, *history], strict=False))
        change = corrected - predicted
        size = change.square().mean(dim=1).sqrt()
        share = (_SHARE * size / (corrected - y).square().mean(dim=1).sqrt()).clamp(_LEAST_SHARE, 1.0)
        path.changes.append(share * size)
        path.defects.append(share * (epsilon * change).sum(dim=1).abs() / s[n])
        if divergence is None:
            slope = s[n] / (DATA_STD**2 + s[n] ** 2)  # of Gaussian data
        else:
            slope = (nodes[n].alpha * divergence.mean(dim=0) / x.shape[1])[:, None]
        change = change / (1 - weights[0] * slope)
        epsilon = epsilon + slope * change
        y = predicted + change
        history = [epsilon, *history[: ORDER - 1]]
    path.x = nodes[-1].alpha * y
    return path


def state_error(path: Path) -> torch.Tensor:
    """Estimate of the error of `path.x`, root mean square over the dimensions; shape (B,).

    A local error at s spreads to the end as between two paths of Gaussian data, by
    sqrt((c^2 + s_end^2) / (c^2 + s^2)).
    """
    end = path.nodes[-1]
    spread = [math.sqrt((DATA_STD**2 + end.s**2) / (DATA_STD**2 + node.s**2)) for node in path.nodes[1:]]
    changes = torch.stack(path.changes)
    return end.alpha * (changes * changes.new_tensor(spread)[:, None]).sum(dim=0)


def integrate_divergence(path: Path, data_variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""int div_y epsilon ds over the path, and an estimate of the error in the log-density, in nats.

    Gaussian data of variance c^2 have div_y epsilon = D s / (c^2 + s^2); that part is integrated in closed form, the
    rest by piecewise polynomials in w through the six nearest nodes. The error has two parts: of the quadrature, from
    the difference to polynomials through five, and of the path, from the defects.

    Args:
        path: with divergences.
        data_variance: c^2 per row, shape (B,); any positive value gives the same limit.

    Returns:
        Integrals of shape (P, B) and errors, not negative, of shape (B,).
    """
    dims = path.x.shape[1]
    s = np.array([node.s for node in path.nodes])
    values = torch.stack(path.divergences).double()  # (N, P, B)
    grid = torch.from_numpy(s).to(values.device)[:, None]
    variance = data_variance.double()
    rest = values - (dims * grid / (variance + grid.square()))[:, None]
    baseline = 0.5 * dims * ((variance + s[-1] ** 2) / (variance + s[0] ** 2)).log()
    fine, coarse = (torch.tensordot(_quadrature_weights(s, k).to(values), rest, dims=1) for k in (6, 5))
    along_path = torch.stack(path.defects).sum(dim=0)
    return baseline + fine, _QUADRATURE_ERROR * (fine - coarse).abs().mean(dim=0) + along_path


def _quadrature_weights(s: np.ndarray, points: int) -> torch.Tensor:
    """Weights of the values at `s` in the integral by piecewise polynomials through `points` nearest nodes; (N,)."""
    total = np.zeros(len(s))
    points = min(points, len(s))
    for n in range(len(s) - 1):
        first = min(max(n + 1 - points // 2, 0), len(s) - points)
        window = slice(first, first + points)
        total[window] += adams_weights(s[window].tolist(), s[n], s[n + 1])
    return torch.from_numpy(total)


def refine(run: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]], num_rows: int, max_nfe: int, device):
    """Run all rows on few nodes, and those whose error is too large again on more.

    Args:
        run: `(rows, num_nodes) -> (values, settled)` with values of shape (n, V), settled (n,) bool.
        num_rows: B.
        max_nfe: most evaluations per row over all runs.
        device: of the rows.

    Returns:
        The last values of each row, shape (B, V); evaluations (B,); whether the row settled (B,).

    Raises:
        ValueError: if `max_nfe` does not allow a first run.
    """
    if max_nfe < FIRST_NODES:
        raise ValueError(
            f"max_nfe = {max_nfe}; solver 'adams' starts with {FIRST_NODES} evaluations, allow at least that."
        )
    rows = torch.arange(num_rows, device=device)
    nfe = torch.zeros(num_rows, dtype=torch.int64, device=device)
    success = torch.zeros(num_rows, dtype=torch.bool, device=device)
    values, spent, num_nodes = None, 0, FIRST_NODES
    while len(rows) and spent + num_nodes <= max_nfe:
        new, settled = run(rows, num_nodes)
        spent += num_nodes
        values = new if values is None else values.index_copy(0, rows, new)
        nfe[rows], success[rows] = spent, settled
        again = ~settled & new.isfinite().all(dim=1)  # more nodes do not mend NaN
        rows, num_nodes = rows[again], math.ceil(GROWTH * num_nodes)
    return values, nfe, success
