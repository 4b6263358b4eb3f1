"""The accumulator against a model of the broker: order, sequences, epochs, fates."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmlog.client.accumulator import Accumulator, Batch, PartitionQueue
from shmlog.client.delivery import Delivery
from shmlog.clock import NS_PER_MS, NS_PER_S, ManualClock
from shmlog.errors import BrokerGone, Code, NotLeader, RequestTimedOut, ShmlogError, from_wire
from shmlog.ids import TopicPartition
from shmlog.records.batch import RecordBatch


class ModelBroker:
    """What a leader keeps of a producer: the last five batches of each partition; and its log."""

    def __init__(self) -> None:
        self.log: dict[TopicPartition, list[bytes | None]] = {}
        self.window: dict[TopicPartition, list[tuple[int, int, int, int]]] = {}

    def append(self, tp: TopicPartition, encoded: bytes) -> int | Code:
        batch = RecordBatch(encoded)
        header = batch.header
        first, last = header.base_sequence, header.base_sequence + header.record_count - 1
        log, window = self.log.setdefault(tp, []), self.window.setdefault(tp, [])
        epoch = header.producer_epoch
        known_epoch = window[-1][0] if window else None
        if known_epoch is None:
            if first:
                return Code.UNKNOWN_PRODUCER_ID
        elif epoch < known_epoch:
            return Code.INVALID_PRODUCER_EPOCH
        elif epoch > known_epoch:
            if first:
                return Code.OUT_OF_ORDER_SEQUENCE_NUMBER
            window.clear()
        else:
            for entry in window:
                if entry[:3] == (epoch, first, last):
                    return entry[3]
            if first != window[-1][2] + 1:
                return Code.OUT_OF_ORDER_SEQUENCE_NUMBER
        base = len(log)
        log += batch.values()
        window.append((epoch, first, last, base))
        del window[:-5]
        return base

    def forget(self, tp: TopicPartition) -> None:
        """Producer state expired, or the acked tail was lost."""
        self.window.pop(tp, None)


def make(idempotent: bool = True, **options: int) -> tuple[Accumulator, ManualClock]:
    clock = ManualClock()
    accumulator = Accumulator(clock, random.Random(7), idempotent=idempotent, **options)
    if idempotent:
        accumulator.producer_id, accumulator.epoch = 41, 0
    return accumulator, clock


def send(accumulator: Accumulator, queue: PartitionQueue, value: bytes) -> Delivery:
    return accumulator.append(queue, value, None, 1, None, len(value) + 24)


def names() -> Iterator[bytes]:
    number = 0
    while True:
        yield b"%d" % number
        number += 1


@settings(deadline=None, max_examples=300, derandomize=True)
@given(data=st.data())
def test_whatever_is_lost_or_refused_the_log_has_each_record_once_and_in_order(
    data: st.DataObject,
) -> None:
    accumulator, clock = make()
    broker = ModelBroker()
    queues = [accumulator.add_queue(TopicPartition("t", p), 400) for p in range(2)]
    sent: dict[TopicPartition, list[bytes]] = {q.tp: [] for q in queues}
    fresh, wire = names(), [[] for _ in queues]
    forgot = False

    def answer(batch: Batch, outcome: str) -> None:
        tp = batch.queue.tp
        if outcome == "lost before":
            accumulator.failed(batch, BrokerGone("gone"), False, clock.monotonic_ns())
            return
        if outcome == "busy":
            busy = from_wire(1000, "busy", retry_after_ms=3)
            accumulator.failed(batch, busy, True, clock.monotonic_ns())
            return
        assert batch.encoded is not None
        stored = broker.append(tp, batch.encoded)
        if outcome == "lost after":
            accumulator.failed(batch, RequestTimedOut("late"), False, clock.monotonic_ns())
        elif isinstance(stored, Code):
            accumulator.failed(batch, from_wire(stored, "no"), True, clock.monotonic_ns())
        else:
            accumulator.succeeded(batch, stored)

    def turn() -> None:
        for batch in accumulator.take_ready(clock.monotonic_ns()):
            wire[batch.queue.tp.partition].append(batch)
        for queue in queues:
            assert len(queue.unresolved) <= 5
            assert sum(b.on_wire for b in queue.unresolved) <= queue.slots
            in_order = [b.sequence for b in queue.unresolved]
            assert in_order == sorted(in_order)

    actions = st.sampled_from(["send", "send", "ok", "ok", "lost before", "lost after", "busy"])
    for action in data.draw(st.lists(st.tuples(actions, st.integers(0, 1)), max_size=60)):
        what, number = action
        if what == "send":
            for _ in range(data.draw(st.integers(1, 12))):
                value = next(fresh)
                send(accumulator, queues[number], value)
                sent[queues[number].tp].append(value)
        elif wire[number]:
            answer(wire[number].pop(0), what)
        settled = not queues[number].unresolved
        if settled and not forgot and data.draw(st.integers(0, 9)) == 0:
            forgot = True
            broker.forget(queues[number].tp)
        clock.advance(2 * NS_PER_MS)
        turn()
    for _ in range(200):
        clock.advance(NS_PER_S // 10)
        turn()
        for line in wire:
            while line:
                answer(line.pop(0), "ok")
    assert not accumulator.unfinished()
    assert accumulator.buffered == 0
    reported = {tp: set() for tp in sent}
    for batch in accumulator.failures:
        assert batch.uncertain
        assert batch.error is not None
        assert batch.error.fate == "fate unknown"
        reported[batch.queue.tp].update(batch.values or ())
    assert not accumulator.failures or forgot
    for tp, values in sent.items():
        log = broker.log.get(tp, [])
        assert len(set(log)) == len(log)
        surely = [v for v in values if v not in reported[tp]]
        assert [v for v in log if v not in reported[tp]] == surely
        assert log == sorted(log, key=lambda v: int(v or 0))


def test_batches_grow_while_the_five_slots_are_taken() -> None:
    accumulator, clock = make()
    queue = accumulator.add_queue(TopicPartition("t", 0), 1 << 18)
    for _ in range(5):
        send(accumulator, queue, b"x")
        assert len(accumulator.take_ready(clock.monotonic_ns())) == 1
    for _ in range(100):
        send(accumulator, queue, b"x")
        assert accumulator.take_ready(clock.monotonic_ns()) == []
    first = queue.unresolved[0]
    accumulator.succeeded(first, 0)
    assert [b.count for b in accumulator.take_ready(clock.monotonic_ns())] == [100]
    assert queue.sequence == 105


def test_linger_holds_the_open_batch_back_and_a_full_one_not() -> None:
    accumulator, clock = make(linger_ns=5 * NS_PER_MS)
    queue = accumulator.add_queue(TopicPartition("t", 0), 400)
    send(accumulator, queue, b"x" * 20)
    assert accumulator.take_ready(clock.monotonic_ns()) == []
    assert accumulator.next_deadline_ns(clock.monotonic_ns()) == 5 * NS_PER_MS
    for _ in range(10):
        send(accumulator, queue, b"x" * 20)
    assert len(accumulator.take_ready(clock.monotonic_ns())) == 2  # the third is open
    clock.advance(5 * NS_PER_MS)
    assert len(accumulator.take_ready(clock.monotonic_ns())) == 1


def test_a_retry_sends_everything_unresolved_again_in_order_and_waits_for_the_wire() -> None:
    accumulator, clock = make()
    queue = accumulator.add_queue(TopicPartition("t", 0), 1 << 18)
    batches = []
    for number in range(3):
        send(accumulator, queue, b"%d" % number)
        batches += accumulator.take_ready(clock.monotonic_ns())
    accumulator.failed(batches[0], NotLeader("moved"), True, clock.monotonic_ns())
    clock.advance(NS_PER_S)
    assert accumulator.take_ready(clock.monotonic_ns()) == []  # two are still on the wire
    refused = from_wire(45, "gap")
    accumulator.failed(batches[1], refused, True, clock.monotonic_ns())
    accumulator.failed(batches[2], refused, True, clock.monotonic_ns())
    assert not accumulator.bump_pending  # only the oldest one's 45 counts
    clock.advance(NS_PER_S)
    assert accumulator.take_ready(clock.monotonic_ns()) == batches
    assert [b.sequence for b in batches] == [0, 1, 2]


def test_a_new_epoch_waits_for_the_fate_of_every_partition() -> None:
    accumulator, clock = make()
    one, two = (accumulator.add_queue(TopicPartition("t", p), 1 << 18) for p in range(2))
    send(accumulator, one, b"a")
    send(accumulator, two, b"b")
    first, second = accumulator.take_ready(clock.monotonic_ns())
    accumulator.failed(first, from_wire(59, "unknown"), True, clock.monotonic_ns())
    send(accumulator, one, b"c")
    clock.advance(NS_PER_S)
    assert accumulator.take_ready(clock.monotonic_ns()) == []
    assert accumulator.epoch == 0
    accumulator.succeeded(second, 0)
    again = accumulator.take_ready(clock.monotonic_ns())
    assert accumulator.epoch == 1
    assert [b.sequence for b in again] == [0, 1]
    assert again[0] is first
    assert RecordBatch(bytes(first.encoded or b"")).header.producer_epoch == 1


def test_a_batch_of_unknown_fate_is_reported_and_not_sent_under_the_new_epoch() -> None:
    accumulator, clock = make()
    queue = accumulator.add_queue(TopicPartition("t", 0), 1 << 18)
    delivery = send(accumulator, queue, b"a")
    (batch,) = accumulator.take_ready(clock.monotonic_ns())
    accumulator.failed(batch, BrokerGone("gone"), False, clock.monotonic_ns())
    clock.advance(NS_PER_S)
    assert accumulator.take_ready(clock.monotonic_ns()) == [batch]
    accumulator.failed(batch, from_wire(59, "unknown"), True, clock.monotonic_ns())
    assert accumulator.take_ready(clock.monotonic_ns()) == []
    assert accumulator.epoch == 1
    with pytest.raises(ShmlogError) as caught:
        delivery.result()
    assert caught.value.fate == "fate unknown"
    assert accumulator.failures == [batch]


@pytest.mark.parametrize(("sent", "fate"), [(False, "not sent"), (True, "fate unknown")])
def test_a_record_without_an_ack_in_time_fails_and_says_what_is_known(
    sent: bool, fate: str
) -> None:
    accumulator, clock = make(delivery_timeout_ns=NS_PER_S)
    queue = accumulator.add_queue(TopicPartition("t", 0), 1 << 18)
    queue.has_leader = sent
    delivery = send(accumulator, queue, b"a")
    for batch in accumulator.take_ready(clock.monotonic_ns()):
        accumulator.failed(batch, BrokerGone("gone"), False, clock.monotonic_ns())
    clock.advance(NS_PER_S)
    queue.has_leader = False
    assert accumulator.take_ready(clock.monotonic_ns()) == []
    error = delivery.exception(0)
    assert error is not None
    assert (error.code, error.fate) == (Code.DELIVERY_TIMEOUT, fate)
    assert accumulator.bump_pending is False
    assert accumulator.epoch == (1 if sent else 0)


def test_a_fenced_producer_fails_everything_for_good() -> None:
    accumulator, clock = make()
    queue = accumulator.add_queue(TopicPartition("t", 0), 1 << 18)
    first = send(accumulator, queue, b"a")
    (batch,) = accumulator.take_ready(clock.monotonic_ns())
    second = send(accumulator, queue, b"b")
    accumulator.failed(batch, from_wire(47, "fenced"), True, clock.monotonic_ns())
    assert {first.exception(0).code, second.exception(0).code} == {47}
    assert accumulator.fatal is not None
    assert accumulator.buffered == 0


def test_busy_halves_the_slots_and_each_success_gives_one_back() -> None:
    accumulator, clock = make()
    queue = accumulator.add_queue(TopicPartition("t", 0), 1 << 18)
    batches = []
    for _ in range(4):
        send(accumulator, queue, b"x")
        batches += accumulator.take_ready(clock.monotonic_ns())
    for batch in batches:
        busy = from_wire(1000, "busy", retry_after_ms=50)
        accumulator.failed(batch, busy, True, clock.monotonic_ns())
    assert queue.slots == 2
    clock.advance(49 * NS_PER_MS)
    assert accumulator.take_ready(clock.monotonic_ns()) == []
    clock.advance(NS_PER_MS)
    assert accumulator.take_ready(clock.monotonic_ns()) == batches[:2]
    for batch in batches[:2]:
        accumulator.succeeded(batch, 0)
    assert queue.slots == 4
    assert accumulator.take_ready(clock.monotonic_ns()) == batches[2:]


def test_keyless_records_go_to_the_partition_with_the_fewest_bytes_queued() -> None:
    accumulator, _ = make()
    queues = [accumulator.add_queue(TopicPartition("t", p), 1 << 18) for p in range(3)]
    send(accumulator, queues[0], b"x" * 100)
    send(accumulator, queues[1], b"x" * 10)
    assert accumulator.pick(queues) is queues[2]
    queues[2].has_leader = False
    assert accumulator.pick(queues) is queues[1]


def test_an_epoch_that_is_used_up_asks_for_a_new_producer_id() -> None:
    accumulator, clock = make()
    accumulator.epoch = 32767
    queue = accumulator.add_queue(TopicPartition("t", 0), 1 << 18)
    send(accumulator, queue, b"a")
    (batch,) = accumulator.take_ready(clock.monotonic_ns())
    accumulator.failed(batch, from_wire(59, "unknown"), True, clock.monotonic_ns())
    assert accumulator.take_ready(clock.monotonic_ns()) == []
    assert accumulator.producer_id == -1
    accumulator.producer_id, accumulator.epoch = 42, 0
    assert accumulator.take_ready(clock.monotonic_ns()) == [batch]
    assert RecordBatch(bytes(batch.encoded or b"")).header.producer_id == 42


def test_what_comes_back_from_a_topic_that_is_gone_fails_for_good() -> None:
    accumulator, clock = make()
    queue, other = (accumulator.add_queue(TopicPartition(t, 0), 10_000) for t in ("t", "u"))
    first = accumulator.append(queue, b"1", None, 1, None, 30)
    (sent,) = accumulator.take_ready(clock.monotonic_ns())
    later = accumulator.append(queue, b"2", None, 1, None, 30)
    accumulator.topic_gone("t", from_wire(3, "no topic t"))
    assert later.done()
    assert not first.done()
    accumulator.failed(sent, from_wire(6, "not here"), True, clock.monotonic_ns())
    assert first.done()
    late = accumulator.append(queue, b"3", None, 1, None, 30)  # `send` had its hands on the queue
    kept = accumulator.append(other, b"4", None, 1, None, 30)
    assert [b.queue for b in accumulator.take_ready(clock.monotonic_ns())] == [other]
    assert late.done()
    assert not kept.done()
    assert accumulator.buffered == kept[0].size


def test_failures_whose_owners_have_asked_are_not_kept() -> None:
    accumulator, clock = make()
    queue = accumulator.add_queue(TopicPartition("t", 0), 10_000)
    for number in range(1000):
        delivery = accumulator.append(queue, b"v", None, 1, None, 30)
        for batch in accumulator.take_ready(clock.monotonic_ns()):
            accumulator.failed(batch, from_wire(10, "too large"), True, clock.monotonic_ns())
        assert number % 10 == 0 or delivery.exception() is not None
    assert 100 <= len(accumulator.failures) < 400  # those that nobody asked about are all there


@pytest.mark.parametrize("code", [6, 7])
def test_a_batch_that_may_be_in_the_log_is_of_unknown_fate(code: int) -> None:
    accumulator, clock = make()
    queue = accumulator.add_queue(TopicPartition("t", 0), 10_000)
    delivery = accumulator.append(queue, b"v", None, 1, None, 30)
    (batch,) = accumulator.take_ready(clock.monotonic_ns())
    accumulator.failed(batch, from_wire(code, "perhaps"), True, clock.monotonic_ns())
    assert not delivery.done()
    clock.advance(2 * NS_PER_S)
    (again,) = accumulator.take_ready(clock.monotonic_ns())
    accumulator.failed(again, from_wire(10, "too large"), True, clock.monotonic_ns())
    error = delivery.exception()
    assert error is not None
    assert error.facts["fate"] == "fate unknown"
