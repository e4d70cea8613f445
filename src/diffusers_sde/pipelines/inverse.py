r"""Sampling under a linear measurement y = A x_0 + noise_std n: three conditions of the Predictor-Corrector loop.

With x_t = alpha x_0 + sigma z and the denoised mean D(x_t) = (x_t + sigma^2 score) / alpha:

- `Replacement` keeps the score and puts the measurement, noised to level t, in place of what A sees of the state:
  x <- x - P x + alpha A^+ y + sigma P z, where P = A^+ A is an orthogonal projection.
- `DPS` keeps the score and moves the state after each update down the gradient of |y - A D(x_t)|.
- `PiGDM` takes x_0 given x_t for Gaussian with covariance r^2 I, so that y is Gaussian given x_t, and adds the
  gradient of its log-density: D'(x_t)^T A* (r^2 A A* + noise_std^2)^-1 (y - A D(x_t)). It is exact for Gaussian data
  N(m, data_std^2 I).

The last two cost one evaluation of the network and one product with its transposed derivative per update. All are in
the data range of the network.
"""

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..sde import SDE
from ..sde.broadcasting import expand_to
from ..sde.linear_inverse import LinearOperator, pseudo_inverse, solve_regularized
from .loop import Condition, Generators, ScoreAtState

_LONGEST = 2.0  # norm of PiGDM's guidance, in units of the typical one


class LinearCondition(Condition):
    """What the three conditions know.

    Args:
        sde: forward process of the network.
        operator: A, with `A_adjoint`, see `diffusers_sde.sde.operators`.
        measurement: y, in units of A on the data range; shape (B, ...).
        noise_std: standard deviation of the noise in y, at least 0.
    """

    def __init__(self, sde: SDE, operator: LinearOperator, measurement: torch.Tensor, noise_std: float = 0.0):
        self.sde, self.operator, self.noise_std = sde, operator, noise_std
        self.measurement = measurement
        self.pseudo_inverse = pseudo_inverse(operator)

    def start(self, x: torch.Tensor) -> torch.Tensor:
        """State at t = 1 from a draw of the prior."""
        return x

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        """x - P x + A^+ y, which agrees with a measurement without noise; the state itself if there is noise."""
        return x if self.noise_std else x + self.pseudo_inverse(self.measurement - self.operator.A(x))


class Replacement(LinearCondition):
    r"""Replacement of what is measured: x <- x - P x + alpha A^+ y + sigma P z after each update.

    The noise of y counts as part of sigma: added is only what is missing to sigma^2, and at times when
    alpha noise_std exceeds sigma the state is left to the score. This needs A A* = c I on the range of A.

    Biased: the state is noised anew rather than conditioned, so the rest learns of the measurement through the score
    alone, at a rate that depends on the number of steps; a corrector lessens the bias.

    Reference: Song et al. 2021, arXiv:2011.13456, App. I.2 and I.3, for pixels and the grey axis without noise.

    Raises:
        ValueError: if there is noise and A A* is not a multiple of the identity.
    """

    def __init__(self, sde: SDE, operator: LinearOperator, measurement: torch.Tensor, noise_std: float = 0.0):
        super().__init__(sde, operator, measurement, noise_std)
        self.image_noise_std = 0.0 if noise_std == 0 else noise_std / self._gain()

    def _gain(self) -> float:
        """sqrt(c) of A A* = c I on the range of A."""
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(self.measurement.shape, generator=generator).to(self.measurement)
        image = self.operator.A(self.pseudo_inverse(probe))
        twice = self.operator.A(self.operator.A_adjoint(image))
        square = float((image * twice).sum() / image.square().sum().clamp(min=1e-30))
        error = float((twice - square * image).norm() / twice.norm().clamp(min=1e-30))
        if error > 1e-3:
            raise ValueError(
                f"method 'replacement' with `noise_std` above 0 needs A A* = c I, and this operator's differs from "
                f"that by {error:.2g}: its noise has no one level in images. Use method 'pigdm' or 'dps'."
            )
        return square**0.5

    def start(self, x: torch.Tensor) -> torch.Tensor:
        """x - P x + A^+ y: what is measured starts without diffusion noise, as in the official code."""
        return self.finish(x)

    def project(self, x: torch.Tensor, t: torch.Tensor, generator: Generators) -> torch.Tensor:
        alpha, sigma = float(self.sde.alpha(t)), float(self.sde.sigma(t))
        missing = sigma**2 - (alpha * self.image_noise_std) ** 2
        if missing < 0:
            return x
        noise = randn_tensor(x.shape, generator, x.device, x.dtype)
        residual = alpha * self.measurement - self.operator.A(x - missing**0.5 * noise)
        return x + self.pseudo_inverse(residual)


class DPS(LinearCondition):
    r"""Diffusion posterior sampling: x <- x - scale grad |y - A D(x_t)| after each update.

    The step has the length that `scale` and D' give it, however small the residual and whatever `noise_std`, as
    published for 1000 steps of VP on images of 256 x 256; smaller images and fewer steps want other scales. The
    gradient is of the norm, as in the authors' code: half of zeta / |r| grad |r|^2 with the same zeta.

    Biased: the scale stands for the covariance of x_0 given x_t and for that of the noise.

    Args:
        sde: as for `LinearCondition`.
        operator: likewise.
        measurement: likewise.
        noise_std: not used.
        scale: length factor of the step, in units of the data range.

    Reference: Chung et al. 2023, arXiv:2209.14687, Algorithm 1.
    """

    changes_score = True

    def __init__(
        self,
        sde: SDE,
        operator: LinearOperator,
        measurement: torch.Tensor,
        noise_std: float = 0.0,
        scale: float = 1.0,
    ):
        super().__init__(sde, operator, measurement, noise_std)
        self.scale = scale
        self._shift = 0.0

    def score(self, score_fn: ScoreAtState, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The unconditional score; the step is noted for `project`."""
        score, denoised, pull_back = denoise(self.sde, score_fn, x, t)
        residual = self.measurement - self.operator.A(denoised)
        norm = residual.flatten(1).norm(dim=1).clamp(min=1e-12)
        self._shift = self.scale * pull_back(self.operator.A_adjoint(residual / expand_to(norm, residual)))
        return score

    def project(self, x: torch.Tensor, t: torch.Tensor, generator: Generators) -> torch.Tensor:
        return self.finish(x)

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        """The state after the step, as published: near the measurement, also where that has no noise."""
        shift, self._shift = self._shift, 0.0
        return x + shift


class PiGDM(LinearCondition):
    r"""Pseudo-inverse guidance: score + scale D'^T A* (r^2 A A* + noise_std^2)^-1 (y - A D).

    r^2 = s^2 c^2 / (c^2 + s^2) with s = sigma / alpha and c = data_std is the variance of x_0 given x_t if the data
    are N(m, c^2 I), and then the score is exactly that of p_t(x given y). Without noise A* (r^2 A A*)^-1 is A^+ / r^2,
    and the last state is made to agree with y; with noise it is found by conjugate gradients.

    Biased where the data are not of that kind.

    Deviation from the paper, which weighs the guidance by r^2 to keep it stable: it is left as it is up to twice the
    norm that the gradient of log p_t(y given x) typically has, at most sqrt(d) r / (s sigma) for d pixels of standard
    deviation c, and shortened to that above. At high noise D' is a small difference of large numbers, and the errors
    of a trained network, or of 16 bits, would otherwise be multiplied until the state explodes.

    Args:
        sde: as for `LinearCondition`.
        operator: likewise.
        measurement: likewise.
        noise_std: likewise.
        data_std: c, in units of the data range.
        scale: factor on the guidance.

    Reference: Song, Vahdat, Mardani, Kautz 2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR.
    """

    changes_score = True

    def __init__(
        self,
        sde: SDE,
        operator: LinearOperator,
        measurement: torch.Tensor,
        noise_std: float = 0.0,
        data_std: float = 0.5,
        scale: float = 1.0,
    ):
        super().__init__(sde, operator, measurement, noise_std)
        self.data_std, self.scale = data_std, scale

    def score(self, score_fn: ScoreAtState, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Score of p_t(x given y), its guidance no longer than `_LONGEST` allows."""
        score, denoised, pull_back = denoise(self.sde, score_fn, x, t)
        level = float((self.sde.sigma(t) / self.sde.alpha(t)).square())
        variance = level * self.data_std**2 / (level + self.data_std**2)
        residual = self.measurement - self.operator.A(denoised)
        if self.noise_std == 0:
            weighted = self.pseudo_inverse(residual) / variance
        else:
            weighted = solve_regularized(self.operator, residual, variance, self.noise_std**2)
        guidance = self.scale * pull_back(weighted)
        typical = (x[0].numel() * variance / level) ** 0.5 / float(self.sde.sigma(t))
        norm = guidance.flatten(1).norm(dim=1)
        return score + expand_to((_LONGEST * typical / norm).clamp(max=1), x) * guidance


def denoise(sde: SDE, score_fn: ScoreAtState, x: torch.Tensor, t: torch.Tensor):
    """Score, denoised mean D, and v -> D'^T v at a state, by one evaluation of the score.

    What goes back through the network has a largest value of 1, for half precision.

    Args:
        sde: forward process.
        score_fn: the score at time t, differentiable.
        x: state, shape (B, ...).
        t: time of shape ().

    Returns:
        Score and D, shape of `x`, without gradients, and a function that may be called once.
    """
    alpha, variance = sde.alpha(t), sde.sigma(t).square()
    with torch.enable_grad():
        variable = x.detach().requires_grad_()
        attached = score_fn(variable)
    score = attached.detach()

    def pull_back(v: torch.Tensor) -> torch.Tensor:
        scale = expand_to(v.flatten(1).abs().amax(dim=1).clamp(min=1e-30), v)
        (gradient,) = torch.autograd.grad(attached, variable, (v / scale).to(attached.dtype))
        return (v + scale * variance * gradient) / alpha

    return score, (x + variance * score) / alpha, pull_back
