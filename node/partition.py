"""One partition on its leader: ring and log and ledger behind append, flush and read.

A turn of the loop appends any number of batches and then flushes once:

    append   check the batch, give it offsets, copy it into the ring's unpublished part, stamp it there
    flush    one write of all of it to the segment, then publish it in the ring, then move the ends

A turn that appends more than the ring holds is flushed in between.

So a batch is in the file before anybody can see it, and the ring is a window on the file. Where there is no ring
(not made yet, or switched off) the stamped copy waits in private memory; nothing else changes.

A write that fails for lack of space is cut off again, and with it everything that this turn had appended: offsets,
producer states and the ring's unpublished part go back; nobody has seen any of it.

Invariants: log_end_offset of the log <= next_offset, equal between turns; the ring's tail is the position behind
the batch that ends at log_end_offset.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from node import journal
from node.core.replica.leader import Leader
from shmlog.clock import NS_PER_MS, Clock
from shmlog.errors import (
    Code,
    CorruptLog,
    CorruptMessage,
    DiskFull,
    InvalidRequest,
    OffsetOutOfRange,
    RecordTooLarge,
    ShmlogError,
    UnsupportedCompression,
)
from shmlog.ids import TopicPartition
from shmlog.log.jobs import Job
from shmlog.log.log import Log
from shmlog.log.producers import Undo
from shmlog.records import batch as batches
from shmlog.records.builder import stamp
from shmlog.records.compression import available
from shmlog.records.layout import HEADER_SIZE, Codec
from shmlog.ring.memory import SharedMemory
from shmlog.ring.reader import RingReader
from shmlog.ring.writer import RingFull, RingWriter
from shmlog.settings import TopicConfig


class Appended(NamedTuple):
    """Where a batch is. It is stored once the ledger's end has passed `end_offset`."""

    base_offset: int
    end_offset: int
    append_time_ns: int


class Fetched(NamedTuple):
    """What a read found, with the ends of the partition at that moment."""

    data: bytes
    high_watermark: int
    log_start: int


class Partition:
    """A partition that this broker leads. One owner: the loop."""

    def __init__(
        self,
        name: TopicPartition,
        topic_id: bytes,
        log: Log,
        config: TopicConfig,
        leader_epoch: int,
        clock: Clock,
    ) -> None:
        self.name = name
        self.topic_id = topic_id
        self.log = log
        self.config = config
        self.leader_epoch = leader_epoch
        self.ledger = Leader(
            written_end=log.log_end_offset,
            synced_end=log.synced_end_offset,
            high_watermark=log.synced_end_offset,
            durability=config.durability,
        )
        self.ring: RingWriter | None = None
        self.memory: SharedMemory | None = None
        self.ring_state = "none"  # none, asked, ring, off
        self.next_offset = log.log_end_offset
        self._reader: RingReader | None = None
        self._clock = clock
        self._last_append_time_ns = log.last_append_time_ns
        self._pending: list[tuple[batches.BatchHeader, memoryview]] = []
        self._undo: list[Undo | None] = []
        self._flush_error: DiskFull | None = None  # of a flush in between, for the turn's own flush
        # (end offset, ring position) of what is published in the ring above the high watermark.
        self._unsettled: deque[tuple[int, int]] = deque()

    # -- append ---------------------------------------------------------------------------------------

    def append(self, frame: bytes) -> Appended:
        """Admit one batch, exactly `frame`. Raises a typed error, and then nothing has changed.

        The order of checks is part of the protocol: a duplicate leaves before any check that could deny a
        batch which is in the log already; what comes after costs O(1) but for the CRC.
        """
        if self._flush_error is not None:
            raise self._flush_error
        header = batches.decode_header(frame)
        if header.batch_size != len(frame):
            raise CorruptMessage(
                f"{self.name}: the frame has {len(frame)} bytes, its batch {header.batch_size}"
            )
        sequence_error: ShmlogError | None = None
        try:
            known = self.log.producers.check(header)
        except ShmlogError as error:
            sequence_error, known = error, None
        if known is not None:
            end = known.base_offset + header.record_count
            return Appended(known.base_offset, end, known.append_time_ns)
        now_ns = self._clock.wall_ns()
        self._check_content(frame, header, now_ns)
        if sequence_error is not None:
            raise sequence_error
        return self._admit(frame, header, now_ns)

    def _check_content(self, frame: bytes, header: batches.BatchHeader, now_ns: int) -> None:
        if header.codec != Codec.NONE and Codec(header.codec).name.lower() not in available():
            codec = Codec(header.codec).name.lower()
            raise UnsupportedCompression(
                f"{self.name}: this broker cannot open {codec}: pip install 'shmlog[compression]' there"
            )
        batches.check_content(frame, header)
        config = self.config
        if header.batch_size > config.max_message_bytes:
            raise RecordTooLarge(
                f"{self.name}: a batch of {header.batch_size} bytes, max_message_bytes is "
                f"{config.max_message_bytes}",
                size=header.batch_size,
                limit=config.max_message_bytes,
            )
        if header.columns_size + HEADER_SIZE > config.max_uncompressed_bytes:
            raise RecordTooLarge(
                f"{self.name}: a batch of {header.columns_size} bytes uncompressed, "
                f"max_uncompressed_bytes is {config.max_uncompressed_bytes}",
                size=header.columns_size,
                limit=config.max_uncompressed_bytes,
            )
        latest_ns = now_ns + config.message_timestamp_after_max * NS_PER_MS
        if header.base_timestamp_ns < 0 or not 0 <= header.max_timestamp_ns <= latest_ns:
            raise InvalidRequest(
                f"{self.name}: timestamps {header.base_timestamp_ns} to {header.max_timestamp_ns} ns: "
                f"must be at least 0 and at most {latest_ns} (message_timestamp_after_max)",
                code=Code.INVALID_TIMESTAMP,
            )

    def _admit(self, frame: bytes, header: batches.BatchHeader, now_ns: int) -> Appended:
        target = self._reserve(len(frame))
        base_offset = self.next_offset
        # Append time never goes back within a log, whatever the wall clock does.
        append_time_ns = max(now_ns, self._last_append_time_ns)
        target[:] = frame
        stamp(
            target,
            base_offset=base_offset,
            leader_epoch=self.leader_epoch,
            append_time_ns=append_time_ns,
            topic_id=self.topic_id,
            partition=self.name.partition,
        )
        undo = self.log.producers.apply(
            header, base_offset, append_time_ns, self._clock.monotonic_ns()
        )
        self._undo.append(undo)
        self._pending.append((batches.decode_header(target), target))
        self._last_append_time_ns = append_time_ns
        self.next_offset = base_offset + header.record_count
        return Appended(base_offset, self.next_offset, append_time_ns)

    def _reserve(self, size: int) -> memoryview:
        if self.ring is None:
            return memoryview(bytearray(size))
        try:
            return self.ring.reserve(size, self.next_offset)
        except RingFull:
            # More than a ring in one turn. If this write fails, what it took back must be answered
            # before new batches take the same offsets: until the turn's flush nothing is admitted.
            self._flush_error = self._flush()
            if self._flush_error is not None:
                raise self._flush_error from None
            return self.ring.reserve(size, self.next_offset)

    def flush(self) -> DiskFull | None:
        """Write and publish what this turn appended. DiskFull is returned: what is above the log's
        end now was taken back.
        """
        error, self._flush_error = self._flush_error, None
        return error or self._flush()

    def _flush(self) -> DiskFull | None:
        if not self._pending:
            return None
        try:
            self.log.append(self._pending, self._clock.monotonic_ns())
        except DiskFull as error:
            self._take_back()
            return error
        self._pending.clear()
        self._undo.clear()
        moved = self.ledger.written(self.next_offset)
        if self.ring is not None:
            self._unsettled.append((self.next_offset, self.ring.publish()))
            if moved:
                self._publish_high_watermark()
        return None

    def _take_back(self) -> None:
        for undo in reversed(self._undo):
            self.log.producers.undo(undo)
        self._undo.clear()
        self._pending.clear()
        if self.ring is not None:
            self.ring.abort()
        self.next_offset = self.log.log_end_offset
        self._last_append_time_ns = self.log.last_append_time_ns

    def synced(self, end_offset: int) -> bool:
        """A sync covers all below `end_offset`; True if the high watermark moved."""
        moved = self.ledger.synced(end_offset)
        if moved:
            self._publish_high_watermark()
        return moved

    def configure(self, config: TopicConfig) -> bool:
        """New settings; True if the high watermark moved."""
        self.config = self.log.config = config
        moved = self.ledger.set_durability(config.durability)
        if moved:
            self._publish_high_watermark()
        return moved

    def _publish_high_watermark(self) -> None:
        # The ring knows positions only: the newest one whose batch ends at or below the high watermark.
        position = -1
        while self._unsettled and self._unsettled[0][0] <= self.ledger.high_watermark:
            position = self._unsettled.popleft()[1]
        if position >= 0 and self.ring is not None:
            self.ring.set_high_watermark(position)

    # -- read -----------------------------------------------------------------------------------------

    @property
    def high_watermark(self) -> int:
        """Records below it are committed and visible."""
        return self.ledger.high_watermark

    @property
    def log_start(self) -> int:
        """The first offset that can be read."""
        return self.log.log_start_offset

    def check_offset(self, offset: int) -> None:
        """Raises OffsetOutOfRange (1) below the log start or beyond the end."""
        if not self.log.log_start_offset <= offset <= self.log.log_end_offset:
            raise OffsetOutOfRange(
                f"{self.name}: offset {offset} is out of range, the log holds "
                f"{self.log.log_start_offset} to {self.high_watermark}",
                log_start=self.log.log_start_offset,
                high_watermark=self.high_watermark,
            )

    def read(self, offset: int, max_bytes: int) -> Fetched:
        """Whole committed batches from the one that holds `offset`: at least one if there is any."""
        self.check_offset(offset)
        end = self.high_watermark
        data = b""
        if offset < end:
            data = self._read_ring(offset, max_bytes) or self._read_files(offset, max_bytes, end)
        return Fetched(data, end, self.log.log_start_offset)

    def _read_files(self, offset: int, max_bytes: int, end: int) -> bytes:
        try:
            return self.log.read(offset, max_bytes=max_bytes, end_offset=end)
        except CorruptLog as error:
            journal.warning("damage", partition=str(self.name), reason=str(error))
            raise

    def _read_ring(self, offset: int, max_bytes: int) -> bytes:
        """From the ring, if the offset is still there; else nothing."""
        if self._reader is None or self._unsettled:
            return b""
        position = self._reader.seek(offset)
        if position is None:
            return b""
        # The index leads to a batch a little before the wanted one; a second look gets what was cut.
        chunk = self._reader.read(position, max_bytes + self.config.max_message_bytes)
        if chunk is None:
            return b""
        view = memoryview(chunk.data)
        start = end = -1
        for at, header in batches.iterate(view):
            if start < 0 and header.end_offset > offset:
                start = at
            if start >= 0:
                if end > start and at + header.batch_size - start > max_bytes:
                    break
                end = at + header.batch_size
        return bytes(view[start:end]) if end > start >= 0 else b""

    # -- ring -----------------------------------------------------------------------------------------

    def attach_ring(self, ring: RingWriter, reader: RingReader, memory: SharedMemory) -> None:
        """Use a fresh ring from the next append on. Between turns only."""
        assert not self._pending
        self.ring, self._reader, self.memory = ring, reader, memory
        self.ring_state = "ring"

    def detach_ring(self) -> None:
        """Stop using the ring: readers see it sealed and go to the socket."""
        if self.ring is not None:
            self.ring.seal()
        if self._reader is not None:
            self._reader.close()
        self.ring = self._reader = self.memory = None
        self._unsettled.clear()

    def trim(self, offset: int) -> list[Job]:
        """Raise the log start (delete-records). Returns the file jobs to run."""
        jobs = self.log.set_log_start(offset)
        if self.ring is not None:
            # All of it: what is left of the log is in the files, and readers come back by themselves.
            self.ring.drop_below(self.ring.tail)
        return jobs
