"""A second process reads a ring while its writer laps it: nothing torn, nothing stale."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from shmlog.ring import layout as L
from shmlog.ring import posix
from shmlog.ring.writer import RingWriter

CAPACITY = L.CAPACITY_MIN
SIZE_WORDS = 128  # of the biggest batch
BATCHES_MAX = 1_000_000

# Every word of a batch tells its offset, its size and its place in the batch:
# offset << 20 | words << 10 | number + 1. So a mixture of two batches cannot pass for one.
READER = """
import json, sys
import numpy as np
from shmlog.ring import layout as L, posix
from shmlog.ring.reader import RingReader

def expected_words(head):
    return head + np.arange(head >> 10 & 1023, dtype=np.uint64)

reader = RingReader(posix.attach(sys.argv[1]), L.RingIdentity("lapped", 1, 2, bytes(16), 3))
accepted = lapped = wrong = views = 0
print("ready", flush=True)
while (accepted < 20_000 or lapped < 100) and not reader.sealed:
    newest = reader.seek(1 << 40)
    chunk = None if newest is None else reader.read(newest, 8)
    if not chunk or not chunk.data:
        continue
    # Begin at the oldest batch there is, the next one that the writer overwrites.
    for back in range(160, 90, -1):
        wanted = (int.from_bytes(chunk.data, "little") >> 20) - back
        position = reader.seek(wanted)
        if position is not None:
            break
    previous = None
    while position is not None:
        chunk = reader.read(position, 65536)
        if chunk is None:
            lapped += 1
            break
        if not chunk.data:
            break
        words = np.frombuffer(chunk.data, np.uint64)
        at = 0
        while at < len(words) and int(words[at]) & 0xFFFFFFFF:
            head = int(words[at])
            size = head >> 10 & 1023
            wrong += size == 0 or not np.array_equal(words[at : at + size], expected_words(head))
            # The entry sought is at or below what was wanted; then each follows the one before.
            wrong += head >> 20 > wanted if previous is None else head >> 20 != previous + 1
            previous = head >> 20
            accepted += 1
            at += max(size, 1)
        view = np.frombuffer(reader.view(chunk.position, 8), np.uint64)
        head = int(view[0])
        seen = np.frombuffer(reader.view(chunk.position, 8 * (head >> 10 & 1023)), np.uint64).copy()
        if reader.still_valid(chunk.position):
            views += 1
            wrong += not np.array_equal(seen, expected_words(head)) or head != int(words[0])
        position = chunk.position + 8 * at
print(json.dumps({"accepted": accepted, "lapped": lapped, "wrong": wrong, "views": views}))
"""


@pytest.fixture
def name() -> Iterator[str]:
    fresh = f"/sl{secrets.token_hex(13)}"
    yield fresh
    posix.unlink(fresh)


def test_a_reader_in_another_process_that_is_lapped_takes_nothing_torn_or_stale(name: str) -> None:
    memory = posix.create(name, L.ring_size(CAPACITY))
    identity = L.RingIdentity("lapped", 1, 2, bytes(16), 3)
    writer = RingWriter.create(memory, identity, CAPACITY, leader_epoch=0)
    numbers = np.arange(1, SIZE_WORDS + 1, dtype=np.uint64)
    command = [sys.executable, "-c", READER, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for offset in range(1, BATCHES_MAX):
            size = 1 + offset * 37 % SIZE_WORDS
            target = writer.reserve(8 * size, offset)
            np.frombuffer(target, np.uint64)[:] = numbers[:size] + (offset << 20 | size << 10)
            writer.set_high_watermark(writer.publish())
            if offset % 1024 == 0 and process.poll() is not None:
                break
        writer.seal()
        found = json.loads(process.stdout.readline())
    assert process.returncode == 0
    assert found["wrong"] == 0, found
    assert found["accepted"] >= 20_000, found
    assert found["lapped"] >= 100, found
    assert found["views"] > 0, found
    memory.close()
