"""Where a number comes from: model, weights, versions, machine."""

import re
import subprocess
from pathlib import Path

import diffusers
import torch

from ..store import fingerprint


def versions() -> dict:
    """Of the packages that numbers depend on."""
    from diffusers_sde import __version__

    return {"diffusers_sde": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}


def model_settings(pipeline) -> dict:
    """What of a pipeline fixes its results, but for its name."""
    return {
        "network": type(pipeline.unet).__name__,
        "weights_sha256": fingerprint(pipeline.unet),
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "scheduler": type(pipeline.scheduler).__name__,
        "scheduler_config": {k: v for k, v in pipeline.scheduler.config.items() if not k.startswith("_")},
    }


def averaging(model: str | Path) -> str | None:
    """What the card of a model's folder says about a moving average of its weights; `None` if nothing."""
    card = Path(model) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    # Sentences may run over lines, rows of tables do not.
    pieces = re.split(r"\n(?=\s*\n|\||#)|(?<=\.)\s", text)
    found = [" ".join(piece.split()).strip("| ") for piece in pieces if "moving average" in piece.lower()]
    return found[0] if found else None


def device_name(device: torch.device) -> str:
    """Kind of device, and of which make if it is a GPU."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def git_commit(folder: str | Path = ".") -> dict | None:
    """Commit of the repository around a folder, and whether files that it tracks differ; `None` outside of any."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(folder), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None
