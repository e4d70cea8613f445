r"""A multistep solver of the probability-flow ODE that needs few evaluations, with a step size per row.

In y = x / alpha and s = sigma / alpha the ODE of every SDE is the same, dy/ds = epsilon(alpha y, t(s)). For Gaussian
data N(m, c^2) its solution is known, and what is left of any other is small where the noise is large: with
r = sqrt(c^2 + s^2),

    u = (y - m) / r,      phi = arctan(s / c),      du/dphi = v = (r epsilon - s u) / c,

and v = 0 for these Gaussian data. v is interpolated by polynomials in w = arsinh(s / (kappa c)), which is proportional
to s for little noise and to log s for much, and integrated over phi exactly: an exponential Adams-Bashforth predictor
through `ORDER` points and an Adams-Moulton corrector through one more, with one evaluation per step, at the predicted
state (PEC). The evaluation is carried over to the corrected state to first order with one number for the Jacobian,
which costs nothing where the divergence is known.

The corrector through one point fewer gives the local error. Steps whose error is above the tolerance are repeated with
a shorter one, every row for itself.

The log-density gains int div_y epsilon ds. Gaussian data have div_y epsilon = D s / r^2; that part is taken in closed
form, the rest, after the last step, by polynomials in w through the six nearest nodes.

Reference: Hairer, Norsett & Wanner, Solving ODEs I, Sec. III.1 and III.5; Zhang & Chen 2023, arXiv:2204.13902
(exponential integrators); Karras et al. 2022, arXiv:2206.00364, Eq. (7) (v is its F_theta, up to sign).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .base import SDE

ORDER = 3  # networks are rough: their fourth differences are no smaller than the third
KAPPA = 0.03  # noise below which nodes are uniform in s, relative to the spread of the data
_FIRST_STEP, _SAFETY, _MIN_FACTOR, _MAX_FACTOR = 0.1, 0.8, 0.2, 2.5  # steps in w
_SMALLEST_STEP, _LARGEST_STEP = 1e-6, 0.5  # scores vary over log s by about 1, where differences tell nothing
# The quadrature through six points is better than the one-sided rule by which a step is judged: least so at the start,
# where that rule has low order.
_QUADRATURE_SHARE, _STARTING_SHARE = 0.5, 0.1
_FINE, _COARSE = 6, 5  # points of the final quadrature, and of the one that tells its error

EpsilonFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass
class AdamsSolution:
    """Result of an integration, one entry per row.

    Args:
        x: state at the end, or where a row stopped; shape (B, D).
        nfe: evaluations of epsilon, int64 of shape (B,).
        error: sum of the local errors of `x`, root mean square over the dimensions; shape (B,).
        success: whether the row reached the end within `max_nfe`; bool of shape (B,).
        log_volume: int div_x (dx/dt) dt over the path, shape (B, P); `None` without a divergence.
        density_error: estimate of the error in the log-density, in nats; shape (B,), or `None`.
    """

    x: torch.Tensor
    nfe: torch.Tensor
    error: torch.Tensor
    success: torch.Tensor
    log_volume: torch.Tensor | None
    density_error: torch.Tensor | None


def adams(
    sde: SDE,
    epsilon_fn: EpsilonFunction,
    x: torch.Tensor,
    t_start: float,
    t_end: float,
    *,
    mean: torch.Tensor,
    std: torch.Tensor,
    rtol: float,
    atol: float,
    density_tolerance: float = math.inf,
    max_nfe: int,
) -> AdamsSolution:
    """Follow the probability flow of every row of `x` from `t_start` to `t_end`, in either direction.

    Args:
        sde: the forward process.
        epsilon_fn: `(x, t, rows) -> (epsilon, div_x epsilon)` with x and epsilon of shape (n, D), t of shape (n,) in
            the dtype of x, `rows` (n,) the places of the remaining rows in the batch, and a divergence of shape
            (P, n), always or never `None`.
        x: states at `t_start`, shape (B, D); the arithmetic is in its dtype, times and integrals are in float64.
        t_start: time of the start.
        t_end: time of the end; no evaluation is made beyond it.
        mean: m, a rough mean of the data for each row, shape (B,).
        std: c, a rough standard deviation, positive, shape (B,).
        rtol: tolerance of a step, relative to the spread of the state.
        atol: the same in units of the state at the end.
        density_tolerance: tolerance of a step in nats per dimension.
        max_nfe: evaluations after which a row stops where it is; at least 2.

    Raises:
        ValueError: if `max_nfe` is too small.
    """
    if max_nfe < 2:
        raise ValueError(f"max_nfe = {max_nfe}; solver 'adams' takes at least 2 evaluations.")
    frame = _Frame(sde, mean.double(), std.double(), t_start, t_end)
    tolerance = rtol + atol / frame.end_scale
    run = _Run(frame, epsilon_fn, x, max_nfe, tolerance, density_tolerance)
    while len(run.rows):
        run.step()
    return run.solution()


def adams_weights(
    support: torch.Tensor, used: torch.Tensor, start: torch.Tensor, end: torch.Tensor, rule: torch.Tensor
) -> torch.Tensor:
    """Integrals over phi, from w = `start` to `end`, of the Lagrange polynomials in w on the used points.

    Args:
        support: w of the points, shape (n, K).
        used: which of them count, bool of shape (n, K).
        start: shape (n,).
        end: shape (n,).
        rule: from `quadrature_rule`.

    Returns:
        Weights of shape (n, K), 0 for points that are not used.
    """
    half = 0.5 * (end - start)
    w = half[:, None] * rule[0] + 0.5 * (start + end)[:, None]
    density = half[:, None] * rule[1] * KAPPA * w.cosh() / (1 + (KAPPA * w.sinh()).square())  # dphi
    own = torch.eye(support.shape[1], dtype=torch.bool, device=support.device)
    left_out = own | ~used[:, None, :]
    gaps = torch.where(left_out, 1.0, support[:, :, None] - support[:, None, :])
    factors = (w[:, None, :] - support[:, :, None])[:, None] / gaps[..., None]  # (n, polynomial, point, node)
    basis = torch.where(left_out[..., None], 1.0, factors).prod(dim=2)
    return torch.where(used, (basis * density[:, None]).sum(dim=-1), 0.0)


def quadrature_rule(device: torch.device) -> torch.Tensor:
    """Points and weights of Gauss-Legendre quadrature on [-1, 1], float64 of shape (2, 12)."""
    return torch.from_numpy(np.stack(np.polynomial.legendre.leggauss(12))).to(device)


class _Frame:
    """The change of variables of every row; shapes (B,), float64."""

    def __init__(self, sde: SDE, mean: torch.Tensor, std: torch.Tensor, t_start: float, t_end: float):
        self.sde, self.mean, self.std = sde, mean, std
        self.t_start, self.t_end = (torch.tensor(t, dtype=torch.float64, device=mean.device) for t in (t_start, t_end))
        self.s_start, self.s_end = ((-0.5 * sde.log_snr(t)).exp() for t in (self.t_start, self.t_end))
        self.direction = 1.0 if bool(self.s_end > self.s_start) else -1.0
        self.w_start, self.w_end = (torch.asinh(s / (KAPPA * std)) for s in (self.s_start, self.s_end))
        self.end_scale = sde.alpha(self.t_end) * (std.square() + self.s_end.square()).sqrt()

    def place(self, w: torch.Tensor, rows: torch.Tensor, at_end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """s and t at w; exactly those of the end where `at_end`."""
        s = torch.where(at_end, self.s_end, self.std[rows] * KAPPA * w.sinh())
        return s, torch.where(at_end, self.t_end, self.sde.time_of_log_snr(-2 * s.log()))

    def radius(self, s: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return (self.std[rows].square() + s.square()).sqrt()

    def to_x(self, u: torch.Tensor, s: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        alpha = self.sde.alpha(t)
        scale, shift = alpha * self.radius(s, rows), alpha * self.mean[rows]
        return scale.to(u)[:, None] * u + shift.to(u)[:, None]

    def from_x(self, x: torch.Tensor) -> torch.Tensor:
        """u at the start."""
        scale = (self.std.square() + self.s_start.square()).rsqrt()
        return (x / self.sde.alpha(self.t_start).to(x) - self.mean.to(x)[:, None]) * scale.to(x)[:, None]


@dataclass
class _Evaluation:
    """What one evaluation tells: v and epsilon of shape (n, D), rest of the divergence of shape (n, P) or `None`."""

    v: torch.Tensor
    epsilon: torch.Tensor
    rest: torch.Tensor | None


class _Run:
    """State of an integration: the remaining rows, the last `ORDER` evaluations of each, and all nodes so far."""

    _PER_ROW = ("rows", "u", "w", "h", "count", "nfe", "error", "defect", "history_w", "history_v", "history_rest")

    def __init__(self, frame, epsilon_fn, x, max_nfe, state_tolerance, density_tolerance):
        self.frame, self.epsilon_fn, self.max_nfe = frame, epsilon_fn, max_nfe
        self.state_tolerance, self.density_tolerance = state_tolerance, density_tolerance
        self.rule = quadrature_rule(x.device)
        batch, self.dims = x.shape
        self.rows = torch.arange(batch, device=x.device)
        self.u, self.w = frame.from_x(x), frame.w_start
        start = frame.s_start.expand(batch), frame.t_start.expand(batch)
        first = self._evaluate(self.u, *start)
        self.count = torch.ones_like(self.rows)  # nodes so far; the newest is in slot (count - 1) % ORDER
        self.nfe = torch.ones_like(self.rows)
        self.h = torch.full_like(self.w, _FIRST_STEP)
        self.error, self.defect = torch.zeros_like(self.w), torch.zeros_like(self.w)
        self.history_w = self.w[:, None].repeat(1, ORDER)
        self.history_v = first.v[:, None].repeat(1, ORDER, 1)
        self.has_density = first.rest is not None
        rest = first.rest if self.has_density else self.w.new_zeros(batch, 1)
        self.history_rest = rest[:, None].repeat(1, ORDER, 1)
        self.nodes = [(self.w, rest, torch.ones_like(self.rows, dtype=torch.bool))]
        self.result = AdamsSolution(
            x.clone(), self.nfe.clone(), torch.zeros_like(self.w), torch.zeros_like(self.nodes[0][2]), None, None
        )
        self.result_defect = torch.zeros_like(self.w)
        self.result_t = start[1].clone()

    def _evaluate(self, u: torch.Tensor, s: torch.Tensor, t: torch.Tensor) -> _Evaluation:
        frame, rows = self.frame, self.rows
        radius, std = frame.radius(s, rows), frame.std[rows]
        epsilon, divergence = self.epsilon_fn(frame.to_x(u, s, t, rows), t.to(u), rows)
        v = (radius.to(u)[:, None] * epsilon - s.to(u)[:, None] * u) / std.to(u)[:, None]
        if divergence is None:
            return _Evaluation(v, epsilon, None)
        rest = frame.sde.alpha(t) * divergence.double() - self.dims * s / radius.square()
        return _Evaluation(v, epsilon, (rest * radius.square() / std).T)  # per phi: ds = r^2 / c dphi

    def step(self) -> None:
        """Try one step of every remaining row."""
        frame, rows, count = self.frame, self.rows, self.count
        remaining = (frame.w_end[rows] - self.w).abs()
        left = (remaining / self.h - 0.1).ceil()  # the last two steps share what remains
        h = torch.where(left <= 2, remaining / left.clamp(min=1), self.h)
        last = left <= 1
        w = torch.where(last, frame.w_end[rows], self.w + frame.direction * h)
        s, t = frame.place(w, rows, last)

        slots = torch.arange(ORDER, device=w.device)
        used = slots < count[:, None]
        oldest = slots == torch.where(count < ORDER, 0, count % ORDER)[:, None]
        weights = adams_weights(self.history_w, used, self.w, w, self.rule)
        predicted = self.u + torch.bmm(weights.to(self.u)[:, None], self.history_v)[:, 0]
        new = self._evaluate(predicted, s, t)

        support = torch.cat([self.history_w, w[:, None]], dim=1)
        newest = torch.ones_like(used[:, :1])
        fine, coarse = (
            adams_weights(support, torch.cat([points, newest], dim=1), self.w, w, self.rule)
            for points in (used, used & ~oldest)
        )
        both = torch.stack([fine, fine - coarse], dim=1).to(self.u)
        corrected, local = torch.bmm(both, torch.cat([self.history_v, new.v[:, None]], dim=1)).unbind(dim=1)
        change = self.u + corrected - predicted
        if self.has_density:  # the mean of dv/du over the dimensions
            slope = new.rest.mean(dim=1) / self.dims
            change = change / (1 - fine[:, -1] * slope).to(change)[:, None]
            new.v = new.v + slope.to(change)[:, None] * change

        size = local.square().mean(dim=1).sqrt().double()
        if frame.direction > 0:  # with more noise ahead, distances across the data grow like s rather than r
            size = size * frame.radius(s, rows) / s
        norm = size / self.state_tolerance[rows]
        defect = torch.zeros_like(size)
        if self.has_density:
            # A jump of the path by r local changes log p_t by the score, -epsilon / s, times it.
            defect = (new.epsilon * local).sum(dim=1).double().abs() * frame.radius(s, rows) / s
            values = torch.cat([self.history_rest, new.rest[:, None]], dim=1)
            quadrature = ((fine - coarse)[..., None] * values).sum(dim=1).abs().mean(dim=1)
            share = torch.where(count < ORDER, _STARTING_SHARE, _QUADRATURE_SHARE)
            norm = torch.maximum(norm, (share * quadrature + defect) / (self.dims * self.density_tolerance))
        self._advance(w, s, t, h, last, predicted + change, new, norm, size, defect)

    def _advance(self, w, s, t, h, last, u, new: _Evaluation, norm, size, defect) -> None:
        """Accept or reject the step of each row, choose the next, and let finished rows leave."""
        accepted = norm <= 1
        order = (self.count.clamp(max=ORDER) + 1).double()
        factor = (_SAFETY * norm ** (-1 / order)).clamp(_MIN_FACTOR, _MAX_FACTOR)
        self.h = (h * torch.where(norm.isfinite(), factor, _MIN_FACTOR)).clamp(max=_LARGEST_STEP)
        self.nfe = self.nfe + 1
        self.u = torch.where(accepted[:, None], u, self.u)
        self.w = torch.where(accepted, w, self.w)
        self.error = self.error + torch.where(accepted, size, 0.0)
        self.defect = self.defect + torch.where(accepted, defect, 0.0)
        rest = new.rest if self.has_density else self.history_rest[:, 0]
        slot = accepted[:, None] & (torch.arange(ORDER, device=w.device) == (self.count % ORDER)[:, None])
        self.history_w = torch.where(slot, w[:, None], self.history_w)
        self.history_v = torch.where(slot[..., None], new.v[:, None], self.history_v)
        self.history_rest = torch.where(slot[..., None], rest[:, None], self.history_rest)
        self.count = self.count + accepted
        self._record(w, rest, accepted)

        reached = accepted & last
        done = reached | (self.nfe >= self.max_nfe) | (self.h <= _SMALLEST_STEP)
        if done.any():  # the one look of the host
            self._leave(done, reached)

    def _record(self, w, rest, accepted) -> None:
        """Keep a node of each remaining row, in the places of the whole batch."""
        if self.has_density:
            full = [torch.zeros_like(value) for value in self.nodes[0]]
            for target, value in zip(full, (w, rest, accepted), strict=True):
                target[self.rows] = value
            self.nodes.append(tuple(full))

    def _leave(self, done: torch.Tensor, reached: torch.Tensor) -> None:
        rows, result = self.rows[done], self.result
        s, t = self.frame.place(self.w[done], rows, reached[done])
        result.x[rows] = self.frame.to_x(self.u[done], s, t, rows)
        result.nfe[rows], result.success[rows] = self.nfe[done], reached[done]
        result.error[rows] = self.error[done] * self.frame.end_scale[rows]
        self.result_defect[rows], self.result_t[rows] = self.defect[done], t
        for name in self._PER_ROW:
            setattr(self, name, getattr(self, name)[~done])

    def solution(self) -> AdamsSolution:
        """The result, with the integral of the divergence."""
        frame, result = self.frame, self.result
        if self.has_density:
            start, end = (
                frame.sde.alpha(t).square() * frame.std.square() + frame.sde.sigma(t).square()
                for t in (frame.t_start, self.result_t)
            )
            fine, coarse = self._quadratures()
            result.log_volume = 0.5 * self.dims * (end / start).log()[:, None] + fine
            result.density_error = (fine - coarse).abs().mean(dim=1) + self.result_defect
        return result

    def _quadratures(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Integrals of the rest of the divergence through `_FINE` and `_COARSE` points, shape (B, P) each."""
        w, rest, accepted = (torch.stack(values, dim=1) for values in zip(*self.nodes, strict=True))
        order = accepted.int().argsort(dim=1, descending=True, stable=True)  # accepted nodes first
        count = accepted.sum(dim=1)
        order = order[:, : int(count.max())]
        w, rest = w.gather(1, order), rest.gather(1, order[..., None].expand(-1, -1, rest.shape[2]))
        return tuple(_piecewise(w, rest, count, points, self.rule) for points in (_FINE, _COARSE))


def _piecewise(w, values, count, points: int, rule) -> torch.Tensor:
    """Integral over phi of values (B, N, P) at the first `count` nodes w (B, N), by the nearest `points` of them."""
    total = torch.zeros_like(values[:, 0])
    places = torch.arange(points, device=w.device)
    for n in range(w.shape[1] - 1):
        first = (count - points).clamp(max=n + 1 - points // 2).clamp(min=0)
        window = (first[:, None] + places).clamp(max=w.shape[1] - 1)
        used = first[:, None] + places < count[:, None]
        weights = adams_weights(w.gather(1, window), used, w[:, n], w[:, n + 1], rule)
        chosen = values.gather(1, window[..., None].expand(-1, -1, values.shape[2]))
        piece = (weights[..., None] * chosen).sum(dim=1)
        total = total + torch.where((n + 1 < count)[:, None], piece, 0.0)
    return total
