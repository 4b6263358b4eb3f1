"""Which partitions this broker hosts: follows the image, opens and closes logs, makes and removes rings.

Opening a log, making a ring and removing files take long, so workers do them; until a partition is open,
requests for it are answered 5, and until its ring is there its batches go straight to the file.

Rings come out of a budget of bytes per broker. Where the budget or /dev/shm has no room, a partition gets a
*heap ring*: private memory behind the same interface, so that the broker serves fresh data without reading
files; readers then fetch by socket. That is said once.
"""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from node import journal
from node.core.cluster.image import Image, PartitionRecord, Topic
from node.handlers.exchange import COMMITTED, METADATA, READY, STORED, Context
from node.io.workers import Lane, Workers
from node.partition import Partition
from node.rings import Rings
from node.upkeep import Upkeep, is_no_space
from shmlog.ids import TopicPartition
from shmlog.log import paths
from shmlog.log.jobs import Job
from shmlog.log.log import Log, move_to_deleted
from shmlog.log.storage import Storage
from shmlog.ring.layout import RingIdentity
from shmlog.ring.memory import SharedMemory
from shmlog.ring.reader import RingReader
from shmlog.ring.writer import RingWriter

OPEN_THREADS = 8


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
        data_dir: str,
        *,
        same_boot: bool,
        clean: bool,
    ) -> None:
        self._context = context
        self._storage = storage
        self._workers = workers
        self._rings = rings
        self._data_dir = data_dir
        self._same_boot = same_boot
        self._clean = clean
        self.upkeep = Upkeep(context.clock, workers, self.settled)
        self._opening: set[tuple[bytes, int]] = set()
        self._unopened: set[bytes] = set()  # topics with partitions that found no space
        self._ring_count = 0

    # -- following the image --------------------------------------------------------------------------

    def open_all(self) -> None:
        """At the start: open every hosted partition in the calling thread; then set strays aside."""
        image = self._context.metadata.image
        hosted = [
            (topic, state)
            for topic in image.topics.values()
            for state in topic.partitions
            if self._hosts(state)
        ]
        # Opening waits for syncs, and syncs of different files overlap.
        with ThreadPoolExecutor(OPEN_THREADS) as pool:
            logs = pool.map(lambda pair: self._try_to_open(*pair), hosted)
            for (topic, state), (log, error) in zip(hosted, logs, strict=True):
                self._opened(topic, state, log, error)
        self._set_strays_aside(image)
        if not self._unopened:
            # From here on every log that is opened is a new one.
            self._clean = self._same_boot = True

    def follow(self, old: Image, new: Image) -> None:
        """The image has changed: open what is new, close what is gone, apply settings and log starts."""
        for name, topic in old.topics.items():
            now = new.topics.get(name)
            if now is None or now.topic_id != topic.topic_id:
                self._close_topic(topic)
        for name, topic in new.topics.items():
            if old.topics.get(name) is not topic:
                self._follow_topic(topic)
        for waiter in self._context.purgatory.advance(("image", METADATA), new.offset):
            waiter.resume()

    def _hosts(self, state: PartitionRecord) -> bool:
        return self._context.identity.broker in state.replicas

    def _follow_topic(self, topic: Topic) -> None:
        for state in topic.partitions:
            if not self._hosts(state):
                continue
            partition = self._context.partitions.get((topic.name, state.partition))
            key = (topic.topic_id, state.partition)
            if partition is not None:
                self._apply(partition, topic, state)
            elif key not in self._opening:
                self._opening.add(key)
                self._workers.submit(
                    Lane.FILES,
                    partial(self._open, topic, state),
                    partial(self._opened, topic, state),
                )

    def _try_to_open(
        self, topic: Topic, state: PartitionRecord
    ) -> tuple[Log | None, OSError | None]:
        try:
            return self._open(topic, state), None
        except OSError as error:
            return None, error

    def _open(self, topic: Topic, state: PartitionRecord) -> Log:
        return Log.open(
            self._storage,
            f"{self._data_dir}/{paths.partition_dir(topic.name, state.partition)}",
            topic_id=topic.topic_id,
            partition=state.partition,
            config=topic.config,
            now_ns=self._context.clock.monotonic_ns(),
            same_boot=self._same_boot,
            clean=self._clean,
        )

    def _opened(
        self, topic: Topic, state: PartitionRecord, log: object, error: BaseException | None
    ) -> None:
        self._opening.discard((topic.topic_id, state.partition))
        if is_no_space(error):
            journal.warning("no space to open", partition=f"{topic.name}-{state.partition}")
            self._unopened.add(topic.topic_id)
            return
        if error is not None:
            raise error
        assert isinstance(log, Log)
        name = TopicPartition(topic.name, state.partition)
        if log.recovery.cut_bytes:
            journal.warning("torn tail cut", partition=str(name), cut_bytes=log.recovery.cut_bytes)
        partition = Partition(
            name, topic.topic_id, log, topic.config, state.leader_epoch, self._context.clock
        )
        self._context.partitions[name] = partition
        current = self._context.metadata.image.by_id(topic.topic_id)
        if current is None:
            self._close(partition, delete=True)
            return
        self._apply(partition, current, current.partitions[state.partition])
        ready = sum(
            (topic.name, p.partition) in self._context.partitions for p in current.partitions
        )
        for waiter in self._context.purgatory.advance((topic.topic_id, READY), ready):
            waiter.resume()

    def _apply(self, partition: Partition, topic: Topic, state: PartitionRecord) -> None:
        partition.leader_epoch = state.leader_epoch
        if partition.config.ring_bytes != topic.config.ring_bytes:
            # Another size: the next append has a new ring made. Readers see this one sealed.
            self._release_ring(partition)
            if partition.ring_state != "asked":  # else _ring_made sees the other size
                partition.ring_state = "none"
        if partition.config is not topic.config:
            if partition.configure(topic.config):
                self.settled(partition)
            if partition.log.synced_end_offset < partition.log.log_end_offset:
                self.upkeep.written(partition)
        # A log start beyond this log's end would mean that committed records are missing.
        start = min(state.log_start, partition.log.log_end_offset)
        if start > partition.log_start:
            self._trim(partition, start)

    def _trim(self, partition: Partition, log_start: int) -> None:
        jobs = partition.trim(log_start)
        self._workers.submit(Lane.FILES, partial(_run_all, jobs), _raise_error)
        self.upkeep.trimmed(partition)

    def retry_opening(self) -> None:
        """Try again to open what found no space."""
        topic_ids, self._unopened = self._unopened, set()
        for topic_id in topic_ids:
            topic = self._context.metadata.image.by_id(topic_id)
            if topic is not None:
                self._follow_topic(topic)

    # -- closing --------------------------------------------------------------------------------------

    def _close_topic(self, topic: Topic) -> None:
        for state in topic.partitions:
            partition = self._context.partitions.get((topic.name, state.partition))
            if partition is not None:
                self._close(partition, delete=True)
        for waiter in self._context.purgatory.drop_key((topic.topic_id, READY)):
            waiter.resume()

    def _close(self, partition: Partition, *, delete: bool) -> None:
        del self._context.partitions[partition.name]
        self._context.dirty.pop(partition, None)
        self.upkeep.forget(partition)
        self._release_ring(partition)
        for channel in (STORED, COMMITTED):
            for waiter in self._context.purgatory.drop_key((partition, channel)):
                waiter.resume()
        if delete:
            # In the file worker's queue, behind whatever is still to be done to these files.
            self._workers.submit(
                Lane.FILES,
                partial(move_to_deleted, self._storage, self._data_dir, partition.log),
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

    # -- rings ----------------------------------------------------------------------------------------

    def maybe_make_ring(self, partition: Partition) -> None:
        """At a partition's first append: have its ring made, unless it has one or wants none."""
        if partition.ring_state != "none":
            return
        capacity = partition.config.ring_bytes
        if capacity == 0:
            partition.ring_state = "off"
            return
        identity = RingIdentity(
            cluster=self._context.identity.cluster,
            broker=self._context.identity.broker,
            incarnation=self._context.identity.incarnation,
            topic_id=partition.topic_id,
            partition=partition.name.partition,
        )
        partition.ring_state = "asked"
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
        wanted = self._context.partitions.get(partition.name) is partition
        if not wanted or capacity != partition.config.ring_bytes:
            self._rings.remove(shared)
            partition.ring_state = "none"
            return
        writer = RingWriter.create(shared, identity, capacity, leader_epoch=partition.leader_epoch)
        writer.beat(self._context.clock.monotonic_ns())
        partition.attach_ring(writer, RingReader(shared, identity), shared)
        self._ring_count += 1

    def _release_ring(self, partition: Partition) -> None:
        memory = partition.memory
        partition.detach_ring()
        if memory is not None:
            self._ring_count -= 1
            self._rings.remove(memory)

    def beat(self) -> None:
        """Stamp the rings: their writer's loop is alive."""
        now_ns = self._context.clock.monotonic_ns()
        for partition in self._context.partitions.values():
            if partition.ring is not None:
                partition.ring.beat(now_ns)

    def has_rings(self) -> bool:
        """Is there any ring to stamp?"""
        return self._ring_count > 0

    # -- ends -----------------------------------------------------------------------------------------

    def settled(self, partition: Partition) -> None:
        """The partition's ends have moved: whoever waits for them looks again."""
        purgatory = self._context.purgatory
        for channel, end in (
            (STORED, partition.ledger.stored_end),
            (COMMITTED, partition.high_watermark),
        ):
            for waiter in purgatory.advance((partition, channel), end):
                waiter.resume()


def _raise_error(_: object, error: BaseException | None) -> None:
    if is_no_space(error):
        journal.warning("no space for a change of files", reason=str(error))
    elif error is not None:
        raise error


def _run_all(jobs: list[Job]) -> None:
    """One behind the other: if the log start cannot be written, nothing is unlinked."""
    for job in jobs:
        job.run()
