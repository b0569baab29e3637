"""What a process writes to its log."""

import faulthandler
import logging


def configure_logging() -> None:
    """Lines of this process, and its stack if it crashes, go to standard error; called by entry points only."""
    faulthandler.enable(2, all_threads=False)  # where a crash in C happened
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
