"""Every benchmark runs at its smallest size, from any folder, and prints figures."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if "__main__" in path.read_text()]


def test_benchmarks_import_nothing_of_the_tests():
    """torch-fidelity installs a package `tests`, which is found in place of ours."""
    for path in FOLDER.glob("*.py"):
        assert not re.search(r"^\s*(from|import) tests\b", path.read_text(), re.M), path.name


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_runs_at_its_smallest_size(script, tmp_path):
    result = subprocess.run(
        [sys.executable, script, "--smallest"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"\b\d+\.\d+\b", result.stdout)) >= 4, result.stdout
    assert not list(tmp_path.iterdir())
