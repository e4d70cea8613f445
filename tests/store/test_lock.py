"""One writer at a time in a folder."""

import subprocess
import sys

import pytest

from diffusers_sde.store import locked_folder

HOLD = """
import sys
from diffusers_sde.store import locked_folder

with locked_folder(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_one_ends(tmp_path):
    folder = tmp_path / "run"
    with locked_folder(folder):
        with pytest.raises(ValueError, match="another run is writing to"), locked_folder(folder):
            pass
        with locked_folder(tmp_path / "other"):
            pass
    with locked_folder(folder):
        pass


def test_a_killed_run_leaves_its_folder_free(tmp_path):
    """A lock that outlives its process would send the user to delete files by hand."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another run"), locked_folder(tmp_path):
            pass
        process.kill()
        process.wait(60)
    with locked_folder(tmp_path):
        pass


def test_an_error_in_the_block_is_not_taken_for_a_held_lock(tmp_path):
    from filelock import Timeout

    with pytest.raises(Timeout), locked_folder(tmp_path):
        raise Timeout("inner")
