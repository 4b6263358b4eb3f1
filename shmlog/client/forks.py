"""A client copied by fork: its sockets and threads stay behind, so the copy must refuse to work.

Every client registers here; in a child each one's `abandon` is called before any of the child's
code runs. So the check costs the calls nothing: it is the one for "closed".
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

FORKED = "this client was copied by fork; create it in the child"


class Abandonable(Protocol):
    """Something that must not be used in a forked child."""

    def abandon(self) -> None:
        """Refuse every further call; touch nothing that another thread might hold."""
        ...


_left_behind: list[object] = []
_clients: weakref.WeakSet[Abandonable] = weakref.WeakSet()


def guard(client: Abandonable) -> None:
    """Have `client.abandon()` called in forked children."""
    _clients.add(client)


def leave(parents: object) -> None:
    """Keep what belongs to the parent from being finalized in the child."""
    _left_behind.append(parents)


def _in_child() -> None:
    for client in list(_clients):
        client.abandon()


os.register_at_fork(after_in_child=_in_child)
