"""The loop of Predictor-Corrector sampling, and the two places at which a condition enters it."""

from collections.abc import Callable

import torch

ScoreAtState = Callable[[torch.Tensor], torch.Tensor]
Generators = torch.Generator | list[torch.Generator] | None


class Condition:
    """What turns unconditional sampling into sampling under a condition; this one does nothing.

    Guidance changes the score that predictor and corrector see; a projection changes the state after each of them.
    """

    changes_score = False

    def score(self, score_fn: ScoreAtState, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Score of p_t(x | condition); asked for if `changes_score`.

        Args:
            score_fn: the unconditional score at a state and time t; differentiable where gradients are enabled.
            x: state, shape (B, ...).
            t: time, float64 of shape () on the host.
        """
        return score_fn(x)

    def project(self, x: torch.Tensor, t: torch.Tensor, generator: Generators) -> torch.Tensor:
        """The state after a corrector or predictor step at time t, brought in line with the condition.

        Without a corrector it is called before the predictor's step all the same.
        """
        return x

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        """The last state if it is free of noise, in place of `project`."""
        return x


def sample_predictor_corrector(
    pipeline,
    x: torch.Tensor,
    generator: Generators,
    *,
    condition: Condition | None = None,
    first_step: int = 0,
    on_step_end: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Run the scheduler's predictor and corrector over its grid; what the network is conditioned on is computed once.

    Args:
        pipeline: run of a pipeline, with one of this package's schedulers, whose timesteps are set; it is looked at
            after each step whether to stop.
        x: state at `timesteps[first_step]`, float32 or better.
        generator: source of the noise.
        condition: what is sampled under; `None` for nothing.
        first_step: place in the grid at which to begin.
        on_step_end: `(step, timestep, x) -> x` after each step.

    Returns:
        The final state, or that at which the run was stopped.

    Raises:
        ValueError: if the state becomes NaN or infinite.
    """
    scheduler, condition = pipeline.scheduler, condition or Condition()
    timesteps = scheduler.timesteps
    conditioning = scheduler.model_timestep(timesteps)
    scheduler.set_begin_index(first_step)
    guard, last = FiniteGuard(), len(timesteps) - 1

    def network_output(x: torch.Tensor, i: int) -> torch.Tensor:
        if not condition.changes_score:
            return pipeline._network_output(x, conditioning[i])
        t = scheduler.times[i]

        def score_fn(x: torch.Tensor) -> torch.Tensor:
            return scheduler.step_score(pipeline._network_output(x, conditioning[i]), x, t)

        return scheduler.output_of_step_score(condition.score(score_fn, x, t), t)

    for i, timestep in enumerate(pipeline.progress_bar(timesteps[first_step:]), start=first_step):
        t = scheduler.times[i]
        for _ in range(scheduler.num_correct_steps):
            x = scheduler.step_correct(network_output(x, i), x, generator, return_dict=False)[0]
            x = condition.project(x, t, generator)
        if not scheduler.num_correct_steps:  # as the official sampler does after a corrector that changes nothing
            x = condition.project(x, t, generator)
        output = network_output(x, i) if scheduler.predictor.needs_score else None
        x = scheduler.step_pred(output, timestep, x, generator, return_dict=False)[0]
        clean = i == last and scheduler.config.denoise_final
        x = condition.finish(x) if clean else condition.project(x, t, generator)
        if on_step_end is not None:
            x = on_step_end(i, timestep, x)
        stop = pipeline.interrupt
        guard.watch(x, i, last=stop or i == last)
        if stop:
            break
    return x


class FiniteGuard:
    """Watches a state for NaN and infinity without a host synchronisation per step.

    Args:
        every: number of steps between looks at the result.
    """

    def __init__(self, every: int = 50):
        self.every = every
        self.first_bad: torch.Tensor | None = None

    def watch(self, x: torch.Tensor, step: int, last: bool) -> None:
        """Note whether `x` is finite after `step`.

        Raises:
            ValueError: naming the first bad step, at the latest after the last one.
        """
        bad = torch.where(x.isfinite().all(), torch.inf, float(step))
        self.first_bad = bad if self.first_bad is None else torch.minimum(self.first_bad, bad)
        if (last or (step + 1) % self.every == 0) and bool(self.first_bad.isfinite()):
            raise ValueError(
                f"the state became NaN or infinite at step {int(self.first_bad)}. Check that the scheduler is the one "
                "the network was trained for, lower the corrector's `snr`, use more steps, or a wider dtype."
            )
