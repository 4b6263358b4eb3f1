"""What brokers ask for their replicas: epoch starts, in-sync replicas, hand-overs, their own coming and going.

Pure plans. `alive`: brokers that are registered, not fenced, not proven dead (elections.py). A proposal made on facts
that have changed since is refused, never mended: its broker reads the image again. E, J: docs/rules.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

from node.core.cluster import elections
from node.core.cluster.image import (
    BrokerRecord,
    FenceRecord,
    Image,
    PartitionRecord,
    Record,
)
from node.core.cluster.liveness import DEAD, STOPPING
from shmlog.errors import Code, InvalidRequest, Outdated, UnknownTopic
from shmlog.protocol import peers

Key = tuple[bytes, int]  # topic id, partition


def partitions_of(image: Image) -> Iterator[tuple[PartitionRecord, int]]:
    """Every partition with its effective minimum of in-sync replicas."""
    for topic in image.topics.values():
        for partition in topic.partitions:
            yield partition, topic.config.minimum_isr(len(partition.replicas))


def settle_all(image: Image, alive: Set[int]) -> list[PartitionRecord]:
    """The partitions that must change while these brokers are alive."""
    settled = (
        (old, elections.settle(old, minimum, alive)) for old, minimum in partitions_of(image)
    )
    return [new for old, new in settled if new is not old]


def check_current(image: Image, broker: int, incarnation: int) -> None:
    """Raises Outdated (77) unless this is the registered incarnation."""
    if not image.is_current(broker, incarnation):
        raise Outdated(
            f"incarnation {incarnation} of broker {broker} is not the registered one",
            code=Code.STALE_BROKER_EPOCH,
        )


def register(
    image: Image,
    change: peers.RegisterBroker,
    reports: Mapping[Key, peers.ReplicaReport],
    alive: Set[int],
) -> list[Record]:
    """E2: a new incarnation, as one set: the older one is fenced, the new one registered and alive, its lossy
    replicas are no members any more (be it the last one), and what it led has a new epoch.

    That it speaks is the proof of the older one's death (E3): it holds the lock of their directory.
    `reports`: one for every replica of the broker.
    """
    broker = change.id
    records: list[Record] = []
    before = image.brokers.get(broker)
    if before is not None and broker not in image.fenced:
        records.append(FenceRecord(broker, before.incarnation, True, DEAD))
    records.append(
        BrokerRecord(broker, change.incarnation, change.boot_id, change.pid, change.endpoints)
    )
    for old, minimum in partitions_of(image):
        if broker not in old.replicas:
            continue
        isr, lossy = old.isr, old.lossy
        if broker in isr and reports[old.topic_id, old.partition].lossy:
            isr = tuple(member for member in isr if member != broker)
            lossy = (*(b for b in lossy if b != broker), broker)
        new = elections.settle(old, minimum, alive | {broker}, isr=isr, lossy=lossy, deposed=broker)
        if new is not old:
            records.append(new)
    return records


def stop(image: Image, change: peers.StopBroker, alive: Set[int]) -> list[Record]:
    """A broker that stops leads nothing any more and leaves every ISR where J7 admits it, else is missing."""
    check_current(image, change.id, change.incarnation)
    if image.fenced.get(change.id) == STOPPING:
        return []
    fence = FenceRecord(change.id, change.incarnation, True, STOPPING)
    return [fence, *settle_all(image, alive - {change.id})]


def start_epochs(image: Image, change: peers.StartEpochs) -> list[Record]:
    """E8: epochs begun by their current leader; what is not current any more is skipped."""
    check_current(image, change.leader, change.incarnation)
    records: dict[Key, Record] = {}
    for start in change.starts:
        old = image.partition(start.topic_id, start.partition)
        if old is None or old.started:
            continue
        if (old.leader, old.leader_epoch) != (change.leader, start.leader_epoch):
            continue
        records[old.topic_id, old.partition] = elections.changed(
            old,
            started=True,
            epoch_start=start.start_offset,
            last_leader=(change.leader, change.incarnation, start.leader_epoch),
            lossy=(),
        )
    return list(records.values())


def _led(image: Image, change: peers.ProposeIsr | peers.HandOver) -> tuple[PartitionRecord, int]:
    """The partition, whose leader proposes, and its minimum. Raises Outdated (108) if it is not the leader."""
    topic = image.by_id(change.topic_id)
    old = image.partition(change.topic_id, change.partition)
    if topic is None or old is None:
        raise UnknownTopic(
            f"no topic {change.topic_id.hex()} with a partition {change.partition}",
            code=Code.UNKNOWN_TOPIC_ID,
        )
    current = (old.leader, old.leader_epoch)
    if (change.leader, change.leader_epoch) != current or not old.started:
        raise Outdated(
            f"broker {change.leader} does not lead at epoch {change.leader_epoch}: it is broker "
            f"{old.leader} at epoch {old.leader_epoch}",
            code=Code.NEW_LEADER_ELECTED,
        )
    return old, topic.config.minimum_isr(len(old.replicas))


def propose_isr(image: Image, change: peers.ProposeIsr, alive: Set[int]) -> list[Record]:
    """J4, J5: what the leader proposes, if all is as it saw it. Missing members go in the same set (J7)."""
    old, minimum = _led(image, change)
    check_partition_epoch(old, change)
    proposed = {member.broker for member in change.isr}
    if change.leader not in proposed or not proposed <= set(old.replicas):
        raise InvalidRequest(
            f"in-sync replicas {sorted(proposed)}: replicas, and the leader {change.leader} of them"
        )
    for member in change.isr:
        check_member(image, member, is_joining=member.broker not in old.isr, alive=alive)
    isr = tuple(broker for broker in old.replicas if broker in proposed)
    check_minimum(old, isr, minimum)
    lossy = tuple(broker for broker in old.lossy if broker not in isr)
    new = elections.settle(old, minimum, alive, isr=isr, lossy=lossy)
    return [] if new is old else [new]


def check_partition_epoch(old: PartitionRecord, change: peers.ProposeIsr) -> None:
    """J5: nothing about the partition has changed since the leader looked."""
    if change.partition_epoch != old.partition_epoch:
        raise Outdated(
            f"proposed at partition epoch {change.partition_epoch}, it is {old.partition_epoch}",
            code=Code.INVALID_UPDATE_VERSION,
        )


def check_member(
    image: Image, member: peers.IsrMember, *, is_joining: bool, alive: Set[int]
) -> None:
    """J4, J5: the incarnation that the leader saw is registered; who joins is alive, not fenced, not stopping."""
    if not image.is_current(member.broker, member.incarnation):
        raise Outdated(
            f"incarnation {member.incarnation} of broker {member.broker} is not the registered one",
            code=Code.INELIGIBLE_REPLICA,
        )
    if is_joining and member.broker not in alive:
        raise Outdated(
            f"broker {member.broker} is {image.fenced.get(member.broker, DEAD)}",
            code=Code.INELIGIBLE_REPLICA,
        )


def check_minimum(old: PartitionRecord, isr: tuple[int, ...], minimum: int) -> None:
    """J7: nobody leaves if fewer than the minimum in force stay; joins alone are welcome at any size."""
    if len(isr) < minimum and not set(old.isr) <= set(isr):
        raise Outdated(
            f"in-sync replicas {list(isr)}: the minimum in force is {minimum}",
            code=Code.INVALID_UPDATE_VERSION,
        )


def hand_over(image: Image, change: peers.HandOver, alive: Set[int]) -> list[Record]:
    """The leader gives the partition to a living member that has stored its whole log."""
    old, _ = _led(image, change)
    if change.target not in old.isr or change.target not in alive:
        raise Outdated(
            f"broker {change.target} is no living in-sync replica", code=Code.INELIGIBLE_REPLICA
        )
    return [] if change.target == old.leader else [elections.elected(old, change.target)]
