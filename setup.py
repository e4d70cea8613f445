"""Packaging of diffusers_sde. The tools are configured in pyproject.toml, the tested versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """Return `__version__` of the package without importing it, which would need torch."""
    path = ROOT / "src" / "diffusers_sde" / "__init__.py"
    found = re.search(r'^__version__(?:\s*:\s*\w+)?\s*=\s*["\']([^"\']+)["\']', path.read_text(encoding="utf-8"), re.M)
    if found is None:
        raise ValueError(f'{path} has no line like `__version__ = "0.1.0"`; setup.py takes the version from it.')
    return found.group(1)


def read_readme() -> str:
    """Return README.md, or nothing when a partial checkout lacks it."""
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


CORE = [
    "accelerate>=1.0",
    "click>=8.1",
    "datasets>=3.0",
    "diffusers>=0.38",
    "filelock>=3.12",
    "huggingface_hub>=0.34",
    "msgpack>=1.0",
    "numpy>=1.26",
    "pillow>=10.0",
    "rich>=13.0",
    "safetensors>=0.4.3",
    "torch>=2.6",
]
TRAIN = ["matplotlib>=3.8", "tensorboard>=2.15"]
EVAL = ["torch-fidelity>=0.3", "transformers>=4.45"]
DEMO = ["gradio>=6.0", "matplotlib>=3.8"]
# torch-fidelity is left out: it brings torchvision, which fits one build of torch only. `make` installs it alone.
TEST = [
    *TRAIN,
    *DEMO,
    "playwright>=1.50",
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "scipy>=1.11",
    "torchdiffeq>=0.2.4",
    "transformers>=4.45",
]
DEV = [*TEST, "pre-commit>=4.0", "ruff>=0.12"]

setup(
    name="diffusers-sde",
    version=read_version(),
    description="Score-based generative modeling through SDEs (Song et al. 2021) as first-class diffusers citizens",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="The diffusers_sde authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="diffusion score-based sde ode likelihood inverse-problems diffusers pytorch",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "diffusers_sde": [
            "py.typed",
            "assets/**/*.safetensors",
            "assets/**/*.json",
            "assets/**/*.md",
            "configs/**/*.json",
            "evaluation/*.json",
        ],
    },
    install_requires=CORE,
    extras_require={"train": TRAIN, "eval": EVAL, "demo": DEMO, "test": TEST, "dev": DEV},
    entry_points={"console_scripts": ["diffusers-sde = diffusers_sde_cli.main:main"]},
    zip_safe=False,
)
