"""Producer, consumer and admin against a real broker process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shmlog
from shmlog import serde
from shmlog.client import forks, session
from shmlog.client.batch import Batch
from shmlog.client.engine import Engine
from shmlog.client.fetches import Fetches
from shmlog.client.ring_tail import RingTail
from shmlog.directory import read_brokers
from shmlog.errors import (
    BufferFull,
    ClientClosed,
    ClusterNotFound,
    DeliveryError,
    InvalidConfig,
    OffsetOutOfRange,
    RecordTooLarge,
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


@pytest.fixture
def where(cluster: LocalCluster) -> Path:
    return cluster.dir


@pytest.fixture
def topic(where: Path, request: pytest.FixtureRequest) -> str:
    """A topic of this test's own, with three partitions."""
    name = "t" + str(abs(hash(request.node.nodeid)))
    with shmlog.Admin(where) as admin:
        admin.create_topic(name, 3)
    return name


def read(where: Path, topic: str, **options: object) -> list[tuple[object, ...]]:
    with shmlog.Consumer(topic, where=where, stop="latest", **options) as consumer:
        return [tuple(record) for record in consumer]


def test_both_roads_give_the_same_records(where: Path, topic: str) -> None:
    rng = np.random.default_rng(1)
    with shmlog.Producer(where=where, compression="gzip") as packed:
        packed.send_many(topic, [b"a" * 1000] * 50, partition=1)
    with shmlog.Producer(where=where) as producer:
        for number in range(500):
            producer.send(
                topic,
                None if number % 7 == 0 else rng.bytes(number % 40),
                key=None if number % 3 else b"%d" % number,
                headers=[("n", b"%d" % number), ("none", None)] if number % 5 == 0 else None,
                timestamp=1_000_000_000 * number,
            )
        producer.send_many(topic, [b"x", None, b""], keys=[b"", None, b"k"], timestamps=[3, 2, 1])
        producer.send_array(topic, np.arange(1000, dtype="<i8"), partition=0)
    by_ring, by_fetch = read(where, topic), read(where, topic, ring=False)
    assert len(by_ring) == 1553
    assert sorted(by_ring, key=lambda r: r[:3]) == sorted(by_fetch, key=lambda r: r[:3])
    for partition in range(3):
        offsets = [r[2] for r in by_ring if r[1] == partition]
        assert offsets == list(range(len(offsets)))


def test_deliveries_name_the_offsets_under_which_records_are_found(where: Path, topic: str) -> None:
    with shmlog.Producer(where=where) as producer:
        one = producer.send(topic, b"one", key=b"k", timestamp=5)
        many = producer.send_many(topic, [b"%d" % n for n in range(9)], partition=2)
        meta = one.result()
        (places,) = many.result()
        assert one.done()
        assert many.done()
    found = {(r[1], r[2]): r[5] for r in read(where, topic)}
    assert found[meta.partition, meta.offset] == b"one"
    assert meta.timestamp == 5
    assert [found[2, places.base_offset + n] for n in range(9)] == [b"%d" % n for n in range(9)]


def test_equal_keys_go_to_one_partition_by_either_call_and_keep_their_order(
    where: Path, topic: str
) -> None:
    keys = [b"%d" % (n % 10) for n in range(200)]
    values = [b"%d" % n for n in range(200)]
    with shmlog.Producer(where=where) as producer:
        producer.send_many(topic, values[:100], keys=keys[:100])
        for key, value in zip(keys[100:], values[100:], strict=True):
            producer.send(topic, value, key=key)
    records = read(where, topic)
    for key in set(keys):
        mine = [r for r in records if r[4] == key]
        assert len({r[1] for r in mine}) == 1
        assert [int(r[5]) for r in mine] == [n for n in range(200) if keys[n] == key]


@pytest.fixture
def roads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each road brought something."""
    seen: Counter[str] = Counter()
    by_ring, by_fetch = RingTail.poll, Fetches._take_frame

    def poll(tail: RingTail, offset: int, *, copy: bool = True) -> object:
        pieces = by_ring(tail, offset, copy=copy)
        seen["ring"] += bool(pieces)
        return pieces

    def take_frame(fetches: Fetches, *arguments: object) -> None:
        seen["fetch"] += 1
        by_fetch(fetches, *arguments)

    monkeypatch.setattr(RingTail, "poll", poll)
    monkeypatch.setattr(Fetches, "_take_frame", take_frame)
    return seen


def test_a_slow_reader_changes_between_ring_and_fetch_without_gap_or_repeat(
    where: Path, roads: Counter[str]
) -> None:
    with shmlog.Admin(where) as admin:
        admin.create_topic(
            "lapped", 1, configs={"ring_bytes": "256KiB", "max_message_bytes": "64KiB"}
        )
    expected = 0
    with (
        shmlog.Producer(where=where) as producer,
        shmlog.Consumer("lapped", where=where) as consumer,
    ):
        batches = consumer.batches()
        for round_number in range(200):
            if min(roads["ring"], roads["fetch"]) >= 5:  # the ring is made by and by
                break
            # Twice the ring, then a little; so the reader is lapped, catches up, is lapped ...
            count = 4000 if round_number % 2 else 50
            producer.send_many("lapped", [b"%0100d" % n for n in range(expected, expected + count)])
            producer.flush()
            end = expected + count
            while expected < end:
                batch = next(batches)
                assert batch.base_offset == expected
                assert [int(v) for v in batch.values] == list(range(expected, batch.end_offset))
                expected = batch.end_offset
    assert min(roads["ring"], roads["fetch"]) >= 5


def test_views_of_the_ring_say_when_they_are_overwritten(where: Path, roads: Counter[str]) -> None:
    with shmlog.Admin(where) as admin:
        admin.create_topic(
            "views", 1, configs={"ring_bytes": "256KiB", "max_message_bytes": "64KiB"}
        )
    with shmlog.Producer(where=where) as producer:
        with shmlog.Consumer("views", where=where, value=serde.numpy("<u8")) as consumer:
            batches = consumer.batches(copy=False)
            while not roads["ring"]:  # the ring is made by and by
                producer.send_array("views", np.arange(100, dtype="<u8"))
                view = next(batches)
            array = view.array
            assert array.tolist() == list(range(100))
            assert not array.flags.writeable
            assert view.valid()
            producer.send_array("views", np.zeros(100_000, dtype="<u8"))
            producer.flush()
            assert not view.valid()
            consumer.seek(view)
            again = next(batches)
            assert again.array.tolist() == list(range(100))
            assert again.valid()
        del array
        assert len(view) == 100


def test_numbers_travel_as_arrays(where: Path, topic: str) -> None:
    tick = np.dtype([("ts", "<i8"), ("px", "<f8"), ("qty", "<i4")])
    sent = np.zeros(50_000, tick)
    sent["ts"] = np.arange(len(sent))
    sent["px"] = 1.5
    with shmlog.Producer(where=where) as producer:
        deliveries = producer.send_array(topic, sent, partition=1)
        sent["px"] = 0  # the producer has its own copy
        assert sum(part.record_count for part in deliveries.result()) == len(sent)
    with shmlog.Consumer(
        topic, where=where, partitions=[1], stop="latest", value=serde.numpy(tick)
    ) as consumer:
        arrays = [batch.array for batch in consumer.batches()]
    received = np.concatenate(arrays)
    assert (received["ts"] == np.arange(len(sent))).all()
    assert received["px"].sum() == 1.5 * len(sent)


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        ("earliest", "latest", range(10)),
        ("latest", "latest", range(0)),
        (3, None, range(3, 10)),
        ("+2", "-3", range(2, 7)),
        ("-4", "latest", range(6, 10)),
        ("2:5", None, range(2, 5)),
        (":latest", None, range(10)),
        ("@1970-01-01T00:00:04Z", "latest", range(4, 10)),
        ("@1970-01-01T00:01:00Z", "latest", range(0)),
    ],
)
def test_reading_begins_and_ends_where_asked(
    where: Path, start: object, stop: str | None, expected: range
) -> None:
    with shmlog.connect(where) as log:
        if "places" not in log.admin.list_topics():
            log.admin.create_topic("places")
            for number in range(10):
                log.produce("places", b"%d" % number, timestamp=number * 10**9)
        stop = stop if isinstance(start, str) and ":" in start[:9] else stop or "latest"
        got = [record.offset for record in log.consume("places", start=start, stop=stop)]
    assert got == list(expected)


def test_an_offset_out_of_range_is_an_error_unless_a_reset_was_asked_for(
    where: Path, topic: str
) -> None:
    reported: list[shmlog.ShmlogError] = []
    with shmlog.connect(where) as log:
        for number in range(5):
            log.produce(topic, b"%d" % number, partition=0)
        assert log.admin.delete_records([(topic, 0, 3)]) == {TopicPartition(topic, 0): 3}
        with log.consumer(topic, partitions=[0], start=1) as consumer:
            with pytest.raises(OffsetOutOfRange):
                next(iter(consumer))
            consumer.seek(topic, "earliest")
            assert next(iter(consumer)).offset == 3
        with log.consumer(
            topic, partitions=[0], start=1, out_of_range="reset", on_error=reported.append
        ) as consumer:
            assert next(iter(consumer)).offset == 3
    assert [(e.offset, e.new_offset) for e in reported] == [(1, 3)]


def test_records_batches_and_seeks_share_one_position(where: Path, topic: str) -> None:
    tp = TopicPartition(topic, 0)
    with shmlog.Producer(where=where) as producer:
        producer.send_many(topic, [b"%d" % n for n in range(10)], partition=0)
    with shmlog.Consumer(topic, where=where, partitions=[0], stop="latest") as consumer:
        records = iter(consumer)
        assert [next(records).offset for _ in range(3)] == [0, 1, 2]
        assert consumer.position(tp) == 3
        batch = next(consumer.batches(max_records=4))
        assert (batch.base_offset, batch.end_offset, len(batch)) == (3, 7, 4)
        assert consumer.position(tp) == 7
        assert next(records).offset == 7
        assert consumer.lag() == {tp: 2}
        consumer.seek(batch)
        assert next(records).offset == 3
        consumer.seek(tp, 9)
        assert [r.offset for r in records] == [9]
        assert consumer.lag() == {tp: 0}


def test_a_batch_has_columns_and_records(where: Path, topic: str) -> None:
    with shmlog.Producer(where=where) as producer:
        producer.send(topic, b'{"a":1}', key=b"k", partition=0, timestamp=7, headers=[("h", b"1")])
        producer.send(topic, None, partition=0, timestamp=8)
        producer.flush()
    with shmlog.Consumer(
        topic, where=where, partitions=[0], stop="latest", key=serde.text, value=serde.json
    ) as consumer:
        values, keys, times, headers = [], [], [], []
        for batch in consumer.batches():
            assert isinstance(batch, Batch)
            values += batch.values
            keys += batch.keys
            times += batch.timestamps.tolist()
            headers += [batch.headers(i) for i in range(len(batch))]
            assert batch[-1].offset == batch.end_offset - 1
            assert batch.leader_epoch >= 0
            assert batch.producer_id >= 0
    assert values == [{"a": 1}, None]
    assert keys == ["k", None]
    assert times == [7, 8]
    assert headers == [[("h", b"1")], []]


def test_a_timeout_is_an_empty_batch(where: Path, topic: str) -> None:
    with shmlog.Consumer(topic, where=where) as consumer:
        batch = next(consumer.batches(timeout="20ms"))
        assert len(batch) == 0
        assert list(batch) == []
        assert batch.valid()


def test_a_reader_that_sleeps_at_the_end_is_woken_by_a_record(where: Path, topic: str) -> None:
    got: list[bytes] = []
    with shmlog.Consumer(topic, where=where) as consumer, shmlog.Producer(where=where) as producer:

        def reader() -> None:
            for record in consumer:
                got.append(record.value)
                if len(got) == 20:
                    return

        thread = threading.Thread(target=reader, daemon=True)
        thread.start()
        for number in range(20):
            producer.produce(topic, b"%d" % number, partition=number % 3)
        thread.join(10)
        assert not thread.is_alive()
    assert sorted(map(int, got)) == list(range(20))


def test_close_from_another_thread_ends_a_waiting_reader(where: Path, topic: str) -> None:
    errors: list[Exception] = []
    consumer = shmlog.Consumer(topic, where=where)

    def reader() -> None:
        try:
            next(iter(consumer))
        except ClientClosed as error:
            errors.append(error)

    thread = threading.Thread(target=reader, daemon=True)
    thread.start()
    while not consumer._engine.session.in_flight:
        pass
    consumer.close()
    thread.join(10)
    assert len(errors) == 1


def test_patterns_name_several_topics(where: Path) -> None:
    with shmlog.connect(where) as log:
        for name in ("metrics.cpu", "metrics.ram", "other"):
            log.admin.create_topic(name)
            log.produce(name, name.encode())
        got = {record.value for record in log.consume("metrics.*", stop="latest")}
        assert got == {b"metrics.cpu", b"metrics.ram"}
        with pytest.raises(UnknownTopic):
            log.consumer("nothing.*")


def test_unknown_names_are_answered_with_the_nearest(where: Path, topic: str) -> None:
    wrong = topic[:-1] + "x"
    with shmlog.connect(where) as log:
        for call in (
            lambda: log.produce(wrong, b""),
            lambda: log.consumer(wrong),
            lambda: log.admin.describe_topic(wrong),
        ):
            with pytest.raises(UnknownTopic, match="did you mean"):
                call()
        with pytest.raises(UnknownTopic, match=r"partitions 0\.\.2"):
            log.produce(topic, b"", partition=3)
        with pytest.raises(TopicExists):
            log.admin.create_topic(topic)
        with pytest.raises(InvalidConfig):
            log.admin.alter_topic(topic, set={"ring.mode": "0600"})


def test_a_deleted_topic_ends_its_readers_and_writers(where: Path) -> None:
    with shmlog.connect(where) as log:
        log.admin.create_topic("brief")
        with log.producer() as producer, log.consumer("brief") as consumer:
            producer.produce("brief", b"x")
            assert next(iter(consumer)).value == b"x"
            log.admin.delete_topic("brief")
            with pytest.raises(UnknownTopic):
                next(iter(consumer))
            with pytest.raises(UnknownTopic):
                producer.produce("brief", b"y")


def test_a_record_that_can_never_fit_fails_in_send(where: Path, topic: str) -> None:
    with shmlog.Producer(where=where) as producer:
        with pytest.raises(RecordTooLarge):
            producer.send(topic, bytes(1 << 20))
        with pytest.raises(RecordTooLarge):
            producer.send_many(topic, [bytes(1 << 20)])
        assert producer.produce(topic, bytes((1 << 20) - 128)).offset == 0
        with pytest.raises(SerializationError):
            producer.send(topic, 5)


def test_send_waits_for_room_and_then_says_so(cluster: LocalCluster, topic: str) -> None:
    pid = read_brokers(cluster.dir)[0].pid
    with shmlog.Producer(
        where=cluster.dir, batch_bytes=4096, buffer_bytes=65536, max_block=0.05
    ) as producer:
        producer.produce(topic, b"warm")
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(BufferFull) as caught:
                producer.send_many(topic, [bytes(100)] * 1000)
            assert caught.value.buffered <= 65536
        finally:
            os.kill(pid, signal.SIGCONT)
        producer.flush()
        assert producer._accumulator.buffered == 0


def test_acks_0_promises_nothing_but_arrives(where: Path, topic: str) -> None:
    with shmlog.Producer(where=where, acks=0) as producer:
        deliveries = [producer.send(topic, b"%d" % n, partition=0) for n in range(10)]
        producer.flush()
        assert {d.result().offset for d in deliveries} == {-1}
        producer.flush()
    assert [r[5] for r in read(where, topic)] == [b"%d" % n for n in range(10)]


def test_a_record_refused_by_the_broker_is_listed_by_flush(where: Path, topic: str) -> None:
    far = 2**62
    with shmlog.Producer(where=where) as producer:
        bad = producer.send(topic, b"bad", key=b"k", partition=0, timestamp=far)
        with pytest.raises(DeliveryError) as caught:
            producer.flush()
        ((delivery, cause),) = caught.value.failures
        assert delivery == bad
        assert (delivery.value, delivery.key) == (b"bad", b"k")
        assert cause.code == 32
        assert producer.produce(topic, b"good", partition=0).offset == 0
        producer.flush()


def test_a_forgotten_producer_warns_and_a_closed_one_refuses(where: Path, topic: str) -> None:
    producer = shmlog.Producer(where=where, linger=60)
    producer.send(topic, b"x")
    with pytest.warns(ResourceWarning, match="1 records"):
        del producer
    producer = shmlog.Producer(where=where)
    producer.close()
    producer.close()
    with pytest.raises(ClientClosed):
        producer.send(topic, b"x")
    with pytest.raises(ClientClosed):
        producer.flush()


class Interrupted(BaseException):
    """What the handler of a signal raises, as Ctrl-C does."""


def test_a_send_that_a_signal_interrupts_loses_doubles_and_reorders_nothing(where: Path) -> None:
    """While nothing is in flight the caller sends by itself, and can be stopped anywhere in it."""
    armed = False

    def interrupt(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupted

    with shmlog.Admin(where) as admin:
        admin.create_topic("interrupted", 1)
    promised, stopped = [], []
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with shmlog.Producer(where=where) as producer:
            producer.produce("interrupted", b"first")
            delay = 0.0
            for number in range(400):
                value = b"%d" % number
                delay = (delay + 0.0000137) % 0.0002
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, delay + 0.000001)
                    delivery = producer.send("interrupted", value)
                    armed = False
                    promised.append(value)
                    delivery.result(30)
                except Interrupted:
                    stopped.append(value)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    with shmlog.Consumer("interrupted", where=where, stop="latest") as consumer:
        found = [record.value for record in consumer][1:]
    assert found == sorted(set(found), key=int)
    assert set(promised) <= set(found) <= {*promised, *stopped}


def test_a_client_copied_by_fork_says_to_make_a_new_one(where: Path, topic: str) -> None:
    with shmlog.connect(where) as log:
        log.produce(topic, b"x")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            status = 1
            try:
                for call in (lambda: log.produce(topic, b"y"), log.admin.list_topics):
                    try:
                        call()
                    except ClientClosed as error:
                        status = 0 if "create it in the child" in str(error) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        log.produce(topic, b"z")


def test_where_nobody_lives_the_error_comes_at_once(tmp_path: Path) -> None:
    for make in (shmlog.Admin, lambda where: shmlog.Producer(where=where), shmlog.connect):
        with pytest.raises(ClusterNotFound):
            make(tmp_path)


def test_kill_9_under_load_loses_doubles_and_reorders_nothing() -> None:
    with LocalCluster() as cluster:
        with shmlog.Admin(cluster.dir) as admin:
            admin.create_topic("k", 2)
        live: dict[int, list[int]] = {0: [], 1: []}
        count, kills = 40_000, 3
        consumer = shmlog.Consumer("k", where=cluster.dir)

        def read_along() -> None:
            for batch in consumer.batches():
                live[batch.partition] += map(int, batch.values)
                if len(live[0]) + len(live[1]) >= count:
                    return

        thread = threading.Thread(target=read_along, daemon=True)
        thread.start()
        with shmlog.Producer(where=cluster.dir, batch_bytes=4096) as producer:
            for number in range(count):
                producer.send("k", b"%d" % number, partition=number % 2)
                if number % (count // (kills + 1)) == count // (2 * kills):
                    cluster.wait_ready()
                    cluster.kill(0)
            producer.flush(60)
            assert producer._accumulator.epoch == 0
        thread.join(30)
        assert not thread.is_alive()
        consumer.close()
        stored: dict[int, list[int]] = {0: [], 1: []}
        for record in read(cluster.dir, "k", ring=False):
            stored[record[1]].append(int(record[5]))
        for partition in (0, 1):
            assert stored[partition] == list(range(partition, count, 2))
            assert live[partition] == stored[partition]


def test_a_running_producer_and_consumer_learn_of_partitions_that_were_added(
    where: Path, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "METADATA_AGE_NS", 50_000_000)
    with (
        shmlog.connect(where) as client,
        shmlog.Producer(where=where) as producer,
        shmlog.Consumer(topic, where=where) as consumer,
    ):
        before = len(consumer.assignment)
        producer.send(topic, b"first", partition=0).result()
        records = iter(consumer)
        assert next(records).value == b"first"
        client.admin.add_partitions(topic, before + 2)
        assert producer.send(topic, b"second", partition=before + 1).result().offset == 0
        assert next(records).value == b"second"
        assert len(consumer.assignment) == before + 2
        with pytest.raises(UnknownTopic, match="partitions 0"):
            producer.send(topic, b"x", partition=before + 2)


def test_deleting_a_topic_under_load_fails_its_records_soon(where: Path) -> None:
    with shmlog.connect(where) as client:
        for attempt in range(3):
            name = f"gone-{attempt}"
            client.admin.create_topic(name, partition_count=4)
            producer = shmlog.Producer(where=where)
            for number in range(400):
                if number == 200:
                    client.admin.delete_topic(name)
                try:
                    producer.send(name, b"x", partition=number % 4)
                except UnknownTopic:
                    break
            with contextlib.suppress(DeliveryError):
                producer.flush(timeout=20)
            with contextlib.suppress(DeliveryError):
                producer.close()


def test_close_from_another_thread_closes_though_the_holder_does_not_pump(where: Path) -> None:
    engine = Engine(where)
    transport = engine._transport
    holds, lets_go = threading.Event(), threading.Event()

    def hold() -> None:
        with engine.lock:
            holds.set()
            lets_go.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    holds.wait(10)
    closer = threading.Thread(target=engine.close)
    closer.start()
    while engine._closing is None:
        pass
    lets_go.set()
    holder.join()
    closer.join()
    assert engine._transport is None
    assert transport is not None
    transport.wake()  # whoever was about to do so still may


def test_a_forked_engine_leaves_the_parent_s_sockets_alone(where: Path) -> None:
    engine = Engine(where)
    transport = engine._transport
    engine.abandon()
    assert transport in forks._left_behind
    forks._left_behind.remove(transport)
    assert transport is not None
    transport.close()


@pytest.mark.parametrize("policy", ["error", "reset"])
def test_a_topic_made_again_is_read_from_its_start(where: Path, policy: str) -> None:
    name = f"again-{policy}"
    told: list[shmlog.ShmlogError] = []
    with shmlog.connect(where) as log:
        admin = log.admin
        admin.create_topic(name, 2)
        log.produce(name, b"old", partition=0)
        with log.consumer(name, out_of_range=policy, on_error=told.append) as consumer:
            records = iter(consumer)
            assert next(records).value == b"old"
            admin.delete_topic(name)
            admin.create_topic(name, 2)
            for value in (b"new", b"newer"):
                with shmlog.connect(where) as other:  # it knows the new one only
                    other.produce(name, value, partition=0)
            if policy == "error":
                with pytest.raises(UnknownTopic, match="made again"):
                    next(records)
                records = iter(consumer)
            assert [next(records).value for _ in range(2)] == [b"new", b"newer"]
            assert len(told) == (policy == "reset")
