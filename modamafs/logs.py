"""How every process of a mount logs: to standard error, which is the daemon's log."""

from __future__ import annotations

import logging


def configure_logging(level: str) -> None:
    """From now on, in this form; ``level`` is one of the configuration's."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )
