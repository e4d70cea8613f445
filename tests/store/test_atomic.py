"""Files and folders that are complete or as they were."""

import os
import subprocess
import sys

import pytest

from diffusers_sde.store import read_json, replacement, replacement_folder, write_json, write_text


def test_a_file_is_replaced_as_a_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"b": 1, "a": [2]})
    write_json(path, {"b": 2})
    assert read_json(path) == {"b": 2}
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_writer_that_fails_leaves_the_file_as_it_was(tmp_path):
    write_text(tmp_path / "a.txt", "before")
    with pytest.raises(RuntimeError, match="half way"), replacement(tmp_path / "a.txt") as partial:
        partial.write_text("aft")
        raise RuntimeError("half way")
    assert (tmp_path / "a.txt").read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_partial_file_keeps_the_ending_by_which_writers_choose_the_format(tmp_path):
    with replacement(tmp_path / "00001.png") as partial:
        assert partial.suffix == ".png" and partial.name.startswith(".")
        partial.write_bytes(b"content")
    assert (tmp_path / "00001.png").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is not valid JSON"), ("{", "is not valid JSON"), ("[" * 100_000, "is not valid JSON"), ("[1]", "list")],
)
def test_a_broken_json_file_is_named(tmp_path, content, message):
    """Not a bare "Expecting value: line 1 column 1", a RecursionError, or an AttributeError of the caller."""
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=rf"settings\.json.*{message}"):
        read_json(tmp_path / "settings.json")


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "model"
    for content in ("first", "second"):
        with replacement_folder(target) as partial:
            (partial / f"{content}.txt").write_text(content)
    assert os.listdir(target) == ["second.txt"]
    assert os.listdir(tmp_path) == ["model"]


def test_a_failed_replacement_leaves_the_folder_as_it_was(tmp_path):
    target = tmp_path / "model"
    with replacement_folder(target) as partial:
        (partial / "a.txt").write_text("a")
    with pytest.raises(RuntimeError), replacement_folder(target) as partial:
        raise RuntimeError
    assert os.listdir(target) == ["a.txt"]
    assert os.listdir(tmp_path) == ["model"]


KILLED_AT_RENAME = """
import os, sys
from pathlib import Path
import diffusers_sde.store.atomic as atomic

stop_at, target = int(sys.argv[1]), Path(sys.argv[2])
renames, rename = [], Path.rename

def counted(self, other):
    if len(renames) == stop_at:
        os._exit(9)
    renames.append(other)
    return rename(self, other)

Path.rename = counted
with atomic.replacement_folder(target) as partial:
    (partial / "new.txt").write_text("new")
"""


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_a_process_killed_between_renames_loses_no_folder(tmp_path, stop_at):
    """Whatever rename it dies before, the next writer finds the old folder or the new one, whole."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.txt").write_text("old")
    result = subprocess.run([sys.executable, "-c", KILLED_AT_RENAME, str(stop_at), str(target)], timeout=120)
    assert result.returncode == (0 if stop_at == 2 else 9)
    with pytest.raises(RuntimeError), replacement_folder(target):
        raise RuntimeError  # a writer that only cleans up
    assert os.listdir(target) == ["new.txt" if stop_at == 2 else "old.txt"]
    assert os.listdir(tmp_path) == ["model"]
