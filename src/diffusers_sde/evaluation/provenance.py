"""Where a number comes from: model, weights, versions, machine; and folders that belong to one set of settings.

Whatever fixes results is written into their folder as `settings.json`. A run goes on in a folder of its own settings,
and is refused by any other, so that no result is ever put together from two.
"""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import diffusers
import torch

SETTINGS_NAME = "settings.json"


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and values of tensors."""
    result = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        result.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        result.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def fingerprint(network: torch.nn.Module) -> str:
    """SHA-256 of names and values of a network's parameters and buffers."""
    return digest(network.state_dict())


def key_of(settings: dict) -> str:
    """A short name for settings, the same for equal ones."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


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


def claim(
    folder: Path,
    settings: dict,
    *,
    what: str,
    patterns: Sequence[str],
    overwrite: bool = False,
    num_processes: int = 1,
) -> None:
    """Make a folder of results the own one of these settings.

    Args:
        folder: created if it does not exist.
        settings: as JSON has them.
        what: the results are, for the message.
        patterns: of the files that hold them.
        overwrite: whether results of other settings may be removed.
        num_processes: that share the folder.

    Raises:
        ValueError: if it holds results of other settings, unless they may be overwritten; if several processes are to
            overwrite.
    """
    path = folder / SETTINGS_NAME
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else settings
    if found != settings:
        differing = [key for key in sorted({*settings, *found}) if found.get(key) != settings.get(key)]
        if not overwrite:
            raise ValueError(
                f"{folder} holds {what} of other settings ({', '.join(differing)} differ). Choose another "
                "--output, or pass --overwrite to replace them."
            )
        if num_processes > 1:
            raise ValueError(f"--overwrite works in one process alone; or remove {folder} first.")
        for part in [part for pattern in patterns for part in folder.glob(pattern)]:
            part.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def as_json(value):
    """The value as it is read back from JSON."""
    return json.loads(json.dumps(value))


def write_json(path: Path, value, indent: int = 2) -> None:
    """Write a JSON file that is complete or as it was."""
    write_text(path, json.dumps(value, indent=indent, sort_keys=True) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write a file that is complete or as it was."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
