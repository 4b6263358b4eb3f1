"""The words of the system as types, so that a swapped broker and partition is a type error.

An *offset* counts the records of a partition from 0 and is nothing else; a *position* is a place in
bytes. Ends are exclusive (`end_offset`), lasts are inclusive (`last_offset`).
"""

from __future__ import annotations

from typing import NamedTuple, NewType

BrokerId = NewType("BrokerId", int)
Incarnation = NewType("Incarnation", int)  # one uptime of a broker; grows with every start
LeaderEpoch = NewType("LeaderEpoch", int)  # +1 at every election of a partition's leader
Offset = NewType("Offset", int)
TopicId = NewType("TopicId", bytes)  # 16 random bytes, never reused


class TopicPartition(NamedTuple):
    """One partition of one topic, by name."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}-{self.partition}"
