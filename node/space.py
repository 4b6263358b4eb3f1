"""Disk full before it is full: why produce is refused, if it is.

    free < reserve              until free >= 1.5 x reserve
    over the budget, and nothing may be deleted

Refused is only what clients append (1002, retriable). Readers, followers, the metadata log, checkpoints and retention
go on: they are what makes room, or need little. What fills the disk in spite of that meets the error of the write
itself, as without a reserve.
"""

from __future__ import annotations

from node import journal
from shmlog.log.storage import DiskSpace, Storage
from shmlog.settings import GIB, format_size


def reserve_of(total: int, wanted: int) -> int:
    """Bytes of a disk that stay free: what `disk_reserve_bytes` says, or for -1 the rule, for a disk of `total`."""
    return min(max(GIB, total // 20), total // 5) if wanted < 0 else wanted


class Space:
    """The disk of one broker's data. One owner: the loop. `look` and `over_budget` are to be called each second."""

    def __init__(self, storage: Storage, data_dir: str, reserve_bytes: int) -> None:
        self._storage = storage
        self._data_dir = data_dir
        self._reserve_bytes = reserve_bytes
        self._short = ""
        self._over = ""

    @property
    def refusal(self) -> str:
        """Why produce is refused; "" if it is not."""
        return self._short or self._over

    def look(self) -> None:
        """Ask how much is free. In the loop: the kernel knows it without reading the disk."""
        space = self._storage.disk_space(self._data_dir)
        reserve = reserve_of(space.total, self._reserve_bytes)
        if space.free < reserve:
            if not self._short:
                journal.warning("disk nearly full", free=space.free, reserve=reserve)
            self._short = _said(space, reserve)
        elif self._short and 2 * space.free >= 3 * reserve:
            self._short = ""
            journal.event("disk has room again", free=space.free, reserve=reserve)
        elif self._short:
            self._short = _said(space, reserve)

    def over_budget(self, excess: int) -> None:
        """So many bytes are above the budget, and nothing may be deleted; 0: it is kept, or will be."""
        over = excess > 0
        if over and not self._over:
            journal.warning("over the disk budget, and nothing may be deleted", excess=excess)
        self._over = (
            f"{format_size(excess)} over disk_budget_bytes, and nothing may be deleted"
            if over
            else ""
        )


def _said(space: DiskSpace, reserve: int) -> str:
    return (
        f"the disk is nearly full: {format_size(space.free)} are free, produce goes on at "
        f"{format_size(reserve * 3 // 2)} (disk_reserve_bytes)"
    )
