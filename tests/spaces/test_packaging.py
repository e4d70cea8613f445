"""The folder as a Space: its front matter, and the package `spaces` that has its name."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "spaces"


def front_matter() -> dict:
    lines = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1].splitlines()
    return dict(line.split(": ", 1) for line in lines)


def test_the_front_matter_says_what_a_space_needs():
    found = front_matter()
    assert (found["sdk"], found["app_file"], found["license"]) == ("gradio", "app.py", "apache-2.0")
    assert (SPACE / found["app_file"]).is_file()
    assert len(found["short_description"]) <= 60  # the Hub's limit
    requirements = (SPACE / "requirements.txt").read_text(encoding="utf-8").split()
    assert f"gradio=={found['sdk_version']}" in requirements
    assert "diffusers-sde" in requirements


def gpu_of(tmp_path, *path) -> str:
    """Module of the decorator that the Space finds, asked from the root of the repository."""
    script = (
        f"import sys; sys.path[:0] = {[str(p) for p in (*path, SPACE)]!r}\n"
        "from score_space.zero_gpu import GPU\n"
        "assert GPU(duration=3)(len)('ab') == 2\nprint(GPU.__module__)"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_our_own_folder_is_not_taken_for_the_package(tmp_path):
    assert not list(SPACE.glob("__init__.py"))
    sys.modules.pop("spaces", None)
    if subprocess.run([sys.executable, "-c", "from spaces import GPU"], cwd="/", capture_output=True).returncode == 0:
        pytest.skip("the package `spaces` is installed here; without it our folder could be taken for it.")
    assert gpu_of(tmp_path, ROOT) == "score_space.zero_gpu"


def test_the_package_is_used_where_it_is_installed(tmp_path):
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "__init__.py").write_text("def GPU(duration):\n    return lambda function: function\n")
    assert gpu_of(tmp_path, ROOT, tmp_path) == "spaces"
