"""Makes the package's classes loadable through diffusers, additively: nothing of diffusers' is patched or replaced.

diffusers looks a pipeline's class up by name in its own top module, and a component's by library name among its
`LOADABLE_CLASSES`. With both filled, `DiffusionPipeline.from_pretrained` returns our classes after
`import diffusers_sde`, from a folder or the Hub, and `model_index.json` names `diffusers_sde` and never a module path.
"""

import diffusers
from diffusers.pipelines.pipeline_loading_utils import LOADABLE_CLASSES


def register(library: str, pipelines: tuple[type, ...], components: tuple[type, ...]) -> None:
    """Register classes with diffusers.

    Args:
        library: name of the package.
        pipelines: pipeline classes; their names must be free in diffusers.
        components: networks and schedulers. One whose name diffusers owns is found through `library` alone.

    Raises:
        RuntimeError: if diffusers has another class of a pipeline's name.
    """
    LOADABLE_CLASSES.setdefault(library, {})
    for cls in pipelines:
        if getattr(diffusers, cls.__name__, cls) is not cls:
            raise RuntimeError(
                f"diffusers {diffusers.__version__} has a class {cls.__name__} of its own; saved pipelines of that "
                "name would load as diffusers' class. Install a version of this package made for it."
            )
        setattr(diffusers, cls.__name__, cls)
    for cls in components:
        if not hasattr(diffusers, cls.__name__):
            setattr(diffusers, cls.__name__, cls)
