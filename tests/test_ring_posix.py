"""Shared memory is made whole or not at all, seen read-only, and gone when its name is taken away."""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shmlog.ring import posix
from shmlog.ring.layout import RingIdentity, ring_name, ring_size
from shmlog.ring.reader import RingMismatch, RingReader
from shmlog.ring.writer import RingWriter

SIZE = 1 << 20


@pytest.fixture
def identity() -> RingIdentity:
    """One that no other test has, in this or another process."""
    return RingIdentity("cluster", 1, 1, uuid.uuid4().bytes, 3)


@pytest.fixture
def name(identity: RingIdentity) -> Iterator[str]:
    name = ring_name(identity)
    yield name
    posix.unlink(name)


def file_of(name: str) -> Path:
    return Path("/dev/shm") / name[1:]


def test_new_memory_is_reserved_zeroed_and_private_to_the_user(name: str) -> None:
    memory = posix.create(name, SIZE)
    state = file_of(name).stat()
    assert (state.st_size, state.st_blocks * 512, state.st_mode & 0o777) == (SIZE, SIZE, 0o600)
    assert (memory.name, memory.size) == (name, SIZE)
    assert not np.frombuffer(memory.buffer, np.uint8).any()


def test_a_name_is_made_once(name: str) -> None:
    memory = posix.create(name, SIZE)
    memory.buffer[0] = 7
    with pytest.raises(FileExistsError):
        posix.create(name, SIZE)
    assert posix.attach(name).buffer[0] == 7, "what was there is untouched"


def test_no_room_is_an_error_that_leaves_nothing(name: str) -> None:
    info = os.statvfs("/dev/shm")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what counts
        posix.create(name, info.f_frsize * (info.f_blocks + 1))
    assert caught.value.errno in (errno.ENOSPC, errno.ENOMEM)
    assert not file_of(name).exists()


def test_attached_memory_can_be_read_and_not_written(name: str) -> None:
    memory = posix.create(name, SIZE)
    seen = posix.attach(name)
    memory.buffer[SIZE - 1] = 9
    assert seen.size == SIZE
    assert seen.buffer[SIZE - 1] == 9
    assert seen.buffer.readonly
    with pytest.raises(TypeError):
        seen.buffer[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        np.frombuffer(seen.buffer, np.uint8)[0] = 1


def test_a_missing_name_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=name):
        posix.attach(name)
    assert posix.unlink(name) is False


def test_a_name_that_is_still_being_made_is_not_there_yet(name: str) -> None:
    file_of(name).touch(0o600)
    with pytest.raises(FileNotFoundError, match=name):
        posix.attach(name)


def test_who_has_it_mapped_keeps_it_when_the_name_vanishes(
    name: str, identity: RingIdentity
) -> None:
    memory = posix.create(name, ring_size(SIZE))
    writer = RingWriter.create(memory, identity, SIZE, leader_epoch=0)
    reader = RingReader(posix.attach(name), identity)
    assert posix.unlink(name) is True
    writer.reserve(8, 0)[:] = b"8 bytes!"
    writer.publish()
    chunk = reader.read(0, 8, end=8)
    assert chunk is not None
    assert chunk.data == b"8 bytes!"
    assert posix.unlink(name) is False


def test_memory_is_unmapped_when_closed(name: str) -> None:
    memory = posix.create(name, SIZE)
    assert mappings(name) == 1
    memory.close()
    assert mappings(name) == 0
    memory.close()


def test_a_view_keeps_the_mapping_until_it_is_dropped(name: str) -> None:
    memory = posix.create(name, SIZE)
    array = np.frombuffer(memory.buffer, np.uint8)
    view = memory.buffer[:8]
    memory.close()
    assert (int(array[0]), view[0]) == (0, 0)
    del array, view, memory
    assert mappings(name) == 0


def test_memory_can_be_closed_under_its_writer_and_reader(
    name: str, identity: RingIdentity
) -> None:
    memory = posix.create(name, ring_size(SIZE))
    writer = RingWriter.create(memory, identity, SIZE, leader_epoch=0)
    reader = RingReader(memory, identity)
    memory.close()
    writer.seal()
    assert reader.sealed
    reader.close()
    del writer, reader, memory
    assert mappings(name) == 0


def mappings(name: str) -> int:
    return Path("/proc/self/maps").read_text().count(str(file_of(name)))


def test_touching_maps_every_page_and_changes_nothing(name: str) -> None:
    memory = posix.create(name, 8 * SIZE)
    before = resident_bytes(name)
    worker = threading.Thread(target=posix.touch, args=(memory,))
    worker.start()
    worker.join()
    assert before < SIZE
    assert resident_bytes(name) == 8 * SIZE
    assert not np.frombuffer(memory.buffer, np.uint8).any()


def resident_bytes(name: str) -> int:
    text = Path("/proc/self/smaps").read_text().partition(str(file_of(name)))[2]
    return int(text.partition("Rss:")[2].split()[0]) * 1024


def test_a_shorter_object_of_the_name_is_no_ring(name: str, identity: RingIdentity) -> None:
    posix.create(name, 4096)
    with pytest.raises(RingMismatch):
        RingReader(posix.attach(name), identity)
