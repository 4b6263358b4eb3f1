"""Bytes that a leader sent for this log: checked whole before any of them is appended."""

from __future__ import annotations

from shmlog.errors import CorruptMessage, InvalidRecord
from shmlog.log.storage import Buffer
from shmlog.records.header import BatchHeader, check_body_crc, check_header_crc, iterate


def check_replica_batches(
    data: Buffer, expected_offset: int, topic_id: bytes, partition: int, last_epoch: int
) -> list[tuple[BatchHeader, memoryview]]:
    """The batches in `data`, each with a view of its bytes; none if there are no bytes.

    They begin at `expected_offset`, without a gap but where one is declared, belong to this partition, their
    epochs do not fall (from `last_epoch` on), both CRCs fit, and nothing is left over.
    Raises: CorruptMessage: one of these does not hold.
    """
    view = memoryview(data)
    found: list[tuple[BatchHeader, memoryview]] = []
    end = 0
    try:
        for position, header in iterate(view):
            check_header_crc(view, header, position)
            check_body_crc(view, header, position)
            fault = _fault(header, expected_offset, topic_id, partition, last_epoch)
            if fault:
                raise CorruptMessage(f"the batch at position {position}: {fault}")
            expected_offset, last_epoch = header.end_offset, header.leader_epoch
            end = position + header.batch_size
            found.append((header, view[position:end]))
    except InvalidRecord as error:
        raise CorruptMessage(f"behind position {end}: {error}") from None
    if end != len(view):
        raise CorruptMessage(f"{len(view) - end} bytes at position {end} are no whole batch")
    return found


def _fault(
    header: BatchHeader, expected_offset: int, topic_id: bytes, partition: int, last_epoch: int
) -> str:
    if (header.topic_id, header.partition) != (topic_id, partition):
        return f"it belongs to {header.topic_id.hex()}-{header.partition}"
    if not header.follows(expected_offset):
        return f"offset {header.base_offset}, expected {expected_offset}"
    if header.leader_epoch < last_epoch:
        return f"leader epoch {header.leader_epoch} behind {last_epoch}"
    return ""
