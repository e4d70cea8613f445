r"""A scheduler's conventions: what its networks are conditioned on, what they predict, and the score that follows.

Networks trained on a grid of labels are read between its points as well, so that `score_fn` is continuous in time, as
solvers of differential equations need it. The official samplers evaluate their networks on their own grid, and divide
epsilon of a DDPM chain by the noise level of the label below: `step_score`, which only steps of the scheduler use.
"""

from collections.abc import Callable

import torch

from ..sde import SDE
from ..sde.broadcasting import expand_to
from .networks import check_labels, output_function

ScoreFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

CONTINUOUS_FIRST_TIME = 1e-5


class NetworkConventions:
    """The conventions of VP and sub-VP, which a new SDE inherits: epsilon, conditioned on a positive time label."""

    prediction = "epsilon"
    """What the networks predict: "epsilon" or "score"."""

    sde: SDE

    def model_timestep(self, timestep: float | torch.Tensor) -> torch.Tensor:
        """999 t for continuously trained networks, (num_train_timesteps - 1) t otherwise; same shape."""
        scale = 999 if self.config.continuous else self.config.num_train_timesteps - 1
        return torch.as_tensor(timestep) * scale

    def output_sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        """Noise level by which the sampler divides a predicted epsilon; shape of `timestep`."""
        return self.sde.sigma(timestep)

    def step_score(
        self, model_output: torch.Tensor, sample: torch.Tensor, timestep: float | torch.Tensor
    ) -> torch.Tensor:
        """Score that `step_pred` and `step_correct` read from a network's output; float32 or better.

        As in the official samplers. It differs from `score_from_output` for discretely trained VP networks alone,
        whose epsilon is divided by the chain's noise level at the label below.

        Args:
            model_output: output of the network, shape (B, ...).
            sample: state for which it was made, same shape.
            timestep: time in [0, 1], shape () or (B,).
        """
        output = model_output.to(torch.promote_types(model_output.dtype, torch.float32))
        if self.prediction == "score":
            return output
        return -output / expand_to(self.output_sigma(torch.as_tensor(timestep)), output)

    def output_of_step_score(self, score: torch.Tensor, timestep: float | torch.Tensor) -> torch.Tensor:
        """Network output that `step_score` would turn into this score; the same shape."""
        if self.prediction == "score":
            return score
        return -score * expand_to(self.output_sigma(torch.as_tensor(timestep)), score)

    def score_from_output(self, output: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Score of p_t from a network's output at time t of shape () or (B,): itself, or -epsilon / sigma(t)."""
        return output if self.prediction == "score" else -output / expand_to(self.sde.sigma(t), output)

    def score_fn(self, network: torch.nn.Module) -> ScoreFunction:
        """Score function of a network of this scheduler, continuous in time.

        Args:
            network: called as `network(x, timestep).sample`. It gets `x` in the dtype of its own parameters; the score
                is float32 or the dtype of `x`, whichever is wider. Between the labels of a network that takes whole
                ones its output is interpolated.

        Returns:
            `(x, t) -> score` with t of shape (B,), differentiable with respect to `x` and the network's parameters.

        Raises:
            ValueError: if the network takes whole labels and the scheduler has none.
        """
        check_labels(self, network)
        output_of = output_function(network)

        def evaluate(x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return output_of(x, timestep).to(torch.promote_types(x.dtype, torch.float32))

        return lambda x, t: self.score_from_output(self._output_at(evaluate, x, t), t)

    def _output_at(self, evaluate: ScoreFunction, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Output of the network at any time; `evaluate(x, timestep)` is the network."""
        return evaluate(x, self.model_timestep(t))

    def label_times(self) -> torch.Tensor:
        """Times at which the SDE has the noise levels of the labels of a discrete network; float64 of shape (N,).

        Raises:
            ValueError: for SDEs of which no chain of noise levels is known.
        """
        raise ValueError(
            f"{type(self).__name__} has no chain of noise levels, so its networks are trained on continuous times; "
            "leave `continuous` true."
        )

    def first_time(self) -> float:
        """Smallest time for which the networks were trained: 1e-5, as in the official code, or that of a label."""
        return CONTINUOUS_FIRST_TIME
