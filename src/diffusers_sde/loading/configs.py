"""Configs of networks and schedulers: read from files of bounded size, and checked before anything is built.

The types of the values are those of the class's own signature. A bound on each count, on each width and on the length
of each list keeps what a config of a few bytes can ask for within seconds and megabytes: the network is built without
memory of its own, and its parameters are then compared with the file of weights.
"""

import json
import numbers
import os
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Literal, Union

from diffusers.configuration_utils import FrozenDict

MAX_BYTES = 1_000_000  # of a file; real ones have a few thousand
MAX_DEPTH = 8
MAX_NUMBER = 1e12
MAX_LETTERS = 1000
MAX_LEVELS = 12  # of a network: 4096 pixels halved to one

# Smallest and largest value of counts and widths. The largest official ones are far below: 1024 pixels, 1024 channels,
# 8 layers, 2000 time steps.
RANGES = {
    "sample_size": (1, 4096),
    "in_channels": (1, 1024),
    "out_channels": (1, 1024),
    "block_out_channels": (1, 4096),
    "refine_out_channels": (1, 4096),
    "layers_per_block": (1, 32),
    "dilations": (1, 64),
    "norm_num_groups": (1, 4096),
    "attention_head_dim": (1, 4096),
    "downsample_padding": (0, 8),
    "num_classes": (1, 100_000),
    "time_embedding_dim": (1, 16_384),
    "num_class_embeds": (1, 100_000),
    "blocks_per_group": (1, 32),
    "channel_multiplier": (1, 64),
    "embedding_features": (1, 4096),
    "num_train_timesteps": (1, 100_000),
    "correct_steps": (0, 1000),
    "solver_order": (1, 10),
}
OTHER_INTEGERS = (-1_000_000, 1_000_000)
LENGTHS = {"trained_betas": 100_000, "image_mean": 1024, "image_std": 1024, "attn_resolutions": 64, "fir_kernel": 64}
# Keys that classes read without having them in their signatures.
BETAS = {"beta_start": float, "beta_end": float, "num_train_timesteps": int}
_PRIVATE = {
    "_class_name": str | list,
    "_diffusers_version": str,
    "_name_or_path": str | None,
    "_use_default_values": list,
}


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: file of at most `MAX_BYTES` bytes, nested at most `MAX_DEPTH` deep.

    Raises:
        ValueError: for anything else; the message names the file.
    """
    size = os.stat(path).st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; a config has at most {MAX_BYTES}. Is it another file?")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        depth = _depth(content)
    except RecursionError:
        depth = MAX_DEPTH + 1
    except ValueError as error:  # of the text's encoding, of JSON, and of numbers of thousands of digits
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if depth > MAX_DEPTH:
        raise ValueError(f"{path} is nested more than {MAX_DEPTH} deep; configs are not. Take the author's own file.")
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}; a config is an object, {{...}}.")
    return content


def _depth(content: Any) -> int:
    """Number of containers within each other, without recursion."""
    level, depth = [content], 0
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def check_config(cls: type, config: Mapping[str, Any], where: object) -> None:
    """Check the values of a config against the signature of the class and the bounds of this module.

    Args:
        cls: class that shall be built.
        config: its settings; keys that the class does not know are checked for their names only.
        where: file or class that the message begins with.

    Raises:
        ValueError: for a value of another type or out of bounds; the message has the key, the value and what is
            allowed.
    """
    kinds, defaults = _signature(cls)
    for key, value in config.items():
        if key in ("self", "dtype", "quantization_config") or hasattr(FrozenDict, key):
            raise ValueError(f"{where}: `{key}` is no setting that a config may have; leave it out.")
        kind = kinds.get(key, _PRIVATE.get(key, Any))
        if key in defaults and (value is defaults[key] or _equal(value, defaults[key])):
            continue
        if value is None and key in getattr(cls, "nullable_keys", ()):
            continue
        if kind is not Any and not (_fits(value, kind) and all(_in_bounds(item, key, kind) for item in _parts(value))):
            raise ValueError(f"{where}: `{key}` is {_shown(value)}; allowed is {_described(kind, key)}.")
    betas, steps = config.get("trained_betas"), config.get("num_train_timesteps", defaults.get("num_train_timesteps"))
    if isinstance(betas, list) and len(betas) != steps:
        raise ValueError(
            f"{where}: `trained_betas` has {len(betas)} values; allowed are `num_train_timesteps`, {steps}."
        )


@cache
def _signature(cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Types and defaults by key."""
    hints = typing.get_type_hints(cls.__init__)
    parameters = {name: p for name, p in signature(cls.__init__).parameters.items() if p.kind is not p.VAR_KEYWORD}
    kinds = {name: hints.get(name, Any) for name in parameters if name != "self"}
    defaults = {name: p.default for name, p in parameters.items() if p.default is not Parameter.empty}
    return BETAS | kinds, defaults


def _equal(value: Any, default: Any) -> bool:
    """A default is allowed whatever it is, as the -inf of diffusers' DPM-Solver; 1 is not True."""
    return type(value) is type(default) and isinstance(value, int | float | str) and value == default


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value, as JSON or Python has it, is of an annotated type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (tuple, list) or kind in (tuple, list):
        if not isinstance(value, tuple | list):
            return False
        if origin is tuple and Ellipsis not in arguments:
            return len(value) == len(arguments) and all(map(_fits, value, arguments))
        return all(_fits(item, arguments[0] if arguments else Any) for item in value)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    if kind in (bool, str) or kind is type(None):
        return isinstance(value, kind)
    return not isinstance(kind, type) or isinstance(value, kind)


def _parts(value: Any) -> Iterator[Any]:
    """The value and what is in it."""
    yield value
    if isinstance(value, tuple | list):
        for item in value:
            yield from _parts(item)


def _in_bounds(value: Any, key: str, kind: Any) -> bool:
    """Whether one part of a value of an annotated type is within the bounds of its key."""
    if isinstance(value, str):
        return len(value) <= MAX_LETTERS
    if isinstance(value, tuple | list):
        return len(value) <= LENGTHS.get(key, MAX_LEVELS)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return True
    if isinstance(value, numbers.Integral) and not _mentions_float(kind):
        low, high = RANGES.get(key, OTHER_INTEGERS)
        return low <= value <= high
    return abs(value) <= MAX_NUMBER  # which NaN is not either


def _mentions_float(kind: Any) -> bool:
    return kind is float or any(map(_mentions_float, typing.get_args(kind)))


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "an integer of thousands of digits"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _described(kind: Any, key: str) -> str:
    """What is allowed, in words."""
    low, high = RANGES.get(key, OTHER_INTEGERS)
    length = LENGTHS.get(key, MAX_LEVELS)

    def words(kind: Any) -> str:
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (Union, types.UnionType):
            return " or ".join(words(one) for one in arguments)
        if origin is Literal:
            return " or ".join(map(repr, arguments))
        if origin in (tuple, list) or kind in (tuple, list):
            if origin is tuple and Ellipsis not in arguments:
                return f"a list of {len(arguments)}, each {words(arguments[0])}"
            return f"a list of at most {length}" + (f", each {words(arguments[0])}" if arguments else "")
        if kind is int:
            return f"an integer from {low} to {high}"
        if kind is float:
            return f"a finite number of at most {MAX_NUMBER:g}"
        named = {bool: "true or false", str: f"a text of at most {MAX_LETTERS} letters", type(None): "null"}
        return named.get(kind, "what the class takes")

    return words(kind)


class CheckedConfig:
    """Mixin for classes of diffusers' `ConfigMixin`, before it in the order of bases: checks every config."""

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """`ConfigMixin.load_config` reads its file here."""
        config = read_config(json_file)
        check_config(cls, config, json_file)
        return config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """`from_pretrained` of diffusers, whose errors then name what was to be loaded.

        Args:
            pretrained_model_name_or_path: folder, or repository of the Hub.
            **kwargs: passed on.

        Raises:
            ValueError: for a config from which nothing can be built.
            OSError: for files that are missing or cannot be read.
        """
        source = str(pretrained_model_name_or_path)
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        except ValueError as error:
            if source in str(error):
                raise
            raise ValueError(f"{Path(source, kwargs.get('subfolder') or '')}: {error}") from error

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        """`ConfigMixin.from_config`, after a check of all values.

        Raises:
            ValueError: for a value of another type, or out of bounds.
        """
        if isinstance(config, Mapping):
            known = {key: value for key, value in kwargs.items() if key in _signature(cls)[0]}
            check_config(cls, {**_without_private(config), **known}, cls.__name__)
        return super().from_config(config, return_unused_kwargs, **kwargs)


def _without_private(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}
