"""Weights of networks: complete, of the shapes of the network, of floating point and finite, or refused by name."""

import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .configs import CheckedConfig, check_config

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INDEX_SUFFIX = ".index.json"
_MAX_INDEX_BYTES = 50_000_000


class CheckedNetwork(CheckedConfig):
    """Mixin for diffusers' `ModelMixin`, before it in the order of bases: checks configs and weights.

    `from_pretrained` then gives a network whose parameters all come from the file, or a ValueError or OSError.
    """

    reads_pickles = False
    unused_keys: tuple[str, ...] = ()
    """Keys of weights that older files have and the network does not need."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        settings = {key: value for key, value in self.config.items() if not key.startswith("_")}
        check_config(type(self), settings, type(self).__name__)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs):
        """`ModelMixin.from_pretrained`, with checks of the config and of the weights.

        Args:
            pretrained_model_name_or_path: folder, or repository of the Hub.
            **kwargs: passed on; pickled weights need `use_safetensors=False`.

        Raises:
            ValueError: for a config or weights that are not those of such a network; the message has the file and
                the keys.
            OSError: for files that are missing or cannot be read.
        """
        if kwargs.get("use_safetensors") is None and not cls.reads_pickles:
            kwargs["use_safetensors"] = True
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            _check_files(folder)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def _load_pretrained_model(cls, model, state_dict, resolved_model_file, source, *args, **kwargs):
        """`ModelMixin.from_pretrained` puts the weights in place here; before, all are there as the file has them."""
        if kwargs.get("hf_quantizer") is None:
            files = resolved_model_file if isinstance(resolved_model_file, list) else [resolved_model_file]
            tensors = _tensors_of(files) if state_dict is None else _items_of(state_dict, files[0])
            check_weights(model, tensors, files[0] if len(files) == 1 else source, cls.unused_keys)
        return super()._load_pretrained_model(model, state_dict, resolved_model_file, source, *args, **kwargs)


def check_weights(
    network: torch.nn.Module,
    tensors: Iterable[tuple[str, Any]],
    where: object,
    unused_keys: tuple[str, ...] = (),
) -> None:
    """Check that weights are those of a network.

    Args:
        network: of any device, "meta" too.
        tensors: names and tensors of the file.
        where: file that the message begins with.
        unused_keys: names that may be there although the network has none such.

    Raises:
        ValueError: for missing or unexpected names, other shapes, types that are not floating point, NaN and infinity.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing, unexpected, wrong = set(shapes), [], []
    for name, tensor in tensors:
        if name in unused_keys:
            continue
        if name not in missing:
            unexpected.append(str(name))
            continue
        missing.remove(name)
        fault = _fault(tensor, shapes[name])
        if fault:
            wrong.append(f"{name} {fault}")
    kind = type(network).__name__
    if missing:
        raise ValueError(
            f"{where} lacks {_some(sorted(missing))} of the {len(shapes)} tensors of this {kind}. Take the file that "
            "belongs to this config."
        )
    if unexpected:
        raise ValueError(
            f"{where} has {_some(sorted(unexpected))}, of which this {kind} knows nothing. Take the config that "
            "belongs to this file."
        )
    if wrong:
        raise ValueError(f"{where}: {_some(wrong, '; ')}. Take the file that belongs to this config.")


def _fault(tensor: Any, shape: tuple[int, ...]) -> str | None:
    """What is wrong with a tensor of the file, in words."""
    if not isinstance(tensor, torch.Tensor):
        return f"is a {type(tensor).__name__}, no tensor"
    if tensor.dtype not in DTYPES:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        return f"is of type {str(tensor.dtype).removeprefix('torch.')}; allowed are {allowed}"
    if tuple(tensor.shape) != shape:
        return f"has shape {tuple(tensor.shape)}, in the network {shape}"
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    return f"has {bad} NaN or infinite values of {tensor.numel()}" if bad else None


def _some(names: list[str], separator: str = ", ", most: int = 4) -> str:
    more = f"{separator}and {len(names) - most} more" if len(names) > most else ""
    return separator.join(name[:200] for name in names[:most]) + more


def _tensors_of(files: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of several safetensors files, one after the other."""
    from safetensors import SafetensorError, safe_open

    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _items_of(state_dict: Any, where: object) -> Iterable[tuple[str, Any]]:
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"{where} holds a {type(state_dict).__name__}; weights are tensors by name.")
    return state_dict.items()


def _check_files(folder: Path) -> None:
    """Check what of a folder can be checked by itself: indices of shards, and archives of pickles."""
    for path in folder.glob(f"*{_INDEX_SUFFIX}"):
        _check_index(path)
    for path in folder.glob("*.bin"):
        _check_archive(path)


def _check_index(path: Path) -> None:
    """Check an index of shards, which diffusers takes as it is."""
    if path.stat().st_size > _MAX_INDEX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; an index of shards has at most {_MAX_INDEX_BYTES}.")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    entries = index.get("weight_map") if isinstance(index, dict) else None
    suffix = Path(path.name.removesuffix(_INDEX_SUFFIX)).suffix
    if (
        not isinstance(entries, dict)
        or not entries
        or not isinstance(index.get("metadata"), dict)
        or not all(isinstance(name, str) and Path(name).name == name for name in entries.values())
        or not all(name.endswith(suffix) for name in entries.values())
    ):
        raise ValueError(
            f"{path} is no index of shards: an object with `metadata` and a `weight_map` from names of tensors to "
            f"names of {suffix} files beside it."
        )


def _check_archive(path: Path) -> None:
    """Refuse an archive that unpacks to more than its own size; PyTorch stores tensors as they are."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            content = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ValueError(f"{path} is a damaged archive: {error}") from error
    if content > path.stat().st_size:
        raise ValueError(f"{path} of {path.stat().st_size} bytes unpacks to {content}; PyTorch does not write such.")
