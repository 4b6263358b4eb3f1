"""What a broker gives its cleaner to do, and what it gets back: values that may cross a pipe."""

from __future__ import annotations

import msgspec

KEYS_MAX = 1 << 19  # noted at once, about 200 bytes each; a pass with more ends before them


class CleaningTask(msgspec.Struct, frozen=True):
    """One pass over one log. See cleaning.py for its plan.

    `groups`: (base offset, bytes of batches) of the segments; each group becomes one. `headers_kept`: base offsets of
    batches whose header must stay whatever becomes of their records.
    """

    directory: str
    topic_id: bytes
    partition: int
    groups: list[list[tuple[int, int]]]
    map_from: int
    end_offset: int
    tombstones_below: int
    headers_kept: list[int]
    index_interval_bytes: int
    keys_max: int = KEYS_MAX


class CleaningResult(msgspec.Struct, frozen=True):
    """What a pass has made. `error`: why it could not; nothing is left of it then.

    `end_offset`: how far it has noted keys. `made`: (base offset, end offset) of each new segment, in order; a group
    in which nothing had to change has none. `tombstones_dropped`: the end of the last one that is missing in them, 0:
    none is. `oldest_tombstone`: the first one kept below `end_offset`, -1: there is none.
    """

    end_offset: int = 0
    made: list[tuple[int, int]] = []
    tombstones_dropped: int = 0
    oldest_tombstone: int = -1
    records_before: int = 0
    records_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    error: str = ""
