"""The official PyTorch checkpoint: a pickle of `model`, `ema`, `optimizer` and `step`, read without executing any of it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What a conversion needs of a checkpoint.

    Args:
        state_dict: official parameter names to tensors, raw or EMA weights as asked for.
        step: number of optimisation steps.
        ema_decay: decay of the moving average, or `None` if the file has none.
    """

    state_dict: dict[str, torch.Tensor]
    step: int | None
    ema_decay: float | None


def load_pytorch_checkpoint(path: str | Path, use_ema: bool = True) -> OfficialCheckpoint:
    """Read a checkpoint of the official PyTorch code on the CPU.

    Args:
        path: the `.pth` file.
        use_ema: whether to take the moving average of the weights, which all published results use.

    Raises:
        ValueError: if the file is no such checkpoint, or holds other objects than tensors and numbers.
    """
    content = _read(Path(path))
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(
            f"{path} holds {_describe(content)}; a checkpoint of the official PyTorch code is a dictionary of "
            "'optimizer', 'model', 'ema' and 'step'."
        )
    model = {name.removeprefix("module."): tensor for name, tensor in content["model"].items()}
    if not all(isinstance(tensor, torch.Tensor) for tensor in model.values()):
        raise ValueError(f"the 'model' of {path} has entries that are no tensors; the file is damaged.")
    ema = content.get("ema")
    decay = float(ema["decay"]) if isinstance(ema, dict) and "decay" in ema else None
    if use_ema:
        model |= _moving_average(model, ema, path)
    step = content.get("step")
    return OfficialCheckpoint(model, None if step is None else int(step), decay)


def _moving_average(model: dict[str, torch.Tensor], ema, path) -> dict[str, torch.Tensor]:
    """The averaged weights by name; they are stored as a list in the order of the trained parameters."""
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadow, list):
        raise ValueError(f"{path} has no moving average of the weights; convert the raw ones with `use_ema=False`.")
    # Neither the table of noise levels nor the Fourier frequencies are trained.
    names = [name for name in model if name != "sigmas" and not name.endswith("all_modules.0.W")]
    if len(names) != len(shadow) or any(model[name].shape != s.shape for name, s in zip(names, shadow, strict=True)):
        raise ValueError(
            f"the moving average of {path} has {len(shadow)} tensors for {len(names)} trained parameters, or other "
            "shapes; convert the raw weights with `use_ema=False`."
        )
    return dict(zip(names, shadow, strict=True))


def _read(path: Path):
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    # The learning rate is a numpy scalar; nothing else is let in.
    allowed = [np._core.multiarray.scalar, np.dtype, type(np.dtype(np.float64))]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} cannot be read as a PyTorch checkpoint of tensors and numbers ({type(error).__name__}: {reason}). "
            "If it was downloaded, look whether it is complete and not a web page."
        ) from error


def _describe(content) -> str:
    return f"a dictionary of {list(content)[:8]}" if isinstance(content, dict) else f"a {type(content).__name__}"
