"""Runs of a pipeline: each call works on a copy of the pipeline with a scheduler of its own.

So calls of one pipeline in several threads, of pipelines that share a scheduler, and calls within a callback of
another know nothing of each other. Network and classifier are shared.
"""

import copy
import functools
from collections.abc import Callable


class RunState:
    """Requests to stop, and the number of steps, of one run; or, with no run above it, of a pipeline.

    A run sees requests to itself, and those to what it is a run of that come after its beginning.

    Args:
        above: state of the pipeline, or of the run, in which a call is made; `None` for a pipeline.
    """

    def __init__(self, above: "RunState | None" = None):
        self._above = above
        self._requests = 0
        self._requests_before = 0 if above is None else above.requests
        self._interrupt = False
        self._num_timesteps = 0

    @property
    def requests(self) -> int:
        """Number of requests to stop so far."""
        return self._requests + (0 if self._above is None else self._above.requests - self._requests_before)

    @property
    def interrupt(self) -> bool:
        """Whether the run is to stop; of a pipeline, what was asked since its last call began, or that call saw."""
        return self._interrupt if self._above is None else self.requests > 0

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = bool(value)
        if value:
            self._requests += 1
        elif self._above is not None:
            self._requests, self._requests_before = 0, self._above.requests

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the run; of a pipeline that of the call that began last, 0 before the first."""
        return self._num_timesteps

    @num_timesteps.setter
    def num_timesteps(self, value: int) -> None:
        self._num_timesteps = value
        if self._above is not None and self._above._above is None:
            self._above._num_timesteps = value

    def begin(self) -> "RunState":
        """State of a new run."""
        self._interrupt = False
        return RunState(self)

    def end(self, run: "RunState") -> None:
        """Note how a run ended; nobody but the caller looks at it."""
        self._interrupt = run.interrupt


def own_run(method: Callable) -> Callable:
    """Method of a pipeline that runs on a copy of it with its own state, see `ScoreSdePipelineBase._begin_run`."""

    @functools.wraps(method)
    def call(pipeline, *args, **kwargs):
        run = pipeline._begin_run()
        try:
            return method(run, *args, **kwargs)
        finally:
            pipeline._run_state.end(run._run_state)

    return call


def copy_for_run(pipeline):
    """Copy of a pipeline that shares its network, with a scheduler of its own.

    A deep copy, since solvers of diffusers' keep lists of past outputs.
    """
    run = copy.copy(pipeline)
    run.__dict__["scheduler"] = copy.deepcopy(pipeline.scheduler)
    run.__dict__["_run_state"] = pipeline._run_state.begin()
    return run
