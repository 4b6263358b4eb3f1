"""Idempotence: the window table, undo, expiry."""

from __future__ import annotations

import msgspec
import pytest
from log_support import batch

from shmlog.errors import Code, OutOfSequence, ProducerFenced
from shmlog.log.producers import Duplicate, ProducerStates, Snapshot
from shmlog.records.header import BatchHeader
from shmlog.records.layout import SEQUENCE_END


def header(sequence: int, count: int = 10, *, epoch: int = 0, producer_id: int = 7) -> BatchHeader:
    return batch(0, count, producer_id=producer_id, producer_epoch=epoch, sequence=sequence)[0]


def seven(batches: int = 3) -> ProducerStates:
    """Producer 7 at epoch 1 with batches of ten records, at offsets 100, 110, ..."""
    states = ProducerStates()
    for number in range(batches):
        one = header(10 * number, epoch=1)
        assert states.check(one) is None
        states.apply(one, 100 + 10 * number, 5000 + number, now_ns=number)
    return states


@pytest.mark.parametrize(
    ("sequence", "count", "epoch", "answer"),
    [
        (30, 10, 1, None),
        (20, 10, 1, Duplicate(120, 5002)),
        (0, 10, 1, Duplicate(100, 5000)),
        (0, 10, 2, None),
        (1, 10, 2, Code.OUT_OF_ORDER_SEQUENCE_NUMBER),
        (30, 10, 0, Code.INVALID_PRODUCER_EPOCH),
        (0, 10, 0, Code.INVALID_PRODUCER_EPOCH),
        (31, 10, 1, Code.OUT_OF_ORDER_SEQUENCE_NUMBER),
        (29, 10, 1, Code.OUT_OF_ORDER_SEQUENCE_NUMBER),
        (20, 9, 1, Code.OUT_OF_ORDER_SEQUENCE_NUMBER),
        (20, 11, 1, Code.OUT_OF_ORDER_SEQUENCE_NUMBER),
        (21, 9, 1, Code.OUT_OF_ORDER_SEQUENCE_NUMBER),
    ],
)
def test_the_window_table(
    sequence: int, count: int, epoch: int, answer: Duplicate | Code | None
) -> None:
    states = seven()
    before = states.snapshot(0)
    if isinstance(answer, Code):
        with pytest.raises((OutOfSequence, ProducerFenced)) as raised:
            states.check(header(sequence, count, epoch=epoch))
        assert raised.value.code == answer
    else:
        assert states.check(header(sequence, count, epoch=epoch)) == answer
    assert states.snapshot(0) == before


def test_an_unknown_producer_begins_at_zero() -> None:
    states = seven()
    assert states.check(header(0, producer_id=8)) is None
    with pytest.raises(OutOfSequence) as raised:
        states.check(header(10, producer_id=8))
    assert raised.value.code == Code.UNKNOWN_PRODUCER_ID


def test_a_batch_without_a_producer_is_always_let_pass_and_never_remembered() -> None:
    states = ProducerStates()
    plain = batch(0)[0]
    assert states.check(plain) is None
    assert states.apply(plain, 0, 0, 0) is None
    assert len(states) == 0


def test_five_batches_that_are_cut_leave_the_five_before_them() -> None:
    states, said = seven(batches=12), ProducerStates()
    said.complete_from(states, 100 + 10 * 7)
    for number in range(2, 7):
        assert said.check(header(10 * number, epoch=1)) == Duplicate(
            100 + 10 * number, 5000 + number
        )


def test_the_window_holds_the_last_ten_batches() -> None:
    states = seven(batches=12)
    for number in range(2, 12):
        assert states.check(header(10 * number, epoch=1)) == Duplicate(
            100 + 10 * number, 5000 + number
        )
    with pytest.raises(OutOfSequence):
        states.check(header(10, epoch=1))


def test_a_new_epoch_forgets_the_window_of_the_old_one() -> None:
    states = seven()
    states.apply(header(0, epoch=2), 130, 6000, 0)
    assert states.check(header(0, epoch=2)) == Duplicate(130, 6000)
    with pytest.raises(OutOfSequence):
        states.check(header(20, epoch=2))


def test_sequences_wrap_to_zero() -> None:
    states = ProducerStates(Snapshot(0, {}))
    first = header(0, 1)
    states.apply(first, 0, 0, 0)
    snapshot = states.snapshot(1)
    producer = snapshot.producers[7]
    last = msgspec.structs.replace(
        producer.batches[0], first_sequence=SEQUENCE_END - 5, last_sequence=SEQUENCE_END - 4
    )
    states = ProducerStates(
        Snapshot(1, {7: msgspec.structs.replace(producer, batches=(last,))}), now_ns=0
    )
    across = header(SEQUENCE_END - 3, 5)
    assert states.check(across) is None
    states.apply(across, 1, 1, 1)
    assert states.check(across) == Duplicate(1, 1)
    assert states.check(header(2, 1)) is None
    states.apply(header(2, 1), 6, 2, 2)
    assert states.check(header(2, 1)) == Duplicate(6, 2)
    with pytest.raises(OutOfSequence):
        states.check(header(1, 1))


def test_undo_in_reverse_restores_all_of_it() -> None:
    states = seven()
    before = states.snapshot(0)
    steps = [header(30, epoch=1), header(0, epoch=2), header(0, producer_id=9), header(10, epoch=2)]
    tokens = [states.apply(one, 500, 0, 99) for one in steps]
    for token in reversed(tokens):
        states.undo(token)
    assert states.snapshot(0) == before
    assert len(states) == 1


def test_producers_that_are_silent_for_long_are_forgotten_oldest_first() -> None:
    states = ProducerStates()
    for producer_id, now_ns in ((1, 0), (2, 10), (3, 20)):
        states.apply(header(0, producer_id=producer_id), 0, 0, now_ns)
    states.apply(header(10, producer_id=1), 10, 0, 30)
    assert states.expire(now_ns=30, expiration_ns=20) == 0
    assert states.expire(now_ns=35, expiration_ns=20) == 1
    assert set(states.snapshot(0).producers) == {1, 3}
    assert states.expire(now_ns=1000, expiration_ns=20) == 2
    assert len(states) == 0


def test_a_snapshot_is_a_value_and_survives_its_encoding() -> None:
    states = seven()
    snapshot = states.snapshot(130)
    states.apply(header(30, epoch=1), 130, 0, 0)
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=Snapshot)
    assert again == snapshot
    assert ProducerStates(again).check(header(20, epoch=1)) == Duplicate(120, 5002)
    assert ProducerStates(again).check(header(30, epoch=1)) is None


def test_a_log_that_begins_anew_is_told_what_lies_below_its_start_in_pages() -> None:
    states = seven(4)  # of ten records each, from 100 on
    for producer_id, base in ((3, 90), (9, 95), (12, 140)):
        one = header(0, producer_id=producer_id)
        states.apply(one, base, 1, now_ns=9)

    def told(end: int, after: int, count: int) -> list[tuple[int, list[int]]]:
        page = states.page_below(end, after, count)
        return [(number, [b.base_offset for b in known.batches]) for number, known in page]

    assert told(120, -1, 9) == [(3, [90]), (7, [100, 110]), (9, [95])]
    assert told(120, -1, 2) == [(3, [90]), (7, [100, 110])]
    assert told(120, 7, 2) == [(9, [95])]
    assert told(99, -1, 9) == [], "a batch that reaches beyond the start is copied"
