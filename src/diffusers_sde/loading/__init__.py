"""What is read from a stranger's repository, checked before anything is built from it."""

from .configs import CheckedConfig, check_config, read_config
from .weights import CheckedNetwork, check_weights

__all__ = ["CheckedConfig", "CheckedNetwork", "check_config", "check_weights", "read_config"]
