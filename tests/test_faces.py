"""What every face of the client promises: the same behaviours through the calls and through asyncio."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from faces import Awaited, Blocking

import shmlog
from shmlog import serde
from shmlog.errors import (
    BufferFull,
    ClientClosed,
    ClusterNotFound,
    DeliveryError,
    InvalidConfig,
    InvalidRequest,
    OffsetOutOfRange,
    RecordTooLarge,
    RequestTimedOut,
    SerializationError,
    TopicExists,
    UnknownTopic,
)
from shmlog.ids import TopicPartition
from shmlog.testing.cluster import LocalCluster

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as running:
        yield running


@pytest.fixture(params=[Blocking, Awaited])
def face(request: pytest.FixtureRequest) -> Iterator[Any]:
    one = request.param()
    yield one
    one.stop()


@pytest.fixture
def topic(cluster: LocalCluster, request: pytest.FixtureRequest) -> str:
    """A topic of this test's own, with three partitions."""
    name = "t" + str(abs(hash(request.node.nodeid)))
    with shmlog.Admin(cluster.dir) as admin:
        admin.create_topic(name, 3)
    return name


@pytest.mark.parametrize("name", ["Producer", "Consumer", "Admin"])
def test_the_faces_have_the_same_names_and_parameters(name: str) -> None:
    calls, awaited = getattr(shmlog, name), getattr(shmlog.aio, name)
    for method in [*(m for m in vars(calls) if not m.startswith("_")), "__init__"]:
        if method == "abandon":  # of a forked child
            continue
        one, other = getattr(calls, method), getattr(awaited, method)
        if not callable(one):
            assert type(one) is type(other), method
            continue
        mine = [p.replace(annotation="") for p in inspect.signature(one).parameters.values()]
        theirs = [p.replace(annotation="") for p in inspect.signature(other).parameters.values()]
        assert [p.name for p in mine] == [p.name for p in theirs], method
        assert mine[1:] == theirs[1:], method


@pytest.mark.parametrize("ring", [True, False])
def test_records_come_out_as_they_went_in(
    cluster: LocalCluster, topic: str, face: Any, ring: bool
) -> None:
    with face.Producer(where=cluster.dir, value=serde.json) as producer:
        one = producer.send(topic, {"n": 1}, key=b"k", timestamp=5, headers=[("h", b"x")])
        many = producer.send_many(topic, list(range(9)), partition=2)
        keyed = producer.send_many(topic, list(range(9)), keys=[b"%d" % n for n in range(9)])
        waited = producer.produce(topic, None, partition=1)
        meta, (places,) = one.result(), many.result()
        assert (one.done(), many.done(), one.exception(), keyed.exception()) == (1, 1, None, None)
        producer.flush()
    options: Any = {"where": cluster.dir, "value": serde.json, "stop": "latest", "ring": ring}
    with face.Consumer(topic, **options) as consumer:
        assert consumer.assignment == [TopicPartition(topic, p) for p in range(3)]
        records = list(consumer)
    found = {(r.partition, r.offset): r for r in records}
    assert len(found) == len(records) == 20
    assert found[meta.partition, meta.offset][3:] == (5, b"k", {"n": 1}, [("h", b"x")])
    assert [found[2, places.base_offset + n].value for n in range(9)] == list(range(9))
    assert found[1, waited.offset].value is None


def test_arrays_come_out_as_they_went_in(cluster: LocalCluster, topic: str, face: Any) -> None:
    sent = np.arange(100_000, dtype="<i8")
    with face.Producer(where=cluster.dir, buffer_bytes="512KiB") as producer:  # less than the array
        places = producer.send_array(topic, sent, partition=1).result()
    assert sum(place.record_count for place in places) == len(sent)
    options: Any = {"where": cluster.dir, "value": serde.numpy(sent.dtype), "stop": "latest"}
    with face.Consumer(topic, **options) as consumer:
        got = np.concatenate([batch.array for batch in consumer.batches(copy=False)])
    assert np.array_equal(got, sent)


def test_records_batches_and_seeks_share_one_position(
    cluster: LocalCluster, topic: str, face: Any
) -> None:
    tp = TopicPartition(topic, 0)
    with face.Producer(where=cluster.dir) as producer:
        producer.send_many(topic, [b"%d" % n for n in range(10)], partition=0).result()
        producer.send_many(topic, [b"%d" % n for n in range(10, 20)], partition=0).result()
    with face.Consumer(topic, where=cluster.dir, partitions=[0], stop="latest") as consumer:
        records = iter(consumer)
        taken = [int(next(records).value) for _ in range(4)]
        assert consumer.position(tp) == 4
        parts = consumer.batches(max_records=3)
        taken += [int(r.value) for r in next(parts)]
        taken.append(int(next(iter(consumer)).value))
        taken += [int(r.value) for r in next(consumer.batches())]
        assert taken == list(range(10))
        batch = next(consumer.batches())
        assert consumer.lag() == {tp: 0}
        consumer.seek(batch)
        assert [int(r.value) for r in consumer] == list(range(10, 20))
        consumer.seek(topic, "+18")
        assert [int(r.value) for r in consumer] == [18, 19]
        assert list(consumer.batches()) == []


def test_a_timeout_is_an_empty_batch(cluster: LocalCluster, topic: str, face: Any) -> None:
    with face.Consumer(topic, where=cluster.dir) as consumer:
        batches = consumer.batches(timeout=0.01)
        assert len(next(batches)) == len(next(batches)) == 0
        with face.Producer(where=cluster.dir) as producer:
            producer.produce(topic, b"x")
        assert next(iter(consumer)).value == b"x"


def test_errors_have_the_same_types(cluster: LocalCluster, topic: str, face: Any) -> None:
    with face.Admin(cluster.dir) as admin:
        with pytest.raises(TopicExists):
            admin.create_topic(topic)
        with pytest.raises(UnknownTopic, match="did you mean"):
            admin.describe_topic(topic + "x")
        assert topic in admin.list_topics()
    with pytest.raises(InvalidConfig):
        face.Producer(where=cluster.dir, acks="some")
    with pytest.raises(TypeError):
        face.Consumer(topic, where=cluster.dir, colour="red")
    with pytest.raises(UnknownTopic):
        face.Consumer(topic + "x", where=cluster.dir)
    with pytest.raises(ClusterNotFound):
        face.Admin(cluster.dir / "nowhere")
    with face.Producer(where=cluster.dir) as producer:
        with pytest.raises(UnknownTopic, match=r"partitions 0\.\.2, not 7"):
            producer.send(topic, b"", partition=7)
        with pytest.raises(RecordTooLarge):
            producer.send(topic, bytes(2 << 20))
        with pytest.raises(SerializationError):
            producer.send(topic, 5)
        with pytest.raises(InvalidRequest, match="cannot be used"):
            producer.send_many("__offsets", [b""])
    with face.Consumer(topic, where=cluster.dir, start=99, partitions=[0]) as consumer:
        with pytest.raises(OffsetOutOfRange):
            next(iter(consumer))
        consumer.seek(topic, "earliest")
        with pytest.raises(InvalidRequest):
            next(consumer.batches(max_records=0))
    for call in (lambda: producer.send(topic, b""), producer.flush, consumer.lag):
        with pytest.raises(ClientClosed, match="make a new one"):
            call()


def test_topics_and_partitions_are_learnt_when_they_are_needed(
    cluster: LocalCluster, topic: str, face: Any
) -> None:
    fresh = topic + "-fresh"
    with face.Admin(cluster.dir) as admin, face.Producer(where=cluster.dir) as producer:
        for _ in range(2):  # who asks again gets the answer to his question
            with pytest.raises(UnknownTopic):
                producer.send(fresh, b"x")
        admin.create_topic(fresh)
        assert producer.produce(fresh, b"x").offset == 0
        admin.add_partitions(fresh, 2)
        assert producer.produce(fresh, b"x", partition=1).offset == 0


def test_sending_waits_for_room_and_then_says_so(
    cluster: LocalCluster, topic: str, face: Any
) -> None:
    options: Any = {"where": cluster.dir, "batch_bytes": 4096, "buffer_bytes": 65536}
    with face.Producer(max_block=0.05, **options) as producer:
        producer.produce(topic, b"warm")
        cluster.pause(0)
        try:
            with pytest.raises(BufferFull, match=r"no room within 0\.05 s"):
                producer.send_many(topic, [bytes(2000)] * 100)
            with pytest.raises(RequestTimedOut):
                producer.flush(0.01)
        finally:
            cluster.resume(0)
        producer.flush()
    with shmlog.Consumer(topic, where=cluster.dir, stop="latest") as consumer:
        assert 1 < sum(map(len, consumer.batches())) < 100  # what was queued stayed so


def test_who_waits_for_room_goes_on_when_there_is_some(
    cluster: LocalCluster, topic: str, face: Any
) -> None:
    options: Any = {"where": cluster.dir, "batch_bytes": 4096, "buffer_bytes": 65536}
    sent: list[int] = []
    with face.Producer(**options) as producer:
        producer.produce(topic, b"warm", partition=0)
        cluster.pause(0)

        def send() -> None:
            for number in range(100):
                producer.send(topic, b"%d" % number + bytes(2000), partition=0)
                sent.append(number)

        thread = threading.Thread(target=send)
        thread.start()
        thread.join(0.3)  # it cannot end: the budget has room for a third
        waited = thread.is_alive()
        cluster.resume(0)
        thread.join(30)
        assert waited
    with shmlog.Consumer(topic, where=cluster.dir, stop="latest") as consumer:
        values = [int(r.value.rstrip(b"\0")) for r in list(consumer)[1:]]
    assert values == sent == list(range(100))


def test_what_was_refused_is_raised_by_flush_and_close(
    cluster: LocalCluster, topic: str, face: Any
) -> None:
    with face.Admin(cluster.dir) as admin, face.Producer(where=cluster.dir) as producer:
        producer.produce(topic, b"warm")
        admin.delete_topic(topic)
        with pytest.raises((UnknownTopic, DeliveryError)):
            while True:
                producer.send(topic, b"lost", partition=0)
                producer.flush()
        admin.create_topic(topic, 3)
        asked = producer.send(topic, b"x")
        asked.exception()
        producer.flush()


def test_close_ends_who_waits(cluster: LocalCluster, topic: str, face: Any) -> None:
    caught: list[BaseException] = []
    consumer = face.Consumer(topic, where=cluster.dir)
    waits = threading.Event()

    def read() -> None:
        waits.set()
        try:
            next(iter(consumer))
        except ClientClosed as error:
            caught.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    waits.wait()
    thread.join(0.05)
    consumer.close()
    consumer.close()
    thread.join(10)
    assert len(caught) == 1


def test_close_delivers_what_was_queued(cluster: LocalCluster, topic: str, face: Any) -> None:
    producer = face.Producer(where=cluster.dir, linger=60)
    many = [producer.send(topic, b"%d" % n) for n in range(100)]
    producer.close()
    producer.close()
    assert all(delivery.done() for delivery in many)
    with shmlog.Consumer(topic, where=cluster.dir, stop="latest") as consumer:
        assert len(list(consumer)) == 100


def test_a_group_goes_on_where_it_stopped_and_says_what_it_gives(
    cluster: LocalCluster, topic: str, face: Any
) -> None:
    with face.Producer(where=cluster.dir) as producer:
        producer.send_many(topic, [b"%d" % n for n in range(30)], partition=0).result()
        producer.send_many(topic, [b"%d" % n for n in range(30)], partition=2).result()
    told: list[Any] = []
    options: Any = {
        "where": cluster.dir,
        "group": f"g-{topic}",
        "on_assign": lambda parts: told.append(("assign", list(parts))),
        "on_revoke": lambda parts, lost: told.append(("revoke", list(parts), lost)),
    }
    parts = [TopicPartition(topic, p) for p in range(3)]
    first = TopicPartition(topic, 0)
    with face.Consumer(topic, **options) as consumer:
        records = iter(consumer)
        seen = [next(records) for _ in range(40)]
        consumer.commit(seen[-1])
        assert consumer.committed()[TopicPartition(topic, seen[-1].partition)].offset == 10
        consumer.pause(first)
        consumer.resume(first)
    assert told == [("assign", parts), ("revoke", parts, False)]
    with face.Consumer(topic, stop="latest", **options) as consumer:
        again = [r for batch in consumer.batches() for r in batch]
    places = [(r.partition, r.offset) for r in seen[:39] + again]
    assert len(places) - len(set(places)) <= 1
    assert {p for p in places} == {(p, o) for p in (0, 2) for o in range(30)}


@pytest.mark.parametrize("how", ["ring", "socket", "group"])
def test_a_paced_replay_keeps_the_gaps(
    cluster: LocalCluster, topic: str, face: Any, how: str
) -> None:
    gap_ns, count = 5_000_000, 60
    with shmlog.Producer(where=cluster.dir) as producer:
        for partition in range(3):  # each a batch of its own; the records alternate
            numbers = range(partition, count, 3)
            times = [10**18 + number * gap_ns for number in numbers]
            values = [b"%d" % number for number in numbers]
            producer.send_many(topic, values, partition=partition, timestamps=times)
    options: Any = {"group": "g" + topic} if how == "group" else {"ring": how == "ring"}
    with face.Consumer(topic, where=cluster.dir, stop="latest", pace=2, **options) as consumer:
        began_ns = time.monotonic_ns()
        got = [(int(record.value), time.monotonic_ns() - began_ns) for record in consumer]
        late, latest = consumer.lateness()
    assert [number for number, _ in got] == list(range(count))
    first_ns = got[0][1]
    slack_ns = int(latest * 1e9) + 1_000_000  # the first one's own way to here
    assert all(at_ns - first_ns >= 2 * gap_ns * n - slack_ns for n, at_ns in got)
    assert 0 <= late <= latest
    with pytest.raises(InvalidConfig, match="pace"):
        face.Consumer(topic, where=cluster.dir, pace=0)
