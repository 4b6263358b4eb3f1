"""What clients saw, judged once all is over (after Jepsen's Kafka workload).

A `Send` holds values of one key (topic id, partition); every value but None, a delete, is sent by one `Send` only.
`ok`: answered with the offset of its first value; `fail`: certainly not written; `info`: unknown. A `Poll` is what one
reader got, in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)
class Send:
    """Values sent to one key."""

    process: int
    key: Any
    values: list[bytes | None]
    invoked_ns: int
    acks: str = "all"
    idempotent: bool = True
    type: str = "info"
    offset: int = -1
    completed_ns: int = -1

    def ok(self, offset: int, now_ns: int) -> None:
        self.type, self.offset, self.completed_ns = "ok", offset, now_ns

    def fail(self, now_ns: int) -> None:
        if self.type == "info":
            self.type, self.completed_ns = "fail", now_ns


@dataclass(slots=True, eq=False)
class Poll:
    """Records that one reader got of one key. `reset`: its position was set anew before."""

    process: int
    key: Any
    records: list[tuple[int, bytes | None]]
    reset: bool = False


@dataclass(slots=True)
class History:
    """All operations, in the order in which they were invoked. `excused`: values that a reboot may have taken."""

    sends: list[Send] = field(default_factory=list)
    polls: list[Poll] = field(default_factory=list)
    excused: set[Any] = field(default_factory=set)
    trimmed: dict[Any, int] = field(default_factory=dict)  # key -> log start


def anomalies(history: History, *, is_complete: bool = True) -> list[str]:
    """All that is wrong; `is_complete`: a last reader has read every key to its end."""
    found: list[str] = []
    offsets, places = _versions(history, found)
    found += _aborted(history, places)
    found += _lost(history, places, is_complete=is_complete)
    found += _orders(history, places)
    found += _skips(history)
    found += _gaps(offsets, history)
    return found


def _versions(
    history: History, found: list[str]
) -> tuple[dict[Any, dict[int, Any]], dict[tuple[Any, bytes], set[int]]]:
    """offset -> value by key, and where each value was seen."""
    offsets: dict[Any, dict[int, Any]] = defaultdict(dict)
    places: dict[tuple[Any, bytes], set[int]] = defaultdict(set)

    def put(key: Any, offset: int, value: bytes | None) -> None:
        known = offsets[key].setdefault(offset, value)
        if known != value:
            found.append(f"inconsistent-offsets {key} {offset}: {known!r} and {value!r}")
        if value is not None:
            places[key, value].add(offset)

    for send in history.sends:
        if send.type == "ok" and send.offset >= 0 and send.acks == "all":
            for i, value in enumerate(send.values):
                if (send.key, value) not in history.excused:
                    put(send.key, send.offset + i, value)
    for poll in history.polls:
        for offset, value in poll.records:
            if (poll.key, value) not in history.excused:
                put(poll.key, offset, value)
    for (key, value), seen in places.items():
        if len(seen) > 1:
            found.append(f"duplicate {key} {value!r} at {sorted(seen)}")
    return offsets, places


def _aborted(history: History, places: dict[tuple[Any, bytes], set[int]]) -> Iterable[str]:
    read = {(poll.key, value) for poll in history.polls for _, value in poll.records}
    for send in history.sends:
        if send.type == "fail":
            for value in send.values:
                if value is not None and (send.key, value) in read:
                    yield f"aborted-read {send.key} {value!r} was refused, and read"


def _lost(
    history: History, places: dict[tuple[Any, bytes], set[int]], *, is_complete: bool
) -> Iterable[str]:
    read: dict[Any, set[bytes]] = defaultdict(set)
    bound: dict[Any, int] = defaultdict(lambda: -1)
    for poll in history.polls:
        for offset, value in poll.records:
            if value is not None:
                read[poll.key].add(value)
            bound[poll.key] = max(bound[poll.key], offset)
    for send in history.sends:
        for i, value in enumerate(send.values):
            if (send.key, value) in history.excused or value is None or value in read[send.key]:
                continue
            acked = send.type == "ok" and send.acks == "all"
            seen = send.type == "info" and any(v in read[send.key] for v in send.values)
            if not (acked or seen):
                continue
            offset = send.offset + i if acked else -1
            if 0 <= offset < history.trimmed.get(send.key, 0):
                continue
            if not acked and history.trimmed.get(send.key, 0):
                continue
            if offset <= bound[send.key]:
                yield f"lost-write {send.key} {value!r} at {offset}, read up to {bound[send.key]}"
            elif is_complete:
                yield f"unseen {send.key} {value!r} at {offset}"


def _orders(history: History, places: dict[tuple[Any, bytes], set[int]]) -> Iterable[str]:
    """Sends of one process in its order, and real time: who was answered before another was sent comes first."""
    last: dict[tuple[Hashable, Any], tuple[int, bytes | None]] = {}
    for send in history.sends:
        at = [
            min(places[send.key, v])
            for v in send.values
            if (send.key, v) in places and (send.key, v) not in history.excused
        ]
        if at != sorted(at) or len(set(at)) != len(at):
            yield f"int-nonmonotonic-send {send.key} {send.values} at {at}"
        if not at or not send.idempotent:
            continue
        name = (send.process, send.key)
        if name in last and last[name][0] > at[0]:
            yield f"nonmonotonic-send {send.key} {send.values[0]!r} at {at[0]}, before {last[name]}"
        last[name] = (at[-1], send.values[-1])
    by_key: dict[Any, list[Send]] = defaultdict(list)
    for send in history.sends:
        counts = send.type == "ok" and send.acks == "all" and send.offset >= 0
        if counts and not any((send.key, v) in history.excused for v in send.values):
            by_key[send.key].append(send)
    for key, sends in by_key.items():
        finished = sorted(sends, key=lambda s: s.completed_ns)
        invoked = sorted(sends, key=lambda s: s.invoked_ns)
        newest, place = -1, 0
        for send in invoked:
            while place < len(finished) and finished[place].completed_ns < send.invoked_ns:
                newest = max(newest, finished[place].offset)
                place += 1
            if send.offset < newest:
                yield f"real-time order {key} {send.values[0]!r} at {send.offset}, {newest} was acked before"


def _skips(history: History) -> Iterable[str]:
    last: dict[tuple[int, Any], int] = {}
    for poll in history.polls:
        name = (poll.process, poll.key)
        if poll.reset:
            last.pop(name, None)
        for offset, _ in poll.records:
            expected = last.get(name, offset - 1) + 1
            if offset > expected:
                yield f"poll-skip {name}: {offset}, expected {expected}"
            elif offset < expected:
                yield f"nonmonotonic-poll {name}: {offset}, expected {expected}"
            last[name] = offset


def _gaps(offsets: dict[Any, dict[int, Any]], history: History) -> Iterable[str]:
    if history.excused:
        return
    read: dict[Any, set[int]] = defaultdict(set)
    for poll in history.polls:
        read[poll.key].update(offset for offset, _ in poll.records)
    for key, seen in read.items():
        if seen and len(seen) != max(seen) - min(seen) + 1:
            missing = sorted(set(range(min(seen), max(seen))) - seen)
            if missing[-1] < history.trimmed.get(key, 0):
                continue
            yield f"contiguous {key}: nobody read {missing[:5]}"
