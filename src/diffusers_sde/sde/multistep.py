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
from dataclasses import dataclass, fields

import numpy as np
import torch

from .base import SDE
from .precision import double_device, in_double

ORDER = 3  # networks are rough: their fourth differences are no smaller than the third
KAPPA = 0.03  # noise below which nodes are uniform in s, relative to the spread of the data
_FIRST_STEP, _SAFETY, _MIN_FACTOR, _MAX_FACTOR = 0.1, 0.8, 0.2, 2.5  # steps in w
_SMALLEST_STEP, _LARGEST_STEP = 1e-6, 0.5  # scores vary over log s by about 1, where differences tell nothing
# The quadrature through six points is better than the one-sided rule by which a step is judged: least so at the start,
# where that rule has low order.
_QUADRATURE_SHARE, _STARTING_SHARE = 0.5, 0.1
_TIME_RESOLUTION = 0.01  # of log(sigma / alpha), between a node and its time as the network gets it
_FINE, _COARSE = 6, 5  # points of the final quadrature, and of the one that tells its error

EpsilonFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


@dataclass
class AdamsSolution:
    """Result of an integration, one entry per row.

    Args:
        x: state at the end, or where a row stopped; shape (B, D).
        nfe: evaluations of epsilon, int64 of shape (B,).
        error: local errors of `x`, each grown as the state grew after it, summed; root mean square over the
            dimensions; shape (B,).
        state_error: the same sum relative to the spread of the state; shape (B,).
        success: whether the row reached the end within `max_nfe`, at times that the dtype of the state can tell apart;
            bool of shape (B,).
        log_volume: int div_x (dx/dt) dt over the path, shape (B, P); `None` without a divergence.
        density_error: estimate of the error in the log-density, in nats; shape (B,), or `None`.
    """

    x: torch.Tensor
    nfe: torch.Tensor
    error: torch.Tensor
    state_error: torch.Tensor
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

    Where `x` requires a gradient, the accepted steps are made once more, fixed, and with a graph: gradients are those
    of the computed numbers, and no rejected step has part in them.

    Args:
        sde: the forward process.
        epsilon_fn: `(x, t, rows) -> (epsilon, div_x epsilon)` with x and epsilon of shape (n, D), t of shape (n,) in
            the dtype of x, `rows` (n,) the places of the remaining rows in the batch, and a divergence of shape
            (P, n), always or never `None`.
        x: states at `t_start`, shape (B, D); the arithmetic is in its dtype, times and integrals are in float64, on
            the host where the device of `x` has none.
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
    frame = _Frame(sde, in_double(mean.detach()), in_double(std.detach()), t_start, t_end)
    tolerance = rtol + atol / frame.end_scale
    with torch.no_grad():
        run = _Run(frame, epsilon_fn, x.detach(), max_nfe, tolerance, density_tolerance)
        solution = run.finish()
    if torch.is_grad_enabled() and x.requires_grad:
        replayed = _Run(frame, epsilon_fn, x, max_nfe, tolerance, density_tolerance, run.schedule()).finish()
        solution.x, solution.log_volume = replayed.x, replayed.log_volume
    return solution


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
    """Points and weights of Gauss-Legendre quadrature on [-1, 1], float64 of shape (2, 12) on `double_device`."""
    return torch.from_numpy(np.stack(np.polynomial.legendre.leggauss(12))).to(double_device(device))


class _Frame:
    """The change of variables of every row; shapes (B,), float64 on `double_device`."""

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

    def resolved(self, s: torch.Tensor, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Whether t, rounded to the dtype in which the network gets it, still is the time of noise s."""
        seen = (-0.5 * self.sde.log_snr(t.to(dtype).double())).exp()
        return ((seen / s).log().abs() <= _TIME_RESOLUTION) | (seen == s)

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
    """Values at one node: v and epsilon of shape (n, D), rest of the divergence of shape (n, P) or `None`."""

    v: torch.Tensor
    epsilon: torch.Tensor
    rest: torch.Tensor | None


@dataclass
class _Rows:
    """State of the remaining rows: place in the batch, position, step, counts, sums of errors, last `ORDER` nodes.

    `u` and `history_v` are in dtype and place of the states, all else on `double_device`. The newest node is in slot
    (count - 1) % ORDER.
    """

    rows: torch.Tensor
    u: torch.Tensor
    w: torch.Tensor
    h: torch.Tensor
    count: torch.Tensor
    nfe: torch.Tensor
    error: torch.Tensor
    defect: torch.Tensor
    resolved: torch.Tensor
    history_w: torch.Tensor
    history_v: torch.Tensor
    history_rest: torch.Tensor

    def select(self, mask: torch.Tensor) -> "_Rows":
        return _Rows(**{field.name: getattr(self, field.name)[mask] for field in fields(self)})


@dataclass
class _Trial:
    """One step that may be accepted: where it ends, state and node there, and its errors.

    `norm` is in units of the tolerance, `size` of u, and `defect` in nats.
    """

    w: torch.Tensor
    h: torch.Tensor
    last: torch.Tensor
    u: torch.Tensor
    node: _Evaluation
    resolved: torch.Tensor
    norm: torch.Tensor
    size: torch.Tensor
    defect: torch.Tensor


@dataclass
class _Schedule:
    """Accepted nodes of every row, in order: w of shape (B, N), of which `count` hold, and whether the end is one."""

    w: torch.Tensor
    count: torch.Tensor
    reached: torch.Tensor


class _Run:
    """An integration: the remaining rows, all nodes so far, and the result of the rows that have left.

    Steps adapt to each row, or follow a schedule.
    """

    def __init__(self, frame, epsilon_fn, x, max_nfe, state_tolerance, density_tolerance, schedule=None):
        self.frame, self.epsilon_fn, self.max_nfe, self.replayed = frame, epsilon_fn, max_nfe, schedule
        self.state_tolerance, self.density_tolerance = state_tolerance, density_tolerance
        self.dims = x.shape[1]
        self.rule = quadrature_rule(frame.mean.device)
        rows = torch.arange(len(x), device=frame.mean.device)
        u, w, zeros = frame.from_x(x), frame.w_start, torch.zeros_like(frame.w_start)
        start = frame.s_start.expand(len(x)), frame.t_start.expand(len(x))
        first = self._evaluate(u, *start, rows)
        self.has_density = first.rest is not None
        rest = first.rest if self.has_density else zeros[:, None]
        ones = torch.ones_like(rows)
        self.state = _Rows(
            rows, u, w, torch.full_like(w, _FIRST_STEP), ones, ones, zeros, zeros, frame.resolved(*start, u.dtype),
            w[:, None].repeat(1, ORDER), first.v[:, None].repeat(1, ORDER, 1), rest[:, None].repeat(1, ORDER, 1),
        )  # fmt: skip
        self.nodes = [(w, rest, torch.ones_like(rows, dtype=torch.bool))]
        success = torch.zeros_like(self.nodes[0][2])
        self.result = AdamsSolution(x.clone(), ones.clone(), zeros.clone(), zeros.clone(), success, None, None)
        self.result_defect, self.result_t = zeros.clone(), start[1].clone()

    def _evaluate(self, u: torch.Tensor, s: torch.Tensor, t: torch.Tensor, rows: torch.Tensor) -> _Evaluation:
        frame = self.frame
        radius, std = frame.radius(s, rows), frame.std[rows]
        epsilon, divergence = self.epsilon_fn(frame.to_x(u, s, t, rows), t.to(u), rows)
        v = (radius.to(u)[:, None] * epsilon - s.to(u)[:, None] * u) / std.to(u)[:, None]
        if divergence is None:
            return _Evaluation(v, epsilon, None)
        rest = frame.sde.alpha(t) * in_double(divergence) - self.dims * s / radius.square()
        return _Evaluation(v, epsilon, (rest * radius.square() / std).T)  # per phi: ds = r^2 / c dphi

    def finish(self) -> AdamsSolution:
        """Step until no row remains; the result, with the integral of the divergence."""
        if self.replayed is not None:
            self._leave(self.replayed.count == 1)
        while len(self.state.rows):
            self._advance(self._try())
        frame, result = self.frame, self.result
        if self.has_density:
            start, end = (
                frame.sde.alpha(t).square() * frame.std.square() + frame.sde.sigma(t).square()
                for t in (frame.t_start, self.result_t)
            )
            fine, doubt = self._quadrature()
            result.log_volume = 0.5 * self.dims * (end / start).log()[:, None] + fine
            result.density_error = doubt + self.result_defect
        return result

    def schedule(self) -> _Schedule:
        """The accepted steps, to be made again."""
        w, _, count = self._accepted_nodes()
        return _Schedule(w, count, w.gather(1, count[:, None] - 1)[:, 0] == self.frame.w_end)

    def _target(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """w at the end of the next step, its length, and whether it is the last."""
        state, end = self.state, self.frame.w_end[self.state.rows]
        if self.replayed is not None:
            w = self.replayed.w[state.rows, state.count]
            last = self.replayed.reached[state.rows] & (state.count + 1 == self.replayed.count[state.rows])
            return w, (w - state.w).abs(), last
        remaining = (end - state.w).abs()
        left = (remaining / state.h - 0.1).ceil()  # the last two steps share what remains
        h = torch.where(left <= 2, remaining / left.clamp(min=1), state.h)
        last = left <= 1
        return torch.where(last, end, state.w + self.frame.direction * h), h, last

    def _try(self) -> _Trial:
        """One step of every remaining row, without regard to whether it is accepted."""
        frame, state = self.frame, self.state
        w, h, last = self._target()
        s, t = frame.place(w, state.rows, last)
        slots = torch.arange(ORDER, device=w.device)
        used = slots < state.count[:, None]
        oldest = slots == torch.where(state.count < ORDER, 0, state.count % ORDER)[:, None]
        weights = adams_weights(state.history_w, used, state.w, w, self.rule)
        predicted = state.u + torch.bmm(weights.to(state.u)[:, None], state.history_v)[:, 0]
        new = self._evaluate(predicted, s, t, state.rows)

        support = torch.cat([state.history_w, w[:, None]], dim=1)
        newest = torch.ones_like(used[:, :1])
        fine, coarse = (
            adams_weights(support, torch.cat([points, newest], dim=1), state.w, w, self.rule)
            for points in (used, used & ~oldest)
        )
        both = torch.stack([fine, fine - coarse], dim=1).to(state.u)
        corrected, local = torch.bmm(both, torch.cat([state.history_v, new.v[:, None]], dim=1)).unbind(dim=1)
        change = state.u + corrected - predicted
        if self.has_density:  # the mean of dv/du over the dimensions
            slope = new.rest.mean(dim=1) / self.dims
            change = change / (1 - fine[:, -1] * slope).to(change)[:, None]
            new.v = new.v + slope.to(change)[:, None] * change
        errors = self._errors(new, local.detach(), fine - coarse, s)
        return _Trial(w, h, last, predicted + change, new, frame.resolved(s, t, state.u.dtype), *errors)

    def _errors(self, new: _Evaluation, local: torch.Tensor, difference: torch.Tensor, s: torch.Tensor):
        """Of a step: in units of the tolerance, relative to the spread of the state, and in nats by the path."""
        state, radius = self.state, self.frame.radius(s, self.state.rows)
        size = in_double(local.square().mean(dim=1).sqrt())
        if self.frame.direction > 0:  # with more noise ahead, distances across the data grow like s rather than r
            size = size * radius / s
        norm = size / self.state_tolerance[state.rows]
        if not self.has_density:
            return norm, size, torch.zeros_like(size)
        # A jump of the path by r local changes log p_t by the score, -epsilon / s, times it.
        defect = in_double((new.epsilon.detach() * local).sum(dim=1)).abs() * radius / s
        values = torch.cat([state.history_rest, new.rest[:, None]], dim=1).detach()
        quadrature = (difference[..., None] * values).sum(dim=1).abs().mean(dim=1)
        share = torch.where(state.count < ORDER, _STARTING_SHARE, _QUADRATURE_SHARE)
        density = (share * quadrature + defect) / (self.dims * self.density_tolerance)
        return torch.maximum(norm, density), size, defect

    def _advance(self, trial: _Trial) -> None:
        """Accept or reject the step of each row, choose the next, and let finished rows leave."""
        state = self.state
        accepted = torch.ones_like(trial.last) if self.replayed is not None else trial.norm <= 1
        order = (state.count.clamp(max=ORDER) + 1).double()
        factor = (_SAFETY * trial.norm ** (-1 / order)).clamp(_MIN_FACTOR, _MAX_FACTOR)
        state.h = (trial.h * torch.where(trial.norm.isfinite(), factor, _MIN_FACTOR)).clamp(max=_LARGEST_STEP)
        state.nfe = state.nfe + 1
        grown = state.error * self._growth(state.u.detach(), trial.u.detach()) + trial.size
        state.error = torch.where(accepted, grown, state.error)
        state.defect = state.defect + torch.where(accepted, trial.defect, 0.0)
        state.resolved = state.resolved & (trial.resolved | ~accepted)
        here = accepted.to(state.u.device)
        state.u = torch.where(here[:, None], trial.u, state.u)
        state.w = torch.where(accepted, trial.w, state.w)
        rest = trial.node.rest if self.has_density else state.history_rest[:, 0]
        slot = accepted[:, None] & (torch.arange(ORDER, device=state.w.device) == (state.count % ORDER)[:, None])
        state.history_w = torch.where(slot, trial.w[:, None], state.history_w)
        state.history_v = torch.where(slot.to(here.device)[..., None], trial.node.v[:, None], state.history_v)
        state.history_rest = torch.where(slot[..., None], rest[:, None], state.history_rest)
        state.count = state.count + accepted
        self._record(trial.w, rest, accepted)
        reached = accepted & trial.last
        if self.replayed is not None:
            done = state.count == self.replayed.count[state.rows]
        else:
            done = reached | (state.nfe >= self.max_nfe) | (state.h <= _SMALLEST_STEP)
        if done.any():  # the one look of the host
            self._leave(done, reached)

    def _growth(self, u: torch.Tensor, new: torch.Tensor) -> torch.Tensor | float:
        """Factor by which a step towards the data carries errors apart, where states leave the data behind."""
        if self.frame.direction > 0:  # in the local errors already
            return 1.0
        growth = in_double((new.square().mean(dim=1) / u.square().mean(dim=1)).sqrt())
        return growth.clamp(min=1).nan_to_num(1.0, posinf=1.0)

    def _record(self, w, rest, accepted) -> None:
        """Keep a node of each remaining row, in the places of the whole batch."""
        full = [torch.zeros_like(value) for value in self.nodes[0]]
        for target, value in zip(full, (w, rest, accepted), strict=True):
            target[self.state.rows] = value
        self.nodes.append(tuple(full))

    def _leave(self, done: torch.Tensor, reached: torch.Tensor | None = None) -> None:
        ended, result = self.state.select(done), self.result
        reached = torch.zeros_like(done)[done] if reached is None else reached[done]
        s, t = self.frame.place(ended.w, ended.rows, reached)
        result.x[ended.rows] = self.frame.to_x(ended.u, s, t, ended.rows)
        result.nfe[ended.rows], result.success[ended.rows] = ended.nfe, reached & ended.resolved
        result.state_error[ended.rows] = ended.error
        result.error[ended.rows] = ended.error * self.frame.end_scale[ended.rows]
        self.result_defect[ended.rows], self.result_t[ended.rows] = ended.defect, t
        self.state = self.state.select(~done)

    def _accepted_nodes(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """w (B, N) and rest (B, N, P) of the accepted nodes of each row in order, and how many they are (B,)."""
        w, rest, accepted = (torch.stack(values, dim=1) for values in zip(*self.nodes, strict=True))
        order = accepted.int().argsort(dim=1, descending=True, stable=True)  # accepted nodes first
        count = accepted.sum(dim=1)
        order = order[:, : int(count.max())]
        return w.gather(1, order), rest.gather(1, order[..., None].expand(-1, -1, rest.shape[2])), count

    def _quadrature(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Integral of the rest of the divergence, shape (B, P), and what is to be doubted of it, shape (B,).

        The doubt is the difference from the rule of fewer points, summed with its signs or, where differences of the
        intervals have no sign in common and may cancel by chance, as independent ones.
        """
        w, rest, count = self._accepted_nodes()
        fine, coarse = (_piecewise(w, rest, count, points, self.rule) for points in (_FINE, _COARSE))
        difference = (fine - coarse).detach()
        doubt = torch.maximum(difference.sum(dim=1).abs(), difference.square().sum(dim=1).sqrt())
        return fine.sum(dim=1), doubt.mean(dim=1)


def _piecewise(w, values, count, points: int, rule) -> torch.Tensor:
    """Integrals over phi of values (B, N, P) between neighbours of the first `count` nodes w (B, N).

    By the nearest `points` nodes of each interval; shape (B, N - 1, P).
    """
    pieces = []
    places = torch.arange(points, device=w.device)
    for n in range(w.shape[1] - 1):
        first = (count - points).clamp(max=n + 1 - points // 2).clamp(min=0)
        window = (first[:, None] + places).clamp(max=w.shape[1] - 1)
        used = first[:, None] + places < count[:, None]
        weights = adams_weights(w.gather(1, window), used, w[:, n], w[:, n + 1], rule)
        chosen = values.gather(1, window[..., None].expand(-1, -1, values.shape[2]))
        piece = (weights[..., None] * chosen).sum(dim=1)
        pieces.append(torch.where((n + 1 < count)[:, None], piece, 0.0))
    return torch.stack(pieces, dim=1) if pieces else values[:, :0]
