"""Where replicas go. Pure: same brokers and topic id, same placement."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def place(
    topic_id: bytes,
    first: int,
    count: int,
    replication_factor: int,
    brokers: Sequence[int],
    living: Collection[int] | None = None,
) -> list[tuple[int, ...]]:
    """Replicas of partitions first .. first + count; the first of each is the preferred leader.

    Round-robin over the sorted brokers, from a start drawn from the topic id, so that the leaders of many
    one-partition topics spread. The distance to the others grows with each round, so that those a dead broker led
    spread too. A broker that is down may be chosen (it joins later), but where all of a partition's would be
    down, a living one takes the first place.
    """
    ordered = sorted(brokers)
    size = len(ordered)
    start = int.from_bytes(topic_id[:8], "little")
    stand_ins = ordered if living is None else [b for b in ordered if b in living]
    placed = []
    for index in range(start + first, start + first + count):
        shift = index // size
        others = [1 + (shift + k) % (size - 1) for k in range(replication_factor - 1)]
        replicas = tuple(ordered[(index + step) % size] for step in (0, *others))
        if stand_ins and not set(replicas) & set(stand_ins):
            replicas = (stand_ins[index % len(stand_ins)], *replicas[1:])
        placed.append(replicas)
    return placed
