"""A broker's parts put together over whatever stands for the operating system. No logic.

`Ports` is all that a broker touches: disk, sockets, threads, clock, shared memory, the kernel's word on other
processes, chance. The real ones come from `broker`; a simulation brings its own, and runs everything else as it is
shipped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from node.catalog import Catalog
from node.core.cluster.topics import REPLICAS_MAX
from node.handlers import table
from node.handlers.coordinator import Coordinator
from node.handlers.exchange import Context, Identity
from node.handlers.peers import PeerHandler, sender
from node.io.compactor import Compactor
from node.io.liveness import Kernel, Liveness
from node.io.loop import Loop
from node.io.members import Members
from node.io.wire import Wire
from node.io.workers import Workers
from node.metadata import Metadata, Voting
from node.rings import Rings
from node.standing import Standing
from shmlog.clock import Clock
from shmlog.log.log import OPEN_FILES_MAX
from shmlog.log.storage import Storage
from shmlog.protocol import peers
from shmlog.ring.posix import DESCRIPTORS
from shmlog.settings import ClusterConfig

FILES_MAX = OPEN_FILES_MAX + DESCRIPTORS  # of one partition with a ring


@dataclass(frozen=True, slots=True)
class Ports:
    """What a broker touches of the world."""

    storage: Storage
    wire: Wire
    workers: Workers
    clock: Clock
    kernel: Kernel
    rings: Rings
    compactor: Compactor
    rng: random.Random
    new_topic_id: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Start:
    """How this uptime began: where its data lies, and what the last uptime left."""

    data_dir: str
    pid: int
    endpoints: Mapping[str, str]
    same_boot: bool
    clean: bool
    settings: ClusterConfig
    topic_defaults: Mapping[str, Any]
    files_max: int = 1 << 20  # descriptors that the logs may have
    replaced: bool = False  # the data directory is not the one of the last start


class Node:
    """One broker, ready to turn. `registered()` is called once the cluster knows this incarnation."""

    def __init__(
        self, voting: Voting, start: Start, ports: Ports, registered: Callable[[], None]
    ) -> None:
        send = sender(voting.broker, voting.incarnation, ports.wire.send_peer)
        self.metadata = Metadata(
            ports.storage,
            start.data_dir,
            voting,
            topic_defaults=start.topic_defaults,
            settings=start.settings,
            clock=ports.clock,
            rng=ports.rng,
            workers=ports.workers,
            send=send,
            same_boot=start.same_boot,
            clean=start.clean,
            replaced=start.replaced,
            replicas_max=min(REPLICAS_MAX, max(1, start.files_max // FILES_MAX)),
        )
        self.metadata.check_cluster()
        self.context = Context(
            identity=Identity(
                voting.cluster,
                voting.broker,
                voting.incarnation,
                start.endpoints["client"],
                voting.brokers,
                voting.voters,
            ),
            settings=start.settings,
            clock=ports.clock,
            metadata=self.metadata,
            partitions={},
            new_topic_id=ports.new_topic_id,
            pid_of=ports.wire.pid_of,
        )
        table.bind(self.context)
        liveness = Liveness(ports.kernel, ports.wire.watch, ports.wire.unwatch)
        self.catalog = Catalog(
            self.context,
            ports.storage,
            ports.workers,
            ports.rings,
            ports.compactor,
            start.data_dir,
            send,
            lambda broker, incarnation: not liveness.is_dead(broker, incarnation),
            same_boot=start.same_boot,
            clean=start.clean,
            replaced=start.replaced,
            files_max=start.files_max,
        )
        registration = peers.RegisterBroker(
            id=voting.broker,
            incarnation=voting.incarnation,
            boot_id=voting.boot_id,
            pid=start.pid,
            endpoints=dict(start.endpoints),
        )
        self.standing = Standing(self.context, self.catalog, registration, registered)
        self.context.elect = self.standing.elect_preferred
        self.loop = Loop(
            self.context,
            self.catalog,
            self.standing,
            Coordinator(
                self.context,
                Members(ports.kernel, ports.wire.watch, ports.wire.unwatch),
                voting.boot_id,
            ),
            PeerHandler(self.metadata, self.catalog.replication, ports.clock),
            liveness,
            ports.wire,
            ports.workers,
            ports.clock,
        )
        self.metadata.publish = self.loop.published
