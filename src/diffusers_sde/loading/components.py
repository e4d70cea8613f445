"""diffusers' own networks and schedulers, loaded under the checks of `loading`: `components.DDPMScheduler`, say.

A class of this module has the name and the signature of diffusers' one. What it builds and loads is an object of
diffusers' class itself, so nothing of it is left in a pipeline or in what is saved.
"""

from functools import cache

import diffusers
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .configs import CheckedConfig
from .weights import CheckedNetwork

NETWORKS = ("UNet2DModel",)


class _BuiltByDiffusers:
    """Mixin before the others: builds diffusers' object, and reports what its constructor cannot take."""

    base: type

    def __new__(cls, *args, **kwargs):
        return cls.base(*args, **kwargs)  # whose __init__ Python then leaves alone

    @classmethod
    def from_config(cls, config=None, return_unused_kwargs: bool = False, **kwargs):
        """`from_config` of diffusers' class.

        Raises:
            ValueError: for a config from which it cannot be built.
        """
        try:
            return super().from_config(config, return_unused_kwargs, **kwargs)
        except (ValueError, OSError, ImportError):
            raise
        except Exception as error:  # constructors of diffusers check little of a stranger's config
            raise ValueError(
                f"diffusers' {cls.__name__} cannot be built from its config: {type(error).__name__}: {error}"
            ) from error


@cache
def checked(base: type) -> type:
    """The class that loads what diffusers' class `base` loads, with checks."""
    loading = CheckedNetwork if issubclass(base, ModelMixin) else CheckedConfig
    content = {
        "__module__": __name__,
        "__init__": base.__init__,
        "base": base,
        "reads_pickles": True,  # of older repositories; PyTorch reads tensors alone
        "nullable_keys": ("norm_num_groups", "attention_head_dim"),  # whatever the annotations are
        "unused_keys": ("time_proj.W",),  # a second copy of time_proj.weight, in repositories of 2022
    }
    return type(base.__name__, (_BuiltByDiffusers, loading, base), content)


def __getattr__(name: str) -> type:
    base = getattr(diffusers, name, None)
    if isinstance(base, type) and (name in NETWORKS or issubclass(base, SchedulerMixin)):
        return checked(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
