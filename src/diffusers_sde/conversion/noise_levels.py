r"""The noise schedule that stands in a checkpoint, against that of the configuration.

Official PyTorch networks keep the noise levels sigma_max ... sigma_min, a geometric sequence of N, in a buffer
`sigmas`. A network of the VE SDE was trained with them, so they win over the configuration, which may be that of the
network it was fine-tuned from. VP and sub-VP networks have the buffer too, where only its length N means something.
Files of other code can hold the betas of the VP SDE, beta_i = (beta_min + (beta_max - beta_min) i / (N - 1)) / N.

Reference: Song et al. 2021, arXiv:2011.13456, Eq. (6), (10) and App. C.
"""

import copy
import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import torch

from ..configs import official_config, official_config_names
from .checkpoint import NOISE_TABLES, WEIGHT_DTYPES
from .fitting import structure

_BETA_TABLES = {
    "betas": lambda betas: betas,
    "alphas": lambda betas: 1 - betas,
    "alphas_cumprod": lambda betas: torch.cumprod(1 - betas, 0),
    "sqrt_alphas_cumprod": lambda betas: torch.cumprod(1 - betas, 0).sqrt(),
    "sqrt_1m_alphas_cumprod": lambda betas: (1 - torch.cumprod(1 - betas, 0)).sqrt(),
    "sqrt_one_minus_alphas_cumprod": lambda betas: (1 - torch.cumprod(1 - betas, 0)).sqrt(),
}
_PRECISION = 16 * torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class FileSchedule:
    """The configuration with the noise schedule of the file.

    Args:
        config: the official configuration, changed where the file has other values.
        changes: a sentence for each value that was changed.
        unused: names of tables that mean nothing for this network.
    """

    config: dict
    changes: tuple[str, ...]
    unused: tuple[str, ...]


def take_tables(state_dict: MutableMapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tables of the noise schedule, by their names, taken out of a state dict."""
    return {name: state_dict.pop(name) for name in NOISE_TABLES if name in state_dict}


def schedule_of_file(config: dict, tables: Mapping[str, torch.Tensor], name: str | None = None) -> FileSchedule:
    """Bring the noise schedule of a configuration in line with the tables of a checkpoint.

    Args:
        config: the official configuration; it is not changed.
        tables: tensors of shape (N,) by name, as `take_tables` gives them.
        name: name of the configuration, if it is an official one.

    Raises:
        ValueError: if a table is no such sequence, if tables contradict one another, or if they show that the
            checkpoint belongs to another configuration.
    """
    found: dict[str, float] = {}
    tolerance, unused = 0.0, []
    if "sigmas" in tables:
        values, tolerance = _values("sigmas", tables["sigmas"])
        if _is_used(config):
            found |= _geometric(values, tolerance)
            _check_official(config, found, tolerance, name)
        else:
            _check_default(config, values, tolerance)
            found["num_scales"] = len(values)
            unused.append("model.sigmas")
    betas = {key: table for key, table in tables.items() if key in _BETA_TABLES}
    if betas:
        found |= _linear(config, betas, found.get("num_scales"))
    config, changes = copy.deepcopy(config), []
    for key, value in found.items():
        old = config["model"].get(key)
        if not _close(old, value, max(tolerance, _PRECISION)):
            config["model"][key] = value = _shortest(value)
            changes.append(f"{key} is {value:.10g}, from the file; the configuration has {old}")
    return FileSchedule(config, tuple(changes), tuple(unused))


def _is_used(config: dict) -> bool:
    """Whether the network was trained with the noise levels of its table, or divides by them."""
    return config["training"]["sde"].lower() == "vesde" or bool(config["model"]["scale_by_sigma"])


def _values(name: str, table: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The table in float64, and the relative precision that its type leaves."""
    if table.ndim != 1 or len(table) < 2 or table.dtype not in WEIGHT_DTYPES:
        raise ValueError(
            f"'{name}' of the checkpoint has shape {tuple(table.shape)} and type {table.dtype}; a table of the noise "
            "schedule is a sequence of at least 2 floating-point numbers. Remove it from 'model' if it is none: the "
            "configuration is then taken."
        )
    # A table in float64 may have been computed, or stored before, in float32.
    return table.double(), max(2 * torch.finfo(table.dtype).eps, _PRECISION)


def _geometric(values: torch.Tensor, tolerance: float) -> dict[str, float]:
    first, last, number = float(values[0]), float(values[-1]), len(values)
    if not first > last > 0:
        raise ValueError(
            f"the noise levels in the checkpoint run from {first:g} to {last:g}; those of the official code fall from "
            "sigma_max to sigma_min, both positive. This package has no network for another order of labels."
        )
    steps = torch.linspace(math.log(first), math.log(last), number, dtype=torch.float64)
    error = float((values / steps.exp() - 1).abs().max())
    if not error <= tolerance:
        raise ValueError(
            f"the noise levels in the checkpoint, {number} from {first:g} to {last:g}, are no geometric sequence: "
            f"they are up to {100 * error:.2g} % off one. Networks and schedulers of this package have no other noise "
            "levels, so the checkpoint cannot be converted exactly."
        )
    return {"sigma_min": last, "sigma_max": first, "num_scales": number}


def _check_default(config: dict, values: torch.Tensor, tolerance: float) -> None:
    """Refuse a configuration of VP or sub-VP whose table would be another one: the file is then not its own."""
    model = config["model"]
    ends = (("sigma_max", float(values[0])), ("sigma_min", float(values[-1])))
    for key, value in ends:
        if key in model and not _close(model[key], value, tolerance):
            raise ValueError(
                f"the noise levels in the checkpoint run from {ends[0][1]:g} to {ends[1][1]:g}, but the configuration "
                f"has {key} {model[key]}, so it is not the one that the checkpoint was trained with. Name that of a "
                "VE network; or, if the network is one of the VP or sub-VP SDE all the same, pass a JSON file with "
                "these sigma_min and sigma_max."
            )


def _check_official(config: dict, found: dict[str, float], tolerance: float, name: str | None) -> None:
    """Refuse an official configuration if the noise levels are those of another one with the same network."""
    if name is None or _has_levels(config, found, tolerance):
        return
    others = {other: official_config(other) for other in official_config_names() if other != name}
    fitting = [
        other
        for other, candidate in others.items()
        if _has_levels(candidate, found, tolerance)
        and _is_used(candidate)
        and structure(candidate) == structure(config)
    ]
    if fitting:
        raise ValueError(
            f"the noise levels in the checkpoint, {found['num_scales']} from {found['sigma_max']:g} to "
            f"{found['sigma_min']:g}, are not those of {name} but of {', '.join(fitting)}, which has the same "
            "network. Name that configuration; or pass a JSON file if the network was trained further with other "
            "noise levels."
        )


def _has_levels(config: dict, found: Mapping[str, float], tolerance: float) -> bool:
    return all(_close(config["model"].get(key), value, tolerance) for key, value in found.items())


def _linear(config: dict, tables: Mapping[str, torch.Tensor], number: float | None) -> dict[str, float]:
    """beta_min, beta_max and N of the tables of the discrete VP SDE, which must agree."""
    if config["training"]["sde"].lower() != "vpsde":
        raise ValueError(
            f"the checkpoint holds {', '.join(map(repr, tables))}, which belong to the VP SDE; the configuration has "
            f"{config['training']['sde']!r}. Name that of a VP network."
        )
    exact = {key: _values(key, table) for key, table in tables.items()}
    if "betas" not in exact:
        raise ValueError(f"the checkpoint holds {', '.join(map(repr, tables))} without 'betas'; add or remove them.")
    betas = exact["betas"][0]
    tolerance = max(tolerance for _, tolerance in exact.values())
    steps = torch.linspace(float(betas[0]), float(betas[-1]), len(betas), dtype=torch.float64)
    if not (betas - steps).abs().max() <= tolerance or number not in (None, len(betas)):
        raise ValueError(
            f"the {len(betas)} betas in the checkpoint are no linear sequence, or not as many as its noise levels; "
            "schedulers of this package have no others, so the checkpoint cannot be converted exactly."
        )
    for key, (values, _) in exact.items():
        expected = _BETA_TABLES[key](betas)
        if values.shape != expected.shape or not (values - expected).abs().max() <= len(betas) * tolerance:
            raise ValueError(f"'{key}' of the checkpoint does not follow from its betas; the file is damaged.")
    scaled = betas * len(betas)
    return {"beta_min": float(scaled[0]), "beta_max": float(scaled[-1]), "num_scales": len(betas)}


def _close(a, b: float, tolerance: float) -> bool:
    return isinstance(a, (int, float)) and math.isclose(a, b, rel_tol=tolerance)


def _shortest(value: float) -> float:
    """The number of fewest digits within the precision of float32: 90 rather than 90.00000000000003."""
    if isinstance(value, int):
        return value
    return next(n for n in (float(f"{value:.{digits}g}") for digits in range(1, 18)) if _close(n, value, _PRECISION))
