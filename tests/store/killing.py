"""A process that is killed, simulated: from some call on, it neither writes, renames nor removes anything."""

import os
import pathlib
from contextlib import contextmanager

import pytest

_METHODS = ("rename", "replace", "unlink", "mkdir", "open")
_FUNCTIONS = ("fsync", "unlink", "rmdir")


class Killed(BaseException):
    """The end of the process; no handler of errors sees it."""


@contextmanager
def killed_at(call: int):
    """Let the block die at a call, counted from 0, of what changes files; gives a list that gets an entry per call."""
    calls = []

    def dying(function):
        def wrapped(*args, **kwargs):
            calls.append(function.__name__)
            if len(calls) > call:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in _METHODS:
            patch.setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name)))
        for name in _FUNCTIONS:
            patch.setattr(os, name, dying(getattr(os, name)))
        try:
            yield calls
        except Killed:
            pass


def every_kill(run, limit: int = 500):
    """Call `run` once for each place where it can be killed, and last undisturbed; gives the number of the place."""
    for call in range(limit):
        with killed_at(call) as calls:
            run(call)
        yield call
        if len(calls) <= call:
            assert call > 5  # there were such places
            return
    raise AssertionError(f"more than {limit} calls")
