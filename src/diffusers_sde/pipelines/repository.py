"""What is added to a repository that diffusers has saved: a clean index, and the stubs of the remote-code layout."""

import json
from pathlib import Path

from diffusers import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME


def finish_repository(folder: Path, pipeline: DiffusionPipeline, remote_code: bool) -> None:
    """Mend `model_index.json`, and write or remove the stubs.

    Args:
        folder: as `DiffusionPipeline.save_pretrained` left it.
        pipeline: what was saved.
        remote_code: whether `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` shall work where this
            package is installed and not imported. Without, stubs of an earlier save are removed, since diffusers
            would ask for trust; other files of their names stay.
    """
    index = folder / pipeline.config_name
    content = json.loads(index.read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)  # a local path, after loading from a folder
    if remote_code:
        content["_class_name"] = ["pipeline", type(pipeline).__name__]
    index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path, stub in _stubs(folder, pipeline).items():
        if remote_code:
            path.write_text(stub, encoding="utf-8")
        elif path.is_file() and path.read_text(encoding="utf-8") == stub:
            path.unlink()


def _stubs(folder: Path, pipeline: DiffusionPipeline) -> dict[Path, str]:
    """One-liners that import this package, by the files where diffusers looks for code."""
    names = {folder / "pipeline.py": type(pipeline).__name__}
    for component in pipeline.components:
        library, name = pipeline.config[component]
        if library == "diffusers_sde":
            names[folder / component / "diffusers_sde.py"] = name
    return {path: f"from diffusers_sde import {name}  # noqa: F401\n" for path, name in names.items()}


def repository_scheduler_config(network) -> dict | None:
    """Config of the scheduler beside a network in the folder that it was loaded from; `None` if there is none."""
    folder = getattr(network, "config", {}).get("_name_or_path") or ""
    path = Path(folder).parent / "scheduler" / SCHEDULER_CONFIG_NAME
    if not folder or not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))
