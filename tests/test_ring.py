"""The ring over heap and POSIX memory: layout, writing, reading, being lapped, closing."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmlog.ring import layout as L
from shmlog.ring import posix
from shmlog.ring import reader as reading
from shmlog.ring.memory import HeapMemory, SharedMemory
from shmlog.ring.reader import RingMismatch, RingReader
from shmlog.ring.writer import RingFull, RingWriter

CAPACITY = L.CAPACITY_MIN
IDENTITY = L.RingIdentity("test-cluster", 3, 12, bytes(range(16)), 7)
_CELL = re.compile(r" ([a-z_]+(?: offsets)?) +(?:(u32|u64|i64)(\[entries\])?|(\d+) bytes)")
MakeMemory = Callable[[int], SharedMemory]


def new_name() -> str:
    return f"/sl{secrets.token_hex(13)}"


@pytest.fixture(params=["heap", "posix"])
def make_memory(request: pytest.FixtureRequest) -> Iterator[MakeMemory]:
    """Makes memory of either kind; what has a name is unlinked afterwards."""
    names: list[str] = []

    def make(size: int) -> SharedMemory:
        if request.param == "heap":
            return HeapMemory(size)
        names.append(new_name())
        return posix.create(names[-1], size)

    yield make
    for name in names:
        posix.unlink(name)


@pytest.fixture
def posix_name() -> Iterator[str]:
    name = new_name()
    yield name
    posix.unlink(name)


def make_ring(memory: SharedMemory, capacity: int = CAPACITY) -> tuple[RingWriter, RingReader]:
    writer = RingWriter.create(memory, IDENTITY, capacity, leader_epoch=5)
    return writer, RingReader(memory, IDENTITY)


def batch(base_offset: int, size: int) -> bytes:
    """A batch whose every word tells which one it is; its first word is not 0."""
    return ((base_offset + 1) * 0x1_0000_0001).to_bytes(8, "little") * (size // 8)


def append(writer: RingWriter, base_offset: int, size: int = 1024, *, commit: bool = True) -> int:
    """Write one batch; its end."""
    writer.reserve(size, base_offset)[:] = batch(base_offset, size)
    end = writer.publish()
    if commit:
        writer.set_high_watermark(end)
    return end


# -- layout ------------------------------------------------------------------------------------


def test_the_drawing_agrees_with_the_constants() -> None:
    assert L.__doc__ is not None
    sizes = {"u32": 4, "u64": 8, "i64": 8}
    drawn: dict[str, int] = {}
    position = 0
    for line in L.__doc__.splitlines():
        match = re.match(r"^ {4}(?:byte)? *(\d+)? [|+](.*)[|+]", line)
        if match is None:
            continue
        if match[1] is not None:
            assert int(match[1]) >= position, line
            position = int(match[1])
        cell = re.match(
            r" ([a-z_]+(?: offsets)?) +(?:(u32|u64|i64)(\[entries\])?|(\d+) bytes)", match[2]
        )
        if cell is None:
            continue
        drawn[cell[1]] = position
        position += int(cell[4]) if cell[4] else sizes[cell[2]] * (L.ENTRIES if cell[3] else 1)
    assert position == L.DATA
    assert drawn == {
        "magic": 8 * L.MAGIC_AND_LAYOUT,
        "layout": 8 * L.MAGIC_AND_LAYOUT + 4,
        "ready": 8 * L.READY,
        "capacity": 8 * L.CAPACITY,
        "entries": 8 * L.ENTRY_COUNT,
        "broker": 8 * L.BROKER,
        "incarnation": 8 * L.INCARNATION,
        "partition": 8 * L.PARTITION,
        "topic_id": L.TOPIC_ID_AT,
        "cluster": L.CLUSTER_AT,
        "oldest_valid": 8 * L.OLDEST_VALID,
        "tail": 8 * L.TAIL,
        "high_watermark": 8 * L.HIGH_WATERMARK,
        "leader_epoch": 8 * L.LEADER_EPOCH,
        "heartbeat": 8 * L.HEARTBEAT,
        "sealed": 8 * L.SEALED,
        "index_count": 8 * L.INDEX_COUNT,
        "bell": 8 * L.BELL,
        "base offsets": L.INDEX_OFFSETS,
        "positions": L.INDEX_POSITIONS,
    }
    assert f"entries         u64  {L.ENTRIES}" in L.__doc__
    assert L.MAGIC.to_bytes(4, "little") == b"SLR1"
    assert f"at least {L.CAPACITY_MIN}" in L.__doc__


def test_each_published_word_has_a_cache_line_of_its_own() -> None:
    words = (
        L.OLDEST_VALID,
        L.TAIL,
        L.HIGH_WATERMARK,
        L.LEADER_EPOCH,
        L.HEARTBEAT,
        L.SEALED,
        L.INDEX_COUNT,
    )
    lines = {8 * word // 64 for word in words}
    assert len(lines) == len(words)
    assert min(lines) * 64 >= L.CLUSTER_AT + L.CLUSTER_SIZE


def test_a_ring_stands_byte_for_byte_where_the_layout_says() -> None:
    memory = HeapMemory(L.ring_size(CAPACITY))
    writer = RingWriter.create(memory, IDENTITY, CAPACITY, leader_epoch=5)
    append(writer, 100, 64)
    append(writer, 101, 64, commit=False)
    writer.beat(123)
    written = bytes(memory.buffer)
    assert written[:16] == b"SLR1" + bytes([1, 0, 0, 0]) + bytes([1, 0, 0, 0, 0, 0, 0, 0])
    numbers = np.frombuffer(written, "<u8", 6, 16).tolist()
    assert numbers == [CAPACITY, L.ENTRIES, 3, 12, 7, 0x0706050403020100]
    assert written[56:72] == bytes(range(16))
    assert written[72:136] == b"test-cluster".ljust(64, b"\0")
    words = {192: 0, 256: 128, 320: 64, 384: 5, 448: 123, 512: 0, 576: 2}
    assert {at: int.from_bytes(written[at : at + 8], "little") for at in words} == words
    assert np.frombuffer(written, "<i8", 3, 4096).tolist() == [100, 101, 0]
    assert np.frombuffer(written, "<i8", 3, 36864).tolist() == [0, 64, 0]
    assert written[69632 : 69632 + 128] == batch(100, 64) + batch(101, 64)


def test_the_name_is_short_and_belongs_to_one_identity() -> None:
    name = L.ring_name(IDENTITY)
    assert re.fullmatch(r"/sl[a-z2-7]{26}", name)
    text = f"test-cluster|3|12|{bytes(range(16)).hex()}|7"
    assert (
        name[3:] == base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:26]
    )
    others = {
        L.ring_name(IDENTITY._replace(cluster="other")),
        L.ring_name(IDENTITY._replace(broker=4)),
        L.ring_name(IDENTITY._replace(incarnation=13)),
        L.ring_name(IDENTITY._replace(topic_id=bytes(16))),
        L.ring_name(IDENTITY._replace(partition=8)),
        name,
    }
    assert len(others) == 6


# -- making ------------------------------------------------------------------------------------


def test_a_new_ring_is_empty_and_says_whose_it_is(make_memory: MakeMemory) -> None:
    memory = make_memory(L.ring_size(CAPACITY))
    writer, reader = make_ring(memory)
    assert (reader.oldest_valid, reader.tail, reader.high_watermark) == (0, 0, 0)
    assert (reader.leader_epoch, reader.heartbeat_ns, reader.sealed) == (5, 0, False)
    assert reader.seek(0) is None
    found = reader.read(0, 1024)
    assert found is not None
    assert (found.position, found.data, found.end) == (0, b"", 0)
    writer.beat(99)
    writer.seal()
    assert (reader.leader_epoch, reader.heartbeat_ns, reader.sealed) == (5, 99, True)
    reader.close()


@pytest.mark.parametrize(
    ("size", "capacity"),
    [
        (L.ring_size(CAPACITY) + 8, CAPACITY),
        (L.ring_size(CAPACITY), CAPACITY + L.PAGE),
        (L.ring_size(CAPACITY - L.PAGE), CAPACITY - L.PAGE),
        (L.ring_size(CAPACITY + 8), CAPACITY + 8),
    ],
)
def test_a_ring_of_a_wrong_size_is_not_made(size: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity"):
        RingWriter.create(HeapMemory(size), IDENTITY, capacity, leader_epoch=0)


@pytest.mark.parametrize(
    "identity",
    [
        IDENTITY._replace(cluster="é" * 33),
        IDENTITY._replace(topic_id=bytes(15)),
        IDENTITY._replace(broker=-1),
        IDENTITY._replace(incarnation=1 << 64),
    ],
)
def test_an_identity_that_does_not_fit_makes_no_ring_that_is_ready(
    identity: L.RingIdentity,
) -> None:
    memory = HeapMemory(L.ring_size(CAPACITY))
    with pytest.raises(ValueError):  # noqa: PT011 - memoryview's own words in two of the cases
        RingWriter.create(memory, identity, CAPACITY, leader_epoch=0)
    with pytest.raises(RingMismatch):
        RingReader(memory, identity)


def test_every_byte_of_the_identifying_header_counts() -> None:
    memory = HeapMemory(L.ring_size(CAPACITY))
    make_ring(memory)
    for at in range(L.CLUSTER_AT + L.CLUSTER_SIZE):
        memory.buffer[at] ^= 0x40
        with pytest.raises(RingMismatch):
            RingReader(memory, IDENTITY)
        memory.buffer[at] ^= 0x40
    RingReader(memory, IDENTITY)


@pytest.mark.parametrize(
    "other",
    [
        IDENTITY._replace(cluster="test-cluste"),
        IDENTITY._replace(cluster="test-cluster\0x"),
        IDENTITY._replace(cluster="x" * 65),
        IDENTITY._replace(broker=2),
        IDENTITY._replace(incarnation=11),
        IDENTITY._replace(topic_id=bytes(16)),
        IDENTITY._replace(partition=6),
    ],
)
def test_a_ring_of_another_identity_is_refused(other: L.RingIdentity) -> None:
    memory = HeapMemory(L.ring_size(CAPACITY))
    make_ring(memory)
    with pytest.raises(RingMismatch):
        RingReader(memory, other)


@pytest.mark.parametrize(
    "size",
    [
        0,
        8,
        L.PAGE,
        L.DATA,
        L.DATA + L.PAGE,
        *(L.ring_size(CAPACITY) + n for n in (-L.PAGE, 8, L.PAGE)),
    ],
)
def test_a_ring_in_memory_of_another_size_is_refused(size: int) -> None:
    whole = HeapMemory(L.ring_size(CAPACITY))
    make_ring(whole)
    memory = HeapMemory(size)
    part = min(size, whole.size)
    memory.buffer[:part] = whole.buffer[:part]
    with pytest.raises(RingMismatch):
        RingReader(memory, IDENTITY)


# -- writing and reading -----------------------------------------------------------------------


def test_nothing_is_seen_before_it_is_published_nor_read_before_it_is_committed(
    make_memory: MakeMemory,
) -> None:
    writer, reader = make_ring(make_memory(L.ring_size(CAPACITY)))
    writer.reserve(64, 0)[:] = batch(0, 64)
    assert writer.pending
    assert (reader.tail, reader.seek(0)) == (0, None)
    writer.publish()
    assert not writer.pending
    assert (reader.tail, reader.high_watermark) == (64, 0)
    assert reader.seek(0) is None
    read = reader.read(0, 1024)
    assert read is not None
    assert read.data == b""
    early = reader.read(0, 1024, end=reader.tail)
    assert early is not None
    assert early.data == batch(0, 64)
    writer.set_high_watermark(64)
    read = reader.read(0, 1024)
    assert read is not None
    assert (read.position, read.data, read.end) == (0, batch(0, 64), 64)
    assert reader.seek(0) == 0
    reader.close()


def test_seek_stops_at_the_last_committed_entry() -> None:
    writer, reader = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    append(writer, 0)
    append(writer, 10)
    append(writer, 20, commit=False)
    append(writer, 30, commit=False)
    assert [reader.seek(offset) for offset in (9, 10, 20, 99)] == [0, 1024, 1024, 1024]


def test_a_batch_is_never_split_and_padding_is_skipped(make_memory: MakeMemory) -> None:
    writer, reader = make_ring(make_memory(L.ring_size(CAPACITY)))
    size = CAPACITY // 2 - 8
    for base_offset in range(2):
        append(writer, base_offset, size)
    padded = append(writer, 2, 64)
    assert padded == CAPACITY + 64
    chunk = reader.read(2 * size, CAPACITY)
    assert chunk is not None
    assert (chunk.position, chunk.data) == (CAPACITY, batch(2, 64))
    lap = reader.read(size, CAPACITY)
    assert lap is not None
    assert lap.end == CAPACITY
    assert lap.data[:size] == batch(1, size)
    assert lap.data[size : size + 4] == bytes(4)
    reader.close()


def test_a_chunk_ends_with_the_lap_with_the_limit_and_with_the_size() -> None:
    writer, reader = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    for base_offset in range(CAPACITY // 1024 + 3):
        append(writer, base_offset)
    start = CAPACITY - 2048
    lap = reader.read(start, CAPACITY)
    assert lap is not None
    assert lap.end == CAPACITY
    rest = reader.read(lap.end, CAPACITY)
    assert rest is not None
    assert (rest.position, rest.end) == (CAPACITY, writer.tail)
    cut = reader.read(start, 1000)
    assert cut is not None
    assert len(cut.data) == 1000
    assert reader.read(writer.tail + 8, 1024) is None


def test_what_was_overwritten_is_not_read() -> None:
    writer, reader = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    for base_offset in range(CAPACITY // 1024):
        append(writer, base_offset)
    assert reader.still_valid(0)
    writer.reserve(8, 64)  # not published, but its bytes are handed out
    assert reader.oldest_valid == 8
    assert not reader.still_valid(0)
    assert reader.read(0, 1024) is None
    assert reader.seek(0) is None
    assert reader.seek(1) == 1024


class _Words:
    """The header of a reader; something happens after its first look at `oldest_valid`."""

    def __init__(self, words: memoryview, then: Callable[[], object]) -> None:
        self._words = words
        self._then: Callable[[], object] | None = then

    def __getitem__(self, word: int) -> int:
        value: int = self._words[word]
        if word == L.OLDEST_VALID and self._then is not None:
            then, self._then = self._then, None
            then()
        return value


def test_a_copy_that_was_overtaken_is_thrown_away() -> None:
    writer, reader = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    for base_offset in range(CAPACITY // 1024):
        append(writer, base_offset)
    reader._words = _Words(reader._words, lambda: append(writer, 64))  # type: ignore[assignment]
    assert reader.read(0, 4096) is None


def test_a_zero_of_a_later_lap_is_not_taken_for_padding() -> None:
    writer, reader = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    for base_offset in range(CAPACITY // 1024):
        append(writer, base_offset)

    def overwrite() -> None:
        # One batch over the place: there a word in its midst is 0. The next lap stays valid.
        target = writer.reserve(2048, 64)
        target[:] = batch(64, 1024) + bytes(1024)
        writer.set_high_watermark(writer.publish())

    reader._words = _Words(reader._words, overwrite)  # type: ignore[assignment]
    assert reader.read(1024, 4096) is None


@pytest.mark.parametrize("appended", [100, 150, 151, 1000])
def test_an_index_entry_replaced_during_the_search_is_not_believed(
    appended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    for base_offset in range(L.ENTRIES):
        append(writer, base_offset, 16)
    search = reading._newest

    def slow_search(*arguments: Any) -> int:
        place = search(*arguments)
        for base_offset in range(appended):
            append(writer, L.ENTRIES + base_offset, 16)
        return place

    monkeypatch.setattr(reading, "_newest", slow_search)
    assert reader.seek(150) == (150 * 16 if appended <= 150 else None)


def test_seek_finds_what_a_plain_search_finds_over_many_turns_of_the_index() -> None:
    writer, reader = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    written: list[tuple[int, int]] = []
    for base_offset in range(0, 3 * (2 * L.ENTRIES + 77), 3):
        written.append((base_offset, append(writer, base_offset, 16) - 16))
        if base_offset % 997 and base_offset > 15:
            continue
        in_ring = [(o, p) for o, p in written[-L.ENTRIES :] if p >= writer.oldest_valid]
        lowest, highest = in_ring[0][0], in_ring[-1][0]
        for wanted in (
            lowest - 1,
            lowest,
            lowest + 4,
            (lowest + highest) // 2,
            highest,
            highest + 9,
        ):
            expected = [p for o, p in in_ring if o <= wanted]
            assert reader.seek(wanted) == (expected[-1] if expected else None)


@pytest.mark.parametrize("size", [0, -8, 4, 1023, CAPACITY // 2 + 8])
def test_a_size_that_no_batch_has_is_refused(size: int) -> None:
    writer, _ = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    with pytest.raises(ValueError, match="batch of"):
        writer.reserve(size, 0)
    assert not writer.pending


def test_a_ring_full_of_what_is_not_published_says_so_and_goes_on_after_publishing() -> None:
    writer, reader = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    append(writer, 0, 1024)
    for base_offset in range(1, 64):
        writer.reserve(1024, base_offset)[:] = batch(base_offset, 1024)
    writer.reserve(1024, 64)[:] = batch(64, 1024)
    with pytest.raises(RingFull):
        writer.reserve(8, 65)
    assert (writer.oldest_valid, reader.oldest_valid) == (1024, 1024)
    writer.set_high_watermark(writer.publish())
    append(writer, 65, 8)
    assert reader.oldest_valid == 1032


def test_an_abort_takes_back_what_was_reserved_and_nothing_else(make_memory: MakeMemory) -> None:
    writer, reader = make_ring(make_memory(L.ring_size(CAPACITY)))
    for base_offset in range(63):
        append(writer, base_offset)
    tail = writer.tail
    writer.reserve(2048, 63)[:] = b"\xff" * 2048  # padded, over the first batches
    writer.abort()
    assert not writer.pending
    assert (writer.tail, reader.tail, reader.high_watermark) == (tail, tail, tail)
    assert reader.oldest_valid == 2048
    assert reader.seek(1) is None
    assert reader.seek(2) == 2048
    end = reader.read(tail, 1024)
    assert end is not None
    assert end.data == b""
    append(writer, 63)  # smaller than what was aborted: it fits where there was padding
    again = reader.read(tail, 1024)
    assert again is not None
    assert (again.position, again.data) == (tail, batch(63, 1024))
    reader.close()


def test_an_abort_of_a_whole_ring_leaves_an_empty_ring_that_goes_on() -> None:
    writer, reader = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    for base_offset in range(5):
        append(writer, base_offset, commit=base_offset < 2)
    for base_offset in range(5, 69):
        writer.reserve(1024, base_offset)[:] = batch(base_offset, 1024)
    writer.abort()
    # Never beyond the tail: what is unpublished is at most the ring.
    assert (reader.oldest_valid, reader.tail, reader.high_watermark) == (5120, 5120, 2048)
    assert [reader.seek(offset) for offset in range(6)] == [None] * 6
    assert reader.read(2048, 1024) is None
    writer.set_high_watermark(3072)  # batches that are committed late may be gone already
    assert reader.read(3072, 1024) is None
    append(writer, 5)
    assert reader.seek(5) == 5120


def test_what_is_dropped_is_not_read_any_more() -> None:
    writer, reader = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    for base_offset in range(4):
        append(writer, base_offset)
    writer.drop_below(2048)
    assert [reader.seek(offset) for offset in range(4)] == [None, None, 2048, 3072]
    assert reader.read(0, 8) is None
    writer.drop_below(1024)
    assert reader.oldest_valid == 2048
    writer.drop_below(1 << 40)
    assert reader.oldest_valid == reader.tail == 4096
    assert reader.seek(3) is None
    append(writer, 4)
    assert reader.seek(9) == 4096


def test_the_high_watermark_goes_neither_back_nor_beyond_the_tail() -> None:
    writer, _ = make_ring(HeapMemory(L.ring_size(CAPACITY)))
    append(writer, 0)
    for position in (0, 2048):
        with pytest.raises(AssertionError):
            writer.set_high_watermark(position)


def test_readers_hand_out_nothing_that_can_be_written(make_memory: MakeMemory) -> None:
    writer, reader = make_ring(make_memory(L.ring_size(CAPACITY)))
    append(writer, 0)
    view = reader.view(0, 1024)
    assert view == batch(0, 1024)
    assert view.readonly
    assert not np.frombuffer(view, np.uint8).flags.writeable
    assert not reader._positions.flags.writeable
    reader.close()


# -- closing -----------------------------------------------------------------------------------


def test_a_closed_reader_finds_nothing_and_vouches_for_nothing(make_memory: MakeMemory) -> None:
    writer, reader = make_ring(make_memory(L.ring_size(CAPACITY)))
    append(writer, 0)
    reader.close()
    reader.close()
    assert reader.sealed
    assert reader.seek(0) is None
    assert reader.read(0, 1024) is None
    assert not reader.still_valid(0)


def test_views_stay_readable_when_the_ring_is_closed_and_unlinked(posix_name: str) -> None:
    memory = posix.create(posix_name, L.ring_size(CAPACITY))
    writer = RingWriter.create(memory, IDENTITY, CAPACITY, leader_epoch=0)
    append(writer, 0)
    reader = RingReader(posix.attach(posix_name), IDENTITY)
    view = reader.view(0, 1024)
    array = np.frombuffer(reader.view(0, 1024), np.uint8)
    reader.close()
    memory.close()
    memory.close()
    assert posix.unlink(posix_name)
    assert bytes(view) == array.tobytes() == batch(0, 1024)
    append(writer, 1)  # the writer's views hold the mapping, too
    del writer, view, array, reader
    assert posix_name not in Path("/proc/self/maps").read_text()


# -- POSIX memory ------------------------------------------------------------------------------


def test_memory_that_cannot_be_mapped_is_not_left_behind(
    posix_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    files = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(posix.mmap, "mmap", refuse)
    with pytest.raises(OSError, match="no memory"):
        posix.create(posix_name, L.PAGE)
    assert not os.path.exists(f"/dev/shm{posix_name}")
    assert len(os.listdir("/proc/self/fd")) == files
