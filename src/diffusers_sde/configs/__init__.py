"""The official configurations as data, by the names of their files there, such as `ve/cifar10_ncsnpp_continuous`.

Each file holds what is its own, and names the files in `defaults/` that it builds on, in the order of their weight:
a value of a later one replaces that of an earlier one.
"""

import copy
import difflib
import json
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).parent


def official_config_names() -> list[str]:
    """Names of all official configurations, sorted."""
    paths = (path for sde in ("subvp", "ve", "vp") for path in (_ROOT / sde).rglob("*.json"))
    return sorted(path.relative_to(_ROOT).with_suffix("").as_posix() for path in paths)


def official_config(name: str) -> dict:
    """An official configuration, as nested dictionaries that the caller may change.

    It has all values of the official file. Where that file lacks what others of its kind have, the common value is
    added.

    Args:
        name: such as `ve/cifar10_ncsnpp_continuous`.

    Raises:
        ValueError: if there is none of that name.
    """
    names = official_config_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
        raise ValueError(
            f"there is no official configuration {name!r}; the nearest are {', '.join(map(repr, close))}. "
            "`official_config_names()` lists all of them."
        )
    own = dict(_read(f"{name}.json"))
    config: dict = {}
    for default in own.pop("defaults"):
        _merge(config, _read(f"defaults/{default}.json"))
    _merge(config, own)
    return config


@cache
def _read(path: str) -> dict:
    return json.loads((_ROOT / path).read_text(encoding="utf-8"))


def _merge(config: dict, changes: dict) -> None:
    for key, value in changes.items():
        if isinstance(value, dict):
            _merge(config.setdefault(key, {}), value)
        else:
            config[key] = copy.deepcopy(value)
