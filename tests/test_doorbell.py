"""Doorbells: readers that sleep at their rings' ends hear of every record, and the broker of no reader."""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_broker import MemoryBroker

import shmlog
from shmlog.client import transport
from shmlog.client.fetches import Fetches
from shmlog.clock import NS_PER_MS
from shmlog.errors import Code
from shmlog.ring import posix
from shmlog.ring.doorbell import Doorbells
from shmlog.ring.layout import HEARTBEAT, RingIdentity, ring_name, ring_size
from shmlog.ring.reader import RingReader
from shmlog.ring.writer import RingWriter
from shmlog.testing.cluster import LocalCluster

CAPACITY = 1 << 16
ROUNDS = 3000
BATCH = b"\1" * 64


@pytest.fixture
def identity() -> RingIdentity:
    """One that no other test has, in this or another process."""
    return RingIdentity("cluster", 1, 1, uuid.uuid4().bytes, 3)


@pytest.fixture
def writer(identity: RingIdentity) -> Iterator[RingWriter]:
    memory = posix.create(ring_name(identity), ring_size(CAPACITY))
    yield RingWriter.create(memory, identity, CAPACITY, leader_epoch=1)
    posix.unlink(ring_name(identity))
    memory.close()


@pytest.fixture
def bells() -> Iterator[Doorbells]:
    made = Doorbells()
    yield made
    made.close()
    made.close()


def write(writer: RingWriter, offset: int = 0) -> None:
    writer.reserve(len(BATCH), offset)[:] = BATCH
    writer.set_high_watermark(writer.publish())


def rang(bells: Doorbells, timeout_ms: int = 0) -> bool:
    poll = select.poll()
    poll.register(bells.fd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


def test_what_readers_wait_for_rings(
    writer: RingWriter, identity: RingIdentity, bells: Doorbells
) -> None:
    bells.watch(ring_name(identity))
    write(writer)
    assert rang(bells)
    bells.hush()
    assert not rang(bells)
    writer.reserve(len(BATCH), 1)[:] = BATCH
    writer.publish()
    writer.beat(5)
    assert not rang(bells), "nobody may read it yet"
    writer.set_high_watermark(writer.tail)
    assert rang(bells)
    bells.hush()
    writer.seal()
    assert rang(bells), "who sleeps there has to look for the new leader"


def test_the_bell_writes_no_word_but_its_own(writer: RingWriter, identity: RingIdentity) -> None:
    with posix.attach(ring_name(identity)).buffer.cast("Q") as words:
        write(writer)
        before = list(words[:512])
        writer._memory.ring_bell()
        assert [n for n in range(512) if words[n] != before[n]] == [80]
        assert words[HEARTBEAT] == 0


def test_a_bell_that_is_watched_no_more_does_not_ring(
    writer: RingWriter, identity: RingIdentity, bells: Doorbells
) -> None:
    number = bells.watch(ring_name(identity))
    bells.unwatch(number)
    bells.hush()
    write(writer)
    assert not rang(bells)
    bells.unwatch(number)  # the ring's end may have come first


def test_a_ring_that_is_gone_has_no_bell(bells: Doorbells) -> None:
    with pytest.raises(FileNotFoundError):
        bells.watch("/slgone")


@pytest.mark.process
def test_no_ring_is_missed_between_the_look_and_the_sleep(
    writer: RingWriter, identity: RingIdentity
) -> None:
    program = [sys.executable, __file__, str(identity.partition), identity.topic_id.hex()]
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])
    reader = subprocess.Popen(
        program,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert reader.stdout is not None
    with reader, reader.stdout:
        for offset in range(ROUNDS):
            assert reader.stdout.read(1) == b".", f"asleep at offset {offset}"
            write(writer, offset)  # while it goes to sleep
        assert reader.stdout.read() == b"."
        assert reader.wait(30) == 0


def _follow(identity: RingIdentity) -> None:
    """Say "." at the end of the ring, look once more, sleep until the bell; each ring has news."""
    reader = RingReader(posix.attach(ring_name(identity)), identity)
    bells = Doorbells()
    bells.watch(ring_name(identity))
    seen = 0
    os.write(1, b".")
    while seen < ROUNDS * len(BATCH):
        if reader.high_watermark == seen:
            assert rang(bells, 10_000), "never woken"
            bells.hush()
            continue
        seen = reader.high_watermark
        os.write(1, b".")


# -- the call ----------------------------------------------------------------------------------------


@pytest.fixture
def broker(tmp_path: Path) -> MemoryBroker:
    made = MemoryBroker(tmp_path)
    made.create("t")
    return made


CALL = {
    "op": "fetch",
    "mode": "fast",
    "max_bytes": 0,
    "max_wait_ms": 1000,
    "doorbell": True,
    "partitions": [{"topic": "t", "partition": 0, "offset": 0}],
}


def test_a_call_that_leaves_news_to_the_doorbell_is_answered_at_its_time(
    broker: MemoryBroker,
) -> None:
    wanted = broker.post(CALL)
    for _ in range(3):
        broker.produce("t", b"v")
        assert broker.answer(wanted) is None
    broker.clock.advance(1000 * NS_PER_MS)
    broker.until(lambda: (found := broker.answer(wanted)) is not None and _is_news(found, 3))


def _is_news(answer: tuple[dict[str, object], list[bytes]], high_watermark: int) -> bool:
    [entry] = answer[0]["partitions"]  # type: ignore[misc]
    assert (entry["error"], entry["high_watermark"], answer[1]) == (0, high_watermark, [])
    return True


def test_a_call_that_leaves_news_to_the_doorbell_hears_of_the_end_of_a_topic(
    broker: MemoryBroker,
) -> None:
    wanted = broker.post(CALL)
    broker.turn()
    assert broker.ask({"op": "delete_topic", "topic": "t"})[0]["error"] == 0
    found = broker.answer(wanted)
    assert found is not None
    assert found[0]["partitions"][0]["error"] == Code.UNKNOWN_TOPIC_OR_PARTITION


def test_a_fetch_for_data_cannot_leave_news_to_the_doorbell(broker: MemoryBroker) -> None:
    reply, _ = broker.ask({**CALL, "max_bytes": 1})
    assert reply["error"] == Code.INVALID_REQUEST
    assert "max_bytes must be 0" in reply["message"]


# -- consumers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as running:
        yield running


def _calls_for(where: Path, topic: str, count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Wake-up calls of a reader that gets `count` records, each before the next one is sent."""
    with shmlog.Admin(where) as admin:
        admin.create_topic(topic, 1)
    calls = 0
    call = Fetches._wakeup

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return call(*arguments)

    with (
        shmlog.Producer(where=where) as producer,
        shmlog.Consumer(topic, where=where, start="latest") as consumer,
    ):
        records = iter(consumer)
        for number in range(-100, count):  # the ring is made meanwhile
            if number == 0:
                monkeypatch.setattr(Fetches, "_wakeup", counted)
            producer.send(topic, b"%d" % number, partition=0)
            assert next(records).value == b"%d" % number
    return calls


@pytest.mark.process
def test_a_reader_of_a_ring_makes_no_call_a_record(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One a half second, by which each side knows that the other one is there.
    assert _calls_for(cluster.dir, "heard", 500, monkeypatch) <= 50


@pytest.mark.process
def test_a_reader_that_may_have_no_doorbell_is_woken_by_a_call(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> Doorbells:
        raise OSError(errno.EMFILE, "inotify_init1")

    monkeypatch.setattr(transport, "Doorbells", none_left)
    assert _calls_for(cluster.dir, "deaf", 500, monkeypatch) >= 150


if __name__ == "__main__":
    _follow(RingIdentity("cluster", 1, 1, bytes.fromhex(sys.argv[2]), int(sys.argv[1])))
