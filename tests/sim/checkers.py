"""The invariants of docs/rules.md, looked at after every event, at what the event has changed.

One list says what is true: for each partition the batches that some leader's high watermark has passed
(`Truth`), for the metadata log those below a commit offset. It only grows; the one exception is the start of
an epoch won by a recovery election after a reboot, at durability `os`. Everything else is compared with it:
what other replicas hold, what a new leader holds, what was acked, what was read.

`image` is the committed metadata, applied set by set; elections, in-sync replicas and fences are judged on it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from node.core.cluster.elections import last_begun
from node.core.cluster.image import (
    BrokerRecord,
    FenceRecord,
    Image,
    PartitionRecord,
    TopicRecord,
    apply,
)
from node.core.raft.raft import Role
from node.metadata import decode_set
from node.partition import Partition
from shmlog.clock import NS_PER_MS
from shmlog.records import batch as batches
from shmlog.records.layout import Flag
from shmlog.settings import TopicConfig

from .group_checker import GroupAnswer, GroupChecker
from .ports import WALL_NS
from .truth import Batch, Replica, Row, Seen, Truth, rows_of
from .world import Process, Violation, World

Key = tuple[bytes, int]
BEHIND_GAP = int(Flag.BEHIND_GAP)
LAZY_RECORDS = 24  # compared later, or when a role changes
_decode = msgspec.msgpack.decode


class Checker:
    """All of it. Raises Violation."""

    def __init__(self) -> None:
        self.world: World
        self.image = Image()
        self.truths: dict[Key, Truth] = {}
        self.replicas: dict[tuple[int, Key], Replica] = {}
        self.metadata: dict[int, tuple[int, int, int]] = {}  # base -> end, term, crc
        self.metadata_end = 0
        self.metadata_terms: list[tuple[int, int]] = []  # last committed entry of each set
        self.raft_leaders: dict[int, tuple[int, int]] = {}
        self.leaders: dict[tuple[Key, int], int] = {}
        self.emptied: set[int] = set()  # brokers whose disk is empty, and the cluster does not know
        self.winners: dict[Key, int] = {}  # of recovery elections, whose logs are not compared yet
        self.begun: dict[
            Key, list[tuple[int, int, int]]
        ] = {}  # epoch, where it starts, when that was committed
        self.fenced_ns: dict[int, int] = {}
        self.terms: dict[int, int] = {}  # broker -> highest term it has shown
        self._seen: dict[int, Seen] = {}
        self.expected: dict[tuple[bytes, int], Any] = {}  # session, id -> what a client has asked
        self._session_of: dict[bytes, Seen] = {}
        self.groups: GroupChecker | None = None
        self.checks = 0
        self.hang_ns = 0

    def attach(self, world: World) -> None:
        self.world = world
        self.hang_ns = world.settings.broker_hang_timeout * NS_PER_MS

    # -- processes ------------------------------------------------------------------------------------

    def started(self, process: Process) -> None:
        assert process.node is not None
        seen = self._seen[process.number] = Seen()
        seen.term = process.node.metadata.raft.term
        if seen.term < self.terms.get(process.broker, 0):
            # The term of before was promised only once it was stored.
            log = process.node.metadata
            if not log.raft.is_abstaining:
                raise Violation(
                    f"I12 {process}: term {seen.term}, it had {self.terms[process.broker]} stored"
                )

        retention = process.node.catalog.retention
        drop = retention._drop

        def look_first(partition: Partition, *args: Any) -> None:
            # What became committed in this very turn must be seen before it goes.
            self._check_raft(process, seen, dying=False)
            self._check_partition(process, partition)
            drop(partition, *args)

        retention._drop = look_first  # type: ignore[method-assign]

    def died(self, process: Process) -> None:
        seen = self._seen.get(process.number)
        if seen is None or process.node is None:
            return
        self.turned(process, dying=True)
        for (broker, key), replica in self.replicas.items():
            if broker == process.broker and replica.incarnation == process.incarnation:
                partition = process.node.catalog.find(*key)
                whole = partition is not None and not partition.cutting
                if partition is not None and whole and partition.log is replica.log:
                    self._compare(process, partition, key, replica)
                replica.log = None
                replica.leads = False
        del self._seen[process.number]
        self._session_of = {s: p for s, p in self._session_of.items() if p is not seen}

    def rebooted(self) -> None:
        for replica in self.replicas.values():
            replica.unknown = True
            replica.log = None
            replica.leads = False
        self._seen.clear()
        self._session_of.clear()
        self.fenced_ns.clear()

    def replaced(self, broker: int) -> None:
        """The broker's disk is empty."""
        for (owner, _), replica in self.replicas.items():
            if owner == broker:
                replica.unknown = True
        self.emptied.add(broker)

    def turned(self, process: Process, *, dying: bool = False) -> None:
        """A turn of this process is over, or was cut short."""
        node = process.node
        assert node is not None
        self.checks += 1
        seen = self._seen[process.number]
        seen.image_before = seen.image
        self._check_raft(process, seen, dying=dying)
        for partition in node.context.partitions.values():
            if not partition.cutting:
                self._check_partition(process, partition)
        if seen.acks:
            acks, seen.acks = seen.acks, []
            for info, result in acks:
                if isinstance(info, GroupAnswer):
                    info.judge(process, result)
                else:
                    self._check_ack(process, info, result)

    # -- metadata -------------------------------------------------------------------------------------

    def _check_raft(self, process: Process, seen: Seen, *, dying: bool) -> None:
        assert process.node is not None
        metadata = process.node.metadata
        raft = metadata.raft
        if raft.term < seen.term:
            raise Violation(f"I2 {process}: term went from {seen.term} to {raft.term}")
        seen.term = raft.term
        stored = metadata._stored.term
        if stored > self.terms.get(process.broker, 0):
            self.terms[process.broker] = stored
        if raft.role is Role.LEADER and seen.leader_of != raft.term:
            seen.leader_of = raft.term
            who = (process.broker, process.incarnation)
            if self.raft_leaders.setdefault(raft.term, who) != who:
                raise Violation(
                    f"I1 term {raft.term} is led by {who} and {self.raft_leaders[raft.term]}"
                )
            if raft.end_offset < self.metadata_end:
                raise Violation(
                    f"I12 leader completeness: {process} leads term {raft.term} up to "
                    f"{raft.end_offset}, committed is {self.metadata_end}"
                )
        if raft.commit_offset < seen.commit:
            raise Violation(f"I12 {process}: commit went back to {raft.commit_offset}")
        # Who was killed may have known of a commit before it had written what was committed.
        commit = (
            min(raft.commit_offset, metadata.log.log_end_offset) if dying else raft.commit_offset
        )
        if commit > seen.commit:
            self._committed(process, seen.commit, commit, dying=dying)
            seen.commit = commit
        if metadata.image.offset < seen.image.offset:
            raise Violation(f"I2 {process}: image went back to {metadata.image.offset}")
        seen.image = metadata.image

    def _committed(self, process: Process, start: int, end: int, *, dying: bool) -> None:
        assert process.node is not None
        log, terms = process.node.metadata.log, process.node.metadata.raft._terms
        offset = start
        while offset < end:
            data = log.read(offset, max_bytes=1 << 20, end_offset=end)
            if not data and dying:
                return  # likewise, and what it had ends elsewhere
            assert data, f"{process}: nothing ends at or below {end}, where it has committed"
            view = memoryview(data)
            for position, header in batches.iterate(view):
                if dying and terms.term_before(header.end_offset) != header.leader_epoch:
                    return  # it was killed before it had cut what is not the leader's
                entry = (header.end_offset, header.leader_epoch, header.header_crc)
                offset = header.end_offset
                known = self.metadata.get(header.base_offset)
                if known is not None:
                    if known != entry:
                        raise Violation(
                            f"I12 {process}: metadata at {header.base_offset} is {entry}, "
                            f"committed was {known}"
                        )
                    continue
                if header.base_offset != self.metadata_end:
                    raise Violation(
                        f"I12 {process}: commits {header.base_offset}, known end {self.metadata_end}"
                    )
                self.metadata[header.base_offset] = entry
                self.metadata_end = header.end_offset
                records = decode_set(
                    batches.RecordBatch(view[position : position + header.batch_size], header)
                )
                old = self.image
                self.image = apply(old, records, header.end_offset)
                self.world.trace("committed", header.end_offset, header.leader_epoch)
                if self.world.log is not None:
                    self.world.log.append(f"             {records}")
                for record in records:
                    self._judge(old, record)

    def _judge(self, old: Image, record: Any) -> None:
        now_ns = self.world.now_ns
        match record:
            case BrokerRecord():
                before = old.brokers.get(record.broker)
                if before is not None and before.incarnation > record.incarnation:
                    raise Violation(f"I2 {record} after incarnation {before.incarnation}")
                self.fenced_ns.pop(record.broker, None)
                self.emptied.discard(record.broker)
                self._check_lossy(record)
            case FenceRecord():
                if record.fenced:
                    self.fenced_ns.setdefault(record.broker, now_ns)
                else:
                    self.fenced_ns.pop(record.broker, None)
            case TopicRecord():
                topic = self.image.by_id(record.topic_id)
                count = record.partition_count if topic is None else len(topic.partitions)
                for index in range(count):
                    key = (record.topic_id, index)
                    if key not in self.truths:
                        self.truths[key] = Truth(f"{record.name}-{index}")
            case PartitionRecord():
                self._judge_partition(old, record)
        for topic in self.image.topics.values():
            if topic.config.durability != "disk":
                for state in topic.partitions:
                    self.truths[state.topic_id, state.partition].always_disk = False

    def _check_lossy(self, record: BrokerRecord) -> None:
        for (broker, key), replica in self.replicas.items():
            if broker != record.broker or replica.incarnation != record.incarnation:
                continue
            if replica.lossy:
                replica.lossy = False
                state = self.image.partition(*key)
                if state is not None and broker in state.isr:
                    raise Violation(f"I10 lossy broker {broker} is in sync: {state}")

    def _judge_partition(self, old: Image, new: PartitionRecord) -> None:
        key = (new.topic_id, new.partition)
        truth = self.truths.get(key)
        if truth is None:
            name = old.names.get(new.topic_id, "?")
            truth = self.truths[key] = Truth(f"{name}-{new.partition}")
        before = old.partition(*key)
        if before is None:
            return
        recovered = new.recovery_epoch != before.recovery_epoch
        if recovered:
            self.winners[key] = new.leader
        if new.leader_epoch < before.leader_epoch or new.partition_epoch < before.partition_epoch:
            raise Violation(f"I2 {before} -> {new}")
        if new.leader != before.leader and new.leader_epoch == before.leader_epoch:
            raise Violation(f"I1 another leader at the same epoch: {before} -> {new}")
        if new.leader != -1 and new.leader not in new.isr:
            raise Violation(f"E1 the leader is no member: {new}")
        if new.leader not in (-1, before.leader) and new.leader not in before.isr and not recovered:
            raise Violation(f"E1 {new.leader} was no member: {before} -> {new}")
        topic = self.image.by_id(new.topic_id)
        assert topic is not None
        minimum = topic.config.minimum_isr(len(new.replicas))
        gone = set(before.isr) - set(new.isr)
        if gone - set(new.lossy) and len(new.isr) < minimum and not recovered:
            raise Violation(f"J7 {before.isr} -> {new.isr}, the minimum is {minimum}")
        if new.started and not before.started:
            begun = (new.leader_epoch, new.epoch_start, self.world.now_ns)
            self.begun.setdefault(key, []).append(begun)
            if new.epoch_start < truth.end:
                self._judge_loss(key, truth, before, new)
        for broker in set(new.isr) - set(before.isr):
            if not recovered:
                self._check_member(key, truth, broker, new.isr)

    def _judge_loss(
        self, key: Key, truth: Truth, before: PartitionRecord, new: PartitionRecord
    ) -> None:
        # Its winner may have been elected once more before an epoch of it began.
        recovery = new.recovery_epoch > last_begun(before)
        if not recovery or self.world.boots == 1 or truth.always_disk:
            raise Violation(
                f"I7 {truth.name}: epoch {new.leader_epoch} starts at {new.epoch_start}, "
                f"committed is {truth.end}: {new}"
            )
        self._lose(truth, new.epoch_start)

    def _lose(self, truth: Truth, offset: int) -> None:
        truth.cut(offset, self.world.now_ns)
        if self.groups is not None:
            self.groups.lost(truth)
        self.world.count("losses after a reboot")
        self.world.trace("lost", truth.name, offset)

    # -- replicas -------------------------------------------------------------------------------------

    def _check_partition(self, process: Process, partition: Partition) -> None:
        key = (partition.topic_id, partition.name.partition)
        if key[0] not in self.image.names:
            return  # deleted, and it does not know
        log = partition.log
        end = log.log_end_offset
        replica = self.replicas.get((process.broker, key))
        if replica is None:
            replica = self.replicas[process.broker, key] = Replica()
        truth = self.truths[key]
        if replica.log is not log:
            self._opened(process, partition, key, truth, replica)
        if (partition.counted_by, log.level) == ("os", "disk"):
            raise Violation(f"I10 {process} {partition.name} counts by os, its log's level is disk")
        high_watermark = partition.high_watermark
        leader = partition.leader
        if leader is not None:
            if not replica.leads or replica.epoch != partition.leader_epoch:
                replica.leads, replica.epoch = True, partition.leader_epoch
                replica.end = end
                self._leads(process, partition, key, truth, replica)
            if high_watermark > truth.end:
                replica.end = end
                self._extend(process, partition, key, truth, high_watermark)
        else:
            if replica.leads and truth.end < high_watermark <= end:
                # It moved and was deposed in one turn: what all members have stored is committed.
                replica.end = end
                self._extend(process, partition, key, truth, high_watermark, replica.epoch)
            replica.leads = False
        if log._generation != replica.generation:
            replica.generation = log._generation
            replica.checked = replica.start = log.log_start_offset
            replica.end = end
            self._check_self(key, truth, process.broker, replica)
        if log.compaction is not replica.compaction:
            replica.compaction = log.compaction
            if partition.config.is_compacted:
                # Behind the high watermark may be what is still to be cut.
                committed = min(partition.high_watermark, truth.end)
                self._check_compacted(process, partition, truth, committed)
        if log.log_start_offset > replica.start:
            self._judge_start(process, partition, key, truth, replica.start)
            replica.start = log.log_start_offset
        if end < replica.end:
            replica.checked = min(replica.checked, end)
            replica.end = end
            self._check_self(key, truth, process.broker, replica)
        replica.end = end
        if high_watermark != replica.high_watermark:
            alone = len(partition.state.replicas) == 1  # then all that is found at the start counts
            if high_watermark > truth.highest and not (alone and leader is None):
                raise Violation(
                    f"I3 {process} {partition.name}: high watermark {high_watermark}, "
                    f"committed is {truth.highest}"
                )
            if not log.log_start_offset <= high_watermark <= end:
                raise Violation(
                    f"I3 {process} {partition.name}: high watermark {high_watermark} of "
                    f"{log.log_start_offset} to {end}"
                )
            if (
                leader is not None
                and high_watermark < replica.high_watermark
                and replica.losses == len(truth.losses)
            ):
                raise Violation(
                    f"H3 {process} {partition.name}: {high_watermark} is less than before"
                )
            replica.high_watermark = high_watermark
            replica.losses = len(truth.losses)
        if min(end, truth.end) - replica.checked > LAZY_RECORDS:
            self._compare(process, partition, key, replica)

    def _judge_start(
        self, process: Process, partition: Partition, key: Key, truth: Truth, before: int
    ) -> None:
        """I22: a log start has risen. By delete-records, by a leader's rule, or because a leader's had."""
        log, config = partition.log, partition.config
        start, state = log.log_start_offset, self.image.partition(*key)
        if state is None or start <= max(state.log_start, truth.given_up):
            return
        what = f"I22 {process} {partition.name}: log start {before} -> {start}"
        if "delete" not in config.cleanup_policy:
            raise Violation(f"{what}, only compacted")
        if partition.leader is None:
            raise Violation(f"{what}, no leader's was above {truth.given_up}")
        if start > partition.high_watermark:
            raise Violation(f"{what}, committed is {partition.high_watermark}")
        self.world.count("retention")
        truth.given_up = start
        left = log.bytes_from(start, 1 << 60)
        if 0 <= config.retention_bytes <= left:
            return
        # By the clock as it was when the process began: it has seen, or not felt, whatever was done to it since.
        now_ns = WALL_NS + self.world.now_ns + process.began_wall_jump_ns
        behind = (s for s in log.segments if s.size and s.base_offset >= truth.end)
        lowest = min((s.first_append_time_ns for s in behind), default=1 << 63)
        for base, append_ns in truth.append_times_from(before, lowest).items():
            age_ms = (now_ns - append_ns) // NS_PER_MS
            if base < start and not 0 <= config.retention <= age_ms:
                raise Violation(
                    f"{what}: {base} is {age_ms} ms old, retention {config.retention}; {left} bytes are left, "
                    f"retention_bytes {config.retention_bytes}"
                )

    def _rows(self, partition: Partition, end: int) -> list[Row]:
        log, rows = partition.log, []
        offset = log.log_start_offset
        while offset < end:
            data = log.read(offset, max_bytes=1 << 20, end_offset=end)
            if not data:
                break
            for position, header in batches.iterate(memoryview(data)):
                rows += rows_of(header, data[position : position + header.batch_size])
                offset = header.end_offset
        return [row for row in rows if row[0] >= log.log_start_offset]

    def _check_compacted(
        self, process: Process, partition: Partition, truth: Truth, end: int
    ) -> dict[bytes | None, Row]:
        """I22: each key's newest record stays, and what a delete took does not come back. The table up to `end`."""
        start, rows = partition.log.log_start_offset, self._rows(partition, end)
        due_ns = self.deletes_due_ns(partition.config, truth)
        wrong = "" if truth.losses else truth.wrong_rows(rows, start, end, due_ns)
        if wrong:
            raise Violation(f"I22 {process} {partition.name}: {wrong}")
        newest = {row[1]: row for row in rows}
        return {key: row for key, row in newest.items() if row[2] is not None}

    def deletes_due_ns(self, config: TopicConfig, truth: Truth) -> int:
        """Tombstones committed by then may be gone; any, once a wall clock was wrong or commits were given up."""
        if truth.losses or self.world.counts.get("faults: wall clock"):
            return self.world.now_ns
        return self.world.now_ns - config.delete_retention * NS_PER_MS

    def lagging_start(self) -> str:
        """Whose log start is below its leader's; to be asked when all is whole."""
        for topic in self.image.topics.values():
            for state in topic.partitions:
                key = (state.topic_id, state.partition)
                leader = self.replicas.get((state.leader, key))
                for broker in state.replicas:
                    replica = self.replicas.get((broker, key))
                    if leader is not None and replica is not None and replica.start < leader.start:
                        return f"{topic.name}-{key[1]} begins at {replica.start} on {broker}, {leader.start}"
        return ""

    def _opened(
        self, process: Process, partition: Partition, key: Key, truth: Truth, replica: Replica
    ) -> None:
        log = partition.log
        replica.log, replica.incarnation = log, process.incarnation
        replica.unknown = False
        replica.leads = False
        replica.epoch = -1
        replica.end = log.log_end_offset
        replica.checked = replica.start = log.log_start_offset
        replica.generation = log._generation
        replica.high_watermark = 0
        replica.lossy = log.recovery.lossy
        if replica.lossy:
            self.world.count("lossy replicas")
            if self.world.boots == 1 and not self.world.rotten:
                raise Violation(
                    f"I20 {process} {partition.name} is lossy without a reboot: "
                    f"{log.recovery.lossy_reason}"
                )
            if self.image.is_current(process.broker, process.incarnation):
                # There was no space to open it before: it was left out of the registration, hence taken for lossy.
                replica.lossy = False
        if len(partition.state.replicas) == 1 and log.log_end_offset > truth.end:
            # Alone: all that is found counts.
            self._extend(process, partition, key, truth, log.log_end_offset)
        self._check_self(key, truth, process.broker, replica)

    def _check_self(self, key: Key, truth: Truth, broker: int, replica: Replica) -> None:
        state = self.image.partition(*key)
        if state is not None and broker in state.isr:
            self._check_member(key, truth, broker, state.isr)

    def _check_member(self, key: Key, truth: Truth, broker: int, isr: Any) -> None:
        """I5: a member that is not lossy holds every committed record."""
        replica = self.replicas.get((broker, key))
        if replica is None:
            end = 0
        elif replica.unknown or replica.lossy:
            return
        else:
            end = replica.end
        if end < truth.end:
            if self._awaits_recovery(key):
                return
            raise Violation(
                f"I5 {truth.name}: member {broker} of {isr} ends at {end}, committed is {truth.end}"
            )

    def _awaits_recovery(self, key: Key) -> bool:
        """Has a recovery election been won, and no epoch begun since?"""
        state = self.image.partition(*key)
        return state is not None and not state.started and state.recovery_epoch > last_begun(state)

    def _leads(
        self, process: Process, partition: Partition, key: Key, truth: Truth, replica: Replica
    ) -> None:
        epoch = partition.leader_epoch
        if self.leaders.setdefault((key, epoch), process.number) != process.number:
            raise Violation(f"I1 two leaders of {partition.name} at epoch {epoch}")
        if epoch not in {e for e, _, _ in self.begun.get(key, ())}:
            raise Violation(f"E8 {process} leads {partition.name} at {epoch}, which is not started")
        state = self.image.partition(*key)
        if state is None or state.leader_epoch != epoch:
            return  # it is deposed already
        if partition.log.log_end_offset < truth.end:
            raise Violation(
                f"I7 {process} leads {partition.name} up to {partition.log.log_end_offset}, "
                f"committed is {truth.end}"
            )
        self._compare(process, partition, key, replica)

    def _extend(
        self,
        process: Process,
        partition: Partition,
        key: Key,
        truth: Truth,
        high_watermark: int,
        leader_epoch: int | None = None,
    ) -> None:
        """A leader's high watermark has passed what nobody's had."""
        state = self.image.partition(*key)
        if state is None:
            return  # the topic is deleted
        if leader_epoch is None:
            leader_epoch = partition.leader_epoch
        for epoch, start, _ in self.begun.get(key, ()):
            # Below it the old epoch's members had it all; a deposed leader may still hear of that.
            if epoch > leader_epoch and high_watermark > start:
                raise Violation(
                    f"H1 {process} {partition.name}: commits up to {high_watermark} at epoch "
                    f"{leader_epoch}, epoch {epoch} starts at {start}"
                )
        offset = max(truth.end, partition.log.log_start_offset)
        if offset > truth.end:
            truth.end = offset
        while offset < high_watermark:
            data = partition.log.read(offset, max_bytes=1 << 20, end_offset=high_watermark)
            for position, header in batches.iterate(memoryview(data)):
                if header.base_offset != offset and not (
                    truth.losses and header.flags & BEHIND_GAP
                ):
                    raise Violation(f"I8 {partition.name}: {header.base_offset} follows {offset}")
                one = Batch(
                    header, data[position : position + header.batch_size], self.world.now_ns
                )
                wrong = truth.extend(one)
                if wrong is not None and not truth.losses:
                    raise Violation(wrong)
                offset = header.end_offset
                if self.groups is not None:
                    self.groups.committed(key, one)
        self.world.trace("hw", truth.name, truth.end)
        minimum = self.image.by_id(key[0]).config.minimum_isr(len(state.replicas))  # type: ignore[union-attr]
        held = 0
        for broker in state.replicas:
            replica = self.replicas.get((broker, key))
            has_it = replica is not None and not replica.unknown and replica.end >= truth.end
            held += has_it or broker in self.emptied  # it had it when it said so
        for broker in state.isr:
            self._check_member(key, truth, broker, state.isr)
        if held < min(minimum, self.lowest_minimum(key)):
            raise Violation(
                f"I6 {truth.name}: committed up to {truth.end} with {held} copies, minimum {minimum}"
            )

    def lowest_minimum(self, key: Key) -> int:
        """Images differ for a moment after a change: the lowest minimum that any broker goes by, or went by when the
        turn began that is looked at.
        """
        lowest = 99
        for seen in self._seen.values():
            for image in (seen.image_before, seen.image):
                topic = image.by_id(key[0])
                if topic is not None and key[1] < len(topic.partitions):
                    replicas = len(topic.partitions[key[1]].replicas)
                    lowest = min(lowest, topic.config.minimum_isr(replicas))
        return lowest

    def _compare(self, process: Process, partition: Partition, key: Key, replica: Replica) -> None:
        """I4: what is committed is the same here, as far as this log goes."""
        truth, log = self.truths[key], partition.log
        offset = max(replica.checked, log.log_start_offset, truth.start)
        end = min(log.log_end_offset, truth.end)
        state = self.image.partition(*key)
        if state is None:
            return
        member = process.broker in state.isr
        while offset < end:
            data = log.read(offset, max_bytes=1 << 20, end_offset=end)
            if not data:
                break
            for position, header in batches.iterate(memoryview(data)):
                known = truth.at(header.base_offset)
                whole = data[position : position + header.batch_size]
                if known is not None and not known.is_same(header, whole):
                    if self._is_recovered_from(key, process.broker, truth):
                        self._lose(truth, header.base_offset)
                        replica.checked = max(replica.checked, offset)
                        return
                    if self._awaits_recovery(key):
                        return  # what the others have makes way for the winner's log
                    if member or (
                        header.end_offset <= partition.high_watermark and not truth.losses
                    ):
                        raise Violation(
                            f"I4 {process} {partition.name} at {header.base_offset}: epoch "
                            f"{header.leader_epoch}, committed was epoch {known.header.leader_epoch}"
                        )
                    return  # it has diverged, and is still to be cut
                offset = header.end_offset
        replica.checked = max(replica.checked, offset)
        if state.started and self.winners.get(key) == process.broker:
            del self.winners[key]  # from here on its log is the truth

    def _is_recovered_from(self, key: Key, broker: int, truth: Truth) -> bool:
        """Has this broker won an election that may give up what was committed?"""
        return self.winners.get(key) == broker and self.world.boots > 1 and not truth.always_disk

    # -- answers --------------------------------------------------------------------------------------

    def request(self, process: Process, received: Any) -> None:
        seen = self._seen.get(process.number)
        if seen is None or not received.frames:
            return
        try:
            header = _decode(received.frames[0])
        except msgspec.DecodeError:
            return
        timeout_ns = header.get("timeout_ms", 30_000) * NS_PER_MS
        seen.opened[received.client, header["id"]] = self.world.now_ns + timeout_ns
        self._session_of[received.client] = seen
        if self.groups is not None and "group" in header:
            self.groups.heard(process, header)

    def answer(self, process: Process, session: bytes, frames: list[bytes]) -> None:
        seen = self._seen[process.number]
        answer = _decode(frames[0])
        name = (session, answer["id"])
        asked = seen.opened.pop(name, None)
        if session not in self.world.links:
            return
        if asked is None:
            raise Violation(f"I30 {process} answers {name} twice, or unasked: {answer}")
        info = self.expected.pop(name, None)
        if info is not None and not answer["error"]:
            results = answer.get("partitions", [answer])
            for result in results:
                if not result.get("error"):
                    seen.acks.append((info, result))

    def session_closed(self, session: bytes) -> None:
        seen = self._session_of.pop(session, None)
        if seen is not None:
            for name in [n for n in seen.opened if n[0] == session]:
                del seen.opened[name]

    def check_overdue(self, grace_ns: int) -> None:
        """I30: every request is answered, at the latest when its time is up."""
        now_ns = self.world.now_ns
        for process in self.world.living():
            seen = self._seen.get(process.number)
            for name, deadline_ns in seen.opened.items() if seen is not None else ():
                if now_ns > deadline_ns + grace_ns:
                    late_ms = (now_ns - deadline_ns) // NS_PER_MS
                    raise Violation(f"I30 {process} has not answered {name}, {late_ms} ms late")

    def _check_ack(self, process: Process, info: Any, result: Any) -> None:
        if info.acks == "0":
            return
        now_ns = self.world.now_ns
        fenced_ns = self.fenced_ns.get(process.broker)
        if fenced_ns is not None and now_ns - fenced_ns > self.hang_ns:
            raise Violation(
                f"I13 {process} acks {(now_ns - fenced_ns) // NS_PER_MS} ms after it was fenced"
            )
        topic = self.image.topics.get(result["topic"])
        if topic is None:
            return
        key = (topic.topic_id, result["partition"])
        epoch = result["leader_epoch"]
        later = [at for e, _, at in self.begun.get(key, ()) if e > epoch]
        if later and now_ns - later[0] > self.hang_ns:
            raise Violation(
                f"I13 {process} acks at epoch {epoch}, {(now_ns - later[0]) // NS_PER_MS} ms after "
                "the next one had begun"
            )
        if info.acks != "all":
            return
        truth, base = self.truths[key], result["base_offset"]
        batch = truth.at(base)
        if (batch is None and base >= truth.start) or base + info.count > truth.end:
            if any(start <= base < end for _, start, end in truth.losses):
                return
            raise Violation(
                f"I7 {process} {truth.name}: acks {base} to {base + info.count} at epoch {epoch}, "
                f"committed is {truth.end}"
            )
        if batch is not None and info.body_crc not in (None, batch.header.body_crc):
            raise Violation(f"I7 {truth.name}: {base} was acked, another batch is committed there")

    # -- the end --------------------------------------------------------------------------------------

    def final(self) -> None:
        """All replicas hold all that was committed, the same on each; of compacted ones each the same table."""
        tables: dict[Key, list[tuple[int, dict[bytes | None, Row]]]] = {}
        for process in self.world.living():
            assert process.node is not None
            for partition in process.node.context.partitions.values():
                key = (partition.topic_id, partition.name.partition)
                self._compare(process, partition, key, self.replicas[process.broker, key])
                if key[0] in self.image.names and partition.config.is_compacted:
                    truth = self.truths[key]
                    table = self._check_compacted(process, partition, truth, truth.end)
                    tables.setdefault(key, []).append((partition.log.log_start_offset, table))
        for key, found in tables.items():
            start = max(start for start, _ in found)
            first, *others = [
                {key: row for key, row in table.items() if row[0] >= start} for _, table in found
            ]
            for other in others:
                if other != first:
                    raise Violation(f"I22 {self.truths[key].name}: tables differ: {first}, {other}")
