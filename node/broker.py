"""The composition root: a broker's parts put together, started and stopped. No logic.

Start: lock the data directory, count the incarnation, remove what the dead incarnation left in shared memory,
open the metadata log, bind the sockets, turn. The turn finds the quorum, opens the partitions, registers (which gives
a new leader epoch to what this broker leads), and only then the registry entry is published: who finds the broker
there can talk to it.

Stop: hand over what is led here, end the turn in hand, close the sockets (who waits resends to another), sync and
close every log, remove the rings, mark the stop as clean.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from pathlib import Path

from node import journal, uptime
from node.assembly import Node, Ports, Start
from node.core.cluster.topics import REPLICAS_MAX
from node.io.compactor import ChildCompactor
from node.io.liveness import OsKernel
from node.io.wire import ZmqWire
from node.io.workers import Lane, ThreadWorkers, is_no_space
from node.metadata import Voting
from node.rings import Rings, default_budget
from node.stats import Page
from shmlog import directory, process, registry, stats
from shmlog.clock import NS_PER_MS, SYSTEM_CLOCK
from shmlog.errors import InvalidConfig
from shmlog.log.os_storage import OsStorage
from shmlog.log.storage import Storage
from shmlog.ring.posix import DESCRIPTORS

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
        self._data_dir = cluster.data_dirs[broker]
        endpoint = f"ipc://{directory.client_socket(path, broker)}"
        self._data_lock = registry.lock_data_dir(self._data_dir)
        descriptors = process.raise_descriptor_limit()
        storage = OsStorage()
        # A start writes some small files before anything can be served or deleted: on a full disk they take
        # the room that was kept for them.
        reserve = str(self._data_dir / "reserve")
        storage.unlink(reserve)
        boot_id = process.boot_id()
        last = uptime.before(uptime.read(self._data_dir), storage, str(self._data_dir), boot_id)
        same_boot = last is not None and last.boot_id == boot_id
        clean = last is not None and last.clean
        starts = registry.Starts(self._data_dir, directory.starts_file(path, broker))
        incarnation = starts.incarnation
        replaced = starts.is_replaced or (last is not None and last.replaced)
        if replaced:
            journal.warning(
                "data directory replaced", path=str(self._data_dir), incarnation=incarnation
            )
        self._uptime = uptime.Uptime(incarnation, boot_id, clean=False)
        self._last_uptime, self._is_replaced, self._is_recovered = last, replaced, False
        uptime.write(self._data_dir, uptime.at_start(last, incarnation, replaced=replaced))
        starts.count()  # only now: the count is what tells that the directory was replaced
        directory.unlink_memory_of_dead(cluster, broker)
        self._workers = ThreadWorkers()
        peer_endpoints = {b: f"ipc://{directory.peer_socket(path, b)}" for b in cluster.brokers}
        peer_endpoint = peer_endpoints.pop(broker)
        self._wire = ZmqWire(
            endpoint,
            peer_endpoint,
            peer_endpoints,
            self._workers.fileno(),
            descriptors,
            self._log_files,
            clock,
        )
        budget = cluster.settings.ring_budget_bytes
        if budget < 0:
            budget = default_budget(len(cluster.brokers))
        self._compactor = ChildCompactor()
        names = registry.MemoryList(directory.memory_list_file(path, broker))
        ports = Ports(
            storage=storage,
            wire=self._wire,
            workers=self._workers,
            clock=clock,
            kernel=OsKernel(path),
            rings=Rings(names, budget),
            compactor=self._compactor,
            rng=random.Random(),
            new_topic_id=lambda: os.urandom(16),
        )
        start = Start(
            data_dir=str(self._data_dir),
            pid=os.getpid(),
            endpoints={"client": endpoint, "peer": peer_endpoint},
            same_boot=same_boot,
            clean=clean,
            replaced=replaced,
            settings=cluster.settings,
            topic_defaults=cluster.topic_defaults,
            files_max=descriptors * 3 // 4,  # the rest is for connections
        )
        voting = Voting(
            cluster.cluster, broker, incarnation, boot_id, cluster.brokers, cluster.voters
        )
        self._node = Node(voting, start, ports, self._publish)
        self._loop = self._node.loop
        if self._node.metadata.replicas_max < REPLICAS_MAX:
            journal.warning(
                "few descriptors",
                limit=descriptors,
                partitions_max=self._node.metadata.replicas_max,
            )
        self._storage, self._reserve = storage, reserve
        self._registration = registry.Registration(directory.registry_file(path, broker))
        self._entry = directory.BrokerEntry(
            cluster=cluster.cluster,
            broker=broker,
            incarnation=incarnation,
            pid=os.getpid(),
            boot_id=boot_id,
            endpoints=dict(start.endpoints),
            started=clock.wall_ns(),
        )
        self._clean_before = clean
        self._page = Page(
            names,
            stats.Identity(cluster.cluster, broker, incarnation),
            pid=self._entry.pid,
            started_ns=self._entry.started,
        )
        self._loop.show = self._page.write

    def _log_files(self) -> int:
        partitions = self._node.context.partitions.values()
        files = sum(
            p.log.open_files + DESCRIPTORS * (p.window.memory is not None) for p in partitions
        )
        return self._node.metadata.log.open_files + files

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises OSError: a write or sync failed, the broker must end."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        self._loop.run()
        self._stop()

    def _publish(self) -> None:
        """This incarnation is registered, its logs are recovered."""
        _keep_reserve(self._storage, self._reserve)
        if self._node.catalog.is_complete:
            uptime.write(self._data_dir, self._uptime)
            self._is_recovered = True
        self._registration.publish(self._entry)
        journal.event(
            "ready",
            incarnation=self._entry.incarnation,
            partitions=len(self._node.context.partitions),
            metadata_offset=self._node.metadata.image.offset,
            clean_before=self._clean_before,
        )

    def _on_signal(self, *_: object) -> None:
        self._loop.stop()
        self._workers.wake()  # the poll goes on after a handler (PEP 475): give it something to see

    def _stop(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            # A second one would wake a loop that has ended, by a descriptor that may be a file's by then.
            signal.signal(signum, signal.SIG_IGN)
        self._wire.close()
        self._compactor.close()
        self._page.close()
        for completion in self._workers.close():
            forgiven = completion.lane is Lane.FILES and is_no_space(completion.error)
            if forgiven:
                completion.done(None, completion.error)
            elif completion.error is not None:
                raise completion.error
        recovered = self._is_recovered or (
            self._node.standing.is_registered and self._node.catalog.is_complete
        )
        self._node.catalog.close_all()
        self._node.metadata.close()
        this = self._uptime
        stopped = uptime.after_stop(
            self._last_uptime,
            this.incarnation,
            this.boot_id,
            replaced=self._is_replaced,
            recovered=recovered,
        )
        uptime.write(self._data_dir, stopped)
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
