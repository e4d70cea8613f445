"""What is read from an official checkpoint, and how its format is told from its content."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What a conversion needs of a checkpoint.

    Args:
        format: `"pytorch"` or `"jax"`.
        state_dict: official parameter names to tensors, raw or EMA weights as asked for.
        step: number of optimisation steps.
        ema_decay: decay of the moving average, or `None` if the file has none.
    """

    format: str
    state_dict: dict[str, torch.Tensor]
    step: int | None
    ema_decay: float | None


def detect_format(path: str | Path) -> str:
    """`"pytorch"` or `"jax"`, from the first bytes of the file whatever its name.

    Raises:
        ValueError: if there is no such file or it is neither.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return "pytorch"
    if head[:2] == b"\x1f\x8b" or (head and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))):
        return "jax"
    if not head:
        raise ValueError(f"{path} is empty; download it again.")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<script", b"<!--")):
        raise ValueError(
            f"{path} is a web page, not a checkpoint. Google Drive sends one when a file is asked for too often or "
            "needs a confirmation: open the link in a browser and download the file itself."
        )
    raise ValueError(
        f"{path} is neither a PyTorch checkpoint (zip or pickle) nor a JAX one (msgpack); it begins with "
        f"{head[:16]!r}."
    )


def check_finite(checkpoint: OfficialCheckpoint, path: str | Path) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        ValueError: naming the first of them.
    """
    bad = [name for name, tensor in checkpoint.state_dict.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise ValueError(
            f"{len(bad)} tensors of {path} hold NaN or infinite values, {bad[0]} first; the file is damaged or the "
            "training had diverged."
        )
