"""Where each partition is read, what is buffered, and which fetches are in flight: without I/O.

Per partition two offsets: `position`, the next record the user gets, and `fetch_offset`, the end of
what is buffered. A fetch asks from `fetch_offset`; its answer counts only if that is still so (a
seek, or the ring, may have moved it meanwhile). So each offset is taken in once, by whichever road
it came.

A place is told to the broker with the leader epoch of the record before it. A leader whose log does
not hold that record says so (*divergence*): the reader goes back to where the logs part, and if the
user has got records behind that place, that is reported. What waits at a leader when a newer one is
known is asked again there at once; the old request's outcome no longer counts.

    needs data --request--> in flight --answer--> buffered --next_piece--> user
        ^                       |
        +---- backoff <- error -+---> error for the user: raised when the buffer is empty
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from shmlog.client.metadata import MetadataCache
from shmlog.client.ring_tail import Piece, RingTail
from shmlog.client.session import Backoff, Outcome, entry_error
from shmlog.clock import NS_PER_MS
from shmlog.errors import (
    Code,
    CorruptLog,
    CorruptMessage,
    InvalidRecord,
    LogTruncated,
    ShmlogError,
)
from shmlog.ids import TopicPartition
from shmlog.protocol.messages import FetchFast, FetchPartition
from shmlog.records.header import check_body_crc, check_header_crc, iterate

BUFFERED_MAX = 32 << 20
ENDLESS = 1 << 62
_REFRESH = frozenset({3, 5, 6, 56, 74, 75, 100, 103, 1001})
_NO_TOPIC = frozenset({3, 100, 103})
_DAMAGE_ATTEMPTS = 2


class PartitionReader:
    """The reading of one partition."""

    __slots__ = (
        "asked_epoch",
        "attempts",
        "awaited",
        "buffered_bytes",
        "caught_up",
        "checked_epoch",
        "damage",
        "error",
        "fetch_offset",
        "handed_epoch",
        "high_watermark",
        "in_flight",
        "leader_epoch",
        "log_start",
        "paused",
        "pieces",
        "position",
        "refreshed",
        "retry_at_ns",
        "ring_try",
        "stop",
        "tail",
        "topic_id",
        "tp",
    )

    def __init__(self, tp: TopicPartition, topic_id: str, position: int, stop: int) -> None:
        self.tp = tp
        self.topic_id = topic_id
        self.position = position
        self.fetch_offset = position
        self.stop = stop
        self.pieces: deque[Piece] = deque()
        self.buffered_bytes = 0
        self.in_flight = 0  # number of the request that asks for data, 0 = none
        self.high_watermark = -1
        self.log_start = -1
        self.awaited = 0  # number of the wake-up call, 0 = none
        self.asked_epoch = -1  # of the leader that was asked last
        self.leader_epoch = -1  # of the last record before `fetch_offset`, -1 = not known
        self.checked_epoch = -1  # a leader of this epoch has that record
        self.handed_epoch = -1  # of the last record before `position`, -1 = not known
        self.paused = False
        self.error: ShmlogError | None = None
        self.attempts = 0
        self.damage = 0
        self.refreshed = False
        self.retry_at_ns = 0
        self.tail: RingTail | None = None
        self.caught_up = False  # the ring had nothing more
        self.ring_try = True  # False: the ring did not have the place, and nothing has changed

    @property
    def finished(self) -> bool:
        """Has the user got everything up to the stop?"""
        return self.position >= self.stop

    @property
    def wants(self) -> bool:
        """Is there more to be read into the buffer?"""
        return self.fetch_offset < self.stop and self.error is None and not self.paused

    @property
    def is_at_end(self) -> bool:
        """Has all been read into the buffer that is known to be there, and that is wanted?"""
        known = self.caught_up or 0 <= self.high_watermark <= self.fetch_offset
        return known or self.fetch_offset >= self.stop

    def seek(self, offset: int, last_epoch: int = -1, checked_epoch: int = -1) -> None:
        """Go to `offset`; what is buffered or on its way no longer counts.

        `last_epoch`: the leader epoch of the record before it, if it is known; `checked_epoch`: of
        the leader that says so.
        """
        self.position = self.fetch_offset = offset
        self.pieces.clear()
        self.buffered_bytes = 0
        self.in_flight = 0
        self.leader_epoch, self.checked_epoch = last_epoch, checked_epoch
        self.handed_epoch = last_epoch
        self.error = None
        self.caught_up = False
        self.ring_try = True

    def go_back(self, end: int, epoch: int) -> None:
        """The log differs from `end` on, where `epoch` ends: drop what was read behind it."""
        while self.pieces and self.pieces[-1].header.end_offset > end:
            self.buffered_bytes -= self.pieces.pop().header.batch_size
        self.in_flight = 0
        self.caught_up = False
        if self.pieces:
            last = self.pieces[-1].header
            self.fetch_offset, self.leader_epoch = last.end_offset, last.leader_epoch
        elif self.position > end:
            self.position = self.fetch_offset = end
            self.leader_epoch = self.handed_epoch = epoch
        else:
            self.fetch_offset = self.position
            self.leader_epoch = epoch if self.position == end else -1

    def begin_anew(self, topic_id: str) -> None:
        """The topic is another one by now; a seek follows."""
        self.topic_id = topic_id
        self.attempts = self.damage = self.retry_at_ns = 0
        self.refreshed = False
        self.let_ring_go()

    def let_ring_go(self) -> None:
        """Another leader, or none: its ring says nothing any more."""
        self.caught_up = False
        if self.tail is not None:
            self.tail.close()
            self.tail = None

    def take_in(self, piece: Piece) -> None:
        """Buffer the next batch."""
        self.pieces.append(piece)
        self.buffered_bytes += piece.header.batch_size
        self.fetch_offset = piece.header.end_offset
        self.leader_epoch = piece.header.leader_epoch

    def next_piece(self) -> Piece:
        """The oldest buffered batch, for the user."""
        piece = self.pieces.popleft()
        self.buffered_bytes -= piece.header.batch_size
        return piece


class Fetches:
    """All partitions of one consumer, and the requests for them."""

    def __init__(
        self,
        metadata: MetadataCache,
        backoff: Backoff,
        *,
        max_bytes: int,
        max_wait_ms: int,
        partition_max_bytes: int,
        check_body: bool,
    ) -> None:
        self.readers: dict[TopicPartition, PartitionReader] = {}
        self.refresh_wanted = False
        self.news_wanted = False  # a refresh helps only if it brings a newer image
        self.truncated: list[LogTruncated] = []  # to be reported
        self._metadata = metadata
        self._backoff = backoff
        self._max_bytes = max_bytes
        self._max_wait_ms = max_wait_ms
        self._partition_max_bytes = partition_max_bytes
        self._check_body = check_body
        self._numbers = 0
        self._order: deque[PartitionReader] = deque()

    def add(self, reader: PartitionReader) -> None:
        """One more partition."""
        self.readers[reader.tp] = reader
        self._order.append(reader)

    def remove(self, tp: TopicPartition) -> None:
        """It is not read any more; what is still in flight for it does not count."""
        reader = self.readers.pop(tp, None)
        if reader is not None:
            self._order.remove(reader)
            reader.let_ring_go()

    def in_turn(self) -> Iterable[PartitionReader]:
        """The partitions, the one after the last that gave something first."""
        return tuple(self._order)

    def served(self, reader: PartitionReader) -> None:
        """It gave something: the others are before it now."""
        if len(self._order) > 1:
            self._order.remove(reader)
            self._order.append(reader)

    def requests(self, now: int) -> list[tuple[str, FetchFast, Callable[[Outcome, int], None]]]:
        """What to ask now: (endpoint, message, what to do with the outcome).

        One request a leader for the partitions that need data, one for those that wait at their
        ring's end.
        """
        data: dict[str, list[PartitionReader]] = {}
        waiting: dict[str, list[PartitionReader]] = {}
        for reader in self._order:
            if not reader.wants or reader.retry_at_ns > now:
                continue
            if reader.in_flight or (reader.caught_up and reader.awaited):
                continue
            if reader.buffered_bytes * len(self._order) > BUFFERED_MAX:
                continue
            leader = self._metadata.leader(reader.tp)
            if leader is None:
                self.news_wanted = True
                continue
            reader.asked_epoch = leader.epoch
            group = waiting if reader.caught_up else data
            group.setdefault(leader.endpoint, []).append(reader)
        requests = [self._data_request(endpoint, r) for endpoint, r in data.items()]
        requests += [self._wakeup(endpoint, r) for endpoint, r in waiting.items()]
        return requests

    def next_retry_ns(self, now: int) -> int | None:
        """When a partition's backoff ends."""
        return min(
            (r.retry_at_ns for r in self._order if r.wants and r.retry_at_ns > now), default=None
        )

    def leaders_changed(self) -> None:
        """There is new metadata: what waits at an older leader is asked at the new one."""
        for reader in self._order:
            leader = self._metadata.leader(reader.tp)
            if leader is None:
                continue
            if reader.tail is not None and reader.tail.leader_epoch < leader.epoch:
                reader.let_ring_go()
            if 0 <= reader.asked_epoch < leader.epoch:
                reader.in_flight = reader.awaited = 0
                reader.caught_up = False
                reader.attempts = reader.retry_at_ns = 0

    def _data_request(
        self, endpoint: str, readers: list[PartitionReader]
    ) -> tuple[str, FetchFast, Callable[[Outcome, int], None]]:
        self._numbers += 1
        number = self._numbers
        asked = {}
        for reader in readers:
            reader.in_flight = number
            asked[reader.tp] = reader.fetch_offset
        message = self._message(readers, self._partition_max_bytes, self._max_bytes)
        return endpoint, message, lambda outcome, now: self._answered(number, asked, outcome, now)

    def _wakeup(
        self, endpoint: str, readers: list[PartitionReader]
    ) -> tuple[str, FetchFast, Callable[[Outcome, int], None]]:
        self._numbers += 1
        number = self._numbers
        asked = {}
        for reader in readers:
            reader.awaited = number
            asked[reader.tp] = reader.fetch_offset
        # A call that is answered at every record would cost the broker as much as a fetch.
        heard = all(r.tail is not None and r.tail.has_doorbell for r in readers)
        message = self._message(readers, 0, 0, doorbell=heard)
        return endpoint, message, lambda outcome, now: self._woken(number, asked, outcome, now)

    def _message(
        self,
        readers: list[PartitionReader],
        partition_bytes: int,
        max_bytes: int,
        *,
        doorbell: bool = False,
    ) -> FetchFast:
        return FetchFast(
            op="fetch",
            id=0,
            mode="fast",
            max_bytes=max_bytes,
            max_wait_ms=self._max_wait_ms,
            doorbell=doorbell,
            partitions=[
                FetchPartition(
                    topic=reader.tp.topic,
                    partition=reader.tp.partition,
                    offset=reader.fetch_offset,
                    max_bytes=partition_bytes,
                    topic_id=reader.topic_id,
                    leader_epoch=reader.asked_epoch,
                    last_epoch=reader.leader_epoch,
                )
                for reader in readers
            ],
        )

    def _woken(
        self, number: int, asked: dict[TopicPartition, int], outcome: Outcome, now: int
    ) -> None:
        current = {}
        for tp in asked:
            reader = self.readers.get(tp)
            if reader is not None and reader.awaited == number:
                reader.awaited = 0
                current[tp] = reader
        if outcome.error is not None:
            for reader in current.values():
                self._failed(reader, outcome.error, now)
            return
        for entry in outcome.answer.partitions:
            tp = TopicPartition(entry["topic"], entry["partition"])
            woken = current.get(tp)
            if woken is None:
                continue
            if entry["error"]:
                self._failed(woken, entry_error(entry), now)
            else:
                self._news(woken, entry, here=woken.fetch_offset == asked[tp])

    def _answered(
        self, number: int, asked: dict[TopicPartition, int], outcome: Outcome, now: int
    ) -> None:
        current = {}
        for tp, offset in asked.items():
            reader = self.readers.get(tp)
            if reader is not None and reader.in_flight == number:
                reader.in_flight = 0
                if reader.fetch_offset == offset:
                    current[tp] = reader
        if outcome.error is not None:
            for reader in current.values():
                self._failed(reader, outcome.error, now)
            return
        self._take_entries(outcome.answer.partitions, outcome.frames, current, now)

    def _take_entries(
        self,
        entries: Sequence[dict[str, Any]],
        frames: Sequence[bytes],
        current: dict[TopicPartition, PartitionReader],
        now: int,
    ) -> None:
        remaining = iter(frames)
        for entry in entries:
            frame = next(remaining, b"") if not entry["error"] and entry["bytes"] else b""
            reader = current.get(TopicPartition(entry["topic"], entry["partition"]))
            if reader is None:
                continue
            if entry["error"]:
                self._failed(reader, entry_error(entry), now)
                continue
            self._news(reader, entry, here=True)
            if frame:
                self._take_frame(reader, frame, now)

    def _news(self, reader: PartitionReader, entry: dict[str, Any], *, here: bool) -> None:
        """A leader's answer; `here`: for the place where the reader is."""
        reader.high_watermark = entry["high_watermark"]
        reader.log_start = entry["log_start"]
        reader.attempts = 0
        reader.refreshed = False
        leader = self._metadata.leader(reader.tp)
        if leader is not None and entry["leader_epoch"] > leader.epoch:
            self.refresh_wanted = True
        if not here:
            return
        if "diverging_end" in entry:
            self._diverged(reader, entry["diverging_epoch"], entry["diverging_end"])
        if entry["leader_epoch"] > reader.checked_epoch:
            reader.checked_epoch = entry["leader_epoch"]
            reader.ring_try = True

    def _diverged(self, reader: PartitionReader, epoch: int, end: int) -> None:
        """The log does not hold the last record that was read."""
        if end >= reader.fetch_offset:
            reader.leader_epoch = epoch  # nothing to go back over
            return
        before, last_epoch = reader.position, reader.leader_epoch
        reader.go_back(end, epoch)
        if reader.position < before:
            self.truncated.append(
                LogTruncated(
                    f"{reader.tp}: the log was cut at offset {end}: the records {end} to "
                    f"{before - 1} that were read are not in it any more "
                    f"(leader epoch {last_epoch} was read, epoch {epoch} ends there)",
                    topic=reader.tp.topic,
                    partition=reader.tp.partition,
                    offset=end,
                    end_offset=before,
                    epoch=epoch,
                )
            )

    def _take_frame(self, reader: PartitionReader, frame: bytes, now: int) -> None:
        try:
            self._take_batches(reader, memoryview(frame))
            reader.damage = 0
        except (CorruptMessage, InvalidRecord) as error:
            reader.damage += 1
            where = f"{reader.tp} at offset {reader.fetch_offset}"
            if reader.damage < _DAMAGE_ATTEMPTS:
                self._failed(reader, CorruptMessage(f"{where}: {error}"), now)
            else:
                reader.error = CorruptLog(
                    f"{where}: {error}", topic=reader.tp.topic, partition=reader.tp.partition,
                    offset=reader.fetch_offset,
                )  # fmt: skip
        reader.ring_try = True

    def _take_batches(self, reader: PartitionReader, frame: memoryview) -> None:
        topic_id = bytes.fromhex(reader.topic_id)
        end = 0
        for position, header in iterate(frame):
            end = position + header.batch_size
            piece = frame[position:end]
            check_header_crc(piece, header)
            if header.topic_id != topic_id or header.partition != reader.tp.partition:
                raise CorruptMessage(f"a batch of partition {header.partition} of another log")
            if header.end_offset <= reader.fetch_offset:
                continue  # wholly below what was asked for
            if header.base_offset > reader.fetch_offset and not header.follows(reader.fetch_offset):
                raise CorruptMessage(f"the next batch begins at {header.base_offset}")
            if header.leader_epoch < reader.leader_epoch:
                raise CorruptMessage(
                    f"leader epoch {header.leader_epoch} after {reader.leader_epoch}"
                )
            if self._check_body:
                check_body_crc(piece, header)
            reader.take_in(Piece(piece, header))
        if end != len(frame):
            raise CorruptMessage(f"{len(frame) - end} bytes behind the last whole batch")

    def _failed(self, reader: PartitionReader, error: ShmlogError, now: int) -> None:
        reader.ring_try = True
        if error.code in _REFRESH:
            self.refresh_wanted = True
            reader.let_ring_go()
        facts = error.facts
        if facts.get("endpoint") and facts.get("leader", -1) >= 0:
            epoch = facts.get("leader_epoch", -1)
            self._metadata.redirect(reader.tp, facts["leader"], epoch, facts["endpoint"])
        unknown_once = error.code in _NO_TOPIC and not reader.refreshed
        reader.refreshed = reader.refreshed or error.code in _NO_TOPIC
        if not error.retriable and not unknown_once:
            reader.error = error
            return
        reader.attempts += 1
        wait_ns = self._backoff.ns(reader.attempts)
        if error.code == Code.BUSY:
            wait_ns = max(wait_ns, int(facts.get("retry_after_ms", 0)) * NS_PER_MS)
        reader.retry_at_ns = now + wait_ns
