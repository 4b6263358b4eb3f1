"""From what the user says (`where`) to the endpoints of living brokers, and to who died."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NamedTuple

from shmlog import process
from shmlog.clock import NS_PER_S, SYSTEM_CLOCK, sleep
from shmlog.directory import (
    Where,
    find_cluster,
    nobody_lives,
    read_brokers,
    read_supervisor,
    watch_broker,
)
from shmlog.errors import ClusterNotFound

RESTART_WAIT_NS = 5 * NS_PER_S  # the supervisor's longest pause is one second

__all__ = ["Surroundings", "Watch", "Where", "look_around"]


class Watch(NamedTuple):
    """One incarnation of a broker, and a pidfd that is readable once its process has ended."""

    broker: int
    incarnation: int
    pid: int
    pidfd: int

    @property
    def has_ended(self) -> bool:
        """Is the process dead?"""
        return process.has_ended(self.pidfd)

    def __str__(self) -> str:
        return f"broker {self.broker} (pid {self.pid})"


class Surroundings:
    """What can be seen of a cluster without asking a broker: its registry, or one endpoint only."""

    def __init__(self, directory: Path | None, endpoint: str | None) -> None:
        self._directory = directory
        self._endpoint = endpoint

    @property
    def sees_registry(self) -> bool:
        """Are all brokers known that live, or one endpoint only?"""
        return self._directory is not None

    def endpoints(self) -> list[str]:
        """The endpoints to begin with; read anew, so a restarted broker is found at once.

        Raises: ClusterNotFound: nobody lives.
        """
        if self._directory is None:
            assert self._endpoint is not None
            return [self._endpoint]
        brokers = read_brokers(self._directory)
        if not brokers:
            raise nobody_lives(self._directory)
        return [entry.endpoints["client"] for _, entry in sorted(brokers.items())]

    def watch(self, endpoint: str) -> Watch | None:
        """Watch the process that serves an endpoint; None: it is in no registry that can be seen."""
        if self._directory is None:
            return None
        for broker, entry in read_brokers(self._directory).items():
            if entry.endpoints.get("client") == endpoint:
                found = watch_broker(self._directory, broker)
                if found is not None:
                    entry, pidfd = found
                    return Watch(broker, entry.incarnation, entry.pid, pidfd)
        return None


def look_around(where: Where) -> Surroundings:
    """Find the cluster; waits a moment for brokers on their way back.

    Raises: ClusterNotFound, also when nobody lives there; InvalidConfig.
    """
    location = find_cluster(where)
    if location.directory is not None:
        _wait_for_restart(location.directory)
    if location.endpoint is not None:
        _check_listener(location.endpoint)
    surroundings = Surroundings(location.directory, location.endpoint)
    surroundings.endpoints()
    return surroundings


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
