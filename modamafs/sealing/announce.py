"""What becomes of a seal is told to hooks, if there are any for it: see ``store/outbox.py``."""

from __future__ import annotations

import logging
from typing import Any

from modamafs.config import load_config, load_hooks, state_base
from modamafs.errors import ConfigurationError
from modamafs.sealing.place import Place
from modamafs.store.outbox import Event, Outbox, hooks_dir

log = logging.getLogger(__name__)


def announce(place: Place, event: str, record: dict[str, Any]) -> None:
    """Have hooks told of it, once it holds.

    Where that can't be kept in mind it is logged, and no seal fails for it.
    """
    try:
        hooks = load_hooks(place.store.path)
    except ConfigurationError:  # the process that would run them says so
        return
    if any(event in hook.on for hook in hooks.values()):
        try:
            _outbox(place).put(_event(place, event, record))
        except OSError as error:
            log.error("hooks-not-told event=%s path=%r error=%s", event, place.shown, error)


def withdraw(place: Place, event: str, record: dict[str, Any]) -> None:
    """It has not come to pass."""
    try:
        _outbox(place).withdraw(_event(place, event, record))
    except (ConfigurationError, OSError) as error:  # nothing is in the way of rolling back
        log.error("hooks-told-wrongly event=%s path=%r error=%s", event, place.shown, error)


def _outbox(place: Place) -> Outbox:
    return Outbox(hooks_dir(place.store, state_base(load_config(place.store.path))))


def _event(place: Place, event: str, record: dict[str, Any]) -> Event:
    return Event(event, place.relative, str(record.get("id")))
