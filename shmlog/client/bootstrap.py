"""From what the user says (`where`) to the endpoints of living brokers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shmlog.directory import Where, find_cluster, nobody_lives, read_brokers

__all__ = ["Where", "discoverer"]


def discoverer(where: Where) -> Callable[[], list[str]]:
    """A function that gives the endpoints to begin with.

    It reads the registry anew at every call, so a restarted broker is found at once; it raises
    ClusterNotFound when nobody lives. Raises here: ClusterNotFound, InvalidConfig.
    """
    location = find_cluster(where)
    if location.endpoint is not None:
        endpoint = location.endpoint
        return lambda: [endpoint]
    assert location.directory is not None
    directory = location.directory
    return lambda: _endpoints(directory)


def _endpoints(directory: Path) -> list[str]:
    brokers = read_brokers(directory)
    if not brokers:
        raise nobody_lives(directory)
    return [entry.endpoints["client"] for _, entry in sorted(brokers.items())]
