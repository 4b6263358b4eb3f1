"""A controller whose cluster is the test: changes are applied at once, time and beats are given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from node.core.cluster import replicas
from node.core.cluster.controller import Controller
from node.core.cluster.image import (
    Image,
    PartitionRecord,
    Record,
    apply,
    decode_record,
    encode_record,
)
from shmlog.errors import Code, ShmlogError
from shmlog.protocol import peers
from shmlog.settings import ClusterConfig

MS = 10**6
S = 10**9
SETTINGS = ClusterConfig()
ID = b"t".ljust(16, b".")


class Cluster:
    """Images and the controller of broker 0, which does not lead any partition unless told to."""

    def __init__(
        self, count: int = 3, *, boot: str = "boot", settings: ClusterConfig = SETTINGS
    ) -> None:
        self.image = Image(cluster="c")
        self.brokers = range(count)
        self.now = 1000 * S
        self.boot = boot
        self.settings = settings
        self.controller = self.new_controller()

    def new_controller(
        self, broker: int = 0, last_heard: dict[int, int] | None = None
    ) -> Controller:
        registered = self.image.brokers.get(broker)
        self.controller = Controller(
            broker,
            1 if registered is None else registered.incarnation,
            self.brokers,
            self.settings,
            self.image,
            self.now,
            boot_id=self.boot,
            last_heard=last_heard,
        )
        return self.controller

    def commit(self, records: list[Record]) -> list[Record]:
        decoded = [decode_record(encode_record(record)) for record in records]
        assert decoded == records
        if records:
            self.image = apply(self.image, decoded, self.image.offset + len(records))
        return records

    def change(self, change: peers.Change) -> list[Record]:
        return self.commit(self.controller.plan(self.image, change, self.now))

    def tick(self) -> list[Record]:
        """All that there is to do now, set by set; what the first one held."""
        sets = [self.commit(self.controller.tick(self.image, self.now))]
        while sets[-1]:
            sets.append(self.commit(self.controller.tick(self.image, self.now)))
            assert len(sets) < 5, "it does not come to rest"
        return sets[0]

    def pass_time(self, ns: int, silent: Iterable[int] = ()) -> None:
        """The loops turn; all brokers but the silent ones beat."""
        end = self.now + ns
        while self.now < end:
            self.now = min(end, self.now + 250 * MS)
            for broker, record in self.image.brokers.items():
                if broker not in silent:
                    self.controller.beat(broker, record.incarnation, self.image.offset, self.now)
            self.tick()

    def register(
        self, *brokers: int, incarnation: int = 1, boot: str | None = None, **reports: Any
    ) -> list[Record]:
        records: list[Record] = []
        for broker in brokers:
            records = self.change(self.registration(broker, incarnation, boot, **reports))
        return records

    def registration(
        self,
        broker: int,
        incarnation: int = 1,
        boot: str | None = None,
        *,
        lossy: bool = False,
        end: int = 0,
        epoch: int = -1,
        leader_epoch: int = -1,
        absent: bool = False,
    ) -> peers.RegisterBroker:
        found = tuple(
            peers.ReplicaReport(p.topic_id, p.partition, epoch, end, lossy, leader_epoch)
            for p, _ in replicas.partitions_of(self.image)
            if broker in p.replicas and not absent
        )
        return peers.RegisterBroker(
            id=broker,
            incarnation=incarnation,
            boot_id=self.boot if boot is None else boot,
            pid=100 + broker,
            endpoints={"client": f"ipc:///c{broker}", "peer": f"ipc:///p{broker}"},
            replicas=found,
        )

    def topic(self, count: int = 1, factor: int = 3, **configs: Any) -> PartitionRecord:
        self.change(
            peers.CreateTopic(
                name="t",
                topic_id=ID,
                partition_count=count,
                replication_factor=factor,
                configs=configs,
            )
        )
        self.start()
        return self.p

    def start(self, partition: int = 0, start_offset: int = 0) -> list[Record]:
        """The leader begins its epoch."""
        p = self.partition(partition)
        start = peers.EpochStart(ID, partition, p.leader_epoch, start_offset)
        incarnation = self.image.brokers[p.leader].incarnation
        return self.change(
            peers.StartEpochs(leader=p.leader, incarnation=incarnation, starts=(start,))
        )

    def partition(self, index: int = 0) -> PartitionRecord:
        found = self.image.partition(ID, index)
        assert found is not None
        return found

    @property
    def p(self) -> PartitionRecord:
        return self.partition()

    def die(self, *brokers: int) -> list[Record]:
        for broker in brokers:
            self.controller.died(broker, self.image.brokers[broker].incarnation, self.now)
        return self.tick()

    def proposal(self, *isr: int, partition: int = 0, **fields: int) -> peers.ProposeIsr:
        p = self.partition(partition)
        incarnations = {b: record.incarnation for b, record in self.image.brokers.items()}
        seen: dict[str, Any] = {
            "leader": p.leader,
            "leader_epoch": p.leader_epoch,
            "partition_epoch": p.partition_epoch,
            "isr": tuple(peers.IsrMember(b, incarnations.get(b, 1)) for b in isr),
        }
        return peers.ProposeIsr(topic_id=ID, partition=partition, **{**seen, **fields})

    def hand_over(self, target: int, **fields: int) -> peers.HandOver:
        p = self.p
        seen = {"leader": p.leader, "leader_epoch": p.leader_epoch, "target": target}
        return peers.HandOver(topic_id=ID, partition=0, **{**seen, **fields})

    def others(self) -> list[int]:
        """The replicas that follow."""
        return [broker for broker in self.p.replicas if broker != self.p.leader]


def refused(cluster: Cluster, change: peers.Change, code: Code) -> ShmlogError:
    before = cluster.image
    with pytest.raises(ShmlogError) as caught:
        cluster.change(change)
    assert caught.value.code == code, caught.value
    assert cluster.image is before
    return caught.value
