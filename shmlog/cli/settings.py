"""What the global options say, for every command."""

from __future__ import annotations

import os
import sys
from typing import Any

from shmlog.errors import InvalidConfig

OUTPUTS = ("table", "plain", "json", "jsonl")


def seconds(text: str) -> float:
    """Seconds of "5s", "250ms" or a plain number of seconds. Raises InvalidConfig."""
    if text.replace(".", "", 1).isdigit():
        return float(text)
    from shmlog.settings import parse_duration_ns

    return parse_duration_ns(text) / 1e9


class Settings:
    """Global options over environment over defaults; click hands it to commands as their `obj`.

    Attributes: `dir` and `endpoint` as given as options (the environment's are read by
    find_cluster), `quiet`, `verbose` (0, 1, 2). Derived: `where`, `output`, `timeout_s`, `color`.
    """

    def __init__(self) -> None:
        self.dir: str | None = None
        self.endpoint: str | None = None
        self.quiet = False
        self.verbose = 0
        self._output = os.environ.get("SHMLOG_OUTPUT", "")
        self._timeout = os.environ.get("SHMLOG_TIMEOUT", "")
        self._no_color = bool(os.environ.get("NO_COLOR"))

    def set(self, name: str, value: Any) -> None:
        """Take an option's value, by the option's name."""
        match name:
            case "output":
                self._output = value
            case "json":
                self._output = "json"
            case "timeout":
                self._timeout = value
            case "no_color":
                self._no_color = True
            case _:
                setattr(self, name, value)

    @property
    def where(self) -> str | None:
        """The cluster that was named: a directory or an endpoint; None: find one."""
        if self.dir is not None and self.endpoint is not None:
            raise InvalidConfig("--dir and --endpoint name two clusters: choose one")
        return self.dir if self.dir is not None else self.endpoint

    @property
    def output(self) -> str:
        """table, plain, json or jsonl."""
        if self._output and self._output not in OUTPUTS:
            raise InvalidConfig(f"SHMLOG_OUTPUT = {self._output!r}: must be one of {OUTPUTS}")
        return self._output or ("table" if sys.stdout.isatty() else "plain")

    @property
    def timeout_s(self) -> float | None:
        """Seconds for the whole command; None: not said, the command has its own default."""
        return seconds(self._timeout) if self._timeout else None

    @property
    def color(self) -> bool:
        """Colour is wanted: a terminal, and nobody said no."""
        return not self._no_color and sys.stdout.isatty()
