"""When a run stops before its last step: SIGTERM, or its time is up."""

import signal
import threading
import time

import torch


class StopSignal:
    """A context in which SIGTERM is noted instead of ending the process.

    Args:
        max_seconds: wall time since `start` after which to stop; `None` for no limit.
        start: `time.monotonic()` at the start of the run.
    """

    def __init__(self, max_seconds: float | None, start: float):
        self.terminated = False
        self._deadline = None if max_seconds is None else start + max_seconds
        self._previous = None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, signum, frame) -> None:
        self.terminated = True

    @property
    def wanted(self) -> bool:
        """Whether this process wants to stop."""
        return self.terminated or (self._deadline is not None and time.monotonic() >= self._deadline)

    def agreed(self, accelerator) -> bool:
        """Whether any process wants to stop; every process must call it at the same step."""
        if accelerator.num_processes == 1:
            return self.wanted
        flag = torch.tensor(float(self.wanted), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)
