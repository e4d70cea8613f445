"""Many hostile cases in one child process: each ends in success or in one clear error, in bounded time and memory.

    python tests/hostile/harness.py repositories [every] [first]

prints one JSON line per case. A case is a name and a function of an empty folder, which returns what was built, or
raises. What may be raised: ValueError, OSError, click's and gradio's errors, whose text names what is wrong.
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path

import click

SECONDS = 20  # of one case, on one slow core with the other tests beside it
GIGABYTES = 3  # of memory that all cases together may take beyond the imports
ROOT = Path(__file__).parents[2]


class TooSlow(BaseException):
    """Raised by the alarm; nothing in between catches it."""


def run_case(name: str, case, canary: Path) -> dict:
    """The outcome of one case: "success", "refused", or "fault" with what is wrong."""

    def ring(*_):
        raise TooSlow

    signal.signal(signal.SIGALRM, ring)
    start = time.monotonic()
    signal.alarm(SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        try:
            case(Path(folder))
            outcome = {"outcome": "success", "text": ""}
        except (ValueError, OSError, click.ClickException) as error:
            text = error.format_message() if isinstance(error, click.ClickException) else str(error)
            outcome = {"outcome": "refused" if 10 < len(text) < 3000 else "fault", "text": text}
        except TooSlow:
            outcome = {"outcome": "fault", "text": f"more than {SECONDS} s"}
        except BaseException:
            outcome = {"outcome": "fault", "text": traceback.format_exc()}
        finally:
            signal.alarm(0)
    if canary.exists():
        outcome = {"outcome": "fault", "text": "code of the input was run"}
    return {"name": name, **outcome, "seconds": round(time.monotonic() - start, 2)}


def main(module: str, every: int = 1, first: int = 0) -> None:
    """Run the cases of `tests.hostile.<module>`, all or every n-th."""
    cases = importlib.import_module(f"tests.hostile.{module}").cases()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = pages + 4 * GIGABYTES * 2**30  # of addresses, of which much is never touched
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    canary = Path(os.environ.get("HOSTILE_CANARY", "/nonexistent"))
    for name in list(cases)[first::every]:
        print(json.dumps(run_case(name, cases[name], canary)), flush=True)
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 2**20
    outcome = "success" if used < GIGABYTES else "fault"
    print(json.dumps({"name": "memory", "outcome": outcome, "text": f"{used:.2f} GB", "seconds": 0}), flush=True)


def outcomes(module: str, folder: Path, every: int = 1, first: int = 0) -> list[dict]:
    """What `main` prints, in a process of its own."""
    import diffusers_sde

    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(diffusers_sde.__file__).parents[1]),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "HOSTILE_CANARY": str(folder / "canary"),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__)), module, str(every), str(first)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800, cwd=ROOT)
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"name"')]
    assert run.returncode == 0, run.stderr[-3000:]
    assert lines[-1]["name"] == "memory", run.stderr[-3000:]
    return lines


def check(found: list[dict], at_least: int) -> None:
    """Fail with the first faults, if there are any."""
    faults = [
        f"{line['name']} ({line['seconds']} s): {line['text'][-1500:]}" for line in found if line["outcome"] == "fault"
    ]
    assert not faults, f"{len(faults)} of {len(found)}:\n" + "\n\n".join(faults[:5])
    assert len(found) - 1 >= at_least
    assert {line["outcome"] for line in found[:-1]} == {"success", "refused"}  # both kinds are among them


if __name__ == "__main__":
    # Another distribution's package `tests` may be installed, and the folder of this file is first on the path.
    sys.path[0] = str(ROOT / "spaces")
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].__path__ = [str(ROOT / "tests")]
    main(sys.argv[1], *map(int, sys.argv[2:]))
