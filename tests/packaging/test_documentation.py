"""README and docs as a stranger meets them: the wheel, its core dependencies, an empty folder, the snippets in order.

What a page asks its reader to have (`path/to/images`, `my-model`, ...) is put there. Runs are shortened by one hook in
the environment, not in the text: no call asks for more than `MOST_STEPS` steps.
"""

import json
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import diffusers_sde
from tests.packaging.environment import ROOT, build, make_environment, variables
from tests.packaging.snippets import snippets

PAGES = sorted([ROOT / "README.md", ROOT / "training" / "README.md", *(ROOT / "docs").glob("*.md")])
RUN = [page for page in PAGES if any(snippet.kind != "not run" for snippet in snippets(page, ROOT))]
MOST_STEPS = {"ve": 5, "others": 24}  # the DDPM discretisation takes no fewer than 21
HOOK = f"""
import functools, sys

def shorten(cls):
    call = cls.__call__
    @functools.wraps(call)
    def shortened(self, *args, **kwargs):
        most = {MOST_STEPS["ve"]} if "sigma_max" in self.scheduler.config else {MOST_STEPS["others"]}
        if kwargs.get("num_inference_steps"):
            kwargs["num_inference_steps"] = min(kwargs["num_inference_steps"], most)
        return call(self, *args, **kwargs)
    cls.__call__ = shortened

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "diffusers_sde.registration":
            sys.meta_path.remove(self)
            from diffusers_sde import pipelines
            for cls in vars(pipelines).values():
                if isinstance(cls, type) and "__call__" in vars(cls) and cls.__name__.endswith("Pipeline"):
                    shorten(cls)

sys.meta_path.insert(0, Finder())
"""
RUN_PYTHON = """
import json, sys, traceback
for name, text in json.load(sys.stdin):
    try:
        exec(compile(text, name, "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        sys.exit(f"in the snippet {name}")
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory, distributions):
    folder = make_environment(tmp_path_factory.mktemp("environment") / "venv", distributions[1])
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "sitecustomize.py").write_text(HOOK)
    return folder


def run(environment, folder, command, **options):
    return subprocess.run(
        command, cwd=folder, env=variables(environment, folder), capture_output=True, text=True, timeout=600, **options
    )


def command_of(snippet, environment: Path) -> list[str]:
    """Words of a command line, its program taken from the environment."""
    program, *words = shlex.split(snippet.text, comments=True)
    return [str(environment / "bin" / program), *words]


def prepare(folder: Path) -> None:
    """What the pages take for granted: a folder of pictures of the embedded model's size, and a model."""
    pictures = folder / "path" / "to" / "images"
    pictures.mkdir(parents=True)
    with Image.open(ROOT / "docs" / "images" / "fashion-mnist.png") as grid:
        small = grid.convert("L").resize((128, 128))
    for i in range(16):
        small.crop(((i % 4) * 32, (i // 4) * 32, (i % 4) * 32 + 32, (i // 4) * 32 + 32)).save(pictures / f"{i}.png")
    shutil.copytree(diffusers_sde.embedded_model_path(), folder / "my-model")


def test_wheel_and_source_distribution_hold_what_is_needed_at_run_time(distributions):
    sdist, wheel = distributions
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "diffusers_sde"
    for pattern in ("assets/**/*", "configs/**/*.json", "evaluation/*.json", "**/*.py", "py.typed"):
        for path in package.glob(pattern):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(ROOT / "src").as_posix() in names
    assert "diffusers_sde_cli/main.py" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "training/", "spaces"))]
    assert wheel.stat().st_size < 20e6 and sdist.stat().st_size < 20e6


def test_the_environment_has_the_core_alone(environment, tmp_path):
    """Else nothing below would show a missing requirement."""
    code = "import importlib.util as u; print([m for m in %r if u.find_spec(m)])"
    optional = [
        "gradio",
        "matplotlib",
        "transformers",
        "torch_fidelity",
        "tensorboard",
        "scipy",
        "pytest",
        "torchdiffeq",
    ]
    result = run(environment, tmp_path, [environment / "bin" / "python", "-c", code % optional])
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
    where = run(
        environment, tmp_path, [environment / "bin" / "python", "-c", "import diffusers_sde as d; print(d.__file__)"]
    )
    assert Path(where.stdout.strip()).is_relative_to(environment), where.stdout + where.stderr


@pytest.mark.parametrize("page", RUN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_snippets_of_a_page_run_in_a_fresh_folder(page, environment, tmp_path):
    found = [snippet for snippet in snippets(page, ROOT) if snippet.kind != "not run"]
    prepare(tmp_path)
    pending: list[tuple[str, str]] = []

    def flush():
        if pending:
            command = [environment / "bin" / "python", "-c", RUN_PYTHON]
            result = run(environment, tmp_path, command, input=json.dumps(pending))
            assert result.returncode == 0, result.stderr
            pending.clear()

    for snippet in found:
        if snippet.kind == "python":
            pending.append((str(snippet), snippet.text))
            continue
        flush()
        result = run(environment, tmp_path, command_of(snippet, environment))
        assert result.returncode == 0, f"{snippet}: {snippet.text}\n{result.stdout}{result.stderr}"
    flush()


def test_the_reader_of_pages_finds_what_is_there():
    """A page whose snippets are not seen would pass: README's are counted, and what is left out has a reason."""
    readme = snippets(ROOT / "README.md", ROOT)
    kinds = [snippet.kind for snippet in readme]
    assert kinds.count("python") >= 4 and kinds.count("command") >= 2
    left_out = [s for page in PAGES for s in snippets(page, ROOT) if s.kind == "not run"]
    assert all(len(snippet.text) > 10 for snippet in left_out)
    assert len(left_out) <= 25, [f"{s}: {s.text}" for s in left_out]
