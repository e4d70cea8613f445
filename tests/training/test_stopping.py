"""Signals and errors save the state of the last whole step."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from diffusers_sde.training import Trainer, list_checkpoints, run_script, stopping, train
from diffusers_sde.training.stopping import StopSignal
from tests.training.test_survival import bits


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_each_signal_finishes_the_step_and_saves(make_args, tmp_path, monkeypatch, caplog, name):
    step, number = Trainer._train_step, getattr(signal, name)
    previous = signal.getsignal(number)

    def signalled(self, batches):
        if self.step == 2:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # as a launcher passes on the Ctrl-C that reached all processes
        return step(self, batches)

    monkeypatch.setattr(Trainer, "_train_step", signalled)
    caplog.set_level("INFO")
    assert train(make_args(max_train_steps=50)) == 3
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-3"]
    assert (tmp_path / "run" / "model_index.json").is_file()
    assert f"stopping at step 3: {name}" in caplog.text
    assert signal.getsignal(number) is previous


def test_a_second_ctrl_c_ends_at_once():
    """The module alone, which loads faster than the package."""
    script = f"import runpy; StopSignal = runpy.run_path({stopping.__file__!r})['StopSignal']"
    script += """
import os, signal, sys, time
with StopSignal(None, 0.0):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1.2)
    print("goes on", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    print("still there", flush=True)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.returncode) == ("goes on\n", -signal.SIGINT)


def test_ignored_signals_stay_ignored():
    """Under nohup, SIGHUP must not stop the run."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal(None, 0.0) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.terminated
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


ALL = {"max_train_steps": 6, "gradient_accumulation_steps": 2, "checkpointing_steps": 100, "logging_steps": 1}


class Broken(Exception):
    pass


def fails_at(monkeypatch, name, calls):
    """The method raises at that call, once its own work is done."""
    method, count = getattr(Trainer, name), iter(range(1000))

    def broken(self, *args):
        result = method(self, *args)
        if next(count) == calls:
            raise Broken("the cause")
        return result

    monkeypatch.setattr(Trainer, name, broken)


# The second pass of the fourth step, when dropout has drawn; after the log of a step.
@pytest.mark.parametrize(("method", "calls"), [("_batch", 7), ("_loss", 7), ("_loss", 6), ("_log", 2)])
def test_an_error_anywhere_in_a_step_saves_the_steps_before(make_args, tmp_path, monkeypatch, method, calls):
    """Resumed, the run ends with the bits of the undisturbed one: no random number is drawn twice or left out."""
    train(make_args(output_dir=tmp_path / "whole", **ALL))
    fails_at(monkeypatch, method, calls)
    with pytest.raises(Broken, match="the cause") as info:
        train(make_args(**ALL))
    assert info.value.__notes__ == ["The state after step 3 is saved in checkpoint-3."]
    monkeypatch.undo()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-3"]
    assert train(make_args(resume_from_checkpoint="latest", **ALL)) == 6
    assert bits(tmp_path / "run", 6) == bits(tmp_path / "whole", 6)


def test_an_error_within_the_update_saves_nothing(make_args, tmp_path, monkeypatch):
    from diffusers.training_utils import EMAModel

    def broken(self, parameters):
        raise Broken("the cause")

    monkeypatch.setattr(EMAModel, "step", broken)
    with pytest.raises(Broken, match="the cause") as info:
        train(make_args(**ALL))
    assert "within the update of step 1, so no state was saved" in info.value.__notes__[0]
    assert list_checkpoints(tmp_path / "run") == []


def test_an_error_of_saving_does_not_hide_the_first(make_args, monkeypatch):
    fails_at(monkeypatch, "_batch", 7)
    monkeypatch.setattr("diffusers_sde.training.checkpoints.write_manifest", lambda _: torch.zeros(1) @ torch.zeros(2))
    with pytest.raises(Broken, match="the cause") as info:
        train(make_args(**ALL))
    assert "could not be saved: " in info.value.__notes__[0]
    assert "Free some space" not in info.value.__notes__[0]


def test_the_script_shows_error_and_note_and_exits_with_1(make_args, tmp_path, monkeypatch, caplog):
    def broken(self, *args):
        raise ValueError("picture 7 is cut off")

    monkeypatch.setattr(Trainer, "_batch", broken)
    with pytest.raises(SystemExit) as info:
        run_script(train, make_args(**ALL))
    assert info.value.code == 1
    assert [r.message for r in caplog.records][-2:] == [
        "picture 7 is cut off",
        "The state after step 0 is saved in checkpoint-0.",
    ]
