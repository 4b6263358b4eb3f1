"""Which partitions this broker hosts, and in which role: follows the image.

    image says        leader is this broker, epoch new     store what is there, then report the epoch's start
                      ... and started                      lead
                      another one                          follow it
                      gone                                 close, move the files away

Opening a log, making a ring, cutting a log and removing files take long, so workers do them; until a partition is
open, requests for it are answered 5, and until its ring is there its batches go straight to the file.

Rings come out of a budget of bytes per broker. Where the budget or /dev/shm has no room, a partition gets a
*heap ring*: private memory behind the same interface, so that the broker serves fresh data without reading
files; readers then fetch by socket. That is said once.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from node import journal
from node.compaction import Compaction
from node.core.cluster.image import Image, PartitionRecord, Topic
from node.core.replica.follower import Truncation
from node.core.replica.isr import BrokerFact
from node.core.replica.leader import Leader, Proposal
from node.handlers.exchange import COMMITTED, LEADERSHIP, METADATA, STORED, Context
from node.io.compactor import Compactor
from node.io.workers import Lane, Workers, is_no_space
from node.partition import Partition
from node.replication import Replication
from node.retention import Retention
from node.rings import Rings
from node.space import Space
from node.upkeep import Upkeep
from shmlog.clock import NS_PER_MS, NS_PER_S
from shmlog.errors import Code, InvalidConfig, ShmlogError
from shmlog.ids import TopicPartition
from shmlog.log import opened as marks
from shmlog.log import paths
from shmlog.log.jobs import CheckpointJob
from shmlog.log.log import Log, move_to_deleted
from shmlog.log.producers import Producer, Remembered
from shmlog.log.storage import Storage
from shmlog.protocol import peers
from shmlog.protocol.peers import ProducerState
from shmlog.ring.layout import RingIdentity
from shmlog.ring.memory import SharedMemory
from shmlog.ring.reader import RingReader
from shmlog.ring.writer import RingWriter

CHANGE_NS = 2 * NS_PER_S
FATE_UNKNOWN = (Code.BROKER_NOT_AVAILABLE, Code.REQUEST_TIMED_OUT)


class LastStop(NamedTuple):
    """By what logs are to be judged: what is known of the stop before."""

    same_boot: bool
    clean: bool
    replaced: bool


class Catalog:
    """The hosted partitions. One owner: the loop.

    Invariant: `context.partitions` holds a partition exactly while its log is open.
    """

    def __init__(
        self,
        context: Context,
        storage: Storage,
        workers: Workers,
        rings: Rings,
        compactor: Compactor,
        data_dir: str,
        send: Callable[..., None],
        is_alive: Callable[[int, int], bool],
        *,
        same_boot: bool,
        clean: bool,
        replaced: bool,
        files_max: int,
    ) -> None:
        self._context = context
        self._storage = storage
        self._workers = workers
        self._rings = rings
        self._data_dir = data_dir
        self._is_alive = is_alive
        self._last_stop = LastStop(same_boot, clean, replaced)
        self._files_max = files_max
        self._lag_time_ns = context.settings.replica_lag_time_max * NS_PER_MS
        self.replication = Replication(
            peers.first_seq(context.identity.incarnation),
            context.clock,
            send,
            self.find,
            self._settled_by_report,
            self._grown,
            self._trimmed,
            self._cut,
        )
        self.upkeep = Upkeep(context.clock, workers, self._synced)
        self.space = Space(storage, data_dir, context.settings.disk_reserve_bytes)
        self.retention = Retention(
            context.clock,
            context.partitions,
            self.space,
            context.settings.disk_budget_bytes,
            self._trimmed,
            self.upkeep.written,
        )
        self.compaction = Compaction(
            context.clock,
            workers,
            storage,
            compactor,
            lambda partition: context.partitions.get(partition.name) is partition,
            self.retention.is_clock_doubtful,
            self.upkeep.trimmed,
            self.upkeep.written,
        )
        self._busy: set[tuple[str, int]] = (
            set()
        )  # names whose directory a worker opens, or has to cut
        # Topics with partitions that found no space, and by what circumstances they are to be opened.
        self._unopened: dict[bytes, LastStop] = {}
        # Of these, before the registration, what is here already.
        self._untold: set[TopicPartition] = set()
        self._is_registered = False
        self._reported: dict[Partition, None] = {}  # followers have reported: one may want to join
        self._begun: dict[Partition, int] = {}  # epochs whose start is to be reported
        self._ring_count = 0
        self._has_begun = False

    # -- following the image --------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Are all hosted partitions of the image open? New ones may wait for space, and those that were here once the
        broker is registered: a replica that it leaves out counts as lost.
        """
        return not self._busy and not self._untold

    @property
    def is_complete(self) -> bool:
        """Have all logs that were here at the start been opened? Else only the next start can say how they are."""
        return self._has_begun and not self._busy and not self._unopened

    def begin(self) -> None:
        """At the start, once the image is known: open what is hosted, set strays aside."""
        image = self._context.metadata.image
        hosted = [
            paths.partition_dir(topic.name, state.partition)
            for topic in image.topics.values()
            for state in topic.partitions
            if self._hosts(state)
        ]
        if len(hosted) > self._files_max:
            raise InvalidConfig(
                f"{len(hosted)} partitions, and their logs may have {self._files_max} open files: raise the limit "
                "(ulimit -n)"
            )
        mine = {*hosted, paths.partition_dir(paths.METADATA_TOPIC, 0)}
        marks.keep_only(self._storage, self._data_dir, mine)
        self._set_strays_aside(image)
        for topic in image.topics.values():
            self._follow_topic(topic, lane=Lane.OPEN)
        # From here on every log that is opened is a new one.
        self._last_stop, self._has_begun = (
            LastStop(same_boot=True, clean=True, replaced=False),
            True,
        )

    def follow(self, old: Image, new: Image) -> None:
        """The image has changed: open what is new, close what is gone, take on roles, settings, log starts."""
        for name, topic in old.topics.items():
            now = new.topics.get(name)
            if now is None or now.topic_id != topic.topic_id:
                self._close_topic(topic)
        if old.fenced != new.fenced or old.brokers != new.brokers:
            self.members_changed()  # before the ledgers hear of changed in-sync replicas
        for name, topic in new.topics.items():
            if old.topics.get(name) is not topic:
                self._follow_topic(topic)
        for waiter in self._context.purgatory.advance(("image", METADATA), new.offset):
            waiter.resume()

    def find(self, topic_id: bytes, index: int) -> Partition | None:
        """The open partition of a topic id."""
        name = self._context.metadata.image.names.get(topic_id)
        partition = self._context.partitions.get((name, index)) if name is not None else None
        return partition if partition is not None and partition.topic_id == topic_id else None

    def _hosts(self, state: PartitionRecord) -> bool:
        return self._context.identity.broker in state.replicas

    def _follow_topic(self, topic: Topic, lane: Lane = Lane.FILES) -> None:
        stop = self._unopened.get(topic.topic_id, self._last_stop)
        for state in topic.partitions:
            if not self._hosts(state):
                continue
            name = TopicPartition(topic.name, state.partition)
            partition = self._context.partitions.get(name)
            if partition is not None:
                self._apply(partition, topic, state)
            elif name not in self._busy:  # else, be it for a topic of that name before: afterwards
                self._busy.add(name)
                opening = partial(self._open, topic, state, stop)
                opened = partial(self._opened, topic, state, stop)
                self._workers.submit(lane, opening, opened)

    def _free(self, name: TopicPartition, log: Log) -> None:
        """The topic of a log was deleted while a worker had it: only now may a new one have the name."""
        self._busy.discard(name)
        self._delete(log)
        successor = self._context.metadata.image.topics.get(name.topic)
        if successor is not None:
            self._follow_topic(successor)

    def _open(self, topic: Topic, state: PartitionRecord, stop: LastStop) -> Log:
        log = Log.open(
            self._storage,
            f"{self._data_dir}/{paths.partition_dir(topic.name, state.partition)}",
            topic_id=topic.topic_id,
            partition=state.partition,
            config=topic.config,
            now_ns=self._context.clock.monotonic_ns(),
            same_boot=stop.same_boot,
            clean=stop.clean,
            replaced=stop.replaced and state.last_leader is not None,  # else nothing was promised
            replicated=len(state.replicas) > 1,
        )
        if topic.config.durability == "os" and log.level == "disk":
            try:
                log.set_level("os").run()  # before anything is counted by it
            except BaseException:
                log.close_files()
                raise
        return log

    def _opened(
        self,
        topic: Topic,
        state: PartitionRecord,
        stop: LastStop,
        log: object,
        error: BaseException | None,
    ) -> None:
        name = TopicPartition(topic.name, state.partition)
        self._busy.discard(name)
        if is_no_space(error):
            journal.warning("no space to open", partition=str(name))
            self._unopened[topic.topic_id] = stop
            here = f"{self._data_dir}/{paths.partition_dir(*name)}"
            if not self._is_registered and self._storage.exists(here):
                self._untold.add(name)
            return
        if error is not None:
            raise error
        assert isinstance(log, Log)
        if log.recovery.cut_bytes:
            journal.warning("torn tail cut", partition=str(name), cut_bytes=log.recovery.cut_bytes)
        current = self._context.metadata.image.by_id(topic.topic_id)
        if current is None:
            self._free(name, log)
            return
        broker = self._context.identity.broker
        partition = Partition(
            name, topic.topic_id, log, topic.config, state, broker, self._context.clock
        )
        self._context.partitions[name] = partition
        self._apply(partition, current, current.partitions[state.partition])
        for waiter in self._context.purgatory.drop_key(("image", METADATA)):
            waiter.resume()

    # -- roles ----------------------------------------------------------------------------------------

    def _apply(self, partition: Partition, topic: Topic, state: PartitionRecord) -> None:
        if partition.config.ring_bytes != topic.config.ring_bytes:
            # Another size: the next append has a new ring made. Readers see this one sealed.
            self._release_ring(partition)
            if partition.window.state != "asked":  # else _ring_made sees the other size
                partition.window.state = "none"
        if partition.config is not topic.config:
            partition.configure(topic.config)
            if partition.log.synced_end_offset < partition.log.log_end_offset:
                self.upkeep.written(partition)
        self._count(partition)
        before, partition.state = partition.state, state
        me = self._context.identity
        if state.leader == me.broker:
            if self._context.metadata.image.is_current(me.broker, me.incarnation):
                self._apply_leader(partition)
            else:
                # The incarnation before was elected. This one's registration brings a new epoch.
                self.replication.forget(partition)
                partition.stop_following()
        elif before is not state or partition.follower is None:
            self._resign(partition)
            partition.follow()
            self.replication.follow(partition)
        start = min(state.log_start, partition.log.log_end_offset)
        if start > partition.log_start and not partition.cutting:
            partition.trim(start)
            self._trimmed(partition)

    def _count(self, partition: Partition) -> None:
        """The durability by which ends are counted follows the topic's, but never ahead of the log's level."""
        log, wanted = partition.log, partition.config.durability
        if wanted == partition.counted_by or partition.cutting:
            return
        if wanted == "disk":
            partition.counted_by = "disk"  # the level follows once all that was reported is synced
            self.upkeep.written(partition)
            return

        job = log.set_level("os")
        change = log.level_changes

        def written() -> None:
            if partition.config.durability == "os" and log.level_changes == change:
                partition.counted_by = "os"
                if partition.leader is not None and partition.confirmed():
                    self.settled(partition)

        self._write_down(partition, job, written)

    def _write_down(
        self, partition: Partition, job: CheckpointJob, then: Callable[[], None] = lambda: None
    ) -> None:
        """A checkpoint out of turn. Without space for it, the next one writes what it had to write."""

        def written(_: object, error: BaseException | None) -> None:
            if error is None:
                then()
                return
            _raise_error(_, error)
            if self._context.partitions.get(partition.name) is partition and not partition.cutting:
                partition.log.checkpoint_failed(job)
                self.upkeep.written(partition)

        self._workers.submit(Lane.FILES, job.run, written)

    def _raise_level(self, partition: Partition) -> None:
        log = partition.log
        wanted = (
            partition.config.durability == partition.counted_by == "disk"
        )  # else "os" is on its way
        behind = wanted and log.level == "os"
        if behind and not partition.cutting and log.synced_end_offset == log.log_end_offset:
            self._write_down(partition, log.set_level("disk"))

    def registered(self) -> None:
        """The cluster has taken note of replicas that were lossy at the start."""
        self._is_registered = True
        for partition in self._context.partitions.values():
            if partition.log.recovery.lossy:
                self._write_down(partition, partition.log.forget_lossy())

    def _apply_leader(self, partition: Partition) -> None:
        state = partition.state
        if partition.elected_epoch != state.leader_epoch:
            self._elected(partition)
        elif state.started and partition.leader is None and not partition.cutting:
            now_ns = self._context.clock.monotonic_ns()
            partition.lead(self.members(), self._lag_time_ns, now_ns)
            journal.event(
                "leading",
                partition=str(partition.name),
                leader_epoch=state.leader_epoch,
                epoch_start=state.epoch_start,
                isr=state.isr,
            )
            self.settled(partition)
        elif partition.leader is not None and partition.confirmed():
            self.settled(partition)

    def _elected(self, partition: Partition) -> None:
        """E8: what is here becomes stored; then the epoch's start is reported, and served once committed.

        The start itself needs no sync of its own: it stands in the metadata log before anybody relies on it.
        """
        self._resign(partition)
        self.replication.forget(partition)
        if partition.cutting:
            return  # the cut ends first, and then this is looked at again
        partition.stop_following()
        state = partition.state
        epoch = partition.elected_epoch = state.leader_epoch
        if state.recovery_epoch == epoch:
            journal.warning(
                "elected though not in sync",
                partition=str(partition.name),
                leader_epoch=epoch,
                lost=state.lost,
            )
        partition.log.begin_epoch(epoch)
        job = partition.log.sync_job() if partition.config.durability == "disk" else None
        if job is None:
            self._begun[partition] = epoch
            return

        def stored(_: object, error: BaseException | None) -> None:
            if error is not None:
                raise error
            partition.log.finish_sync(job)
            if partition.elected_epoch == epoch == partition.state.leader_epoch:
                self._begun[partition] = epoch

        self._workers.submit(Lane.SYNC, job.run, stored)

    def report_epochs(self, now_ns: int) -> bool:
        """Have the epochs that were begun since the last turn committed; False if there are none."""
        begun, self._begun = self._begun, {}
        starts = tuple(
            peers.EpochStart(p.topic_id, p.name.partition, epoch, p.log.log_end_offset)
            for p, epoch in begun.items()
            if p.state.leader_epoch == epoch and self._context.partitions.get(p.name) is p
        )
        if not starts:
            return False
        identity = self._context.identity
        change = peers.StartEpochs(
            leader=identity.broker, incarnation=identity.incarnation, starts=starts
        )

        def done(_: int, error: ShmlogError | None) -> None:
            if error is not None:  # said again while the image does not have it
                for partition, epoch in begun.items():
                    if partition.elected_epoch == epoch and partition.leader is None:
                        self._begun[partition] = epoch

        self._context.metadata.submit(change, done, now_ns + CHANGE_NS)
        return True

    def _resign(self, partition: Partition) -> None:
        """If this broker led the partition, tell all who wait: their answer is 6."""
        if partition.leader is None:
            return
        partition.resign()
        self._release_ring(partition)
        partition.window.state = "none"
        self._wake_all(partition)

    def _wake_all(self, partition: Partition) -> None:
        for channel in (STORED, COMMITTED, LEADERSHIP):
            for waiter in self._context.purgatory.drop_key((partition, channel)):
                waiter.resume()

    def _cut(self, partition: Partition, truncation: Truncation) -> None:
        """Cut a followed log, in the file worker's queue: T2."""
        end = partition.log.log_end_offset
        entries = partition.log.epochs.entries
        if truncation == Truncation(end) and not (entries and entries[-1][1] >= end):
            partition.was_cut()
            return
        journal.event(
            "truncation",
            partition=str(partition.name),
            leader_epoch=partition.leader_epoch,
            from_offset=end,
            to_offset=truncation.end_offset,
            anew=truncation.anew,
        )
        self.upkeep.forget(partition)
        partition.cutting = True
        act = partial(partition.log.truncate_to, truncation.end_offset)
        if truncation.anew:
            assert partition.follower is not None
            follower = partition.follower
            known = follower.tombstones_known, tuple(follower.producers)
            act = partial(_start_anew, partition.log, truncation.end_offset, *known)

        def done(_: object, error: BaseException | None) -> None:
            if error is not None:
                raise error
            if self._context.partitions.get(partition.name) is not partition:
                self._free(partition.name, partition.log)
                return
            partition.was_cut()
            self.replication.follow(partition)
            self.upkeep.trimmed(partition)
            topic = self._context.metadata.image.topics[partition.name.topic]
            self._apply(partition, topic, topic.partitions[partition.name.partition])

        self._workers.submit(Lane.FILES, act, done)

    # -- members --------------------------------------------------------------------------------------

    def members(self) -> dict[int, BrokerFact]:
        """Every registered broker: its incarnation, and does it live and may it lead."""
        image, me = self._context.metadata.image, self._context.identity.broker
        return {
            broker: BrokerFact(
                record.incarnation,
                broker not in image.fenced
                and (broker == me or self._is_alive(broker, record.incarnation)),
            )
            for broker, record in image.brokers.items()
        }

    def members_changed(self) -> None:
        """A broker died, was fenced or came back: who waits for too few replicas is told."""
        members, now_ns = self.members(), self._context.clock.monotonic_ns()
        for partition in self._context.partitions.values():
            if partition.leader is not None:
                had = partition.leader.has_minimum
                partition.leader.see_brokers(members, now_ns)
                if had and not partition.leader.has_minimum:
                    self._wake_all(partition)

    def propose_isr(self, now_ns: int, *, all_of_them: bool) -> None:
        """Whom a partition led here wants in, or out of, its in-sync replicas: each second all are asked."""
        reported, self._reported = self._reported, {}
        for partition in self._context.partitions.values() if all_of_them else reported:
            leader = partition.leader
            if leader is None or not (leader.wants_plan or all_of_them):
                continue
            proposal = leader.plan_isr(now_ns)
            if proposal is not None:
                self._propose(partition, leader, proposal, now_ns)

    def _settled_by_report(self, partition: Partition, moved: bool) -> None:
        self._reported[partition] = None
        if moved:
            self.settled(partition)

    def _propose(
        self, partition: Partition, leader: Leader, proposal: Proposal, now_ns: int
    ) -> None:
        change = peers.ProposeIsr(
            topic_id=partition.topic_id,
            partition=partition.name.partition,
            leader=self._context.identity.broker,
            leader_epoch=partition.leader_epoch,
            partition_epoch=proposal.partition_epoch,
            isr=proposal.isr,
        )

        def done(_: int, error: ShmlogError | None) -> None:
            if error is None or partition.leader is not leader:
                return  # the image has told the ledger
            if error.code in FATE_UNKNOWN:
                leader.proposal_unknown(proposal)
            elif leader.proposal_refused(proposal, error.code):
                self.settled(partition)

        self._context.metadata.submit(change, done, now_ns + CHANGE_NS)

    # -- closing --------------------------------------------------------------------------------------

    def retry_opening(self) -> None:
        """Try again to open what found no space."""
        for topic_id in list(self._unopened):
            topic = self._context.metadata.image.by_id(topic_id)
            if topic is not None:
                self._follow_topic(topic)
        self._unopened.clear()
        self._untold.clear()

    def _close_topic(self, topic: Topic) -> None:
        for state in topic.partitions:
            partition = self._context.partitions.get((topic.name, state.partition))
            if partition is not None and partition.topic_id == topic.topic_id:
                self._close(partition, delete=True)

    def _close(self, partition: Partition, *, delete: bool) -> None:
        del self._context.partitions[partition.name]
        self._context.dirty.pop(partition, None)
        self._begun.pop(partition, None)
        self.upkeep.forget(partition)
        self.replication.forget(partition)
        self._release_ring(partition)
        self._wake_all(partition)
        if not delete:
            return
        if partition.cutting:
            self._busy.add(partition.name)
        else:
            self._delete(partition.log)

    def _delete(self, log: Log) -> None:
        # In the file worker's queue, behind whatever is still to be done to these files.
        self._workers.submit(
            Lane.FILES,
            partial(move_to_deleted, self._storage, self._data_dir, log),
            _raise_error,
        )

    def close_all(self) -> None:
        """A clean stop, in the calling thread: sync, checkpoint and close every log; remove the rings."""
        for partition in list(self._context.partitions.values()):
            del self._context.partitions[partition.name]
            self._release_ring(partition)
            partition.log.close(partition.high_watermark)
        self._rings.close()

    def _set_strays_aside(self, image: Image) -> None:
        """Nothing is deleted because the metadata says that it should not exist: it is renamed."""
        self._storage.remove_tree(f"{self._data_dir}/{paths.DELETED}")
        for name in self._storage.list(self._data_dir):
            parsed = paths.parse_partition_dir(name)
            if parsed is None or parsed[0] == paths.METADATA_TOPIC:
                continue
            topic = image.topics.get(parsed[0])
            if topic is not None and parsed[1] < len(topic.partitions):
                continue
            stray = paths.stray_dir(name, self._context.identity.incarnation)
            self._storage.rename(f"{self._data_dir}/{name}", f"{self._data_dir}/{stray}")
            journal.warning("unknown directory set aside", directory=name, renamed=stray)

    def registration(
        self, registration: peers.RegisterBroker, *, again: bool
    ) -> peers.RegisterBroker:
        """With what is found in the logs (E2): for a recovery election the ends of all replicas count."""
        reports = tuple(
            peers.ReplicaReport(
                p.topic_id,
                p.name.partition,
                p.log.last_epoch_before(p.log.log_end_offset),
                p.log.log_end_offset,
                p.log.recovery.lossy,
                p.leader_epoch if again else -1,
            )
            for p in self._context.partitions.values()
        )
        return msgspec.structs.replace(registration, replicas=reports)

    # -- rings ----------------------------------------------------------------------------------------

    def maybe_make_ring(self, partition: Partition) -> None:
        """At a partition's first append: have its ring made, unless it has one or wants none."""
        if partition.window.state != "none":
            return
        capacity = partition.config.ring_bytes
        if capacity == 0:
            partition.window.state = "off"
            return
        identity = RingIdentity(
            cluster=self._context.identity.cluster,
            broker=self._context.identity.broker,
            incarnation=self._context.identity.incarnation,
            topic_id=partition.topic_id,
            partition=partition.name.partition,
        )
        partition.window.state = "asked"
        if not self._rings.reserve(capacity):
            self._ring_made(partition, identity, capacity, self._rings.heap(capacity), None)
            return
        self._workers.submit(
            Lane.FILES,
            partial(self._rings.make, identity, capacity),
            partial(self._ring_made, partition, identity, capacity),
        )

    def _ring_made(
        self,
        partition: Partition,
        identity: RingIdentity,
        capacity: int,
        memory: object,
        error: BaseException | None,
    ) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM):
            self._rings.release(capacity)
            self._rings.say_no_room(str(partition.name))
            memory = self._rings.heap(capacity)
        elif error is not None:
            raise error
        shared: SharedMemory = memory  # type: ignore[assignment]
        led = partition.leader is not None and partition.window.state == "asked"
        wanted = led and self._context.partitions.get(partition.name) is partition
        if not wanted or capacity != partition.config.ring_bytes:
            self._rings.remove(shared)
            if partition.window.state == "asked":
                partition.window.state = "none"
            return
        writer = RingWriter.create(shared, identity, capacity, leader_epoch=partition.leader_epoch)
        writer.beat(self._context.clock.monotonic_ns())
        partition.window.attach(writer, RingReader(shared, identity), shared)
        self._ring_count += 1

    def _release_ring(self, partition: Partition) -> None:
        memory = partition.window.detach()
        if memory is not None:
            self._ring_count -= 1
            self._rings.remove(memory)

    def beat(self) -> None:
        """Stamp the rings: their writer's loop is alive."""
        now_ns = self._context.clock.monotonic_ns()
        for partition in self._context.partitions.values():
            partition.window.beat(now_ns)

    def has_rings(self) -> bool:
        """Is there any ring to stamp?"""
        return self._ring_count > 0

    # -- ends -----------------------------------------------------------------------------------------

    def settled(self, partition: Partition) -> None:
        """The ends of a partition led here have moved: whoever waits for them looks again."""
        if partition.leader is None:
            return
        purgatory = self._context.purgatory
        for channel, end in (
            (STORED, partition.leader.stored_end),
            (COMMITTED, partition.high_watermark),
        ):
            for waiter in purgatory.advance((partition, channel), end):
                waiter.resume()

    def _synced(self, partition: Partition) -> None:
        """A sync has ended."""
        self._raise_level(partition)
        if partition.leader is not None:
            if partition.synced(partition.log.synced_end_offset):
                self.settled(partition)
        else:
            self.replication.synced(partition)

    def _grown(self, partition: Partition) -> None:
        """A followed log has grown."""
        self.upkeep.written(partition)
        self.retention.written(partition)

    def _trimmed(self, partition: Partition) -> None:
        """A log start has risen: files go with a checkpoint at once, and the followers hear of it."""
        self.upkeep.trimmed(partition)
        if partition.leader is not None:
            self.replication.changed(partition)


def _start_anew(log: Log, offset: int, tombstones_dropped: int, states: Sequence[object]) -> None:
    """In a worker: there may be many producers."""
    producers = {}
    for state in states:
        assert isinstance(state, ProducerState)
        batches = tuple(Remembered(*batch) for batch in state.batches)
        producers[state.producer_id] = Producer(state.producer_epoch, batches)
    log.start_anew(offset, tombstones_dropped, producers)


def _raise_error(_: object, error: BaseException | None) -> None:
    if is_no_space(error):
        journal.warning("no space for a change of files", reason=str(error))
    elif error is not None:
        raise error
