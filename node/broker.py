"""The composition root: a broker's parts put together, started and stopped. No logic.

Start: lock the data directory, count the incarnation, remove what the dead incarnation left in shared memory,
open the metadata log, register (which gives every partition a new leader epoch), open the partitions, bind the
socket, and only then publish the registry entry: who finds the broker there can talk to it.

Stop: end the turn in hand, close the socket (who waits resends to the next incarnation), sync and close every
log, remove the rings, mark the stop as clean.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

from node import journal, uptime
from node.catalog import Catalog
from node.core.cluster import controller
from node.core.cluster.image import BrokerRecord
from node.handlers import table
from node.handlers.exchange import Context, Identity
from node.io.loop import Loop
from node.io.wire import ZmqWire
from node.io.workers import ThreadWorkers
from node.metadata import Metadata
from node.rings import Rings, default_budget
from node.upkeep import is_no_space
from shmlog import directory, process, registry
from shmlog.clock import NS_PER_MS, SYSTEM_CLOCK
from shmlog.errors import InvalidConfig
from shmlog.log import opened, paths
from shmlog.log.log import OPEN_FILES_MAX
from shmlog.log.os_storage import OsStorage
from shmlog.log.storage import Storage

RESERVE_BYTES = 1 << 20
SWITCH_INTERVAL_S = 0.0005  # the default hand-over of the GIL is up to 5 ms: 40 times a sync


class Broker:
    """One broker process."""

    def __init__(self, path: Path, broker: int) -> None:
        clock = SYSTEM_CLOCK
        cluster = directory.load_cluster(path)
        if broker not in cluster.brokers:
            raise InvalidConfig(f"cluster.toml has no broker {broker}: {list(cluster.brokers)}")
        self._path = path
        self._data_dir = directory.data_dir(path, broker)
        endpoint = f"ipc://{directory.client_socket(path, broker)}"
        self._data_lock = registry.lock_data_dir(self._data_dir)
        descriptors = process.raise_descriptor_limit()
        storage = OsStorage()
        # A start writes some small files before anything can be served or deleted: on a full disk they take
        # the room that was kept for them.
        reserve = str(self._data_dir / "reserve")
        storage.unlink(reserve)
        last = uptime.read(self._data_dir)
        boot_id = process.boot_id()
        same_boot = last is not None and last.boot_id == boot_id
        clean = last is not None and last.clean
        incarnation = registry.next_incarnation(self._data_dir)
        directory.unlink_memory_of_dead(path, broker)
        self._uptime = uptime.Uptime(incarnation, boot_id, clean=False)
        # Not clean from here on; but until recovery is done the logs are as the last boot left them.
        last_boot_id = "" if last is None else last.boot_id
        uptime.write(self._data_dir, uptime.Uptime(incarnation, last_boot_id, clean=False))
        self.metadata = Metadata(
            storage,
            str(self._data_dir),
            topic_defaults=cluster.topic_defaults,
            clock=clock,
            same_boot=same_boot,
            clean=clean,
        )
        if not self.metadata.check_cluster(cluster.cluster):
            self.metadata.found(cluster.cluster)
        before = self.metadata.image.brokers.get(broker)
        if before is not None and before.incarnation >= incarnation:
            raise InvalidConfig(
                f"{self._data_dir}/incarnation was lost: this start would be number {incarnation}, the "
                f"metadata knows {before.incarnation}; write a number of at least that into it"
            )
        record = BrokerRecord(broker, incarnation, boot_id, endpoint)
        self.metadata.commit_now(lambda image: controller.register_broker(image, record))
        identity = Identity(cluster.cluster, broker, incarnation, endpoint, cluster.brokers)
        self.context = Context(
            identity=identity,
            settings=cluster.settings,
            clock=clock,
            metadata=self.metadata,
            partitions={},
            new_topic_id=lambda: os.urandom(16),
        )
        table.bind(self.context)
        self._check_descriptors(descriptors)
        self._workers = ThreadWorkers()
        budget = cluster.settings.ring_budget_bytes
        if budget < 0:
            budget = default_budget(len(cluster.brokers))
        rings = Rings(registry.MemoryList(directory.memory_list_file(path, broker)), budget)
        self._catalog = Catalog(
            self.context,
            storage,
            self._workers,
            rings,
            str(self._data_dir),
            same_boot=same_boot,
            clean=clean,
        )
        self._catalog.open_all()
        hosted = {
            paths.partition_dir(topic.name, p.partition)
            for topic in self.metadata.image.topics.values()
            for p in topic.partitions
        }
        hosted.add(paths.partition_dir(paths.METADATA_TOPIC, 0))
        opened.keep_only(storage, str(self._data_dir), hosted)
        _keep_reserve(storage, reserve)
        uptime.write(self._data_dir, self._uptime)
        self._wire = ZmqWire(endpoint, self._workers.fileno(), descriptors, self._log_files)
        self._loop = Loop(self.context, self._catalog, self._wire, self._workers, clock)
        self._registration = registry.Registration(directory.registry_file(path, broker))
        self._entry = directory.BrokerEntry(
            cluster=cluster.cluster,
            broker=broker,
            incarnation=incarnation,
            pid=os.getpid(),
            boot_id=boot_id,
            endpoints={"client": endpoint},
            started=clock.wall_ns(),
        )
        self._clean_before = clean

    def _log_files(self) -> int:
        return sum(p.log.open_files for p in self.context.partitions.values())

    def _check_descriptors(self, limit: int) -> None:
        """A quarter of the descriptors is for connections; the rest for the files of the logs.

        Raises: InvalidConfig: not even one file of each partition can be open.
        """
        for_logs = limit * 3 // 4
        hosted = sum(len(topic.partitions) for topic in self.metadata.image.topics.values())
        if hosted > for_logs:
            raise InvalidConfig(
                f"{hosted} partitions, and the limit of open files is {limit}: raise it (ulimit -n) to at "
                f"least {hosted * 4 // 3 + 4}"
            )
        allowed = max(1, for_logs // OPEN_FILES_MAX)
        if allowed < self.context.partitions_max:
            self.context.partitions_max = allowed
            journal.warning("few descriptors", limit=limit, partitions_max=allowed)

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises OSError: a write or sync failed, the broker must end."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        self._registration.publish(self._entry)
        journal.event(
            "ready",
            incarnation=self._entry.incarnation,
            partitions=len(self.context.partitions),
            metadata_offset=self.metadata.image.offset,
            clean_before=self._clean_before,
        )
        self._loop.run()
        self._stop()

    def _on_signal(self, *_: object) -> None:
        self._loop.stop()
        self._workers.wake()  # the poll goes on after a handler (PEP 475): give it something to see

    def _stop(self) -> None:
        self._wire.close()
        for completion in self._workers.close():
            if completion.error is not None and not is_no_space(completion.error):
                raise completion.error
        self._catalog.close_all()
        self.metadata.log.close(self.metadata.log.synced_end_offset)
        uptime.write(
            self._data_dir,
            uptime.Uptime(self._uptime.incarnation, self._uptime.boot_id, clean=True),
        )
        turns = self._loop.statistics
        journal.event(
            "turns",
            count=turns.count,
            requests=turns.requests,
            busy_ms=turns.busy_ns // NS_PER_MS,
            longest_us=turns.longest_ns // 1000,
            longest_cause=turns.longest_cause,
            longest_write_us=turns.longest_write_ns // 1000,
        )
        journal.event("stopped")
        self._registration.close()


def _keep_reserve(storage: Storage, path: str) -> None:
    """Keep room for the next start; a disk that is full now has to do without."""
    file = storage.open(path, create=True)
    try:
        file.allocate(0, RESERVE_BYTES)
    except OSError as error:
        if not is_no_space(error):
            raise
        journal.warning("no space to keep for the next start", wanted_bytes=RESERVE_BYTES)
    finally:
        file.close()
