"""Fetches: which requests go out, which answers count, what errors become. And the ring's tail."""

from __future__ import annotations

import random
from typing import Any

import pytest

from shmlog.client.fetches import ENDLESS, Fetches, PartitionReader
from shmlog.client.metadata import Leader, MetadataCache
from shmlog.client.ring_tail import RingTail
from shmlog.client.session import Backoff, Outcome
from shmlog.clock import NS_PER_S
from shmlog.errors import BrokerGone, CorruptLog, OffsetOutOfRange, UnknownTopic
from shmlog.ids import TopicPartition
from shmlog.protocol.messages import FetchFastAnswer
from shmlog.records.builder import build, stamp
from shmlog.ring.layout import RingIdentity, ring_size
from shmlog.ring.memory import HeapMemory
from shmlog.ring.reader import RingReader
from shmlog.ring.writer import RingWriter

TOPIC_ID = bytes(range(16))
TP = TopicPartition("t", 0)
NOW = 7 * NS_PER_S


def batch(
    base: int, count: int = 3, *, epoch: int = 1, partition: int = 0, pad: int = 0
) -> bytearray:
    encoded = build([b"%d" % n + bytes(pad) for n in range(base, base + count)], timestamps=5)
    stamp(
        encoded,
        base_offset=base,
        leader_epoch=epoch,
        append_time_ns=9,
        topic_id=TOPIC_ID,
        partition=partition,
    )
    return encoded


def make(*tps: TopicPartition) -> Fetches:
    metadata = MetadataCache()
    fetches = Fetches(
        metadata,
        Backoff(random.Random(1)),
        max_bytes=1 << 20,
        max_wait_ms=500,
        partition_max_bytes=1 << 16,
        check_body=True,
    )
    for tp in tps or (TP,):
        metadata._leaders[tp] = Leader(0, 1, "ipc:///a", 4)
        fetches.add(PartitionReader(tp, TOPIC_ID.hex(), 0, ENDLESS))
    return fetches


def entry(frame: bytes = b"", tp: TopicPartition = TP, **more: Any) -> dict[str, Any]:
    base = {"topic": tp.topic, "partition": tp.partition, "error": 0, "bytes": len(frame)}
    return {**base, "high_watermark": 99, "log_start": 0, "leader_epoch": 1, **more}


def ok(*frames: bytes, entries: list[dict[str, Any]] | None = None) -> Outcome:
    entries = entries or [entry(frame) for frame in frames]
    return Outcome(FetchFastAnswer(id=1, partitions=entries), frames, None, True)


def test_a_partition_is_asked_for_once_at_a_time_and_from_where_the_buffer_ends() -> None:
    fetches = make()
    ((endpoint, message, on_done),) = fetches.requests(NOW)
    assert (endpoint, message.partitions[0].offset) == ("ipc:///a", 0)
    assert fetches.requests(NOW) == []
    on_done(ok(bytes(batch(0)) + bytes(batch(3))), NOW)
    reader = fetches.readers[TP]
    assert [p.header.base_offset for p in reader.pieces] == [0, 3]
    ((_, message, _),) = fetches.requests(NOW)
    assert message.partitions[0].offset == 6
    assert reader.position == 0


def test_an_answer_from_before_a_seek_or_a_ring_read_does_not_count() -> None:
    fetches = make()
    reader = fetches.readers[TP]
    ((_, _, old),) = fetches.requests(NOW)
    reader.seek(3)
    ((_, _, new),) = fetches.requests(NOW)
    old(ok(bytes(batch(0))), NOW)
    assert not reader.pieces
    new(ok(bytes(batch(3))), NOW)
    assert [p.header.base_offset for p in reader.pieces] == [3]
    ((_, _, late),) = fetches.requests(NOW)
    reader.fetch_offset = 9  # the ring was faster
    late(ok(bytes(batch(6))), NOW)
    assert len(reader.pieces) == 1


def test_the_first_batch_may_begin_below_the_offset_asked_for() -> None:
    fetches = make()
    reader = fetches.readers[TP]
    reader.seek(4)
    ((_, _, on_done),) = fetches.requests(NOW)
    on_done(ok(bytes(batch(0)) + bytes(batch(3))), NOW)
    assert [p.header.base_offset for p in reader.pieces] == [3]
    assert reader.fetch_offset == 6


@pytest.mark.parametrize("damage", ["gap", "crc", "partition", "epoch", "cut", "header"])
def test_a_damaged_answer_is_asked_for_once_more_and_then_an_error_with_the_place(
    damage: str,
) -> None:
    fetches = make()
    reader = fetches.readers[TP]
    ((_, _, on_done),) = fetches.requests(NOW)
    on_done(ok(bytes(batch(0, epoch=2))), NOW)
    bad = {
        "gap": batch(4, epoch=2),
        "crc": batch(3, epoch=2),
        "partition": batch(3, epoch=2, partition=1),
        "epoch": batch(3, epoch=1),
        "cut": batch(3, epoch=2)[:-8],
        "header": batch(3, epoch=2),
    }[damage]
    bad[-1 if damage == "crc" else 16] ^= damage in ("crc", "header")
    now = NOW
    for _ in range(2):
        assert reader.error is None
        now += NS_PER_S
        ((_, _, on_done),) = fetches.requests(now)
        on_done(ok(bytes(bad)), now)
    assert isinstance(reader.error, CorruptLog)
    assert reader.error.offset == 3
    assert len(reader.pieces) == 1  # what was good is still delivered
    assert fetches.requests(now + NS_PER_S) == []


def test_an_error_of_one_partition_leaves_the_others_alone() -> None:
    other = TopicPartition("t", 1)
    fetches = make(TP, other)
    ((_, message, on_done),) = fetches.requests(NOW)
    assert len(message.partitions) == 2
    failed = {**entry(), "error": 1, "message": "gone", "log_start": 50}
    frame = bytes(batch(0, partition=1))
    on_done(ok(frame, entries=[failed, entry(frame, other)]), NOW)
    error = fetches.readers[TP].error
    assert isinstance(error, OffsetOutOfRange)
    assert error.log_start == 50
    assert len(fetches.readers[other].pieces) == 1


def test_a_lost_broker_means_backoff_and_a_look_at_the_metadata() -> None:
    fetches = make()
    ((_, _, on_done),) = fetches.requests(NOW)
    on_done(Outcome(None, (), BrokerGone("gone"), False), NOW)
    assert fetches.refresh_wanted
    assert fetches.requests(NOW) == []
    due = fetches.next_retry_ns(NOW)
    assert due is not None
    assert len(fetches.requests(due)) == 1


def test_a_log_that_was_cut_is_told_with_its_range_and_reading_goes_on_at_the_cut() -> None:
    fetches = make()
    ((_, _, on_done),) = fetches.requests(NOW)
    on_done(ok(bytes(batch(0)) + bytes(batch(3)) + bytes(batch(6))), NOW)
    reader = fetches.readers[TP]
    reader.next_piece(), reader.next_piece()
    reader.position = 6  # the user has the first six records; three more are buffered
    fetches._metadata._leaders[TP] = Leader(1, 2, "ipc:///b", 1)
    fetches.leaders_changed()
    ((endpoint, message, on_done),) = fetches.requests(NOW)
    asked = message.partitions[0]
    assert (endpoint, asked.offset, asked.last_epoch) == ("ipc:///b", 9, 1)
    on_done(ok(entries=[entry(diverging_epoch=1, diverging_end=4, leader_epoch=2)]), NOW)
    (cut,) = fetches.truncated
    assert (cut.facts["offset"], cut.facts["end_offset"]) == (4, 6)
    assert not reader.pieces
    ((_, message, _),) = fetches.requests(NOW)
    assert (message.partitions[0].offset, message.partitions[0].last_epoch) == (4, 1)


def test_a_cut_of_what_is_only_buffered_is_no_event() -> None:
    fetches = make()
    ((_, _, on_done),) = fetches.requests(NOW)
    on_done(ok(bytes(batch(0)) + bytes(batch(3))), NOW)
    reader = fetches.readers[TP]
    ((_, _, on_done),) = fetches.requests(NOW)
    on_done(ok(entries=[entry(diverging_epoch=1, diverging_end=3, leader_epoch=2)]), NOW)
    assert not fetches.truncated
    assert [piece.header.base_offset for piece in reader.pieces] == [0]
    ((_, message, _),) = fetches.requests(NOW)
    assert message.partitions[0].offset == 3


def test_an_unknown_topic_is_believed_the_second_time() -> None:
    fetches = make()
    reader = fetches.readers[TP]
    now = NOW
    for expected in (False, True):
        ((_, _, on_done),) = fetches.requests(now)
        on_done(ok(entries=[{**entry(), "error": 3, "message": "no"}]), now)
        assert isinstance(reader.error, UnknownTopic) is expected
        now += NS_PER_S


def test_the_leader_named_in_an_error_is_asked_next() -> None:
    fetches = make()
    ((_, _, on_done),) = fetches.requests(NOW)
    moved = {"error": 6, "message": "m", "leader": 1, "leader_epoch": 2, "endpoint": "ipc:///b"}
    on_done(ok(entries=[{**entry(), **moved}]), NOW)
    ((endpoint, _, _),) = fetches.requests(NOW + NS_PER_S)
    assert endpoint == "ipc:///b"


def test_readers_at_their_rings_end_share_one_wake_up_call() -> None:
    other = TopicPartition("t", 1)
    fetches = make(TP, other)
    for reader in fetches.readers.values():
        reader.caught_up = True
    ((_, message, on_done),) = fetches.requests(NOW)
    assert (message.max_bytes, len(message.partitions)) == (0, 2)
    assert fetches.requests(NOW) == []
    on_done(ok(entries=[entry()]), NOW)
    assert len(fetches.requests(NOW)) == 1


def test_readers_that_all_hear_a_doorbell_leave_the_news_to_it() -> None:
    other = TopicPartition("t", 1)
    fetches = make(TP, other)
    rings = [Ring(), Ring()]
    for reader, ring in zip(fetches.readers.values(), rings, strict=True):
        reader.caught_up = True
        reader.tail = ring.tail
    ((_, message, on_done),) = fetches.requests(NOW)
    assert not message.doorbell
    on_done(ok(entries=[entry()]), NOW)
    for ring in rings:
        ring.tail._bell = 1
    ((_, message, _),) = fetches.requests(NOW)
    assert (message.doorbell, message.max_bytes) == (True, 0)


class Ring:
    """A small ring in this process, with its writer and a tail on it."""

    CAPACITY = 65536

    def __init__(self, *, check_body: bool = True) -> None:
        identity = RingIdentity("c", 0, 1, TOPIC_ID, 0)
        self.memory = HeapMemory(ring_size(self.CAPACITY))
        self.writer = RingWriter.create(self.memory, identity, self.CAPACITY, leader_epoch=1)
        self.tail = RingTail(identity, RingReader(self.memory, identity), check_body=check_body)
        self.offset = 0

    def write(self, count: int = 3, *, epoch: int = 1, pad: int = 0, commit: bool = True) -> None:
        encoded = batch(self.offset, count, epoch=epoch, pad=pad)
        self.writer.reserve(len(encoded), self.offset)[:] = encoded
        tail = self.writer.publish()
        if commit:
            self.writer.set_high_watermark(tail)
        self.offset += count

    def read(self, offset: int, *, copy: bool = True) -> list[int] | None:
        pieces = self.tail.poll(offset, copy=copy)
        return None if pieces is None else [p.header.base_offset for p in pieces]


@pytest.mark.parametrize("copy", [True, False])
def test_a_tail_follows_its_ring_round_and_round(copy: bool) -> None:
    ring = Ring()
    ring.write()
    offset = 0
    for number in range(400):
        ring.write(pad=number % 90)
        bases = []
        while got := ring.read(offset, copy=copy):
            bases += got
            offset = bases[-1] + 3
        assert bases[0] == (0 if number == 0 else 3 * number + 3)
        assert offset == ring.offset
        assert ring.read(offset, copy=copy) == []


def test_what_is_not_committed_is_not_read() -> None:
    ring = Ring()
    ring.write()
    ring.write(commit=False)
    assert ring.read(0) == [0]
    assert ring.read(3) == []


def test_a_place_that_the_ring_does_not_hold_is_fetched_until_it_does() -> None:
    ring = Ring()
    assert ring.read(0) is None  # empty: the log below it is not known
    for _ in range(500):
        ring.write(pad=100)
    assert ring.read(0) is None
    assert ring.read(ring.offset + 1) is None  # beyond the end: the broker decides
    late = ring.offset - 10
    pieces = ring.tail.poll(late)
    assert pieces
    assert pieces[0].header.base_offset <= late < pieces[0].header.end_offset
    assert pieces[-1].header.end_offset == ring.offset


def test_a_lapped_tail_says_fetch_and_comes_back() -> None:
    ring = Ring()
    ring.write()
    assert ring.read(0) == [0]
    for _ in range(500):
        ring.write(pad=100)
    assert ring.read(3) is None
    assert ring.read(ring.offset - 3) == [ring.offset - 3]


def test_a_view_is_valid_until_it_is_overwritten() -> None:
    ring = Ring()
    ring.write()
    pieces = ring.tail.poll(0, copy=False)
    assert pieces
    assert pieces[0].valid()
    for _ in range(500):
        ring.write(pad=100)
    assert not pieces[0].valid()


@pytest.mark.parametrize("place", [16, 40, 90, 130])
def test_damage_in_the_ring_is_not_read(place: int) -> None:
    ring = Ring()
    ring.write()
    ring.write()
    slot = ring.memory.size - ring.CAPACITY + len(batch(0)) + place
    ring.memory.buffer[slot] ^= 1
    assert ring.read(0) is None
    assert ring.read(3) is None


def test_an_older_leader_epoch_behind_a_newer_one_is_not_read() -> None:
    ring = Ring()
    ring.write(epoch=2)
    assert ring.read(0) == [0]
    ring.write(epoch=1)
    assert ring.read(3) is None
