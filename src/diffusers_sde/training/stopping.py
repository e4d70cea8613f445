"""When a run stops before its last step: a signal, or its time is up."""

import os
import signal
import threading
import time

import torch

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
"""Signals after which a run saves its state and ends; SIGUSR1 is what Slurm sends by --signal=USR1@seconds."""

_SAME_KEY = 1.0  # seconds within which a launcher passes on the Ctrl-C that its terminal has sent to all processes


class StopSignal:
    """A context in which signals are noted instead of ending the process; a second Ctrl-C ends it at once.

    Signals that are ignored when it begins, as SIGHUP under nohup, stay so.

    Args:
        max_seconds: wall time since `start` after which to stop; `None` for no limit.
        start: `time.monotonic()` at the start of the run.
    """

    def __init__(self, max_seconds: float | None, start: float):
        self.received: str | None = None
        self._deadline = None if max_seconds is None else start + max_seconds
        self._previous: dict = {}
        self._first_interrupt: float | None = None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)  # Windows lacks two of them
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _note(self, signum, frame) -> None:
        self.received = self.received or signal.Signals(signum).name
        if signum != signal.SIGINT:
            return
        if self._first_interrupt is None:
            self._first_interrupt = time.monotonic()
        elif time.monotonic() - self._first_interrupt > _SAME_KEY:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)

    @property
    def terminated(self) -> bool:
        """Whether a signal came."""
        return self.received is not None

    @property
    def reason(self) -> str:
        """Cause of the stop, for the log."""
        return self.received or ("time is up" if self.wanted else "another process was asked to")

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
