"""What the training scripts share: the log on the terminal, and errors as messages."""

import argparse
import logging
import sys
from collections.abc import Callable

logger = logging.getLogger(__name__)


def run_script(train: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Call `train(args)` with a log; what a user can mend ends the program with a message and exit status 1."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("diffusers_sde").setLevel(logging.INFO)
    try:
        return train(args)
    except (ValueError, OSError, FloatingPointError) as error:
        logger.error(error, exc_info=logger.isEnabledFor(logging.DEBUG))
        for note in getattr(error, "__notes__", ()):
            logger.error(note)
        sys.exit(1)
