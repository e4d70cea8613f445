"""The official PyTorch checkpoint: `model`, `ema`, `optimizer` and `step`.

Names of tensors may carry those of wrappers, in any number and order: `module.` of data-parallel training,
`_orig_mod.` of a compiled network and the like. The moving average is, in the official code, a list in the order of
the trained parameters; a dictionary by names, or the list alone, will do as well.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from .checkpoint import NOISE_TABLES, OfficialCheckpoint, checked_decay, checked_name, checked_step, shown_names
from .torch_file import read_torch_file

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_NOT_TRAINED = (*NOISE_TABLES, "all_modules.0.W")
_ADVICE = "convert the raw weights with `use_ema=False` (`--no-ema`)."


def load_pytorch_checkpoint(path: str | Path, use_ema: bool = True) -> OfficialCheckpoint:
    """Read a checkpoint of the official PyTorch code on the CPU.

    Args:
        path: the `.pth` file.
        use_ema: whether to take the moving average of the weights, which all published results use.

    Raises:
        ValueError: if the file is no such checkpoint, is damaged, or holds other objects than tensors and numbers.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(
            f"{path} holds {_described(content)}; a checkpoint of the official PyTorch code is a dictionary of "
            "'optimizer', 'model', 'ema' and 'step'."
        )
    model = _named_tensors(content["model"], "model", path)
    ema = content.get("ema")
    settings, shadow = _parts(ema)
    weights = _averaged(model, shadow, path) if use_ema else model
    _check_size(weights, path)
    others = [key for key in content if key not in ("model", "step", "ema")]
    others += [f"ema.{key}" for key in settings if key != "decay"]
    return OfficialCheckpoint(
        "pytorch",
        weights,
        checked_step(content.get("step"), path),
        checked_decay(settings.get("decay"), path),
        tuple(shown_names(others)),
    )


def _parts(ema) -> tuple[dict, Any]:
    """The settings of a moving average, and its tensors, which may stand beside them by their names."""
    if not isinstance(ema, dict):
        return {}, ema
    if "shadow_params" in ema:
        return {key: value for key, value in ema.items() if key != "shadow_params"}, ema["shadow_params"]
    settings = {key: ema[key] for key in ("decay", "num_updates") if key in ema}
    return settings, {key: value for key, value in ema.items() if key not in settings} or None


def trained_names(names: Iterable[str]) -> list[str]:
    """Names of the trained parameters: neither tables of the noise schedule nor the Fourier frequencies are."""
    return [name for name in names if name not in _NOT_TRAINED]


def _named_tensors(entries: Mapping, part: str, path) -> dict[str, torch.Tensor]:
    """The tensors of a dictionary by their official names.

    Raises:
        ValueError: if a name is no word, stands twice once the wrappers are gone, or begins with another prefix.
    """
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in entries.items():
        name = ".".join(word for word in checked_name(key, path).split(".") if word not in _WRAPPERS)
        if name in tensors:
            raise ValueError(
                f"the {part!r} of {path} has {name!r:.80} twice, with and without {', '.join(_WRAPPERS[:2])} in its "
                "name; save one of the two networks alone."
            )
        tensors[name] = tensor
    _check_tensors(tensors.values(), part, path)
    first = {name.partition(".")[0] for name in tensors if "." in name}
    if len(tensors) > 1 and len(first) == 1 and all("." in name for name in tensors) and first != {"all_modules"}:
        prefix = f"{first.pop()}."
        raise ValueError(
            f"every name in the {part!r} of {path} begins with {prefix!r:.60}, such as {next(iter(tensors))!r:.80}; "
            f"those of the official code do not. Save the file again without this prefix. (Those that are left out "
            f"here: {', '.join(_WRAPPERS)}.)"
        )
    return tensors


def _averaged(model: dict[str, torch.Tensor], shadow, path) -> dict[str, torch.Tensor]:
    """The averaged weights, with what is not averaged, by name."""
    if isinstance(shadow, dict) and shadow:
        return model | _averages_by_name(model, _named_tensors(shadow, "ema", path), path)
    if not isinstance(shadow, (list, tuple)):
        raise ValueError(f"{path} has no moving average of the weights; {_ADVICE}")
    _check_tensors(shadow, "ema", path)
    names = trained_names(model)
    if len(names) != len(shadow):
        raise ValueError(
            f"the moving average of {path} has {len(shadow)} tensors for {len(names)} trained parameters, of "
            f"{len(model)} tensors in 'model'; {_ADVICE}"
        )
    for number, (name, tensor) in enumerate(zip(names, shadow, strict=True)):
        if model[name].shape != tensor.shape:
            raise ValueError(
                f"tensor {number} of the moving average of {path} has shape {tuple(tensor.shape)} for {name}, which "
                f"has {tuple(model[name].shape)}: the average or the names in 'model' are in another order, or of "
                f"another network; {_ADVICE}"
            )
    return model | dict(zip(names, shadow, strict=True))


def _averages_by_name(model: dict[str, torch.Tensor], averages: dict[str, torch.Tensor], path):
    missing = [name for name in trained_names(model) if name not in averages]
    foreign = [name for name in averages if name not in model]
    if missing or foreign:
        raise ValueError(
            f"the moving average of {path} lacks {len(missing)} trained parameters ({', '.join(missing[:3]) or '-'}) "
            f"and has {len(foreign)} names that 'model' has not ({', '.join(foreign[:3]) or '-'}); {_ADVICE}"
        )
    return averages


def _check_tensors(values: Iterable, part: str, path) -> None:
    for value in values:
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"the {part!r} of {path} has entries that are no dense tensors but {_described(value)}; it should be "
                "the state dict of the network."
            )


def _check_size(weights: dict[str, torch.Tensor], path) -> None:
    """Refuse tensors that share their numbers: converted, each has its own, and together more than the file."""
    total, size = sum(tensor.nbytes for tensor in weights.values()), Path(path).stat().st_size
    if total > size:
        raise ValueError(
            f"the tensors of {path} share memory and would take {total} bytes, more than the file's {size}; those of "
            "the official code do not."
        )


def _described(content) -> str:
    return f"a dictionary of {shown_names(content)}" if isinstance(content, dict) else f"a {type(content).__name__}"
