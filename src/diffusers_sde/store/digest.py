"""Hashes by which settings and results are recognised."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch


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


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    result = hashlib.sha256()
    with Path(path).open("rb") as file:
        while part := file.read(1 << 20):
            result.update(part)
    return result.hexdigest()


def key_of(settings: dict) -> str:
    """A short name for settings, the same for equal ones."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def as_json(value):
    """The value as it is read back from JSON."""
    return json.loads(json.dumps(value))
