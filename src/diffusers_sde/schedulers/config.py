"""Configs that travel to diffusers' schedulers and back.

diffusers keeps the keys of a config that a class does not read, and hands them on: `X.from_config(ours.config)` and
its saved JSON carry `_forward_process`, our class and all its settings. So the way back loses nothing, and whoever
holds X knows the forward process its network was trained for. Keys that X does read (betas, prediction, clipping) are
set so that X is right where diffusers' chains can express the process, and refuses to step where they cannot.
"""

import inspect
from collections.abc import Mapping
from typing import Any

PROCESS_KEY = "_forward_process"

# Settings of a sampler; all others of a scheduler describe what its network was trained for.
SAMPLER_KEYS = frozenset(
    {
        "snr",
        "sampling_eps",
        "correct_steps",
        "predictor",
        "corrector",
        "probability_flow",
        "denoise_final",
        "corrector_norm",
    }
)
# What diffusers' schedulers read of the forward process.
CHAIN_KEYS = frozenset(
    {"beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr", "prediction_type"}
)
CHAIN_LENGTH = 1000
FLOOR = 0.01  # lowest sigma / alpha of a chain in float32; that of DDPM, sqrt(1e-4)

_CLASSES: dict[str, type] = {}


class TravellingConfig:
    """Registers every scheduler class by name, and makes its config survive the way through diffusers' classes."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        _CLASSES[cls.__name__] = cls

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        """A scheduler from the config of one of this class, or of diffusers' that describes the same process.

        Args:
            config: mapping of settings. Of a scheduler of diffusers' that was made from one of ours, the settings of
                the latter are taken.
            return_unused_kwargs: whether to return those of `kwargs` that are no settings, too.
            **kwargs: settings that replace those of `config`.

        Raises:
            ValueError: if `config` describes another forward process.
        """
        if isinstance(config, Mapping):
            config = cls._settings(config)
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @classmethod
    def _settings(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Own settings in a config."""
        process = described_process(config)
        if process is not None:
            if process["_class_name"] != cls.__name__:
                raise ValueError(
                    f"the config describes the forward process of {process['_class_name']}; a {cls.__name__} is of "
                    f"another. Take {process['_class_name']}, or give the settings one by one for another network."
                )
            return {key: value for key, value in process.items() if key in _init_keys(cls)}
        if "beta_start" in config or "prediction_type" in config:
            return cls._settings_of_chain(config, config.get("_class_name", "the scheduler"))
        return {key: value for key, value in config.items() if key in _init_keys(cls) or not key.startswith("_")}

    @classmethod
    def _settings_of_chain(cls, config: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Settings with the process of a chain of diffusers'; `name` of its class, for messages."""
        raise ValueError(f"{name} describes a chain of betas, which is no forward process of {cls.__name__}.")

    def _register_process(self) -> None:
        """Write into the config what diffusers' classes read, and what brings us back."""
        own = {key: self.config[key] for key in sorted(_init_keys(type(self)))}
        process = {"_class_name": type(self).__name__, **own}
        # Without the list of defaults no key is dropped on the way.
        self.register_to_config(**{PROCESS_KEY: process, "_use_default_values": []}, **self._chain_of_config())

    def _chain_of_config(self) -> dict[str, Any]:
        """Keys for diffusers' classes outside a pipeline; a prediction none of them has where they would be wrong."""
        betas = self._linear_betas()
        if betas is None:
            return {"prediction_type": foreign_prediction(type(self).__name__)}
        return {"prediction_type": "epsilon", "clip_sample": False, "rescale_betas_zero_snr": False, **betas}

    def _linear_betas(self) -> dict[str, Any] | None:
        """`beta_start`, `beta_end`, `beta_schedule` of the chain whose labels the network takes, if there is one."""
        return None

    @property
    def takes_labels(self) -> bool:
        """Whether the network is conditioned on the labels of a chain of linear betas, as diffusers' solvers do it."""
        return not self.config.continuous and self._linear_betas() is not None

    @property
    def process_settings(self) -> dict[str, Any]:
        """Class and settings that a network was trained for; without those of the sampler."""
        left_out = SAMPLER_KEYS | ({"num_train_timesteps"} if self.config.continuous else set())
        return {key: value for key, value in self.config[PROCESS_KEY].items() if key not in left_out}


def class_names() -> set[str]:
    """Names of the scheduler classes of this package and of its users'."""
    return set(_CLASSES)


def foreign_prediction(class_name: str) -> str:
    """Name of a prediction that no class of diffusers' has, so that it refuses to step; a sentence in its error."""
    return f"that of {class_name} (for pipelines of diffusers_sde, which rescale it)"


def described_process(config: Mapping[str, Any], name: str | None = None) -> dict[str, Any] | None:
    """Class name and settings of ours that a config carries; `None` for a chain of diffusers' own, or bare settings.

    Args:
        config: of a scheduler.
        name: of its class; by default `_class_name` in the config, which only saved and converted ones have.

    Raises:
        ValueError: if the class is not known here, or the config does not determine it.
    """
    name = config.get("_class_name") if name is None else name
    if name in _CLASSES:  # ours, or diffusers' of the same name
        return {"_class_name": name, **{k: v for k, v in config.items() if k in _init_keys(_CLASSES[name])}}
    if PROCESS_KEY in config:
        process = dict(config[PROCESS_KEY])
        if process.get("_class_name") not in _CLASSES:
            raise ValueError(
                f"the config was made from a {process.get('_class_name')}, which is not known here; import the "
                "package that defines it."
            )
        return process
    if "beta_max" in config and "beta_min" in config and name is not None:
        raise ValueError(
            f"the config of this {name} was made from a ScoreSdeVpScheduler or a ScoreSdeSubVpScheduler by an older "
            "version, and does not tell which; give the scheduler that the network was trained with."
        )
    if name is not None and config.get("sigma_max") is not None and "correct_steps" in config:
        ve = {k: v for k, v in config.items() if k in _init_keys(_CLASSES["ScoreSdeVeScheduler"])}
        return {"_class_name": "ScoreSdeVeScheduler", **ve}
    return None


def process_scheduler(config: Mapping[str, Any], name: str | None = None):
    """Scheduler of ours that a config of a class of that name carries, or `None`."""
    process = described_process(config, name)
    return None if process is None else _CLASSES[process["_class_name"]].from_config(process)


def _init_keys(cls: type) -> set[str]:
    return set(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"}
