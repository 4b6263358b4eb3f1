"""From what the user says (`where`) to the endpoints of living brokers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from shmlog.clock import NS_PER_S, SYSTEM_CLOCK, sleep
from shmlog.directory import Where, find_cluster, nobody_lives, read_brokers, read_supervisor
from shmlog.errors import ClusterNotFound

RESTART_WAIT_NS = 5 * NS_PER_S  # the supervisor's longest pause is one second

__all__ = ["Where", "discoverer"]


def discoverer(where: Where) -> Callable[[], list[str]]:
    """A function that gives the endpoints to begin with.

    It reads the registry anew at every call, so a restarted broker is found at once; it raises
    ClusterNotFound when nobody lives. Raises here: ClusterNotFound, InvalidConfig.
    """
    location = find_cluster(where)
    if location.endpoint is not None:
        endpoint = location.endpoint
        _check_listener(endpoint)
        return lambda: [endpoint]
    assert location.directory is not None
    directory = location.directory
    _wait_for_restart(directory)
    return lambda: _endpoints(directory)


def _check_listener(endpoint: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(endpoint.removeprefix("ipc://"))
        except OSError as error:
            raise ClusterNotFound(f"nobody listens at {endpoint}: {error.strerror}") from None


def _wait_for_restart(directory: Path) -> None:
    """While a supervisor lives, a broker that died is on its way back: give it the time it takes."""
    deadline_ns = SYSTEM_CLOCK.monotonic_ns() + RESTART_WAIT_NS
    while not read_brokers(directory) and read_supervisor(directory) is not None:
        if SYSTEM_CLOCK.monotonic_ns() > deadline_ns:
            return
        sleep(0.01)


def _endpoints(directory: Path) -> list[str]:
    brokers = read_brokers(directory)
    if not brokers:
        raise nobody_lives(directory)
    return [entry.endpoints["client"] for _, entry in sorted(brokers.items())]
