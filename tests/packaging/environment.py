"""An environment of the wheel and its core dependencies alone, without a download.

The dependencies are links to the installed packages of the environment that runs the tests: the closure of what the
wheel requires without extras. What is not in it cannot be imported.
"""

import os
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TRACKED = ("src", "training", "conversion", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def build(folder: Path) -> tuple[Path, Path]:
    """Source distribution of a copy of the checkout, and the wheel that is built from it."""
    copy = folder / "checkout"
    for name in TRACKED:
        source, target = ROOT / name, copy / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    sdist = _hook("build_sdist", copy, folder)
    shutil.unpack_archive(sdist, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    return sdist, _hook("build_wheel", unpacked, folder)


def _hook(name: str, source: Path, target: Path) -> Path:
    """Call a hook of the build backend, as pip does, without a download of its requirements."""
    code = f"import sys; from setuptools import build_meta; print('built', build_meta.{name}(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return target / result.stdout.split()[-1]


def core_closure(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """Installed distributions that requirements without extras lead to, by normalised name."""
    found, todo = {}, [Requirement(text) for text in requirements]
    while todo:
        requirement = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name = requirement.name.lower().replace("_", "-")
        distribution = metadata.distribution(requirement.name)
        if name not in found:
            found[name] = distribution
            todo += [Requirement(text) for text in distribution.requires or []]
        for extra in requirement.extras:
            wanted = [Requirement(text) for text in distribution.requires or []]
            todo += [r for r in wanted if r.marker is not None and r.marker.evaluate({"extra": extra})]
    return found


def make_environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel; returns its folder."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    requirements = metadata.Distribution.at(_unpacked_metadata(wheel, folder)).requires or []
    scripts = {}
    for distribution in core_closure(requirements).values():
        base = Path(str(distribution.locate_file("")))
        for file in distribution.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(base / top)
        scripts |= {entry.name: entry for entry in distribution.entry_points.select(group="console_scripts")}
    shutil.unpack_archive(wheel, site, "zip")
    (own,) = site.glob("diffusers_sde-*.dist-info")
    ours = metadata.Distribution.at(own).entry_points.select(group="console_scripts")
    for name, entry in ({"accelerate": scripts["accelerate"]} | {entry.name: entry for entry in ours}).items():
        _write_script(folder / "bin" / name, folder / "bin" / "python", entry)
    return folder


def _unpacked_metadata(wheel: Path, folder: Path) -> Path:
    shutil.unpack_archive(wheel, folder / "metadata", "zip")
    (path,) = (folder / "metadata").glob("*.dist-info")
    return path


def _write_script(path: Path, python: Path, entry: metadata.EntryPoint) -> None:
    path.write_text(f"#!{python}\nimport sys\nfrom {entry.module} import {entry.attr}\nsys.exit({entry.attr}())\n")
    path.chmod(0o755)


def variables(environment: Path, folder: Path) -> dict[str, str]:
    """Environment variables of a run in it: nothing of the checkout, no network, one thread."""
    kept = {key: value for key, value in os.environ.items() if key in ("HOME", "LANG", "LC_ALL", "TMPDIR")}
    return kept | {
        "PATH": f"{environment / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hub"),
        "OMP_NUM_THREADS": "1",
    }
