"""The broker's log: one JSON object a line on standard error, with names of things and numbers."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from shmlog.clock import Clock

_LOGGER = logging.getLogger("shmlog.node")


class _JsonLines(logging.Formatter):
    def __init__(self, clock: Clock, broker: int) -> None:
        super().__init__()
        self._clock = clock
        self._broker = broker

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time_ns": self._clock.wall_ns(),
            "level": record.levelname.lower(),
            "broker": self._broker,
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start(clock: Clock, broker: int) -> None:
    """Send this process's events to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(clock, broker))
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def event(name: str, /, **facts: Any) -> None:
    """Something happened that whoever runs the broker wants to know."""
    _LOGGER.info(name, extra={"facts": facts})


def warning(name: str, /, **facts: Any) -> None:
    """Something is wrong, and what happens next."""
    _LOGGER.warning(name, extra={"facts": facts})


def error(name: str, /, **facts: Any) -> None:
    """Somebody has to do something before it works; the facts say what."""
    _LOGGER.error(name, extra={"facts": facts})


def failure(name: str, error: BaseException, /, **facts: Any) -> None:
    """An unexpected error, with its traceback."""
    _LOGGER.error(name, extra={"facts": facts}, exc_info=error)
