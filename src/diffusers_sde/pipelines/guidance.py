r"""Conditions that enter sampling through the score.

By Bayes' rule the score of the images of one class is

    grad log p_t(x | label) = grad log p_t(x) + grad log p_t(label | x),

and a classifier of noisy images knows the second term. It sees y = x / alpha(t), the clean image plus noise of
standard deviation s = sigma(t) / alpha(t): under VE x and sigma(t) themselves, as published, and under VP and sub-VP
the same pairs at other times, so that one classifier serves all SDEs. The gradient is with respect to x; the factor
1 / alpha(t) comes from automatic differentiation.

Reference: Song et al. 2021, arXiv:2011.13456, Eq. (14) and App. I.
"""

from collections.abc import Callable

import torch

from ..sde import SDE
from .loop import Condition, ScoreAtState


class ClassifierGuidance(Condition):
    """The score of p_t(x) p_t(label | x)^guidance_scale: of the images of one class each, if the scale is 1.

    Args:
        classifier: `(y, s) -> logits`, differentiable with respect to y; shapes (B, ...) and (B,) -> (B, classes), y
            and s in the dtype of the state.
        labels: wanted classes, int64 of shape (B,).
        guidance_scale: factor on the gradient; above 1 images become more typical of their class and less diverse.
        sde: gives alpha(t) and sigma(t).
    """

    changes_score = True

    def __init__(
        self,
        classifier: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        labels: torch.Tensor,
        guidance_scale: float,
        sde: SDE,
    ):
        self.classifier = classifier
        self.labels = labels
        self.guidance_scale = guidance_scale
        self.sde = sde

    def score(self, score_fn: ScoreAtState, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return score_fn(x) + self.guidance_scale * self.log_probability_gradient(x, t)

    def log_probability_gradient(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """grad_x log p_t(label | x), float32 or better; shape of `x`."""
        alpha, sigma = float(self.sde.alpha(t)), float(self.sde.sigma(t))
        with torch.inference_mode(False), torch.enable_grad():
            # Clones, since autograd takes no tensor that was made in inference mode.
            x, labels = x.detach().clone().requires_grad_(), self.labels.clone()
            logits = self.classifier(x / alpha, x.new_full((len(x),), sigma / alpha))
            log_probabilities = logits.to(x.dtype).log_softmax(dim=1)
            (gradient,) = torch.autograd.grad(log_probabilities.gather(1, labels[:, None]).sum(), x)
        return gradient
