"""Where replicas go. Pure: same brokers and topic id, same placement."""

from __future__ import annotations

from collections.abc import Sequence


def place(
    topic_id: bytes, first: int, count: int, replication_factor: int, brokers: Sequence[int]
) -> list[tuple[int, ...]]:
    """Replicas of partitions first .. first + count; the first of each is the preferred leader.

    Round-robin over the sorted brokers, from a start drawn from the topic id, so that the leaders of many
    one-partition topics spread.
    """
    ordered = sorted(brokers)
    start = int.from_bytes(topic_id[:8], "little")
    return [
        tuple(ordered[(start + index + k) % len(ordered)] for k in range(replication_factor))
        for index in range(first, first + count)
    ]
