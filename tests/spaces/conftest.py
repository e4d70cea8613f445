"""The folder of the Space on the path, as `python spaces/app.py` has it, and no question to the Hub."""

import os
import sys
from pathlib import Path

import huggingface_hub
import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
sys.path.append(str(Path(__file__).parents[2] / "spaces"))


@pytest.fixture(autouse=True, scope="session")
def offline():
    """The Hub is not asked, as if the machine had no network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield
