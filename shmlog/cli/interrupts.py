"""Ctrl-C between steps, so that an account holds what was done; see `Interrupts`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HELD_S = 0.5


class Interrupts:
    """A context in which Ctrl-C (SIGINT) raises KeyboardInterrupt behind a step (`held`), not in it.

    A step that lasts longer, say because there is no room for its records, is interrupted after
    HELD_S seconds, and by a second Ctrl-C at once. Outside of the main thread it changes nothing.
    """

    def __init__(self) -> None:
        self._before: Any = None
        self._held = False
        self._late: threading.Timer | None = None  # runs since the first Ctrl-C

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late.join()
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """One step. Its own error goes before an interruption.

        Raises KeyboardInterrupt.
        """
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._late is not None:
            raise KeyboardInterrupt

    def _on_signal(self, *_: object) -> None:
        if not self._held or self._late is not None:
            raise KeyboardInterrupt
        # To the main thread: the end of its wait is what the signal is for.
        main = threading.main_thread().ident
        self._late = threading.Timer(HELD_S, signal.pthread_kill, (main, signal.SIGINT))
        self._late.daemon = True
        self._late.start()
