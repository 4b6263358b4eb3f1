"""Idempotence: what the log remembers of each producer, rebuilt from batch headers.

Per producer id: its epoch and its last batches (first and last sequence, base offset, append time). A batch whose
sequences equal those of one of them is a duplicate: it is answered with the original offset and nothing is appended.
There are ten: five may be in flight, and where these are cut off again (T2) the five before them may still be sent
again. Kafka's rules (KIP-98, KIP-360) but for that, and for one: an unknown producer must begin at sequence 0, so that
a lost tail shows.

Beyond PRODUCERS_MAX the one whose last batch is longest ago is forgotten, as if its time were up.

Entries are immutable: `apply` puts a new one in place and returns what it replaced, so that a write that failed
can be undone in reverse order.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import msgspec

from shmlog.errors import Code, OutOfSequence, ProducerFenced
from shmlog.records.header import BatchHeader
from shmlog.records.layout import SEQUENCE_END

WINDOW = 10
PRODUCERS_MAX = 100_000  # of one partition: anybody may name any id, and each is remembered


class Remembered(msgspec.Struct, frozen=True, array_like=True):
    """One batch of the window."""

    first_sequence: int
    last_sequence: int
    base_offset: int
    append_time_ns: int

    @property
    def end_offset(self) -> int:
        """The offset after its last record."""
        count = (self.last_sequence - self.first_sequence) % SEQUENCE_END + 1
        return self.base_offset + count


class Producer(msgspec.Struct, frozen=True, array_like=True):
    """One producer; `batches` has the newest last."""

    epoch: int
    batches: tuple[Remembered, ...]


class Snapshot(msgspec.Struct, frozen=True):
    """All producers as of `end_offset`."""

    end_offset: int
    producers: dict[int, Producer]


class Duplicate(NamedTuple):
    """The batch is in the log already."""

    base_offset: int
    append_time_ns: int


class Undo(NamedTuple):
    """What `apply` replaced."""

    producer_id: int
    producer: Producer | None


def _sequence_after(sequence: int, count: int) -> int:
    return (sequence + count) % SEQUENCE_END


def _below(known: Producer, said: Producer | None, end_offset: int) -> Producer | None:
    """What `known` and what the log says come to below `end_offset`."""
    batches = [batch for batch in known.batches if batch.end_offset <= end_offset]
    if not batches:
        return said
    if said is not None and said.epoch == known.epoch:
        first = batches[0].base_offset
        batches = [*(batch for batch in said.batches if batch.base_offset < first), *batches]
    return Producer(known.epoch, tuple(batches[-WINDOW:]))


class ProducerStates:
    """The producers of one partition. Expiry goes by running time (monotonic), never by the wall clock."""

    def __init__(self, snapshot: Snapshot | None = None, now_ns: int = 0) -> None:
        self._producers: dict[int, Producer] = dict(snapshot.producers) if snapshot else {}
        # In order of last use, so that expiry looks at the oldest only.
        self._used_ns: dict[int, int] = dict.fromkeys(self._producers, now_ns)

    def __len__(self) -> int:
        return len(self._producers)

    def check(self, header: BatchHeader) -> Duplicate | None:
        """May this batch be appended? A Duplicate is in the log already.

        Raises: ProducerFenced (47): older epoch. OutOfSequence (45, or 59 for an unknown producer).
        """
        if header.producer_id < 0:
            return None
        first = header.base_sequence
        known = self._producers.get(header.producer_id)
        if known is None:
            if first != 0:
                raise OutOfSequence(
                    f"producer {header.producer_id} is not known here and begins at sequence {first}",
                    code=Code.UNKNOWN_PRODUCER_ID,
                )
            return None
        if header.producer_epoch < known.epoch:
            raise ProducerFenced(
                f"producer {header.producer_id}: epoch {header.producer_epoch} was replaced by "
                f"{known.epoch}"
            )
        if header.producer_epoch > known.epoch:
            if first != 0:
                raise OutOfSequence(
                    f"producer {header.producer_id}: new epoch {header.producer_epoch} begins at "
                    f"sequence {first}, not 0"
                )
            return None
        last = _sequence_after(first, header.last_offset_delta)
        for batch in known.batches:
            if batch.first_sequence == first and batch.last_sequence == last:
                return Duplicate(batch.base_offset, batch.append_time_ns)
        expected = _sequence_after(known.batches[-1].last_sequence, 1)
        if first != expected:
            raise OutOfSequence(
                f"producer {header.producer_id}: sequence {first}, expected {expected}"
            )
        return None

    def apply(
        self, header: BatchHeader, base_offset: int, append_time_ns: int, now_ns: int
    ) -> Undo | None:
        """Remember a batch that `check` let pass."""
        producer_id = header.producer_id
        if producer_id < 0:
            return None
        known = self._producers.get(producer_id)
        last = _sequence_after(header.base_sequence, header.last_offset_delta)
        batch = Remembered(header.base_sequence, last, base_offset, append_time_ns)
        same = known is not None and known.epoch == header.producer_epoch
        window = (*known.batches, batch)[-WINDOW:] if same and known is not None else (batch,)
        self._producers[producer_id] = Producer(header.producer_epoch, window)
        self._used_ns.pop(producer_id, None)
        self._used_ns[producer_id] = now_ns
        if len(self._producers) > PRODUCERS_MAX:
            oldest = next(iter(self._used_ns))
            del self._used_ns[oldest], self._producers[oldest]
        return Undo(producer_id, known)

    def undo(self, token: Undo | None) -> None:
        """Take an `apply` back; newest first."""
        if token is None:
            return
        if token.producer is None:
            del self._producers[token.producer_id]
            del self._used_ns[token.producer_id]
        else:
            self._producers[token.producer_id] = token.producer

    def complete_from(self, current: ProducerStates, end_offset: int) -> None:
        """The log was cut at `end_offset`: this is what it says now, `current` what was known before.

        What was remembered of batches below the cut still holds, also where retention has removed those
        batches and no snapshot is old enough (P06). Who was forgotten stays so.
        """
        said, self._producers, self._used_ns = self._producers, {}, {}
        for producer_id, used_ns in current._used_ns.items():
            known = current._producers[producer_id]
            producer = _below(known, said.get(producer_id), end_offset)
            if producer is not None:
                self._producers[producer_id] = producer
                self._used_ns[producer_id] = used_ns

    def expire(self, now_ns: int, expiration_ns: int) -> int:
        """Forget producers without a batch for `expiration_ns`; how many."""
        count = 0
        while self._used_ns:
            producer_id = next(iter(self._used_ns))
            if now_ns - self._used_ns[producer_id] <= expiration_ns:
                break
            del self._used_ns[producer_id], self._producers[producer_id]
            count += 1
        return count

    def newest_below(self, end_offset: int) -> list[int]:
        """Base offsets of the batches below `end_offset` that are their producer's newest: their headers must stay."""
        newest = (producer.batches[-1].base_offset for producer in self._producers.values())
        return sorted(offset for offset in newest if offset < end_offset)

    def page_below(self, end_offset: int, after: int, count: int) -> list[tuple[int, Producer]]:
        """What is remembered of batches below `end_offset`: at most `count` producers with ids above `after`, by id."""
        told = (
            producer_id
            for producer_id, producer in self._producers.items()
            if producer_id > after and producer.batches[0].end_offset <= end_offset
        )
        page = []
        for producer_id in heapq.nsmallest(count, told):
            producer = _below(self._producers[producer_id], None, end_offset)
            assert producer is not None
            page.append((producer_id, producer))
        return page

    def snapshot(self, end_offset: int) -> Snapshot:
        """All of it, as a value."""
        return Snapshot(end_offset, dict(self._producers))
