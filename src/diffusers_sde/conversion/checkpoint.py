"""What is read from an official checkpoint, and how its format is told from its content."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types of numbers in which weights may be stored; all of them become float32."""

NOISE_TABLES = (
    "sigmas",
    *("betas", "alphas", "alphas_cumprod", "sqrt_alphas_cumprod"),
    *("sqrt_1m_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
)
"""Names of tables of the noise schedule, which stand among the tensors and are not trained."""

_MAX_STEP = 2**63 - 1
_NAME = re.compile(r"[\w.-]{1,200}")


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What a conversion needs of a checkpoint.

    Args:
        format: `"pytorch"` or `"jax"`.
        state_dict: official parameter names to tensors, raw or EMA weights as asked for.
        step: number of optimisation steps.
        ema_decay: decay of the moving average, or `None` if the file has none.
        unused: names of the other entries of the file, which do not enter the conversion.
    """

    format: str
    state_dict: dict[str, torch.Tensor]
    step: int | None
    ema_decay: float | None
    unused: tuple[str, ...] = ()


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
    if is_zip(head) or head[:1] == b"\x80":
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


def is_zip(head: bytes) -> bool:
    """Whether a file that begins with `head` is read as a zip archive."""
    return head[:4] == b"PK\x03\x04"


def check_weights(checkpoint: OfficialCheckpoint, path: str | Path) -> None:
    """Refuse weights of other types than floating point, beyond the size of the file, or not finite.

    Raises:
        ValueError: naming the first of them.
    """
    tensors = checkpoint.state_dict
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHT_DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHT_DTYPES)
            raise ValueError(
                f"{name} of {path} is of type {str(tensor.dtype).removeprefix('torch.')}; weights must be {allowed}. "
                "Save the checkpoint again in float32."
            )
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise ValueError(
            f"{len(bad)} tensors of {path} hold NaN or infinite values, {bad[0]} first; the file is damaged or the "
            "training had diverged."
        )


def checked_step(value, path: str | Path) -> int | None:
    """The number of optimisation steps, from what the file has for it.

    Args:
        value: a number, or a tensor or numpy scalar of one; `None` if the file has none.
        path: the file, for the error.

    Raises:
        ValueError: if it is no whole number from 0 to 2^63 - 1.
    """
    number = _number(value)
    if value is not None and (number is None or not 0 <= number <= _MAX_STEP or number != math.floor(number)):
        raise ValueError(
            f"'step' of {path} is no number of steps, which is whole and from 0 to 2^63 - 1, but {_shown(value)}; the "
            "file is damaged, or was written by another program."
        )
    return None if value is None else int(number)


def checked_decay(value, path: str | Path) -> float | None:
    """The decay of the moving average, from what the file has for it; arguments as those of `checked_step`.

    Raises:
        ValueError: if it is no number from 0 to 1.
    """
    number = _number(value)
    if value is not None and (number is None or not 0 <= number <= 1):
        raise ValueError(
            f"the decay of the moving average in {path} is {_shown(value)} and no number from 0 to 1; the file is "
            "damaged, or was written by another program."
        )
    return None if value is None else float(number)


def checked_name(name, path: str | Path) -> str:
    """A name of a tensor, or a part of it.

    Raises:
        ValueError: if it is none: listings of names go to terminals and files.
    """
    if not isinstance(name, str):
        raise ValueError(f"{path} has a name of type {type(name).__name__} for a tensor; a word was expected.")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{path} has the name {printable(name)} for a tensor; a word of letters was expected.")
    return name


def printable(text: str) -> str:
    """Words of a file as they can be shown: without control characters, and short."""
    return text[:80] if text[:80].isprintable() else ascii(text[:80])


def shown_names(names: Iterable) -> list[str]:
    """The first names, where they are short words."""
    shown = [n if isinstance(n, str) and _NAME.fullmatch(n) else "(other)" for n in names]
    return shown[:8] + (["(more)"] if len(shown) > 8 else [])


def _number(value) -> int | float | None:
    """A plain number from one or from a tensor or numpy scalar, or None if it is none or not finite."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else None
    elif type(value).__module__ == "numpy":
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _shown(value) -> str:
    """The value where it is short: integers of a file may have more digits than Python prints."""
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**64):
        return repr(value)
    return f"a {type(value).__name__}" if not isinstance(value, int) else "an integer of more than 64 bits"
