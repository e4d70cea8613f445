"""Repositories: the index of a stranger's one, checked; and what is added to one that diffusers has saved.

What is added is a clean index, and the stubs of the remote-code layout.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SCHEDULER_CONFIG_NAME

from ..loading import components, read_config


def read_index(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a `model_index.json`.

    Raises:
        ValueError: if it is no JSON object, or names no class of a pipeline.
    """
    index = read_config(path)
    check_index(index, path)
    return index


def check_index(index: dict[str, Any], where: object) -> None:
    """Check what diffusers reads of a `model_index.json` besides the components.

    Args:
        index: content of the file.
        where: file that the message begins with.

    Raises:
        ValueError: if it names no class of a pipeline, or has private entries of another type.
    """
    name = index.get("_class_name")
    words = name if isinstance(name, list) else [name]
    if len(words) not in (1, 2) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{where}: `_class_name` is {name!r:.80}; it is the name of a pipeline class.")
    for key in ("_use_default_values", "_ignore_files"):
        if not isinstance(index.get(key, []), list):
            raise ValueError(f"{where}: `{key}` is {index[key]!r:.80}; it is a list, or left out.")


def checked_entry(component: str, entry: Any) -> Any:
    """An entry of `model_index.json`, library and class, with classes of diffusers replaced by checked ones.

    Args:
        component: its name: "unet", "scheduler", ...
        entry: as in the file.

    Raises:
        ValueError: for an entry of another form, or a class that these pipelines do not take.
    """
    if entry in ([None, None], (None, None)):
        return entry
    if not isinstance(entry, list | tuple) or len(entry) != 2 or not all(isinstance(word, str) for word in entry):
        raise ValueError(f"model_index.json: `{component}` is {entry!r:.80}; it is a list of a library and a class.")
    library, name = entry
    kind, wanted = (SchedulerMixin, "scheduler") if component == "scheduler" else (ModelMixin, "network")
    if library == "diffusers":
        library = components.__name__
    elif hasattr(diffusers.pipelines, library):
        raise ValueError(f"model_index.json: `{component}` is a {name} of a pipeline of diffusers, not a {wanted}.")
    module = sys.modules.get(library)
    if module is not None:
        cls = getattr(module, name, None)
        if not (isinstance(cls, type) and issubclass(cls, kind)):
            networks = " or ".join(("a score network of this package", *components.NETWORKS))
            allowed = "a scheduler of diffusers or of this package" if wanted == "scheduler" else networks
            raise ValueError(f"model_index.json: `{component}` is {name!r:.80} of {entry[0]}; allowed is {allowed}.")
    return [library, name]


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
    return read_config(path)
