"""The official PyTorch checkpoint: `model`, `ema`, `optimizer` and `step` in a pickle that is read, not executed."""

import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch

from .checkpoint import OfficialCheckpoint


def load_pytorch_checkpoint(path: str | Path, use_ema: bool = True) -> OfficialCheckpoint:
    """Read a checkpoint of the official PyTorch code on the CPU.

    Args:
        path: the `.pth` file.
        use_ema: whether to take the moving average of the weights, which all published results use.

    Raises:
        ValueError: if the file is no such checkpoint, is damaged, or holds other objects than tensors and numbers.
    """
    content = _read(Path(path))
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(
            f"{path} holds {_describe(content)}; a checkpoint of the official PyTorch code is a dictionary of "
            "'optimizer', 'model', 'ema' and 'step'."
        )
    model = {str(name).removeprefix("module."): tensor for name, tensor in content["model"].items()}
    _check_tensors(model.values(), "model", path)
    ema = content.get("ema")
    decay = ema.get("decay") if isinstance(ema, dict) else None
    if use_ema:
        model |= _moving_average(model, ema, path)
    step = content.get("step")
    try:
        step, decay = None if step is None else int(step), None if decay is None else float(decay)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"'step' or the decay in 'ema' of {path} is no number; the file is damaged.") from error
    return OfficialCheckpoint("pytorch", model, step, decay)


def trained_names(names: list[str]) -> list[str]:
    """Names of the trained parameters: neither the table of noise levels nor the Fourier frequencies are."""
    return [name for name in names if name != "sigmas" and name != "all_modules.0.W"]


def _moving_average(model: dict[str, torch.Tensor], ema, path) -> dict[str, torch.Tensor]:
    """The averaged weights by name; they are stored as a list in the order of the trained parameters."""
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadow, list):
        raise ValueError(f"{path} has no moving average of the weights; convert the raw ones with `use_ema=False`.")
    _check_tensors(shadow, "ema", path)
    names = trained_names(list(model))
    if len(names) != len(shadow) or any(model[name].shape != s.shape for name, s in zip(names, shadow, strict=True)):
        raise ValueError(
            f"the moving average of {path} has {len(shadow)} tensors for {len(names)} trained parameters, or other "
            "shapes; convert the raw weights with `use_ema=False`."
        )
    return dict(zip(names, shadow, strict=True))


def _check_tensors(values, part: str, path) -> None:
    for value in values:
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            raise ValueError(f"the {part!r} of {path} has entries that are no dense tensors; the file is damaged.")


def _read(path: Path):
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    # The learning rate is a numpy scalar; nothing else is let in.
    allowed = [np._core.multiarray.scalar, np.dtype, type(np.dtype(np.float64))]
    try:
        _check_archive(path)
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols of damaged files
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        _check_storages(content, path.stat().st_size)
        return content
    except Exception as error:  # whatever a damaged file makes the readers raise
        reason = (str(error) or "no reason given").splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as a PyTorch checkpoint of tensors and numbers ({type(error).__name__}: {reason})."
            " If it was downloaded, look whether it is complete."
        ) from error


def _check_archive(path: Path) -> None:
    """Check the sums of a zip archive, which `torch.load` does not, and that it is not compressed."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise ValueError("the archive has no end")
        return
    with zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("PyTorch's archives are not compressed")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the check sum of {damaged} is wrong")


def _check_storages(content, size: int) -> None:
    """Refuse tensors that would reach beyond the file: no storage may be larger than what was read."""
    pending, seen, total = [content], set(), 0
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, (list, tuple)):
            pending += item
        elif isinstance(item, torch.Tensor) and item.layout == torch.strided:
            storage = item.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
    if total > size:
        raise ValueError(f"its tensors would take {total} bytes")


def _describe(content) -> str:
    return f"a dictionary of {list(content)[:8]}" if isinstance(content, dict) else f"a {type(content).__name__}"
