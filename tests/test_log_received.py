"""What a leader sends is appended only if all of it is what it should be."""

from __future__ import annotations

import pytest
from log_support import TOPIC_ID, Stamped, batch

from shmlog.errors import CorruptMessage
from shmlog.log.received import check_replica_batches


def sent() -> list[Stamped]:
    return [batch(20, 3, epoch=2), batch(23, 2, epoch=2), batch(25, 1, epoch=5)]


def check(data: bytes, *, last_epoch: int = 1) -> list[tuple[object, memoryview]]:
    return check_replica_batches(data, 20, TOPIC_ID, 3, last_epoch)  # type: ignore[return-value]


def joined(batches: list[Stamped]) -> bytes:
    return b"".join(data for _, data in batches)


def test_whole_batches_come_back_with_their_headers() -> None:
    found = check(joined(sent()), last_epoch=2)
    assert [(header, bytes(view)) for header, view in found] == sent()
    assert check(b"") == []


def test_every_flipped_bit_is_refused() -> None:
    data = bytearray(joined(sent()))
    for bit in range(8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptMessage):
            check(bytes(data))
        data[bit // 8] ^= 1 << bit % 8


def test_every_half_batch_and_every_byte_too_many_is_refused() -> None:
    data = joined(sent())
    boundaries = {0}
    for _, one in sent():
        boundaries.add(max(boundaries) + len(one))
    for size in range(len(data)):
        if size not in boundaries:
            with pytest.raises(CorruptMessage):
                check(data[:size])
    for rest in (b"\0", bytes(8), bytes(200), b"x"):
        with pytest.raises(CorruptMessage, match=r"no whole batch|magic|no batch"):
            check(data + rest)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (batch(24, epoch=2), "offset 24, expected 23"),
        (batch(22, epoch=2), "offset 22, expected 23"),
        (batch(23, epoch=1), "leader epoch 1 behind 2"),
        (batch(23, epoch=2, partition=4), "belongs to"),
        (batch(23, epoch=2, topic_id=bytes(15) + b"x"), "belongs to"),
    ],
)
def test_a_whole_batch_that_does_not_belong_there_is_refused(wrong: Stamped, text: str) -> None:
    with pytest.raises(CorruptMessage, match=text):
        check(joined([sent()[0], wrong]))


def test_an_epoch_below_the_logs_own_is_refused() -> None:
    with pytest.raises(CorruptMessage, match="leader epoch 2 behind 3"):
        check(joined(sent()), last_epoch=3)
