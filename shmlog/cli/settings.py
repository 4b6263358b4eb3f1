"""What the global options say, for every command."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

import click

from shmlog.errors import InvalidConfig

OUTPUTS = ("table", "plain", "json", "jsonl")


def _environment(name: str) -> str:
    return field(default_factory=lambda: os.environ.get(name, ""))


@dataclass(slots=True)
class Settings:
    """Global options over environment over defaults; click hands it to commands as their `obj`.

    `dir` and `endpoint` are as given as options: the environment's are read by find_cluster.
    """

    dir: str | None = None
    endpoint: str | None = None
    output_given: str = _environment("SHMLOG_OUTPUT")
    timeout_given: str = _environment("SHMLOG_TIMEOUT")
    no_color: str = _environment("NO_COLOR")
    quiet: bool = False

    @property
    def where(self) -> str | None:
        """The cluster that was named: a directory or an endpoint; None: find one."""
        if self.dir is not None and self.endpoint is not None:
            raise InvalidConfig("--dir and --endpoint name two clusters: choose one")
        return self.dir if self.dir is not None else self.endpoint

    @property
    def output(self) -> str:
        """table, plain, json or jsonl."""
        if self.output_given and self.output_given not in OUTPUTS:
            raise InvalidConfig(f"SHMLOG_OUTPUT = {self.output_given!r}: must be one of {OUTPUTS}")
        return self.output_given or ("table" if sys.stdout.isatty() else "plain")

    @property
    def wants_json(self) -> bool:
        """One document or one object a line."""
        return self.output in ("json", "jsonl")

    @property
    def timeout_s(self) -> float | None:
        """Seconds for the whole command; None: not said, the command has its own default.

        Raises: InvalidConfig: neither "5s" or "250ms" nor a plain number of seconds.
        """
        text = self.timeout_given
        if not text or text.replace(".", "", 1).isdigit():
            return float(text) if text else None
        from shmlog.settings import parse_duration_ns

        return parse_duration_ns(text) / 1e9

    @property
    def color(self) -> bool:
        """Colour is wanted: a terminal, and nobody said no."""
        return not self.no_color and sys.stdout.isatty()

    def say(self, text: str) -> None:
        """A message to stderr, which --quiet keeps back."""
        if not self.quiet:
            click.echo(text, err=True)
