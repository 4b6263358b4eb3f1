"""The ledger of a partition's leader: stored ends in, high watermark out. Sans-IO.

What counts as *stored* is the topic's durability: the end that is written to the file (`os`) or synced
(`disk`). This is the only place where durability enters. The high watermark is the smallest stored end over
the in-sync replicas; with one replica that is the leader's own.

Invariants: synced_end <= written_end; high_watermark <= stored_end; the high watermark never goes back.
"""

from __future__ import annotations


class Leader:
    """The ends of one partition that this broker leads."""

    def __init__(
        self, *, written_end: int, synced_end: int, high_watermark: int, durability: str
    ) -> None:
        self.written_end = written_end
        self.synced_end = synced_end
        self.high_watermark = high_watermark
        self.durability = durability
        self._settle()

    @property
    def stored_end(self) -> int:
        """The end that counts at this topic's durability."""
        return self.written_end if self.durability == "os" else self.synced_end

    def written(self, end_offset: int) -> bool:
        """The file now holds all below `end_offset`; True if the high watermark moved."""
        self.written_end = max(self.written_end, end_offset)
        return self._settle()

    def synced(self, end_offset: int) -> bool:
        """A sync that covers all below `end_offset` is done; True if the high watermark moved."""
        self.synced_end = max(self.synced_end, min(end_offset, self.written_end))
        return self._settle()

    def set_durability(self, durability: str) -> bool:
        """The topic's setting changed; True if the high watermark moved (it never goes back)."""
        self.durability = durability
        return self._settle()

    def _settle(self) -> bool:
        stored = self.stored_end
        if stored <= self.high_watermark:
            return False
        self.high_watermark = stored
        return True
