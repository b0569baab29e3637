"""What a process writes to its log."""

import logging


def configure_logging() -> None:
    """Lines of this process go to standard error; called by entry points only."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
