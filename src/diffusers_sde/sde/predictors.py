r"""Predictors: one step of the reverse-time SDE, or of the probability-flow ODE, from t to s < t.

Every update is a pure function `(x, t, s, score, noise) -> (x_next, x_next_mean)`: the noise is given, never drawn,
and `x_next_mean` is the step without it. `t` and `s` have shape () or (B,), the rest the shape of the state.

Reference: Song et al. 2021, arXiv:2011.13456, Sec. 4.1, App. D to F.
"""

from .base import SDE
from .broadcasting import expand_to
from .registry import Registry
from .update import Update

_REGISTRY = Registry("predictor")
register_predictor = _REGISTRY.register
predictor_names = _REGISTRY.names


class Predictor(Update):
    """A predictor of one SDE.

    Args:
        sde: the forward process.
        probability_flow: whether steps follow the probability-flow ODE; they are then free of noise.

    Raises:
        ValueError: if the combination has no meaning.
    """

    def __init__(self, sde: SDE, probability_flow: bool = False):
        super().__init__(sde)
        self.probability_flow = probability_flow
        self.draws_noise = self.needs_score and not probability_flow


@register_predictor("euler_maruyama")
class EulerMaruyamaPredictor(Predictor):
    """x_mean = x + (f x - g^2 score) dt, x_next = x_mean + g sqrt(-dt) noise, dt = s - t.

    As probability flow: x_next = x + (f x - g^2 score / 2) dt. Reference: App. E.
    """

    def update(self, x, t, s, score, noise):
        dt = expand_to(s - t, x)
        if self.probability_flow:
            x_mean = x + self.sde.probability_flow_drift(x, t, score) * dt
            return x_mean, x_mean
        x_mean = x + self.sde.reverse_drift(x, t, score) * dt
        return x_mean + expand_to(self.sde.diffusion(t) * (t - s).sqrt(), x) * noise, x_mean


@register_predictor("reverse_diffusion")
class ReverseDiffusionPredictor(Predictor):
    """x_mean = (2 - a) x + b^2 score, x_next = x_mean + b noise, with the forward step's a and b.

    As probability flow: x_next = (2 - a) x + b^2 score / 2. Reference: App. E, Eq. (46).
    """

    uses_discretization = True

    def update(self, x, t, s, score, noise):
        a, b = self.sde.discretize(t, s)
        variance = b.square() * (0.5 if self.probability_flow else 1.0)
        x_mean = expand_to(2 - a, x) * x + expand_to(variance, x) * score
        return (x_mean, x_mean) if self.probability_flow else (x_mean + expand_to(b, x) * noise, x_mean)


@register_predictor("ancestral_sampling")
class AncestralSamplingPredictor(Predictor):
    """x_mean = (x + b^2 score) / a, x_next = x_mean + ancestral_std noise. Reference: App. F.

    Raises:
        ValueError: for sub-VP, whose forward step is no Markov chain with a Gaussian posterior of this form, and as
            probability flow.
    """

    uses_discretization = True

    def __init__(self, sde: SDE, probability_flow: bool = False):
        super().__init__(sde, probability_flow)
        if not sde.has_ancestral_sampling:
            raise ValueError(
                f"predictor 'ancestral_sampling' is not defined for {type(sde).__name__}; use 'reverse_diffusion' or "
                "'euler_maruyama'."
            )
        if probability_flow:
            raise ValueError(
                "predictor 'ancestral_sampling' has no probability-flow form; use 'reverse_diffusion' or "
                "'euler_maruyama', or `probability_flow=False`."
            )

    def update(self, x, t, s, score, noise):
        a, b = self.sde.discretize(t, s)
        x_mean = (x + expand_to(b.square(), x) * score) / expand_to(a, x)
        return x_mean + expand_to(self.sde.ancestral_std(t, s), x) * noise, x_mean


@register_predictor("none")
class NonePredictor(Predictor):
    """x_next = x, for sampling by the corrector alone."""

    needs_score = False

    def update(self, x, t, s, score, noise):
        return x, x


def make_predictor(name: str, sde: SDE, probability_flow: bool = False) -> Predictor:
    """Build a predictor by name.

    Raises:
        ValueError: if the name is unknown (the message lists all), or the combination has no meaning.
    """
    return _REGISTRY[name](sde, probability_flow)
