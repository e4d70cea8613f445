"""The recorded checkpoints of `tests/reference/checkpoints`, unpacked.

They are packed as their bytes in four planes (every fourth byte), LZMA-compressed: exponents of float32 numbers come
to lie side by side. The first 8 bytes are the length.
"""

import functools
import gzip
import io
import json
import lzma
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

REFERENCE = Path(__file__).parent / "reference"
FOLDER = REFERENCE / "checkpoints"


@functools.lru_cache(maxsize=2)
def checkpoint_bytes(name: str) -> bytes:
    """The checkpoint as the official code wrote it."""
    packed = (FOLDER / f"{name}.packed").read_bytes()
    planes = np.frombuffer(lzma.decompress(packed[8:]), np.uint8).reshape(4, -1)
    return planes.T.tobytes()[: int.from_bytes(packed[:8], "big")]


def write_checkpoint(folder: Path, name: str) -> Path:
    """The checkpoint as a file, under a name that says nothing of its format."""
    path = Path(folder) / f"{name}.bin"
    if not path.exists():
        path.write_bytes(checkpoint_bytes(name))
    return path


def checkpoint_content(name: str) -> dict:
    """The content of a recorded PyTorch checkpoint, to be changed and saved again."""
    with torch.serialization.safe_globals([np._core.multiarray.scalar, np.dtype, type(np.dtype(np.float64))]):
        return torch.load(io.BytesIO(checkpoint_bytes(name)), weights_only=True)


def arrays(name: str) -> dict:
    """What was recorded with a checkpoint; images of the JAX code as (B, C, H, W)."""
    recorded = load_file(FOLDER / f"{name}.safetensors")
    if name.startswith("jax"):
        recorded = {key: a.permute(0, 3, 1, 2).contiguous() if a.ndim == 4 else a for key, a in recorded.items()}
    return recorded


def description(name: str) -> dict:
    """The configuration, or configuration and sampler runs, recorded with a checkpoint."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def reference_json(name: str):
    """A compressed JSON file of `tests/reference`."""
    return json.loads(gzip.decompress((REFERENCE / f"{name}.json.gz").read_bytes()))


def relative_error(a, b) -> float:
    """Largest difference over the largest magnitude."""
    return float((a - b).detach().abs().max() / b.abs().max())
