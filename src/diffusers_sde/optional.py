"""Packages that come with an extra: imported where they are used, and asked for in one line where they are missing."""

import importlib
from types import ModuleType


class MissingExtraError(ImportError, ValueError):
    """An optional package is not installed; the message names the extra that brings it.

    An `ImportError` for code that looks for one, and a `ValueError` as all errors that a user can mend.
    """


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: name to import, such as "matplotlib.figure".
        extra: extra of this package that installs it.
        purpose: use that needs it, as the subject of the message.

    Returns:
        The module.

    Raises:
        MissingExtraError: if it cannot be imported; with the reason, where it is installed and broken.
    """
    package = module.split(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == package
        reason = "is not installed" if missing else f"cannot be imported ({error})"
        raise MissingExtraError(
            f'{purpose} needs {package}, which {reason}; pip install "diffusers-sde[{extra}]".'
        ) from error
