"""Imports go one way, in no circle, and `import diffusers_sde` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffusers_sde

ROOT = Path(diffusers_sde.__file__).parent
PACKAGE = "diffusers_sde"
MODULES = {
    ".".join([PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

# What each part may import of the others; only within functions what stands in LAZY.
ALLOWED = {
    "sde": set(),
    "loading": set(),
    "data": set(),
    "schedulers": {"sde", "loading"},
    "models": {"loading"},
    "pipelines": {"sde", "schedulers", "models", "loading"},
    "training": {"sde", "schedulers", "models", "pipelines", "seeding", "configs", "data", "store"},
    "evaluation": {"sde", "schedulers", "models", "pipelines", "seeding", "training", "optional", "store", "data"},
    "conversion": {"models", "schedulers", "configs", "store"},
    "store": set(),
    "optional": set(),
    "assets": set(),
    "registration": set(),
    "configs": set(),
    "seeding": set(),
    "image_folder": {PACKAGE, "assets", "pipelines", "store"},  # the top for __version__
    "sampling": {"image_folder", "pipelines", "seeding"},
    "suggest": {"sde", "configs", "data", "evaluation", "image_folder", "pipelines", "seeding", "store", "training"},
    "commands": {"data", "image_folder", "pipelines", "sde", "seeding", "store", "training"},
}
LAZY = {
    "commands": {"assets", "models", "evaluation", "suggest"},
    "conversion": {"pipelines"},
    "training": {PACKAGE, "conversion"},
    "evaluation": {PACKAGE, "assets"},
}
ON_TOP = {PACKAGE}  # may import everything
NEVER_AT_MODULE_LEVEL = {
    "accelerate",
    "datasets",
    "gradio",
    "matplotlib",
    "msgpack",
    "scipy",
    "torch_fidelity",
    "torchdiffeq",
    "torchvision",
    "transformers",
}


def part_of(module: str) -> str:
    """First name below the package: "sde" of diffusers_sde.sde.base; the package's own name for its top."""
    return module.split(".")[1] if "." in module else module


def imports_of(module: str, source: str, is_package: bool) -> list[tuple[str, bool]]:
    """Names of the modules imported, and whether within a function; what only type checkers see is left out."""
    found = []

    def visit(node, in_function):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            submodules = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES]
            found.extend((name, in_function) for name in submodules)
            if len(submodules) < len(node.names):
                found.append((base, in_function))
        in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, in_function)

    visit(ast.parse(source), False)
    return found


IMPORTS = {name: imports_of(name, path.read_text(), path.name == "__init__.py") for name, path in MODULES.items()}


def test_the_parser_sees_relative_lazy_and_absolute_imports():
    """A rule over imports that are not seen would hold for nothing."""
    source = (
        "from . import base\nfrom ..models import NCSNppModel\nimport torch.nn\n"
        "def f():\n    from ..pipelines import ScoreSdePipeline\n"
        "if TYPE_CHECKING:\n    import datasets\n"
    )
    assert imports_of(f"{PACKAGE}.schedulers.new", source, False) == [
        (f"{PACKAGE}.schedulers.base", False),
        (f"{PACKAGE}.models", False),
        ("torch.nn", False),
        (f"{PACKAGE}.pipelines", True),
    ]
    assert imports_of(f"{PACKAGE}.sde", "from .base import SDE", True) == [(f"{PACKAGE}.sde.base", False)]
    assert (f"{PACKAGE}.sde", False) in IMPORTS[f"{PACKAGE}.schedulers.base"]


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    part = part_of(module)
    if part in ON_TOP:
        return
    assert part in ALLOWED, f"say in this test what {PACKAGE}.{part} may import"
    for name, in_function in IMPORTS[module]:
        if name.split(".")[0] == PACKAGE and part_of(name) != part:
            allowed = ALLOWED[part] | (LAZY.get(part, set()) if in_function else set())
            assert part_of(name) in allowed, f"{module} imports {name}; allowed are {sorted(allowed)}"


def test_no_module_imports_itself_in_a_circle():
    """Over all imports, within functions too, but for the package's top, which imports everything."""
    graph = {name: {n for n, _ in found if n in MODULES and n != PACKAGE} for name, found in IMPORTS.items()}
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("path", sorted(ROOT.with_name("diffusers_sde_cli").glob("*.py")), ids=lambda path: path.stem)
def test_the_command_line_imports_what_it_runs_within_functions(path):
    """Help, version and option errors answer at once: click and the standard library are all that they load."""
    for name, in_function in imports_of(f"diffusers_sde_cli.{path.stem}", path.read_text(), path.stem == "__init__"):
        top = name.split(".")[0]
        assert in_function or top in {"click", "diffusers_sde_cli", *sys.stdlib_module_names}, f"{path} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_when_used(module):
    for name, in_function in IMPORTS[module]:
        assert in_function or name.split(".")[0] not in NEVER_AT_MODULE_LEVEL, f"{module} imports {name} at its top"


def test_importing_the_package_adds_nothing_heavy():
    """In a fresh process: what is loaded beyond the parts of diffusers that we build on."""
    script = f"""
import sys
import diffusers
diffusers.DiffusionPipeline, diffusers.UNet2DModel, diffusers.ScoreSdeVeScheduler
from diffusers import (
    DDIMScheduler, DDPMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler,
    PNDMScheduler, UniPCMultistepScheduler,
)
before = set(sys.modules)
import {PACKAGE}
added = set(sys.modules) - before
assert "{PACKAGE}.sde" in added
print(sorted(added & {{"gradio", *{sorted(NEVER_AT_MODULE_LEVEL)!r}}}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
