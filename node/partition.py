"""One replica of a partition: its log and its role behind append, flush and read.

    elected --(its epoch's start is committed)--> leading --+
       ^                                                    |
       +-------------------- following <--------------------+

A turn of the loop appends any number of batches to a partition led here and then flushes once:

    append   check the batch, give it offsets, copy it into the ring's unpublished part, stamp it there
    flush    one write of all of it to the segment, then publish it in the ring, then move the ends

A turn that appends more than the ring holds is flushed in between.

So a batch is in the file before anybody can see it, and the ring is a window on the file. Only a leader has a ring:
a follower's would be read by nobody. A follower appends what its leader gives it, byte for byte.

A write that fails for lack of space is cut off again, and with it everything that this turn had appended: offsets,
producer states and the ring's unpublished part go back; nobody has seen any of it.

Invariants: log_end_offset of the log <= next_offset, equal between turns; there is a `leader` (the ledger) exactly
while this broker serves the partition, and never a `follower` beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from node import journal
from node.core.cluster.image import PartitionRecord
from node.core.replica.follower import Compacted, Follower, Producers, Truncation
from node.core.replica.isr import BrokerFact
from node.core.replica.leader import Leader
from node.window import Window
from shmlog.clock import NS_PER_MS, NS_PER_S, Clock
from shmlog.errors import (
    Code,
    CorruptLog,
    CorruptMessage,
    DiskFull,
    InvalidRecord,
    InvalidRequest,
    NotEnoughReplicas,
    OffsetOutOfRange,
    RecordTooLarge,
    ShmlogError,
    StorageError,
    UnsupportedCompression,
)
from shmlog.ids import TopicPartition
from shmlog.log.log import Log
from shmlog.log.producers import Undo
from shmlog.log.received import check_replica_batches
from shmlog.log.storage import Buffer
from shmlog.protocol import peers
from shmlog.records import batch as batches
from shmlog.records.builder import stamp
from shmlog.records.compression import available
from shmlog.records.layout import FLAGS_OF_COMPACTION, HEADER_SIZE, Codec, Flag
from shmlog.ring.writer import RingFull
from shmlog.settings import TopicConfig

_KEY_FLAGS = int(Flag.KEYS | Flag.KEY_NULLS)
CLOCK_WAS_WRONG_NS = 60 * NS_PER_S


class Appended(NamedTuple):
    """Where a batch is. It is stored once the ledger's end has passed `end_offset`, in the same leader epoch."""

    base_offset: int
    end_offset: int
    append_time_ns: int
    leader_epoch: int


class Fetched(NamedTuple):
    """What a read found, with the ends of the partition at that moment."""

    data: bytes
    high_watermark: int
    log_start: int


class Partition:
    """A replica of a partition. One owner: the loop."""

    def __init__(
        self,
        name: TopicPartition,
        topic_id: bytes,
        log: Log,
        config: TopicConfig,
        state: PartitionRecord,
        broker: int,
        clock: Clock,
    ) -> None:
        self.name = name
        self.topic_id = topic_id
        self.log = log
        self.config = config
        self.state = state
        self.window = Window()
        self.leader: Leader | None = None
        self.follower: Follower | None = None
        self.elected_epoch = -1  # the epoch that this broker was elected for and has prepared
        self.moving_to: int | None = None  # whom the partition is being handed to
        # By which durability ends are counted here; "os" only once the log's level says so (see `log.level`).
        self.counted_by: str = log.level
        self.is_damaged = False  # a read has found damage
        self.cutting = False  # a worker cuts the log: nobody else touches it
        self.next_offset = log.log_end_offset
        self._broker = broker
        # What is known to be committed while this broker does not lead: as it was written down last.
        self._high_watermark = log.high_watermark
        self._clock = clock
        self._last_append_time_ns = log.last_append_time_ns
        self._pending: list[tuple[batches.BatchHeader, memoryview]] = []
        self._undo: list[Undo | None] = []
        self._flush_error: DiskFull | None = None  # of a flush in between, for the turn's own flush

    # -- role -----------------------------------------------------------------------------------------

    @property
    def leader_epoch(self) -> int:
        """The newest leader epoch that is known here."""
        return self.state.leader_epoch

    @property
    def stored_end(self) -> int:
        """The end that counts at this topic's durability."""
        log = self.log
        return log.log_end_offset if self.config.durability == "os" else log.synced_end_offset

    def lead(self, facts: Mapping[int, BrokerFact], lag_time_ns: int, now_ns: int) -> None:
        """Serve: the start of the epoch for which this broker was elected is committed."""
        state, log = self.state, self.log
        self.follower = None
        self.next_offset = log.log_end_offset
        self._last_append_time_ns = log.last_append_time_ns
        self.leader = Leader(
            broker=self._broker,
            leader_epoch=state.leader_epoch,
            epoch_start=state.epoch_start,
            replicas=state.replicas,
            isr=state.isr,
            partition_epoch=state.partition_epoch,
            minimum_isr=self.config.minimum_isr(len(state.replicas)),
            durability=self.counted_by,
            written_end=log.log_end_offset,
            synced_end=log.synced_end_offset,
            high_watermark=self._high_watermark,
            log_start=log.log_start_offset,
            lag_time_ns=lag_time_ns,
            now_ns=now_ns,
        )
        self.leader.see_brokers(facts, now_ns)

    def resign(self) -> None:
        """Neither lead nor follow; between turns only. Whoever waits for this partition has to be told."""
        assert not self._pending
        self._high_watermark = self.high_watermark
        self.leader = None
        self.moving_to = None

    def follow(self) -> None:
        """Follow whoever leads by the newest state, once its epoch's start is committed."""
        state = self.state
        if self.follower is None:
            self.resign()
            self.follower = Follower(high_watermark=self._high_watermark)
        self.follower.follow(state.leader, state.leader_epoch, state.started, state.recovery_epoch)

    def stop_following(self) -> None:
        """This broker was elected."""
        self._high_watermark = self.high_watermark
        self.follower = None

    def confirmed(self) -> bool:
        """The image has news of the partition led here; True if the high watermark moved."""
        assert self.leader is not None
        moved = self.leader.confirm(
            self.state.isr,
            self.state.partition_epoch,
            self.config.minimum_isr(len(self.state.replicas)),
            self.counted_by,
        )
        return self._moved(moved)

    # -- append ---------------------------------------------------------------------------------------

    def append(self, frame: bytes, acks: str, no_space: str = "") -> Appended:
        """Admit one batch, exactly `frame`. Raises a typed error, and then nothing has changed.

        `no_space`: why the disk may take nothing more; "" if it may.

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
        if header.flags & FLAGS_OF_COMPACTION:
            raise InvalidRecord(f"{self.name}: only compaction makes batches with gaps")
        sequence_error: ShmlogError | None = None
        try:
            known = self.log.producers.check(header)
        except ShmlogError as error:
            sequence_error, known = error, None
        if known is not None:
            end = known.base_offset + header.record_count
            return Appended(known.base_offset, end, known.append_time_ns, self.leader_epoch)
        if no_space:
            raise DiskFull(f"{self.name}: {no_space}")
        assert self.leader is not None
        if acks == "all" and not self.leader.has_minimum:
            raise self.too_few("nothing was written", Code.NOT_ENOUGH_REPLICAS)
        now_ns = self._clock.wall_ns()
        self._check_content(frame, header, now_ns)
        if sequence_error is not None:
            raise sequence_error
        return self._admit(frame, header, now_ns)

    def too_few(self, fate: str, code: Code) -> NotEnoughReplicas:
        """The error for fewer in-sync replicas than the minimum."""
        assert self.leader is not None
        return NotEnoughReplicas(
            f"{self.name}: in-sync replicas that live: {list(self.leader.present)}, "
            f"min_insync_replicas is {self.leader.minimum}: {fate}",
            code=code,
            topic=self.name.topic,
            partition=self.name.partition,
        )

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
        if config.is_compacted and header.flags & _KEY_FLAGS != Flag.KEYS:
            raise InvalidRecord(
                f"{self.name} is compacted by key: every record needs one", topic=self.name.topic
            )

    def _admit(self, frame: bytes, header: batches.BatchHeader, now_ns: int) -> Appended:
        target = self._reserve(len(frame))
        base_offset = self.next_offset
        append_time_ns = max(now_ns, self._last_append_time_ns)
        if append_time_ns - now_ns > CLOCK_WAS_WRONG_NS:
            append_time_ns = now_ns  # the log begins a new segment: in one it never goes back
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
        return Appended(base_offset, self.next_offset, append_time_ns, self.leader_epoch)

    def _reserve(self, size: int) -> memoryview:
        try:
            return self.window.reserve(size, self.next_offset)
        except RingFull:
            # More than a ring in one turn. If this write fails, what it took back must be answered
            # before new batches take the same offsets: until the turn's flush nothing is admitted.
            self._flush_error = self._flush()
            if self._flush_error is not None:
                raise self._flush_error from None
            return self.window.reserve(size, self.next_offset)

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
        self.window.publish(self.next_offset)
        assert self.leader is not None
        self._moved(self.leader.written(self.next_offset))
        return None

    def _take_back(self) -> None:
        for undo in reversed(self._undo):
            self.log.producers.undo(undo)
        self._undo.clear()
        self._pending.clear()
        self.window.abort()
        self.next_offset = self.log.log_end_offset
        self._last_append_time_ns = self.log.last_append_time_ns

    # -- ends -----------------------------------------------------------------------------------------

    def synced(self, end_offset: int) -> bool:
        """A sync covers all below `end_offset`; True if the high watermark moved."""
        return self.leader is not None and self._moved(self.leader.synced(end_offset))

    def report(
        self,
        message: peers.PeerMessage,
        leader_epoch: int,
        stored_end: int,
        durability: str,
        now_ns: int,
        *,
        can_append: bool,
    ) -> bool:
        """A follower's stored end; True if the high watermark moved."""
        assert self.leader is not None
        moved = self.leader.report(
            message.broker,
            message.incarnation,
            leader_epoch,
            stored_end,
            durability,
            now_ns,
            can_append,
        )
        return self._moved(moved)

    def configure(self, config: TopicConfig) -> None:
        """New settings. `confirmed` tells the ledger."""
        self.config = self.log.config = config

    def _moved(self, moved: bool) -> bool:
        if moved:
            assert self.leader is not None
            self.window.settle(self.leader.high_watermark)
        return moved

    @property
    def high_watermark(self) -> int:
        """Records below it are committed and visible."""
        role = self.leader or self.follower
        return self._high_watermark if role is None else role.high_watermark

    @property
    def log_start(self) -> int:
        """The first offset that can be read."""
        return self.log.log_start_offset

    # -- following ------------------------------------------------------------------------------------

    def reconcile(self, seq: int, answer: peers.PartitionEpochs) -> Truncation | None:
        """Compare epoch histories (T1): where the log has to be cut before anything is fetched."""
        assert self.follower is not None
        return self.follower.handle_epochs(
            seq,
            answer.leader_epoch,
            answer.entries,
            answer.end_offset,
            answer.log_start,
            self.log.epochs.entries,
            self.log.log_end_offset,
            Compacted(answer.tombstones_dropped, self.log.compaction.compacted_below),
            _producers(answer),
        )

    def was_cut(self) -> None:
        """The cut that `reconcile` wanted is done: all that is remembered of the log's end is read again."""
        self.cutting = False
        self.next_offset = self.log.log_end_offset
        if self.follower is not None:
            self.follower.truncated()
        self._high_watermark = min(self._high_watermark, self.log.log_end_offset)

    def append_replica(self, frame: Buffer, compacted_below: int = 0) -> None:
        """Append a leader's batches as they are; its log is compacted up to `compacted_below`.

        Raises: CorruptMessage: nothing was appended. DiskFull: nothing either.
        """
        log, now_ns = self.log, self._clock.monotonic_ns()
        found = check_replica_batches(
            memoryview(frame),
            expected_offset=log.log_end_offset,
            topic_id=self.topic_id,
            partition=self.name.partition,
            last_epoch=log.epochs.last_epoch,
        )
        log.copied_from_compacted(compacted_below)
        log.append(found, now_ns)
        for header, _ in found:
            log.producers.apply(header, header.base_offset, header.append_time_ns, now_ns)
        self.next_offset = log.log_end_offset

    # -- read -----------------------------------------------------------------------------------------

    def check_offset(self, offset: int) -> None:
        """Raises OffsetOutOfRange (1) below the log start or beyond the end."""
        if not self.log.log_start_offset <= offset <= self.log.log_end_offset:
            raise OffsetOutOfRange(
                f"{self.name}: offset {offset} is out of range, the log holds "
                f"{self.log.log_start_offset} up to, not including, {self.high_watermark}",
                log_start=self.log.log_start_offset,
                high_watermark=self.high_watermark,
            )

    def divergence(self, offset: int, last_epoch: int) -> tuple[int, int] | None:
        """Does the log lack what a reader has read, whose last record below `offset` had `last_epoch`?

        Then the largest known epoch at or below it, and its end. None if not, or if that cannot be told.
        """
        if last_epoch < 0:
            return None
        epoch, end = self.log.epochs.end_of(last_epoch, self.log.log_end_offset)
        if epoch < 0 or (epoch == last_epoch and end >= offset):
            return None
        return epoch, end

    def read(self, offset: int, max_bytes: int) -> Fetched:
        """Whole committed batches from the one that holds `offset`: at least one if there is any.

        Raises: OffsetOutOfRange. StorageError: damage, and another replica is about to lead. CorruptLog: damage, and
        no other replica is in sync.
        """
        self.check_offset(offset)
        end = self.high_watermark
        try:
            data = self._read(offset, max_bytes, end)
        except CorruptLog as error:
            if self.successor is None:
                raise
            raise StorageError(f"{error}; another replica takes over") from None
        return Fetched(data, end, self.log.log_start_offset)

    @property
    def successor(self) -> int | None:
        """Another member whose broker is fit; None if there is none, or another broker leads."""
        if self.leader is None:
            return None
        others = (b for b in self.state.replicas if b in self.leader.present and b != self._broker)
        return next(others, None)

    def read_for_replica(self, offset: int, max_bytes: int) -> bytes:
        """Whole batches up to the end, committed or not. Raises CorruptLog."""
        return self._read(offset, max_bytes, self.log.log_end_offset)

    def _read(self, offset: int, max_bytes: int, end: int) -> bytes:
        if offset >= end:
            return b""
        found = self.window.read(offset, max_bytes, end, self.config.max_message_bytes)
        if found:
            return found
        try:
            return self.log.read(offset, max_bytes=max_bytes, end_offset=end)
        except CorruptLog as error:
            if not self.is_damaged:
                journal.warning("damage", partition=str(self.name), reason=str(error))
            self.is_damaged = True
            raise

    @property
    def tombstones_end(self) -> int:
        """Tombstones below it have been seen by every replica that lives."""
        end = self.log.log_end_offset
        return end if self.leader is None else min(end, self.leader.lowest_end)

    def trim(self, offset: int) -> None:
        """Raise the log start (delete-records, retention); the next checkpoint removes files."""
        self.log.set_log_start(offset)
        self.window.drop_below(offset)
        if self.leader is not None:
            self._moved(self.leader.trimmed(offset))
        elif self.follower is not None:
            self.follower.trimmed(offset)
        else:
            self._high_watermark = max(self._high_watermark, offset)


def _producers(answer: peers.PartitionEpochs) -> Producers | None:
    told = answer.producers
    if told is None:
        return None
    return Producers(told, told[-1].producer_id if told and answer.more else None)
