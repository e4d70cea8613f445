"""Which scheduler may stand in a pipeline over a network: ours of its process, or a solver of diffusers' made exact.

What a network predicts stands in the scheduler that it came with, and goes on from each scheduler to the next.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import DDPMScheduler
from diffusers.utils import logging

from .base import ScoreSdeSchedulerBase
from .config import CHAIN_KEYS, PROCESS_KEY, class_names, foreign_prediction, process_scheduler
from .from_diffusers import from_diffusers_scheduler, scheduler_of_config
from .solver_check import check_solver
from .solvers import solver_settings

logger = logging.get_logger(__name__)

SOLVERS = "DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler or HeunDiscreteScheduler"


def accept_scheduler(scheduler, known: Mapping[str, Any] | None = None, *, certain: bool = True, ours: bool = False):
    """The scheduler to run over a network when this one is asked for.

    Args:
        scheduler: one of ours; diffusers' `ScoreSdeVeScheduler` or `ScoreSdeVpScheduler`, which become ours; or a
            solver of diffusers', which is given the chain of the network's process.
        known: config of the scheduler that tells what the network was trained for; `None` if `scheduler` does.
        certain: whether `known` stands above what a scheduler of ours has; otherwise a difference is a warning.
        ours: whether the pipeline needs one of ours.

    Returns:
        One of ours, or a solver of diffusers' that is exact for the network.

    Raises:
        ValueError: if it is no scheduler, of another process, or cannot sample from this network; naming what to take.
    """
    name = type(scheduler).__name__
    if not all(hasattr(scheduler, part) for part in ("config", "set_timesteps")) or isinstance(scheduler, type):
        raise ValueError(
            f"the scheduler is {scheduler!r}, which is none; give a scheduler of this package or {SOLVERS}."
        )
    if isinstance(scheduler, ScoreSdeSchedulerBase):
        process, converted = scheduler, True
    else:
        process, converted = process_scheduler(scheduler.config, name), name in class_names()
    before = None if known is None else process_scheduler(known)
    if process is not None:
        _check_same(process, before, known, name, certain)
        if converted:
            return process
    process = process or before
    solver = _exact_solver(scheduler, process, known)
    if not ours:
        return solver
    taken = from_diffusers_scheduler(solver)
    if taken.predictor.needs_score:
        logger.warning(
            f"{name} does not run in this pipeline: it samples by {type(taken).__name__} with predictor "
            f"{taken.config.predictor!r} and corrector {taken.config.corrector!r}."
        )
    return taken


def _check_same(process, before, known: Mapping[str, Any] | None, name: str, certain: bool) -> None:
    """Refuse a process that is not the network's."""
    if known is None:
        return
    if before is None:
        before = scheduler_of_config(known)
    mine, networks = process.process_settings, before.process_settings
    if mine == networks:
        return
    message = (
        f"{name} is for networks of another process: it has {_described(mine, networks)}; this network was trained "
        f"with {_described(networks, mine)}."
    )
    if not certain:
        logger.warning(f"{message} It is taken at its word; leave the scheduler out if the network was not changed.")
        return
    raise ValueError(
        f"{message} Take {type(before).__name__}.from_config(pipe.scheduler.config), with other settings of the "
        "sampler if you like. For a network of another process make a new pipeline of network and scheduler."
    )


def _described(settings: dict[str, Any], other: dict[str, Any]) -> str:
    """What of a process differs from another: the class, or settings of the same class."""
    if settings["_class_name"] != other["_class_name"]:
        return f"the process of {settings['_class_name']}"
    return ", ".join(f"{key} = {settings[key]!r}" for key in sorted(settings) if other.get(key) != settings[key])


def _exact_solver(scheduler, process, known: Mapping[str, Any] | None):
    """The solver with the chain of the network: of its SDE, of diffusers' betas in `known`, or its own."""
    cls, config = type(scheduler), scheduler.config
    keys = set(inspect.signature(cls.__init__).parameters)
    takes = SOLVERS if process is None else f"{SOLVERS}, or {type(process).__name__}"

    def refuse(reason: str):
        raise ValueError(f"{cls.__name__} cannot sample from this network: {reason}. Take {takes}.")

    prediction, defaults = config.get("prediction_type", "epsilon"), config.get("_use_default_values", [])
    if prediction not in ("epsilon", process and foreign_prediction(type(process).__name__)):
        refuse(f"its prediction_type is {prediction!r}, and the network predicts epsilon or a score")
    if not {"num_train_timesteps", "trained_betas", "beta_schedule"} <= keys or not hasattr(
        scheduler, "alphas_cumprod"
    ):
        refuse("it does not follow a chain of betas")
    wanted = {key: value for key, value in _wanted(process, known, config).items() if key in keys}
    mark = {} if process is None else {PROCESS_KEY: process.config[PROCESS_KEY]}
    solver = scheduler
    if any(config.get(key) != value for key, value in (wanted | mark).items()):
        given = {key: value for key, value in config.items() if key in keys and key not in defaults}
        contradicted = sorted({"beta_start", "beta_end", "beta_schedule", "trained_betas"} & set(given))
        contradicted = [key for key in contradicted if key in wanted and given[key] != wanted[key]]
        if contradicted and PROCESS_KEY not in config:
            logger.warning(f"{cls.__name__}: {', '.join(contradicted)} give way to those of the network.")
        try:
            solver = cls(**(given | wanted))
        except Exception as error:  # whatever a foreign class may raise
            refuse(f"it cannot be built for the network's chain ({error})")
        foreign = {key: value for key, value in config.items() if key not in keys and not key.startswith("_")}
        solver.register_to_config(**foreign, **mark)
    if process is None and known is None and isinstance(scheduler, DDPMScheduler):
        return solver  # the chain of the training itself is what its network is for, however few its steps
    try:
        check_solver(solver)
    except ValueError as error:
        refuse(str(error))
    return solver


def _wanted(process, known: Mapping[str, Any] | None, config: Mapping[str, Any]) -> dict[str, Any]:
    if process is not None:
        clipping = {} if "clip_sample" not in config.get("_use_default_values", []) else {"clip_sample": False}
        return {**solver_settings(process), **clipping}
    if known is None:
        return {}
    return {key: known[key] for key in (*CHAIN_KEYS, "num_train_timesteps") if key in known}
